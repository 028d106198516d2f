"""Files on an ext4, their names, and the watches on them: the truth of the audit's tests.

ext4 itself identifies an inode, by its number and its generation (FS_IOC_GETVERSION). No code of
irmapdb takes part.
"""

from __future__ import annotations

import fcntl
import os
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest

from irmapdb.audit import check
from irmapdb.audit.findings import AuditFinding, AuditVerdict
from irmapdb.checkpoint import steps
from irmapdb.checkpoint.steps import FreezeOptions, StepOptions
from irmapdb.config import Config
from irmapdb.model import (
    Change,
    ChangeKind,
    Identity,
    Mapping,
    Resolved,
    Source,
)
from irmapdb.store.database import Store
from tests.support.filesystems import drop_caches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.checkpoint.transaction import StepReport
    from tests.support.area import MountArea
    from tests.support.notify import Watched
    from tests.support.watcher import Watcher

__all__ = ["NO_HINTS", "File", "Garden", "live", "replayed", "store_row"]

NO_HINTS = Config(hints=())
_FS_IOC_GETVERSION = 0x80087601


class File(NamedTuple):
    """One inode of an ext4, for as long as it lives and after."""

    ino: int
    generation: int

    @classmethod
    def at(cls, path: Path) -> File:
        fd = os.open(path, os.O_RDONLY)
        try:
            answer = fcntl.ioctl(fd, _FS_IOC_GETVERSION, bytes(8))
            return cls(os.fstat(fd).st_ino, struct.unpack_from("=I", answer)[0])
        finally:
            os.close(fd)

    @classmethod
    def of(cls, identity: Identity) -> File:
        """From the handle (fs/libfs.c, FILEID_INO32_GEN): number and generation."""
        assert identity.handle is not None
        assert identity.handle.type == 1
        return cls(*struct.unpack("=II", identity.handle.data))


class Garden:
    """Files below a directory, their names, and the watches on them."""

    def __init__(self, top: Path, work: Path, watcher: Watcher) -> None:
        self.top, self.work, self.watcher = top, work, watcher
        self.names: dict[Path, File] = {}
        self.pins: dict[Path, int] = {}
        """Descriptors that keep the kernel from forgetting a name."""
        self.watches: dict[File, Watched] = {}
        work.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self.pins):
            self.unpin(path)

    @property
    def database(self) -> Path:
        return self.work / "irmap.db"

    def make(self, name: str) -> Path:
        path = self.top / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        self.names[path] = File.at(path)
        self.pins[path] = os.open(path, os.O_PATH)
        return path

    def watch(self, path: Path) -> None:
        self.watches[self.names[path]] = self.watcher.add_inotify(path)

    def rename(self, old: Path, new: Path) -> Path:
        old.rename(new)
        if old != new and self.names.get(new) != self.names[old]:
            # Of two names of one inode, rename(2) does nothing.
            self.unpin(new)
            self.names[new] = self.names.pop(old)
            self.pins[new] = self.pins.pop(old)
        return new

    def link(self, old: Path, new: Path) -> None:
        new.hardlink_to(old)
        self.names[new] = self.names[old]
        self.pins[new] = os.open(new, os.O_PATH)

    def remove(self, path: Path) -> None:
        self.unpin(path)
        path.unlink()
        del self.names[path]

    def unpin(self, path: Path) -> None:
        if path in self.pins:
            os.close(self.pins.pop(path))

    def forget(self) -> None:
        """Make the kernel drop every cached name."""
        for path in list(self.pins):
            self.unpin(path)
        drop_caches()

    def names_of(self, file: File) -> set[bytes]:
        return {os.fsencode(path) for path, one in self.names.items() if one == file}

    def step(self, *, freeze: bool = False) -> StepReport:
        options = StepOptions(self.watcher.pid, images_dir=self.work, config=NO_HINTS)
        return steps.dump(options, FreezeOptions()) if freeze else steps.pre_dump(options)

    def options(self, **kwargs: object) -> check.AuditOptions:
        return check.AuditOptions(self.database, config=NO_HINTS, **kwargs)

    def audit(self, **kwargs: object) -> dict[bytes, AuditFinding]:
        return {
            finding.mapping.path: finding
            for finding in check.audit(self.options(**kwargs)).findings
        }

    def truth(self, mapping: Mapping) -> AuditVerdict:
        file, path = File.of(mapping.identity), mapping.path
        if path in self.names_of(file):
            return AuditVerdict.VALID
        if self.names_of(file):
            return AuditVerdict.MOVED
        other = self.names.get(Path(os.fsdecode(path)))
        if other is None:
            return AuditVerdict.DELETED
        return AuditVerdict.REUSED if other.ino == file.ino else AuditVerdict.REPLACED

    def mappings(self) -> list[Mapping]:
        with Store.open_readonly(self.database) as store:
            return list(store.all_mappings())

    def changes(self) -> list[tuple[int | None, Change]]:
        with Store.open_readonly(self.database) as store:
            return [(row.run_id, row.change) for row in store.changes()]


def live(garden: Garden) -> set[tuple[Identity, bytes]]:
    """The live mappings as the `mapping` table has them."""
    return {(one.identity, one.path) for one in garden.mappings() if not one.stale}


def replayed(garden: Garden) -> set[tuple[Identity, bytes]]:
    """The live mappings by the `change` table alone, read from top to bottom."""
    live: set[tuple[Identity, bytes]] = set()
    for _, change in garden.changes():
        here = (change.identity, change.path)
        if change.kind is ChangeKind.STALE:
            live.remove(here)
            continue
        if change.kind is ChangeKind.MOVED:
            live.remove((change.identity, change.old_path))
        assert here not in live
        live.add(here)
    return live


def store_row(database: Path, identity: Identity, path: bytes, mntns: int) -> None:
    """Store a path as one that a scan has found."""
    with Store.open(database, create=False) as store, store.step() as tx:
        tx.prove([Resolved(identity, path, Source.SCAN, mntns=mntns)], datetime.now(UTC))


@pytest.fixture
def garden(area: MountArea, tmp_path: Path, watcher: Watcher) -> Iterator[Garden]:
    """An ext4 of its own: small, so that inode numbers are used again at once."""
    with Garden(area.ext4().mountpoint, tmp_path / "work", watcher) as made:
        yield made
