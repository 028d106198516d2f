"""Makes the HTML page of a report, with Jinja2, which escapes every value."""

from __future__ import annotations

import math
from importlib import resources
from typing import TYPE_CHECKING

from irmapdb.errors import ReportError
from irmapdb.extras import install_extra
from irmapdb.report import charts
from irmapdb.report.cells import cell_text, is_time, number_of
from irmapdb.report.questions import STOP_PARTS

try:
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup
except ImportError as error:
    message = f"jinja2 cannot be used: {error}"
    raise ReportError(message, advice=install_extra("report")) from error

if TYPE_CHECKING:
    from irmapdb.report.collect import Figure, Report

__all__ = ["page"]

_NAMES = ("page.html", "style.css")
_NEAR = 0.8
"""The used share of a limit that the page warns of, as `irmapdb ps` does."""

_HEADINGS = {
    "in_criu_log": "inode",
    "started_at": "time (UTC)",
    "stale_at": "time (UTC)",
    "stale_reason": "reason",
    "moved_to": "now at",
    "paused_ms": "hook in a pause, ms",
    "freezing_ms": "stopping, ms",
    "reading_watches_ms": "reading watches, ms",
    "asking_what_moved_ms": "asking what moved, ms",
    "proving_ms": "proving, ms",
    "rest_ms": "rest, ms",
    "criu_freezing_ms": "CRIU stopping, ms",
    "criu_frozen_ms": "CRIU's freeze, ms",
    "stopped_by": "stopped by",
    "account": "limit",
    "where": "node",
}


def page(report: Report, version: str) -> bytes:
    """The whole page, UTF-8. It has no script, and refers to no other file."""
    top = resources.files("irmapdb.report") / "templates"
    texts = {name: (top / name).read_text("utf-8") for name in _NAMES}
    environment = Environment(
        loader=DictLoader(texts),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell_text
    environment.filters["filled"] = _filled
    # pygal makes these with ElementTree, which escapes.
    environment.filters["svg"] = lambda chart: Markup(chart.svg)  # noqa: S704
    environment.filters["heading"] = lambda name: _HEADINGS.get(name, name.replace("_", " "))
    environment.tests["time"] = is_time
    environment.tests["numeric"] = lambda value: number_of(value) is not None
    text = environment.get_template("page.html").render(
        report=report,
        version=version,
        style=Markup(texts["style.css"]),  # noqa: S704 a file of ours
        near_limits=_near_limits(report.limits),
        charts={
            "stops": charts.stops_chart(report.stops),
            "directories": charts.directories_chart(report.directories),
            "stale": charts.stale_chart(report.stale_hours),
            "limits": charts.limits_chart(report.limits),
        },
    )
    return text.encode("utf-8", "backslashreplace")


def _filled(figure: Figure) -> Figure:
    # Without the parts that have no value: on paper, a table of all parts is too wide.
    parts = {part for part, _ in STOP_PARTS}
    names = [one for one in figure.columns if one not in parts or any(figure.column(one))]
    rows = tuple(zip(*map(figure.column, names), strict=True))
    return figure._replace(columns=tuple(names), rows=rows)


def _near_limits(figure: Figure) -> int:
    # The limits that `irmapdb ps` gives advice for.
    pairs = zip(figure.column("used"), figure.column("maximum"), strict=True)
    return sum(
        (number_of(used) or 0) >= _NEAR * (number_of(most) or math.inf) for used, most in pairs
    )
