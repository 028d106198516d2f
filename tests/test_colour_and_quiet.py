"""Verdicts have colour only on a terminal; -q leaves errors and the output for programs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from irmapdb.image import cache
from irmapdb.model import CacheEntry
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.terminal import at_terminal
from tests.support.watcher import Watcher

_GREEN_OR_RED = re.compile(rb"\x1b\[3[12]m(\S+)\x1b\[0m")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "irmap-cache").write_bytes(cache.encode_cache([CacheEntry(1, 2, b"/gone")]))
    assert irmapdb("import", tmp_path / "irmap-cache", "-W", tmp_path).code == 0
    return tmp_path


def _shown(place: Path, *words: str, **environment: str) -> bytes:
    plain = {"NO_COLOR": "", "TERM": "xterm", "COLUMNS": "80"}
    _, said = at_terminal("audit", *words, cwd=place, environment={**plain, **environment})
    return said


def test_a_verdict_has_a_colour_on_a_terminal(place: Path) -> None:
    coloured = _shown(place)
    assert set(_GREEN_OR_RED.findall(coloured)) <= {b"gone", b"valid", b"replaced"}
    assert _GREEN_OR_RED.search(coloured) or b"\x1b[33m" in coloured
    plain = re.sub(rb"\x1b\[\d+m", b"", coloured)
    assert plain == _shown(place, NO_COLOR="1"), "and nothing else changes"


@pytest.mark.parametrize(
    "environment", [{"NO_COLOR": "1"}, {"NO_COLOR": "0"}, {"TERM": "dumb"}], ids=str
)
def test_no_colour_where_none_is_wanted(place: Path, environment: dict[str, str]) -> None:
    assert b"\x1b" not in _shown(place, **environment)


def test_an_option_takes_the_colour_away(place: Path) -> None:
    assert b"\x1b" not in _shown(place, "--no-color")
    assert b"\x1b" in _shown(place)


def test_a_pipe_gets_no_colour(place: Path) -> None:
    for words in (["audit"], ["audit", "--csv"], ["audit", "--evidence"]):
        assert "\x1b" not in irmapdb(*words, "-W", place).out


def test_quiet_steps_say_nothing(tmp_path: Path) -> None:
    require_root()
    (tmp_path / "watched").touch()
    with Watcher() as watcher:
        watcher.add_inotify(tmp_path / "watched")
        pid = str(watcher.pid)
        for words in (
            ("pre-dump", "-t", pid, "-D", tmp_path / "img"),
            ("dump", "-t", pid, "-D", tmp_path / "img"),
            ("audit", "-W", tmp_path / "img", "-t", pid),
            ("prune", "-W", tmp_path / "img"),
            ("export", "-W", tmp_path / "img", tmp_path / "out"),
            ("convert", tmp_path / "out", tmp_path / "out.json"),
            ("db", "upgrade", "-W", tmp_path / "img"),
        ):
            assert irmapdb(*words).said
            assert irmapdb(*words, "-q") == (0, "", ""), words
            assert irmapdb(*words).said, "the next command is not quiet"
        document = irmapdb("audit", "-W", tmp_path / "img", "-t", pid, "--json", "--quiet")
        assert json.loads(document.out)["checked"] == 1


def test_quiet_findings_are_in_the_exit_code(place: Path) -> None:
    assert irmapdb("audit", "-W", place, "-q") == (3, "", "")
    assert irmapdb("audit", "-W", place, "-q", "--csv").out


def test_quiet_prints_errors(tmp_path: Path) -> None:
    for words in (("pre-dump", "-t", "4194304"), ("audit", "-W", tmp_path), ("show", "absent")):
        done = irmapdb(*words, "-q")
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)


def test_quiet_prints_the_requested_output(place: Path) -> None:
    assert "/gone" in irmapdb("show", place / "irmap-cache", "-q").out
    assert irmapdb("show", place / "irmap-cache", "-q").err == ""
    assert irmapdb("sql", "cache", "-W", place, "-q").out
    assert irmapdb("ps", str(os.getpid()), "-q").out  # its exit code says nothing about watches
    done = irmapdb("hook", "--print", "criu", "-q")
    assert done.out
    assert done.err == ""


def test_quiet_prints_no_warnings(place: Path) -> None:
    require_root()
    os.chmod(place, 0o777)
    assert "private copy" in irmapdb("audit", "-W", place).err
    assert irmapdb("audit", "-W", place, "-q").err == ""
    assert "private copy" in irmapdb("lookup", "/gone", "-W", place).err
    assert irmapdb("lookup", "/gone", "-W", place, "-q").err == ""
