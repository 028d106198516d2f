"""Completion, asked for by a Tab in bash, zsh and fish, on a terminal."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from irmapdb.commands import completion
from irmapdb.commands.audit import VERDICTS
from irmapdb.image import cache
from irmapdb.model import CacheEntry
from tests.support.cli import irmapdb
from tests.support.features import require_program, require_root
from tests.support.hostile import give_away

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path(__file__).parent.parent

_SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source ./script"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u -D; source ./script"),
    "fish": (["fish", "--no-config", "-i"], "source ./script"),
}
_STUB = """#!/bin/sh
if test -n "$_IRMAPDB_COMPLETE"; then
    PYTHONPATH={root} {python} -m irmapdb "$@"
    : >{asked}
    exit
fi
exec {python} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>{record}
"""
_PATIENCE_S = 120


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a database, an image, and an `irmapdb` that writes down its arguments."""
    entries = [CacheEntry(254 << 20, 739, b"/srv/with space"), CacheEntry(254 << 20, 740, b"/etc")]
    (tmp_path / "irmap-cache").write_bytes(cache.encode_cache(entries))
    (tmp_path / "images").mkdir()
    assert irmapdb("import", tmp_path / "irmap-cache", "-W", tmp_path).code == 0
    stub = tmp_path / "bin" / "irmapdb"
    stub.parent.mkdir()
    stub.write_text(
        _STUB.format(
            root=_ROOT,
            python=sys.executable,
            asked=tmp_path / "asked",
            record=tmp_path / "record",
        )
    )
    stub.chmod(0o755)
    return tmp_path


LINES = {
    "pre": ["pre-dump"],
    "pre-dump --irm": ["pre-dump", "--irmap-scan-path"],
    "db upg": ["db", "upgrade"],
    "sql unp": ["sql", "unproved"],
    "sql --to x cop": ["sql", "--to", "x", "copies"],
    "sql unproved -p da": ["sql", "unproved", "-p", "days="],
    "sql changes -p runs=": ["sql", "changes", "-p", "runs=1"],
    "audit --only unm": ["audit", "--only", "unmounted"],
    "audit --dev 25": ["audit", "--dev", "254:0"],
    "audit --dev 254:": ["audit", "--dev", "254:0"],
    "audit --dev=254:": ["audit", "--dev=254:0"],
    "lookup fe00000:2e3": ["lookup", "fe00000:2e3"],
    "lookup fe00000:2e4": ["lookup", "fe00000:2e4"],
    "lookup /srv/wi": ["lookup", "/srv/with space"],
    "prune --keep-runs ": ["prune", "--keep-runs", "1"],
    "hook --install cru": ["hook", "--install", "crun"],
    "convert a b --to js": ["convert", "a", "b", "--to", "json"],
    "show irmap-c": ["show", "irmap-cache"],
    "dif": ["diff"],
    "diff irmap-c": ["diff", "irmap-cache"],
    "check --images irmap-c": ["check", "--images", "irmap-cache"],
    "pre-dump -D ima": ["pre-dump", "-D", "images"],
    "ps --by con": ["ps", "--by", "container"],
    "ps --sort ins": ["ps", "--sort", "instances"],
    "explain --engine pod": ["explain", "--engine", "podman"],
    "check --criu-version 4.3": ["check", "--criu-version", "4.3"],
}
"""The text before a Tab and Enter, and the arguments that irmapdb gets."""


class _Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, shell: str, place: Path) -> None:
        require_program(shell)
        program, setup = _SHELLS[shell]
        (place / "script").write_text(completion.script(shell))
        self._record = place / "record"
        self._asked = place / "asked"
        environment = {
            "HOME": str(place),
            "PATH": f"{place / 'bin'}:/usr/bin:/bin",
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }
        self._pid, self._fd = pty.fork()
        if not self._pid:  # the shell
            os.chdir(place)
            os.execvpe(program[0], program, environment)
        self._said = b""
        os.write(self._fd, f"{setup}; echo is''ready\r".encode())
        self._await(lambda: b"isready" in self._said)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._fd)

    def type(self, line: str) -> list[str]:
        """The arguments that irmapdb gets after a Tab at the end of the line, and Enter."""
        for file in (self._record, self._asked):
            file.unlink(missing_ok=True)
        os.write(self._fd, f"irmapdb {line}\t".encode())
        self._await(self._asked.exists)
        self._drain(0.3)  # the completion is put into the line
        os.write(self._fd, b"\r")
        self._await(lambda: self._record.exists() and self._record.read_text().endswith("\n"))
        # zsh takes the slash of a directory away again at the end of the line.
        return [word.rstrip("/") for word in json.loads(self._record.read_text())]

    def _await(self, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + _PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, "the shell does not answer"
            self._drain(0.05)

    def _drain(self, quiet_s: float) -> None:
        # The shell waits if its output is not read.
        while select.select([self._fd], [], [], quiet_s)[0]:
            self._said += os.read(self._fd, 1 << 16)


@pytest.mark.parametrize("shell", list(_SHELLS))
def test_a_tab(shell: str, place: Path) -> None:
    with _Terminal(shell, place) as terminal:
        got = {line: terminal.type(line) for line in LINES}
    assert got == LINES


@pytest.mark.parametrize("shell", list(_SHELLS))
@pytest.mark.parametrize(
    "names", [(b"/t/$(touch owned)=",), (b"/t/$(touch owned)/a", b"/t/$(touch owned)/b")]
)
def test_a_name_is_never_a_command(shell: str, names: tuple[bytes, ...], place: Path) -> None:
    entries = [CacheEntry(254 << 20, 800 + ino, name) for ino, name in enumerate(names)]
    (place / "hostile").write_bytes(cache.encode_cache(entries))
    assert irmapdb("import", place / "hostile", "-W", place).code == 0
    with _Terminal(shell, place) as terminal:
        (*_, word) = terminal.type("lookup /t/")
    assert not (place / "owned").exists()
    assert os.fsencode(word)[:6] in {b"/t", b"/t/$(t"}


def _proposed(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, str]:
    monkeypatch.setenv("_IRMAPDB_COMPLETE", "fish")
    done = irmapdb(*words)
    assert (done.code, done.err) == (0, "")
    assert logging.root.manager.disable == logging.NOTSET
    return dict(line.partition("\t")[::2] for line in done.out.splitlines())


def test_tasks_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _proposed(monkeypatch, "pre-dump", "-t", str(os.getpid()))
    assert found[str(os.getpid())] == Path("/proc/self/comm").read_text().strip()
    assert "2" not in _proposed(monkeypatch, "dump", "--tree", ""), "no kernel thread"


def test_a_given_option_is_not_proposed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("audit", "--older-than", "2h", "--only", "gone", "--")
    found = _proposed(monkeypatch, *words)
    assert "--older-than" not in found
    assert found["--only"], "it may be repeated, and has a description"


def test_an_option_takes_its_value_from_the_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _proposed(monkeypatch, "audit", "--dev", "") == {}, "no database here"
    for named in (("-W", str(place)), ("--db", f"{place}/irmap.db"), (f"--work-dir={place}",)):
        found = _proposed(monkeypatch, "audit", *named, "--dev", "")
        assert found == {"254:0": "2 mappings"}


def test_a_large_database_of_another_user_is_not_copied_for_a_tab(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root()
    home = place / "home"
    home.mkdir(mode=0o755)
    shutil.copy(place / "irmap.db", home)
    give_away(home)
    words = ("audit", "-W", str(home), "--dev", "")
    assert _proposed(monkeypatch, *words) == {"254:0": "2 mappings"}
    os.truncate(home / "irmap.db", completion._COPY_LIMIT_BYTES + 4096)
    assert _proposed(monkeypatch, *words) == {}
    (place / "irmap.db").replace(place / "small")
    shutil.copy(home / "irmap.db", place)
    words = ("audit", "-W", str(place), "--dev", "")
    assert _proposed(monkeypatch, *words) == {"254:0": "2 mappings"}, "no copy is needed"


def test_a_file_that_is_no_database_proposes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "irmap.db").write_bytes(b"SQLite format 3\0" + bytes(4000))
    assert _proposed(monkeypatch, "lookup", "-W", str(tmp_path), "/") == {}


def test_a_name_that_breaks_a_line_is_not_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        CacheEntry(1, 2, b"/a\nb"),
        CacheEntry(1, 3, b"/\x1b[2J"),
        CacheEntry(1, 4, b"/plain"),
    ]
    (tmp_path / "image").write_bytes(cache.encode_cache(entries))
    irmapdb("import", tmp_path / "image", "-W", tmp_path)
    assert list(_proposed(monkeypatch, "lookup", "-W", str(tmp_path), "/")) == ["/plain"]


@pytest.mark.parametrize(
    "words", [(), ("",), ("nonsense", ""), ("--", ""), ("pre-dump", "--x", "")]
)
def test_an_odd_line_is_no_error(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    _proposed(monkeypatch, *words)


@pytest.mark.parametrize("shell", list(_SHELLS))
def test_the_script_is_printed(shell: str) -> None:
    assert irmapdb("--show-completion", shell) == (0, completion.script(shell), "")


def test_every_saved_query_and_verdict_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {
        one["name"]: one["about"] for one in json.loads(irmapdb("sql", "--list", "--json").out)
    }
    assert _proposed(monkeypatch, "sql", "") == saved
    assert set(_proposed(monkeypatch, "audit", "--only", "")) == set(VERDICTS)
