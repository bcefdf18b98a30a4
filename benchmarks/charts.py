"""Redraws the pictures in benchmarks/results from the committed JSON.

python benchmarks/charts.py
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness.engines import DIRECTIONS
from harness.peer_charts import peers_memory, peers_time
from harness.record import RESULTS
from harness.tables.format import Result
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wfvae.files import write_whole
from wfvae.report.plots import ACCENT, SECOND, plot_style, svg_text

_BLOCK = 4
"""Pixels in height and width that are one in a heat map, to keep the file small."""


def draw(drawing: Callable[[Any], tuple[Figure, str]], data: Any, path: Path) -> None:
    """Writes a drawing as SVG: a function of data, which returns a figure and what it shows."""
    with plot_style():
        figure, label = drawing(data)
        write_whole(path, svg_text(figure, label))


def scale(result: Result) -> tuple[Figure, str]:
    """Peak memory by the length of a clip, streamed and in one piece."""
    figure = Figure((8, 3.2))
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS.values(), strict=True):
        groups: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for row in result["sections"]["length"]:
            if row["direction"] == direction and "peak_mb" in row:
                point = (row["frames"], row["peak_mb"])
                groups.setdefault((row["preset"], row["way"]), []).append(point)
        for (preset, way), points in groups.items():
            look: dict[str, Any] = {"color": ACCENT if preset == "S" else SECOND}
            look |= {"marker": "o"} if way == "stream" else {"marker": "s", "linestyle": "--"}
            axes.plot(*zip(*sorted(points), strict=True), label=f"{preset}, {way}", **look)
        axes.set(title=direction, xlabel="frames", xscale="log", yscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    figure.axes[0].set_ylabel("peak memory, MB")
    figure.axes[0].legend()
    return figure, "Peak memory of streams and of whole clips by the number of frames"


def blockwise(errors: Mapping[str, Any]) -> tuple[Figure, str]:
    """Where and when each method's result differs from direct inference: a cell per method."""
    columns = min(4, len(errors))
    rows = -(-len(errors) // columns)
    figure = Figure((2.4 * columns, 3.1 * rows))
    cells = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for axes in cells.flat:
        axes.set_visible(False)
    for index, (title, error) in enumerate(errors.items()):
        heat, curve = (cells[2 * (index // columns) + part, index % columns] for part in (0, 1))
        _cell(heat, curve, title, error.heat, error.per_frame)
    figure.suptitle("RMS difference to direct inference by place (bright: large) and by frame")
    return figure, "Difference of block-wise to direct inference, by place and by frame, per method"


def _cell(
    heat: Axes, curve: Axes, title: str, place: npt.NDArray[np.float64], frames: npt.NDArray[np.float64]
) -> None:
    for axes in (heat, curve):
        axes.set_visible(True)
        axes.grid(visible=False)
        axes.tick_params(length=0, labelsize=6)
    height, width = (side // _BLOCK * _BLOCK for side in place.shape)
    blocks = place[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    coarse = np.sqrt(np.square(blocks).mean(axis=(1, 3)))
    heat.imshow(coarse, cmap="inferno", vmin=0, vmax=coarse.max() or 1, interpolation="none")
    heat.set_title(title, fontsize=7)
    heat.set(xticks=[], yticks=[])
    curve.fill_between(range(len(frames)), frames, color=ACCENT, linewidth=0)
    curve.set(ylim=(0, frames.max() * 1.1 or 1), yticks=[])
    text = f"at most {place.max():.2g}" if place.max() else "equal bits"
    curve.set_xlabel(text, fontsize=7)


def generation_loss(result: Result) -> tuple[Figure, str]:
    """The training loss by step, a line per bundle."""
    figure = Figure((6, 3))
    axes = figure.subplots()
    for row in result["rows"]:
        axes.plot(row["loss"]["steps"], row["loss"]["means"], label=row["name"])
    axes.set(xlabel="step", ylabel="error of the predicted noise", ylim=(0, None))
    axes.legend()
    return figure, "Training loss of Latte by step"


SOURCES = {"peers-memory-cpu": "peers-cpu"}
"""Results of pictures that are called otherwise."""
PICTURES: dict[str, Callable[[Any], tuple[Figure, str]]] = {
    "peers-cpu": peers_time,
    "peers-memory-cpu": peers_memory,
    "scale-cpu": scale,
    "generation-tiny": generation_loss,
}


def redraw(name: str, folder: Path = RESULTS) -> None:
    """Draws a committed result."""
    result = json.loads((RESULTS / f"{SOURCES.get(name, name)}.json").read_text(encoding="utf-8"))
    draw(PICTURES[name], result, folder / f"{name}.svg")


def main() -> int:
    for name in PICTURES:
        redraw(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
