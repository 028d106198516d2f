"""The SQL of the store. `make sql` writes this file from tools/store_statements.py."""

from __future__ import annotations

from irmapdb.store.statement import Statement

ADD_CHANGE = Statement(
    "INSERT INTO change (run_id, at, mapping_id, kind, dev, ino, handle_type, handle, path, "
    "old_path, reason, mntns) VALUES (:run_id, :at, (SELECT mapping.id FROM mapping WHERE "
    "mapping.dev = :key_dev AND mapping.ino = :key_ino AND mapping.path = :key_path AND "
    "mapping.mntns = :key_mntns), :kind, :dev, :ino, :handle_type, :handle, :path, :old_path, "
    ":reason, :mntns)"
)
ADD_IMAGE_SEEN = Statement(
    "INSERT INTO image_seen (path, st_dev, ino, size, mtime_ns) VALUES (:path, :st_dev, :ino, "
    ":size, :mtime_ns) ON CONFLICT (path) DO UPDATE SET st_dev = excluded.st_dev, ino = "
    "excluded.ino, size = excluded.size, mtime_ns = excluded.mtime_ns"
)
ADD_INCOMING = Statement(
    "INSERT INTO incoming (position, dev, ino, path) VALUES (:position, :dev, :ino, :path)"
)
ADD_INCOMING_TO_IMAGE = Statement(
    "INSERT INTO image_entry (position, mapping_id) SELECT incoming.position + :after AS "
    "anon_1, mapping.id FROM incoming JOIN mapping ON mapping.dev = incoming.dev AND "
    "mapping.ino = incoming.ino AND mapping.path = incoming.path AND mapping.mntns = 0"
)
ADD_INCOMING_TO_MAPPINGS = Statement(
    "INSERT INTO mapping (dev, ino, path, mntns, revalidate, source, first_seen_at) SELECT "
    "incoming.dev, incoming.ino, incoming.path, 0, 1, 'image', :now AS anon_1 FROM incoming "
    "WHERE 1 = 1 ORDER BY incoming.position ON CONFLICT (dev, ino, path, mntns) DO UPDATE SET "
    "revalidate = 1, stale_at = NULL, stale_reason = NULL"
)
ADD_ORIGIN = Statement("INSERT INTO origin (uuid) VALUES (:uuid)")
ADD_RUN = Statement(
    "INSERT INTO run (event, pid, comm, started_at, finished_at, freezing_us, frozen_us, "
    "resolve_us, watches, resolved, unresolved, hits, stale, scanned, outcome, tasks_frozen, "
    "reread_us, reparsed, confirm_us, reproved, reproved_why, frozen_resolve_us, paused, "
    "paused_us, uuid, criu_freezing_us, criu_frozen_us) VALUES (:event, :pid, :comm, "
    ":started_at, :finished_at, :freezing_us, :frozen_us, :resolve_us, :watches, :resolved, "
    ":unresolved, :hits, :stale, :scanned, :outcome, :tasks_frozen, :reread_us, :reparsed, "
    ":confirm_us, :reproved, :reproved_why, :frozen_resolve_us, :paused, :paused_us, :uuid, "
    ":criu_freezing_us, :criu_frozen_us)"
)
ADD_RUN_SOURCE = Statement(
    "INSERT INTO run_source (run_id, source, identities) VALUES (:run_id, :source, :identities)"
)
ADD_TRIED = Statement(
    "INSERT INTO tried (watch_id, position, resolver, note) VALUES (:watch_id, :position, "
    ":resolver, :note)"
)
ADD_VERSION = Statement("INSERT INTO alembic_version (version_num) VALUES (:version_num)")
ADD_WATCH = Statement(
    "INSERT INTO watch (id, run_id, pid, comm, fd, kind, wd, dev, ino, handle_type, handle, "
    "mask, ignored_mask, mflags, path, why, mntns) VALUES (:id, :run_id, :pid, :comm, :fd, "
    ":kind, :wd, :dev, :ino, :handle_type, :handle, :mask, :ignored_mask, :mflags, :path, "
    ":why, :mntns)"
)
CHANGES_AFTER = Statement(
    "SELECT change.id, change.run_id, change.at, change.mapping_id, change.kind, change.dev, "
    "change.ino, change.handle_type, change.handle, CAST(change.path AS BLOB) AS path, "
    "CAST(change.old_path AS BLOB) AS old_path, change.reason, change.mntns FROM change WHERE "
    "change.id > :last_id ORDER BY change.id LIMIT 2000 OFFSET 0"
)
CHANGES_OF_INODE = Statement(
    "SELECT change.id, change.run_id, change.at, change.mapping_id, change.kind, change.dev, "
    "change.ino, change.handle_type, change.handle, CAST(change.path AS BLOB) AS path, "
    "CAST(change.old_path AS BLOB) AS old_path, change.reason, change.mntns FROM change WHERE "
    "change.dev = :dev AND change.ino = :ino ORDER BY change.id DESC LIMIT :at_most OFFSET 0"
)
COUNT_CHANGES_UNTIL = Statement("SELECT count(*) AS count_1 FROM change WHERE change.id <= :until")
COUNT_MAPPINGS = Statement("SELECT count(*) AS count_1 FROM mapping")
COUNT_OLD_MAPPINGS = Statement(
    "SELECT count(*) AS count_1, coalesce(sum(CAST(CASE WHEN (mapping.stale_at IS NOT NULL) "
    "THEN mapping.stale_at < :stale_since ELSE coalesce(mapping.last_used_at, "
    "mapping.first_seen_at) < :used_since END AS INTEGER)), 0) AS coalesce_1 FROM mapping "
    "WHERE mapping.stale_at IS NOT NULL OR mapping.stale_at IS NULL AND "
    "coalesce(mapping.last_used_at, mapping.first_seen_at) < (SELECT max(run.finished_at) AS "
    "max_1 FROM run WHERE run.event IN ('pre-dump', 'dump') AND run.outcome NOT LIKE "
    "'failed:%') AND NOT (EXISTS (SELECT * FROM image_entry WHERE image_entry.mapping_id = "
    "mapping.id))"
)
COUNT_RUNS_UNTIL = Statement(
    "SELECT count(*) AS count_1 FROM run WHERE run.id <= :newest AND run.id != :kept"
)
COUNT_WATCHES_UNTIL = Statement(
    "SELECT count(*) AS count_1 FROM watch WHERE watch.run_id <= :newest AND watch.run_id != :kept"
)
DELETE_CHANGES_UNTIL = Statement("DELETE FROM change WHERE change.id <= :until")
DELETE_IMAGE = Statement("DELETE FROM image_entry")
DELETE_INCOMING = Statement("DELETE FROM incoming")
DELETE_INCOMING_FROM_IMAGE = Statement(
    "DELETE FROM image_entry WHERE image_entry.mapping_id IN (SELECT mapping.id FROM incoming "
    "JOIN mapping ON mapping.dev = incoming.dev AND mapping.ino = incoming.ino AND "
    "mapping.path = incoming.path AND mapping.mntns = 0)"
)
DELETE_OLD_MAPPINGS = Statement(
    "DELETE FROM mapping WHERE mapping.id IN (SELECT mapping.id FROM mapping WHERE "
    "mapping.stale_at IS NOT NULL OR mapping.stale_at IS NULL AND "
    "coalesce(mapping.last_used_at, mapping.first_seen_at) < (SELECT max(run.finished_at) AS "
    "max_1 FROM run WHERE run.event IN ('pre-dump', 'dump') AND run.outcome NOT LIKE "
    "'failed:%') AND NOT (EXISTS (SELECT * FROM image_entry WHERE image_entry.mapping_id = "
    "mapping.id)) ORDER BY CASE WHEN (mapping.stale_at IS NOT NULL) THEN mapping.stale_at < "
    ":stale_since ELSE coalesce(mapping.last_used_at, mapping.first_seen_at) < :used_since "
    "END DESC, coalesce(mapping.stale_at, coalesce(mapping.last_used_at, "
    "mapping.first_seen_at)), mapping.id LIMIT :at_most OFFSET 0)"
)
DELETE_RUNS_UNTIL = Statement("DELETE FROM run WHERE run.id <= :newest AND run.id != :kept")
DELETE_WATCHES_UNTIL = Statement(
    "DELETE FROM watch WHERE watch.run_id <= :newest AND watch.run_id != :kept"
)
FIRST_CHANGE = Statement("SELECT min(change.id) AS min_1 FROM change")
FLAG_ALL = Statement(
    "UPDATE mapping SET revalidate=1 WHERE mapping.stale_at IS NULL AND mapping.revalidate = 0"
)
IMAGE_ENTRIES = Statement(
    "SELECT image_entry.position, mapping.dev, mapping.ino, CAST(mapping.path AS BLOB) AS "
    "path FROM image_entry JOIN mapping ON mapping.id = image_entry.mapping_id WHERE "
    "mapping.stale_at IS NULL ORDER BY image_entry.position"
)
INODES_OF_NUMBER = Statement(
    "SELECT mapping.dev, mapping.ino FROM mapping WHERE mapping.ino = :ino UNION SELECT "
    "watch.dev, watch.ino FROM watch WHERE watch.ino = :ino UNION SELECT change.dev, "
    "change.ino FROM change WHERE change.ino = :ino LIMIT :at_most OFFSET 0"
)
INODES_OF_PATH = Statement(
    "SELECT mapping.dev, mapping.ino FROM mapping WHERE mapping.path = :path UNION SELECT "
    "watch.dev, watch.ino FROM watch WHERE watch.path = :path UNION SELECT change.dev, "
    "change.ino FROM change WHERE change.path = :path OR change.old_path = :path LIMIT "
    ":at_most OFFSET 0"
)
LAST_CHANGE = Statement("SELECT max(change.id) AS max_1 FROM change")
LAST_POSITION = Statement(
    "SELECT coalesce(max(image_entry.position), 0) AS coalesce_1 FROM image_entry"
)
LAST_RUN = Statement("SELECT max(run.id) AS max_1 FROM run")
LAST_STEP = Statement(
    "SELECT run.id FROM run WHERE run.event IN ('pre-dump', 'dump') AND run.outcome NOT LIKE "
    "'failed:%' ORDER BY run.id DESC LIMIT 1 OFFSET 0"
)
LAST_WATCH = Statement("SELECT coalesce(max(watch.id), 0) AS coalesce_1 FROM watch")
LIVE_DEVICES = Statement(
    "SELECT DISTINCT mapping.dev FROM mapping WHERE mapping.stale_at IS NULL AND "
    "mapping.mntns = :mntns"
)
LIVE_ON_DEVICE = Statement(
    "SELECT mapping.id, mapping.dev, mapping.ino, mapping.handle_type, mapping.handle, "
    "CAST(mapping.path AS BLOB) AS path, mapping.source, mapping.revalidate, "
    "mapping.first_seen_at, mapping.validated_at, mapping.last_used_at, mapping.stale_at, "
    "mapping.stale_reason, mapping.mntns FROM mapping WHERE mapping.stale_at IS NULL AND "
    "mapping.mntns = :mntns AND mapping.dev = :dev LIMIT :at_most OFFSET 0"
)
MAKE_INCOMING = Statement(
    "CREATE TEMPORARY TABLE IF NOT EXISTS incoming ( position INTEGER NOT NULL, dev INTEGER "
    "NOT NULL, ino INTEGER NOT NULL, path BLOB NOT NULL, PRIMARY KEY (position) )"
)
MAPPINGS_AFTER = Statement(
    "SELECT mapping.id, mapping.dev, mapping.ino, mapping.handle_type, mapping.handle, "
    "CAST(mapping.path AS BLOB) AS path, mapping.source, mapping.revalidate, "
    "mapping.first_seen_at, mapping.validated_at, mapping.last_used_at, mapping.stale_at, "
    "mapping.stale_reason, mapping.mntns FROM mapping WHERE mapping.id > :last_id ORDER BY "
    "mapping.id LIMIT 2000 OFFSET 0"
)
MAPPINGS_OF_INODE = Statement(
    "SELECT mapping.id, mapping.dev, mapping.ino, mapping.handle_type, mapping.handle, "
    "CAST(mapping.path AS BLOB) AS path, mapping.source, mapping.revalidate, "
    "mapping.first_seen_at, mapping.validated_at, mapping.last_used_at, mapping.stale_at, "
    "mapping.stale_reason, mapping.mntns FROM mapping WHERE mapping.dev = :dev AND "
    "mapping.ino = :ino ORDER BY mapping.stale_at IS NOT NULL, coalesce(mapping.validated_at, "
    "mapping.first_seen_at) DESC, mapping.id DESC LIMIT :at_most OFFSET 0"
)
MARK_STALE = Statement(
    "UPDATE mapping SET stale_at=:now, stale_reason=:reason WHERE mapping.dev = :key_dev AND "
    "mapping.ino = :key_ino AND mapping.path = :key_path AND mapping.mntns = :key_mntns AND "
    "mapping.stale_at IS NULL"
)
PROVE = Statement(
    "INSERT INTO mapping (dev, ino, handle_type, handle, path, mntns, revalidate, source, "
    "first_seen_at, validated_at, last_used_at) VALUES (:dev, :ino, :handle_type, :handle, "
    ":path, :mntns, 0, :source, :now, :now, :now) ON CONFLICT (dev, ino, path, mntns) DO "
    "UPDATE SET handle_type = excluded.handle_type, handle = excluded.handle, revalidate = 0, "
    "validated_at = excluded.validated_at, last_used_at = excluded.last_used_at, stale_at = "
    "NULL, stale_reason = NULL"
)
PROVE_UNUSED = Statement(
    "INSERT INTO mapping (dev, ino, handle_type, handle, path, mntns, revalidate, source, "
    "first_seen_at, validated_at, last_used_at) VALUES (:dev, :ino, :handle_type, :handle, "
    ":path, :mntns, 0, :source, :now, :now, NULL) ON CONFLICT (dev, ino, path, mntns) DO "
    "UPDATE SET handle_type = excluded.handle_type, handle = excluded.handle, revalidate = 0, "
    "validated_at = excluded.validated_at, stale_at = NULL, stale_reason = NULL"
)
RUNS_AFTER = Statement(
    "SELECT run.id, run.event, run.pid, CAST(run.comm AS BLOB) AS comm, run.started_at, "
    "run.finished_at, run.outcome, run.freezing_us, run.frozen_us, run.resolve_us, "
    "run.watches, run.resolved, run.unresolved, run.hits, run.stale, run.scanned, "
    "run.tasks_frozen, run.reread_us, run.reparsed, run.confirm_us, run.reproved, "
    "run.reproved_why, run.frozen_resolve_us, run.paused, run.paused_us, "
    "run.criu_freezing_us, run.criu_frozen_us FROM run WHERE run.id > :last_id ORDER BY "
    "run.id LIMIT 2000 OFFSET 0"
)
RUNS_UNTIL = Statement(
    "SELECT run.id, run.watches FROM run WHERE run.id <= :newest AND run.id != :kept ORDER BY "
    "run.id LIMIT :at_most OFFSET 0"
)
RUN_BEFORE_NEWEST = Statement("SELECT run.id FROM run ORDER BY run.id DESC LIMIT 1 OFFSET :runs")
RUN_BEFORE_WATCHES = Statement(
    "SELECT watch.run_id FROM watch WHERE watch.id <= (SELECT max(watch.id) AS max_1 FROM "
    "watch) - :watches ORDER BY watch.id DESC LIMIT 1 OFFSET 0"
)
SOURCES_OF_RUN = Statement(
    "SELECT run_source.source, run_source.identities FROM run_source WHERE run_source.run_id "
    "= :run_id LIMIT 100 OFFSET 0"
)
TRIED_BETWEEN = Statement(
    "SELECT tried.watch_id, tried.resolver, tried.note FROM tried WHERE tried.watch_id "
    "BETWEEN :first_id AND :last_id AND tried.position BETWEEN 1 AND 100 ORDER BY "
    "tried.watch_id, tried.position"
)
WATCHES_OF_INODE = Statement(
    "SELECT watch.id, watch.pid, CAST(watch.comm AS BLOB) AS comm, watch.fd, watch.kind, "
    "watch.wd, watch.dev, watch.ino, watch.handle_type, watch.handle, watch.mask, "
    "watch.ignored_mask, watch.mflags, CAST(watch.path AS BLOB) AS path, watch.why, "
    "watch.mntns, run.id AS id_1, run.event, run.finished_at FROM watch JOIN run ON run.id = "
    "watch.run_id WHERE watch.dev = :dev AND watch.ino = :ino ORDER BY watch.id DESC LIMIT "
    ":at_most OFFSET 0"
)
WATCHES_OF_RUN_AFTER = Statement(
    "SELECT watch.id, watch.pid, CAST(watch.comm AS BLOB) AS comm, watch.fd, watch.kind, "
    "watch.wd, watch.dev, watch.ino, watch.handle_type, watch.handle, watch.mask, "
    "watch.ignored_mask, watch.mflags, CAST(watch.path AS BLOB) AS path, watch.why, "
    "watch.mntns FROM watch WHERE watch.run_id = :run_id AND watch.id > :last_id ORDER BY "
    "watch.id LIMIT 2000 OFFSET 0"
)
YOUNG_CHANGE = Statement(
    "SELECT change.id FROM change WHERE change.at >= :since AND change.id <= :until ORDER BY "
    "change.id LIMIT 1 OFFSET 0"
)
