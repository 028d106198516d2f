"""Asks btrfs or xfs for the paths of a batch of inodes, ahead of the proof.

The data of these inodes is on disk and rarely in memory: for the others the kernel still had a
name. So a large batch is read in the order of the inode numbers, which is usually the order on the
disk, and many at a time. Each found path is looked up at once, so that its proof does not wait for
the disk again.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from contextlib import contextmanager, suppress
from itertools import islice

from irmapdb.kernel.syscalls import current_cpu
from irmapdb.resolve.engine import Candidate, Note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from typing import TypeVar

    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle, Identity
    from irmapdb.resolve.engine import Answer

    Node = TypeVar("Node", bound=tuple[int, ...])
    Asked = tuple[Node, Identity]  # the inode for its filesystem, and for irmapdb

__all__ = ["ask_all", "asked"]

# A disk answers many reads in the time of one. A few inodes are not worth a thread. Paths that wait
# for their proof must not fill the memory.
_THREADS = 16
_SLICE = 32
_SLICES_AHEAD = 4 * _THREADS


def asked(
    identities: Sequence[Identity], node_of: Callable[[FileHandle], Node | None]
) -> tuple[list[Asked[Node]], list[Note]]:
    """The inodes that the filesystem can look up, in its order; a note for each other inode."""
    nodes: list[Asked[Node]] = []
    notes: list[Note] = []
    for identity in identities:
        node = node_of(identity.handle) if identity.handle else None
        if node is None:
            notes.append(Note(identity, "it has no handle that this filesystem would know"))
        else:
            nodes.append((node, identity))
    nodes.sort()
    return nodes, notes


def ask_all(
    root: Root,
    batch: Sequence[Asked[Node]],
    paths: Callable[[Node], Iterator[bytes]],
    over: Callable[[], bool] = lambda: False,
) -> Iterator[Answer]:
    """For each inode every path, or one note. OSError of `paths` becomes a note.

    It ends when `over` returns True, because the time is up.
    """
    if len(batch) <= _SLICE:
        for one in batch:
            yield from _ask(one, paths)
        return
    # The hook rarely needs them, and their import is slow.
    from concurrent import futures  # noqa: PLC0415

    def ask_slice(part: Sequence[Asked[Node]]) -> list[Answer]:
        answers = [answer for one in part if not over() for answer in _ask(one, paths)]
        for answer in answers:
            if isinstance(answer, Candidate):
                _warm(root, answer.path)
        return answers

    slices = (batch[start : start + _SLICE] for start in range(0, len(batch), _SLICE))
    with _on_one_cpu():
        pool = futures.ThreadPoolExecutor(_THREADS)

        def submit(part: Sequence[Asked[Node]]) -> Future[list[Answer]]:
            try:
                return pool.submit(ask_slice, part)
            except RuntimeError:  # no memory for a thread, or the user has too many
                done: Future[list[Answer]] = futures.Future()
                done.set_result(ask_slice(part))
                return done

        try:
            ahead = deque(submit(part) for part in islice(slices, _SLICES_AHEAD))
            while ahead:
                answers = ahead.popleft().result()
                ahead.extend(submit(part) for part in islice(slices, 1))
                yield from answers
        finally:
            pool.shutdown(cancel_futures=True)  # also if the caller stops


@contextmanager
def _on_one_cpu() -> Iterator[None]:
    # The threads take turns in one interpreter and wait for the disk. On several CPUs each turn
    # wakes another CPU, and the whole takes half as long again. Threads that are started
    # meanwhile stay on this CPU.
    allowed = os.sched_getaffinity(0)
    with suppress(OSError):
        os.sched_setaffinity(0, {current_cpu()})
    try:
        yield
    finally:
        with suppress(OSError):  # those that were allowed are gone
            os.sched_setaffinity(0, allowed)


def _ask(one: Asked[Node], paths: Callable[[Node], Iterator[bytes]]) -> Iterator[Answer]:
    node, identity = one
    found = False
    note = "no mount of this root shows it"
    try:
        for path in paths(node):
            found = True
            yield Candidate(identity, path)
    except OSError as error:
        note = _why_not(error)
    if not found:
        yield Note(identity, note)


def _warm(root: Root, path: bytes) -> None:
    try:
        os.close(root.open(path))
    except OSError:
        return  # the proof will say why


def _why_not(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ESTALE:
            return "the filesystem has no name for it"
        case errno.ENOTDIR:
            return "this root shows no directory of the filesystem to ask through"
        case errno.ENOTTY:
            return "this kernel cannot list the names of an inode"
        case errno.EOPNOTSUPP:
            return "this filesystem keeps no parent pointers"  # xfs alone says so
        case errno.EPERM:
            return "asking the filesystem needs CAP_SYS_ADMIN"
        case _:
            return f"the filesystem gave an error: {error.strerror}"
