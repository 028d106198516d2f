"""A file of /proc that is kept open shows the present state of the same task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from irmapdb.kernel.proc import fdinfo, fdinfo_files
from irmapdb.kernel.proc.fdinfo_files import FdinfoFiles
from irmapdb.model import WatchKind
from tests.support.kernel_paths import open_descriptors
from tests.support.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANY = 300
INOTIFY = WatchKind.INOTIFY


@pytest.fixture
def texts() -> Iterator[FdinfoFiles]:
    before = open_descriptors()
    with FdinfoFiles() as found:
        yield found
    assert open_descriptors() == before


def watch_many(watcher: Watcher, top: Path, fd: int) -> None:
    for number in range(MANY):
        (top / f"f{number}").touch()
        watcher.add_inotify(top / f"f{number}", fd=fd)


def test_it_is_read_as_it_is_now(watcher: Watcher, tmp_path: Path, texts: FdinfoFiles) -> None:
    fd, small = watcher.inotify(), watcher.inotify()
    watch_many(watcher, tmp_path, fd)
    kept = len(open_descriptors())
    for look in range(3):
        raw = texts.read(watcher.pid, fd, INOTIFY)
        assert raw == fdinfo.read_raw(watcher.pid, fd, INOTIFY)
        assert raw is not None
        assert len(raw.parse().watches) == MANY + look
        assert texts.read(watcher.pid, small, INOTIFY) == fdinfo.read_raw(
            watcher.pid, small, INOTIFY
        )
        (tmp_path / f"more{look}").touch()
        watcher.add_inotify(tmp_path / f"more{look}", fd=fd)
    assert len(open_descriptors()) == kept + 1, "the large one alone"


def test_a_descriptor_that_was_closed(watcher: Watcher, tmp_path: Path, texts: FdinfoFiles) -> None:
    fd = watcher.inotify()
    watch_many(watcher, tmp_path, fd)
    assert texts.read(watcher.pid, fd, INOTIFY) is not None
    watcher.close_fd(fd)
    assert texts.read(watcher.pid, fd, INOTIFY) is None
    again = watcher.inotify()
    assert again == fd
    watcher.add_inotify(tmp_path, fd=fd)
    raw = texts.read(watcher.pid, fd, INOTIFY)
    assert raw is not None
    assert len(raw.parse().watches) == 1


def test_a_number_that_was_given_to_another_description(
    watcher: Watcher, tmp_path: Path, texts: FdinfoFiles
) -> None:
    fd = watcher.inotify()
    watch_many(watcher, tmp_path, fd)
    assert texts.read(watcher.pid, fd, INOTIFY) is not None
    watcher.close_fd(fd)
    assert watcher.inotify() == fd
    watcher.add_inotify(tmp_path, fd=fd)
    raw = texts.read(watcher.pid, fd, INOTIFY)
    assert raw is not None
    assert len(raw.parse().watches) == 1


def test_a_task_that_has_ended(tmp_path: Path, texts: FdinfoFiles) -> None:
    with Watcher() as watcher:
        fd = watcher.inotify()
        watch_many(watcher, tmp_path, fd)
        assert texts.read(watcher.pid, fd, INOTIFY) is not None
    assert texts.read(watcher.pid, fd, INOTIFY) is None


def test_no_more_are_kept_open_than_is_good(
    watcher: Watcher, tmp_path: Path, texts: FdinfoFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fdinfo_files, "_MOST_OPEN", 2)
    fds = [watcher.inotify() for _ in range(4)]
    for fd in fds:
        watch_many(watcher, tmp_path, fd)
    before = len(open_descriptors())
    for _ in range(2):
        for fd in fds:
            raw = texts.read(watcher.pid, fd, INOTIFY)
            assert raw is not None
            assert len(raw.parse().watches) == MANY
    assert len(open_descriptors()) == before + 2
