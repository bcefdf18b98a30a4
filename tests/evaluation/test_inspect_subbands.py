"""`wfvae inspect VIDEO --subbands`: energy and entropy per Haar sub-band of a video file."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures.program import Program, clip, load, save
from wfvae.evaluation.subbands import BAND_NAMES, SubbandStatistics


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("video") / "in.mp4", clip(9, 34, 48))


def test_energy_and_entropy_are_those_of_the_decoded_video(program: Program, video: Path) -> None:
    report = program.done("inspect", video, "--subbands")
    frames = load(video)[0][:8].astype(np.float64)
    haar = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    blocks = frames.reshape(4, 2, 17, 2, 24, 2, 3)

    def energies(values: np.ndarray) -> np.ndarray:
        coefficients = np.einsum("at,bh,cw,itjhkwx->abcijkx", haar, haar, haar, values)
        found: np.ndarray = (coefficients**2).sum(axis=(3, 4, 5, 6)).reshape(8)
        return found

    bands = {key: [band[key] for band in report["bands"]] for key in report["bands"][0]}
    assert (report["frames"], report["frames_counted"]) == (9, 8)
    assert report["coefficients_per_band"] == 4 * 17 * 24 * 3
    assert bands["name"] == list(BAND_NAMES)
    expected, centred = energies(blocks), energies(blocks / 127.5 - 1)
    assert bands["energy"] == pytest.approx(expected.tolist())
    assert bands["energy_share"] == pytest.approx((expected / expected.sum()).tolist())
    assert bands["centred_energy_share"] == pytest.approx((centred / centred.sum()).tolist())
    low = np.einsum("itjhkwx->ijkx", blocks) / math.sqrt(8)
    _, counts = np.unique(np.floor(low + 0.5), return_counts=True)
    share = counts / counts.sum()
    assert bands["entropy_bits"][0] == pytest.approx(float(-(share * np.log2(share)).sum()))


def test_wider_bins_give_lower_entropy(program: Program, video: Path) -> None:
    fine, coarse = (program.done("inspect", video, "--subbands", "--bin-width", width) for width in (1, 16))
    assert coarse["bin_width"] == 16.0
    pairs = zip(fine["bands"], coarse["bands"], strict=True)
    assert all(a["entropy_bits"] > b["entropy_bits"] for a, b in pairs)


def test_plot_shows_each_band_twice(program: Program, video: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "bands.svg"
    outcome = program("inspect", video, "--subbands", "--plot", plot)
    assert outcome.code == 0
    assert all(name in outcome.out for name in BAND_NAMES)
    texts = [element.text for element in ET.parse(plot).getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert all(texts.count(name) == 2 for name in BAND_NAMES)
    report = program.done("inspect", video, "--subbands")
    assert f"{report['bands'][0]['entropy_bits']:.2f}" in texts


def test_plot_without_matplotlib_names_the_extra(
    program: Program, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "wfvae.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'wfvae[plots]'" in program.refused("inspect", video, "--subbands", "--plot", "x.svg")


def test_long_videos_are_read_frame_by_frame(
    program: Program, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(SubbandStatistics, "update", lambda self, frames: seen.append(len(frames)))
    assert "no pair of frames" in program.refused("inspect", video, "--subbands")
    assert seen == [1] * 9


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
