"""Names that a tenant chose, in the output: no crash, no broken line, no moved cursor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from irmapdb.model import printable
from tests.support.area import MountArea
from tests.support.cli import irmapdb
from tests.support.programs import run
from tests.support.watcher import Watcher

_EVIL = b"\xff\n\x1b[31mRED"


def _is_tame(text: str) -> bool:
    return all(line.isprintable() for line in text.splitlines())


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    with Watcher() as made:
        yield made


@pytest.fixture
def evil(area: MountArea) -> Iterator[bytes]:
    """A mount point; its mount is removed before the area is."""
    path = os.path.join(os.fsencode(area.path), _EVIL)
    os.mkdir(path)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def hidden(area: MountArea, watcher: Watcher, evil: bytes) -> None:
    """A watched file below a mount; its filesystem is also at a mount point with a hostile name."""
    top = area.path / "top"
    top.mkdir()
    run("mount", "-t", "tmpfs", "none", top)
    (top / "below").mkdir()
    (top / "file").touch()
    watcher.add_inotify(top / "file")
    subprocess.run(["mount", "--bind", top / "below", evil], check=True)
    run("umount", "-l", top)


def test_a_mount_point_with_a_hostile_name_harms_no_command(
    hidden: None, watcher: Watcher, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    good.touch()
    watcher.add_inotify(good)
    for form in ((), ("--json",)):
        done = irmapdb("pre-dump", "-t", str(watcher.pid), "-D", tmp_path, *form)
        assert done.code == 3, done.said
        assert _is_tame(done.said)
    assert os.fsencode(good) in (tmp_path / "irmap-cache").read_bytes()
    asked = irmapdb("sql", "unresolved", "-W", tmp_path)
    assert "RED" in asked.out
    assert _is_tame(asked.out)


def test_a_mark_on_a_mount_with_a_hostile_name(
    evil: bytes, watcher: Watcher, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", evil], check=True)
    watcher.add_fanotify(evil, what="mount")
    done = irmapdb("pre-dump", "-t", str(watcher.pid), "-D", tmp_path)
    assert done.code == 0, done.said
    assert printable(evil) in done.out
    assert _is_tame(done.said)
    told = irmapdb("pre-dump", "-t", str(watcher.pid), "-D", tmp_path, "--json")
    assert [os.fsencode(mark["target"]) for mark in json.loads(told.out)["marks"]] == [evil]


def test_a_task_with_a_hostile_name(tmp_path: Path) -> None:
    named = r"import ctypes; ctypes.CDLL(None).prctl(15, b'z\n\x1b[31m\xff')"  # PR_SET_NAME
    with subprocess.Popen([sys.executable, "-c", named]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        done = irmapdb("pre-dump", "-t", str(zombie.pid), "-D", tmp_path)
    assert done.code == 1
    assert _is_tame(done.err)
    assert done.err.count("\n") == 1


def test_a_replaced_file_with_a_hostile_name(watcher: Watcher, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    path = os.path.join(os.fsencode(tmp_path), b"f" + _EVIL)
    for name in (path, os.path.join(os.fsencode(tmp_path), b"other")):
        with open(name, "wb"):
            pass
    watcher.add_inotify(path)
    watcher.open(path)  # or the watch would go with the file
    first = irmapdb("pre-dump", "-t", str(watcher.pid), "-D", work)
    os.rename(os.path.join(os.fsencode(tmp_path), b"other"), path)
    then = irmapdb("pre-dump", "-t", str(watcher.pid), "-D", work, "-vvvv")
    assert first.code == 0
    assert _is_tame(first.said + then.said)
    assert f"not {printable(path)}, as stored has it" in then.err, then.err
