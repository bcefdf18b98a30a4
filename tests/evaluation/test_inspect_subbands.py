"""`wfvae inspect VIDEO --subbands`: energy and entropy per Haar sub-band of a video file, as a
table, JSON and a plot.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures.program import Program, clip, load, save
from wfvae.errors import InputError
from wfvae.evaluation.subbands import BAND_NAMES, SubbandStatistics
from wfvae.report.svg_file import Panel, svg_file

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("video") / "in.mp4", clip(9, 34, 48))


def test_energy_and_entropy_are_those_of_the_transform_of_the_decoded_video(
    program: Program, video: Path
) -> None:
    report = program.done("inspect", video, "--subbands")
    frames = load(video)[0][:8].astype(np.float64)
    haar = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    blocks = frames.reshape(4, 2, 17, 2, 24, 2, 3)

    def energies(values: np.ndarray) -> np.ndarray:
        coefficients = np.einsum("at,bh,cw,itjhkwx->abcijkx", haar, haar, haar, values)
        found: np.ndarray = (coefficients**2).sum(axis=(3, 4, 5, 6)).reshape(8)
        return found

    assert (report["frames"], report["frames_counted"], report["coefficients_per_band"]) == (
        9,
        8,
        4 * 17 * 24 * 3,
    )
    assert [band["name"] for band in report["bands"]] == list(BAND_NAMES)
    expected = energies(blocks)
    assert [band["energy"] for band in report["bands"]] == pytest.approx(expected.tolist())
    assert [band["energy_share"] for band in report["bands"]] == pytest.approx(
        (expected / expected.sum()).tolist()
    )
    centred = energies(blocks / 127.5 - 1)  # what the encoder gets
    assert [band["centred_energy_share"] for band in report["bands"]] == pytest.approx(
        (centred / centred.sum()).tolist()
    )
    low = np.einsum("itjhkwx->ijkx", blocks) / math.sqrt(8)
    _, counts = np.unique(np.floor(low + 0.5), return_counts=True)
    share = counts / counts.sum()
    assert report["bands"][0]["entropy_bits"] == pytest.approx(float(-(share * np.log2(share)).sum()))


def test_bin_width_is_taken(program: Program, video: Path) -> None:
    fine, coarse = (program.done("inspect", video, "--subbands", "--bin-width", width) for width in (1, 16))
    assert coarse["bin_width"] == 16.0
    assert all(
        a["entropy_bits"] > b["entropy_bits"] for a, b in zip(fine["bands"], coarse["bands"], strict=True)
    )


def test_plot_shows_each_band_twice_and_is_well_formed(program: Program, video: Path, tmp_path: Path) -> None:
    plot = tmp_path / "bands.svg"
    outcome = program("inspect", video, "--subbands", "--plot", plot)
    assert outcome.code == 0
    assert all(name in outcome.out for name in BAND_NAMES)
    root = ET.parse(plot).getroot()
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert all(texts.count(name) == 2 for name in BAND_NAMES)
    report = program.done("inspect", video, "--subbands")
    assert f"{report['bands'][0]['entropy_bits']:.2f}" in texts
    height = float(root.attrib["height"])
    panels = root.findall(f"{SVG}svg")
    assert len(panels) == 2
    assert float(panels[0].attrib["y"]) + float(panels[0].attrib["height"]) <= float(panels[1].attrib["y"])
    assert float(panels[1].attrib["y"]) + float(panels[1].attrib["height"]) <= height


def test_long_videos_are_read_frame_by_frame(
    program: Program, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    update = SubbandStatistics.update
    monkeypatch.setattr(
        SubbandStatistics, "update", lambda self, frames: (seen.append(len(frames)), update(self, frames))[1]
    )
    program.done("inspect", video, "--subbands")
    assert seen == [1] * 9


def test_zero_level_moves_only_the_mean() -> None:
    statistics = SubbandStatistics()
    statistics.update(np.full((2, 4, 4, 3), 200, dtype=np.uint8))
    plain, middle = statistics.bands(), statistics.bands(zero_level=255)
    assert plain[0].energy == pytest.approx(200.0**2 * 96)
    assert middle[0].energy == pytest.approx((200 - 127.5) ** 2 * 96)
    assert plain[1:] == middle[1:]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["VIDEO", "--plot", "x.svg"], "--subbands"),
        (["VIDEO", "--subbands", "--plot", "x.png"], ".svg"),
        (["VIDEO", "--subbands", "--plot", "nowhere/x.svg"], "no directory"),
        (["VIDEO", "--subbands", "--bin-width", "0"], "bin width"),
        (["BUNDLE", "--subbands"], "no video"),
        (["IMAGE", "--subbands"], "at least 2"),
    ],
)
def test_wrong_use_is_one_line(
    program: Program,
    exported: Callable[..., Path],
    video: Path,
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    single = save(tmp_path / "one.mkv", clip(1), codec="ffv1")
    places = {"VIDEO": video, "IMAGE": single, "BUNDLE": exported("4x8x8-trilinear")}
    assert says in program.refused("inspect", *(places.get(argument, argument) for argument in arguments))


def test_panels_must_be_drawings() -> None:
    with pytest.raises(InputError, match="'a'"):
        svg_file("t", (), [Panel("a", "<p/>")])
