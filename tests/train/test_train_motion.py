"""The motion that losses follow, on clips whose motion is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d

from wfvae.train.motion import REACH, displaced, luma, motion, within

SIDE, FRAMES = 48, 6
EDGE = REACH + 6
"""What is this far inside came from inside, and so did the blocks around it."""


def moving(across: float, down: float, frames: int = FRAMES, scale: int = 2) -> Tensor:
    """(1, T, H, W): a window on smooth noise that moves by whole shares of a pixel, 1 / `scale`, so
    that things go `across` and `down`.
    """
    generator = torch.Generator().manual_seed(0)
    wide = scale * (SIDE + 2 * frames * REACH)
    canvas = avg_pool2d(torch.rand(1, 1, wide, wide, generator=generator), 7, 1, 3)[0, 0]
    pictures = []
    for t in range(frames):
        top, left = (round(scale * (frames * REACH - t * step)) for step in (down, across))
        pictures.append(canvas[top : top + scale * SIDE : scale, left : left + scale * SIDE : scale])
    return 2 * torch.stack(pictures)[None] - 1


@settings(max_examples=12, deadline=None)
@given(across=st.integers(-REACH, REACH), down=st.integers(-REACH, REACH))
def test_whole_pixels_are_found(across: int, down: int) -> None:
    found = motion(moving(across, down))[1]
    assert found.shape == (1, FRAMES - 1, 2, SIDE, SIDE)
    inside = found[..., EDGE:-EDGE, EDGE:-EDGE]
    torch.testing.assert_close(
        inside, torch.tensor([-across, -down], dtype=inside.dtype).view(1, 1, 2, 1, 1).expand_as(inside)
    )


@pytest.mark.parametrize(("across", "down"), [(0.5, 0.0), (-1.5, 2.5)])
def test_what_lies_between_whole_pixels_is_found_better_than_to_the_next_of_them(
    across: float, down: float
) -> None:
    found = motion(moving(across, down))[1][..., EDGE:-EDGE, EDGE:-EDGE]
    off = (found - torch.tensor([-across, -down]).view(1, 1, 2, 1, 1)).abs()
    assert off.mean() < 0.3 and off.quantile(0.99) < 1.0  # whole pixels alone are off by a half


def test_over_more_frames_motion_is_followed() -> None:
    """Further than what is searched at once; only what was in the picture all the time can be."""
    found = motion(moving(7, -3), (1, 2, 4))
    assert [(distance, one.shape[1]) for distance, one in found.items()] == [(1, 5), (2, 4), (4, 2)]
    for distance in (2, 4):
        inside = found[distance][..., 8 : SIDE - 3 * distance - 8, 7 * distance + 8 : SIDE - 8]
        expected = inside.new_tensor([-7.0 * distance, 3.0 * distance]).view(1, 1, 2, 1, 1)
        torch.testing.assert_close(inside, expected.expand_as(inside), rtol=0, atol=1e-3)


def test_even_ground_has_hardly_any_motion_for_its_grain() -> None:
    grain = 2 / 127.5 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = motion(0.3 + grain)[1]
    assert (
        found.abs().mean() < 1.0 and found.abs().amax(dim=2).quantile(0.99) < 4.0
    )  # 5 and 10 without what displacement must gain


def test_distances_beyond_the_clip_are_left_out_and_nothing_is_differentiated() -> None:
    pictures = moving(1, 0, frames=3).requires_grad_()
    found = motion(pictures, (1, 2, 4))
    assert sorted(found) == [1, 2] and not any(one.requires_grad for one in found.values())
    assert motion(pictures[:, :1], (1, 2)) == {}


def test_pictures_are_displaced_between_pixels_and_at_their_edges() -> None:
    picture = torch.arange(12.0).view(1, 1, 3, 4)
    displacement = torch.zeros(1, 2, 3, 4)
    displacement[:, 0], displacement[:, 1] = 0.75, 1.0
    expected = torch.tensor([[4.75, 5.75, 6.75, 7.0], [8.75, 9.75, 10.75, 11.0], [8.75, 9.75, 10.75, 11.0]])
    torch.testing.assert_close(displaced(picture, displacement)[0, 0], expected)
    assert within(displacement)[0].tolist() == [[True, True, True, False]] * 2 + [[False] * 4]


@pytest.mark.parametrize(
    ("colour", "expected"), [((1, 0, 0), 0.2126), ((0, 1, 0), 0.7152), ((0, 0, 1), 0.0722), ((1, 1, 1), 1.0)]
)
def test_luma_is_that_of_bt709(colour: tuple[int, int, int], expected: float) -> None:
    video = torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1, 1).expand(2, 3, 4, 5, 6)
    torch.testing.assert_close(luma(video), torch.full((2, 4, 5, 6), expected, dtype=torch.float64))
