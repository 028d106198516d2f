"""Files that the user names: standard input, pipes of the shell, and files that could wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb import scratch
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.whole_archive import FORMS, whole, write

_CACHE = Path(__file__).parent / "data/images/swap-before.irmap-cache"
_LOG = b"""\
(00.000001) Version: 4.1.1 (gitid 0)
(00.000002) Dumping processes (pid: 7 comm: web)
(00.000003) Error (criu/tty.c:1): tty: Found dangling tty
(00.000004) Error (criu/cr-dump.c:1): Dumping FAILED.
"""
_PIPES = {
    "-": "cat {file} | {program} {words}",
    "/dev/stdin": "cat {file} | {program} {words}",
    "<(…)": "{program} {words}",
    "a regular stdin": "{program} {words} < {file}",
}
_COMMANDS = {
    "show": "show {input} --json",
    "check": "check --images {input} --json",
    "convert": "convert {input} - --to json",
    "diff": "diff {input} {file} --json",
    "explain": "explain {input} --offline --json",
    "sql": "sql -f {input} --db {database} --json",
}


def _file_for(command: str, tmp_path: Path) -> Path:
    if command == "explain":
        (tmp_path / "file").write_bytes(_LOG)
    elif command == "sql":
        assert irmapdb("import", _CACHE, "--db", tmp_path / "irmap.db").code == 0
        (tmp_path / "file").write_text("SELECT path FROM mapping ORDER BY path")
    elif command == "convert":
        (tmp_path / "file").write_bytes(_CACHE.read_bytes())
    else:
        write(tmp_path / "file", whole("podman"), "zstd")
    return tmp_path / "file"


def _shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("pipe", _PIPES)
@pytest.mark.parametrize("command", _COMMANDS)
def test_a_pipe_gives_the_same_as_the_file(command: str, pipe: str, tmp_path: Path) -> None:
    file = _file_for(command, tmp_path)

    def words(name: str) -> str:
        return _COMMANDS[command].format(input=name, file=file, database=tmp_path / "irmap.db")

    name = {"<(…)": f"<(cat {file})", "a regular stdin": "-"}.get(pipe, pipe)
    program = f"{sys.executable} -m irmapdb"
    piped = _shell(_PIPES[pipe].format(file=file, program=program, words=words(name)))
    named = _shell(f"{program} {words(str(file))}")
    assert piped.returncode == named.returncode
    assert piped.returncode in {0, 3}
    assert _without_names(json.loads(piped.stdout)) == _without_names(json.loads(named.stdout))


def _without_names(document: object) -> object:
    # The name of the input, and the directory of the log, differ.
    if isinstance(document, dict):
        for key in ("checkpoint", "image", "log", "before", "after"):
            document.pop(key, None)
    return document


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_that_is_read_twice_comes_from_a_pipe(form: str, tmp_path: Path) -> None:
    # An archive inside that is not small is looked for in a second pass.
    files = whole("podman")
    big = {f"checkpoint/pages-{number}.img": os.urandom(1 << 20) for number in range(20)}
    archive = write(tmp_path / "a", {**big, **files}, form)
    piped = irmapdb("show", "-", "--json", stdin=archive.read_bytes())
    assert piped.code == 0, piped.err
    named = irmapdb("show", archive, "--json").out
    assert _without_names(json.loads(piped.out)) == _without_names(json.loads(named))


def test_a_stream_that_is_larger_than_the_free_space_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "SPOOL_LIMIT_BYTES", 1000)
    done = irmapdb("check", "--images", "-", stdin=b"\0" * 1001)
    assert done.code == 1
    assert "/dev/stdin: more than 1,000 bytes, so not kept in /var/tmp" in done.err
    assert "save it to a file, and name the file" in done.err
    assert done.err.count("\n") == 1


_READERS = (
    ["show", "FILE"],
    ["check", "--images", "FILE"],
    ["import", "FILE", "--db", "new.db"],
    ["convert", "FILE", "new"],
    ["diff", "FILE", "FILE"],
    ["explain", "FILE", "--offline"],
    ["sql", "-f", "FILE"],
    ["ps", "--config", "FILE"],
    ["warm", "--once", "--config", "FILE", "--run-dir", "run"],
    ["metrics", "--config", "FILE"],
    ["hook", "--install", "runc", "--criu-dir", "DIR", "--script", "DIR/hook"],
)
"""Commands with the name of a file that they read. No link to a database is followed."""
_WAITING = ("/proc/kmsg", "/dev/zero", "fifo")


@pytest.mark.parametrize("target", _WAITING)
@pytest.mark.parametrize("words", _READERS, ids=lambda words: " ".join(words[:2]))
def test_a_link_to_a_file_that_waits_is_one_line(
    words: list[str], target: str, tmp_path: Path
) -> None:
    require_root()
    os.mkfifo(tmp_path / "fifo")
    place = tmp_path / "place"
    place.mkdir()
    link = place / ("runc.conf" if words[0] == "hook" else "link")
    link.symlink_to(tmp_path / target)
    named = {"FILE": str(link), "DIR": str(place)}
    arguments = [named.get(word, word.replace("DIR", str(place))) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "irmapdb", *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in {1, 2}, done
    assert done.stderr.count("\n") == 1
    assert str(link) in done.stderr
    assert ("the kernel makes its content" in done.stderr) == (target == "/proc/kmsg")


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "empty is an empty file" in irmapdb("show", tmp_path / "empty").err
    assert "the log is empty" in irmapdb("explain", tmp_path / "empty").err


def test_a_descriptor_that_is_not_open_is_one_line(tmp_path: Path) -> None:
    for number in ("999", "999999999"):
        for words in (["show"], ["explain"], ["check", "--images"]):
            done = irmapdb(*words, f"/dev/fd/{number}")
            assert done.code == 1
            assert f"cannot read /dev/fd/{number}: no such descriptor" in done.err


@pytest.mark.parametrize("command", ["explain {} --offline", "sql -f {}", "show {}"])
@pytest.mark.parametrize("kind", ["directory", "write-only", "nothing yet"])
def test_a_descriptor_that_cannot_be_read_is_named(kind: str, command: str, tmp_path: Path) -> None:
    readable, writable = os.pipe2(os.O_NONBLOCK)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fd = {"directory": directory, "write-only": writable, "nothing yet": readable}[kind]
    done = subprocess.run(
        [sys.executable, "-m", "irmapdb", *command.format(f"/dev/fd/{fd}").split()],
        cwd=tmp_path,
        pass_fds=[fd],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    for one in (readable, writable, directory):
        os.close(one)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"/dev/fd/{fd}" in done.stderr
    assert "; " in done.stderr, "the next step"


def test_the_rest_of_a_file_whose_first_lines_were_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a line of the sender\n" + _CACHE.read_bytes())
    program = f"{sys.executable} -m irmapdb show - --json"
    done = _shell(f"(read line; {program}) < {tmp_path}/file")
    assert json.loads(done.stdout) == json.loads(irmapdb("show", _CACHE, "--json").out)
