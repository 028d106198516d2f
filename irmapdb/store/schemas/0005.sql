-- What revision 0005 adds and changes. See irmapdb.store.objects.

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
    tasks_frozen INTEGER DEFAULT 0 NOT NULL,
    reread_us INTEGER DEFAULT 0 NOT NULL,
    reparsed INTEGER DEFAULT 0 NOT NULL,
    confirm_us INTEGER DEFAULT 0 NOT NULL,
    reproved INTEGER DEFAULT 0 NOT NULL,
    reproved_why TEXT DEFAULT '' NOT NULL,
    frozen_resolve_us INTEGER DEFAULT 0 NOT NULL,
    paused INTEGER DEFAULT 0 NOT NULL,
    paused_us INTEGER DEFAULT 0 NOT NULL,
    uuid TEXT DEFAULT '' NOT NULL,
    CONSTRAINT pk_run PRIMARY KEY (id)
);

CREATE TABLE origin (
    uuid TEXT NOT NULL,
    CONSTRAINT pk_origin PRIMARY KEY (uuid)
);
