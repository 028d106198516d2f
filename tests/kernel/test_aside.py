"""A call that never returns costs its time budget and nothing else."""

from __future__ import annotations

import os
import signal
import time

import pytest

from irmapdb.kernel.aside import call_aside
from irmapdb.model import FileHandle, Identity

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_the_result_comes_back() -> None:
    identity = Identity(1, 2**64 - 1, FileHandle(1, b"\xff"))
    assert call_aside(lambda: {identity: [b"/x" * 100_000]}, 60) == {identity: [b"/x" * 100_000]}


def test_a_call_that_hangs_is_killed() -> None:
    read, write = os.pipe()
    with pytest.raises(TimeoutError):
        call_aside(lambda: (os.write(write, b"."), time.sleep(600)), 0.05)
    os.close(write)
    os.read(read, 1)
    assert os.read(read, 1) == b"", "the child is gone: nobody holds the other end"
    os.close(read)


def test_a_call_that_fails_is_told() -> None:
    def fail() -> None:
        os._exit(7)

    with pytest.raises(ChildProcessError):
        call_aside(fail, 60)


class _Killing:
    """What ends the process that pickles it."""

    def __reduce__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


def test_an_answer_that_is_cut_short_is_none() -> None:
    with pytest.raises(ChildProcessError, match="killed while it answered"):
        call_aside(lambda: [b"x" * 1_000_000, _Killing()], 60)


def test_it_dies_with_who_has_asked() -> None:
    read, write = os.pipe()
    asking = os.fork()
    if not asking:
        call_aside(lambda: (os.write(write, b"."), time.sleep(600)), 600)
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"."
    os.kill(asking, signal.SIGKILL)
    os.waitpid(asking, 0)
    assert os.read(read, 1) == b"", "nobody holds the other end"
    os.close(read)
