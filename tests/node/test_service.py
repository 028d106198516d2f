"""The service as a process: it starts, looks at the containers, and ends after a signal."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import pytest

from irmapdb.errors import FileError
from irmapdb.node import answer, work_schedule
from irmapdb.node import service as service_module
from irmapdb.node.pool import Pool
from irmapdb.node.rundir import RunDirectory
from irmapdb.node.service import Service
from tests.support.warm import WAIT_S


def test_it_follows_the_watches_of_the_containers(node, warm):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_for(lambda seen: [one["resolved"] for one in seen] == [1])
    container.add_inotify("/srv/app/file-1")
    warm.wait_for(lambda seen: [one["resolved"] for one in seen] == [2])
    node.end(container)
    warm.wait_for(lambda seen: not seen)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_after_a_signal(node, warm, number):
    node.container().add_inotify("/srv/app/file-0")
    warm.wait_for(lambda seen: [one["resolved"] for one in seen] == [1])
    assert warm.end(number) == 0
    assert not [name for name in os.listdir(warm.run) if name.startswith("work-")]


def test_a_service_that_ends_leaves_no_work_of_killed_children(node, warm):
    node.container().add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    (image,) = warm.run.glob("image-*")
    work = image.with_name(image.name.replace("image", "work"))
    work.mkdir()
    (work / "irmap.db").touch()
    assert warm.end() == 0
    assert not work.exists()


def test_short_memory_ends_a_child_and_not_the_service(node, warm):
    node.container().add_inotify("/srv/app/file-0")
    warm.wait_ready(1)

    def adjustment(pid):
        return Path(f"/proc/{pid}/oom_score_adj").read_text()

    pid = warm.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    assert adjustment(pid) == adjustment("self")
    deadline_s = time.monotonic() + WAIT_S
    found = ""
    while found != "1000\n":
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
        with contextlib.suppress(OSError):  # it has ended; the one for the hook waits
            found = "".join({adjustment(child) for child in children.read_text().split()})


def test_a_container_for_which_no_process_can_be_made_is_tried_again(node, monkeypatch):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    start = Pool.start

    def refuse(pool, kind, *arguments, **options):
        if kind == "keep":
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(pool, kind, *arguments, **options)

    with Service(node.options(interval_s=1e-6)) as service:
        monkeypatch.setattr(Pool, "start", refuse)
        (one,) = service.once()["containers"]
        assert (one["resolved"], one["state"]) == (0, "failed")
        assert "no child" in one["problem"]
        monkeypatch.undo()
        (one,) = service.once()["containers"]
        assert (one["resolved"], one["state"], one["problem"]) == (1, "ready", "")


@pytest.fixture
def started(monkeypatch):
    """The kinds and keys of the children that are started, which a busy machine does not delay."""
    found = []
    monkeypatch.setattr(service_module, "be_idle", lambda: None)
    start = Pool.start

    def note(pool, kind, key, *arguments, **options):
        found.append((kind, key))
        return start(pool, kind, key, *arguments, **options)

    monkeypatch.setattr(Pool, "start", note)
    return found


def test_one_child_proves_the_paths_of_several_containers_again(node, started):
    for index in range(3):
        node.container().add_inotify(f"/srv/app/file-{index}")
    with Service(node.options(interval_s=1e-6)) as service:
        service.once()
        started.clear()
        found = service.once()["containers"]
    assert [kind for kind, _ in started] == ["look", "verify"]
    assert started[-1][1] == {(one["pid"], one["starttime"]) for one in found}
    assert [(one["resolved"], one["state"]) for one in found] == [(1, "ready")] * 3


def test_a_container_that_ends_the_child_keeps_no_other_from_being_proved(
    node, started, monkeypatch
):
    containers = [node.container() for _ in range(3)]
    for index, container in enumerate(containers):
        container.add_inotify(f"/srv/app/file-{index}")
    bad = containers[1].pid

    def confirm(kept, config):
        if kept.container.pid == bad:
            os._exit(1)
        return answer.confirm(kept, config)

    monkeypatch.setattr(work_schedule, "confirm", confirm)
    with Service(node.options(interval_s=1e-6)) as service:
        service.once()
        started.clear()
        found = service.once()["containers"]
    verified = [sorted(pid for pid, _ in key) for kind, key in started if kind == "verify"]
    pids = sorted(container.pid for container in containers)
    assert verified[0] == pids
    assert sorted(verified[1:]) == [[pid] for pid in pids]
    assert [key[0] for kind, key in started if kind == "keep"] == [bad]
    assert [(one["resolved"], one["state"]) for one in found] == [(1, "ready")] * 3


def test_a_look_for_which_no_process_can_be_made_is_tried_again(node, monkeypatch):
    kinds = []

    def refuse(_pool, kind, *_arguments, **_options):
        kinds.append(kind)
        if len(kinds) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(Pool, "start", refuse)
    with Service(node.options(interval_s=0.01)) as service:
        service.run()
    assert kinds[:2] == ["look", "look"]


def test_a_status_that_cannot_be_written_ends_nothing(node, monkeypatch):
    written = []

    def refuse(_directory, document):
        written.append(document)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        raise FileError("/run: no room")

    monkeypatch.setattr(RunDirectory, "write_status", refuse)
    with Service(node.options(interval_s=0.01)) as service:
        service.run()
    assert len(written) >= 2
