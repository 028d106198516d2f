"""Writes the figures of this machine in the text format of Prometheus.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import hashlib

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from irmapdb.node.metrics import LastRun, NodeFigures

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


def _gauge(
    name: str,
    about: str,
    labels: Sequence[str] = (),
    samples: Iterable[tuple[Sequence[str], float | None]] = (),
) -> Metric:
    family = GaugeMetricFamily(f"irmapdb_{name}", about, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric([_label(one) for one in values], value)
    return family


def _counter(
    name: str,
    about: str,
    labels: Sequence[str] = (),
    samples: Iterable[tuple[Sequence[str], float]] = (),
) -> Metric:
    family = CounterMetricFamily(f"irmapdb_{name}", about, labels=labels)
    for values, value in samples:
        family.add_metric([_label(one) for one in values], value)
    return family


def _label(text: str) -> str:
    # A tenant may have chosen it. Two texts never give one label: node_exporter reads nothing of a
    # file that has the same series twice.
    shown = printable(text.encode("utf-8", "surrogateescape"))
    if len(shown) <= _LABEL_CHARACTERS:
        return shown
    digest = hashlib.blake2b(shown.encode(), digest_size=8).hexdigest()
    return f"{shown[: _LABEL_CHARACTERS - len(digest) - 1]}~{digest}"


def _of_node(figures: NodeFigures) -> Iterator[Metric]:
    yield _gauge(
        "build_info", "The version of irmapdb; always 1.", ["version"], [([figures.version], 1)]
    )
    yield _gauge(
        "collected_timestamp_seconds", "When these figures were read.", (), [((), figures.at_s)]
    )
    yield _gauge("collect_seconds", "The time to read them.", (), [((), figures.took_s)])


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


def _of_containers(figures: NodeFigures) -> Iterator[Metric]:
    found = figures.containers
    yield _gauge("containers", "Running containers.", (), [((), _total(figures))])
    yield _gauge(
        "containers_left_out",
        "Running containers without series of their own, because there are too many.",
        (),
        [((), figures.containers_left_out)],
    )
    yield _gauge(
        "container_info",
        "The names of a container; always 1.",
        ["container", "name", "pod", "image", "engine"],
        (
            (
                [
                    one.info.id,
                    *(
                        text or ""
                        for text in (
                            one.info.name,
                            one.info.pod,
                            one.info.image,
                            one.info.engine,
                        )
                    ),
                ],
                1,
            )
            for one in found
        ),
    )
    for name, about, samples in (
        ("watches", "inotify watches and fanotify marks.", ((one, one.watches) for one in found)),
        (
            "resolved_watches",
            "Watches with a path that the service proved.",
            ((one, one.resolved) for one in found),
        ),
        (
            "unresolved_watches",
            "Watches for which the service found no path.",
            ((one, one.unresolved) for one in found),
        ),
        (
            "last_proof_timestamp_seconds",
            "When the service last proved the paths.",
            ((one, one.proved_at_s) for one in found),
        ),
        (
            "stale_paths",
            "Paths in the database that are wrong now.",
            ((one, one.stale) for one in found),
        ),
        (
            "dump_fails",
            "1 if a dump would fail, by the prediction of `irmapdb check --all`.",
            ((one, one.dump_fails) for one in found),
        ),
    ):
        values = (([one.info.id], value) for one, value in samples)
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


def _total(figures: NodeFigures) -> int:
    return len(figures.containers) + figures.containers_left_out


def _of_service(figures: NodeFigures) -> Iterator[Metric]:
    service = figures.service
    yield _gauge("service_up", "1 if `irmapdb warm` runs.", (), [((), int(service is not None))])
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


def _of_hook(figures: NodeFigures) -> Iterator[Metric]:
    totals = figures.hook.totals
    labels = ["by", "outcome"]
    for name, about, samples in (
        ("runs", "Runs of the hook since boot.", ((one, one.runs) for one in totals)),
        ("seconds", "Time of these runs.", ((one, one.took_s) for one in totals)),
        (
            "paused_runs",
            "Runs in a pause of the container.",
            ((one, one.paused_runs) for one in totals),
        ),
        (
            "paused_seconds",
            "Time of the runs in a pause: downtime of a container.",
            ((one, one.paused_s) for one in totals),
        ),
    ):
        values = (([one.by, one.outcome], value) for one, value in samples)
        yield _counter(f"hook_{name}", about, labels, values)


def _of_last_runs(runs: Iterable[LastRun]) -> Iterator[Metric]:
    found = tuple(runs)
    for name, about, samples in (
        ("timestamp_seconds", "When the hook last ran.", ((one, one.run.at_s) for one in found)),
        ("seconds", "Time of the last run of the hook.", ((one, one.run.took_s) for one in found)),
        (
            "paused_seconds",
            "Time of the last run, if it was in a pause; else 0.",
            ((one, one.run.took_s if one.run.paused else 0) for one in found),
        ),
        (
            "failed",
            "1 if the last run of the hook failed.",
            ((one, int(one.run.outcome == "failed")) for one in found),
        ),
        (
            "unresolved_watches",
            "Watches without a path at the last run.",
            ((one, _unresolved(one)) for one in found),
        ),
    ):
        values = (([one.container], value) for one, value in samples)
        yield _gauge(f"hook_last_run_{name}", about, ["container"], values)
    for name, about, samples in (
        (
            "frozen_seconds",
            "The freeze of CRIU's last dump, from stats-dump.",
            ((one, one.frozen_s) for one in found),
        ),
        (
            "freezing_seconds",
            "Time until all tasks were stopped at CRIU's last dump, from stats-dump.",
            ((one, one.freezing_s) for one in found),
        ),
    ):
        values = (([one.container], value) for one, value in samples)
        yield _gauge(f"criu_{name}", about, ["container"], values)


def _unresolved(one: LastRun) -> int | None:
    run = one.run
    if run.watches is None or run.resolved is None:
        return None
    return run.watches - run.resolved
