"""Draws the charts of the report as SVG, with pygal.

The page allows no script, so the script that pygal puts into each SVG is taken out; so are the
comments with its address. Each chart has a title for screen readers, and the page has the same
numbers in a table.
"""

from __future__ import annotations

import itertools
import math
import sys
from datetime import datetime, timedelta
from xml.etree import ElementTree as ET

from irmapdb.errors import ReportError
from irmapdb.extras import install_extra
from irmapdb.report.cells import cell_text, number_of
from irmapdb.report.questions import STOP_PARTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from irmapdb.report.collect import Figure

try:
    import pygal
    from pygal.style import Style
except ImportError as error:
    message = f"pygal cannot be used: {error}"
    raise ReportError(message, advice=install_extra("report")) from error

# pygal adds a finder for its plugins. Python 3.11 warns of its old kind at each later import,
# and we use no plugin.
sys.meta_path[:] = [one for one in sys.meta_path if type(one).__module__ != "pygal"]

__all__ = ["directories_chart", "limits_chart", "stale_chart", "stops_chart"]

# Distinct also for people who see no red or no green: Okabe and Ito's palette.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_TILE_COLOURS = ("#7fb6dc", "#f2c266", "#72c7a8", "#e0b3cd", "#a6d5f2", "#ea9a62")
"""The same, light enough for black text."""
_MOST_BARS = 20
_MOST_TILES = 24
_MOST_DAYS = 60
_HOURS_OF_HOURLY_BARS = 72
_LABEL_CHARACTERS = 34
_SVG = "http://www.w3.org/2000/svg"
_ROW_PX = 26
_WIDTH_PX = 720
_TILES_PX = 420
_CHARACTER_PX = 9
_LEAST_CHARACTERS = 4


def stops_chart(figure: Figure) -> str:
    """Bars of the last stops, each in its parts; "" if there are none."""
    if not figure.rows:
        return ""
    names = figure.column("container" if "container" in figure.columns else "process")
    times = figure.column("started_at")
    labels = [f"{_time(at)} {_short(name)}" for at, name in zip(times, names, strict=True)]
    chart = _bars(labels[:_MOST_BARS], "ms")
    for column, title in STOP_PARTS:
        values = [number_of(value) for value in figure.column(column)[:_MOST_BARS]]
        if any(values):
            chart.add(title, list(reversed(values)))
    return _svg(chart, "The time in which the tasks stood still, in milliseconds, for each dump")


def directories_chart(figure: Figure) -> str:
    """A treemap of the watches, one tile a directory; "" if there are none."""
    if not figure.rows:
        return ""
    chart = pygal.Treemap(
        height=_TILES_PX, show_legend=False, print_labels=True, **_common(_TILE_COLOURS)
    )
    names = figure.column("directory")
    watches = figure.column("watches")
    counts = [number_of(count) or 0 for count in watches]
    tiles = [*zip(map(cell_text, names), counts[:_MOST_TILES], strict=False)]
    if rest := sum(counts[_MOST_TILES:]):
        tiles.append(("other directories", rest))
    every = sum(counts) or 1
    for name, count in tiles:
        # Of a square tile of this size; most are nearly square.
        room = math.sqrt(count / every * _WIDTH_PX * _TILES_PX) / _CHARACTER_PX
        chart.add(name, [{"value": count, "label": _fitting(name, int(room))}])
    return _svg(chart, "The watches of the last runs, by directory")


def stale_chart(figure: Figure) -> str:
    """Bars of the mappings that went stale, by hour or by day; "" if there are none."""
    hours = [
        (at, number_of(count) or 0)
        for at, count in zip(map(_hour, figure.column("hour")), figure.column("stale"), strict=True)
        if at is not None
    ]
    if not hours:
        return ""
    span = hours[-1][0] - hours[0][0]
    hourly = span <= timedelta(hours=_HOURS_OF_HOURLY_BARS)
    step = timedelta(hours=1) if hourly else timedelta(days=1)
    form = "%m-%d %Hh" if hourly else "%Y-%m-%d"
    sums: dict[datetime, float] = {}
    for at, count in hours:
        start = at if hourly else at.replace(hour=0)
        sums[start] = sums.get(start, 0) + count
    last = max(sums)
    # The database chose both times: a subtraction may end before the year 1.
    longest = (_MOST_DAYS + _HOURS_OF_HOURLY_BARS * hourly) * step
    first = last - min(last - min(sums), longest)
    places = list(_range(first, last, step))
    chart = pygal.Bar(
        height=280,
        show_legend=False,
        x_label_rotation=40,
        x_labels_major_count=10,
        show_minor_x_labels=False,
        **_common(),
    )
    chart.x_labels = [at.strftime(form) for at in places]
    chart.add("went stale", [sums.get(at, 0) for at in places])
    unit = "hour" if hourly else "day"
    return _svg(chart, f"The number of mappings that went stale in each {unit} (UTC)")


def limits_chart(figure: Figure) -> str:
    """Bars of the used share of each limit, in percent; "" if there are none."""
    shares = []
    for where, uid, account, used, maximum in zip(
        *map(figure.column, ("where", "uid", "account", "used", "maximum")), strict=True
    ):
        if most := number_of(maximum):
            share = 100 * (number_of(used) or 0) / most
            shares.append((share, f"{_short(where)} uid {cell_text(uid)} {cell_text(account)}"))
    shares = sorted(shares, reverse=True)[:_MOST_BARS]
    if not shares:
        return ""
    chart = _bars([label for _, label in shares], "%", show_legend=False, range=(0, 100))
    chart.add("used", [round(share, 1) for share, _ in reversed(shares)])
    return _svg(chart, "The used share of each limit, in percent")


# --- pygal ----------------------------------------------------------------------------------------


def _common(colours: Sequence[str] = _COLOURS) -> dict[str, Any]:
    return {
        "js": [],
        "disable_xml_declaration": True,
        "width": _WIDTH_PX,
        "margin": 8,
        "style": Style(
            background="transparent",
            plot_background="transparent",
            foreground="var(--text)",
            foreground_strong="var(--text)",
            foreground_subtle="var(--quiet)",
            guide_stroke_color="var(--line)",
            major_guide_stroke_color="var(--line)",
            opacity="1",
            opacity_hover="1",
            transition="0s",
            font_family="inherit",
            label_font_size=13,
            major_label_font_size=13,
            value_label_font_size=13,
            legend_font_size=13,
            value_label_font_family="inherit",
            colors=tuple(itertools.islice(itertools.cycle(colours), _MOST_TILES + 1)),
        ),
    }


def _bars(labels: Sequence[str], unit: str, **more: Any) -> Any:  # noqa: ANN401 pygal's
    chart = pygal.HorizontalStackedBar(
        height=max(150, 110 + _ROW_PX * len(labels)),
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        truncate_legend=-1,
        formatter=lambda value: f"{value:,.1f} {unit}",
        value_formatter=lambda value: f"{value:g} {unit}",
        **_common(),
        **more,
    )
    chart.x_labels = list(reversed(labels))  # pygal draws the first one at the bottom
    return chart


def _svg(chart: Any, title: str) -> str:  # noqa: ANN401 pygal's
    root = chart.render_tree()
    for parent in list(root.iter()):
        for child in list(parent):
            is_foreign = not isinstance(child.tag, str) or child.tag in {"script", "title"}
            if is_foreign or child.tag == f"{{{_SVG}}}script":
                parent.remove(child)
    root.set("role", "img")
    root.set("aria-label", title)
    root.set("preserveAspectRatio", "xMidYMid meet")
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _range(first: datetime, last: datetime, step: timedelta) -> Sequence[datetime]:
    return [first + index * step for index in range(round((last - first) / step) + 1)]


def _hour(text: object) -> datetime | None:
    # A database may hold any text.
    try:
        return datetime.strptime(str(text).replace("T", " "), "%Y-%m-%d %H")  # noqa: DTZ007 UTC
    except ValueError:
        return None


def _time(value: object) -> str:
    return cell_text(value)[:16].replace("T", " ")


def _short(value: object) -> str:
    text = cell_text(value)
    return text if len(text) <= _LABEL_CHARACTERS else f"{text[: _LABEL_CHARACTERS - 1]}…"


def _fitting(text: str, characters: int) -> str:
    # The end of a path is more useful than its beginning. "": the tile is too small for a label.
    if len(text) <= characters:
        return text
    return f"…{text[1 - characters :]}" if characters >= _LEAST_CHARACTERS else ""
