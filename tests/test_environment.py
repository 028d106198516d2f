"""IRMAPDB_DB and IRMAPDB_CONFIG: irmapdb uses the named file, and an option has precedence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from irmapdb.image import cache
from irmapdb.model import CacheEntry
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.watcher import Watcher


def _database(path: Path, name: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = path.parent / "image"
    image.write_bytes(cache.encode_cache([CacheEntry(1, 2, name)]))
    assert irmapdb("import", image, "--db", path).code == 0
    return path


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database that IRMAPDB_DB names; another one is in the cwd, and one in `work`."""
    monkeypatch.chdir(tmp_path)
    _database(tmp_path / "irmap.db", b"/in/cwd")
    _database(tmp_path / "work" / "irmap.db", b"/in/work")
    path = _database(tmp_path / "other" / "named.db", b"/named")
    monkeypatch.setenv("IRMAPDB_DB", str(path))
    return path


def _path(*words: str) -> str:
    done = irmapdb("sql", "SELECT path FROM mapping", "--json", *words)
    (row,) = json.loads(done.out)
    return row["path"]


def _runs(*words: str) -> list[str]:
    steps = "SELECT event FROM run WHERE event IN ('pre-dump', 'dump')"
    return [row["event"] for row in json.loads(irmapdb("sql", steps, "--json", *words).out)]


def test_the_environment_names_the_database(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _path() == "/named"
    assert json.loads(irmapdb("db", "current", "--json").out)["database"] == str(named)
    assert "/named" in irmapdb("audit", "--all").out
    assert irmapdb("lookup", "/named").code == 0
    monkeypatch.setenv("IRMAPDB_DB", "")
    assert _path() == "/in/cwd"


def test_an_option_has_the_last_word(named: Path) -> None:
    assert _path("--db", "irmap.db") == "/in/cwd"
    assert _path("-W", ".") == "/in/cwd"
    assert _path("-W", "work") == "/in/work"
    assert _path("-W", "work", "--db", "irmap.db") == "/in/cwd"


@pytest.mark.parametrize("command", ["pre-dump", "dump"])
def test_a_step_stores_in_it(named: Path, command: str) -> None:
    require_root()
    with Watcher() as watcher:
        watcher.add_inotify(named.parent)
        pid = str(watcher.pid)
        assert irmapdb(command, "-t", pid, "-D", "img").code == 0
        assert (_runs(), _runs("-W", "."), _runs("-W", "work")) == ([command], [], [])
        assert os.path.exists("img/irmap-cache")
        assert not os.path.exists("img/irmap.db")
        assert irmapdb(command, "-t", pid, "-D", "img", "-W", "work").code == 0
        assert (_runs(), _runs("-W", "."), _runs("-W", "work")) == ([command], [], [command])


def test_no_log_takes_its_place(named: Path) -> None:
    done = irmapdb("pre-dump", "-t", "1", "-D", "other", "-o", "named.db")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "a log there would destroy what irmapdb keeps" in done.err


def test_the_environment_names_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRMAPDB_CONFIG", str(tmp_path / "absent.toml"))
    done = irmapdb("ps")
    assert (done.code, done.out) == (1, "")
    assert f"{tmp_path}/absent.toml: no such file; " in done.err
    assert "IRMAPDB_CONFIG" in done.err
    (tmp_path / "other.toml").touch()
    assert irmapdb("ps", "--config", "other.toml").code == 0
    monkeypatch.setenv("IRMAPDB_CONFIG", "")
    assert irmapdb("ps").code == 0


def test_help_names_both() -> None:
    told = irmapdb("pre-dump", "--help").out
    assert "IRMAPDB_DB" in told
    assert "IRMAPDB_CONFIG" in told
