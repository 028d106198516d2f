"""Makes the JSON document of `irmapdb ps`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from irmapdb.commands import render
from irmapdb.commands.ps_tables import user_name
from irmapdb.commands.watch_rows import watch_json
from irmapdb.model import Watch

if TYPE_CHECKING:
    from irmapdb.commands.ps_tables import Shown
    from irmapdb.node.container_info import ContainerInfo
    from irmapdb.node.ps import WatchList
    from irmapdb.node.ps_groups import GroupRow
    from irmapdb.node.ps_rows import LimitAdvice, ProcessRow, Usage, WatchedPath

__all__ = ["ps_json"]


def ps_json(watch_list: WatchList, shown: Shown) -> dict[str, Any]:
    """The document; `shown` limits the number of processes and rows."""
    return {
        "processes": [_process(row) for row in watch_list.processes[: shown.top]],
        "by": shown.by,
        "rows": [_group(row) for row in watch_list.groups[: shown.top]],
        "totals": watch_list.totals._asdict(),
        "users": [_usage(usage) for usage in watch_list.users],
        "limits": {
            **{account.sysctl: limit for account, limit in watch_list.limits.items()},
            **watch_list.queues,
        },
        "advice": [_advice(one) for one in watch_list.advice],
        "denied": [
            {"pid": task.pid, "comm": render.json_path(task.comm)} for task in watch_list.denied
        ],
        "hidden": len(watch_list.hidden),
        "watches": [_watch(row) for row in watch_list.watches],
        "at": render.json_time(datetime.now(UTC)),
    }


def _process(row: ProcessRow) -> dict[str, Any]:
    return {
        "pid": row.pid,
        "comm": render.json_path(row.comm),
        "uid": row.uid,
        "instances": row.instances,
        "watches": row.watches,
        "groups": row.groups,
        "marks": row.marks,
        "shared": row.shared,
        "user": user_name(row.uid),
        "command": render.json_path(row.command),
        "container": _container(row.container),
        "unit": row.unit,
        "cgroup": row.cgroup,
    }


def _container(info: ContainerInfo | None) -> dict[str, Any] | None:
    return None if info is None else info._asdict()


def _group(row: GroupRow) -> dict[str, Any]:
    return {
        "name": None if row.name is None else os.fsdecode(row.name),
        "uid": row.uid,
        "container": _container(row.container),
        "mntns": row.mntns,
        "processes": row.processes,
        "instances": row.instances,
        "watches": row.watches,
        "groups": row.groups,
        "marks": row.marks,
        "with_inotify": row.with_inotify,
        "with_fanotify": row.with_fanotify,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "uid": usage.uid,
        "user": user_name(usage.uid),
        "name": usage.account.sysctl,
        "used": usage.used,
        "limit": usage.limit,
        "in_user_namespaces": usage.below,
    }


def _advice(advice: LimitAdvice) -> dict[str, Any]:
    return {
        "uid": advice.usage.uid,
        "user": user_name(advice.usage.uid),
        "name": advice.usage.account.sysctl,
        "sysctl": advice.sysctl,
        "value": advice.value,
        "command": advice.command,
    }


def _watch(row: WatchedPath) -> dict[str, Any]:
    return {
        **watch_json(row.watch, row.comm),
        "mark": None if isinstance(row.watch, Watch) else row.watch.kind,
        "mask": row.watch.mask,
        "path": render.json_path(row.path),
        "why": row.why,
        "mntns": row.mntns,
    }
