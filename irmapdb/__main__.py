"""`python -m irmapdb`: the console script by another name."""

from __future__ import annotations

from irmapdb.commands import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
