"""The path upwards by the answers of a filesystem, also if they are nonsense."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from irmapdb.kernel.root import Root, open_root
from irmapdb.model import FileHandle, Identity
from irmapdb.resolve.engine import Candidate
from irmapdb.resolve.mount_fds import MountFds
from irmapdb.resolve.prefetch import ask_all
from irmapdb.resolve.reverse_lookup import ReverseLookup
from tests.support.area import MountArea
from tests.support.filesystems import superblock_kdev

pytestmark = pytest.mark.kernel

Number = tuple[int]
Names = Callable[[int, Number], Sequence[tuple[Number, bytes]]]

# All mounts of the device have one root, which the test calls 1.
_TOP: Number = (1,)


@pytest.fixture
def top(area: MountArea) -> Path:
    return area.tmpfs()


@pytest.fixture
def root(top: Path) -> Iterator[Root]:
    with open_root(os.getpid()) as opened:
        yield opened


def _upward(root: Root, top: Path, names: Names) -> ReverseLookup[Number]:
    def node_of(_: FileHandle) -> Number:
        return _TOP

    return ReverseLookup(root, MountFds(root), superblock_kdev(top), node_of, names)


def _told(told: dict[int, list[tuple[int, bytes]]]) -> Names:
    return lambda _, node: [((parent,), name) for parent, name in told.get(node[0], [])]


def test_names_are_put_together(root: Root, top: Path) -> None:
    told = _told({4: [(3, b"d")], 3: [(2, b"c")], 2: [(1, b"b")], 5: [(2, b"e"), (1, b"f")]})
    with _upward(root, top, told) as upward:
        below = os.fsencode(top) + b"/"
        assert list(upward.paths((4,))) == [below + b"b/c/d"]
        assert list(upward.paths((5,))) == [below + b"b/e", below + b"f"]
        assert list(upward.paths(_TOP)) == [os.fsencode(top)]


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_an_answer_that_is_no_name_ends_the_path(root: Root, top: Path, name: bytes) -> None:
    told = _told({3: [(2, b"c")], 2: [(1, name)], 4: [(1, name), (1, b"good")]})
    with _upward(root, top, told) as upward:
        assert list(upward.paths((3,))) == []
        assert list(upward.paths((4,))) == [os.fsencode(top) + b"/good"]


def test_a_circle_ends(root: Root, top: Path) -> None:
    told = _told({3: [(2, b"c")], 2: [(4, b"b")], 4: [(2, b"d")], 1: [(3, b"top")]})
    with _upward(root, top, told) as upward:
        assert list(upward.paths((3,))) == []
        # Through the top itself, and round.
        assert list(upward.paths(_TOP)) == [os.fsencode(top)]


def test_a_way_without_end_ends(root: Root, top: Path) -> None:
    numbers = itertools.count(10)
    with (
        _upward(root, top, lambda _, __: [((next(numbers),), b"n" * 255)]) as upward,
        pytest.raises(OSError, match="too long") as caught,
    ):
        list(upward.paths((2,)))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_way_that_is_too_long_ends_also_where_its_first_part_is_known(
    root: Root, top: Path
) -> None:
    told = _told({number: [(number - 1, b"n" * 255)] for number in range(2, 400)})
    with _upward(root, top, told) as upward:
        known = [len(path) for number in range(2, 200) for path in upward.paths((number,))]
        assert len(known) == 198
        assert max(known) < 1 << 16
        with pytest.raises(OSError, match="too long"):
            list(upward.paths((300,)))
        for number in range(200, 300):  # up to it, step by step
            with suppress(OSError):
                known += map(len, upward.paths((number,)))
        assert max(known) < 1 << 17
        with pytest.raises(OSError, match="too long"):
            list(upward.paths((399,)))


def test_one_link_that_fails_leaves_the_others(root: Root, top: Path) -> None:
    def names(_: int, node: Number) -> Sequence[tuple[Number, bytes]]:
        if node == (2,):
            raise OSError(errno.ESTALE, "removed in between")
        return [((2,), b"lost"), (_TOP, b"good")]

    with _upward(root, top, names) as upward:
        found = upward.paths((3,))
        assert next(found) == os.fsencode(top) + b"/good"
        with pytest.raises(OSError, match="removed"):
            next(found)


def test_a_refusal_is_not_asked_for_twice(root: Root, top: Path) -> None:
    asked = []

    def names(_: int, node: Number) -> Sequence[tuple[Number, bytes]]:
        asked.append(node)
        raise OSError(errno.ENOTTY, "no such ioctl")

    with _upward(root, top, names) as upward:
        for number in (2, 3, 4):
            with pytest.raises(OSError, match=os.strerror(errno.ENOTTY) + "|no such") as caught:
                list(upward.paths((number,)))
            assert caught.value.errno == errno.ENOTTY
    assert asked == [(2,)]


def test_where_only_a_file_is_mounted_there_is_nothing_to_ask_through(
    area: MountArea, root: Root, top: Path
) -> None:
    (top / "file").write_bytes(b"")
    target = area.path / "target"
    target.write_bytes(b"")
    area.bind(top / "file", target)
    area.mount("none", "tmpfs", "tmpfs")  # hides the whole
    root.refresh()
    kdev = superblock_kdev(target)
    with ReverseLookup(root, MountFds(root), kdev, lambda _: _TOP, _told({})) as upward:
        found = upward.paths(_TOP)
        assert next(found) == os.fsencode(target)
        with pytest.raises(NotADirectoryError):
            next(found)


def test_many_are_asked_on_one_cpu_and_the_rest_is_as_before(root: Root, top: Path) -> None:
    before = os.sched_getaffinity(0)
    file = top / "file"
    file.touch()
    during: set[int] = set()
    batch = [((number,), Identity(1, number, None)) for number in range(1000)]

    def paths(_: Number) -> Iterator[bytes]:
        during.add(len(os.sched_getaffinity(0)))
        yield os.fsencode(file)

    answers = ask_all(root, batch, paths)
    assert next(answers) == Candidate(batch[0][1], os.fsencode(file))
    assert isinstance(answers, Generator)
    answers.close()  # the rest is not read
    assert os.sched_getaffinity(0) == before

    assert len(list(ask_all(root, batch, paths))) == len(batch)
    assert os.sched_getaffinity(0) == before
    assert during == {1}


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_many_are_asked_without_threads_where_none_can_be_made(
    root: Root, top: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """No memory is left for one, or the user has as many as it may have."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_some(thread: threading.Thread) -> None:
        if len(started) == threads:
            message = "can't start new thread"
            raise RuntimeError(message)
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    batch = [((number,), Identity(1, number, None)) for number in range(1000)]
    answers = list(ask_all(root, batch, lambda node: iter([b"/%d" % node[0]])))
    assert answers == [Candidate(identity, b"/%d" % node[0]) for node, identity in batch]


def test_nothing_more_is_asked_when_the_time_is_up(root: Root, top: Path) -> None:
    asked: list[Number] = []

    def paths(node: Number) -> Iterator[bytes]:
        asked.append(node)
        yield b"/x"

    batch = [((number,), Identity(1, number, None)) for number in range(5000)]
    answers = list(ask_all(root, batch, paths, lambda: len(asked) >= 100))
    assert 100 <= len(asked) < 200
    assert len(answers) == len(asked)
