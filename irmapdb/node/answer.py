"""Answers the hook: proves the remembered paths of a tree again, and writes them.

A child of the service does this for one request, at normal priority, because frozen tasks may wait
for it. So it walks nothing, opens no directory of the tenant, and waits for no server.

docs/architecture.md has the protocol.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import stat
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from irmapdb import files
from irmapdb.checkpoint import criu_cache
from irmapdb.checkpoint.work_dir import CACHE_NAME
from irmapdb.errors import FileError, ImageError, IrmapError, TaskError
from irmapdb.image.cache import decode_cache, encode_cache
from irmapdb.kernel.pause_detection import find_pause
from irmapdb.kernel.proc import tasks
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.root import open_root
from irmapdb.kernel.syscalls import Descriptor
from irmapdb.model import CacheEntry, Mapping, Source, one_line
from irmapdb.record import Record
from irmapdb.resolve.search import Search
from irmapdb.store.database import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from irmapdb.config import Config
    from irmapdb.model import InodeKey, Resolved
    from irmapdb.node.keep import Kept
    from irmapdb.node.rundir import RunDirectory
    from irmapdb.resolve.stored import Load

__all__ = [
    "DONE",
    "NOT_SERVED",
    "SEARCHES",
    "Confirmed",
    "Reply",
    "Request",
    "answer",
    "confirm",
    "open_work_dir",
    "parse_request",
    "send",
]

_LINE = re.compile(
    r"1 (pre-dump|search) (\d{1,9}) (\d{1,9}) (\d{1,20}) (\d{1,9}|-) (reply-(\d{1,9})-\d{1,20})"
)

_MOST_BYTES = 2000
"""The largest size of a reply: less than PIPE_BUF."""

_OLD_CACHE_BYTES = 16 << 20
"""The hook handles a larger one."""

DONE, NOT_SERVED, SEARCHES = 0, 2, 3
"""The codes of a reply. The service never sends 1, with which the script would fail the dump. After
SEARCHES a second reply follows."""


class Request(Record):
    """One line that a script has written."""

    pid: int
    criu: int
    criu_starttime: int
    reply: str
    """The name of the FIFO from which the script reads the reply."""
    script: int
    """The process that executes the script."""
    alone: bool = False
    """Whether it has no program to start if the service finds no path: then it waits longer."""


class Reply(Record):
    """The reply to the script, and the data that the service remembers."""

    code: int
    text: str
    changed: bool = False
    """Whether a remembered path was wrong, so that the service must read the container again."""
    took_s: float = 0.0
    paused: bool = False
    """Whether the tasks were paused at the reply."""
    watches: int | None = None
    """None: they were not read."""
    resolved: int | None = None
    work: bytes = b""
    """CRIU's work dir; b"" if it could not be read."""


class Confirmed(Record):
    """A tree as it is at this moment."""

    entries: tuple[CacheEntry, ...]
    """For irmap-cache, in CRIU's order."""
    watches: int
    resolved: int
    lost: int
    """Inodes that had a remembered path, and have none now."""
    new: int
    """New watched inodes for which no path was found."""
    missing: frozenset[InodeKey]
    """All inodes for which no path was found."""


def send(run: RunDirectory, name: str, reply: Reply) -> bool:
    """Send the reply; returns whether the script still waits."""
    line = (
        f"{reply.code} {one_line(reply.text)}".encode("utf-8", "backslashreplace")[:_MOST_BYTES]
        + b"\n"
    )
    try:
        fd = run.open_reply(name)
    except (OSError, ValueError):
        return False
    try:
        if reply.code != SEARCHES:
            run.remove_reply(name)
        return os.write(fd, line) == len(line)
    except OSError:
        return False
    finally:
        os.close(fd)


def parse_request(line: bytes) -> Request | None:
    """Parse one line without its newline; None if it is no line of a script."""
    found = _LINE.fullmatch(line.decode("ascii", "replace"))
    if found is None:
        return None
    action, pid, criu, starttime, _, reply, script = found.groups()
    alone = action == "search"
    return Request(int(pid), int(criu), int(starttime), reply, int(script), alone)


def confirm(kept: Kept, config: Config) -> Confirmed:
    """Prove every path of a container again; TaskError if it has ended.

    Paths that were too many to remember are loaded from the database.
    """
    pid = kept.container.pid
    with open_root(pid) as root, _memory(kept, config) as load:
        task = tasks.require_task(pid)
        if task.starttime != kept.container.starttime:
            message = f"task {pid} is another one than that of the container"
            raise TaskError(message)
        watched = [raw.parse() for raw in read_survey(tasks.task_tree(pid)).files]
        with Search(root, load, config=config, scan=False) as search:
            search.resolve(watched, at_once=True)
            outcome = search.outcome
        criu_cache.spell_root(outcome)
        counts = Counter(watch.identity for file in watched for watch in file.watches)
        entries = criu_cache.cache_entries(outcome, counts.elements(), root)
    without = counts.keys() - outcome.resolved.keys()
    missing = without - kept.without
    lost = len(missing & kept.known)
    return Confirmed(
        tuple(entries),
        watches=counts.total(),
        resolved=sum(counts[identity] for identity in outcome.resolved.keys() & counts.keys()),
        lost=lost,
        new=len(missing) - lost,
        missing=frozenset(identity.key for identity in without),
    )


@contextlib.contextmanager
def _memory(kept: Kept, config: Config) -> Iterator[Load]:
    if kept.answers is not None:
        yield _Memory(kept.answers)
        return
    name = f"{kept.container.name.file_stem}.db"
    path = os.path.join(os.fsencode(config.warm.directory), os.fsencode(name))
    with Store.open_readonly(path, wait_s=0.2) as store:
        yield store.load


class _Memory:
    """The answers of a container, in the form of the store."""

    def __init__(self, answers: Iterable[Resolved]) -> None:
        self._rows: dict[InodeKey, list[Mapping]] = {}
        now = datetime.now(UTC)
        for one in answers:
            if one.mntns == 0:  # CRIU knows no paths of other namespaces
                # The one that was proved last comes last.
                for path in (*reversed(one.other_paths), one.path):
                    row = Mapping(
                        one.identity, path, Source.STORED, revalidate=True, first_seen_at=now
                    )
                    self._rows.setdefault(one.identity.key, []).append(row)

    def __call__(self, keys: Collection[InodeKey], mntns: int = 0) -> dict[InodeKey, list[Mapping]]:
        if mntns:
            return {}
        return {key: self._rows[key] for key in keys if key in self._rows}


def answer(
    request: Request, kept: Kept, config: Config, run: RunDirectory, tell: Callable[[Reply], object]
) -> Reply:
    """Prove the paths, write irmap-cache into the work dir of CRIU, and `tell` the script, once."""
    begun_s = time.monotonic()
    told: list[Reply] = []

    def end(reply: Reply) -> None:
        if not told:
            told.append(reply)
            tell(reply)
            took_s = time.monotonic() - begun_s
            told[0] = reply._replace(took_s=took_s, paused=bool(find_pause(request.pid)))

    try:
        with open_work_dir(request, kept.container.pids) as work:
            found = confirm(kept, config)
            changed = bool(found.lost or found.new)
            if changed and os.path.lexists(f"{work}/{CACHE_NAME}"):
                # Its entries may be useful; the hook can check that.
                end(Reply(NOT_SERVED, _missing(found), changed=True))
            elif found.missing and _has_more(Path(work, CACHE_NAME), found.missing):
                end(Reply(NOT_SERVED, "irmap-cache has entries of watches without a path"))
            else:
                files.replace_whole(
                    Path(work, CACHE_NAME),
                    encode_cache(found.entries),
                    # Otherwise the hook has started itself, and its image may be better.
                    is_wanted=lambda: run.is_waiting(request.reply),
                    in_place=lambda: end(_reply(found, begun_s)),
                )
            told[0] = told[0]._replace(work=os.readlink(os.fsencode(work)))
    except (OSError, IrmapError) as error:
        end(Reply(NOT_SERVED, str(error)))
    return told[0]


def _reply(found: Confirmed, begun_s: float) -> Reply:
    if found.lost or found.new:
        return Reply(NOT_SERVED, _missing(found), changed=True)
    took_ms = (time.monotonic() - begun_s) * 1000
    text = (
        f"{found.watches} {'watch' if found.watches == 1 else 'watches'}: "
        f"{found.resolved} proved by the service, in {took_ms:.0f} ms"
    )
    if found.resolved < found.watches:
        text += f"; {found.watches - found.resolved} without a path"
    return Reply(DONE, text, watches=found.watches, resolved=found.resolved)


def _has_more(cache: Path, missing: Collection[InodeKey]) -> bool:
    # Whether there is an old irmap-cache with paths that we did not find; or one that cannot be
    # read.
    try:
        data = files.read_if_there(cache, limit_bytes=_OLD_CACHE_BYTES)
        return data is not None and any(
            entry.key in missing for entry in decode_cache(data, CACHE_NAME)
        )
    except (FileError, ImageError):
        return True


def _missing(found: Confirmed) -> str:
    return f"{found.lost} paths are lost and {found.new} watches are new"


@contextlib.contextmanager
def open_work_dir(request: Request, pids: Collection[int]) -> Iterator[str]:
    """The cwd of CRIU, as a path through a descriptor of ours.

    TaskError unless the process executes the script of the request, is none of `pids` (the
    container's tasks), and only root can write to the directory.
    """
    pidfd = os.pidfd_open(request.criu)
    try:
        criu = tasks.require_task(request.criu)
        script = tasks.require_task(request.script)
        if criu.starttime != request.criu_starttime or script.ppid != request.criu:
            message = f"task {request.criu} is not CRIU, which executes the hook"
            raise TaskError(message)
        if request.criu in pids:
            message = f"task {request.criu} is one of the container's"
            raise TaskError(message)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with Descriptor(os.open(f"/proc/{request.criu}/cwd", flags)) as fd:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if poll.poll(0):  # then it may be the cwd of another process
                message = "CRIU has ended"
                raise TaskError(message)
            found = os.fstat(fd)
            if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                message = "others than root may write to the work dir"
                raise TaskError(message)
            yield f"/proc/self/fd/{fd}"
    finally:
        os.close(pidfd)
