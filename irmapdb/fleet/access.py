"""Lets a role of PostgreSQL push, or read the rows of some namespaces; never both.

A role that did both could change the rows that it may read: the policies of the tables that hold
the rows of databases ask only which databases the role sees.

The owner of the tables sees and changes all rows. Any other role needs a grant. PostgreSQL's
row-level security compares the namespaces of the role with those of the databases.
"""

from __future__ import annotations

from sqlalchemy import text

from irmapdb.errors import FleetError
from irmapdb.fleet import views
from irmapdb.fleet.schema import TABLES, VERSION_TABLE, check_newest
from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from irmapdb.fleet.server import Server

__all__ = ["ALL_NAMESPACES", "grant_push", "grant_read", "revoke"]

ALL_NAMESPACES = "*"
"""Stands for every namespace, and for databases without one."""

_PUSHED = sorted({*TABLES} - {"access", "retention"})

_READS = text("SELECT EXISTS (SELECT FROM access WHERE role = :role)")
# A right of its own, not one that it has as a superuser or as the owner.
_PUSHES = text("""
    SELECT EXISTS (
        SELECT FROM information_schema.role_table_grants
        WHERE grantee = :role AND table_schema = current_schema() AND table_name = 'run'
            AND privilege_type = 'INSERT' AND grantor <> grantee
    )
""")


def grant_push(server: Server, role: str) -> None:
    """Let a role push: it writes and reads the rows of the nodes that it pushed first.

    FleetError for a role that reads namespaces.
    """
    with server.connect() as connection, connection.begin():
        check_newest(connection, server)
        if connection.scalar(_READS, {"role": role}):
            raise _does_both(role, "reads namespaces")
        who = _quoted(connection, role)
        _grant_schema(connection, who)
        _run(connection, f"GRANT SELECT, INSERT, UPDATE ON {', '.join(_PUSHED)} TO {who}")
        _run(connection, f"GRANT DELETE ON node_limit TO {who}")
        _run(connection, f"GRANT SELECT ON retention TO {who}")
        _run(connection, f"GRANT EXECUTE ON FUNCTION irmapdb_add_period(date) TO {who}")


def grant_read(server: Server, role: str, namespaces: Collection[str]) -> None:
    """Let a role read the rows of these namespaces, besides those that it reads already.

    FleetError for a role that pushes.
    """
    with server.connect() as connection, connection.begin():
        check_newest(connection, server)
        if connection.scalar(_PUSHES, {"role": role}):
            raise _does_both(role, "pushes")
        who = _quoted(connection, role)
        _grant_schema(connection, who)
        names = [*_PUSHED, *views.statements()]
        _run(connection, f"GRANT SELECT ON {', '.join(names)} TO {who}")
        connection.execute(
            text("INSERT INTO access VALUES (:role, :namespace) ON CONFLICT DO NOTHING"),
            [{"role": role, "namespace": namespace} for namespace in namespaces],
        )


def revoke(server: Server, role: str) -> None:
    """Revoke all these rights. The rows that the role has pushed stay."""
    with server.connect() as connection, connection.begin():
        check_newest(connection, server)
        who = _quoted(connection, role)
        names = [*TABLES, VERSION_TABLE, *views.statements()]
        _run(connection, f"REVOKE ALL ON {', '.join(names)} FROM {who}")
        _run(connection, f"REVOKE ALL ON FUNCTION irmapdb_add_period(date) FROM {who}")
        connection.execute(text("DELETE FROM access WHERE role = :role"), {"role": role})


def _does_both(role: str, does: str) -> FleetError:
    return FleetError(
        f"{printable(role.encode())}: this role {does}, and a role may not push and read",
        advice="make another role, or revoke the rights of this one first",
    )


def _quoted(connection: Connection, role: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(role)


def _grant_schema(connection: Connection, who: str) -> None:
    schema = connection.scalars(text("SELECT quote_ident(current_schema())")).one()
    _run(connection, f"GRANT USAGE ON SCHEMA {schema} TO {who}")
    _run(connection, f"GRANT SELECT ON {VERSION_TABLE} TO {who}")


def _run(connection: Connection, sql: str) -> None:
    connection.exec_driver_sql(sql.replace("%", "%%"))
