"""Statistics of the eight Haar sub-bands of a video."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wfvae.errors import InputError
from wfvae.evaluation.subbands import (
    BAND_AXES,
    BAND_NAMES,
    HIGH_ALONG_HEIGHT,
    HIGH_ALONG_TIME,
    HIGH_ALONG_WIDTH,
    SubbandStatistics,
)
from wfvae.video.synthetic.clips import ProceduralClip


def video(frames: int = 8, height: int = 24, width: int = 32) -> np.ndarray:
    return ProceduralClip(3, height, width, noise=3.0).frames(0, frames)


def statistics_of(frames: np.ndarray) -> SubbandStatistics:
    statistics = SubbandStatistics()
    statistics.update(frames)
    return statistics


def wave(axis: int) -> np.ndarray:
    """A video that alternates between 40 and 200 along one axis (0 = time, 1 = height, 2 = width)
    and is constant along the others.
    """
    values = np.array([200, 40] * 4, dtype=np.uint8)
    shape = [1, 1, 1, 1]
    shape[axis] = 8
    return np.broadcast_to(values.reshape(shape), (8, 8, 8, 3)).copy()


def test_energies_and_entropies_agree_with_the_transform_written_as_matrices() -> None:
    frames = video().astype(np.float64)
    haar = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    blocks = frames.reshape(4, 2, 12, 2, 16, 2, 3)
    coefficients = np.einsum("at,bh,cw,itjhkwx->abcijkx", haar, haar, haar, blocks).reshape(8, -1)
    energies = (coefficients**2).sum(axis=1)
    bands = statistics_of(video()).bands(bin_width=3.0)
    assert tuple(band.name for band in bands) == BAND_NAMES
    assert [band.energy for band in bands] == pytest.approx(list(energies))
    assert sum(band.energy for band in bands) == pytest.approx((frames**2).sum()), "Parseval"
    assert [band.share for band in bands] == pytest.approx(list(energies / energies.sum()))
    for band, values in zip(bands, coefficients, strict=True):
        _, counts = np.unique(np.floor(values / 3.0 + 0.5), return_counts=True)
        share = counts / counts.sum()
        assert band.entropy == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-9)


@pytest.mark.parametrize(
    ("axis", "bit"), [(0, HIGH_ALONG_TIME), (1, HIGH_ALONG_HEIGHT), (2, HIGH_ALONG_WIDTH)]
)
def test_alternating_signal_is_in_the_band_of_its_axis(axis: int, bit: int) -> None:
    bands = statistics_of(wave(axis)).bands()
    assert [index for index, band in enumerate(bands) if band.energy > 0] == [0, bit]
    assert BAND_AXES[bit] == "THW"[axis]
    assert bands[bit].energy == pytest.approx(80.0**2 * 8 * 8 * 8 * 3)
    assert all(band.entropy == 0.0 for band in bands)


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


def test_buffer_reused_by_the_caller_changes_nothing() -> None:
    frames, statistics = video(frames=2), SubbandStatistics()
    buffer = frames[:1].copy()
    statistics.update(buffer)
    buffer[:] = 0
    statistics.update(frames[1:])
    assert statistics.bands() == statistics_of(frames).bands()


def test_tall_frames_are_counted_in_stripes() -> None:
    frames = video(frames=2, height=600, width=8)
    energy = float((frames.astype(np.int64) ** 2).sum())
    assert sum(band.energy for band in statistics_of(frames).bands()) == pytest.approx(energy)


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 1, 4, 3), np.uint8)]
)
def test_wrong_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected"):
        SubbandStatistics().update(frames)


def test_other_size_and_empty_count_are_refused() -> None:
    statistics = SubbandStatistics()
    statistics.update(video(frames=1))
    with pytest.raises(InputError, match="no pair"):
        statistics.bands()
    with pytest.raises(InputError, match="one SubbandStatistics per video"):
        statistics.update(video(height=8))
    statistics.update(video(frames=1))
    with pytest.raises(InputError, match="bin_width"):
        statistics.bands(bin_width=0.0)


def test_zero_level_changes_only_the_mean_band() -> None:
    statistics = statistics_of(np.full((2, 4, 4, 3), 200, dtype=np.uint8))
    plain, middle = statistics.bands(), statistics.bands(zero_level=255)
    assert plain[0].energy == pytest.approx(200.0**2 * 96)
    assert middle[0].energy == pytest.approx((200 - 127.5) ** 2 * 96)
    assert plain[1:] == middle[1:]
