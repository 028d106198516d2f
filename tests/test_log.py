"""The log file, as CRIU's -o has it."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irmapdb.commands import log
from irmapdb.errors import FileError
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.filesystems import tmpfs


@pytest.fixture(name="log")
def run_with_log(tmp_path):
    def end(name="run.log", *more):
        (tmp_path / "fifo").exists() or os.mkfifo(tmp_path / "fifo")
        return irmapdb("pre-dump", "-t", str(os.getpid()), "-D", tmp_path, "-o", name, *more)

    return end


def test_the_log_says_why_a_run_failed(tmp_path):
    done = irmapdb("pre-dump", "-t", "1999999999", "-D", tmp_path, "-o", "run.log")
    assert done.code == 1
    said = done.err.removeprefix("irmapdb: ").strip()
    assert f"Error: {said}" in (tmp_path / "run.log").read_text()


def test_causes_are_printed_only_with_v(tmp_path):
    (tmp_path / "irmap-cache").mkdir()
    quiet = irmapdb("show", tmp_path / "absent", "-W", tmp_path)
    assert "because of" not in quiet.err
    words = ("pre-dump", "-t", str(os.getpid()), "-D", str(tmp_path), "--config", "/absent/x")
    assert "because of" not in irmapdb(*words).err
    bad = tmp_path / "bad.toml"
    bad.write_text("[scan\n")
    told = irmapdb(*words[:-1], bad, "-v")
    assert "because of TOMLDecodeError" in told.err
    # A run that ends before its log begins prints no causes, also after one that did.
    assert "because of" not in irmapdb("prune", "/").err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("irmap.db", "destroy what irmapdb keeps"),
        ("irmap.db-wal", "destroy what irmapdb keeps"),
        ("irmap-cache", "destroy what irmapdb keeps"),
        ("inotify.img", "destroy what irmapdb keeps"),
        ("fifo", "is a FIFO or a socket"),
        ("irmap.db.backup-0001", "destroy what irmapdb keeps"),
        ("link", "is a symbolic link"),
        (".", "Is a directory"),
    ],
)
def test_a_log_that_would_do_harm_is_refused(log, tmp_path, name, said):
    (tmp_path / "link").symlink_to("elsewhere")
    done = log(name)
    assert done.code == 1
    assert said in done.err
    assert "name another file with -o" in done.err
    assert not (tmp_path / "irmap.db").exists()


@pytest.mark.parametrize("name", ["own.db", "own.db-wal", "own.db-journal", "../own.toml"])
def test_the_files_of_the_run_are_no_log(tmp_path, name):
    work, config = tmp_path / "work", tmp_path / "own.toml"
    work.mkdir()
    config.write_text("[scan]\n")
    words = ("pre-dump", "-t", str(os.getpid()), "-D", work, "-o", name)
    done = irmapdb(*words, "--db", work / "own.db", "--config", config)
    assert done.code == 1
    assert "destroy what irmapdb keeps" in done.err
    assert config.read_text() == "[scan]\n"
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        ("-t", "1999999999"),
        ("-t", str(os.getpid()), "-D", "absent/deeper"),
        ("-t", str(os.getpid()), "--irmap-scan-path", "/absent"),
        ("-t", str(os.getpid()), "--config", "absent.toml"),
    ],
    ids=["no such task", "no such directory", "no such scan path", "no such configuration"],
)
def test_a_run_that_cannot_begin_only_adds_why(log, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    assert log().code == 0
    good = (tmp_path / "run.log").read_text()
    assert "descriptors that watch" in good
    where = ("-W", tmp_path, "-o", "run.log")
    done = irmapdb("pre-dump", *where, *wrong)
    assert done.code == 1
    both = (tmp_path / "run.log").read_text()
    assert both.startswith(good)
    heading, added = both.removeprefix(good).splitlines(keepends=True)
    assert f", pid {os.getpid()}, " in heading
    assert heading.endswith(f"UTC: {shlex.join(map(str, ('pre-dump', *where, *wrong)))}\n")
    assert done.err.removeprefix("irmapdb: ") == added.partition("Error: ")[2]
    assert log().code == 0
    assert (tmp_path / "run.log").read_text().count("descriptors that watch") == 1
    assert "Error" not in (tmp_path / "run.log").read_text()


def test_a_cause_of_several_lines_stays_on_one(tmp_path):
    (tmp_path / "run.log").touch()
    error = FileError("x", advice="y")
    error.__cause__ = OSError("a\nb")
    log.start_log(1, Path("run.log"), tmp_path, ())
    log.log_end(str(error), error)
    log.close_log()
    _, first, second = (tmp_path / "run.log").read_text().splitlines()
    assert first.endswith("Error: x; y")
    assert second.endswith(r"because of OSError: a\nb")


def test_times_are_seconds_and_microseconds_as_criu_has_them(tmp_path):
    command = [sys.executable, "-m", "irmapdb", "pre-dump", "-t", str(os.getpid())]
    before_s = time.monotonic()
    subprocess.run([*command, "-D", tmp_path, "-o", "run.log"], check=True, capture_output=True)
    took_s = time.monotonic() - before_s
    lines = (tmp_path / "run.log").read_text().splitlines()
    stamps = [re.match(r"\((\d\d\.\d{6})\) ", line) for line in lines]
    assert all(stamps)
    times_s = [float(stamp[1]) for stamp in stamps]
    assert times_s == sorted(times_s)
    assert 0 < times_s[-1] < took_s


def test_stdout_is_no_place_for_a_log(log, tmp_path, monkeypatch):
    # CRIU takes `-o -` for stdout; there we have the result.
    monkeypatch.chdir(tmp_path)
    done = log("-")
    assert (done.code, done.out) == (2, "")
    assert "stderr" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_fifo_that_is_read_is_no_log_either(log, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert "neither a regular file nor a terminal" in log("fifo").err
    finally:
        os.close(reader)


def test_nowhere_is_a_place_for_a_log(log):
    assert log("/dev/null").code == 0


def test_a_full_disk_under_the_log_is_reported_once(tmp_path):
    require_root()
    with tmpfs(tmp_path / "full", size_mib=1) as full:
        fd = os.open(full / "fill", os.O_WRONLY | os.O_CREAT)
        while os.statvfs(full).f_bavail:
            os.write(fd, bytes(4096))
        os.close(fd)
        command = [sys.executable, "-m", "irmapdb", "pre-dump", "-t", str(os.getpid())]
        command += ["-D", tmp_path, "-o", full / "run.log", "-v4"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    said = f"irmapdb: {full}/run.log: the log ends here: No space left on device\n"
    assert done.stderr == said
