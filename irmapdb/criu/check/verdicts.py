"""Defines the verdicts of check on a watch."""

from __future__ import annotations

import enum

from irmapdb.record import Record

__all__ = ["CriuOutcome", "Prediction", "ScanAdvice", "WatchVerdict"]


class CriuOutcome(enum.StrEnum):
    """The result of CRIU for one watch, with the given options."""

    PATH = "dumped with its path"
    NO_PATH = "dumped without a path"
    WRONG_PATH = "dumped with the path of another file"
    FAILS = "not dumped, and with it nothing else"
    UNKNOWN = "not known"


class WatchVerdict(enum.StrEnum):
    """The meaning of the result for the user."""

    PATH = "path"
    """Dumped with its path, which CRIU finds itself."""
    NO_PATH = "no-path"
    """Dumped without a path: a restore finds the file by its handle, only on this filesystem."""
    NO_RESTORE = "no-restore"
    """Dumped, mostly without a path, and no restore sets the watch again: it fails, or loses the
    watch."""
    SYMLINK = "symlink"
    """Dumped with the path of a symbolic link: a restore watches the target, or fails."""
    OPTIONS = "options"
    """Fails with the given options, but not with others."""
    CACHE = "cache"
    """Dumped with its path, because irmap-cache has it."""
    WALK = "walk"
    """Dumped with its path after a walk of the whole filesystem, while the tasks are frozen."""
    WRONG_PATH = "wrong-path"
    """Dumped with the path of another file, without a message."""
    FAILS = "fails"
    """The whole dump fails on it."""
    UNKNOWN = "unknown"
    """irmapdb could not predict the result, or found no remedy in time."""

    @property
    def right(self) -> bool:
        """Whether a restore sets the watch again if the path exists."""
        return self in {WatchVerdict.PATH, WatchVerdict.CACHE, WatchVerdict.WALK}


class ScanAdvice(Record):
    """Advice that ends with an option."""

    lead: str
    """The advice up to the option."""
    path: bytes
    """The value of the option: the watched file, or a directory above it."""


class Prediction(Record):
    """The prediction for one watch."""

    verdict: WatchVerdict
    outcome: CriuOutcome
    why: str
    """The reason, in one line for people."""
    path: bytes | None = None
    """The path that CRIU records, right or wrong; or the path of the file, if it is known."""
    advice: str = ""
    """The remedy; empty if none is necessary."""
    scan: ScanAdvice | None = None
    """The --irmap-scan-path at the end of the advice."""
    deleted: bool = False
    """Whether the cause is that the inode has no name."""
    entries: int = 0
    """The number of directory entries that CRIU walks for this watch in the freeze."""
    walk_us: int = 0
    """An estimate of the time for that."""
