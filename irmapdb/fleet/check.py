"""Compares this node with the server: reachable, right schema, how many runs behind.

Each step that writes to a database writes a run, and a push sends all tables in one transaction. So
a database that is no run behind has all its rows on the server.
"""

from __future__ import annotations

from sqlalchemy import text

from irmapdb.errors import DatabaseError
from irmapdb.fleet import schema
from irmapdb.record import Record
from irmapdb.store.snapshot import RUN_COLUMNS, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Connection

    from irmapdb.fleet.server import Server
    from irmapdb.fleet.sources import PushSource

__all__ = ["DatabaseState", "FleetState", "check"]

_UUID, _STARTED_AT = map(RUN_COLUMNS.index, ("uuid", "started_at"))
_NODE = text("SELECT last_push_at, clock_offset_s FROM node WHERE name = :name")
_KNOWN = text("""
SELECT database.id, database.last_push_at
FROM database
JOIN node ON node.id = database.node_id
WHERE node.name = :name AND database.uuid = CAST(:uuid AS uuid)
""")
_ELSEWHERE = text("""
SELECT node.name
FROM database
JOIN node ON node.id = database.node_id
WHERE node.name <> :name AND database.uuid = CAST(:uuid AS uuid)
ORDER BY node.name
""")
_MISSING = text("""
SELECT count(*)
FROM unnest(CAST(:uuids AS uuid[]), CAST(:times AS timestamptz[])) AS given(uuid, at), retention
WHERE irmapdb_period(given.at) >= retention.pruned_before
    AND NOT EXISTS (SELECT FROM run WHERE run.database_id = :id AND run.uuid = given.uuid)
""")


class DatabaseState(Record):
    """One database of this node, compared with the server."""

    file: bytes
    runs: int = 0
    """Runs in the file."""
    runs_behind: int = 0
    """Those that the server does not have, without those that it has pruned."""
    last_push_at: datetime | None = None
    """None: never."""
    other_nodes: tuple[str, ...] = ()
    """Nodes that have pushed a database with the same UUID: copies of the file."""
    problem: str = ""
    """Why it could not be read."""


class FleetState(Record):
    """The server, and the databases of this node."""

    revision: str
    """The server's schema, which is the newest."""
    node: str
    last_push_at: datetime | None
    """None: the node was never pushed."""
    clock_offset_s: float | None
    """This node's clock, less that of the server, at the last push."""
    databases: tuple[DatabaseState, ...]

    @property
    def has_findings(self) -> bool:
        """Whether anything is to be done."""
        return any(
            one.runs_behind or one.problem or one.other_nodes or one.last_push_at is None
            for one in self.databases
        )


def check(server: Server, node: str, sources: Iterable[PushSource]) -> FleetState:
    """Compare. FleetError if the server cannot be reached, or has another schema."""
    with server.connect() as connection, connection.begin():
        schema.check_newest(connection, server)
        row = connection.execute(_NODE, {"name": node}).one_or_none()
        last_push_at, offset_s = (None, None) if row is None else row
        states = tuple(_compare(connection, node, source) for source in sources)
        return FleetState(schema.HEAD, node, last_push_at, offset_s, states)


def _compare(connection: Connection, node: str, source: PushSource) -> DatabaseState:
    try:
        with Snapshot.open(source.file) as snapshot:
            runs = snapshot.runs()
            origin = snapshot.origin
    except DatabaseError as error:
        return DatabaseState(source.file, problem=str(error))
    key = {"name": node, "uuid": origin}
    others = tuple(connection.scalars(_ELSEWHERE, key))
    known = connection.execute(_KNOWN, key).one_or_none()
    database_id, last_push_at = known or (None, None)
    uuids, times = ([row[column] for row in runs] for column in (_UUID, _STARTED_AT))
    values = {"uuids": uuids, "times": times, "id": database_id}
    behind = connection.scalars(_MISSING, values).one()
    return DatabaseState(source.file, len(runs), behind, last_push_at, others)
