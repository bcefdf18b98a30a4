"""Batches of training data: what they depend on and what not, crops, bad clips, held-out clips."""

import pickle
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.clip_sources import SHAPE, InspectedClips, NumberedClips, PlacedPixels, UninstalledClips
from wfvae.errors import DataError, TrainingError
from wfvae.train.data import (
    BadClip,
    BadClipLedger,
    Batch,
    BatchStream,
    Crops,
    FixedCrops,
    ProceduralClips,
    held_out,
    to_model_range,
)
from wfvae.train.data.sampling import WINDOW, Sampling

QUICK = settings(deadline=None, max_examples=40)
COUNTS, SIZES = st.integers(1, 12), st.integers(1, 5)
CROPS = Crops(16, 24, per_clip=3)


def items(frames: torch.Tensor) -> list[int]:
    """The items that the rows show they are of."""
    return [int(row.permute(1, 2, 3, 0).flatten()[0]) for row in frames]


def assert_same(one: Batch, other: Batch) -> None:
    assert one.frames.equal(other.frames)
    assert one.names == other.names
    assert list(map(str, one.bad)) == list(map(str, other.bad))


def taken(stream: BatchStream, count: int) -> list[Batch]:
    with stream:
        return list(islice(stream, count))


def test_batch_describes_its_rows() -> None:
    with BatchStream(NumberedClips(5), 2, 0) as stream:
        for step in range(6):
            assert stream.step == step
            batch = next(stream)
            assert (batch.frames.shape, batch.frames.dtype) == ((2, 3, *SHAPE[:3]), torch.uint8)
            assert batch.frames.is_contiguous()
            assert batch.names == tuple(f"clip{item}" for item in items(batch.frames))


def test_epochs_and_seeds_differ_in_order_and_in_clips() -> None:
    first, second = (next(BatchStream(NumberedClips(12), 12, 0, start_step=step)) for step in (0, 1))
    other = next(BatchStream(NumberedClips(12), 12, 1))
    clips = {item: row.flatten()[1:] for item, row in zip(items(first.frames), first.frames, strict=True)}
    for batch in (second, other):
        assert sorted(items(batch.frames)) == list(range(12))
        assert items(first.frames) != items(batch.frames)
        for item, row in zip(items(batch.frames), batch.frames, strict=True):
            assert not clips[item].equal(row.flatten()[1:])


@given(count=st.integers(1, 30), crops=st.integers(1, 5), seed=st.integers(0, 2**40), epoch=st.integers(0, 2))
def test_an_epoch_has_every_crop_of_every_item_once(count: int, crops: int, seed: int, epoch: int) -> None:
    sampling, length = Sampling(seed, count, 1, crops=crops), count * crops
    places = [sampling.places(step)[0] for step in range(epoch * length, (epoch + 1) * length)]
    assert Counter(places) == Counter((epoch, i, c) for i in range(count) for c in range(crops))


@QUICK
@given(
    count=COUNTS,
    batch_size=SIZES,
    world=st.integers(1, 4),
    step=st.integers(0, 40),
    bad=st.sets(st.integers(1, 10), max_size=4),
    crops=st.sampled_from([None, Crops(2, 3), Crops(2, 3, per_clip=3)]),
)
def test_ranks_hold_row_by_row_the_batch_of_one(
    count: int, batch_size: int, world: int, step: int, bad: set[int], crops: Crops | None
) -> None:
    source, options = NumberedClips(count, bad), {"start_step": step, "crops": crops}
    whole = next(BatchStream(source, batch_size * world, 7, **options))
    parts = [next(BatchStream(source, batch_size, 7, rank, world, **options)) for rank in range(world)]
    assert torch.cat([part.frames for part in parts]).equal(whole.frames)
    assert sum((part.names for part in parts), ()) == whole.names
    noted = {str(clip) for part in parts for clip in part.bad}
    assert noted == {str(clip) for clip in whole.bad}


@QUICK
@given(count=COUNTS, batch_size=SIZES, start=st.integers(0, 30), bad=st.sets(st.integers(1, 8), max_size=3))
def test_stream_started_at_a_step_gives_the_batches_from_there(
    count: int, batch_size: int, start: int, bad: set[int]
) -> None:
    source = NumberedClips(count, bad)
    skipped = taken(BatchStream(source, batch_size, 3), start + 2)[start:]
    begun = taken(BatchStream(source, batch_size, 3, start_step=start), 2)
    for one, other in zip(skipped, begun, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("source", "crops"),
    [
        (NumberedClips(7, bad={2, 5}), None),
        (ProceduralClips(1, 10, 3, (16, 24)), None),
        (PlacedPixels(9), CROPS),
    ],
    ids=["numbered", "procedural", "crops"],
)
def test_workers_change_nothing(source: Any, crops: Crops | None) -> None:
    options: dict[str, Any] = {"start_step": 4, "crops": crops}
    alone = taken(BatchStream(source, 3, 11, 1, 2, **options), 5)
    for one, other in zip(alone, taken(BatchStream(source, 3, 11, 1, 2, 2, **options), 5), strict=True):
        assert_same(one, other)


def test_model_range_maps_every_level_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_model_range(levels)
    expected = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    assert values.dtype == torch.float32 and values.tolist() == expected.tolist()
    assert torch.round((values + 1) * 127.5).to(torch.uint8).equal(levels)


def test_each_clip_is_read_once_and_its_crops_vary_and_mix_with_others() -> None:
    source = PlacedPixels(24)
    batches = taken(BatchStream(source, 4, seed=1, crops=Crops(16, 24, per_clip=4)), 24)
    assert source.reads == Counter(range(24))
    assert np.mean([len(set(batch.names)) for batch in batches]) > 2.5
    windows = [batches[start : start + WINDOW] for start in range(0, 24, WINDOW)]
    assert all(len({name for batch in window for name in batch.names}) == WINDOW for window in windows)
    corners = set()
    for batch in batches:
        for row, name in zip(batch.frames.numpy(), batch.names, strict=True):
            item, top, left = (int(v) for v in row[:, 0, 0, 0])
            assert (name, row.shape) == (f"clip{item}", (3, 2, 16, 24))
            assert (row[1] == top + np.arange(16)[:, None]).all()
            assert (row[2] == left + np.arange(24)).all()
            corners.add((item, top, left))
    assert len(corners) > 80


def test_fixed_crops_are_the_same_for_any_generator_and_differ_between_clips() -> None:
    source = FixedCrops(PlacedPixels(6), Crops(16, 24))
    assert (len(source), source.name(2), source.unusable) == (6, "clip2", ())
    clips = [source.clip(index, np.random.default_rng(seed)) for seed in (1, 2) for index in range(6)]
    assert all((a == b).all() for a, b in zip(clips[:6], clips[6:], strict=True))
    assert clips[0].shape == (2, 16, 24, 3)
    assert len({tuple(clip[0, 0, 0, 1:]) for clip in clips}) > 3
    assert list(map(str, FixedCrops(InspectedClips(3), Crops(2, 2)).unusable)) == ["'left out': known before"]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_clips_are_replaced_counted_and_reported_once(workers: int) -> None:
    lines: list[str] = []
    ledger = BadClipLedger(2, lines.append)
    batches = taken(BatchStream(NumberedClips(6, bad={1, 4}), 4, 0, workers=workers, ledger=ledger), 9)
    assert all(len(batch.names) == 4 and not {1, 4} & set(items(batch.frames)) for batch in batches)
    assert sorted(lines) == ["skipped 'clip1': reason 1", "skipped 'clip4': reason 4"]
    assert len(ledger) == 2
    # Each of the six epochs met both.
    assert sum(bad.name == "clip1" for batch in batches for bad in batch.bad) >= 6


def test_too_many_bad_clips_raise_after_all_were_reported() -> None:
    lines: list[str] = []
    stream = BatchStream(NumberedClips(40, bad=range(0, 40, 2)), 4, 0, ledger=BadClipLedger(3, lines.append))
    expected = r"^(\d+) files cannot be used, more than the limit of 3; the last is 'clip\d+': reason"
    with stream, pytest.raises(DataError, match=expected):
        for _ in range(40):
            next(stream)
    assert len(lines) >= 4


def test_bad_clip_is_pickled_and_printed_on_one_line() -> None:
    read = pickle.loads(pickle.dumps(BadClip("v\udcff\n\N{SNOWMAN}", "no video")))
    assert (read.name, str(read)) == ("v\udcff\n\N{SNOWMAN}", "'v\\udcff\\n\N{SNOWMAN}': no video")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (NumberedClips(3, bad=range(3)), r"of 3 clips none of them can be used, the last is 'clip\d': rea.*"),
        (UninstalledClips(2), r"drawing needs the package 'pencil', which is not installed; run: pip .*"),
    ],
    ids=["bad", "package"],
)
def test_source_without_usable_clips_raises_one_line(
    workers: int, source: NumberedClips, message: str
) -> None:
    stream = BatchStream(source, 2, 0, workers=workers, ledger=BadClipLedger(9))
    with stream, pytest.raises(DataError, match=rf"^{message}$"):
        next(stream)
    with pytest.raises(TrainingError, match="closed before step 0"):
        next(stream)


@pytest.mark.parametrize("rank", [0, 1])
def test_clips_left_out_are_counted_by_all_ranks_and_reported_by_the_first(rank: int) -> None:
    lines: list[str] = []
    ledger = BadClipLedger(2, lines.append)
    BatchStream(InspectedClips(3), 1, 0, rank=rank, world=2, ledger=ledger).close()
    assert (lines, len(ledger)) == (["skipped 'left out': known before"][rank:], 1)
    ledger.note([BadClip("met", "cut short")])
    assert lines[-1] == "skipped 'met': cut short"
    with pytest.raises(DataError, match="1 files cannot be used, more than the limit of 0"):
        BatchStream(InspectedClips(3), 1, 0, ledger=BadClipLedger(0))


def test_held_out_clips_are_fixed_spread_and_of_different_items() -> None:
    lines: list[str] = []
    ledger = BadClipLedger(None, lines.append)
    first, second = (list(held_out(NumberedClips(20, bad={5}), 4, ledger)) for _ in range(2))
    # 5 is bad; 1 is the first one that was not asked for.
    assert [items(clip) for clip in first] == [[0], [1], [10], [15]]
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))
    assert lines == ["skipped 'clip5': reason 5"]
    assert len(list(held_out(NumberedClips(3), 9))) == 3


def test_held_out_clips_become_fewer_when_many_are_bad() -> None:
    assert [items(clip) for clip in held_out(NumberedClips(4, bad={0, 1, 3}), 4)] == [[2]]
    expected = r"^of 3 clips none of them can be used, the last is 'clip1': reason 1; "
    with pytest.raises(DataError, match=expected):
        list(held_out(NumberedClips(3, bad=range(3)), 2))
