"""The questions that are asked again and again, by name: `irmapdb sql stale`.

Each is one statement over the views of irmapdb/store/views.sql, which docs/sql.md explains. What
it needs to be told is a parameter, as in `irmapdb sql unproved -p days=2`.
"""

from __future__ import annotations

import difflib
from textwrap import dedent
from types import MappingProxyType

from irmapdb.errors import UsageError
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SAVED", "Saved", "find", "why_empty"]


class Saved(Record):
    """One question with a name."""

    name: str
    about: str
    sql: str
    parameters: Mapping[str, str | int | None] = MappingProxyType({})
    """What each is where it is not given; None: it has to be."""
    if_empty: str = ""
    """What an answer without rows means, where that is not plain."""


def _saved(
    name: str, about: str, sql: str, *, if_empty: str = "", **parameters: str | int | None
) -> Saved:
    return Saved(name, about, dedent(sql).strip(), parameters, if_empty)


_ALL = (
    _saved(
        "stale",
        "what no longer holds, since when and why, and where the file is now",
        """
        SELECT stale_for, stale_reason, in_criu_log, path, moved_to
        FROM stale_mappings
        """,
    ),
    _saved(
        "unproved",
        "live mappings that were not proved for so many days",
        """
        SELECT proved, found_by, in_criu_log, path
        FROM mappings_by_last_proof
        WHERE days_unproved IS NULL OR days_unproved >= :days
        """,
        days=7,
    ),
    _saved(
        "unresolved",
        "watches of the last run without a path, and what each resolver said",
        """
        SELECT pid, process, fd, in_criu_log, resolver, note
        FROM unresolved_watches
        """,
    ),
    _saved(
        "who",
        "who watched the paths that match, in the last run",
        """
        SELECT pid, process, fd, kind, events, mount_namespace, path
        FROM last_watches
        WHERE CAST(path AS TEXT) GLOB :path
        """,
        path="*",
    ),
    _saved(
        "processes",
        "watches per process, in the last run",
        """
        SELECT pid, process, descriptors, watches, resolved, unresolved
        FROM watches_by_process
        """,
    ),
    _saved(
        "directories",
        "watches per directory, in the last run",
        """
        SELECT watches, names, processes, directory
        FROM watches_by_directory
        """,
    ),
    _saved(
        "unwatched",
        "live mappings that nobody watched in the last run",
        """
        SELECT used_at, found_by, in_criu_log, path
        FROM unwatched_mappings
        """,
    ),
    _saved(
        "next-scan",
        "what the next step will have to scan for",
        """
        SELECT watches, in_criu_log, last_path, why
        FROM next_scan
        """,
    ),
    _saved(
        "links",
        "inodes with several paths",
        """
        SELECT paths, in_criu_log, state, path
        FROM inodes_with_several_paths
        """,
    ),
    _saved(
        "shared",
        "different files under one device and inode number",
        """
        SELECT identities, in_criu_log, handle, state, path
        FROM shared_inode_numbers
        """,
    ),
    _saved(
        "history",
        "what happened to one inode, as CRIU's log names it",
        """
        SELECT at, what, reason, run_id, path, old_path
        FROM inode_history
        WHERE in_criu_log = :inode OR inode = :inode
        """,
        inode=None,
    ),
    _saved(
        "changes",
        "what happened to the mappings, in the last run that changed any",
        """
        SELECT run_id, at, what, reason, in_criu_log, path, old_path
        FROM change_log
        WHERE run_id IN (SELECT DISTINCT run_id FROM change ORDER BY run_id DESC LIMIT :runs)
        """,
        runs=1,
    ),
    _saved(
        "runs",
        "the last runs: how long the tasks stood still, and what was found how",
        """
        SELECT run_id, event, process, datetime(started_at) AS started_at, frozen_ms, resolve_ms,
            watches, unresolved, hit_percent, went_stale, scanned, resolved_by
        FROM run_summary
        WHERE run_id IN (SELECT id FROM run ORDER BY id DESC LIMIT :runs)
        """,
        runs=20,
    ),
    _saved(
        "frozen",
        "the dumps for which the tasks stood still for longest, and what that time went into",
        """
        -- The freeze of irmapdb dump, and the hook's part of an engine's pause. CRIU's own freeze
        -- comes after that: the file stats-dump in its work directory has frozen_time.
        SELECT run_id, datetime(started_at) AS started_at, stopped_by, paused_ms, freezing_ms,
            frozen_ms, tasks_frozen, reading_watches_ms, descriptors_changed,
            asking_what_moved_ms, proved_again, because, proving_ms, rest_ms
        FROM frozen_dumps
        ORDER BY max(coalesce(frozen_ms, 0), coalesce(paused_ms, 0)) DESC
        LIMIT :runs
        """,
        if_empty="no irmapdb dump is known; under the hook CRIU freezes by itself: the file "
        "stats-dump in its work directory has frozen_time (crit show stats-dump)",
        runs=10,
    ),
    _saved(
        "cache",
        "what irmap-cache holds, in its order",
        """
        SELECT position, in_criu_log, state, path
        FROM cache_entries
        """,
    ),
)

SAVED = {one.name: one for one in _ALL}


def find(name: str) -> Saved:
    """The saved question of this name. UsageError lists the known ones."""
    if name in SAVED:
        return SAVED[name]
    close = difflib.get_close_matches(name, SAVED, n=1)
    nearest = f"did you mean {close[0]}? " if close else ""
    message = f"{name}: no saved query"
    raise UsageError(message, advice=f"{nearest}there are {', '.join(sorted(SAVED))}")


def why_empty(sql: str) -> str:
    """What it means that a statement gave no rows; empty where it is no saved one, or plain."""
    return next((one.if_empty for one in _ALL if one.sql == sql), "")
