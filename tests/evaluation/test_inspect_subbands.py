"""`wfvae inspect VIDEO --subbands`: energy and entropy per Haar sub-band of a video file."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from fixtures.program import Program, clip, load, save
from wfvae.evaluation.subbands import BAND_NAMES, SubbandStatistics


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("video") / "in.mp4", clip(9, 34, 48))


def test_energy_and_entropy_are_those_of_the_decoded_video(program: Program, video: Path) -> None:
    report = program.done("inspect", video, "--subbands", "--bin-width", 2)
    statistics = SubbandStatistics()
    statistics.update(load(video)[0])
    assert (report["frames"], report["frames_counted"], report["bin_width"]) == (9, 8, 2.0)
    assert report["coefficients_per_band"] == statistics.coefficients == 4 * 17 * 24 * 3
    plain, centred = statistics.bands(2.0), statistics.bands(2.0, zero_level=255)
    for found, band, middle in zip(report["bands"], plain, centred, strict=True):
        assert (found["name"], found["energy"], found["energy_share"]) == (band.name, band.energy, band.share)
        assert (found["entropy_bits"], found["centred_energy_share"]) == (band.entropy, middle.share)


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


WRONG_USE = [
    ("VIDEO --plot x.svg", "--subbands"),
    ("VIDEO --subbands --plot x.png", ".svg"),
    ("VIDEO --subbands --plot nowhere/x.svg", "does not exist; create it first"),
    ("BUNDLE --subbands", "no video"),
    ("IMAGE --subbands", "at least 2"),
    ("VIDEO --subbands --plot x.svg", "pip install 'wfvae[plots]'"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG_USE)
def test_wrong_use_and_missing_matplotlib_are_one_line(
    program: Program, exported: Any, video: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, says: str
) -> None:
    monkeypatch.delitem(sys.modules, "wfvae.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    single = save(video.with_name("one.mkv"), clip(1), codec="ffv1")
    places = {"VIDEO": video, "IMAGE": single, "BUNDLE": exported("4x8x8-trilinear")}
    assert says in program.refused("inspect", *(places.get(word, word) for word in arguments.split()))
