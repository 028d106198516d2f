"""Converts between rows of the database and the types of irmapdb.model.

Writing: `*_values` gives a tuple for each row, and `*_FIELDS` has the names of its fields. Reading:
`*_NAMES` has the columns of a row, and `read_*` takes such a row, with paths and `comm` as BLOBs.
An unknown word (`source`, `kind`, …) raises ValueError.
"""

from __future__ import annotations

from functools import lru_cache

from irmapdb.model import (
    Change,
    ChangeKind,
    Event,
    Identity,
    Mapping,
    Resolved,
    RunStats,
    StaleReason,
    Tried,
    Watch,
    WatchKind,
)
from irmapdb.store.mappings import (
    INT64_MAX,
    INT_MAX,
    MNTNS_MAX,
    read_identity,
    read_mapping,
)
from irmapdb.store.records import ChangeRow, FileStamp, RunRow, WatchRow
from irmapdb.store.values import (
    MAX_PATH_BYTES,
    check_number,
    check_path,
    check_word,
    from_time,
    to_ino,
    to_text,
    to_time,
    to_words,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from typing import Any, TypeAlias

__all__ = [
    "CHANGE_FIELDS",
    "CHANGE_NAMES",
    "RESOLVED_FIELDS",
    "RUN_NAMES",
    "STALE_FIELDS",
    "STATS",
    "TRIED_FIELDS",
    "WATCH_FIELDS",
    "WATCH_NAMES",
    "change_values",
    "maybe_text",
    "read_change",
    "read_mapping",
    "read_run",
    "read_watch",
    "resolved_values",
    "stale_values",
    "stamp_values",
    "tried_values",
    "watch_values",
]

STATS = tuple(name for name in RunStats.__match_args__ if name != "sources")
"""The fields of RunStats that are columns of `run`."""

# A few words that every row repeats: without this cache they would take most of the time.
_stale_reason = lru_cache(StaleReason)
_watch_kind = lru_cache(WatchKind)


_IDENTITY = ("dev", "ino", "handle_type", "handle")

RUN_NAMES = ("id", "event", "pid", "comm", "started_at", "finished_at", "outcome", *STATS)
_WATCH = (
    *("pid", "comm", "fd", "kind", "wd", *_IDENTITY),
    *("mask", "ignored_mask", "mflags", "path", "why", "mntns"),
)
WATCH_NAMES = ("id", *_WATCH)
WATCH_FIELDS = ("id", "run_id", *_WATCH)
CHANGE_NAMES = (
    *("id", "run_id", "at", "mapping_id", "kind", *_IDENTITY),
    *("path", "old_path", "reason", "mntns"),
)


def maybe_text(raw: bytes | None) -> str | bytes | None:
    """The stored form of an optional value."""
    return None if raw is None else to_text(raw)


_Stored: TypeAlias = "tuple[int, int, int | None, bytes | None]"


def _identity_values(identity: Identity) -> _Stored:
    # In the order of _IDENTITY.
    kdev, ino, handle = identity
    if handle is None:
        return kdev, to_ino(ino), None, None
    return kdev, to_ino(ino), handle.type, handle.data


RESOLVED_FIELDS = (*_IDENTITY, "path", "mntns", "source", "now")


def resolved_values(resolved: Iterable[Resolved], now: datetime) -> Iterator[tuple[Any, ...]]:
    """A row of `mapping` for each proved path, the best one last."""
    at = to_time(now)
    for item in resolved:
        identity = _identity_values(item.identity)
        rest = item.mntns, item.source.value, at
        for path in (*item.other_paths, item.path):
            if len(path) <= MAX_PATH_BYTES:
                yield *identity, to_text(path), *rest


# The unique fields of a mapping, under names that no column has.
_KEY = ("key_dev", "key_ino", "key_path", "key_mntns")
STALE_FIELDS = (*_KEY, "now", "reason")


def stale_values(
    items: Iterable[tuple[Mapping, StaleReason]], now: datetime
) -> Iterator[tuple[Any, ...]]:
    """The key of each mapping, and the time and reason of its becoming stale."""
    at = to_time(now)
    for mapping, reason in items:
        kdev, ino, _ = mapping.identity
        yield kdev, to_ino(ino), to_text(mapping.path), mapping.mntns, at, reason.value


def stamp_values(path: bytes, stamp: FileStamp) -> dict[str, Any]:
    """A row of `image_seen`."""
    stored = stamp._replace(st_dev=to_ino(stamp.st_dev), ino=to_ino(stamp.ino))
    return {"path": to_text(path), **stored._asdict()}


def watch_values(
    run_id: int, numbered: Iterable[tuple[int, WatchRow]]
) -> Iterator[tuple[Any, ...]]:
    """Rows of `watch`, each with its id."""
    for row_id, (watch, comm, path, why, mntns, _) in numbered:
        pid, fd, kind, wd, identity, *masks = watch
        yield (
            *(row_id, run_id, pid, maybe_text(comm), fd, kind.value, wd),
            *_identity_values(identity),
            *(*masks, *_answer_values(path, why), mntns),
        )


def _answer_values(path: bytes | None, why: str | None) -> tuple[str | bytes | None, str | None]:
    if path is not None and len(path) > MAX_PATH_BYTES:
        return None, f"a path of {len(path)} bytes is not stored"
    return maybe_text(path), why and to_words(why)


TRIED_FIELDS = ("watch_id", "position", "resolver", "note")


def tried_values(numbered: Iterable[tuple[int, WatchRow]]) -> Iterator[tuple[Any, ...]]:
    """Rows of `tried`, for watches with their ids."""
    for row_id, row in numbered:
        for position, (resolver, note) in enumerate(row.tried, 1):
            yield row_id, position, resolver, to_words(note)


def read_watch(row: Sequence[Any], tried: tuple[Tried, ...]) -> WatchRow:
    """A row of WATCH_NAMES, with the rows of `tried` that belong to it."""
    _, pid, comm, fd, kind, wd, *identity, mask, ignored_mask, mflags, path, why, mntns = row
    check_number("the pid", pid, 0, INT_MAX)
    check_number("the descriptor", fd, 0, INT_MAX)
    check_number("wd", wd, -1, INT_MAX)
    for name, value in zip(("mask", "ignored_mask", "mflags"), row[-6:-3], strict=True):
        check_number(name, value, 0, INT64_MAX)
    check_number("the mount namespace", mntns, 0, MNTNS_MAX)
    if path is None:
        check_word("why there is no path", why)
    else:
        check_path(path)
    watch = Watch(
        pid=pid,
        fd=fd,
        kind=_watch_kind(kind),
        wd=wd,
        identity=read_identity(*identity),
        mask=mask,
        ignored_mask=ignored_mask,
        mflags=mflags,
    )
    return WatchRow(watch, comm, path, why, mntns, tried)


CHANGE_FIELDS = ("run_id", "at", "kind", "old_path", "reason", *_IDENTITY, "path", "mntns", *_KEY)


def change_values(
    run_id: int, changes: Iterable[Change], now: datetime
) -> Iterator[tuple[Any, ...]]:
    """Rows of `change`, with the key of the mapping in place of its id."""
    at = to_time(now)
    for item in changes:
        if max(len(item.path), len(item.old_path or b"")) > MAX_PATH_BYTES:
            continue
        identity = _identity_values(item.identity)
        path, mntns = to_text(item.path), item.mntns
        reason = None if item.reason is None else item.reason.value
        yield (
            *(run_id, at, item.kind.value, maybe_text(item.old_path), reason),
            *(*identity, path, mntns),
            *(*identity[:2], path, mntns),
        )


def read_change(row: Sequence[Any]) -> ChangeRow:
    """A row of CHANGE_NAMES."""
    row_id, run_id, at, mapping_id, kind, *identity, path, old_path, reason, mntns = row
    check_path(path)
    check_path(old_path or b"")
    check_number("the mount namespace", mntns, 0, MNTNS_MAX)
    change = Change(
        kind=ChangeKind(kind),
        identity=read_identity(*identity),
        path=path,
        old_path=old_path,
        reason=None if reason is None else _stale_reason(reason),
        mntns=mntns,
    )
    return ChangeRow(row_id, run_id, from_time(at), mapping_id, change)


def read_run(row: Sequence[Any], sources: dict[str, int]) -> RunRow:
    """A row of RUN_NAMES, with the rows of `run_source` that belong to it."""
    row_id, event, pid, comm, started_at, finished_at, outcome, *figures = row
    check_word("the outcome", outcome)
    check_number("the pid", 0 if pid is None else pid, 0, INT_MAX)
    for name, figure in zip(STATS, figures, strict=True):
        if name == "reproved_why":
            check_word(name, figure)
        else:
            check_number(name, figure, 0, INT64_MAX)
    stats = RunStats(**dict(zip(STATS, figures, strict=True)), sources=sources)
    times = from_time(started_at), from_time(finished_at)
    return RunRow(row_id, Event(event), pid, comm, *times, stats, outcome)
