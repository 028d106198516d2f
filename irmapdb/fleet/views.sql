-- The views of the fleet's database. docs/fleet.md describes each of them.
--
-- Plain SQL of PostgreSQL 15, so that psql, Grafana and pandas run all views. In each view:
--   path        text; if a path is not UTF-8, or has a NUL, \ooo stands for each such byte
--   path_raw    the bytes of the path
--   dev, ino    as irmap.db has them: ino is a signed number
-- security_invoker: the row-level security of the reader applies, not that of the owner.

CREATE VIEW watch WITH (security_invoker = true) AS
-- the watches of each run: equal lists of one container are stored once a week
SELECT
    run.database_id, run.period, run.uuid AS run, run.id AS run_id, listed_watch.number,
    listed_watch.pid, listed_watch.comm, listed_watch.fd, listed_watch.kind, listed_watch.wd,
    listed_watch.dev, listed_watch.ino, listed_watch.handle_type, listed_watch.handle,
    listed_watch.mask, listed_watch.ignored_mask, listed_watch.mflags, listed_watch.path,
    listed_watch.why, listed_watch.mntns
FROM run
JOIN listed_watch ON listed_watch.database_id = run.database_id
    AND listed_watch.list = run.watch_list AND listed_watch.period = run.period;

CREATE VIEW tried WITH (security_invoker = true) AS
-- the answers of the resolvers for a watch without a path
SELECT
    run.database_id, run.period, run.uuid AS run, run.id AS run_id, listed_tried.number,
    listed_tried.position, listed_tried.resolver, listed_tried.note
FROM run
JOIN listed_tried ON listed_tried.database_id = run.database_id
    AND listed_tried.list = run.watch_list AND listed_tried.period = run.period;

CREATE VIEW containers WITH (security_invoker = true) AS
-- every database of the fleet, with the container that it belongs to
SELECT
    node.cluster, node.name AS node, database.namespace, database.pod, database.container,
    database.container_name, database.image, irmapdb_text(database.file) AS file,
    database.first_push_at, database.last_push_at, database.uuid AS database_uuid,
    database.id AS database_id, node.id AS node_id, database.last_step, database.last_step_period,
    database.last_run, database.last_run_period, database.last_check_at
FROM database
JOIN node ON node.id = database.node_id;

CREATE VIEW nodes WITH (security_invoker = true) AS
-- every node: its version, the time of its last push, and the error of its clock
SELECT
    node.cluster, node.name AS node, node.version, node.last_push_at,
    round(extract(epoch FROM now() - node.last_push_at))::bigint AS behind_s,
    round(node.clock_offset_s::numeric, 1) AS clock_offset_s,
    count(database.id) AS databases,
    count(DISTINCT database.image) AS images,
    node.first_push_at, node.machine_changed_at, node.pushed_by, node.id AS node_id
FROM node
LEFT JOIN database ON database.node_id = node.id
GROUP BY node.id;

CREATE VIEW last_steps WITH (security_invoker = true) AS
-- the last finished pre-dump or dump of each container
SELECT
    containers.cluster, containers.node, containers.namespace, containers.pod,
    containers.container, containers.container_name, containers.image, run.event,
    run.started_at, run.finished_at, run.watches, run.resolved, run.unresolved, run.outcome,
    run.uuid AS run, run.id AS run_id, run.period, run.watch_list, containers.database_id
FROM containers
-- LIMIT: one look into the index for each container, and never a read of all runs
JOIN LATERAL (
    SELECT *
    FROM run
    WHERE run.database_id = containers.database_id AND run.uuid = containers.last_step
        AND run.period = containers.last_step_period
    LIMIT 1
) AS run ON true;

CREATE VIEW last_verdicts WITH (security_invoker = true) AS
-- the prediction for the watches of each container, by its last check. Only the row of the worst
-- verdict has why and advice
SELECT
    containers.cluster, containers.node, containers.namespace, containers.pod,
    containers.container, containers.container_name, containers.image, last.at, last.verdict,
    last.watches, last.fails, last.why, last.advice, containers.database_id
FROM containers
JOIN current_verdict AS last ON last.database_id = containers.database_id
    AND last.at = containers.last_check_at;

CREATE VIEW failing_watches WITH (security_invoker = true) AS
-- the watches of each container's last step that have no path: CRIU cannot dump them, or loses
-- them. A deleted file needs no path
SELECT
    last_steps.cluster, last_steps.node, last_steps.namespace, last_steps.pod,
    last_steps.container, last_steps.container_name, last_steps.image, last_steps.started_at,
    listed_watch.pid, irmapdb_text(listed_watch.comm) AS process, listed_watch.fd,
    listed_watch.kind, listed_watch.why, listed_watch.dev, listed_watch.ino,
    last_steps.run, last_steps.database_id, listed_watch.number
FROM last_steps
JOIN listed_watch ON listed_watch.database_id = last_steps.database_id
    AND listed_watch.list = last_steps.watch_list AND listed_watch.period = last_steps.period
WHERE last_steps.unresolved > 0 AND listed_watch.path IS NULL
    AND listed_watch.why NOT LIKE '%: deleted';

CREATE VIEW failing_containers WITH (security_invoker = true) AS
-- the containers whose next dump would fail, or lose a watch: the number of watches, and the reason
SELECT
    cluster, node, namespace, pod, container, container_name, image, count(*) AS watches,
    mode() WITHIN GROUP (ORDER BY why) AS most_frequent_why, max(started_at) AS seen_at, database_id
FROM failing_watches
GROUP BY cluster, node, namespace, pod, container, container_name, image, database_id;

CREATE VIEW failing_images WITH (security_invoker = true) AS
-- the same by image and reason
SELECT
    image, why, count(DISTINCT database_id) AS containers, count(DISTINCT node) AS nodes,
    count(*) AS watches, max(started_at) AS seen_at
FROM failing_watches
GROUP BY image, why;

CREATE VIEW stops WITH (security_invoker = true) AS
-- the time in which the tasks were stopped, and its parts. freeze: by irmapdb dump, or by CRIU after
-- the hook; pause: the time of the hook in an engine's pause, and CRIU's freeze in it
SELECT
    containers.cluster, containers.node, containers.namespace, containers.pod,
    containers.container, containers.container_name, containers.image, run.started_at,
    CASE WHEN run.paused <> 0 THEN 'pause' ELSE 'freeze' END AS stopped_by,
    run.stopped_us,
    round(run.stopped_us / 1000.0, 1) AS stopped_ms,
    round(run.resolve_us / 1000.0, 1) AS resolve_ms,
    round(100.0 * least(
        CASE WHEN run.paused <> 0 THEN run.resolve_us ELSE run.frozen_resolve_us END,
        run.stopped_us
    ) / run.stopped_us) AS resolve_percent,
    round(run.reread_us / 1000.0, 1) AS reading_watches_ms,
    round(run.confirm_us / 1000.0, 1) AS asking_what_moved_ms,
    run.reproved AS proved_again, nullif(run.reproved_why, '') AS because,
    run.watches, run.tasks_frozen, run.uuid AS run, run.id AS run_id, run.database_id,
    round(run.paused_us / 1000.0, 1) AS paused_ms,
    round(run.criu_freezing_us / 1000.0, 1) AS criu_freezing_ms,
    round(run.criu_frozen_us / 1000.0, 1) AS criu_frozen_ms
FROM (
    -- the expression of the index ix_run_stopped
    SELECT *, greatest(frozen_us, paused_us + criu_freezing_us + criu_frozen_us) AS stopped_us
    FROM run
) AS run
JOIN containers ON containers.database_id = run.database_id
WHERE run.stopped_us > 0;

CREATE VIEW stale_paths WITH (security_invoker = true) AS
-- the stale paths: since when, the reason, and the present path of the file
SELECT
    containers.cluster, containers.node, containers.namespace, containers.pod,
    containers.container, containers.container_name, containers.image, stale.stale_at,
    stale.stale_reason, irmapdb_text(stale.path) AS path,
    irmapdb_text(moved.path) AS moved_to, stale.source AS found_by, stale.validated_at AS proved_at,
    stale.path AS path_raw, moved.path AS moved_to_raw, stale.dev, stale.ino, stale.database_id
FROM mapping AS stale
JOIN containers ON containers.database_id = stale.database_id
LEFT JOIN LATERAL (
    SELECT change.path
    FROM change
    WHERE change.database_id = stale.database_id AND change.kind = 'moved'
        AND change.at = stale.stale_at AND change.old_path = stale.path
        AND change.dev = stale.dev AND change.ino = stale.ino AND change.mntns = stale.mntns
    ORDER BY change.id DESC
    LIMIT 1
) AS moved ON true
WHERE stale.stale_at IS NOT NULL;

CREATE VIEW limits WITH (security_invoker = true) AS
-- the use of the inotify and fanotify limits by each user of each node, at the last push
SELECT
    node.cluster, node.name AS node, node_limit.name AS "limit", node_limit.uid, node_limit.used,
    node_limit."limit" AS maximum,
    round(100.0 * node_limit.used / nullif(node_limit."limit", 0), 1) AS used_percent,
    node_limit.at
FROM node_limit
JOIN node ON node.id = node_limit.node_id;

CREATE VIEW hooks WITH (security_invoker = true) AS
-- the last step of each container, and the outcome of the last attempt. NULL: none has finished
SELECT
    containers.cluster, containers.node, containers.namespace, containers.pod,
    containers.container, containers.container_name, containers.image,
    ended.finished_at AS last_step_at, attempt.started_at AS last_attempt_at,
    attempt.outcome AS last_outcome,
    CASE
        WHEN attempt.outcome LIKE 'failed:%' THEN 'failed'
        WHEN ended.finished_at IS NULL THEN 'never ran'
        ELSE 'ran'
    END AS state,
    containers.database_id
FROM containers
LEFT JOIN LATERAL (
    SELECT run.finished_at
    FROM run
    WHERE run.database_id = containers.database_id AND run.uuid = containers.last_step
        AND run.period = containers.last_step_period
    LIMIT 1
) AS ended ON true
LEFT JOIN LATERAL (
    SELECT run.started_at, run.outcome
    FROM run
    WHERE run.database_id = containers.database_id AND run.uuid = containers.last_run
        AND run.period = containers.last_run_period AND run.event IN ('pre-dump', 'dump')
    LIMIT 1
) AS attempt ON true;

CREATE VIEW copied_databases WITH (security_invoker = true) AS
-- databases with one UUID on several nodes: copies of one file, whose rows are kept apart
SELECT
    database_uuid, count(*) AS nodes, string_agg(node, ', ' ORDER BY node) AS node_names,
    min(first_push_at) AS first_push_at
FROM containers
GROUP BY database_uuid
HAVING count(*) > 1;
