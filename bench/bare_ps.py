"""The time of the kernel alone for the work of `irmapdb ps`: started as a script.

Reads the fdinfo of every inotify and fanotify descriptor of the machine, and prints the number of
lines of watches. It compares nothing, so a descriptor that several tasks share counts often.
"""

from __future__ import annotations

import os
import sys

_LINKS = {"anon_inode:inotify", "anon_inode:[fanotify]"}


def main() -> None:
    """Read all, count."""
    lines = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in _LINKS:
                    lines += _read(f"/proc/{pid}/fdinfo/{fd}").count(b"notify ")
        except OSError:
            continue  # it has ended, or is not ours
    sys.stdout.write(f"{lines}\n")


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


if __name__ == "__main__":
    main()
