"""Plots as SVG by matplotlib, in one style for the report, the command line and the benchmarks.

The same figure always gives the same text. Its colours follow the reader's light or dark scheme,
and its labels are text, not outlines.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

PAPER, INK, SOFT, GRID = "#ffffff", "#1b1f27", "#5b6472", "#dfe3e9"
ACCENT, SECOND = "#1f6fb2", "#b4562b"
COLOURS = (ACCENT, SECOND, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c8c8c")
_DARK = {PAPER: "#1a1f26", INK: "#e7eaef", SOFT: "#9aa5b4", GRID: "#2d343f"}
_DARK |= {ACCENT: "#66b2f2", SECOND: "#f0a277"}
"""Colours of the dark scheme. All others must be readable on both papers."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "text.parse_math": False,  # names of files may hold dollar signs
    "hatch.color": SECOND,
    "hatch.linewidth": 2.0,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "axes.facecolor": PAPER,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_DOTS_AT = 0.98
"""Height of the dots of infinite values, as a share of the plot's."""


def plot_style() -> AbstractContextManager[None]:
    """Returns the context in which figures are made, drawn and rendered."""
    return matplotlib.rc_context(_STYLE)


def svg_text(figure: Figure, label: str) -> str:
    """Renders a figure as an `<svg>` element that can stand in a page or be a file of its own.

    `label` says what the figure shows, for readers who cannot see it.
    """
    buffer = io.BytesIO()
    # Ids differ between the figures of a page: a pattern that is referenced from another figure is
    # not drawn while that one is hidden.
    salt = f"{label} {figure.get_size_inches()}"
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = buffer.getvalue().decode()
    # Groups are numbered in each figure, and their ids are not used.
    text = re.sub(r' id="[A-Za-z.]+[0-9]?d?_\d+"', "", text[text.index("<svg") :])
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    )
    font = "text{font-family:system-ui,sans-serif !important}"
    text = text.replace("</style>", f"{font}@media (prefers-color-scheme:dark){{{rules}}}</style>", 1)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def draw_psnr(axes: Axes, values: Sequence[float]) -> None:
    """Draws PSNR in dB by frame, with its mean.

    Infinite values are dots along the top. The axis spans at least 4 dB, so that tiny changes look
    tiny.
    """
    decibels = np.asarray(values, dtype=np.float64)
    infinite = np.flatnonzero(np.isinf(decibels))
    decibels = np.where(np.isinf(decibels), np.nan, decibels)
    axes.plot(decibels, color=ACCENT, marker="." if len(decibels) == 1 else None)
    height = np.full(len(infinite), _DOTS_AT)
    axes.plot(infinite, height, ".", color=ACCENT, transform=axes.get_xaxis_transform())
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        average = math.fsum(finite) / len(finite)
        axes.axhline(average, color=SECOND, linestyle="--", linewidth=1.1)
        axes.set_title(f"mean {average:,.2f} dB", loc="right", color=SECOND)
        span = max(max(finite) - min(finite), 4.0)
        middle = (max(finite) + min(finite)) / 2
        axes.set_ylim(middle - 0.58 * span, middle + 0.58 * span)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="frame", ylabel="PSNR (dB)")
    axes.margins(x=0.01)


def draw_bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    y_label: str,
    *,
    log: bool = False,
    labels: bool = True,
) -> None:
    """Draws a group of bars for each name, the first series filled and the second hatched.

    Args:
        series: by label, a value for each name.
        log: shares (0..1) on a logarithmic axis in per cent; values of 0 get no bar.
        labels: write each bar's value above it.
    """
    thick = 0.8 / len(series)
    looks: tuple[dict[str, Any], ...] = (
        {"color": ACCENT},
        {"facecolor": PAPER, "edgecolor": SECOND, "hatch": "////"},
    )
    for place, ((label, values), look) in enumerate(zip(series.items(), looks, strict=False)):
        x = np.arange(len(names)) + (place + 0.5) * thick - 0.4
        drawn = [value if value > 0 or not log else math.nan for value in values]
        bars = axes.bar(x, drawn, 0.92 * thick, label=label, **look)
        if labels:
            texts = [_bar_text(value, log) if math.isfinite(value) else "" for value in drawn]
            axes.bar_label(bars, texts, padding=2, fontsize=7)
    if log:
        positive = [value for values in series.values() for value in values if value > 0]
        axes.set_yscale("log")
        axes.set_ylim(min(positive, default=0.1) / 2, 4.0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.yaxis.set_minor_locator(MaxNLocator(1, prune="both"))
    else:
        axes.margins(y=0.12)
    axes.set_xticks(range(len(names)), names)
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="sub-band", ylabel=y_label)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), borderaxespad=0)


def _bar_text(value: float, log: bool) -> str:
    if not log:
        return f"{value:.2f}"
    return f"{100 * value:.1f}%" if value >= 0.01 else f"{100 * value:.2g}%"
