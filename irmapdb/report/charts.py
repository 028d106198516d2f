"""Draws the charts of the report as SVG, with pygal.

The page allows no script, so the script that pygal puts into each SVG is taken out; so are the
comments with its address. Each chart has a title, and the page has the same numbers in a table.
"""

from __future__ import annotations

import itertools
import math
import sys
from datetime import datetime, timedelta
from xml.etree import ElementTree as ET

from irmapdb.errors import ReportError
from irmapdb.extras import install_extra
from irmapdb.record import Record
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

__all__ = ["Chart", "directories_chart", "limits_chart", "stale_chart", "stops_chart"]

# Distinct also for people who see no red or no green: Okabe and Ito's palette, with grey for black.
# One for each of STOP_PARTS.
_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f"
)  # fmt: skip
_TILE_COLOURS = ("#7fb6dc", "#f2c266", "#72c7a8", "#e0b3cd", "#a6d5f2", "#ea9a62")
"""The same, light enough for black text."""
_MOST_BARS = 20
_MOST_TILES = 24
_MOST_DAYS = 60
_LEAST_PLACES = 12
_HOURS_OF_HOURLY_BARS = 72
_MOST_TICKS = 5
_LABEL_CHARACTERS = 34
_SVG = "http://www.w3.org/2000/svg"
_ROW_PX = 26
_LEGEND_PX = 21
_TEXT_PX = 16
_WIDTH_PX = 720
_TILES_PX = 420
_CHARACTER_PX = 9
_LEAST_CHARACTERS = 4


class Chart(Record):
    """An SVG element with its title."""

    title: str
    svg: str


def stops_chart(figure: Figure) -> Chart | None:
    """Bars of the first stops of the table, each in its parts; None if there are none."""
    if not figure.rows:
        return None
    names = figure.column("container" if "container" in figure.columns else "process")
    times = figure.column("started_at")
    labels = [f"{_time(at)} {_short(name)}" for at, name in zip(times, names, strict=True)]
    rows = min(len(labels), _MOST_BARS)
    parts = [
        (title, [number_of(value) for value in figure.column(column)[:rows]])
        for column, title in STOP_PARTS
    ]
    shown = [(title, values) for title, values in parts if any(values)]
    longest = max(
        (sum(value or 0 for value in bar) for bar in zip(*(one for _, one in shown), strict=True)),
        default=0,
    )
    chart = _bars(labels[:rows], "ms", _ticks(longest), legends=len(shown))
    for title, values in shown:
        chart.add(title, list(reversed(values)))
    title = "The time for which each dump stopped the tasks, in milliseconds"
    of = "last {} of {} dumps" if "process" in figure.columns else "longest {} of {} dumps"
    return _drawn(chart.render_tree(), title, of, rows, len(labels) + figure.left_out)


def directories_chart(figure: Figure) -> Chart | None:
    """A treemap of the watches, one tile a directory; None if there are none."""
    if not figure.rows:
        return None
    chart = pygal.Treemap(
        height=_TILES_PX, show_legend=False, print_labels=True, **_common(_TILE_COLOURS)
    )
    names = figure.column("directory")[:_MOST_TILES]
    watches = figure.column("watches")[:_MOST_TILES]
    for name, count in zip(names, watches, strict=True):
        label = f"{cell_text(name)}: {cell_text(count)}"
        chart.add(label, [{"value": number_of(count) or 0, "label": label}])
    every = len(figure.rows) + figure.left_out
    title = "The watches of the last run, by directory"
    root = chart.render_tree()
    _fit_tiles(root)
    return _drawn(root, title, "largest {} of {} directories", len(names), every)


def stale_chart(figure: Figure) -> Chart | None:
    """Bars of the mappings that went stale, by hour or by day; None if there are none."""
    hours = [
        (at, number_of(count) or 0)
        for at, count in zip(map(_hour, figure.column("hour")), figure.column("stale"), strict=True)
        if at is not None
    ]
    if not hours:
        return None
    span = max(hours)[0] - min(hours)[0]
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
    wished = min(max(last - min(sums), (_LEAST_PLACES - 1) * step), longest)
    first = last - min(wished, last - datetime.min)  # noqa: DTZ901 UTC
    places = list(_range(first, last, step))
    counts = [sums.get(at, 0) for at in places]
    chart = pygal.Bar(
        height=280,
        show_legend=False,
        x_label_rotation=40,
        x_labels_major_every=math.ceil(len(places) / _LEAST_PLACES),
        show_minor_x_labels=False,
        value_formatter=_number,
        **_common(),
    )
    chart.x_labels = [at.strftime(form) for at in places]
    chart.y_labels = _ticks(max(counts), least_step=1)
    chart.add("went stale", counts)
    unit = "hour" if hourly else "day"
    cut = f"; the last {len(places)} days" if first > min(sums) else ""
    title = f"The number of paths that went stale in each {unit} (UTC){cut}"
    return Chart(title, _svg(chart.render_tree(), title))


def limits_chart(figure: Figure) -> Chart | None:
    """Bars of the used share of each limit, in percent; None if there are none."""
    shares = []
    one_place = len({*figure.column("where")}) == 1
    for where, uid, account, used, maximum in zip(
        *map(figure.column, ("where", "uid", "account", "used", "maximum")), strict=True
    ):
        if most := number_of(maximum):
            share = 100 * (number_of(used) or 0) / most
            user = f"uid {cell_text(uid)}, {cell_text(account)}"
            shares.append((share, user if one_place else f"{_short(where)}, {user}"))
    if not shares:
        return None
    shown = sorted(shares, reverse=True)[:_MOST_BARS]
    ticks = _ticks(max(100, shown[0][0]))
    chart = _bars([label for _, label in shown], "%", ticks, legends=0)
    chart.add("used", [round(share, 1) for share, _ in reversed(shown)])
    title = "The used share of each limit, in percent"
    every = len(shares) + figure.left_out
    return _drawn(chart.render_tree(), title, "fullest {} of {} limits", len(shown), every)


# --- pygal ----------------------------------------------------------------------------------------


def _common(colours: Sequence[str] = _COLOURS) -> dict[str, Any]:
    return {
        "js": [],
        "disable_xml_declaration": True,
        "width": _WIDTH_PX,
        "margin": 8,
        "margin_right": 32,  # for half of the last label
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


def _bars(labels: Sequence[str], unit: str, ticks: Sequence[float], legends: int) -> Any:  # noqa: ANN401 pygal's
    chart = pygal.HorizontalStackedBar(
        height=70 + _ROW_PX * max(2, len(labels)) + _LEGEND_PX * legends,
        show_legend=legends > 0,
        legend_at_bottom=True,
        # With more columns, pygal keeps no room for the last row of an odd number.
        legend_at_bottom_columns=1,
        truncate_legend=-1,
        truncate_label=-1,
        formatter=lambda value: f"{value:,.1f} {unit}",
        value_formatter=_number,
        range=(0, ticks[-1]),
        **_common(),
    )
    chart.y_labels = ticks
    chart.x_labels = list(reversed(labels))  # pygal draws the first one at the bottom
    return chart


def _ticks(largest: float, least_step: float = 0) -> list[float]:
    # A few round numbers from 0 to the largest value or a little more.
    step = max(10 ** math.floor(math.log10(largest)) / 10 if largest > 0 else 1, least_step)
    step = next(step * one for one in (1, 2, 5, 10, 20) if largest / (step * one) <= _MOST_TICKS)
    return [index * step for index in range(max(1, math.ceil(largest / step)) + 1)]


def _drawn(root: ET.Element, title: str, of: str, shown: int, every: int) -> Chart:
    if every > shown:
        title = f"{title}; the {of.format(shown, f'{every:,}')}"
    return Chart(title, _svg(root, title))


def _fit_tiles(root: ET.Element) -> None:
    # pygal draws the whole text of each tile.
    tiles = [one for one in root.iter("rect") if "reactive" in one.get("class", "")]
    texts = [one for one in root.iter("text") if one.get("class") == "label"]
    for tile, text in zip(tiles, texts, strict=True):
        low = float(tile.get("height", "0")) < _TEXT_PX
        characters = 0 if low else int(float(tile.get("width", "0")) / _CHARACTER_PX)
        text.text = _fitting(str(text.text), characters)


def _svg(root: Any, title: str) -> str:  # noqa: ANN401 a comment has no str for its tag
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


def _number(value: float) -> str:
    return f"{value:,.10g}"


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
