-- The views of irmap.db: the same rows, with values that people can read.
--
-- Plain SQL, so that the sqlite3 shell, sqlite-utils and datasette run every one of them. In all:
--   device        254:0, as mountinfo and ls print it
--   inode         unsigned: INTEGER, but TEXT from 2^63 on, more than SQLite's integers hold
--   in_criu_log   fe00000:2e3, as CRIU's log prints the two of them
--   dev, ino      as the tables have them (ino is signed there): for joins, and for the index
--   rowid         the row: without it datasette cannot show a BLOB (simonw/datasette#2601)
-- Two rows are about the same inode if device and inode are equal, and also the handles if both
-- rows have one. A path stays TEXT or BLOB: no view converts bytes that are not UTF-8 to text.
--
-- A change here is a new revision: irmapdb.store.views describes its way into a database.

CREATE VIEW all_mappings AS
-- every path, known now or earlier, and its state
SELECT
    path,
    CASE
        WHEN stale_at IS NOT NULL THEN 'stale'
        WHEN revalidate = 1 THEN 'to be proved'
        ELSE 'proved'
    END AS state,
    (dev >> 20) || ':' || (dev & 1048575) AS device,
    CASE WHEN ino >= 0 THEN ino ELSE printf('%llu', ino) END AS inode,
    printf('%x:%x', dev, ino) AS in_criu_log,
    printf('%x:', handle_type) || lower(nullif(hex(handle), '')) AS handle,
    source AS found_by,
    first_seen_at,
    validated_at AS proved_at,
    last_used_at AS used_at,
    stale_at,
    stale_reason,
    nullif(mntns, 0) AS mount_namespace,
    id AS mapping_id,
    dev,
    ino,
    id AS rowid
FROM mapping;

CREATE VIEW live_mappings AS
-- the paths that are not stale
SELECT
    path, state, device, inode, in_criu_log, handle, found_by, first_seen_at, proved_at, used_at,
    mount_namespace, mapping_id, dev, ino, rowid
FROM all_mappings
WHERE stale_at IS NULL;

CREATE VIEW stale_mappings AS
-- the stale paths, the last one first: since when, the reason, and the present path of the file
SELECT
    path,
    stale_reason,
    CASE
        WHEN age_s < 60 THEN age_s || ' s'
        WHEN age_s < 3600 THEN (age_s / 60) || ' min'
        WHEN age_s < 172800 THEN (age_s / 3600) || ' h'
        ELSE (age_s / 86400) || ' days'
    END AS stale_for,
    (
        SELECT live.path
        FROM mapping AS live
        -- Not by the number alone: another file may have it now.
        WHERE live.dev = stale.dev AND live.ino = stale.ino AND live.mntns = stale.mntns
            AND live.stale_at IS NULL
            AND live.handle_type = stale.handle_type AND live.handle = stale.handle
        ORDER BY live.validated_at DESC, live.id DESC
        LIMIT 1
    ) AS moved_to,
    (dev >> 20) || ':' || (dev & 1048575) AS device,
    CASE WHEN ino >= 0 THEN ino ELSE printf('%llu', ino) END AS inode,
    printf('%x:%x', dev, ino) AS in_criu_log,
    printf('%x:', handle_type) || lower(nullif(hex(handle), '')) AS handle,
    source AS found_by,
    first_seen_at,
    validated_at AS proved_at,
    stale_at,
    age_s AS stale_for_s,
    nullif(mntns, 0) AS mount_namespace,
    id AS mapping_id,
    dev,
    ino,
    id AS rowid
FROM (
    SELECT *, max(strftime('%s', 'now') - strftime('%s', stale_at), 0) AS age_s
    FROM mapping
    WHERE stale_at IS NOT NULL
) AS stale
ORDER BY stale_at DESC, id DESC;

CREATE VIEW mappings_by_last_proof AS
-- the live paths: first those that were never proved, then the longest unproved ones
SELECT
    path,
    CASE
        WHEN age_s IS NULL THEN 'never'
        WHEN age_s < 60 THEN age_s || ' s ago'
        WHEN age_s < 3600 THEN (age_s / 60) || ' min ago'
        WHEN age_s < 172800 THEN (age_s / 3600) || ' h ago'
        ELSE (age_s / 86400) || ' days ago'
    END AS proved,
    round(age_s / 86400.0, 2) AS days_unproved,
    proved_at,
    first_seen_at,
    found_by,
    device,
    inode,
    in_criu_log,
    mapping_id,
    dev,
    ino,
    mapping_id AS rowid
FROM (
    SELECT *, max(strftime('%s', 'now') - strftime('%s', proved_at), 0) AS age_s
    FROM live_mappings
)
ORDER BY proved_at, mapping_id;

CREATE VIEW inodes_with_several_paths AS
-- the live paths of inodes with more than one path: hard links, bind mounts
SELECT
    paths, path, device, inode, in_criu_log, handle, state, proved_at, mount_namespace,
    mapping_id, dev, ino, mapping_id AS rowid
FROM (
    SELECT
        one.*,
        (
            SELECT count(*)
            FROM mapping AS other
            WHERE other.dev = one.dev AND other.ino = one.ino AND other.stale_at IS NULL
                AND other.mntns = coalesce(one.mount_namespace, 0)
                AND (other.handle IS NULL OR one.handle IS NULL
                    OR printf('%x:', other.handle_type) || lower(hex(other.handle)) = one.handle)
        ) AS paths
    FROM live_mappings AS one
)
WHERE paths > 1
ORDER BY dev, ino, handle, mapping_id;

CREATE VIEW shared_inode_numbers AS
-- different files under one device and inode number: btrfs subvolumes, overlay layers, reuse
SELECT
    identities, device, inode, in_criu_log, handle, path, state, stale_reason, proved_at,
    mount_namespace, mapping_id, dev, ino, mapping_id AS rowid
FROM all_mappings
JOIN (
    SELECT dev, ino, count(DISTINCT handle_type || ':' || hex(handle)) AS identities
    FROM mapping
    WHERE handle IS NOT NULL
    GROUP BY dev, ino
    HAVING min(handle) <> max(handle) OR min(handle_type) <> max(handle_type)
) USING (dev, ino)
ORDER BY dev, ino, handle, mapping_id;

CREATE VIEW last_run AS
-- the last finished pre-dump or dump: the views below are about this run
SELECT max(id) AS run_id
FROM run
WHERE event IN ('pre-dump', 'dump') AND outcome NOT LIKE 'failed:%';

CREATE VIEW all_watches AS
-- the watches of each run: the process, the path, and the events
SELECT
    run_id,
    pid,
    comm AS process,
    fd,
    kind,
    nullif(wd, -1) AS wd,
    path,
    (dev >> 20) || ':' || (dev & 1048575) AS device,
    CASE WHEN ino >= 0 THEN ino ELSE printf('%llu', ino) END AS inode,
    printf('%x:%x', dev, ino) AS in_criu_log,
    printf('%x:', handle_type) || lower(nullif(hex(handle), '')) AS handle,
    CASE
        WHEN kind = 'inotify' AND mask & 4095 = 4095 THEN 'all'
        ELSE rtrim(
            CASE WHEN mask & 1 THEN 'access, ' ELSE '' END
            || CASE WHEN mask & 2 THEN 'modify, ' ELSE '' END
            || CASE WHEN mask & 4 THEN 'attrib, ' ELSE '' END
            || CASE WHEN mask & 8 THEN 'close_write, ' ELSE '' END
            || CASE WHEN mask & 16 THEN 'close_nowrite, ' ELSE '' END
            || CASE WHEN mask & 32 THEN 'open, ' ELSE '' END
            || CASE WHEN mask & 64 THEN 'moved_from, ' ELSE '' END
            || CASE WHEN mask & 128 THEN 'moved_to, ' ELSE '' END
            || CASE WHEN mask & 256 THEN 'create, ' ELSE '' END
            || CASE WHEN mask & 512 THEN 'delete, ' ELSE '' END
            || CASE WHEN mask & 1024 THEN 'delete_self, ' ELSE '' END
            || CASE WHEN mask & 2048 THEN 'move_self, ' ELSE '' END
            || CASE WHEN mask & 4096 THEN 'open_exec, ' ELSE '' END
            || CASE WHEN mask & 65536 THEN 'open_perm, ' ELSE '' END
            || CASE WHEN mask & 131072 THEN 'access_perm, ' ELSE '' END
            || CASE WHEN mask & 262144 THEN 'open_exec_perm, ' ELSE '' END
            || CASE WHEN mask & 268435456 THEN 'rename, ' ELSE '' END,
            ', '
        )
    END AS events,
    why,
    nullif(mntns, 0) AS mount_namespace,
    id AS watch_id,
    dev,
    ino,
    id AS rowid
FROM watch;

CREATE VIEW last_watches AS
-- the watches of the last run
SELECT
    pid, process, fd, kind, wd, path, device, inode, in_criu_log, handle, events, why,
    mount_namespace, run_id, watch_id, dev, ino, watch_id AS rowid
FROM all_watches
WHERE run_id = (SELECT run_id FROM last_run);

CREATE VIEW unresolved_watches AS
-- the watches of the last run without a path: a row for each resolver that was asked
SELECT
    last.pid,
    last.process,
    last.fd,
    last.kind,
    last.wd,
    last.device,
    last.inode,
    last.in_criu_log,
    tried.resolver,
    coalesce(tried.note, last.why) AS note,
    tried.position AS asked,
    last.run_id,
    last.watch_id,
    last.dev,
    last.ino,
    last.watch_id AS rowid
FROM last_watches AS last
LEFT JOIN tried ON tried.watch_id = last.watch_id
WHERE last.path IS NULL
ORDER BY last.watch_id, tried.position;

CREATE VIEW watches_by_process AS
-- the watches of the last run, counted by process, the busiest first
SELECT
    pid,
    max(process) AS process,
    count(DISTINCT fd) AS descriptors,
    count(*) AS watches,
    sum(kind = 'inotify') AS inotify,
    sum(kind = 'fanotify') AS fanotify,
    count(path) AS resolved,
    count(*) - count(path) AS unresolved,
    pid AS rowid
FROM last_watches
GROUP BY pid
ORDER BY watches DESC, pid;

CREATE VIEW watches_by_directory AS
-- the watches of the last run, counted by the directory that the watched name lies in
SELECT
    min(directory) AS directory,
    count(*) AS watches,
    count(DISTINCT path) AS names,
    count(DISTINCT pid) AS processes,
    min(watch_id) AS rowid
FROM (
    SELECT
        path,
        pid,
        watch_id,
        CASE
            WHEN parent = '/' OR parent = x'2f' THEN '/'
            WHEN typeof(path) = 'text' THEN rtrim(parent, '/')
            ELSE CAST(rtrim(parent, '/') AS BLOB)
        END AS directory
    FROM (
        -- rtrim removes all characters but "/" from the end. char(1) takes the place of each "/":
        -- else the bytes before and after it could together be one character.
        SELECT path, pid, watch_id, CASE typeof(path)
            WHEN 'text' THEN rtrim(path, replace(path, '/', ''))
            ELSE CAST(rtrim(path, replace(path, '/', char(1))) AS BLOB)
        END AS parent
        FROM last_watches
        WHERE path IS NOT NULL
    )
)
GROUP BY CAST(directory AS BLOB)
ORDER BY watches DESC, directory;

CREATE VIEW unwatched_mappings AS
-- the live paths without a watch in the last run, the longest unused first
SELECT
    path, used_at, proved_at, first_seen_at, found_by, device, inode, in_criu_log,
    mount_namespace, mapping_id, dev, ino, mapping_id AS rowid
FROM live_mappings
WHERE mapping_id IN (
    SELECT id
    FROM mapping
    WHERE stale_at IS NULL
        AND (dev, ino) NOT IN (
            SELECT dev, ino
            FROM watch
            WHERE run_id = (SELECT run_id FROM last_run) AND handle IS NULL
        )
        AND CASE
            WHEN handle IS NULL THEN (dev, ino) NOT IN (
                SELECT dev, ino FROM watch WHERE run_id = (SELECT run_id FROM last_run)
            )
            ELSE (dev, ino, handle_type, handle) NOT IN (
                SELECT dev, ino, handle_type, handle
                FROM watch
                WHERE run_id = (SELECT run_id FROM last_run) AND handle IS NOT NULL
            )
        END
)
ORDER BY used_at, mapping_id;

CREATE VIEW next_scan AS
-- the watched inodes without a live path that are not known to be deleted: the next step must
-- search for them
SELECT
    coalesce(
        max(seen.path),
        (
            SELECT stale.path
            FROM mapping AS stale
            WHERE stale.dev = seen.dev AND stale.ino = seen.ino
                AND (stale.handle IS NULL OR seen.handle IS NULL
                    OR (stale.handle_type = seen.handle_type AND stale.handle = seen.handle))
            ORDER BY stale.stale_at DESC, stale.id DESC
            LIMIT 1
        )
    ) AS last_path,
    count(*) AS watches,
    (seen.dev >> 20) || ':' || (seen.dev & 1048575) AS device,
    CASE WHEN seen.ino >= 0 THEN seen.ino ELSE printf('%llu', seen.ino) END AS inode,
    printf('%x:%x', seen.dev, seen.ino) AS in_criu_log,
    coalesce(
        max(seen.why),
        (
            SELECT 'stale: ' || stale.stale_reason
            FROM mapping AS stale
            WHERE stale.dev = seen.dev AND stale.ino = seen.ino AND stale.stale_at IS NOT NULL
                AND (stale.handle IS NULL OR seen.handle IS NULL
                    OR (stale.handle_type = seen.handle_type AND stale.handle = seen.handle))
            ORDER BY stale.stale_at DESC, stale.id DESC
            LIMIT 1
        )
    ) AS why,
    seen.dev,
    seen.ino,
    min(seen.id) AS rowid
FROM watch AS seen
JOIN run ON run.id = seen.run_id
WHERE seen.run_id = (SELECT run_id FROM last_run)
    AND coalesce(seen.why, '') NOT LIKE '%: deleted'
    AND NOT EXISTS (
        SELECT 1
        FROM mapping AS live
        WHERE live.dev = seen.dev AND live.ino = seen.ino AND live.stale_at IS NULL
            AND (live.handle IS NULL OR seen.handle IS NULL
                OR (live.handle_type = seen.handle_type AND live.handle = seen.handle))
    )
    -- An audit has found since then that the inode is deleted (an inode with an unknown name is
    -- `moved`), or that its device is not mounted: then there is nothing to scan.
    AND NOT EXISTS (
        SELECT 1
        FROM mapping AS lost
        WHERE lost.dev = seen.dev AND lost.ino = seen.ino AND CASE
            WHEN lost.stale_reason = 'unmounted' THEN
                lost.stale_at >= run.finished_at
                AND (lost.handle IS NULL OR seen.handle IS NULL
                    OR (lost.handle_type = seen.handle_type AND lost.handle = seen.handle))
            WHEN lost.stale_reason IN ('deleted', 'replaced', 'reused') THEN
                lost.stale_at > run.finished_at
                AND lost.handle_type = seen.handle_type AND lost.handle = seen.handle
        END
    )
GROUP BY seen.dev, seen.ino, seen.handle_type, seen.handle
ORDER BY min(seen.id);

CREATE VIEW change_log AS
-- the changes of the mappings, with their runs
SELECT
    change.at,
    change.kind AS what,
    change.path,
    change.old_path,
    change.reason,
    change.run_id,
    run.event,
    (change.dev >> 20) || ':' || (change.dev & 1048575) AS device,
    CASE WHEN change.ino >= 0 THEN change.ino ELSE printf('%llu', change.ino) END AS inode,
    printf('%x:%x', change.dev, change.ino) AS in_criu_log,
    printf('%x:', change.handle_type) || lower(nullif(hex(change.handle), ''))
        AS handle,
    nullif(change.mntns, 0) AS mount_namespace,
    change.id AS change_id,
    change.mapping_id,
    change.dev,
    change.ino,
    change.id AS rowid
FROM change
LEFT JOIN run ON run.id = change.run_id
ORDER BY change.id;

CREATE VIEW inode_history AS
-- the same, and the imports from images, in the order of time: choose one inode with WHERE
SELECT *
FROM (
    SELECT
        at, what, path, old_path, reason, run_id, event, device, inode, in_criu_log, handle,
        change_id, dev, ino, change_id AS rowid
    FROM change_log
    UNION ALL
    SELECT
        first_seen_at, 'imported', path, NULL, NULL, NULL, NULL, device, inode, in_criu_log,
        handle, NULL, dev, ino, -mapping_id
    FROM all_mappings
    WHERE found_by = 'image'
)
ORDER BY at, change_id;

CREATE VIEW run_summary AS
-- each run in a line: the time in which the tasks were frozen, and the sources of the paths
SELECT
    id AS run_id,
    event,
    pid,
    comm AS process,
    started_at,
    CAST(round((julianday(finished_at) - julianday(started_at)) * 86400000) AS INTEGER) AS took_ms,
    round(freezing_us / 1000.0, 1) AS freezing_ms,
    round(frozen_us / 1000.0, 1) AS frozen_ms,
    round(resolve_us / 1000.0, 1) AS resolve_ms,
    tasks_frozen,
    reproved AS proved_again,
    watches,
    resolved,
    unresolved,
    hits,
    CAST(round(
        100.0 * hits / (SELECT sum(identities) FROM run_source WHERE run_source.run_id = run.id)
    ) AS INTEGER) AS hit_percent,
    stale AS went_stale,
    scanned,
    (
        SELECT group_concat(source || ' ' || identities, ', ')
        FROM run_source
        WHERE run_source.run_id = run.id
    ) AS resolved_by,
    outcome,
    id AS rowid
FROM run
ORDER BY id;

CREATE VIEW frozen_dumps AS
-- the parts of the time in which the tasks were stopped: in the freeze of irmapdb dump; and in a
-- dump under the hook, by the hook in an engine's pause, and by CRIU's own freeze. NULL: does not
-- apply, or is unknown
SELECT
    run_id,
    started_at,
    process,
    watches,
    CASE WHEN ours THEN round(freezing_us / 1000.0, 1) END AS freezing_ms,
    CASE WHEN ours THEN round(frozen_us / 1000.0, 1) END AS frozen_ms,
    tasks_frozen,
    CASE WHEN measured THEN round(reread_us / 1000.0, 1) END AS reading_watches_ms,
    CASE WHEN measured THEN reparsed END AS descriptors_changed,
    CASE WHEN measured THEN round(confirm_us / 1000.0, 1) END AS asking_what_moved_ms,
    CASE WHEN measured THEN reproved END AS proved_again,
    nullif(reproved_why, '') AS because,
    CASE WHEN measured THEN round(frozen_resolve_us / 1000.0, 1) END AS proving_ms,
    CASE WHEN measured THEN
        round(max(frozen_us - reread_us - confirm_us - frozen_resolve_us, 0) / 1000.0, 1)
    END AS rest_ms,
    run_id AS rowid,
    CASE WHEN paused THEN 'pause' ELSE 'freeze' END AS stopped_by,
    CASE WHEN paused THEN round(paused_us / 1000.0, 1) END AS paused_ms,
    CASE WHEN criu_frozen_us > 0 THEN round(criu_freezing_us / 1000.0, 1) END AS criu_freezing_ms,
    CASE WHEN criu_frozen_us > 0 THEN round(criu_frozen_us / 1000.0, 1) END AS criu_frozen_ms
FROM (
    SELECT
        id AS run_id,
        comm AS process,
        event = 'dump' AND NOT paused AS ours,
        paused, paused_us, criu_freezing_us, criu_frozen_us,
        nullif(run.tasks_frozen, 0) AS tasks_frozen,
        run.tasks_frozen > 0 AS measured,
        started_at, watches, freezing_us, frozen_us, reread_us, reparsed, confirm_us, reproved,
        reproved_why, frozen_resolve_us
    FROM run
    WHERE (event = 'dump' OR paused OR criu_frozen_us > 0) AND outcome NOT LIKE 'failed:%'
)
ORDER BY run_id;

CREATE VIEW cache_entries AS
-- the entries of irmap-cache, in its order: CRIU tries the last entry of an inode first
SELECT
    image_entry.position,
    all_mappings.path,
    all_mappings.state,
    all_mappings.device,
    all_mappings.inode,
    all_mappings.in_criu_log,
    all_mappings.found_by,
    all_mappings.proved_at,
    all_mappings.mapping_id,
    all_mappings.dev,
    all_mappings.ino,
    image_entry.position AS rowid
FROM image_entry
JOIN all_mappings ON all_mappings.mapping_id = image_entry.mapping_id
WHERE all_mappings.stale_at IS NULL
ORDER BY image_entry.position;
