"""Frames of the demo's side-by-side video."""

import numpy as np
import pytest

from wfvae.report.side_by_side import BACKGROUND, GAIN, GAP, difference, side_by_side, side_by_side_size
from wfvae.video.synthetic.clips import ProceduralClip


def video(frames: int, height: int = 24, width: int = 32) -> np.ndarray:
    return ProceduralClip(3, height, width, noise=3.0).frames(0, frames)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 33), (64, 64), (90, 321)])
def test_side_by_side_keeps_the_pictures_and_is_even(height: int, width: int) -> None:
    before = video(2, height, width)
    after = np.clip(before.astype(int) + 3, 0, 255).astype(np.uint8)
    sheet = side_by_side(before, after)
    assert sheet.shape == (2, *side_by_side_size(height, width), 3)
    assert sheet.shape[1] % 2 == sheet.shape[2] % 2 == 0
    top = min(side_by_side_size(even, width)[0] - even for even in (100, 101))
    for index, expected in enumerate((before, after, difference(before, after))):
        left = index * (width + GAP)
        assert np.array_equal(sheet[:, top : top + height, left : left + width], expected)
    assert (sheet[:, top:, width : width + GAP] == BACKGROUND).all()
    assert (sheet[0, :top] != BACKGROUND).any(), "there are labels"


def test_difference_is_grey_where_equal_and_clips() -> None:
    before = np.array([[[100, 100, 100]]], dtype=np.uint8)
    after = np.array([[[100, 101, 0]]], dtype=np.uint8)
    assert difference(before, after).tolist() == [[[128, 128 + GAIN, 0]]]
