-- The tables and indexes of revision 0001, word for word. See irmapdb.store.objects.

CREATE TABLE mapping (
    id INTEGER NOT NULL,
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    handle_type INTEGER,
    handle BLOB,
    path TEXT NOT NULL,
    mntns INTEGER DEFAULT 0 NOT NULL,
    revalidate INTEGER NOT NULL,
    source TEXT NOT NULL,
    first_seen_at TEXT NOT NULL,
    validated_at TEXT,
    last_used_at TEXT,
    stale_at TEXT,
    stale_reason TEXT,
    CONSTRAINT pk_mapping PRIMARY KEY (id),
    CONSTRAINT ck_mapping_dev CHECK (typeof(dev) = 'integer' AND dev BETWEEN 0 AND 4294967295),
    CONSTRAINT ck_mapping_ino CHECK (typeof(ino) = 'integer'),
    CONSTRAINT ck_mapping_handle CHECK ((handle IS NULL) = (handle_type IS NULL)),
    CONSTRAINT ck_mapping_path CHECK (typeof(path) IN ('text', 'blob')),
    CONSTRAINT ck_mapping_revalidate CHECK (revalidate IN (0, 1)),
    CONSTRAINT ck_mapping_stale CHECK ((stale_at IS NULL) = (stale_reason IS NULL)),
    CONSTRAINT uq_mapping_dev_ino_path_mntns UNIQUE (dev, ino, path, mntns)
);

CREATE TABLE image_seen (
    path TEXT NOT NULL,
    st_dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    CONSTRAINT pk_image_seen PRIMARY KEY (path)
);

CREATE TABLE run (
    id INTEGER NOT NULL,
    event TEXT NOT NULL,
    pid INTEGER,
    comm TEXT,
    started_at TEXT NOT NULL,
    finished_at TEXT NOT NULL,
    freezing_us INTEGER NOT NULL,
    frozen_us INTEGER NOT NULL,
    resolve_us INTEGER NOT NULL,
    watches INTEGER NOT NULL,
    resolved INTEGER NOT NULL,
    unresolved INTEGER NOT NULL,
    hits INTEGER NOT NULL,
    stale INTEGER NOT NULL,
    scanned INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    CONSTRAINT pk_run PRIMARY KEY (id)
);

CREATE TABLE image_entry (
    position INTEGER NOT NULL,
    mapping_id INTEGER NOT NULL,
    CONSTRAINT pk_image_entry PRIMARY KEY (position),
    CONSTRAINT fk_image_entry_mapping_id_mapping FOREIGN KEY(mapping_id) REFERENCES mapping (id) ON DELETE CASCADE
);

CREATE INDEX ix_image_entry_mapping_id ON image_entry (mapping_id);

CREATE TABLE run_source (
    run_id INTEGER NOT NULL,
    source TEXT NOT NULL,
    identities INTEGER NOT NULL,
    CONSTRAINT pk_run_source PRIMARY KEY (run_id, source),
    CONSTRAINT fk_run_source_run_id_run FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE
);

CREATE TABLE watch (
    id INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    comm TEXT,
    fd INTEGER NOT NULL,
    kind TEXT NOT NULL,
    wd INTEGER NOT NULL,
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    handle_type INTEGER,
    handle BLOB,
    mask INTEGER NOT NULL,
    ignored_mask INTEGER NOT NULL,
    mflags INTEGER NOT NULL,
    path TEXT,
    why TEXT,
    mntns INTEGER DEFAULT 0 NOT NULL,
    CONSTRAINT pk_watch PRIMARY KEY (id),
    CONSTRAINT ck_watch_dev CHECK (typeof(dev) = 'integer' AND dev BETWEEN 0 AND 4294967295),
    CONSTRAINT ck_watch_ino CHECK (typeof(ino) = 'integer'),
    CONSTRAINT ck_watch_handle CHECK ((handle IS NULL) = (handle_type IS NULL)),
    CONSTRAINT ck_watch_answer CHECK ((path IS NULL) <> (why IS NULL)),
    CONSTRAINT fk_watch_run_id_run FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE CASCADE
);

CREATE INDEX ix_watch_run_id ON watch (run_id);

CREATE TABLE change (
    id INTEGER NOT NULL,
    run_id INTEGER,
    at TEXT NOT NULL,
    mapping_id INTEGER,
    kind TEXT NOT NULL,
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    handle_type INTEGER,
    handle BLOB,
    path TEXT NOT NULL,
    old_path TEXT,
    reason TEXT,
    mntns INTEGER DEFAULT 0 NOT NULL,
    CONSTRAINT pk_change PRIMARY KEY (id),
    CONSTRAINT ck_change_dev CHECK (typeof(dev) = 'integer' AND dev BETWEEN 0 AND 4294967295),
    CONSTRAINT ck_change_ino CHECK (typeof(ino) = 'integer'),
    CONSTRAINT ck_change_handle CHECK ((handle IS NULL) = (handle_type IS NULL)),
    CONSTRAINT fk_change_run_id_run FOREIGN KEY(run_id) REFERENCES run (id) ON DELETE SET NULL,
    CONSTRAINT fk_change_mapping_id_mapping FOREIGN KEY(mapping_id) REFERENCES mapping (id) ON DELETE SET NULL
);

CREATE INDEX ix_change_mapping_id ON change (mapping_id);

CREATE INDEX ix_change_run_id ON change (run_id);

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
