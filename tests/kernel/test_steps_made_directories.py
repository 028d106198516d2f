"""The steps make a missing `-D` or `-W`, and no other directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from irmapdb.checkpoint import work_dir
from irmapdb.checkpoint.work_dir import made_directory
from irmapdb.errors import FileError
from tests.support.cli import irmapdb
from tests.support.features import require_root
from tests.support.watcher import Watcher

pytestmark = pytest.mark.kernel


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("command", ["pre-dump", "dump", "hook"])
def test_missing_directories_are_made_for_root_alone(tmp_path: Path, command: str) -> None:
    require_root()
    (tmp_path / "watched").touch()
    images, work = tmp_path / "img", tmp_path / "img" / "work"
    before = os.umask(0)
    try:
        with Watcher() as watcher:
            watcher.add_inotify(tmp_path / "watched")
            done = irmapdb(command, "-t", str(watcher.pid), "-D", images, "-W", work)
    finally:
        os.umask(before)
        os.chdir("/")
    assert (done.code, done.err) == (0, "")
    assert (_mode(images), _mode(work)) == (0o700, 0o700)
    assert (work / "irmap-cache").exists()
    assert (images / "inotify.img").exists() == (command == "dump")


@pytest.mark.parametrize("command", ["pre-dump", "dump"])
@pytest.mark.parametrize("wrong", ["-t 4194304", "-t PID --config absent", "-t PID -W absent/work"])
def test_a_step_that_fails_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, wrong: str
) -> None:
    require_root()
    monkeypatch.chdir(tmp_path)
    with Watcher() as watcher:
        done = irmapdb(command, *wrong.replace("PID", str(watcher.pid)).split(), "-D", "img")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert not list(tmp_path.iterdir())


def test_no_parent_is_made(tmp_path: Path) -> None:
    require_root()
    with Watcher() as watcher:
        done = irmapdb("pre-dump", "-t", str(watcher.pid), "-D", tmp_path / "a" / "b")
    assert done.err == (
        f"irmapdb: {tmp_path}/a/b: no such directory; make it, or name another one with -D\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_log_of_a_step_that_failed_stays(tmp_path: Path) -> None:
    done = irmapdb("pre-dump", "-t", "4194304", "-D", tmp_path / "img", "-o", "log")
    assert done.code == 1
    assert os.listdir(tmp_path / "img") == ["log"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_file_with_the_name_of_the_directory_stays(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "img"
    if kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.touch()
    done = irmapdb("pre-dump", "-t", str(os.getpid()), "-D", place)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"{place}: " in done.err
    assert os.listdir(tmp_path) == ["img"]


def test_a_link_of_a_tenant_is_not_followed(tmp_path: Path) -> None:
    require_root()
    tenants, ours = tmp_path / "tenant", tmp_path / "ours"
    tenants.mkdir()
    ours.mkdir()
    os.chown(tenants, 12345, 12345)
    (tenants / "link").symlink_to(ours)
    done = irmapdb("pre-dump", "-t", str(os.getpid()), "-D", tenants / "link" / "img")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "leads through a symbolic link of uid 12345" in done.err
    assert not list(ours.iterdir())


def test_the_directory_is_made_in_the_parent_that_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tenant puts a link in the place of the parent, after it was looked at.
    parent, ours = tmp_path / "parent", tmp_path / "ours"
    parent.mkdir()
    ours.mkdir()
    mkdir = os.mkdir

    def swap_first(*arguments: object, **named: object) -> None:
        parent.rename(tmp_path / "moved")
        parent.symlink_to(ours)
        mkdir(*arguments, **named)

    monkeypatch.setattr(work_dir.os, "mkdir", swap_first)
    with made_directory(parent / "img"):
        assert (tmp_path / "moved" / "img").is_dir()
    assert not list(ours.iterdir())


def test_one_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    name = "x" * 300
    with (
        pytest.raises(FileError, match="x: cannot be made: File name too long"),
        made_directory(tmp_path / name),
    ):
        pass
