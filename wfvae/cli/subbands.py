"""The sub-bands of a video, for `wfvae inspect VIDEO --subbands`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfvae.cli.output import progress_bar, text_table
from wfvae.errors import InputError, MissingExtraError
from wfvae.files import check_destination, write_whole

if TYPE_CHECKING:
    from rich.table import Table

DEFINITION = (
    "orthonormal Haar transform of 2x2x2 blocks (time, height, width) of 8-bit RGB; energy: sum of squared"
    " coefficients, and its share of all bands; centred share: the same of video in [-1, 1], as the encoder"
    " gets it; entropy: bits per coefficient of the histogram with bins of bin_width levels"
)
_MIDDLE = 255
"""Twice the level that is 0 in [-1, 1]."""


def measure_subbands(video: Path, bin_width: float) -> dict[str, Any]:
    """Measures energy and entropy of a video's eight sub-bands, in constant memory."""
    from wfvae.evaluation.subbands import BAND_AXES, SubbandStatistics
    from wfvae.runtime.media.video_reader import open_video

    statistics, count = SubbandStatistics(), 0
    with open_video(video) as reader, progress_bar("sub-bands") as progress:
        info = reader.info
        for frame in reader:
            statistics.update(frame[None])
            count += 1
            progress(count, info.frames)
    if count < 2:
        raise InputError(f"{video} has {count} frame; sub-bands in time need at least 2")
    plain, centred = statistics.bands(bin_width), statistics.bands(bin_width, _MIDDLE)
    return {
        "kind": "sub-bands",
        "video": video.name,
        "frames": count,
        "frames_counted": count // 2 * 2,
        "height": info.height,
        "width": info.width,
        "coefficients_per_band": statistics.coefficients,
        "definition": DEFINITION,
        "bin_width": bin_width,
        "bands": [
            {
                "name": band.name,
                "high_pass_along": axes,
                "energy": band.energy,
                "energy_share": band.share,
                "centred_energy_share": middle.share,
                "entropy_bits": band.entropy,
            }
            for band, middle, axes in zip(plain, centred, BAND_AXES, strict=True)
        ],
    }


def subband_table(facts: dict[str, Any]) -> Table:
    """Returns the sub-bands as a table for a terminal."""
    rows = []
    for band in facts["bands"]:
        shares = [f"{100 * band[key]:.4g} %" for key in ("energy_share", "centred_energy_share")]
        axes, entropy = band["high_pass_along"] or "–", f"{band['entropy_bits']:.3f}"
        rows.append((band["name"], axes, f"{band['energy']:.4g}", *shares, entropy))
    columns = ("band", "high-pass along", "energy", "share", "centred share", "entropy, bits")
    return text_table(columns, rows, f"{facts['frames_counted']} frames")


def check_plot(path: Path) -> None:
    """Raises an error if a plot cannot be drawn or written, before the video is read."""
    if path.suffix.lower() != ".svg":
        raise InputError(f"the plot is written as SVG, but got '{path}'; give a name that ends in .svg")
    check_destination(path, overwrite=True, error=InputError)
    try:
        import wfvae.report.plots  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("a plot", str(error.name), "plots") from error


def plot_subbands(facts: dict[str, Any], path: Path) -> None:
    """Draws energy shares and entropies as bars, as in Fig. 8 of the paper, into an SVG file."""
    from matplotlib.figure import Figure

    from wfvae.report.plots import draw_bars, plot_style, svg_text

    bands = facts["bands"]
    names = [band["name"] for band in bands]
    shares = {
        "8-bit levels": [band["energy_share"] for band in bands],
        "centred, [-1, 1]": [band["centred_energy_share"] for band in bands],
    }
    entropies = {"8-bit levels": [band["entropy_bits"] for band in bands]}
    title = f"Haar sub-bands of {facts['video']}"
    notes = (
        f"{facts['frames_counted']} frames of {facts['height']}x{facts['width']}; letters stand for time,"
        f" height, width: L sums, H differences of neighbours; bins of {facts['bin_width']:g} levels"
    )
    with plot_style():
        figure = Figure((10, 6))
        above, below = figure.subplots(2)
        figure.suptitle(f"{title}\n{notes}", x=0.01, ha="left", fontsize=9)
        draw_bars(above, names, shares, "share of the energy", log=True)
        draw_bars(below, names, entropies, "entropy (bits)")
        write_whole(path, svg_text(figure, title) + "\n")
