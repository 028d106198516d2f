"""The log file, as CRIU's -o has it."""

import os
import subprocess
import sys

import pytest

from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.filesystems import tmpfs


@pytest.fixture
def log(tmp_path):
    def end(name="run.log", *more):
        (tmp_path / "fifo").exists() or os.mkfifo(tmp_path / "fifo")
        return irmapdb("pre-dump", "-t", str(os.getpid()), "-D", tmp_path, "-o", name, *more)

    return end


def test_the_log_says_why_a_run_failed(tmp_path):
    done = irmapdb("pre-dump", "-t", "1999999999", "-D", tmp_path, "-o", "run.log")
    assert done.code == 1
    said = done.err.removeprefix("irmapdb: ").strip()
    assert f"Error: {said}" in (tmp_path / "run.log").read_text()


def test_causes_are_told_where_they_are_asked_for(tmp_path):
    (tmp_path / "irmap-cache").mkdir()
    quiet = irmapdb("show", tmp_path / "absent", "-W", tmp_path)
    assert "because of" not in quiet.err
    words = ("pre-dump", "-t", str(os.getpid()), "-D", str(tmp_path), "--config", "/absent/x")
    assert "because of" not in irmapdb(*words).err
    bad = tmp_path / "bad.toml"
    bad.write_text("[scan\n")
    told = irmapdb(*words[:-1], bad, "-v")
    assert "because of TOMLDecodeError" in told.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("irmap.db", "destroy what irmapdb keeps"),
        ("irmap.db-wal", "destroy what irmapdb keeps"),
        ("irmap-cache", "destroy what irmapdb keeps"),
        ("inotify.img", "destroy what irmapdb keeps"),
        ("fifo", "No such device"),
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


def test_a_fifo_that_is_read_is_no_log_either(log, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert "neither a regular file nor a terminal" in log("fifo").err
    finally:
        os.close(reader)


def test_nowhere_is_a_place_for_a_log(log):
    assert log("/dev/null").code == 0


def test_a_disk_that_is_full_under_the_log_is_told_once(tmp_path):
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
    assert done.stderr.count("the log ends here") == 1
    assert "Traceback" not in done.stderr
