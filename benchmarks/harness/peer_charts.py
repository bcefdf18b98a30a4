"""Pictures of other autoencoders beside ours: a bar per model and engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from harness.tables.format import Result, Row, cpu_text, number, unique
from harness.tables.peers import DIRECTIONS, Clip, measured, measured_clips
from wfvae.report.plots import ACCENT, INK, PAPER, SECOND, SOFT

OURS: dict[str, Any] = {"color": ACCENT}
OTHERS: dict[str, Any] = {"facecolor": PAPER, "edgecolor": SECOND, "hatch": "////"}
DOT: dict[str, Any] = {"linestyle": "none", "markerfacecolor": PAPER, "markeredgecolor": INK}
MARKERS = ("o", "D", "s")
"""Of the smaller frames, the smallest first."""
_BAR, _HEAD = 0.2, 0.6
"""Height of a bar with its distance, and of a block's title and axis, in inches."""
_GAP = 0.7
"""Between groups of bars, in bars."""


def peers_time(result: Result) -> tuple[Figure, str]:
    """Milliseconds per frame."""
    return _chart(result, "ms", 1.0, "ms per frame")


def peers_memory(result: Result) -> tuple[Figure, str]:
    """Peak memory."""
    return _chart(result, "peak_mb", 1e-3, "peak in GB")


def _chart(result: Result, key: str, factor: float, unit: str) -> tuple[Figure, str]:
    """Draws a block per clip length: bars for the largest frames, dots for smaller ones."""
    clips = measured_clips(result)
    lengths = unique(frames for frames, _ in clips)
    rows, places = _arranged([row for row in result["rows"] if row["clips"]], clips[0])
    largest = {frames: max(size for length, size in clips if length == frames) for frames in lengths}
    smaller = unique(sorted(size for frames, size in clips if size < largest[frames]))
    markers = dict(zip(smaller, MARKERS, strict=False))
    figure = Figure((9, 0.5 + len(lengths) * (_HEAD + _BAR * (places[-1] + 1))))
    grid = figure.subplots(len(lengths), 2, sharex="col", sharey=True, squeeze=False)
    for frames, cells in zip(lengths, grid, strict=True):
        sizes = [size for length, size in clips if length == frames]
        for axes, direction in zip(cells, DIRECTIONS, strict=True):
            for row, place in zip(rows, places, strict=True):
                values = {size: measured(row, (frames, size), direction, key) for size in sizes}
                scaled = {
                    size: value if value is None or isinstance(value, str) else value * factor
                    for size, value in values.items()
                }
                _bar(axes, place, scaled, markers, OURS if _is_ours(row) else OTHERS)
            axes.set_title(f"{direction}, {unit}: {frames} frames of {largest[frames]}x{largest[frames]}")
            axes.grid(visible=False, axis="y")
            axes.tick_params(labelbottom=True, length=0)
    for axes in grid[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = axes.dataLim.minposx, axes.dataLim.x1
        axes.set_xlim(low / 1.5, high * (high / low) ** 0.12 * 1.1)  # room for the number of a bar
    grid[0, 0].set_yticks(places, [row["title"] for row in rows])
    grid[0, 0].set_ylim(places[-1] + 0.6, -0.6)
    _explain(figure, markers)
    figure.supxlabel(f"whole clips, fp32 unless bf16 is named; {cpu_text(result['machine'])}", fontsize=8)
    return figure, f"{unit} of WF-VAE (filled bars) and other autoencoders (hatched bars), by clip"


def _is_ours(row: Row) -> bool:
    return bool(row["name"].startswith("wfvae"))


def _arranged(rows: Sequence[Row], clip: Clip) -> tuple[list[Row], list[float]]:
    """Returns our rows by preset, then the others from fast to slow, with their heights."""

    def slowness(row: Row) -> float:
        value = measured(row, clip, "decode", "ms")
        return value if isinstance(value, float) else float("inf")

    ours = [row for row in rows if _is_ours(row)]
    ordered = ours + sorted((row for row in rows if not _is_ours(row)), key=slowness)
    groups = [row["name"].partition("/")[0] if _is_ours(row) else "" for row in ordered]
    starts = [index > 0 and groups[index] != groups[index - 1] for index in range(len(groups))]
    return ordered, [index + _GAP * sum(starts[: index + 1]) for index in range(len(groups))]


def _bar(
    axes: Axes,
    place: float,
    values: Mapping[int, float | str | None],
    markers: Mapping[int, str],
    look: Mapping[str, Any],
) -> None:
    """Draws a row: values by size, of which the largest is the bar."""
    *smaller, largest = sorted(values)
    for size in smaller:
        if isinstance(dot := values[size], float):
            axes.plot(dot, place, markers[size], markersize=4, zorder=3, **DOT)
    end = values[largest]
    if isinstance(end, float):
        bars = axes.barh(place, end, 0.8, **look)
        axes.bar_label(bars, [number(end)], padding=3, fontsize=7)
    elif isinstance(end, str):
        axes.text(0.01, place, end, transform=axes.get_yaxis_transform(), va="center", fontsize=7, color=SOFT)


def _explain(figure: Figure, markers: Mapping[int, str]) -> None:
    """Adds the legend of bars and dots above the blocks."""
    handles: list[Any] = [
        Patch(**OURS, label="WF-VAE"),
        Patch(**OTHERS, label="other autoencoders (PyTorch)"),
    ]
    for size, marker in markers.items():
        handles.append(Line2D([], [], marker=marker, markersize=4, label=f"{size}x{size}", **DOT))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8)
