"""Looks at all containers: reads their watches, and detects changes by a digest.

Everything is read from /proc, where nothing of a tenant's can keep us waiting; what is too much
for one look is said to be so.
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
"""How long one container is looked at: 100,000 watches take half of it."""


class Seen(Record):
    """One container as it is now."""

    container: Container
    digest: bytes
    """Of the text of every descriptor that watches, and of the mount tables; equal means that
    nothing was added, removed or mounted. b"" where not all could be read."""
    watches: int
    """How many lines these texts have for watches and marks."""
    cost_s: float
    """How long the look took."""


class Look(Record):
    """What one look at the machine found."""

    seen: tuple[Seen, ...]
    skipped: tuple[tuple[int, int], ...]
    """The keys of the containers that it was not the time for."""


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
    # A descriptor that is inherited, or a task that ends while another starts, changes nothing:
    # only what is watched in which mount namespace counts.
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
            continue  # ended, or execve to another user's file: the next look sees
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
