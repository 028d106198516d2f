"""A node whose host has no Python: the service finds new watches too; judged by their events."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from irmapdb.config import Config
from irmapdb.node import hook_requests
from irmapdb.node.answer import DONE, NOT_SERVED, Reply, parse_request
from irmapdb.node.rundir import RunDirectory
from tests.support.notify import IN_OPEN
from tests.support.warm import Asked, Warm, write_hook


@pytest.fixture
def hook(tmp_path):
    """The script of a host without the programs of irmapdb."""
    return write_hook(tmp_path, tmp_path / "run", program=tmp_path / "missing")


@pytest.fixture
def data(area, tmp_path):
    """A directory on ext4, where a file whose name is not cached can only be found by a scan."""
    made = area.ext4("data", size_mib=64).mountpoint / "data"
    made.mkdir()
    (made / "deep" / "er").mkdir(parents=True)
    for name in ("old", "deep/er/new"):
        (made / name).write_text(name)
    return made


def make_cold():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")


def stop(warm: Warm):
    """No look comes between; the request is read when it goes on."""
    warm.process.send_signal(signal.SIGSTOP)


def test_the_script_is_told_of_the_search_before_the_first_proof(tmp_path, monkeypatch):
    """Otherwise it would not wait for the proofs of a large container."""
    run = RunDirectory(tmp_path / "run")
    os.mkfifo(run.path / "reply-1-1", 0o600)
    fifo = os.open(run.path / "reply-1-1", os.O_RDWR | os.O_NONBLOCK)
    heard, begun_s = [], []

    def answer(*_):
        heard.append(os.read(fifo, 4096))
        return Reply(NOT_SERVED, "")

    def search(*arguments):
        begun_s.append(arguments[-1])
        return Reply(DONE, "")

    monkeypatch.setattr(hook_requests, "answer", answer)
    monkeypatch.setattr(hook_requests, "search", search)
    monkeypatch.setattr(hook_requests.garbage_collector, "stop", lambda: None)
    state = SimpleNamespace(options=SimpleNamespace(config=Config()), run=run)
    request = parse_request(b"1 search 1 2 3 - reply-1-1")
    before_s = time.monotonic()
    assert hook_requests.HookRequests(state)._answer(request, object()).code == DONE
    os.close(fifo)
    assert heard == [b"3 the service searches\n"]
    assert before_s <= begun_s[0], "the time of the proofs is a part of the search's"


def test_a_watch_that_was_made_right_before_the_hook(node, data, warm, hook, tmp_path):
    container = node.container({data: "/data"})
    old = container.add_inotify("/data/old", IN_OPEN)
    warm.wait_ready(1)
    stop(warm)
    new = container.add_inotify("/data/deep/er/new", IN_OPEN)
    make_cold()
    warm.process.send_signal(signal.SIGCONT)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert asked.code == 0
    assert "the service: 2 watches: 2 proved" in asked.said
    assert sorted(asked.paths) == [b"/data/deep/er/new", b"/data/old"]
    for watched, name in ((old, "old"), (new, "deep/er/new")):
        assert container.hears(watched, (data / name).read_bytes)
    assert not list(warm.run.glob("reply-*"))
    # The database of the service gets it at the next look; the work dir gets no other file.
    assert os.listdir(tmp_path / "work") == ["irmap-cache"]


def test_a_container_that_the_service_has_not_seen_yet(node, tmp_path, hook):
    service = Warm(tmp_path, "--interval", "1000")
    try:
        service.wait_for(lambda _: (service.run / "warm.pid").exists())
        time.sleep(1)  # the first look is over
        container = node.container()
        watched = container.add_inotify("/srv/app/file-0", IN_OPEN)
        asked = Asked.ask(hook, container.pid, tmp_path / "work")
        assert (asked.code, asked.paths) == (0, [b"/srv/app/file-0"]), asked.said
        path = node.roots[container.id] / "srv" / "app" / "file-0"
        assert container.hears(watched, path.read_bytes)
    finally:
        service.end(signal.SIGKILL)


def test_in_a_pause_nothing_of_the_paused_is_waited_for(node, data, warm, hook, tmp_path):
    container = node.container({data: "/data"})
    container.add_inotify("/data/old")
    warm.wait_ready(1)
    stop(warm)
    container.add_inotify("/srv/app/file-1")
    container.add_inotify("/data/deep/er/new")
    make_cold()
    container.pause()
    try:
        warm.process.send_signal(signal.SIGCONT)
        asked = Asked.ask(hook, container.pid, tmp_path / "work")
    finally:
        container.resume()
    assert asked.code == 0
    assert "of a pause" in asked.said
    assert {b"/srv/app/file-1", b"/data/old"} <= set(asked.paths)
    assert not list(warm.run.glob("reply-*"))  # it got the reply


def test_an_old_image_is_taken_into_account(node, warm, hook, tmp_path):
    container = node.container()
    root = node.roots[container.id]
    (root / "srv" / "file").write_text("upper")
    container.add_inotify("/srv/app/file-0")
    watched = container.add_inotify("/srv/file", IN_OPEN)
    warm.wait_ready(2)
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    (work / "irmap-cache").write_bytes(b"of an earlier dump")
    stop(warm)
    (root / "srv" / "file").rename(root / "srv" / "other")
    warm.process.send_signal(signal.SIGCONT)
    asked = Asked.ask(hook, container.pid, work)
    assert asked.code == 0
    assert sorted(asked.paths) == [b"/srv/app/file-0", b"/srv/other"]
    assert container.hears(watched, (root / "srv" / "other").read_bytes)


def test_a_stopped_service_is_waited_for_no_longer(node, warm, tmp_path):
    hook = write_hook(tmp_path, warm.run, program=tmp_path / "missing", patient=False)
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    stop(warm)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    warm.process.send_signal(signal.SIGCONT)
    assert (asked.code, asked.paths) == (0, [b"/srv/app/file-0"])
    assert "did not reply in 1 s" in asked.said


def test_a_work_dir_that_others_can_write_is_left_alone(node, warm, hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    asked = Asked.ask(hook, container.pid, work)
    assert (asked.code, asked.paths) == (0, None)
    assert "others than root" in asked.said
    assert "missing" in asked.said
