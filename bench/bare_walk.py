"""The least that a scan can do in Python: list every directory, look at every inode number.

    bare_walk.py TREE

Prints the number of entries. Started as a script.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Walk by path, with nothing opened safely and nothing proved."""
    entries = hits = 0
    pending = [sys.argv[1]]
    while pending:
        with os.scandir(pending.pop()) as listing:
            for entry in listing:
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.inode() == 0:
                    hits += 1
    sys.stdout.write(f"{entries}\n")
    sys.exit(hits > 0)


if __name__ == "__main__":
    main()
