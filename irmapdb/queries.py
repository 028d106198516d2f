"""Names the saved queries of `irmapdb sql`, such as `irmapdb sql stale`.

Each is one statement over the views of irmapdb/store/views.sql, which docs/sql.md explains. A query
takes its values from parameters, as in `irmapdb sql unproved -p days=2`.
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

__all__ = ["SAVED", "Saved", "find", "saved_query", "why_empty"]


class Saved(Record):
    """One saved query."""

    name: str
    about: str
    sql: str
    parameters: Mapping[str, str | int | None] = MappingProxyType({})
    """Name to default value; None if the user must give it."""
    if_empty: str = ""
    """The meaning of an answer without rows; empty if it is obvious."""


def saved_query(
    name: str, about: str, sql: str, *, if_empty: str = "", **parameters: str | int | None
) -> Saved:
    """A saved query; its SQL may be indented."""
    return Saved(name, about, dedent(sql).strip(), parameters, if_empty)


_ALL = (
    saved_query(
        "stale",
        "stale mappings: since when, why, and the new path of the file",
        """
        SELECT stale_for, stale_reason, in_criu_log, path, moved_to
        FROM stale_mappings
        """,
    ),
    saved_query(
        "unproved",
        "live mappings without a proof for this number of days",
        """
        SELECT proved, found_by, in_criu_log, path
        FROM mappings_by_last_proof
        WHERE days_unproved IS NULL OR days_unproved >= :days
        """,
        days=7,
    ),
    saved_query(
        "unresolved",
        "watches of the last run without a path, and the answer of each resolver",
        """
        SELECT pid, process, fd, in_criu_log, resolver, note
        FROM unresolved_watches
        """,
    ),
    saved_query(
        "who",
        "processes that watched the matching paths, in the last run",
        """
        SELECT pid, process, fd, kind, events, mount_namespace, path
        FROM last_watches
        WHERE CAST(path AS TEXT) GLOB :path
        """,
        path="*",
    ),
    saved_query(
        "processes",
        "watches per process, in the last run",
        """
        SELECT pid, process, descriptors, watches, resolved, unresolved
        FROM watches_by_process
        """,
    ),
    saved_query(
        "directories",
        "watches per directory, in the last run",
        """
        SELECT watches, names, processes, directory
        FROM watches_by_directory
        """,
    ),
    saved_query(
        "unwatched",
        "live mappings without a watch in the last run",
        """
        SELECT used_at, found_by, in_criu_log, path
        FROM unwatched_mappings
        """,
    ),
    saved_query(
        "next-scan",
        "inodes that the next step must scan for",
        """
        SELECT watches, in_criu_log, last_path, why
        FROM next_scan
        """,
    ),
    saved_query(
        "links",
        "inodes with several paths",
        """
        SELECT paths, in_criu_log, state, path
        FROM inodes_with_several_paths
        """,
    ),
    saved_query(
        "shared",
        "different files under one device and inode number",
        """
        SELECT identities, in_criu_log, handle, state, path
        FROM shared_inode_numbers
        """,
    ),
    saved_query(
        "history",
        "changes of one inode; name it as CRIU's log does",
        """
        SELECT at, what, reason, run_id, path, old_path
        FROM inode_history
        WHERE in_criu_log = :inode OR inode = :inode
        """,
        inode=None,
    ),
    saved_query(
        "changes",
        "changes of the mappings, in the last runs that changed any",
        """
        SELECT run_id, at, what, reason, in_criu_log, path, old_path
        FROM change_log
        WHERE run_id IN (SELECT DISTINCT run_id FROM change ORDER BY run_id DESC LIMIT :runs)
        """,
        runs=1,
    ),
    saved_query(
        "runs",
        "the last runs: the time of the freeze, and the source of the paths",
        """
        SELECT run_id, event, process, datetime(started_at) AS started_at, frozen_ms, resolve_ms,
            watches, unresolved, hit_percent, went_stale, scanned, resolved_by
        FROM run_summary
        WHERE run_id IN (SELECT id FROM run ORDER BY id DESC LIMIT :runs)
        """,
        runs=20,
    ),
    saved_query(
        "frozen",
        "the dumps with the longest freezes, and the parts of that time",
        """
        -- The freeze of irmapdb dump; or the hook's part of an engine's pause, and CRIU's freeze.
        SELECT run_id, datetime(started_at) AS started_at, stopped_by, paused_ms, freezing_ms,
            frozen_ms, tasks_frozen, reading_watches_ms, descriptors_changed,
            asking_what_moved_ms, proved_again, because, proving_ms, rest_ms,
            criu_freezing_ms, criu_frozen_ms
        FROM frozen_dumps
        ORDER BY max(coalesce(frozen_ms, 0), coalesce(paused_ms, 0) + coalesce(criu_frozen_ms, 0))
            DESC
        LIMIT :runs
        """,
        if_empty="no freeze is known, neither of irmapdb dump nor of CRIU under the hook",
        runs=10,
    ),
    saved_query(
        "cache",
        "the entries of irmap-cache, in its order",
        """
        SELECT position, in_criu_log, state, path
        FROM cache_entries
        """,
    ),
)

SAVED = {one.name: one for one in _ALL}


def find(name: str, saved: Mapping[str, Saved] = SAVED) -> Saved:
    """Return the saved query of this name. UsageError lists the known ones."""
    if name in saved:
        return saved[name]
    close = difflib.get_close_matches(name, saved, n=1)
    nearest = f"did you mean {close[0]}? " if close else ""
    message = f"{name}: no saved query"
    raise UsageError(message, advice=f"{nearest}there are {', '.join(sorted(saved))}")


def why_empty(sql: str) -> str:
    """Explain an answer without rows. Empty for other statements, or if it is obvious."""
    return next((one.if_empty for one in _ALL if one.sql == sql), "")
