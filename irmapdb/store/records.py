"""Defines the rows that irmapdb.model has no type for, and the stamp of an image file."""

from __future__ import annotations

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from datetime import datetime

    from irmapdb.model import Change, Event, RunStats, Tried, Watch

__all__ = ["ChangeRow", "FileStamp", "RunRow", "WatchRow"]


class FileStamp(Record):
    """The stat(2) of a file. While it is the same, the file is unchanged."""

    st_dev: int
    """As user space sees it: not a kdev."""
    ino: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class RunRow(Record):
    """One stored step."""

    id: int
    event: Event
    pid: int | None
    """The root task; None if the step had none (import)."""
    comm: bytes | None
    started_at: datetime
    finished_at: datetime
    stats: RunStats
    outcome: str


class WatchRow(Record):
    """One watch in one run. Either `path` or `why` is None."""

    watch: Watch
    comm: bytes | None
    path: bytes | None
    why: str | None
    """Why there is no path."""
    mntns: int = 0
    """As in Mapping: the mount namespace of the path."""
    tried: tuple[Tried, ...] = ()
    """The answer of each resolver, if there is no path."""


class ChangeRow(Record):
    """A change of a mapping, with its time and run."""

    id: int
    run_id: int | None
    """None once the run has been pruned."""
    at: datetime
    mapping_id: int | None
    """None if the mapping has been pruned."""
    change: Change
