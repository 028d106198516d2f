"""first schema."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# No downgrade: take a dump of the server before an upgrade.

# Names and definitions are given whole: what a released revision makes must not change.
_TABLES = """
CREATE TABLE retention (
    pruned_before DATE NOT NULL
);
INSERT INTO retention VALUES ('0001-01-01');

CREATE TABLE access (
    role TEXT NOT NULL,
    namespace TEXT NOT NULL,
    CONSTRAINT pk_access PRIMARY KEY (role, namespace)
);

CREATE TABLE node (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    name TEXT NOT NULL,
    cluster TEXT,
    machine UUID,
    version TEXT NOT NULL,
    first_push_at TIMESTAMPTZ NOT NULL,
    last_push_at TIMESTAMPTZ NOT NULL,
    machine_changed_at TIMESTAMPTZ,
    clock_offset_s DOUBLE PRECISION NOT NULL,
    pushed_by TEXT DEFAULT CURRENT_USER NOT NULL,
    CONSTRAINT pk_node PRIMARY KEY (id),
    CONSTRAINT uq_node_name UNIQUE (name)
);

CREATE TABLE node_limit (
    node_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    uid BIGINT NOT NULL,
    used BIGINT NOT NULL,
    "limit" BIGINT NOT NULL,
    CONSTRAINT pk_node_limit PRIMARY KEY (node_id, name, uid),
    CONSTRAINT fk_node_limit_node_id_node FOREIGN KEY (node_id) REFERENCES node (id)
        ON DELETE CASCADE
);

CREATE TABLE database (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    node_id INTEGER NOT NULL,
    uuid UUID NOT NULL,
    file BYTEA NOT NULL,
    schema TEXT NOT NULL,
    container TEXT,
    container_name TEXT,
    image TEXT,
    pod TEXT,
    namespace TEXT,
    first_push_at TIMESTAMPTZ NOT NULL,
    last_push_at TIMESTAMPTZ NOT NULL,
    pushes BIGINT NOT NULL,
    last_run_id BIGINT NOT NULL,
    last_run UUID,
    last_run_period DATE,
    last_change_id BIGINT NOT NULL,
    last_change UUID,
    last_step UUID,
    last_step_period DATE,
    last_check_at TIMESTAMPTZ,
    CONSTRAINT pk_database PRIMARY KEY (id),
    CONSTRAINT uq_database_node_id_uuid UNIQUE (node_id, uuid),
    CONSTRAINT fk_database_node_id_node FOREIGN KEY (node_id) REFERENCES node (id)
        ON DELETE CASCADE
);
CREATE INDEX ix_database_uuid ON database (uuid);
CREATE INDEX ix_database_namespace ON database (namespace);

CREATE TABLE run (
    database_id BIGINT NOT NULL,
    period DATE NOT NULL,
    uuid UUID NOT NULL,
    id BIGINT NOT NULL,
    event TEXT NOT NULL,
    pid BIGINT,
    comm BYTEA,
    started_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ NOT NULL,
    freezing_us BIGINT NOT NULL,
    frozen_us BIGINT NOT NULL,
    resolve_us BIGINT NOT NULL,
    watches BIGINT NOT NULL,
    resolved BIGINT NOT NULL,
    unresolved BIGINT NOT NULL,
    hits BIGINT NOT NULL,
    stale BIGINT NOT NULL,
    scanned BIGINT NOT NULL,
    tasks_frozen BIGINT NOT NULL,
    reread_us BIGINT NOT NULL,
    reparsed BIGINT NOT NULL,
    confirm_us BIGINT NOT NULL,
    reproved BIGINT NOT NULL,
    reproved_why TEXT NOT NULL,
    frozen_resolve_us BIGINT NOT NULL,
    paused BIGINT NOT NULL,
    paused_us BIGINT NOT NULL,
    criu_freezing_us BIGINT NOT NULL,
    criu_frozen_us BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    watch_list UUID,
    CONSTRAINT pk_run PRIMARY KEY (database_id, uuid, period)
) PARTITION BY RANGE (period);
CREATE INDEX ix_run_started_at ON run (started_at);
CREATE INDEX ix_run_stopped
    ON run (greatest(frozen_us, paused_us + criu_freezing_us + criu_frozen_us))
    WHERE greatest(frozen_us, paused_us + criu_freezing_us + criu_frozen_us) > 0;

CREATE TABLE run_source (
    database_id BIGINT NOT NULL,
    period DATE NOT NULL,
    run UUID NOT NULL,
    source TEXT NOT NULL,
    identities BIGINT NOT NULL,
    CONSTRAINT pk_run_source PRIMARY KEY (database_id, run, source, period)
) PARTITION BY RANGE (period);

CREATE TABLE listed_watch (
    database_id BIGINT NOT NULL,
    period DATE NOT NULL,
    list UUID NOT NULL,
    number BIGINT NOT NULL,
    pid BIGINT NOT NULL,
    comm BYTEA,
    fd BIGINT NOT NULL,
    kind TEXT NOT NULL,
    wd BIGINT NOT NULL,
    dev BIGINT NOT NULL,
    ino BIGINT NOT NULL,
    handle_type BIGINT,
    handle BYTEA,
    mask BIGINT NOT NULL,
    ignored_mask BIGINT NOT NULL,
    mflags BIGINT NOT NULL,
    path BYTEA,
    why TEXT,
    mntns BIGINT NOT NULL,
    CONSTRAINT pk_listed_watch PRIMARY KEY (database_id, list, number, period)
) PARTITION BY RANGE (period);

CREATE TABLE listed_tried (
    database_id BIGINT NOT NULL,
    period DATE NOT NULL,
    list UUID NOT NULL,
    number BIGINT NOT NULL,
    position BIGINT NOT NULL,
    resolver TEXT NOT NULL,
    note TEXT NOT NULL,
    CONSTRAINT pk_listed_tried PRIMARY KEY (database_id, list, number, position, period)
) PARTITION BY RANGE (period);

CREATE TABLE change (
    database_id BIGINT NOT NULL,
    period DATE NOT NULL,
    key UUID NOT NULL,
    id BIGINT NOT NULL,
    run UUID,
    run_id BIGINT,
    at TIMESTAMPTZ NOT NULL,
    mapping_id BIGINT,
    kind TEXT NOT NULL,
    dev BIGINT NOT NULL,
    ino BIGINT NOT NULL,
    handle_type BIGINT,
    handle BYTEA,
    path BYTEA NOT NULL,
    old_path BYTEA,
    reason TEXT,
    mntns BIGINT NOT NULL,
    CONSTRAINT pk_change PRIMARY KEY (database_id, key, period)
) PARTITION BY RANGE (period);
CREATE INDEX ix_change_at ON change (database_id, at);

CREATE TABLE verdict (
    database_id BIGINT NOT NULL,
    period DATE NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    verdict TEXT NOT NULL,
    watches BIGINT NOT NULL,
    why TEXT,
    advice TEXT,
    fails BOOLEAN NOT NULL,
    CONSTRAINT pk_verdict PRIMARY KEY (database_id, at, verdict, period)
) PARTITION BY RANGE (period);

CREATE TABLE current_verdict (
    database_id BIGINT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    verdict TEXT NOT NULL,
    watches BIGINT NOT NULL,
    why TEXT,
    advice TEXT,
    fails BOOLEAN NOT NULL,
    CONSTRAINT pk_current_verdict PRIMARY KEY (database_id, verdict),
    CONSTRAINT fk_current_verdict_database_id_database FOREIGN KEY (database_id)
        REFERENCES database (id) ON DELETE CASCADE
);

CREATE TABLE mapping (
    database_id BIGINT NOT NULL,
    key UUID NOT NULL,
    id BIGINT NOT NULL,
    dev BIGINT NOT NULL,
    ino BIGINT NOT NULL,
    handle_type BIGINT,
    handle BYTEA,
    path BYTEA NOT NULL,
    mntns BIGINT NOT NULL,
    revalidate BIGINT NOT NULL,
    source TEXT NOT NULL,
    first_seen_at TIMESTAMPTZ NOT NULL,
    validated_at TIMESTAMPTZ,
    last_used_at TIMESTAMPTZ,
    stale_at TIMESTAMPTZ,
    stale_reason TEXT,
    CONSTRAINT pk_mapping PRIMARY KEY (database_id, key)
);
CREATE INDEX ix_mapping_stale_at ON mapping (stale_at) WHERE stale_at IS NOT NULL;
"""

# A week begins on Monday, UTC. A time that no right clock has at a push counts as the time of the
# push: else one wrong clock would make a partition for each year, or outlive all retention.
_FUNCTIONS = """
CREATE FUNCTION irmapdb_period(at TIMESTAMPTZ) RETURNS DATE
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT date_trunc('week', CASE
        WHEN at < now() - interval '400 days' OR at > now() + interval '2 days' THEN now()
        ELSE at
    END AT TIME ZONE 'UTC')::date
$$;

CREATE FUNCTION irmapdb_add_period(period DATE) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
DECLARE
    suffix TEXT := to_char(period, '"_"IYYY"w"IW');
    parent TEXT;
BEGIN
    IF period IS DISTINCT FROM irmapdb_period(period::timestamp AT TIME ZONE 'UTC') THEN
        RAISE EXCEPTION 'irmapdb: % is not the begin of a week', period;
    END IF;
    IF to_regclass('listed_tried' || suffix) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(1230130512, 1);
    FOREACH parent IN ARRAY ARRAY['run', 'run_source', 'listed_watch', 'change', 'verdict',
        'listed_tried']
    LOOP
        IF to_regclass(parent || suffix) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                parent || suffix, parent);
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', parent || suffix);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent, parent || suffix, period, period + 7);
        END IF;
    END LOOP;
END
$$;

CREATE FUNCTION irmapdb_namespaces(who TEXT) RETURNS TEXT[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
    SELECT coalesce(array_agg(access.namespace), '{}')
    FROM access
    JOIN pg_catalog.pg_roles ON pg_roles.rolname = access.role
    WHERE pg_has_role(who::name, pg_roles.oid, 'MEMBER')
        AND pg_has_role(SESSION_USER, who::name, 'MEMBER')
$$;

CREATE FUNCTION irmapdb_text(raw BYTEA) RETURNS TEXT
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN convert_from(raw, 'UTF8');
EXCEPTION WHEN OTHERS THEN
    RETURN encode(raw, 'escape');
END
$$;
"""

# "*" stands for every namespace, and for databases without one. A role that pushes sees and writes
# the rows of the nodes that it registered.
_POLICIES = """
REVOKE EXECUTE ON FUNCTION irmapdb_add_period(DATE) FROM PUBLIC;
ALTER TABLE access ENABLE ROW LEVEL SECURITY;
ALTER TABLE node ENABLE ROW LEVEL SECURITY;
ALTER TABLE node_limit ENABLE ROW LEVEL SECURITY;
ALTER TABLE database ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_the_pusher ON node USING (pushed_by = CURRENT_USER);
CREATE POLICY of_readers ON node FOR SELECT
    USING ((SELECT irmapdb_namespaces(CURRENT_USER)) <> '{}');
CREATE POLICY of_the_pusher ON node_limit
    USING (node_id IN (SELECT id FROM node WHERE pushed_by = CURRENT_USER));
CREATE POLICY of_readers ON node_limit FOR SELECT
    USING ('*' = ANY ((SELECT irmapdb_namespaces(CURRENT_USER))::text[]));
CREATE POLICY of_the_pusher ON database
    USING (node_id IN (SELECT id FROM node WHERE pushed_by = CURRENT_USER));
CREATE POLICY of_readers ON database FOR SELECT
    USING (namespace = ANY ((SELECT irmapdb_namespaces(CURRENT_USER))::text[])
        OR '*' = ANY ((SELECT irmapdb_namespaces(CURRENT_USER))::text[]));
"""
_POLICY = """
CREATE POLICY of_database ON {table} USING (database_id IN (SELECT id FROM database))
"""
_OF_DATABASES = (
    "run",
    "run_source",
    "listed_watch",
    "listed_tried",
    "change",
    "verdict",
    "current_verdict",
    "mapping",
)


def upgrade() -> None:
    """From an empty database to 0001. The views are those of irmapdb.fleet.views."""
    for statement in re.split(r";\n(?=CREATE|INSERT)", _TABLES):
        op.execute(statement)
    # In a function with the rights of its owner, a caller's temporary table must not come first.
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    for function in re.split(r"\$\$;\n", _FUNCTIONS.replace("{schema}", schema)):
        if function.strip():
            op.execute(f"{function}$$")
    for policy in _POLICIES.strip().removesuffix(";").split(";\n"):
        op.execute(policy)
    for table in _OF_DATABASES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(_POLICY.format(table=table))
