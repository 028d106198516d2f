"""Runs the console script as `python -m irmapdb`."""

from __future__ import annotations

from irmapdb.commands import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
