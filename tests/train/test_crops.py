"""Several random crops of each clip: every one once per epoch, in batches that depend on seed and
step alone.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfvae.errors import DataError
from wfvae.train.data import BatchStream, ClipSource, Crops, FixedCrops
from wfvae.train.data.sampling import WINDOW, Sampling


class Numbered(ClipSource):
    """Every pixel shows its clip (red), row (green) and column (blue). Counts its reads."""

    def __init__(self, count: int) -> None:
        self.count, self.reads = count, Counter[int]()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"clip {index}"

    def clip(self, index: int, rng: np.random.Generator) -> np.ndarray:
        self.reads[index] += 1
        clip = np.empty((2, 40, 50, 3), np.uint8)
        clip[..., 0] = index
        clip[..., 1] = np.arange(40)[:, None]
        clip[..., 2] = np.arange(50)
        return clip


@given(count=st.integers(1, 30), crops=st.integers(1, 5), seed=st.integers(0, 99), epoch=st.integers(0, 2))
def test_an_epoch_has_every_crop_once(count: int, crops: int, seed: int, epoch: int) -> None:
    sampling = Sampling(seed, count, 1, crops=crops)
    places = [sampling.places(step)[0] for step in range(epoch * count * crops, (epoch + 1) * count * crops)]
    assert {place.epoch for place in places} == {epoch}
    assert Counter((place.item, place.crop) for place in places) == Counter(
        (i, c) for i in range(count) for c in range(crops)
    )


@given(
    count=st.integers(1, 40),
    crops=st.integers(2, 4),
    batch=st.integers(1, 6),
    world=st.integers(1, 3),
    step=st.integers(0, 20),
)
def test_ranks_together_see_what_one_sees(count: int, crops: int, batch: int, world: int, step: int) -> None:
    whole = Sampling(3, count, batch * world, crops=crops).places(step)
    parts = [
        place for rank in range(world) for place in Sampling(3, count, batch, rank, world, crops).places(step)
    ]
    assert parts == whole


def test_each_clip_is_read_once_and_batches_mix_clips() -> None:
    source = Numbered(24)
    with BatchStream(source, 4, seed=1, crops=Crops(16, 24, per_clip=4)) as stream:
        batches = [next(stream) for _ in range(24)]
    assert source.reads == Counter(range(24))
    assert np.mean([len(set(batch.names)) for batch in batches]) > 2.5
    windows = [batches[start : start + WINDOW] for start in range(0, 24, WINDOW)]
    assert all(len({name for batch in window for name in batch.names}) == WINDOW for window in windows)


def test_crops_are_windows_that_vary() -> None:
    with BatchStream(Numbered(3), 3, seed=1, crops=Crops(16, 24, per_clip=4)) as stream:
        batches = [next(stream) for _ in range(4)]
    corners = Counter[tuple[int, int, int]]()
    for batch in batches:
        assert batch.frames.shape == (3, 3, 2, 16, 24)
        for row, name in zip(batch.frames.numpy(), batch.names, strict=True):
            item, top, left = (int(v) for v in row[:, 0, 0, 0])
            assert name == f"clip {item}"
            assert (row[0] == item).all()
            assert (row[1] == top + np.arange(16)[:, None]).all()
            assert (row[2] == left + np.arange(24)).all()
            corners[item, top, left] += 1
    assert len(corners) > 9


def test_a_batch_does_not_depend_on_where_the_stream_began_or_on_workers() -> None:
    crops = Crops(8, 8, per_clip=3)
    with BatchStream(Numbered(10), 4, seed=5, crops=crops) as stream:
        batches = [next(stream) for _ in range(9)]
    for start, workers in ((5, 0), (3, 2)):
        with BatchStream(Numbered(10), 4, seed=5, start_step=start, workers=workers, crops=crops) as stream:
            for expected in batches[start:]:
                batch = next(stream)
                assert batch.names == expected.names
                assert (batch.frames == expected.frames).all()


def test_wrong_crops_are_refused() -> None:
    with (
        BatchStream(Numbered(3), 1, seed=0, crops=Crops(48, 8)) as stream,
        pytest.raises(DataError, match=r"48x8 pixels does not fit a clip of 40x50"),
    ):
        next(stream)


def test_fixed_crops_are_the_same_for_any_generator_and_differ_between_clips() -> None:
    source = FixedCrops(Numbered(6), Crops(16, 24))
    assert len(source) == 6
    assert source.name(2) == "clip 2"
    clips = [source.clip(index, np.random.default_rng(seed)) for seed in (1, 2) for index in range(6)]
    assert all((a == b).all() for a, b in zip(clips[:6], clips[6:], strict=True))
    assert clips[0].shape == (2, 16, 24, 3)
    assert len({tuple(clip[0, 0, 0, 1:]) for clip in clips}) > 3
