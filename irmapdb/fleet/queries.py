"""Names the saved queries of `irmapdb sql NAME --to URL`.

Each is one statement over the views of irmapdb/fleet/views.sql, which docs/fleet.md explains.
"""

from __future__ import annotations

from irmapdb.queries import saved_query

__all__ = ["SAVED"]

_ALL = (
    saved_query(
        "nodes",
        "every node: version, databases, seconds since the last push, error of the clock",
        """
        SELECT cluster, node, version, databases, images, behind_s, clock_offset_s
        FROM nodes
        ORDER BY cluster, node
        """,
    ),
    saved_query(
        "versions",
        "the number of nodes for each version of irmapdb",
        """
        SELECT version, count(*) AS nodes, sum(databases) AS databases
        FROM nodes
        GROUP BY version
        ORDER BY version
        """,
    ),
    saved_query(
        "failing",
        "containers whose next dump would fail or lose a watch, and why",
        """
        SELECT cluster, node, namespace, coalesce(pod, container_name, container) AS container,
            image, watches, most_frequent_why
        FROM failing_containers
        ORDER BY watches DESC, node, container
        """,
    ),
    saved_query(
        "failing-images",
        "images of these containers, by reason",
        """
        SELECT image, containers, nodes, watches, why
        FROM failing_images
        ORDER BY containers DESC, watches DESC, image, why
        """,
    ),
    saved_query(
        "verdicts",
        "images that CRIU would fail on, by the last check of each container, and the remedy",
        """
        SELECT image, verdict, count(*) AS containers, sum(watches) AS watches,
            max(why) AS why, max(advice) AS advice
        FROM last_verdicts
        WHERE fails AND why IS NOT NULL
        GROUP BY image, verdict
        ORDER BY containers DESC, image, verdict
        """,
    ),
    saved_query(
        "stops",
        "the longest pauses and freezes, and the share of the search for paths",
        """
        SELECT node, coalesce(pod, container_name, container) AS container, image, started_at,
            stopped_by, stopped_ms, resolve_ms, resolve_percent, paused_ms, criu_frozen_ms, watches
        FROM stops
        ORDER BY stopped_us DESC
        LIMIT :runs
        """,
        runs=10,
    ),
    saved_query(
        "stale",
        "paths that went stale after a point in time, and where the file is now",
        """
        SELECT node, coalesce(pod, container_name, container) AS container, image, stale_at,
            stale_reason, path_raw AS path, moved_to_raw AS moved_to
        FROM stale_paths
        WHERE stale_at >= CAST(:since AS timestamptz)
        ORDER BY stale_at DESC, node, path
        """,
        since="yesterday",
    ),
    saved_query(
        "limits",
        "users that are near a limit of inotify or fanotify",
        """
        SELECT cluster, node, "limit", uid, used, maximum, used_percent
        FROM limits
        WHERE used_percent >= :percent
        ORDER BY used_percent DESC, node
        """,
        percent=80,
    ),
    saved_query(
        "hooks",
        "containers whose hook never ran, or failed the last time",
        """
        SELECT cluster, node, coalesce(pod, container_name, container) AS container, image, state,
            last_step_at, last_outcome
        FROM hooks
        WHERE state <> 'ran'
        ORDER BY node, container
        """,
    ),
    saved_query(
        "copies",
        "copies of one database on several nodes",
        """
        SELECT database_uuid, nodes, node_names
        FROM copied_databases
        ORDER BY database_uuid
        """,
    ),
)

SAVED = {one.name: one for one in _ALL}
"""By name."""
