"""The sub-band statistics, and the side-by-side frames that are shown with them."""

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
from wfvae.report.side_by_side import BACKGROUND, GAP, difference, side_by_side, side_by_side_size
from wfvae.video.synthetic.clips import ProceduralClip
from wfvae.video.synthetic.font import GLYPH_HEIGHT, draw_text, text_mask, text_size


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


def test_energies_satisfy_parseval_exactly() -> None:
    frames = video()
    bands = statistics_of(frames).bands()
    pixel_energy = int((frames.astype(np.int64) ** 2).sum())
    assert sum(band.energy for band in bands) == pytest.approx(pixel_energy, rel=1e-12)
    assert sum(band.share for band in bands) == pytest.approx(1.0)
    assert tuple(band.name for band in bands) == BAND_NAMES


def test_energies_agree_with_the_transform_written_as_matrices() -> None:
    frames = video().astype(np.float64)
    haar = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
    blocks = frames.reshape(4, 2, 12, 2, 16, 2, 3)
    coefficients = np.einsum("at,bh,cw,itjhkwx->abcijkx", haar, haar, haar, blocks)
    expected = (coefficients**2).sum(axis=(3, 4, 5, 6)).reshape(8)
    assert [band.energy for band in statistics_of(video()).bands()] == pytest.approx(list(expected))


@pytest.mark.parametrize(
    ("axis", "bit"), [(0, HIGH_ALONG_TIME), (1, HIGH_ALONG_HEIGHT), (2, HIGH_ALONG_WIDTH)]
)
def test_an_alternating_signal_lies_in_the_band_of_its_axis(axis: int, bit: int) -> None:
    bands = statistics_of(wave(axis)).bands()
    assert [index for index, band in enumerate(bands) if band.energy > 0] == [0, bit]
    assert BAND_AXES[bit] == "THW"[axis]
    assert bands[bit].energy == pytest.approx(80.0**2 * 8 * 8 * 8 * 3)
    assert all(band.entropy == 0.0 for band in bands)


def test_constant_video_is_all_low_pass() -> None:
    bands = statistics_of(np.full((4, 6, 6, 3), 77, dtype=np.uint8)).bands()
    assert bands[0].share == 1.0
    assert bands[0].energy == pytest.approx(77**2 * 4 * 6 * 6 * 3)


def test_black_video_has_no_energy_and_no_nan() -> None:
    bands = statistics_of(np.zeros((2, 4, 4, 3), dtype=np.uint8)).bands()
    assert all(band.energy == band.share == band.entropy == 0.0 for band in bands)


def test_entropy_of_a_known_histogram() -> None:
    frames = np.zeros((2, 2, 8, 3), dtype=np.uint8)
    frames[:, :, 4:] = 100  # half of the LLL coefficients are 0, half 282.8
    assert statistics_of(frames).bands()[0].entropy == pytest.approx(1.0)


def test_wider_bins_never_raise_the_entropy() -> None:
    statistics = statistics_of(video())
    fine, coarse = statistics.bands(bin_width=1.0), statistics.bands(bin_width=8.0)
    assert all(a.entropy > b.entropy for a, b in zip(fine, coarse, strict=True))


def test_any_chunking_gives_the_same() -> None:
    frames = video(frames=9, height=15, width=17)
    pieces = SubbandStatistics()
    for start, stop in ((0, 1), (1, 1), (1, 4), (4, 9)):
        pieces.update(frames[start:stop])
    assert pieces.bands() == statistics_of(frames[:8, :14, :16]).bands()
    assert pieces.coefficients == 4 * 7 * 8 * 3


def test_the_waiting_frame_is_a_copy() -> None:
    frames = video(frames=2)
    statistics = SubbandStatistics()
    buffer = frames[:1].copy()
    statistics.update(buffer)
    buffer[:] = 0
    statistics.update(frames[1:])
    assert statistics.bands() == statistics_of(frames).bands()


def test_tall_frames_are_counted_in_stripes() -> None:
    frames = video(frames=2, height=600, width=8)
    assert sum(band.energy for band in statistics_of(frames).bands()) == pytest.approx(
        float((frames.astype(np.int64) ** 2).sum())
    )


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 1, 4, 3), np.uint8)]
)
def test_wrong_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected"):
        SubbandStatistics().update(frames)


def test_a_change_of_size_and_an_empty_count_are_refused() -> None:
    statistics = SubbandStatistics()
    statistics.update(video(frames=1))
    with pytest.raises(InputError, match="no pair"):
        statistics.bands()
    with pytest.raises(InputError, match="one SubbandStatistics per video"):
        statistics.update(video(height=8))
    statistics.update(video(frames=1))
    with pytest.raises(InputError, match="bin_width"):
        statistics.bands(bin_width=0.0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 33), (64, 64), (90, 321)])
def test_side_by_side_keeps_the_pictures_and_is_even(height: int, width: int) -> None:
    before = video(2, height, width)
    after = np.clip(before.astype(int) + 3, 0, 255).astype(np.uint8)
    sheet = side_by_side(before, after, gain=8)
    assert sheet.shape == (2, *side_by_side_size(height, width), 3)
    assert sheet.shape[1] % 2 == sheet.shape[2] % 2 == 0
    top = strip_height(width)
    second, third = width + GAP, 2 * (width + GAP)
    assert np.array_equal(sheet[:, top : top + height, :width], before)
    assert np.array_equal(sheet[:, top : top + height, second : second + width], after)
    assert np.array_equal(sheet[:, top : top + height, third : third + width], difference(before, after, 8))
    assert (sheet[:, top:, width : width + GAP] == BACKGROUND).all()
    assert (sheet[0, :top] != BACKGROUND).any(), "there are labels"


def strip_height(width: int) -> int:
    """Height of the strip of labels, from the public size of a picture whose height makes no
    padding.
    """
    return next(
        side_by_side_size(height, width)[0] - height
        for height in (100, 101)
        if side_by_side_size(height, width)[0] % 2 == 0
    )


def test_difference_is_grey_where_equal_and_clips() -> None:
    before = np.array([[[100, 100, 100]]], dtype=np.uint8)
    after = np.array([[[100, 101, 0]]], dtype=np.uint8)
    assert difference(before, after, 8).tolist() == [[[128, 136, 0]]]


def test_side_by_side_refuses_what_does_not_match() -> None:
    with pytest.raises(InputError, match="same shape"):
        side_by_side(video(2), video(3))
    with pytest.raises(InputError, match="uint8"):
        side_by_side(video(2), video(2).astype(np.float32))
    with pytest.raises(InputError, match="gain"):
        side_by_side(video(2), video(2), gain=0)
    with pytest.raises(InputError, match=r"\(T, H, W, 3\)"):
        side_by_side(video(1)[0], video(1)[0])


def test_font_draws_every_printable_character_differently() -> None:
    drawn = {text_mask(chr(code)).tobytes() for code in range(32, 127)}
    assert len(drawn) == 95
    assert np.array_equal(text_mask("é"), text_mask("?"))


def test_text_is_cut_at_the_borders() -> None:
    assert text_mask("Ab\nc", 2).shape == text_size("Ab\nc", 2) == (36, 22)
    picture = np.zeros((2, 10, 10, 3), dtype=np.uint8)
    draw_text(picture, "HH", -2, -3, (9, 8, 7))
    assert (picture.reshape(-1, 3).max(axis=0) == (9, 8, 7)).all()
    assert not picture[:, GLYPH_HEIGHT - 2 :].any()
    for top, left in ((-50, 0), (0, -50), (50, 0), (0, 50)):
        before = picture.copy()
        draw_text(picture, "H", top, left, (1, 1, 1))
        assert np.array_equal(picture, before)
    with pytest.raises(InputError, match="scale"):
        text_mask("A", 0)
    with pytest.raises(InputError, match="image"):
        draw_text(picture.astype(np.int16), "A", 0, 0, (1, 1, 1))  # type: ignore[arg-type]
