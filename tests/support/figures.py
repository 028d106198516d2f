"""Figures of a machine that does not exist: every metric of irmapdb has a value."""

from __future__ import annotations

import time

from irmapdb.criu.hook_runs import HookRun, HookRuns, Total
from irmapdb.kernel.proc.limits import LimitKind
from irmapdb.node.container_info import ContainerInfo
from irmapdb.node.metrics import (
    ContainerFigures,
    LastRun,
    NodeFigures,
    ServiceFigures,
    UserFigures,
)

__all__ = ["container_figures", "node_figures"]


def container_figures(number: int = 1, **fields: object) -> ContainerFigures:
    """A container whose dump would fail, and whose proof is old."""
    info = ContainerInfo(f"{number:064x}", f"web-{number}", "app:1", "shop/web", "cri-o", "/k")
    figures = ContainerFigures(
        info,
        watches=12,
        resolved=11,
        unresolved=1,
        proved_at_s=time.time() - 100_000,
        verdicts={"fails": 1, "path": 11},
        dump_fails=True,
        stale=3,
    )
    return figures._replace(**fields)  # type: ignore[arg-type]


def node_figures(step: int = 0, *, service: bool = True, named: bool = True) -> NodeFigures:
    """The figures at one time; counters grow with `step`. Every figure shows a fault.

    `named`: whether the files of an engine have the names of the container.
    """
    container = container_figures()
    if not named:
        info = container.info._replace(name=None, image=None, pod=None, engine=None)
        container = container._replace(info=info)
    run = HookRun(
        at_s=time.time(),
        by="hook",
        outcome="failed",
        took_s=1.5,
        paused=True,
        watches=12,
        resolved=11,
        pid=4711,
        container=container.info.id,
        work=b"/run/work",
        text="not done",
    )
    totals = tuple(
        Total(by, outcome, 7 + step, 3.5 + step, 2 + step, 1.5 + step)
        for by, outcome in (("hook", "done"), ("hook", "failed"), ("service", "done"))
    )
    return NodeFigures(
        version="0.2.0",
        at_s=time.time(),
        took_s=0.25,
        limits={LimitKind.INOTIFY_WATCHES: 100, LimitKind.INOTIFY_INSTANCES: 128},
        users=(UserFigures(1000, LimitKind.INOTIFY_WATCHES, 99),),
        containers=(container,),
        containers_left_out=0,
        service=ServiceFigures(5 + step, {"done": 3 + step, "left_to_the_hook": step}, 1.0 + step)
        if service
        else None,
        hook=HookRuns((run,), totals),
        last_runs=(LastRun(container.info.id, run, frozen_s=0.25, freezing_s=0.125),),
    )
