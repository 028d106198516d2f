"""The service answers the hook's script; judged by the events that the watches hear."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from irmapdb.node.answer import parse_request
from tests.support.criu import write_cache
from tests.support.hook import start_as_criu
from tests.support.notify import IN_OPEN
from tests.support.warm import Asked


def hears(container, watched, root, path):
    """Whether this watch reports an open of the path."""
    return container.hears(watched, (root / os.fsdecode(path).lstrip("/")).read_bytes)


def test_the_service_answers_and_no_program_is_started(node, warm, hook, tmp_path):
    container = node.container()
    watches = {f"/srv/app/file-{n}": None for n in range(10)}
    for path in watches:
        watches[path] = container.add_inotify(path, IN_OPEN)
    warm.wait_ready(10)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert (asked.code, asked.alone) == (0, False), asked.said
    assert "10 proved by the service" in asked.said
    assert sorted(asked.paths) == sorted(os.fsencode(path) for path in watches)
    assert not list(warm.run.glob("reply-*"))
    for path, watched in watches.items():
        assert hears(container, watched, node.roots[container.id], path)


def _exchange(root):
    upper = root / "srv" / "upper"
    (upper / "one").rename(upper / "x")
    (upper / "two").rename(upper / "one")
    (upper / "x").rename(upper / "two")


def _copy_up(root):
    with (root / "srv" / "app" / "file-1").open("a") as file:
        file.write("more")


def _link_and_unlink(root):
    (root / "srv" / "upper" / "link").hardlink_to(root / "srv" / "upper" / "one")
    (root / "srv" / "upper" / "one").unlink()


def _rename_directory(root):
    (root / "srv" / "upper").rename(root / "srv" / "moved")


def _replace_atomically(root):
    new = root / "srv" / "upper" / "new"
    new.write_text("new")
    (root / "srv" / "upper" / "one").rename(root / "srv" / "upper" / "old")
    new.rename(root / "srv" / "upper" / "one")


@pytest.mark.parametrize(
    "act",
    [_exchange, _copy_up, _link_and_unlink, _rename_directory, _replace_atomically],
    ids=lambda act: act.__name__.strip("_"),
)
def test_a_file_changed_since_the_last_look_never_gets_a_wrong_path(
    node, warm, hook, tmp_path, act
):
    container = node.container()
    root = node.roots[container.id]
    upper = root / "srv" / "upper"
    upper.mkdir()
    for name in ("one", "two", "stays"):
        (upper / name).write_text(name)
    places = ("upper/one", "upper/two", "upper/stays", "app/file-1")
    watches = [container.add_inotify(f"/srv/{place}", IN_OPEN) for place in places]
    for place in places:
        container.open(f"/srv/{place}")
    warm.wait_ready(len(places))
    warm.process.send_signal(signal.SIGSTOP)  # no look comes between
    act(root)
    asking = threading.Thread(
        target=lambda: answers.append(Asked.ask(hook, container.pid, tmp_path / "work"))
    )
    answers: list[Asked] = []
    asking.start()
    warm.process.send_signal(signal.SIGCONT)
    asking.join()
    (asked,) = answers
    assert asked.code == 0
    for path in asked.paths or ():
        heard = [one for one in watches if hears(container, one, root, path)]
        assert len(heard) == 1, path
    if asked.paths is not None and not asked.alone:
        assert len(asked.paths) >= len(watches)


def test_a_new_watch_is_left_to_the_hook(node, warm, hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    warm.process.send_signal(signal.SIGSTOP)
    container.add_inotify("/srv/app/file-1")
    warm.process.send_signal(signal.SIGCONT)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert asked.code == 0
    assert asked.alone or set(asked.paths) == {b"/srv/app/file-0", b"/srv/app/file-1"}


def test_a_stopped_service_leaves_the_image_that_it_proved_last(node, warm, real_hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    warm.process.send_signal(signal.SIGSTOP)
    asked = Asked.ask(real_hook, container.pid, tmp_path / "work")
    warm.process.send_signal(signal.SIGCONT)
    assert (asked.code, asked.alone, asked.paths) == (0, False, [b"/srv/app/file-0"])
    assert "proved last" in asked.said


def test_without_a_service_the_hook_does_it_alone(node, warm, hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    warm.end(signal.SIGKILL)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert (asked.code, asked.alone) == (0, True)


def test_a_tree_that_is_no_container_is_left_to_the_hook(node, warm, hook, tmp_path):
    node.container().add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    asked = Asked.ask(hook, os.getpid(), tmp_path / "work")
    assert (asked.code, asked.alone, asked.paths) == (0, True, None)


def test_many_hooks_at_once(node, warm, hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    answers: list[Asked] = []

    def ask(index):
        answers.append(Asked.ask(hook, container.pid, tmp_path / f"work-{index}"))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(threads)
    for asked in answers:
        assert asked.code == 0
        assert asked.alone or asked.paths == [b"/srv/app/file-0"]
    assert not list(warm.run.glob("reply-*"))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_work_dir_that_others_can_write_is_left_to_the_hook(node, warm, hook, tmp_path, mode):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(mode)
    asked = Asked.ask(hook, container.pid, work)
    assert (asked.code, asked.alone, asked.paths) == (0, True, None)


def test_an_old_image_is_kept_if_a_watch_has_lost_its_path(node, warm, hook, tmp_path):
    container = node.container()
    root = node.roots[container.id]
    (root / "srv" / "file").write_text("upper")
    container.add_inotify("/srv/file")
    warm.wait_ready(1)
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    (work / "irmap-cache").write_bytes(b"of an earlier dump")
    warm.process.send_signal(signal.SIGSTOP)
    (root / "srv" / "file").rename(root / "srv" / "other")
    warm.process.send_signal(signal.SIGCONT)
    shutil.copy(work / "irmap-cache", tmp_path / "before")
    assert start_as_criu(hook, container.pid, work).wait() == 0
    if (work / "called").exists():
        assert (work / "irmap-cache").read_bytes() == (tmp_path / "before").read_bytes()


@pytest.mark.parametrize("useful", [True, False])
def test_an_old_image_with_an_entry_without_a_path_is_left_to_the_hook(
    node, warm, hook, tmp_path, *, useful
):
    """CRIU uses the old entry of an ambiguous inode: without irmapdb the dump would pass."""
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    ambiguous = container.add_inotify("/proc/meminfo")
    warm.wait_for(
        lambda seen: (
            [(one["watches"], one["resolved"], one["state"]) for one in seen] == [(2, 1, "ready")]
        )
    )
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    kdev = os.major(ambiguous.st_dev) << 20 | os.minor(ambiguous.st_dev)
    ino = ambiguous.st_ino if useful else ambiguous.st_ino + 1
    write_cache(work, [(kdev, ino, b"/proc/meminfo")])
    asked = Asked.ask(hook, container.pid, work)
    assert (asked.code, asked.alone) == (0, useful), asked.said
    assert asked.paths == ([b"/proc/meminfo"] if useful else [b"/srv/app/file-0"])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"1 pre-dump 1 2 3 - reply-1-2 ",
        b"1 pre-dump 1 2 3 - ../reply-1-2",
        b"1 pre-dump 1 2 3 - reply-1-2/../../etc",
        b"2 pre-dump 1 2 3 - reply-1-2",
        b"1 pre-dump -1 2 3 - reply-1-2",
        b"1 pre-dump 1 2 3 x reply-1-2",
        b"1 post-dump 1 2 3 - reply-1-2",
        b"1 searches 1 2 3 - reply-1-2",
        b"1 pre-dump 99999999999999999999 2 3 - reply-1-2",
        "1 pre-dump \u0661 2 3 - reply-1-2".encode(),
        b"\xff" * 100,
    ],
)
def test_a_line_of_another_form_is_ignored(line):
    assert parse_request(line) is None


def test_a_line():
    request = parse_request(b"1 pre-dump 10 20 30 5 reply-40-30")
    assert request is not None
    assert (request.pid, request.criu, request.criu_starttime, request.script) == (10, 20, 30, 40)
    assert not request.alone
    alone = parse_request(b"1 search 10 20 30 5 reply-40-30")
    assert alone == request._replace(alone=True)


def test_nonsense_in_the_fifo_stops_no_answer(node, warm, hook, tmp_path):
    container = node.container()
    container.add_inotify("/srv/app/file-0")
    warm.wait_ready(1)
    fd = os.open(warm.run / "warm.fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"\0\xff no line\n1 pre-dump 1 1 1 - reply-1-1\n" + b"x" * 60000 + b"\n")
    os.close(fd)
    asked = Asked.ask(hook, container.pid, tmp_path / "work")
    assert (asked.alone, asked.paths) == (False, [b"/srv/app/file-0"])
    assert Path("/proc", str(warm.process.pid)).exists()
