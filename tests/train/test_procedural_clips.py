"""The procedural data set: what it draws, and that training never sees what is measured on."""

import hashlib
import itertools
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from wfvae.errors import InputError
from wfvae.train.data import BatchStream, ProceduralClips, Strides, procedural_clips
from wfvae.train.data.procedural_clips import HELD_OUT_SEEDS, TRAINING_SEEDS, Split
from wfvae.video.synthetic.clips import ProceduralClip

SEEDS: dict[Split, range] = {"train": TRAINING_SEEDS, "held-out": HELD_OUT_SEEDS}


def clip_of(source: ProceduralClips, index: int, seed: int | None = None) -> npt.NDArray[np.uint8]:
    return source.clip(index, np.random.default_rng(index if seed is None else seed))


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Seed and scene of each video that is painted."""
    made: list[tuple[int, str]] = []

    def watched(seed: int, *arguments: int, **options: Any) -> ProceduralClip:
        made.append((seed, options["scene"]))
        return ProceduralClip(seed, *arguments, **options)

    monkeypatch.setattr(procedural_clips, "ProceduralClip", watched)
    return made


@pytest.mark.parametrize("split", get_args(Split))
def test_clips_are_frames_of_procedural_videos(split: Split) -> None:
    options: dict[str, Any] = {"split": split, "max_noise": 0.0}
    plain = ProceduralClips(3, 10, 4, (24, 32), Strides(3, 3), **options)
    varied = ProceduralClips(3, 10, 4, (24, 32), Strides(3, 2), **options)
    dense = ProceduralClips(3, 10, 10, (24, 32), **options)
    drawn = set()
    for index in range(10):
        frames, clip = clip_of(dense, index), clip_of(plain, index)
        assert (clip.shape, clip.dtype) == ((4, 24, 32, 3), np.uint8)
        assert np.array_equal(clip, frames[::3])
        clip = clip_of(varied, index)
        drawn |= {s for s in (1, 2, 3) if np.array_equal(clip, frames[: 3 * s + 1 : s])}
    assert drawn == {2, 3}


def test_training_and_held_out_seeds_are_disjoint(painted: list[tuple[int, str]]) -> None:
    assert HELD_OUT_SEEDS.start == 0 and HELD_OUT_SEEDS.stop == TRAINING_SEEDS.start
    for split, seeds in SEEDS.items():
        assert len(seeds) >= 2**32
        source = ProceduralClips(0, 12, 1, (8, 8), split=split)
        painted.clear()
        for index in range(12):
            clip_of(source, index)
        assert len({seed for seed, _ in painted}) == 12
        assert all(seed in seeds for seed, _ in painted)


def test_each_clip_draws_one_of_the_scenes(painted: list[tuple[int, str]]) -> None:
    source = ProceduralClips(0, 100, 1, (8, 8), scenes=("mixed", "titles", "titles"))
    painted.clear()
    for index in range(100):
        clip_of(source, index)
    shown = [scene for _, scene in painted]
    assert set(shown) == {"mixed", "titles"}
    assert 50 <= shown.count("titles") <= 80  # two of three, give or take


def test_stills_repeat_their_first_frame() -> None:
    moving = ProceduralClips(3, 20, 3, (16, 16), Strides(3, 3))
    source = ProceduralClips(3, 20, 3, (16, 16), Strides(3, 3, stills=0.5))
    still = 0
    for index in range(20):
        clip, other = clip_of(source, index), clip_of(moving, index)
        assert np.array_equal(clip[0], other[0])
        if not np.array_equal(clip, other):
            still += 1
            assert np.array_equal(clip, np.broadcast_to(clip[0], clip.shape))
    assert 4 <= still <= 16


def test_single_scene_draws_nothing() -> None:
    """Earlier versions had no list of scenes: their runs resume with the same clips."""
    clip = clip_of(ProceduralClips(0, 2, 2, (16, 16), max_noise=2.0), 0, seed=1)
    assert hashlib.sha256(clip.tobytes()).hexdigest().startswith("0530a5ab0214116e")


def test_training_clips_are_new_every_epoch_and_held_out_ones_fixed() -> None:
    with BatchStream(ProceduralClips(0, 2, 2, (16, 16)), 2, 0) as stream:
        shown = [next(stream).frames for _ in range(3)]
    assert not any(one.equal(other) for one, other in itertools.pairwise(shown))
    fixed, other = (ProceduralClips(seed, 2, 2, (16, 16), split="held-out") for seed in (0, 1))
    for index in range(2):
        assert np.array_equal(clip_of(fixed, index, seed=1), clip_of(fixed, index, seed=2))
    assert not np.array_equal(clip_of(fixed, 0), clip_of(fixed, 1))
    assert not np.array_equal(clip_of(fixed, 0), clip_of(other, 0))


def test_clips_move_and_differ() -> None:
    source = ProceduralClips(0, 16, 3, (32, 32), Strides(4, 4))
    clips = [clip_of(source, index).astype(float) for index in range(16)]
    assert sum(np.abs(np.diff(clip, axis=0)).mean() > 0.3 for clip in clips) >= 12  # a few are still
    assert np.std([clip.mean() for clip in clips]) > 15


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (4, 64)}, "height is 4; expected an integer in 8..8192"),
        ({"scenes": ["mixed", "sea"]}, "scene is 'sea'; expected"),
        ({"max_noise": 65}, "noise is 65"),
    ],
)
def test_wrong_sets_are_refused_before_workers_start(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProceduralClips(**{"seed": 0, "count": 1, "frames": 1, "size": (16, 16), **wrong})
