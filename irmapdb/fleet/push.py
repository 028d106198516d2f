"""Pushes the rows that the server does not have yet: one transaction for each database.

A database is (node, UUID) on the server, a run its UUID, a change and a mapping a digest of their
content. The row of the database has the last run and change that were pushed. If these are still in
the file, only later rows are compared with the server; otherwise (a copy, a restored backup, a
pruned file) all of them are. So a push can be killed and repeated at any moment.

Two pushes of one database wait for each other at its row. The second one sees by the counter
`pushes` that its snapshot may be old, and takes a new one.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from functools import partial

from sqlalchemy import text

import irmapdb
from irmapdb.errors import DatabaseError, FleetError
from irmapdb.fleet.schema import check_newest
from irmapdb.fleet.source_rows import Claim, push_rows
from irmapdb.log import Log
from irmapdb.model import printable
from irmapdb.record import Record
from irmapdb.store import revisions, version
from irmapdb.store.database import Store
from irmapdb.store.snapshot import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self, TypeVar

    from sqlalchemy import Connection

    from irmapdb.fleet.server import Server
    from irmapdb.fleet.source_rows import Sent
    from irmapdb.fleet.sources import LimitUse, NodeFacts, PushSource

    T = TypeVar("T")

__all__ = ["PushOptions", "Pushed", "push"]

_log = Log(__name__)

_TRIES = 5
_PAUSE_S = 0.5

_NODE = text("""
INSERT INTO node (
    name, cluster, machine, version, first_push_at, last_push_at, clock_offset_s
) VALUES (:name, :cluster, :machine, :version, now(), now(), :clock_offset_s)
ON CONFLICT (name) DO UPDATE SET
    cluster = coalesce(excluded.cluster, node.cluster),
    machine_changed_at = CASE
        WHEN node.machine <> excluded.machine THEN now() ELSE node.machine_changed_at
    END,
    machine = coalesce(excluded.machine, node.machine),
    version = excluded.version,
    last_push_at = now(),
    clock_offset_s = excluded.clock_offset_s
RETURNING id, machine_changed_at = now() AND first_push_at < now()
""")
_NO_LIMITS = text("DELETE FROM node_limit WHERE node_id = :node_id")
_LIMIT = text("""
INSERT INTO node_limit (node_id, name, at, uid, used, "limit")
VALUES (:node_id, :name, now(), :uid, :used, :limit)
""")
# Facts that are known once stay: a container that has ended has no name any more.
_CLAIM = text("""
INSERT INTO database (
    node_id, uuid, file, schema, container, container_name, image, pod, namespace,
    first_push_at, last_push_at, pushes, last_run_id, last_change_id
) VALUES (
    :node_id, :uuid, :file, :schema, coalesce(CAST(:container AS text), :stem), :container_name,
    :image, :pod, :namespace,
    now(), now(), 0, 0, 0
)
ON CONFLICT (node_id, uuid) DO UPDATE SET
    file = excluded.file,
    schema = excluded.schema,
    container = coalesce(CAST(:container AS text), database.container),
    container_name = coalesce(excluded.container_name, database.container_name),
    image = coalesce(excluded.image, database.image),
    pod = coalesce(excluded.pod, database.pod),
    namespace = coalesce(excluded.namespace, database.namespace),
    last_push_at = now()
RETURNING id, pushes, last_run_id, last_run, last_change_id, last_change
""")


class PushOptions(Record):
    """The data to push, and the server."""

    server: Server
    node: NodeFacts
    sources: Sequence[PushSource]
    limits: Sequence[LimitUse] = ()
    """Those of the node, at this moment."""
    wait_s: float = 10.0
    """How long a lost connection is tried again, for each database."""


class Pushed(Record):
    """The result for one database."""

    file: bytes
    uuid: str | None
    """None if it could not be read."""
    sent: Sent | None
    """The new rows; None if it could not be read."""
    problem: str = ""
    """Why it could not be read."""


def push(options: PushOptions) -> list[Pushed]:
    """Push each database. FleetError if the server cannot be reached, or refuses.

    A database that cannot be read is a `problem` of its own; the others are pushed.
    """
    with _Link(options) as link:
        link.repeated(lambda _connection, _node_id: None)
        return [_push_one(link, source) for source in options.sources]


def _push_one(link: _Link, source: PushSource) -> Pushed:
    try:
        origin = _origin_of(source.file)
        for _ in range(_TRIES):
            sent = link.repeated(partial(_push_once, source=source, origin=origin))
            if sent is not None:
                return Pushed(source.file, origin, sent)
    except DatabaseError as error:
        return _unreadable(source, str(error))
    except MemoryError:
        # A tenant can set very many watches; the databases of the others are pushed.
        why = "it needs more memory than this process may use"
        return _unreadable(source, f"{printable(source.file)}: {why}")
    message = f"{printable(source.file)}: another process pushes it all the time"
    raise FleetError(message, advice="run one push at a time")


def _unreadable(source: PushSource, problem: str) -> Pushed:
    _log.warning("%s", problem)
    return Pushed(source.file, None, None, problem)


def _origin_of(path: bytes) -> str:
    # An older schema is upgraded, as by each command that writes: with a backup beside it.
    try:
        with Snapshot.open(path) as snapshot:
            return snapshot.origin
    except DatabaseError:
        if revisions.current(path) == version.HEAD:
            raise
    Store.open(path, create=False).close()
    with Snapshot.open(path) as snapshot:
        return snapshot.origin


def _push_once(
    connection: Connection, node_id: int, *, source: PushSource, origin: str
) -> Sent | None:
    # The snapshot is taken after the claim: it has all that earlier pushes have sent.
    values = {
        **source.container._asdict(),
        "stem": source.stem,
        "file": source.file,
        "schema": version.HEAD,
    }
    with connection.begin():
        row = connection.execute(_CLAIM, {"node_id": node_id, "uuid": origin, **values}).one()
        horizon = connection.scalars(text("SELECT pruned_before FROM retention")).one()
    claim = Claim(
        database_id=row.id,
        pushes=row.pushes,
        last_run_id=row.last_run_id,
        last_run=row.last_run,
        last_change_id=row.last_change_id,
        last_change=row.last_change,
        pruned_before=horizon,
    )
    with Snapshot.open(source.file) as snapshot:
        if snapshot.origin != origin:  # another file was put in its place
            return None
        return push_rows(connection, claim, snapshot, source.verdicts)


class _Link:
    """The connection of a push. It is made anew when it is lost."""

    def __init__(self, options: PushOptions) -> None:
        self._options = options
        self._stack = ExitStack()
        self._connection: Connection | None = None
        self._node_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def repeated(self, call: Callable[[Connection, int], T]) -> T:
        """Call it with the connection and the number of our node, again if that was lost.

        If the connection was lost in a commit, the next try reads what the server has.
        """
        end_s = time.monotonic() + self._options.wait_s
        while True:
            try:
                with self._options.server.translated():
                    connection = self._connection or self._open()
                    return call(connection, self._node_id)
            except FleetError as error:
                self._drop()
                if not error.is_temporary or time.monotonic() > end_s:
                    raise
                _log.info("%s", error)
                time.sleep(_PAUSE_S)

    def _open(self) -> Connection:
        server = self._options.server
        connection = self._stack.enter_context(server.connect())
        with connection.begin():
            check_newest(connection, server)
            self._node_id = self._register(connection)
        self._connection = connection
        return connection

    def _register(self, connection: Connection) -> int:
        facts = self._options.node
        before_s = time.time()
        server_s = connection.scalars(text("SELECT extract(epoch FROM clock_timestamp())")).one()
        values = {
            "name": facts.name,
            "cluster": facts.cluster,
            "machine": facts.machine,
            "version": irmapdb.__version__,
            "clock_offset_s": (before_s + time.time()) / 2 - float(server_s),
        }
        node_id, is_another = connection.execute(_NODE, values).one()
        connection.execute(_NO_LIMITS, {"node_id": node_id})
        for limit in self._options.limits:
            connection.execute(_LIMIT, {"node_id": node_id, **limit._asdict()})
        if is_another:
            _log.warning(
                "node %s: another machine pushed under this name before; if it was not installed "
                "anew, give one of them another name with --node",
                facts.name,
            )
        return int(node_id)

    def _drop(self) -> None:
        self._connection = None
        with suppress(FleetError):  # it is lost
            self._stack.close()
