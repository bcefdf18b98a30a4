"""Statistics of the eight Haar sub-bands of a video."""

import math

import numpy as np
import pytest

from wfvae.evaluation.subbands import SubbandStatistics
from wfvae.video.synthetic.clips import ProceduralClip


def video(frames: int = 8, height: int = 24, width: int = 32) -> np.ndarray:
    return ProceduralClip(3, height, width, noise=3.0).frames(0, frames)


def statistics_of(frames: np.ndarray) -> SubbandStatistics:
    statistics = SubbandStatistics()
    statistics.update(frames)
    return statistics


def test_energies_and_entropies_agree_with_the_transform_written_as_matrices() -> None:
    frames = video().astype(np.float64)
    haar = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    blocks = frames.reshape(4, 2, 12, 2, 16, 2, 3)
    coefficients = np.einsum("at,bh,cw,itjhkwx->abcijkx", haar, haar, haar, blocks).reshape(8, -1)
    energies = (coefficients**2).sum(axis=1)
    bands = statistics_of(video()).bands(bin_width=3.0)
    assert [band.name for band in bands] == ["LLL", "LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH"]
    assert [band.energy for band in bands] == pytest.approx(list(energies))
    assert sum(band.energy for band in bands) == pytest.approx((frames**2).sum()), "Parseval"
    assert [band.share for band in bands] == pytest.approx(list(energies / energies.sum()))
    for band, values in zip(bands, coefficients, strict=True):
        _, counts = np.unique(np.floor(values / 3.0 + 0.5), return_counts=True)
        share = counts / counts.sum()
        assert band.entropy == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-9)


def test_black_video_has_no_energy_and_no_nan() -> None:
    bands = statistics_of(np.zeros((2, 4, 4, 3), dtype=np.uint8)).bands()
    assert all(band.energy == band.share == band.entropy == 0.0 for band in bands)


def test_frames_in_any_chunks_give_the_same_bands() -> None:
    frames = video(frames=9, height=15, width=17)
    pieces = SubbandStatistics()
    for start, stop in ((0, 1), (1, 1), (1, 4), (4, 9)):
        pieces.update(frames[start:stop])
    assert pieces.bands() == statistics_of(frames[:8, :14, :16]).bands()
    assert pieces.coefficients == 4 * 7 * 8 * 3


def test_zero_level_changes_only_the_mean_band() -> None:
    statistics = statistics_of(np.full((2, 4, 4, 3), 200, dtype=np.uint8))
    plain, middle = statistics.bands(), statistics.bands(zero_level=255)
    assert plain[0].energy == pytest.approx(200.0**2 * 96)
    assert middle[0].energy == pytest.approx((200 - 127.5) ** 2 * 96)
    assert plain[1:] == middle[1:]
