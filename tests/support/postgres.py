"""A PostgreSQL server of the tests' own: on a unix socket, started once a session, no fsync."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.features import require

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Postgres", "require_postgres"]

# Without fsync a commit is still in the kernel's memory after a crash of the server. Without
# synchronous_commit it would be lost.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "autovacuum": "off",
    "logging_collector": "off",
}
_USER = "irmapdb_owner"


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def require_postgres() -> Path:
    """The directory with initdb and pg_ctl."""
    found = _programs()
    require(found is not None, "PostgreSQL (package postgresql)")
    return found


class Postgres:
    """The server. A context manager; its files are gone afterwards."""

    def __init__(self) -> None:
        self._bin = require_postgres()
        # A socket's path has at most 107 bytes.
        self._top = Path(tempfile.mkdtemp(prefix="irmapdb-pg-", dir="/tmp"))
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self._databases = 0

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            shutil.chown(self._top, self._user)
        self._top.chmod(0o755)
        self._run("initdb", "-D", self._data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        settings = "".join(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
        settings += f"unix_socket_directories = '{self._top}'\n"
        with (self._data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            file.write(settings)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._top, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._top / "data"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self._top / "log", "start")

    def stop(self) -> None:
        """Stop it at once: connections are cut."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        time.sleep(0.2)
        self.start()

    def new_database(self, template: str = "template0") -> str:
        """The URL of a database: an empty one, or a copy of another one."""
        self._databases += 1
        name = f"fleet{self._databases}"
        self.psql("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def url(self, database: str, user: str = _USER) -> str:
        """The URL of a database."""
        return f"postgresql://{user}@/{database}?host={self._top}"

    def psql(self, database: str, sql: str, user: str = _USER) -> list[str]:
        """The lines that psql prints for a statement."""
        done = self._run(
            "psql", "-h", self._top, "-U", user, "-d", database, "-XAtq", "-v", "ON_ERROR_STOP=1",
            "-c", sql,
        )  # fmt: skip
        return done.splitlines()

    def _run(self, program: str, *arguments: str | Path) -> str:
        command: Sequence[str] = [str(self._bin / program), *map(str, arguments)]
        if os.geteuid() == 0 and program != "psql":
            command = ["setpriv", "--reuid", self._user, "--regid", self._user, "--init-groups",
                       *command]  # fmt: skip
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "psql" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if program == "psql" else subprocess.DEVNULL,
            text=True,
            cwd="/",
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"{program}: {done.stderr or self._log()}")
        return done.stdout or ""

    def _log(self) -> str:
        log = self._top / "log"
        return log.read_text("utf-8", "replace")[-2000:] if log.exists() else "no log"
