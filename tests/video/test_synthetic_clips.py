"""Procedural videos: reproducible, at random access and any size."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest

from wfvae.errors import InputError
from wfvae.video.synthetic.clips import _CUT, ProceduralClip
from wfvae.video.synthetic.noise import Dice
from wfvae.video.synthetic.scenes import SCENES

HASHES = {
    "mixed": "769f946b7ea3f236",
    "terrain": "880b2dc657e1763f",
    "leaves": "1e35bd08ab7ee368",
    "clouds": "47acf6b98bd362ac",
    "water": "482b1cc82884379a",
    "landscape": "5328cdef84d2c594",
    "shapes": "1211ed18238f92e1",
    "titles": "d1faeb605265c43a",
}


def make_clip(**options: Any) -> ProceduralClip:
    return ProceduralClip(**{"seed": 0, "height": 32, "width": 32} | options)


@pytest.mark.parametrize("scene", HASHES)
def test_frames_of_a_seed_equal_golden_hashes(scene: str) -> None:
    # Only integers and IEEE-exact operations, so the hashes hold on any machine.
    clip = make_clip(seed=1234, height=40, width=56, scene=scene, noise=2.5, motion_blur=2)
    digest = hashlib.sha256()
    for index in (0, 17, 99, 100, 101, 250, 12_345_678):
        digest.update(clip.frame(index).tobytes())
    assert digest.hexdigest()[:16] == HASHES[scene]


def test_joins_of_shots_equal_the_golden_hash() -> None:
    kinds = [Dice(5, _CUT, shot, 1).unit() for shot in range(1, 11)]
    for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0)):  # cuts, fades, dissolves
        assert any(low <= kind < high for kind in kinds)
    frames = make_clip(seed=5, height=8, width=8).frames(0, 1100)
    assert hashlib.sha256(frames.tobytes()).hexdigest()[:16] == "3d481ac96153b74d"


@pytest.mark.parametrize("options", [{}, {"noise": 4.0}, {"motion_blur": 4}, {"fps": 29.97}, {"cuts": False}])
def test_random_access_equals_sequential(options: dict[str, object]) -> None:
    frames = np.stack(list(make_clip(seed=11, frames=230, **options)))
    clip = make_clip(seed=11, **options)
    for index in (229, 0, 120, 98, 229, 101, 3, 204):
        assert np.array_equal(clip.frame(index), frames[index]), index
    assert np.array_equal(clip.frames(90, 130), frames[90:130])


@pytest.mark.parametrize(("height", "width"), [(8, 200), (131, 9), (270, 480)])
@pytest.mark.parametrize("scene", SCENES)
def test_clips_have_any_size(scene: str, height: int, width: int) -> None:
    frames = make_clip(seed=2, height=height, width=width, scene=scene, noise=1.0).frames(20, 22)
    assert frames.shape == (2, height, width, 3) and frames.dtype == np.uint8
    assert frames.std() > 0


def test_a_seed_looks_alike_at_two_sizes() -> None:
    small = make_clip(seed=5, height=64, width=64, scene="shapes").frame(30).astype(float)
    large = make_clip(seed=5, height=128, width=128, scene="shapes").frame(30)
    halved = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(small.ravel(), halved.ravel())[0, 1] > 0.9


def test_frame_rate_sets_the_step_and_not_the_path() -> None:
    slow, fast = (make_clip(seed=8, fps=fps, cuts=False) for fps in (25, 50))
    assert np.array_equal(slow.frame(30), fast.frame(60))


@pytest.mark.parametrize("wrong", [{"width": 7}, {"scene": "cats"}, {"noise": -1.0}, {"motion_blur": 3}])
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=rf"^{name} is .*expected"):
        make_clip(**wrong)


def test_limited_clip_has_an_end_and_refuses_frames_outside() -> None:
    clip = make_clip(frames=5)
    assert len(list(clip)) == 5
    assert len(list(itertools.islice(make_clip(), 7))) == 7
    for index in (-1, 5):
        with pytest.raises(InputError, match="expected the number of a frame, below 5"):
            clip.frame(index)
