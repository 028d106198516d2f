"""Makes the JSON document of `irmapdb ps`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from irmapdb.commands import render
from irmapdb.commands.ps_tables import user_name
from irmapdb.commands.watch_rows import row_json
from irmapdb.model import Watch

if TYPE_CHECKING:
    from irmapdb.commands.ps_tables import Shown
    from irmapdb.node.ps import WatchList
    from irmapdb.node.ps_rows import LimitAdvice, ProcessRow, Usage, WatchedPath

__all__ = ["ps_json"]


def ps_json(watch_list: WatchList, shown: Shown) -> dict[str, Any]:
    """The document; `shown` limits the number of processes and rows."""
    limits = {account.sysctl: limit for account, limit in watch_list.limits.items()}
    return {
        "processes": [_process(row) for row in watch_list.processes[: shown.top]],
        "by": shown.by,
        "rows": [render.json_fields(row) for row in watch_list.groups[: shown.top]],
        "totals": render.json_fields(watch_list.totals),
        "users": [_usage(usage) for usage in watch_list.users],
        "limits": {**limits, **watch_list.queues},
        "advice": [_advice(one) for one in watch_list.advice],
        "denied": [render.json_fields(task, "pid comm") for task in watch_list.denied],
        "hidden": len(watch_list.hidden),
        "watches": [_watch(row) for row in watch_list.watches],
        "at": render.json_time(datetime.now(UTC)),
    }


def _process(row: ProcessRow) -> dict[str, Any]:
    counts = render.json_fields(row, "instances watches groups marks shared")
    about = render.json_fields(row, "pid comm uid command container unit cgroup")
    return {**counts, **about, "user": user_name(row.uid)}


def _account(usage: Usage) -> dict[str, Any]:
    return {"uid": usage.uid, "user": user_name(usage.uid), "name": usage.account.sysctl}


def _usage(usage: Usage) -> dict[str, Any]:
    figures = {"used": usage.used, "limit": usage.limit, "in_user_namespaces": usage.below}
    return {**_account(usage), **figures}


def _advice(advice: LimitAdvice) -> dict[str, Any]:
    return {**_account(advice.usage), **render.json_fields(advice, "sysctl value command")}


def _watch(row: WatchedPath) -> dict[str, Any]:
    return {**row_json(row), "mark": None if isinstance(row.watch, Watch) else row.watch.kind}
