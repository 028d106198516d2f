"""Connects to the fleet's PostgreSQL database, and turns its errors into FleetError.

A password never comes from the URL: the command line and the configuration are read by others.
libpq takes it from PGPASSFILE (~/.pgpass), PGPASSWORD, or a service (PGSERVICEFILE).

PushSource: https://www.postgresql.org/docs/15/libpq-connect.html, https://www.psycopg.org/psycopg3/docs/.
"""

from __future__ import annotations

import re
from contextlib import contextmanager

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from irmapdb.errors import FleetError, UsageError
from irmapdb.fleet.driver import psycopg
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine

__all__ = ["Server", "find_server"]

_DIALECT = "postgresql+psycopg"
_DIALECTS = {_DIALECT, "postgresql", "postgres"}
_SECRETS = {"password", "passwd", "sslpassword", "oauth_client_secret"} | {
    "scram_client_key",
    "scram_server_key",
}
_WHERE_SECRETS_GO = (
    "leave it out: put it into the file that PGPASSFILE names (~/.pgpass), or into a service of "
    "libpq (?service=NAME)"
)
_CONNECT_S = 10
# A node that vanishes in a transaction must not keep its locks.
_SETTINGS = {
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "120s",
    "timezone": "UTC",
    "client_min_messages": "warning",
}
# Connection exceptions; shutdown, crash, not yet accepting; deadlock and the like; a lock; a
# partition that `prune` has just dropped.
_AGAIN = ("08", "57P", "40", "55P03", "53300", "25P03", "23514")
_LOST_WORDS = re.compile(r"connection|terminat|closed|consuming input failed", re.IGNORECASE)
_NO_RIGHTS = "42501"


class Server(Record):
    """A server, and the name that is printed for it."""

    url: URL
    name: str
    """The URL for messages: it has no password."""

    @contextmanager
    def connect(self, *, settings: dict[str, str] | None = None) -> Iterator[Connection]:
        """A connection, closed at the end. FleetError for any error of the server or of libpq."""
        with self.translated():
            engine = self._engine({**_SETTINGS, **(settings or {})})
            with engine.connect() as connection:
                yield connection

    def _engine(self, settings: dict[str, str]) -> Engine:
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        given = self.url.query.get("options", "")
        return create_engine(
            self.url.update_query_dict({"options": f"{given} {options}".strip()}),
            poolclass=NullPool,
            connect_args={
                "connect_timeout": _CONNECT_S,
                "keepalives_idle": 30,
                "prepare_threshold": None,  # pgbouncer has other connections to the server
                "application_name": "irmapdb",
            },
        )

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn each error of the server into a FleetError."""
        try:
            yield
        except DBAPIError as error:
            raise self._explain(error.orig) from error
        except psycopg.Error as error:
            raise self._explain(error) from error

    def _explain(self, error: BaseException | None) -> FleetError:
        said = "; ".join(filter(None, map(str.strip, str(error).splitlines())))
        sqlstate = getattr(error, "sqlstate", None)
        if _is_temporary(sqlstate, said):
            advice = "check that it runs and that this machine may connect; then run this again"
            return FleetError(f"{self.name}: {said}", advice=advice, is_temporary=True)
        if sqlstate == _NO_RIGHTS:
            advice = "let its owner run `irmapdb fleet grant` for your role"
            return FleetError(f"{self.name}: {said}", advice=advice)
        return FleetError(f"{self.name}: {said}")


def _is_temporary(sqlstate: str | None, said: str) -> bool:
    # Without a state libpq said it, or the connection was lost.
    if sqlstate is None:
        return _LOST_WORDS.search(said) is not None
    return sqlstate.startswith(_AGAIN)


def find_server(text: str) -> Server:
    """The server of a URL. UsageError for another kind of URL, and for one with a password."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise UsageError("not a URL of a database", advice=_EXAMPLE, about="server") from error
    if url.drivername not in _DIALECTS:
        raise UsageError(f"{url.drivername}: not PostgreSQL", advice=_EXAMPLE, about="server")
    if url.password is not None or _SECRETS & {*map(str.lower, url.query)}:
        raise UsageError("the URL has a password", advice=_WHERE_SECRETS_GO, about="server")
    shown = url.set(drivername="postgresql").render_as_string(hide_password=True)
    return Server(url.set(drivername=_DIALECT), shown)


_EXAMPLE = "write postgresql://USER@HOST/DATABASE"
