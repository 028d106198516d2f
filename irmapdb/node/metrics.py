"""Collects the figures of this machine for a monitoring system.

It reads /proc, the status of the service, the list of the last runs of the hook, CRIU's
`stats-dump` in the work dirs of these runs, and the databases of the containers. It leaves out a
value that cannot be read. The number of containers and users is limited, because their labels
become time series; paths and process ids are in no label.
"""

from __future__ import annotations

import os
import time
from functools import partial

from irmapdb import __version__
from irmapdb.config import Config
from irmapdb.criu import hook_runs
from irmapdb.criu.dump_stats import read_dump_stats
from irmapdb.errors import IrmapError
from irmapdb.kernel.child_call import ask_in_child
from irmapdb.kernel.proc.limits import read_limits
from irmapdb.node import ps
from irmapdb.node.container_info import ContainerInfo, describe_all
from irmapdb.node.look import look_around
from irmapdb.node.rundir import RUN_DIRECTORY, RunDirectory
from irmapdb.node.service_lock import ServiceLock
from irmapdb.record import Record
from irmapdb.store.ask import Ask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import Any, TypeVar

    from irmapdb.criu.hook_runs import HookRun, HookRuns
    from irmapdb.kernel.proc.limits import LimitKind
    from irmapdb.node.check_all import NodeCheck
    from irmapdb.node.look import Seen

    _Read = TypeVar("_Read")

__all__ = [
    "ContainerFigures",
    "LastRun",
    "MetricsOptions",
    "NodeFigures",
    "ServiceFigures",
    "UserFigures",
    "collect",
]

_MOST_CONTAINERS = 500
_MOST_USERS = 50
_DATABASES_S = 3.0
"""The time for all databases; the number of stale paths of the others is left out."""
_DATABASE_S = 0.5
_WORK_DIRS_S = 2.0
_WORK_DIR_S = 0.5
"""The time for all work dirs, and for one."""
_STALE = "SELECT count(*) FROM mapping WHERE stale_at IS NOT NULL"


class MetricsOptions(Record):
    """The places to read, and the answers that the caller has already."""

    run: Path = RUN_DIRECTORY
    config: Config = Config()
    cgroup: str | None = None
    """Only containers whose root task has a matching cgroup."""
    status: Mapping[str, Any] | None = None
    """The status of the running service; None: read it from its file."""
    check: NodeCheck | None = None
    """The prediction for each container; None: not known."""


class UserFigures(Record):
    """One account of one user."""

    uid: int | None
    """None if it could not be read."""
    kind: LimitKind
    used: int


class ContainerFigures(Record):
    """One running container. None: not known."""

    info: ContainerInfo
    watches: int
    resolved: int | None
    unresolved: int | None
    proved_at_s: float | None
    """time.time() of the last proof of its paths by the service."""
    verdicts: Mapping[str, int] | None
    dump_fails: bool | None
    stale: int | None
    """Stale paths in its database."""


class ServiceFigures(Record):
    """The running service."""

    looks: int
    answered: Mapping[str, int]
    cpu_s: float


class LastRun(Record):
    """The last run of the hook for a container that runs, or for no container ("")."""

    container: str
    run: HookRun
    frozen_s: float | None
    """CRIU's freeze, from `stats-dump` in the work dir; None if it is not there."""
    freezing_s: float | None


class NodeFigures(Record):
    """All figures."""

    version: str
    at_s: float
    """time.time() at the end."""
    took_s: float
    limits: Mapping[LimitKind, int]
    users: tuple[UserFigures, ...]
    containers: tuple[ContainerFigures, ...]
    containers_left_out: int
    service: ServiceFigures | None
    """None if it does not run."""
    hook: HookRuns
    last_runs: tuple[LastRun, ...]


def collect(options: MetricsOptions) -> NodeFigures:
    """Read all figures. It changes nothing."""
    begun_s = time.monotonic()
    status = options.status
    if status is None:
        status = _or_none(lambda: _status_of(options.run))
    seen = look_around(options.cgroup).seen
    # Those with the most watches, if they are too many.
    chosen = sorted(seen, key=lambda one: (-one.watches, one.container.name))[:_MOST_CONTAINERS]
    containers = _containers(chosen, status or {}, options)
    runs = _or_none(lambda: hook_runs.read_runs(options.run)) or hook_runs.HookRuns((), ())
    counted = ps.take(ps.PsOptions())
    users = sorted(counted.users, key=lambda one: -one.used)
    chosen_uids = set(list(dict.fromkeys(one.uid for one in users))[:_MOST_USERS])
    return NodeFigures(
        version=__version__,
        at_s=time.time(),
        took_s=time.monotonic() - begun_s,
        limits=read_limits(),
        users=tuple(
            UserFigures(one.uid, one.account, one.used) for one in users if one.uid in chosen_uids
        ),
        containers=containers,
        containers_left_out=len(seen) - len(chosen),
        service=None if status is None else _service(status),
        hook=runs,
        last_runs=_last_runs(runs.last, {one.info.id for one in containers}),
    )


def _status_of(run: Path) -> dict[str, Any] | None:
    if ServiceLock(run).running() is None:
        return None
    return RunDirectory(run, make=False).read_status()


def _or_none(read: Callable[[], _Read]) -> _Read | None:
    try:
        return read()
    except (IrmapError, OSError):
        return None


def _containers(
    seen: Iterable[Seen], status: Mapping[str, Any], options: MetricsOptions
) -> tuple[ContainerFigures, ...]:
    seen = tuple(seen)
    kept = {(one["pid"], one["starttime"]): one for one in status.get("containers", ())}
    checks = {one.pid: one for one in options.check.containers} if options.check else {}
    end_s = time.monotonic() + _DATABASES_S
    found = []
    infos = describe_all([one.container for one in seen])
    for one, info in zip(seen, infos, strict=True):
        known = kept.get(one.container.key, {})
        proved_at_s = known.get("proved_at")
        is_proved = proved_at_s is not None
        check = checks.get(one.container.pid)
        if check is not None and check.info.id != info.id:
            check = None
        stem = one.container.name.file_stem
        found.append(
            ContainerFigures(
                info,
                one.watches,
                resolved=known["resolved"] if is_proved else None,
                unresolved=known["watches"] - known["resolved"] if is_proved else None,
                proved_at_s=proved_at_s,
                verdicts=None if check is None else check.verdicts,
                dump_fails=None if check is None else check.fails,
                stale=_stale(options.config, stem) if time.monotonic() < end_s else None,
            )
        )
    return tuple(found)


def _stale(config: Config, stem: str) -> int | None:
    if not stem:
        return None
    for directory in (config.warm.directory, config.hook.db):
        if directory is None:
            continue
        path = os.path.join(os.fsencode(directory), os.fsencode(f"{stem}.db"))
        if os.path.isfile(path):
            return _or_none(partial(_count, path))
    return None


def _count(path: bytes) -> int | None:
    with Ask.open(path, wait_s=0) as ask:
        for answer in ask.ask(_STALE, limit=1, timeout_s=_DATABASE_S):
            ((number,),) = answer.rows
            return number if isinstance(number, int) else None
    return None


def _service(status: Mapping[str, Any]) -> ServiceFigures:
    return ServiceFigures(status["looks"], status["answered"], status["cpu_s"])


def _last_runs(runs: Iterable[HookRun], running: set[str]) -> tuple[LastRun, ...]:
    # Of a container that has ended, there is no series any more.
    newest = {run.container: run for run in runs if run.container in running or not run.container}
    stats = _read_stats(tuple(newest.values()))
    return tuple(map(_last_run, newest, newest.values(), stats))


def _read_stats(runs: tuple[HookRun, ...]) -> list[Mapping[str, int]]:
    # A work dir can be on a filesystem that does not answer: then each is read by itself.
    found = ask_in_child(
        lambda: [_stats_of(run) for run in runs], lambda _: None, _WORK_DIRS_S, queueing_s=1.0
    )
    if found is not None:
        return found
    end_s = time.monotonic() + _WORK_DIRS_S
    return [
        ask_in_child(partial(_stats_of, run), lambda _: {}, _WORK_DIR_S)
        if time.monotonic() < end_s
        else {}
        for run in runs
    ]


def _last_run(container: str, run: HookRun, figures: Mapping[str, int]) -> LastRun:
    frozen, freezing = figures.get("frozen_us"), figures.get("freezing_us")
    return LastRun(
        container,
        run,
        None if frozen is None else frozen / 1_000_000,
        None if freezing is None else freezing / 1_000_000,
    )


def _stats_of(run: HookRun) -> Mapping[str, int]:
    # Only if CRIU wrote it after this run of the hook.
    if not run.work:
        return {}
    return read_dump_stats(run.work, run.at_s - 1).figures
