"""One resolution of a process's watches, by the filesystem's own knowledge or by one walk.

    reverse_lookup.py lookup|walk PID FD TREE

Prints microseconds, the number of resolved inodes, and the number of all. Each has its proof.
"""

from __future__ import annotations

import gc
import sys
import time

from irmapdb.config import Config
from irmapdb.kernel.proc import fdinfo
from irmapdb.kernel.proof import disproof
from irmapdb.kernel.root import open_root
from irmapdb.model import WatchKind
from irmapdb.resolve import engine
from irmapdb.resolve.btrfs import BtrfsLookup
from irmapdb.resolve.scan import Scan
from irmapdb.resolve.xfs import XfsParents


def main() -> None:
    """Read the watches, resolve them, print the time."""
    gc.set_threshold(1_000_000, 20, 50)  # as the command does
    method, pid, fd, tree = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    raw = fdinfo.read_raw(pid, fd, WatchKind.INOTIFY)
    assert raw is not None
    identities = {watch.identity for watch in raw.parse().watches}
    with open_root(pid) as root:
        if method == "lookup":
            resolvers: tuple[engine.Resolver, ...] = (BtrfsLookup(root), XfsParents(root))
        else:
            resolvers = (Scan(root, Config(hints=()), paths=[tree.encode()]),)
        start = time.monotonic_ns()
        outcome = engine.resolve(identities, resolvers, lambda *what: disproof(root, *what))
        took_us = (time.monotonic_ns() - start) // 1000
    print(took_us, len(outcome.resolved), len(identities))


if __name__ == "__main__":
    main()
