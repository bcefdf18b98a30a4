"""The sub-bands of a video, for `wfvae inspect VIDEO --subbands`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfvae.cli.output import progress_bar
from wfvae.errors import InputError

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
    """Energy and entropy of the eight sub-bands of a video, read once and in constant memory.

    Raises:
        MediaError: the video cannot be read.
        InputError: it has fewer than 2 frames, or frames below 2x2.
    """
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
                "centred_energy_share": centred.share,
                "entropy_bits": band.entropy,
            }
            for band, centred, axes in zip(
                statistics.bands(bin_width), statistics.bands(bin_width, _MIDDLE), BAND_AXES, strict=True
            )
        ],
    }


def subband_table(facts: dict[str, Any]) -> Table:
    """The sub-bands for a terminal."""
    from rich.table import Table

    table = Table(
        "band",
        "high-pass along",
        "energy",
        "share",
        "centred share",
        "entropy, bits",
        title=f"{facts['frames_counted']} frames",
    )
    for band in facts["bands"]:
        shares = [f"{100 * band[key]:.4g} %" for key in ("energy_share", "centred_energy_share")]
        table.add_row(
            band["name"],
            band["high_pass_along"] or "–",
            f"{band['energy']:.4g}",
            *shares,
            f"{band['entropy_bits']:.3f}",
        )
    return table


def check_plot_name(path: Path) -> None:
    """Raises `InputError` for another kind of file: before the video is read, not after."""
    if path.suffix.lower() != ".svg":
        raise InputError(
            f"the plot is written as SVG, and '{path}' ends otherwise; give a name that ends in .svg"
        )
    if not path.parent.is_dir():
        raise InputError(f"there is no directory {path.parent} for the plot; make it, or choose another one")


def plot_subbands(facts: dict[str, Any], path: Path) -> None:
    """Draws energy shares and entropies as bars, as in Fig. 8 of the paper, into an SVG file.

    Raises `ResourceError` where it cannot be written.
    """
    from wfvae.report.data import SubbandBar, SubbandSeries
    from wfvae.report.svg_file import Panel, svg_file, write_svg
    from wfvae.report.svg_plots import WIDE, bar_plot

    series = [
        SubbandSeries(
            label, tuple(SubbandBar(band["name"], band[key], band["entropy_bits"]) for band in facts["bands"])
        )
        for label, key in (("8-bit levels", "energy_share"), ("centred, [-1, 1]", "centred_energy_share"))
    ]
    energy = bar_plot(series, lambda bar: bar.energy_share, "share of the energy", "", WIDE, log=True)
    entropy = bar_plot(series[:1], lambda bar: bar.entropy_bits, "entropy", "bits", WIDE, log=False)
    notes = (
        (
            f"{facts['frames_counted']} frames of {facts['height']}x{facts['width']}; letters stand for time,"
            " height, width: L sums, H differences of neighbours"
        ),
        f"{facts['definition'].replace('bin_width', format(facts['bin_width'], 'g'))}",
    )
    write_svg(
        path,
        svg_file(
            f"Haar sub-bands of {facts['video']}", notes, [Panel("Energy", energy), Panel("Entropy", entropy)]
        ),
    )
