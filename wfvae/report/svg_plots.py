"""Plots as SVG text: a line over an index, and grouped bars. Colours come from the page's style, so
that dark mode works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from wfvae.errors import InputError
from wfvae.report.data import SubbandBar, SubbandSeries
from wfvae.report.numbers import number, share_text

WIDE, NARROW = 940, 380
"""Widths of the two drawings of every plot; a style rule shows the one that fits, so that labels
stay readable on a phone.
"""


@dataclass(frozen=True)
class _Axes:
    """A plot's area in the drawing and the range of each axis; a logarithmic axis is given the
    logarithms.
    """

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: int = 58
    right: int = 14
    top: int = 16
    bottom: int = 44

    def x(self, value: float) -> float:
        """The drawing's column of a value."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """The drawing's row of a value."""
        low, high = self.y_range
        return (
            self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)
        )

    def grid(self, ticks: Iterable[tuple[float, str]]) -> str:
        """Horizontal lines with their labels."""
        parts = []
        for value, label in ticks:
            row = self.y(value)
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{row:.1f}"'
                f' y2="{row:.1f}"/>'
            )
            parts.append(
                f'<text class="tick" x="{self.left - 8}" y="{row + 4:.1f}"'
                f' text-anchor="end">{escape(label)}</text>'
            )
        return "".join(parts)

    def labels(self, x_label: str, y_label: str) -> str:
        """The names of the axes."""
        middle_x = (self.left + self.width - self.right) / 2
        middle_y = (self.top + self.height - self.bottom) / 2
        return (
            f'<text class="axis" x="{middle_x:.0f}" y="{self.height - 6}"'
            f' text-anchor="middle">{escape(x_label)}</text><text class="axis" transform="translate(13'
            f' {middle_y:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )


def both_widths(draw: Callable[[int], str]) -> str:
    """A plot drawn for wide and for narrow windows."""
    return f'<div class="plot wide">{draw(WIDE)}</div><div class="plot narrow">{draw(NARROW)}</div>'


def _svg(width: int, height: int, label: str, content: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
        f' xmlns="http://www.w3.org/2000/svg">{content}</svg>'
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) within low..high, low <
    high.
    """
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.7)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def line_plot(
    values: Sequence[float],
    x_label: str,
    y_label: str,
    unit: str,
    width: int,
    *,
    least_span: float = 0.0,
    from_zero: bool = False,
) -> str:
    """A line over the index 0, 1, ... as SVG.

    Long series are drawn as the mean and the range of neighbouring values, so that no outlier is
    lost and the file stays small. Values that are not finite (frames equal to the input) are dots
    at the top edge.

    Args:
        least_span: the y axis spans at least this much, so that tiny changes look tiny.
        from_zero: the y axis starts at zero.

    Raises:
        InputError: there are no values.
    """
    if not values:
        raise InputError(f"there are no values of {y_label} to plot; leave the plot out")
    height = 250 if width == WIDE else 230
    finite = [value for value in values if math.isfinite(value)]
    low, high = _y_range(finite, least_span, from_zero)
    axes = _Axes(width, height, (0.0, float(max(len(values) - 1, 1))), (low, high))
    ticks = nice_ticks(low, high, 5)
    parts = [
        axes.grid((tick, _tick_label(tick, ticks)) for tick in ticks),
        _index_ticks(axes, len(values), width),
        _curve(axes, values),
    ]
    if finite:
        mean = sum(finite) / len(finite)
        row = axes.y(mean)
        parts.append(
            f'<line class="mean" x1="{axes.left}" x2="{width - axes.right}" y1="{row:.1f}" y2="{row:.1f}"/>'
        )
        text = f"mean {number(mean)} {unit}"
        parts.append(
            f'<text class="callout" x="{width - axes.right - 4}" y="{axes.top - 4}"'
            f' text-anchor="end">{escape(text)}</text>'
        )
    parts.append(axes.labels(x_label, f"{y_label} ({unit})"))
    return _svg(width, height, f"{y_label} in {unit} over {len(values)} values, by {x_label}", "".join(parts))


def _y_range(finite: Sequence[float], least_span: float, from_zero: bool) -> tuple[float, float]:
    """The y axis of a line plot: the values with some room, and never empty."""
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    span = max(high - low, least_span, 1e-3 * max(abs(high), 1e-9))
    middle = (low + high) / 2
    low, high = middle - 0.58 * span, middle + 0.58 * span
    return (0.0, high) if from_zero else (low, high)


def _tick_label(value: float, ticks: Sequence[float]) -> str:
    """A tick with as many digits as the step between ticks needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{digits}f}"


def _index_ticks(axes: _Axes, count: int, width: int) -> str:
    """Whole numbers along the bottom."""
    ticks = [
        tick
        for tick in nice_ticks(0, max(count - 1, 1), 4 if width == NARROW else 8)
        if tick == int(tick) and tick <= count - 1
    ]
    row = axes.height - axes.bottom + 18
    return "".join(
        f'<text class="tick" x="{axes.x(tick):.1f}" y="{row}" text-anchor="middle">{int(tick):,}</text>'
        for tick in ticks
    )


def _curve(axes: _Axes, values: Sequence[float]) -> str:
    """The line of a plot, its range band where several values share a column, and dots for what is
    not finite.
    """
    columns = min(len(values), (axes.width - axes.left - axes.right) // 2)
    edges = [len(values) * k // columns for k in range(columns + 1)]
    band_top: list[str] = []
    band_bottom: list[str] = []
    line: list[str] = []
    dots: list[str] = []
    runs: list[list[str]] = []
    for start, stop in pairwise(edges):
        bucket = values[start:stop]
        finite = [value for value in bucket if math.isfinite(value)]
        x = axes.x((start + stop - 1) / 2)
        if len(finite) < len(bucket):
            dots.append(f'<circle class="dot" cx="{x:.1f}" cy="{axes.top + 4}" r="2.2"/>')
        if not finite:
            runs.append(line)
            line = []
            continue
        line.append(f"{x:.1f},{axes.y(sum(finite) / len(finite)):.1f}")
        band_top.append(f"{x:.1f},{axes.y(max(finite)):.1f}")
        band_bottom.append(f"{x:.1f},{axes.y(min(finite)):.1f}")
    runs.append(line)
    parts = (
        [f'<polygon class="band" points="{" ".join(band_top + band_bottom[::-1])}"/>']
        if columns < len(values) and band_top
        else []
    )
    for run in runs:
        if len(run) == 1:
            x_text, y_text = run[0].split(",")
            parts.append(f'<circle class="dot" cx="{x_text}" cy="{y_text}" r="2.2"/>')
        elif run:
            parts.append(f'<polyline class="line" points="{" ".join(run)}"/>')
    return "".join(parts + dots)


def bar_plot(
    series: Sequence[SubbandSeries],
    read: Callable[[SubbandBar], float],
    y_label: str,
    unit: str,
    width: int,
    *,
    log: bool,
) -> str:
    """Grouped bars per sub-band as SVG, the first series filled and the second hatched; each bar
    carries its value.

    Args:
        read: takes the value to draw from a bar.
        log: logarithmic y axis with whole powers of ten; values of 0 get no bar.
    """
    height = 280 if width == WIDE else 250
    bars = [[read(bar) for bar in one.bars] for one in series]
    every = [value for group in bars for value in group if value > 0]
    low, high, ticks = _bar_axis(every, log)
    names = [bar.name for bar in series[0].bars]
    axes = _Axes(width, height, (0.0, float(len(names))), (low, high), left=72 if log else 58, top=34)
    hatch = f"hatch{width}{'log' if log else 'lin'}"
    parts = [_hatching(hatch), axes.grid(ticks), _legend(series, axes, hatch)]
    row = height - axes.bottom + 18
    for index, name in enumerate(names):
        parts.append(
            f'<text class="tick" x="{axes.x(index + 0.5):.1f}" y="{row}"'
            f' text-anchor="middle">{escape(name)}</text>'
        )
        for place, group in enumerate(bars):
            if index < len(group):
                title = f"{series[place].label}, {name}: {share_text(group[index])} {unit}"
                parts.append(_bar(axes, index, place, len(bars), group[index], log, hatch, title))
    label = f"{y_label} ({unit})" if unit else y_label
    parts.append(axes.labels("sub-band", label))
    return _svg(width, height, f"{label} of the eight Haar sub-bands", "".join(parts))


def _bar_axis(values: Sequence[float], log: bool) -> tuple[float, float, list[tuple[float, str]]]:
    """Range and ticks of the bars' y axis; in logarithms when log."""
    if log:
        # A decade of room below the smallest value, so that its bar can be seen.
        low = math.floor(math.log10(min(values, default=0.1)) - 0.3)
        high = max(math.ceil(math.log10(max(values, default=1.0)) - 1e-9), low + 1)
        powers = range(high, low - 1, -1 if high - low <= 6 else -2)
        return float(low), float(high), [(float(power), f"{100 * 10.0**power:g} %") for power in powers]
    top = max(max(values, default=1.0) * 1.12, 1e-9)
    ticks = nice_ticks(0.0, top, 5)
    return 0.0, top, [(tick, _tick_label(tick, ticks)) for tick in ticks]


def _bar(
    axes: _Axes, index: int, place: int, places: int, value: float, log: bool, hatch: str, title: str
) -> str:
    """One bar with its value above it."""
    if value <= 0 and log:
        return ""
    slot = axes.x(1) - axes.x(0)
    thick = slot * (0.62 if places == 1 else 0.8) / places
    left = axes.x(index + 0.5) + (place - places / 2) * thick
    top, bottom = axes.y(math.log10(value) if log else value), axes.height - axes.bottom
    look = 'class="bar"' if place == 0 else f'class="bar second" fill="url(#{hatch})"'
    shape = (
        f'<rect {look} x="{left + 1:.1f}" y="{top:.1f}" width="{thick - 2:.1f}"'
        f' height="{max(bottom - top, 0):.1f}" rx="1.5">'
    )
    shape += f"<title>{escape(title.strip())}</title></rect>"
    if thick < 34:
        return shape
    text = _bar_label(value, log)
    return (
        shape + f'<text class="value" x="{left + thick / 2:.1f}" y="{top - 4:.1f}"'
        f' text-anchor="middle">{text}</text>'
    )


def _bar_label(value: float, log: bool) -> str:
    """The short number above a bar: percent for shares."""
    if not log:
        return f"{value:.2f}"
    return f"{100 * value:.1f}%" if value >= 0.01 else f"{100 * value:.2g}%"


def _legend(series: Sequence[SubbandSeries], axes: _Axes, hatch: str) -> str:
    """A swatch and name per series along the top."""
    parts, x = [], float(axes.left)
    for place, one in enumerate(series):
        look = 'class="bar"' if place == 0 else f'class="bar second" fill="url(#{hatch})"'
        parts.append(f'<rect {look} x="{x:.0f}" y="3" width="16" height="11" rx="1.5"/>')
        parts.append(f'<text class="tick" x="{x + 22:.0f}" y="13">{escape(one.label)}</text>')
        x += 40 + 7.2 * len(one.label)
    return "".join(parts)


def _hatching(name: str) -> str:
    """The pattern that tells the second series from the first without colour."""
    return (
        f'<defs><pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse"'
        ' patternTransform="rotate(45)"><rect class="hatch-ground" width="6" height="6"/><rect'
        ' class="hatch-line" width="2.4" height="6"/></pattern></defs>'
    )
