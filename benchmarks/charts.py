"""Charts as SVG text: lines and bubbles over linear or logarithmic axes, readable on light and dark
pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 560, 400
"""Of a chart, without its legend."""
_LEGEND_LINE = 15
_LETTER = 6.0
"""Width of a letter, about."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 46
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c8c8c")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:13px}"
    ".grid{stroke:#8884;stroke-width:1}.line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[tuple[float, float]]
    radii: Sequence[float] = ()
    """Of the points, in pixels; 3.5 each if there are none."""
    labels: Sequence[str] = ()
    """Beside the points."""
    line: bool = True
    """Whether the points are joined."""
    colour: int = 0
    """Index; what has the same colour is of one kind."""
    dash: int = 0


@dataclass(frozen=True)
class Chart:
    """One plot."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    legend: bool = True
    kinds: Sequence[str] = field(default=())
    """Names of the colours, where the legend should tell these instead of the series."""


def draw(charts: Sequence[Chart], columns: int = 2) -> str:
    """Charts side by side in one SVG."""
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    drawings = [_Drawing(chart) for chart in charts]
    parts, top = [], 0
    for row in range(rows):
        neighbours = drawings[row * columns : (row + 1) * columns]
        for column, drawing in enumerate(neighbours):
            parts.append(f'<g transform="translate({column * WIDTH} {top})">{drawing.svg()}</g>')
        top += max(drawing.height for drawing in neighbours)
    size = f'viewBox="0 0 {columns * WIDTH} {top}" width="{columns * WIDTH}" height="{top}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}'
        f' role="img"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


class _Axis:
    """From values to pixels."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float) -> None:
        self.log, self._start, self._end = log, start, end
        self.usable = [value for value in values if value > 0 or not log]
        low, high = (min(self.usable), max(self.usable)) if self.usable else (1.0, 10.0)
        if log:
            self._low, self._high = math.log10(low) - 0.12, math.log10(high) + 0.12
        else:
            self._low, self._high = min(0.0, low), high * 1.08 or 1.0

    def __call__(self, value: float) -> float:
        where = math.log10(value) if self.log else value
        return self._start + (where - self._low) / (self._high - self._low) * (self._end - self._start)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and how they are written."""
        if not self.log:
            values = MaxNLocator(5).tick_values(self._low, self._high)
            return [(value, f"{value:,.6g}") for value in values if self._low <= value <= self._high]
        span = self._high - self._low
        factors = range(1, 10) if span < 0.8 else (1, 2, 5) if span < 2.2 else (1,)
        powers = range(math.floor(self._low), math.ceil(self._high) + 1)
        values = [factor * 10.0**power for power in powers for factor in factors]
        return [(value, f"{value:,.6g}") for value in values if self._low <= math.log10(value) <= self._high]


def _overlap(place: tuple[float, float], width: float, other: tuple[float, float, float]) -> bool:
    """Whether a label at a place (left, row) would touch another (left, row, width)."""
    left, row = place
    return abs(row - other[1]) < _LEGEND_LINE - 3 and left < other[0] + other[2] and other[0] < left + width


class _Drawing:
    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        points = [point for one in chart.series for point in one.points]
        self._x = _Axis([x for x, _ in points], chart.log_x, _LEFT, WIDTH - _RIGHT)
        self._y = _Axis([y for _, y in points], chart.log_y, HEIGHT - _BOTTOM, _TOP)

        self._entries = self._legend_entries()
        self._taken: list[tuple[float, float, float]] = []

    @property
    def height(self) -> int:
        """With the legend, which stands below."""
        return HEIGHT + _LEGEND_LINE * -(-len(self._entries) // 2)

    def svg(self) -> str:
        return "".join(
            [*self._frame(), *(self._one(series) for series in self._chart.series), *self._legend()]
        )

    def _frame(self) -> list[str]:
        chart, bottom = self._chart, HEIGHT - _BOTTOM
        parts = [f'<text class="title" x="{_LEFT}" y="16">{escape(chart.title)}</text>']
        for value, label in self._y.ticks():
            row = self._y(value)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{row:.1f}" y2="{row:.1f}"/>'
            )
            parts.append(f'<text x="{_LEFT - 6}" y="{row + 4:.1f}" text-anchor="end">{label}</text>')
        for value, label in self._x.ticks():
            column = self._x(value)
            parts.append(
                f'<line class="grid" x1="{column:.1f}" x2="{column:.1f}" y1="{_TOP}" y2="{bottom}"/>'
            )
            parts.append(f'<text x="{column:.1f}" y="{bottom + 15}" text-anchor="middle">{label}</text>')
        middle = (_TOP + bottom) / 2
        parts.append(
            f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 12}"'
            f' text-anchor="middle">{escape(chart.x_label)}</text>'
        )
        parts.append(
            f'<text transform="translate(14 {middle}) rotate(-90)"'
            f' text-anchor="middle">{escape(chart.y_label)}</text>'
        )
        return parts

    def _one(self, series: Series) -> str:
        colour = _COLOURS[series.colour % len(_COLOURS)]
        kept = [
            (self._x(x), self._y(y), index)
            for index, (x, y) in enumerate(series.points)
            if (x > 0 or not self._x.log) and (y > 0 or not self._y.log)
        ]
        parts = []
        if series.line and len(kept) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in kept)
            dash = f' stroke-dasharray="{_DASHES[series.dash % len(_DASHES)]}"' if series.dash else ""
            parts.append(f'<polyline class="line" stroke="{colour}"{dash} points="{path}"/>')
        for x, y, index in kept:
            radius = series.radii[index] if series.radii else 3.5
            label = series.labels[index] if series.labels else ""
            opacity = "0.55" if series.radii else "1"
            title = escape(label or series.name)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}"'
                f' fill-opacity="{opacity}">'
            )
            parts.append(f"<title>{title}</title></circle>")
            if label:
                parts.append(self._label(label, x, y, radius))
        return "".join(parts)

    def _label(self, label: str, x: float, y: float, radius: float) -> str:
        """Beside its point, where no other label stands yet; with a thin line if that is further
        off.
        """
        width = _LETTER * len(label)
        shifts = [0, *(sign * step * _LEGEND_LINE for step in range(1, 16) for sign in (-1, 1))]
        places = [
            (start, y + shift) for shift in shifts for start in (x + radius + 3, x - radius - 3 - width)
        ]
        inside = [
            (a, b) for a, b in places if a >= _LEFT and a + width <= WIDTH and _TOP < b < HEIGHT - _BOTTOM
        ]
        free = [place for place in inside if all(not _overlap(place, width, other) for other in self._taken)]
        left, row = (free or inside or places)[0]
        self._taken.append((left, row, width))
        line = ""
        if abs(row - y) > _LEGEND_LINE:
            end = left if left > x else left + width
            line = (
                f'<line stroke="#888" stroke-width="0.6" x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}"'
                f' y2="{row:.1f}"/>'
            )
        return f'{line}<text x="{left:.1f}" y="{row + 4:.1f}">{escape(label)}</text>'

    def _legend_entries(self) -> list[tuple[str, int, int]]:
        """Name, colour and dash of each."""
        chart = self._chart
        if not chart.legend:
            return []
        if chart.kinds:
            return [(name, colour, 0) for colour, name in enumerate(chart.kinds)]
        return [(one.name, one.colour, one.dash) for one in chart.series]

    def _legend(self) -> list[str]:
        parts = []
        for index, (name, colour, dash) in enumerate(self._entries):
            row, left = HEIGHT + 6 + _LEGEND_LINE * (index // 2), 20 + index % 2 * WIDTH // 2
            dashes = f' stroke-dasharray="{_DASHES[dash % len(_DASHES)]}"' if dash else ""
            ink = _COLOURS[colour % len(_COLOURS)]
            parts.append(
                f'<line class="line" stroke="{ink}"{dashes} x1="{left}" x2="{left + 22}" y1="{row - 4}"'
                f' y2="{row - 4}"/>'
            )
            parts.append(f'<text x="{left + 28}" y="{row}">{escape(name)}</text>')
        return parts
