-- What revision 0002 adds. See irmapdb.store.objects.

CREATE TABLE tried (
    watch_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    resolver TEXT NOT NULL,
    note TEXT NOT NULL,
    CONSTRAINT pk_tried PRIMARY KEY (watch_id, position),
    CONSTRAINT fk_tried_watch_id_watch FOREIGN KEY(watch_id) REFERENCES watch (id) ON DELETE CASCADE
) WITHOUT ROWID;
