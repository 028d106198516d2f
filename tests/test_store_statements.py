"""The SQL of the store: SQLAlchemy writes it, and no command imports SQLAlchemy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.store import compiled
from irmapdb.store.database import Store
from tests.support.watcher import Watcher
from tools import compile_sql, store_statements

_ROOT = Path(__file__).parent.parent


def test_the_sql_is_that_of_the_statements() -> None:
    written = Path(compiled.__file__).read_text("utf-8")
    assert compile_sql.rendered() == written, "make sql"
    named = {name: getattr(compiled, name) for name in store_statements.__all__}
    assert named == compile_sql.statements()


def test_each_statement_is_valid_and_each_value_has_a_name(tmp_path: Path) -> None:
    with Store.open(tmp_path / "irmap.db", create=True) as store:
        compiled.MAKE_INCOMING.run(store._raw)
        for name in store_statements.__all__:
            sql = getattr(compiled, name).sql
            assert "?" not in sql, name
            values = dict.fromkeys(re.findall(r":(\w+)", sql))
            store._raw.execute(f"EXPLAIN {sql}", values).fetchall()


def _imported(*arguments: object) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "irmapdb", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=_ROOT,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.kernel
def test_no_command_imports_sqlalchemy(watcher: Watcher, tmp_path: Path) -> None:
    watcher.add_inotify(tmp_path)
    step = ("-t", watcher.pid, "-D", tmp_path)
    for command in (
        ("pre-dump", *step),  # makes the database
        ("pre-dump", *step),
        ("dump", *step),
        ("lookup", tmp_path, "-W", tmp_path),
        ("audit", "-t", watcher.pid, "-W", tmp_path),
        ("prune", "-W", tmp_path),
        ("export", tmp_path / "exported", "-W", tmp_path),
        ("import", tmp_path / "exported", "-W", tmp_path),
        ("db", "current", "-W", tmp_path),
    ):
        imported = _imported(*command)
        assert "irmapdb.commands" in imported
        assert not {"sqlalchemy", "alembic", "pydantic", "rich"} & imported, command
