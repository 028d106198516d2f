"""The SQL of each figure of the report: for an `irmap.db`, and for the server of the fleet.

Both give the same columns, so that the charts and tables are the same.
"""

from __future__ import annotations

from textwrap import dedent

from irmapdb.record import Record

__all__ = ["OF_DATABASE", "OF_FLEET", "STOP_PARTS", "Questions"]

STOP_PARTS = (
    ("paused_ms", "the hook, in an engine's pause"),
    ("freezing_ms", "stopping the tasks"),
    ("reading_watches_ms", "reading the watches"),
    ("asking_what_moved_ms", "asking which files moved"),
    ("proving_ms", "proving paths"),
    ("rest_ms", "the rest of the freeze"),
    ("criu_freezing_ms", "CRIU stops the tasks"),
    ("criu_frozen_ms", "CRIU's freeze"),
)
"""The columns of `stops` that add up to the time in which the tasks stood still, in ms."""


class Questions(Record):
    """One statement for each figure. Each has its rows in the order of their weight."""

    last_runs: str
    """A row for each database: started_at, event, process, watches, resolved, unresolved."""
    unresolved: str
    """A row for each watch without a path: process, kind, in_criu_log, why."""
    stops: str
    """A row for each dump, the last one first: started_at, process, watches, and STOP_PARTS."""
    directories: str
    """watches, names and directory, the largest first."""
    stale_hours: str
    """hour (`2026-11-29 13`) and stale, the newest first."""
    stale: str
    """stale_at, stale_reason, path and moved_to, the last one first."""
    limits: str = ""
    """where, uid, account, used and maximum; "" if the database does not have them."""
    verdicts: str = ""
    """A row for each verdict of a container that loses watches: container, image, verdict, watches,
    why, advice; "" if the database does not have them."""


def _sql(text: str) -> str:
    return dedent(text).strip()


OF_DATABASE = Questions(
    last_runs=_sql("""
        SELECT started_at, event, comm AS process, watches, resolved, unresolved
        FROM run
        WHERE id = (SELECT run_id FROM last_run)
    """),
    unresolved=_sql("""
        SELECT process, kind, in_criu_log,
            group_concat(coalesce(resolver || ': ', '') || note, '; ') AS why
        FROM unresolved_watches
        GROUP BY watch_id
        ORDER BY watch_id
    """),
    stops=_sql("""
        SELECT started_at, process, watches, stopped_by, paused_ms, freezing_ms,
            CASE stopped_by WHEN 'freeze' THEN reading_watches_ms END AS reading_watches_ms,
            CASE stopped_by WHEN 'freeze' THEN asking_what_moved_ms END AS asking_what_moved_ms,
            CASE stopped_by WHEN 'freeze' THEN proving_ms END AS proving_ms,
            CASE stopped_by WHEN 'freeze' THEN coalesce(rest_ms, frozen_ms) END AS rest_ms,
            criu_freezing_ms, criu_frozen_ms
        FROM frozen_dumps
        ORDER BY run_id DESC
    """),
    directories=_sql("""
        SELECT watches, names, directory
        FROM watches_by_directory
        ORDER BY watches DESC, directory
    """),
    stale_hours=_sql("""
        SELECT substr(stale_at, 1, 13) AS hour, count(*) AS stale
        FROM stale_mappings
        GROUP BY hour
        ORDER BY hour DESC
    """),
    stale=_sql("""
        SELECT stale_at, stale_reason, path, moved_to
        FROM stale_mappings
        ORDER BY stale_at DESC
    """),
)

OF_FLEET = Questions(
    last_runs=_sql("""
        SELECT node || ' ' || coalesce(pod, container_name, container) AS container,
            started_at, event, watches, resolved, unresolved
        FROM last_steps
        ORDER BY unresolved DESC, watches DESC, container
    """),
    unresolved=_sql("""
        SELECT node || ' ' || coalesce(pod, container_name, container) AS container, image,
            watches, most_frequent_why AS why
        FROM failing_containers
        ORDER BY watches DESC, container
    """),
    stops=_sql("""
        SELECT node || ' ' || coalesce(pod, container_name, container) AS container, started_at,
            watches, stopped_by,
            CASE WHEN stopped_by = 'pause' THEN paused_ms END AS paused_ms,
            CASE WHEN stopped_by = 'freeze' THEN reading_watches_ms END AS reading_watches_ms,
            CASE WHEN stopped_by = 'freeze' THEN asking_what_moved_ms END AS asking_what_moved_ms,
            CASE WHEN stopped_by = 'freeze' THEN
                greatest(stopped_ms - reading_watches_ms - asking_what_moved_ms
                    - criu_freezing_ms - criu_frozen_ms, 0)
            END AS rest_ms,
            nullif(criu_freezing_ms, 0) AS criu_freezing_ms,
            nullif(criu_frozen_ms, 0) AS criu_frozen_ms
        FROM stops
        ORDER BY stopped_us DESC
    """),
    directories=_sql("""
        SELECT count(*) AS watches, count(DISTINCT path) AS names, directory
        FROM (
            SELECT listed_watch.path,
                coalesce(nullif(
                    substring(irmapdb_text(listed_watch.path) FROM '^(.*)/[^/]*$'), ''), '/'
                ) AS directory
            FROM last_steps
            JOIN listed_watch ON listed_watch.database_id = last_steps.database_id
                AND listed_watch.list = last_steps.watch_list
                AND listed_watch.period = last_steps.period
            WHERE listed_watch.path IS NOT NULL
        ) AS watched
        GROUP BY directory
        ORDER BY watches DESC, directory
    """),
    stale_hours=_sql("""
        SELECT to_char(stale_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24') AS hour, count(*) AS stale
        FROM stale_paths
        GROUP BY hour
        ORDER BY hour DESC
    """),
    stale=_sql("""
        SELECT node || ' ' || coalesce(pod, container_name, container) AS container,
            stale_at, stale_reason, path_raw AS path, moved_to_raw AS moved_to
        FROM stale_paths
        ORDER BY stale_at DESC
    """),
    limits=_sql("""
        SELECT node AS "where", uid, "limit" AS account, used, maximum
        FROM limits
        ORDER BY used_percent DESC
    """),
    verdicts=_sql("""
        SELECT node || ' ' || coalesce(pod, container_name, container) AS container, image,
            verdict, watches, why, advice
        FROM last_verdicts
        WHERE verdict NOT IN ('path', 'cache', 'walk')
        ORDER BY fails DESC, watches DESC, container
    """),
)
