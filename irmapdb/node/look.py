"""Looks at all containers: reads their watches, and detects changes by a digest.

It reads only /proc, where a tenant cannot block it. If a container is too large for one look, the
result says so.
"""

from __future__ import annotations

import hashlib
import time

from irmapdb.kernel.proc import fdinfo, mountinfo, procfs
from irmapdb.kernel.proc.containers import Container, find_containers
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Look", "Seen", "look_around"]

_PATIENCE_S = 1.0
"""The time limit for one container: 100,000 watches take half of it."""


class Seen(Record):
    """One container as it is now."""

    container: Container
    digest: bytes
    """The digest of the text of every watching descriptor, and of the mount tables. If it is equal,
    nothing was added, removed or mounted. b"" if not all could be read."""
    watches: int
    """The number of lines for watches and marks in these texts."""
    cost_s: float
    """The time that the look took."""


class Look(Record):
    """The result of one look at the machine."""

    seen: tuple[Seen, ...]
    skipped: tuple[tuple[int, int], ...]
    """The keys of the containers that were not due."""


def look_around(
    pattern: str | None = None,
    is_due: Callable[[Container], bool] = lambda _container: True,
) -> Look:
    """Look at every container that `is_due`."""
    seen, skipped = [], []
    tables: dict[int, bytes] = {}
    for container in find_containers(pattern, tables):
        if is_due(container):
            seen.append(_look_at(container, tables))
        else:
            skipped.append(container.key)
    return Look(tuple(seen), tuple(skipped))


def _look_at(container: Container, read: Mapping[int, bytes]) -> Seen:
    begun_s = time.monotonic()
    # An inherited descriptor changes nothing, and neither does a task that ends while another
    # starts: only the watched inodes and their mount namespaces count.
    texts: set[tuple[int, bytes]] = set()
    tables: dict[int, bytes] = {}
    whole = True
    for pid in container.pids:
        if time.monotonic() - begun_s > _PATIENCE_S:
            whole = False
            break
        try:
            found = [
                raw.raw
                for fd, kind in fdinfo.watch_descriptors(pid)
                if (raw := fdinfo.read_raw(pid, fd, kind)) is not None
            ]
            if not found:
                continue
            mntns = mountinfo.mount_namespace(pid)
            texts.update((mntns, raw) for raw in found)
            if mntns not in tables:
                table = read.get(mntns)
                tables[mntns] = table or procfs.read_file(f"{procfs.ROOT}/{pid}/mountinfo")
        except OSError:
            continue  # ended, or execve to another user's file: the next look detects it
    digest = hashlib.blake2b(digest_size=16)
    for mntns, text in sorted(texts):
        digest.update(b"%d %d\n%b" % (mntns, len(text), text))
    for mntns, table in sorted(tables.items()):
        digest.update(b"%d %d\n%b" % (mntns, len(table), table))
    return Seen(
        container,
        digest.digest() if whole else b"",
        sum(text.count(b"\ninotify wd") + text.count(b"\nfanotify ") for _, text in texts),
        time.monotonic() - begun_s,
    )
