"""The system calls of a proof in a plain loop: the kernel's time for each path of a list.

`python bare_proofs.py FILE`: the paths, each ended by a NUL; seconds on stdout.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Open each path, look at it, close it."""
    paths = Path(sys.argv[1]).read_bytes().split(b"\0")[:-1]
    begun = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        os.fstat(fd)
        os.close(fd)
    sys.stdout.write(f"{time.perf_counter() - begun:.6f}\n")


if __name__ == "__main__":
    main()
