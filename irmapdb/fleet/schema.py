"""Makes and upgrades the tables of the fleet's database, all or nothing.

The revisions are alembic's, in `migrations/fleet`. The revision of the server is in alembic's own
table. PostgreSQL's DDL is transactional, so an upgrade that fails changes nothing.

The tables of irmap.db have the same names and columns on the server, with `database_id` in front,
and a `period`: the Monday of the week by which the tables are partitioned. In a run, `watch_list`
names a list of watches in `listed_watch`: equal lists of one database in one week are stored once.
The views `watch` and `tried` show the watches of each run. `verdict` has every check;
`current_verdict` has the rows of the last one, those whose `at` is the `last_check_at` of the
database, so that no view reads the rows of every week.

PushSource: https://alembic.sqlalchemy.org/en/latest/cookbook.html (sharing a connection).
"""

from __future__ import annotations

from sqlalchemy import inspect, text

from irmapdb.errors import FleetError
from irmapdb.record import Record
from irmapdb.store.revisions import run_revisions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sqlalchemy import Connection

    from irmapdb.fleet.server import Server

__all__ = [
    "HEAD",
    "PARTITIONED",
    "REVISIONS",
    "TABLES",
    "VERSION_TABLE",
    "SchemaChange",
    "check_newest",
    "current",
    "init",
    "upgrade",
]

REVISIONS = ("0001",)
"""Every revision of the server's schema, oldest first."""

HEAD = REVISIONS[-1]

PARTITIONED = ("run", "run_source", "listed_watch", "listed_tried", "change", "verdict")
"""The tables that are partitioned by week."""

TABLES = (
    *("access", "retention", "node", "node_limit", "database", "mapping", "current_verdict"),
    *PARTITIONED,
)
"""All tables of the newest schema."""

_OLDEST_SERVER = 150000  # views with the rights of their reader
_LOCK = 1230130512  # "IRMP"; the other lock of this number is for partitions
VERSION_TABLE = "irmapdb_version"
"""Of alembic's own name, as other programs with alembic may use the same database."""


class SchemaChange(Record):
    """The result of `init` and `upgrade`."""

    old: str | None
    """None: there were no tables."""
    new: str


def current(connection: Connection) -> str | None:
    """The revision of the server's schema; None if there are no tables of irmapdb."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.scalars(text(f"SELECT version_num FROM {VERSION_TABLE} LIMIT 2")).all()  # noqa: S608 fixed
    return str(found[0]) if len(found) == 1 else None


def check_newest(connection: Connection, server: Server) -> None:
    """Raise FleetError unless the server has the newest schema that this irmapdb knows."""
    revision = current(connection)
    _check_known(revision, server)
    if revision != HEAD:
        raise FleetError(
            f"{server.name}: has the older schema {revision}",
            advice="run `irmapdb fleet upgrade` once",
        )


def _check_known(revision: str | None, server: Server) -> None:
    if revision is None:
        raise FleetError(
            f"{server.name}: has no tables of irmapdb", advice="run `irmapdb fleet init` once"
        )
    if revision not in REVISIONS:
        raise FleetError(
            f"{server.name}: has the schema {revision}, newer than {HEAD}",
            advice="update irmapdb on this machine",
        )


def init(server: Server) -> SchemaChange:
    """Make the tables, or upgrade them if they are there."""
    return _bring_to_newest(server, create=True)


def upgrade(server: Server) -> SchemaChange:
    """Upgrade the tables to the newest schema. FleetError if there are none."""
    return _bring_to_newest(server, create=False)


def _bring_to_newest(server: Server, *, create: bool) -> SchemaChange:
    with server.connect() as connection, connection.begin():
        number = connection.scalars(text("SHOW server_version_num")).one()
        if int(number) < _OLDEST_SERVER:
            raise FleetError(
                f"{server.name}: PostgreSQL {int(number) // 10000} is too old",
                advice="use PostgreSQL 15 or newer",
            )
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
        old = current(connection)
        if old != HEAD:
            if old is not None or not create:
                _check_known(old, server)
            run_revisions(connection, HEAD, "fleet")
        return SchemaChange(old, HEAD)
