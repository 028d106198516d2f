"""Writes the figures of this machine in the text format of Prometheus.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import hashlib

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from irmapdb.model import printable_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias, TypeVar

    from prometheus_client.core import Metric

    from irmapdb.criu.hook_runs import Total
    from irmapdb.node.container_info import ContainerInfo
    from irmapdb.node.metrics import ContainerFigures, LastRun, NodeFigures

    _Samples: TypeAlias = Iterable[tuple[Sequence[str], float | None]]
    _One = TypeVar("_One")
    _Table: TypeAlias = Sequence[tuple[str, str, Callable[[_One], float | None]]]
    """The name, the description and the value of each figure of one thing."""

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_LABEL_CHARACTERS = 200


class _Figures:
    # In the form of a registry: the client library asks it once.
    def __init__(self, figures: NodeFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        yield from _of_node(self._figures)
        yield from _of_limits(self._figures)
        yield from _of_containers(self._figures)
        yield from _of_service(self._figures)
        yield from _of_hook(self._figures)
        yield from _of_last_runs(self._figures.last_runs)


def exposition(figures: NodeFigures) -> bytes:
    """The text, in UTF-8. Every label is printable."""
    return generate_latest(_Figures(figures))


def _gauge(name: str, about: str, labels: Sequence[str], samples: _Samples) -> Metric:
    return _filled(GaugeMetricFamily(f"irmapdb_{name}", about, labels=labels), samples)


def _counter(name: str, about: str, labels: Sequence[str], samples: _Samples) -> Metric:
    return _filled(CounterMetricFamily(f"irmapdb_{name}", about, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: _Samples) -> Metric:
    for values, value in samples:
        if value is not None:
            family.add_metric([_label(one) for one in values], value)
    return family


def _number(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"irmapdb_{name}", about, value)


def _label(text: str) -> str:
    # A tenant may have chosen it. Two texts never give one label: node_exporter reads nothing of a
    # file that has the same series twice.
    shown = printable_text(text)
    if len(shown) <= _LABEL_CHARACTERS:
        return shown
    digest = hashlib.blake2b(shown.encode(), digest_size=8).hexdigest()
    return f"{shown[: _LABEL_CHARACTERS - len(digest) - 1]}~{digest}"


def _of_node(figures: NodeFigures) -> Iterator[Metric]:
    version = [([figures.version], 1)]
    yield _gauge("build_info", "The version of irmapdb; always 1.", ["version"], version)
    yield _number("collected_timestamp_seconds", "When these figures were read.", figures.at_s)
    yield _number("collect_seconds", "The time to read them.", figures.took_s)


def _of_limits(figures: NodeFigures) -> Iterator[Metric]:
    yield _gauge(
        "limit",
        "The limit of each user, named after its sysctl below /proc/sys/fs.",
        ["kind"],
        (([str(kind)], limit) for kind, limit in figures.limits.items()),
    )
    yield _gauge(
        "used",
        "Objects that are charged to a user.",
        ["kind", "uid"],
        (
            ([str(one.kind), "unknown" if one.uid is None else str(one.uid)], one.used)
            for one in figures.users
        ),
    )


_OF_CONTAINER: _Table[ContainerFigures] = (
    ("watches", "inotify watches and fanotify marks.", lambda one: one.watches),
    ("resolved_watches", "Watches with a path that the service proved.", lambda one: one.resolved),
    (
        "unresolved_watches",
        "Watches for which the service found no path.",
        lambda one: one.unresolved,
    ),
    (
        "last_proof_timestamp_seconds",
        "When the service last proved the paths.",
        lambda one: one.proved_at_s,
    ),
    ("stale_paths", "Paths in the database that are wrong now.", lambda one: one.stale),
    (
        "dump_fails",
        "1 if a dump would fail, by the prediction of `irmapdb check --all`.",
        lambda one: one.dump_fails,
    ),
)


def _of_containers(figures: NodeFigures) -> Iterator[Metric]:
    found = figures.containers
    left_out = figures.containers_left_out
    yield _number("containers", "Running containers.", len(found) + left_out)
    yield _number(
        "containers_left_out",
        "Running containers without series of their own, because there are too many.",
        left_out,
    )
    yield _gauge(
        "container_info",
        "The names of a container; always 1.",
        ["container", "name", "pod", "image", "engine"],
        ((_names(one.info), 1) for one in found),
    )
    for name, about, value in _OF_CONTAINER:
        values = (([one.info.id], value(one)) for one in found)
        yield _gauge(f"container_{name}", about, ["container"], values)
    yield _gauge(
        "container_verdict_watches",
        "Watches by the verdict of `irmapdb check --all`.",
        ["container", "verdict"],
        (
            ([one.info.id, verdict], number)
            for one in found
            for verdict, number in (one.verdicts or {}).items()
        ),
    )


def _names(info: ContainerInfo) -> list[str]:
    return [text or "" for text in (info.id, info.name, info.pod, info.image, info.engine)]


def _of_service(figures: NodeFigures) -> Iterator[Metric]:
    service = figures.service
    yield _number("service_up", "1 if `irmapdb warm` runs.", int(service is not None))
    if service is None:
        return
    yield _counter("service_looks", "Looks at the containers.", (), [((), service.looks)])
    yield _counter("service_cpu_seconds", "CPU time of all work.", (), [((), service.cpu_s)])
    yield _counter(
        "service_answers",
        "Answers to the hook: done, or left to the hook.",
        ["result"],
        (([result], number) for result, number in service.answered.items()),
    )


_OF_HOOK: _Table[Total] = (
    ("runs", "Runs of the hook since boot.", lambda one: one.runs),
    ("seconds", "Time of these runs.", lambda one: one.took_s),
    ("paused_runs", "Runs in a pause of the container.", lambda one: one.paused_runs),
    (
        "paused_seconds",
        "Time of the runs in a pause: downtime of a container.",
        lambda one: one.paused_s,
    ),
)


def _of_hook(figures: NodeFigures) -> Iterator[Metric]:
    for name, about, value in _OF_HOOK:
        values = (([one.by, one.outcome], value(one)) for one in figures.hook.totals)
        yield _counter(f"hook_{name}", about, ["by", "outcome"], values)


def _unresolved(one: LastRun) -> int | None:
    run = one.run
    if run.watches is None or run.resolved is None:
        return None
    return run.watches - run.resolved


_OF_LAST_RUN: _Table[LastRun] = (
    ("hook_last_run_timestamp_seconds", "When the hook last ran.", lambda one: one.run.at_s),
    ("hook_last_run_seconds", "Time of the last run of the hook.", lambda one: one.run.took_s),
    (
        "hook_last_run_paused_seconds",
        "Time of the last run, if it was in a pause; else 0.",
        lambda one: one.run.took_s if one.run.paused else 0,
    ),
    (
        "hook_last_run_failed",
        "1 if the last run of the hook failed.",
        lambda one: one.run.outcome == "failed",
    ),
    ("hook_last_run_unresolved_watches", "Watches without a path at the last run.", _unresolved),
    (
        "criu_frozen_seconds",
        "The freeze of CRIU's last dump, from stats-dump.",
        lambda one: one.frozen_s,
    ),
    (
        "criu_freezing_seconds",
        "Time until all tasks were stopped at CRIU's last dump, from stats-dump.",
        lambda one: one.freezing_s,
    ),
)


def _of_last_runs(runs: Iterable[LastRun]) -> Iterator[Metric]:
    found = tuple(runs)
    for name, about, value in _OF_LAST_RUN:
        yield _gauge(name, about, ["container"], (([one.container], value(one)) for one in found))
