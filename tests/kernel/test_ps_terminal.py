"""ps at a terminal and in a pipe: tables in 80 columns, and --watch."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import tty
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from irmapdb.commands.layout import cut, text_width
from irmapdb.model import printable
from tests.support.terminal import at_terminal
from tests.support.watching import program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.watcher import Watcher

_PATIENCE_S = 60
_EVIL = b"\x1b[2Jx\n\r\xe9\x95" + "\x95\x7f\u202e\u65e5\\".encode()


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("\u65e5\u65e5", 4, "\u65e5\u65e5"),
        ("\u65e5\u65e5\u65e5", 4, "\u65e5…"),
        ("\u65e5\u65e5", 3, "\u65e5…"),
        ("", 3, ""),
        ("abc", 1, "…"),
        ("e\u0301" * 3, 3, "e\u0301" * 3),
    ],
)
def test_a_text_is_cut_to_a_width(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown
    assert text_width(cut(text, width)) <= width


_SHOWN = (
    (),
    ("--by", "user"),
    ("--by", "container"),
    ("--by", "unit"),
    ("--by", "directory", "--depth", "20"),
    ("--top", "1"),
)


@pytest.mark.parametrize("words", _SHOWN, ids=" ".join)
def test_80_columns_are_enough(tmp_path: Path, words: tuple[str, ...]) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    code = (
        "inotify(*sys.argv[1:3])\n"
        "fd = libc.fanotify_init(0, 0)\n"
        "mask, path = ctypes.c_uint64(2), os.fsencode(sys.argv[1])\n"
        "assert libc.fanotify_mark(fd, 1, mask, -100, path) == 0\n"
    )
    environment = {"COLUMNS": "80", "NO_COLOR": "1"}
    with program(code, deep, tmp_path, "long" * 100, "\u65e5" * 50) as one:
        exit_code, said = at_terminal("ps", *words, cwd=tmp_path, environment=environment)
        assert exit_code == 0
        lines = said.decode().splitlines()
        assert max(map(text_width, lines)) <= 80
        assert {"INOTIFY", "FANOTIFY", "LIMITS"} <= set(lines)
        if not words:
            (row, _) = (line for line in lines if line.split()[:1] == [str(one.pid)])
            assert row.endswith("…"), "one line for each process"
            assert re.match(rf" *{one.pid}  root +1 +2  ", row)


def test_a_process_and_its_directory_cannot_move_the_cursor(tmp_path: Path) -> None:
    directory = os.path.join(os.fsencode(tmp_path), _EVIL)
    os.mkdir(directory)
    code = "inotify(os.fsencode(sys.argv[1])); libc.prctl(15, b'\\x1b[31m\\n')"
    with program(code, directory) as one:
        for words in (
            *_SHOWN,
            ("-t", str(one.pid)),
            (str(one.pid),),
            ("-t", str(one.pid), "--by", "directory", "--depth", "99"),
            ("--json",),
        ):
            exit_code, said = at_terminal("ps", *words, cwd=tmp_path)
            assert exit_code == 0
            assert all(line.isprintable() for line in said.decode().split("\n")), words
        _, said = at_terminal("ps", cwd=tmp_path)
        assert printable(directory).encode() in said
    os.rmdir(directory)


# --- --watch --------------------------------------------------------------------------------------


@contextmanager
def _started(*words: str, out: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "irmapdb", "ps", "--watch", "--interval", "0.1", *words]
    environment = {**os.environ, "COLUMNS": "100", "LINES": "12"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=environment
    ) as task:
        try:
            yield task
        finally:
            task.kill()


def _read_until(fd: int, text: bytes, number: int) -> bytes:
    said, until_s = b"", time.monotonic() + _PATIENCE_S
    while said.count(text) < number:
        assert select.select([fd], [], [], max(0.0, until_s - time.monotonic()))[0], said
        said += os.read(fd, 65536)
    return said


def _interrupted(task: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    task.send_signal(signal.SIGINT)
    return task.wait(_PATIENCE_S), _errors(task)


def _errors(task: subprocess.Popen[bytes]) -> bytes:
    # Without the remark about hidden processes, which is printed once.
    remark = rb"\d+ process(es)? could not be read .*\n"
    return re.sub(remark, b"", task.stderr.read(), count=1)


def test_in_a_pipe_one_list_follows_the_other(watcher: Watcher, tmp_path: Path) -> None:
    watcher.add_inotify(tmp_path)
    with _started("-t", str(watcher.pid), out=subprocess.PIPE) as task:
        said = _read_until(task.stdout.fileno(), b"INOTIFY\n", 2)
        watcher.add_inotify("/")
        _read_until(task.stdout.fileno(), b"\n  /\n" if b"\n  /\n" in said else b"LIMITS", 3)
        assert _interrupted(task) == (0, b"")
    assert b"\x1b" not in said
    assert len(re.findall(rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$", said, re.MULTILINE)) >= 2


def test_a_new_watch_is_in_the_next_document(watcher: Watcher, tmp_path: Path) -> None:
    watcher.add_inotify(tmp_path)
    with _started("-t", str(watcher.pid), "--json", out=subprocess.PIPE) as task:
        decoder, rest, seen = json.JSONDecoder(), "", []
        while [document["totals"]["watches"] for document in seen[-1:]] != [2]:
            rest += _read_until(task.stdout.fileno(), b"\n}\n", 1).decode()
            while "\n}\n" in rest:
                document, end = decoder.raw_decode(rest)
                seen.append(document)
                rest = rest[end:].lstrip()
            if len(seen) == 1:
                watcher.add_inotify("/")
            assert len(seen) < 100
        assert _interrupted(task) == (0, b"")
    assert seen[0]["totals"]["watches"] == 1
    assert seen[0]["at"] < seen[-1]["at"]


def test_at_a_terminal_the_screen_is_drawn_again(watcher: Watcher, tmp_path: Path) -> None:
    for _ in range(20):
        watcher.add_inotify(tmp_path, fd=watcher.inotify())
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with _started("-t", str(watcher.pid), out=theirs) as task:
        os.close(theirs)
        said = _read_until(ours, b"\x1b[J", 3)
        code, errors = _interrupted(task)
    os.close(ours)
    assert (code, errors) == (0, b"")
    assert said.startswith(b"\x1b[2J\x1b[H")
    assert said.count(b"\x1b[2J") == 1, "it does not flicker"
    for picture in said.split(b"\x1b[H")[1:3]:
        lines = picture.decode().split("\n")
        assert len(lines) <= 12, "no line is scrolled away"
        assert all(line.endswith("\x1b[K") for line in lines[:-1])
        assert lines[-1] == "\x1b[J"
        assert "LIMITS\x1b[K" in lines
        assert all(line.removesuffix("\x1b[K").isprintable() for line in lines[:-1])


def test_a_reader_that_leaves_ends_it(watcher: Watcher, tmp_path: Path) -> None:
    watcher.add_inotify(tmp_path)
    with _started(out=subprocess.PIPE) as task:
        _read_until(task.stdout.fileno(), b"LIMITS", 1)
        task.stdout.close()
        assert task.wait(_PATIENCE_S) == 1
        assert _errors(task) == b""


def test_a_tree_that_ends_ends_it(watcher: Watcher, tmp_path: Path) -> None:
    watcher.add_inotify(tmp_path)
    with _started("-t", str(watcher.pid), out=subprocess.PIPE) as task:
        _read_until(task.stdout.fileno(), b"LIMITS", 1)
        watcher.kill()
        task.stdout.read()
        assert task.wait(_PATIENCE_S) == 1
        assert f"task {watcher.pid} ".encode() in task.stderr.read()


def test_refreshes_take_no_more_memory(watcher: Watcher, tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(3000)]
    for path in paths:
        path.touch()
    watcher.add_many(paths)
    with _started("--json", "--interval", "0.01", out=subprocess.PIPE) as task:

        def resident_kib() -> int:
            status = Path(f"/proc/{task.pid}/status").read_text()
            return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

        _read_until(task.stdout.fileno(), b"\n}\n", 3)
        before = resident_kib()
        files = len(os.listdir(f"/proc/{task.pid}/fd"))
        _read_until(task.stdout.fileno(), b"\n}\n", 12)
        assert resident_kib() < before + 4096
        assert len(os.listdir(f"/proc/{task.pid}/fd")) <= files + 2
        assert _interrupted(task) == (0, b"")
