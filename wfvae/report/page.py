"""The demo's report: one HTML file with inline styles, plots and pictures.

The page has no script and loads nothing but the video beside it; its Content-Security-Policy makes
the browser enforce this.
"""

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave

from wfvae.evaluation.subbands import BAND_NAMES
from wfvae.files import write_whole
from wfvae.report.data import Picture, ReportData
from wfvae.report.plots import draw_bars, draw_psnr, plot_style, svg_text
from wfvae.report.side_by_side import GAIN, difference

_WIDE, _NARROW = (9.8, 2.7), (4.0, 2.5)
"""Sizes in inches of the two drawings of each plot; a style rule shows the one that fits."""


def write_report(path: Path, data: ReportData) -> None:
    """Renders the report and writes it to `path`, whole or not at all."""
    write_whole(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Returns the report as the text of an HTML file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": _number, "scientific": _scientific, "duration": _duration}
    finite = [value for value in data.psnr_per_frame if math.isfinite(value)]
    mean = math.inf if data.psnr_per_frame else None
    if finite:
        mean = math.fsum(finite) / len(finite)
    return environment.get_template("page.html").render(
        data=data,
        run=data.run,
        speed=data.throughput,
        bands=BAND_NAMES,
        gain=GAIN,
        held=sum(check.holds for check in data.parity),
        finite=finite,
        mean_psnr=mean,
        pictures=[_figures(picture) for picture in data.pictures],
        **_plots(data),
    )


def _number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Formats a number; an infinite one as ∞, a missing one as a dash."""
    if value is None:
        return "–"
    return "∞" + unit if math.isinf(value) else f"{value:,.{digits}f}{unit}"


def _scientific(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}"


def _duration(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _figures(picture: Picture) -> list[dict[str, Any]]:
    """Returns input, reconstruction and difference of a frame with their captions."""
    before, after = picture.reference, picture.reconstruction
    apart = difference(before, after)
    error = float(np.mean((before.astype(np.float64) - after) ** 2))
    psnr = 10 * math.log10(255 * 255 / error) if error else math.inf
    captions = {
        f"Input, frame {picture.frame:,}": before,
        f"Reconstruction, {_number(psnr, 2, ' dB')}": after,
        f"Difference × {GAIN}": apart,
    }
    return [
        {"caption": caption, "uri": _png_uri(image), "height": image.shape[0], "width": image.shape[1]}
        for caption, image in captions.items()
    ]


def _png_uri(image: npt.NDArray[np.uint8]) -> str:
    """Returns a picture (H, W, 3) uint8 as a data URI."""
    buffer = io.BytesIO()
    imsave(buffer, image, format="png", pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _plots(data: ReportData) -> dict[str, Markup]:
    """Draws the page's plots, by name; empty where there is nothing to draw."""
    shares = {label: [band.share for band in bands] for label, bands in data.subbands.items()}
    entropies = {label: [band.entropy for band in bands] for label, bands in data.subbands.items()}

    def draw_energy(axes: Axes, labels: bool) -> None:
        draw_bars(axes, BAND_NAMES, shares, "energy share", log=True, labels=labels)

    def draw_entropy(axes: Axes, labels: bool) -> None:
        draw_bars(axes, BAND_NAMES, entropies, "entropy (bits)", labels=labels)

    def draw_quality(axes: Axes, labels: bool) -> None:
        draw_psnr(axes, data.psnr_per_frame)

    plots = dict.fromkeys(("psnr_plot", "energy_plot", "entropy_plot"), Markup())
    if data.psnr_per_frame:
        plots["psnr_plot"] = _both_widths(draw_quality, "PSNR in dB by frame")
    if data.subbands:
        plots["energy_plot"] = _both_widths(draw_energy, "energy share of the eight Haar sub-bands")
        plots["entropy_plot"] = _both_widths(draw_entropy, "entropy in bits of the eight Haar sub-bands")
    return plots


def _both_widths(draw: Callable[[Axes, bool], None], label: str) -> Markup:
    """Draws a plot for wide windows, with labels, and for narrow ones."""
    drawings = []
    with plot_style():
        for name, size in (("wide", _WIDE), ("narrow", _NARROW)):
            figure = Figure(size)
            draw(figure.subplots(), name == "wide")
            drawings.append(f'<div class="plot {name}">{svg_text(figure, label)}</div>')
    return Markup("".join(drawings))
