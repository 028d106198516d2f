"""Three nodes with five containers, always the same: for the examples of docs/fleet-sql.md."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg

from irmapdb.fleet.push import PushOptions, push
from irmapdb.fleet.server import find_server
from irmapdb.fleet.sources import (
    CheckVerdict,
    ContainerFacts,
    LimitUse,
    NodeFacts,
    PushSource,
)
from irmapdb.model import (
    Change,
    ChangeKind,
    Event,
    FileHandle,
    Identity,
    Resolved,
    RunStats,
    Source,
    StaleReason,
    Tried,
    Watch,
    WatchKind,
)
from irmapdb.store.database import Store
from irmapdb.store.records import WatchRow

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_fleet"]

_DAY = datetime(2026, 11, 23, 7, tzinfo=UTC)
_CONTAINERS = (
    ("worker-1", "web-0", "team-a", "registry.example/web:1.4", 0),
    ("worker-1", "web-1", "team-a", "registry.example/web:1.5", 2),
    ("worker-2", "web-2", "team-a", "registry.example/web:1.5", 1),
    ("worker-2", "train-7", "team-b", "registry.example/train:9", 0),
    ("worker-3", "db-0", "team-b", "registry.example/db:16", 0),
)
"""Node, pod, namespace, image, and the number of watches without a path."""
_CONF = b"/etc/app.conf"


def write_fleet(directory: Path, url: str) -> None:
    """Make the databases, and push them."""
    for number, (node, pod, namespace, image, failing) in enumerate(_CONTAINERS, 1):
        path = directory / f"{pod}.db"
        _write(path, number, failing)
        facts = ContainerFacts(f"{number:064x}", pod.partition("-")[0], image, pod, namespace)
        verdicts = (
            CheckVerdict(
                _DAY, "no-path", failing, "no path is known", "irmapdb pre-dump -t PID", fails=True
            ),
        )
        source = PushSource(bytes(path), None, facts, verdicts if failing else ())
        limits = [LimitUse("inotify/max_user_watches", 1000, 500 * number, 3000)]
        options = PushOptions(find_server(url), NodeFacts(node, "prod"), [source], limits, wait_s=0)
        push(options)
    # The last node has pushed nothing for a week.
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE node SET last_push_at = now() - interval '7 days' WHERE name = 'worker-3'"
        )


def _write(path: Path, number: int, failing: int) -> None:
    conf = Identity(254 << 20, 700 + number, FileHandle(1, bytes(8)))
    data = Identity(254 << 20, 800 + number, FileHandle(1, bytes(8)))
    with Store.open(path, create=True) as store:
        for day in range(2):
            at = _DAY + timedelta(days=day, minutes=number)
            end = at + timedelta(milliseconds=40)
            stats = RunStats(
                watches=2 + failing,
                resolved=2,
                unresolved=failing,
                resolve_us=1000 * (number + 4 * day),
                paused=1,
                paused_us=2000 * (number + 4 * day),
                sources={"overlay": 2},
            )
            with store.step() as step:
                old = b"/srv/data/in.csv"
                new = b"/srv/data/in.csv.1" if day and number == 4 else old
                step.prove(
                    [
                        Resolved(conf, _CONF, Source.OVERLAY),
                        Resolved(data, new, Source.OVERLAY),
                    ],
                    at,
                )
                outcome = "failed: no space left" if day and number == 5 else "done"
                run = step.add_run(
                    Event.PRE_DUMP,
                    pid=4240 + number,
                    comm=b"app",
                    started_at=at,
                    finished_at=end,
                    stats=stats,
                    outcome=f"{failing} unresolved" if failing else outcome,
                )
                watches = [
                    WatchRow(_watch(number, 1, conf), b"app", _CONF, None),
                    WatchRow(_watch(number, 2, data), b"app", new, None),
                    *(
                        WatchRow(
                            _watch(number, 3 + one, Identity(41, 900 + one, None)),
                            b"log\xff",
                            None,
                            "scan: not found",
                            0,
                            (Tried("scan", "not found"),),
                        )
                        for one in range(failing)
                    ),
                ]
                step.add_watches(run, watches)
                if new != old:
                    stale = [one for one in step.load([data.key])[data.key] if one.path == old]
                    step.mark_stale([(one, StaleReason.GONE) for one in stale], at)
                    moved = Change(ChangeKind.MOVED, data, new, old, StaleReason.GONE)
                    step.add_changes(run, [moved], at)


def _watch(number: int, wd: int, inode: Identity) -> Watch:
    return Watch(4240 + number, 5, WatchKind.INOTIFY, wd, inode, 0xFFF, 0, 0)
