"""Batches of training data: what they depend on and what not, bad clips, and held-out clips."""

from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.clip_sources import SHAPE, InspectedClips, NumberedClips, OddClips, UninstalledClips
from wfvae.errors import DataError, TrainingError
from wfvae.train.data import (
    BadClip,
    BadClipLedger,
    Batch,
    BatchStream,
    Crops,
    FixedCrops,
    ProceduralClips,
    ShortClip,
    held_out,
    to_model_range,
)

QUICK = settings(deadline=None, max_examples=60)
COUNTS, SIZES = st.integers(1, 12), st.integers(1, 5)


def items(batch: Batch) -> list[int]:
    """The items that the rows show they are of."""
    return [int(row.permute(1, 2, 3, 0).flatten()[0]) for row in batch.frames]


def assert_same(one: Batch, other: Batch) -> None:
    assert one.frames.equal(other.frames)
    for name in ("names", "step", "epoch", "position"):
        assert getattr(one, name) == getattr(other, name)
    assert [str(bad) for bad in one.bad] == [str(bad) for bad in other.bad]


def taken(stream: BatchStream, count: int) -> list[Batch]:
    with stream:
        return list(islice(stream, count))


def test_batch_describes_its_rows() -> None:
    with BatchStream(NumberedClips(5), 2, 0) as stream:
        assert iter(stream) is stream
        for step in range(6):
            assert stream.step == step
            batch = next(stream)
            assert (batch.frames.shape, batch.frames.dtype) == ((2, 3, *SHAPE[:3]), torch.uint8)
            assert batch.frames.is_contiguous()
            assert batch.names == tuple(f"clip{item}" for item in items(batch))
            assert (batch.step, batch.epoch, batch.position) == (step, 2 * step // 5, 2 * step % 5)
            assert batch.bad == ()


@QUICK
@given(count=COUNTS, batch_size=st.integers(1, 7), seed=st.integers(0, 2**40))
def test_every_epoch_goes_once_through_all_items(count: int, batch_size: int, seed: int) -> None:
    batches = taken(BatchStream(NumberedClips(count), batch_size, seed), -(-3 * count // batch_size))
    seen = [item for batch in batches for item in items(batch)]
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_order_and_in_clips() -> None:
    first, second = (next(BatchStream(NumberedClips(12), 12, 0, start_step=step)) for step in (0, 1))
    other = next(BatchStream(NumberedClips(12), 12, 1))
    clips = {item: row.flatten()[1:] for item, row in zip(items(first), first.frames, strict=True)}
    for batch in (second, other):
        assert items(first) != items(batch)
        for item, row in zip(items(batch), batch.frames, strict=True):
            assert not clips[item].equal(row.flatten()[1:])


@QUICK
@given(
    count=COUNTS,
    batch_size=SIZES,
    world=st.integers(1, 4),
    step=st.integers(0, 40),
    bad=st.sets(st.integers(1, 10), max_size=4),
)
def test_ranks_hold_row_by_row_the_batch_of_one(
    count: int, batch_size: int, world: int, step: int, bad: set[int]
) -> None:
    source = NumberedClips(count, bad)
    whole = next(BatchStream(source, batch_size * world, 7, start_step=step))
    parts = [next(BatchStream(source, batch_size, 7, rank, world, start_step=step)) for rank in range(world)]
    assert torch.cat([part.frames for part in parts]).equal(whole.frames)
    assert sum((part.names for part in parts), ()) == whole.names
    assert sum((tuple(map(str, part.bad)) for part in parts), ()) == tuple(map(str, whole.bad))
    assert (parts[0].epoch, parts[0].position) == (whole.epoch, whole.position)


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


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    for source in (NumberedClips(7, bad={2, 5}), ProceduralClips(1, 10, 3, (16, 24))):
        alone = taken(BatchStream(source, 3, 11, 1, 2, start_step=4), 5)
        stream = BatchStream(source, 3, 11, 1, 2, start_step=4, workers=workers)
        for one, other in zip(alone, taken(stream, 5), strict=True):
            assert_same(one, other)


def test_model_range_maps_every_level_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_model_range(levels)
    expected = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    assert values.dtype == torch.float32 and values.tolist() == expected.tolist()
    assert (values[0].item(), values[255].item()) == (-1.0, 1.0)
    assert torch.round((values + 1) * 127.5).to(torch.uint8).equal(levels)


# Bad clips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_clips_are_replaced_counted_and_reported_once(workers: int) -> None:
    lines: list[str] = []
    ledger = BadClipLedger(2, lines.append)
    batches = taken(BatchStream(NumberedClips(6, bad={1, 4}), 4, 0, workers=workers, ledger=ledger), 9)
    assert all(len(batch.names) == 4 and not {1, 4} & set(items(batch)) for batch in batches)
    assert sorted(lines) == ["skipped 'clip1': reason 1", "skipped 'clip4': reason 4"]
    assert ledger.reasons == {"clip1": "reason 1", "clip4": "reason 4"}
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


def test_known_bad_clip_does_not_count_twice() -> None:
    ledger = BadClipLedger(1)
    for _ in range(3):
        ledger.note([BadClip("a", "why")])
    expected = "2 files cannot be used, more than the limit of 1; the last is 'b': for that"
    with pytest.raises(DataError, match=expected):
        ledger.note([BadClip("b", "for that")])


def test_clips_that_are_only_too_short_are_named_when_there_are_too_many() -> None:
    short, broken = [ShortClip(name, "it has 4 frames") for name in "ab"], [BadClip("c", "no video")]
    expected = r"no video; 2 of them are whole, but too short for data\.frames and data\.stride; "
    with pytest.raises(DataError, match=expected):
        BadClipLedger(2).note([*short, *broken])
    expected = r"the last is 'c': no video; repair or remove them, or raise data\.bad_files$"
    with pytest.raises(DataError, match=f"limit of 0; {expected}"):
        BadClipLedger(0).note(broken)


def test_bad_clips_are_pickled_and_printed_on_one_line() -> None:
    for bad in (BadClip("v\udcff\n\N{SNOWMAN}", "no video"), ShortClip("v\udcff\n\N{SNOWMAN}", "no video")):
        read = pickle.loads(pickle.dumps(bad))
        assert type(read) is type(bad)
        assert (read.name, str(read)) == (bad.name, "'v\\udcff\\n\N{SNOWMAN}': no video")


@pytest.mark.parametrize("workers", [0, 1])
def test_source_without_usable_clips_raises_one_line(workers: int) -> None:
    lines: list[str] = []
    ledger = BadClipLedger(9, lines.append)
    stream = BatchStream(NumberedClips(3, bad=range(3)), 2, 0, workers=workers, ledger=ledger)
    expected = r"^of 3 clips none of them can be used, the last is 'clip\d': reason \d; [^\n]*$"
    with stream, pytest.raises(DataError, match=expected):
        next(stream)
    assert len(lines) == 3
    with pytest.raises(TrainingError, match="closed before step 0"):
        next(stream)
    with pytest.raises(DataError, match="the source of clips is empty"):
        BatchStream(NumberedClips(0), 1, 0)


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


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (OddClips(2), r"'clip\d' gave a clip of shape .*, 'clip\d' one of .*; expected one shape"),
        (OddClips(2, np.float32), r"'clip1' gave a float32 array of shape \(1, 4, 6, 3\); expected uint8 .*"),
        (UninstalledClips(2), r"drawing needs the package 'pencil', which is not installed; run: pip .*"),
    ],
    ids=["shape", "type", "package"],
)
def test_error_of_a_source_stays_one_line(workers: int, source: NumberedClips, message: str) -> None:
    stream = BatchStream(source, 2, 0, workers=workers)
    with stream, pytest.raises(DataError, match=rf"^{message}$"):
        next(stream)


# Held-out clips -----------------------------------------------------------------------------------


def test_held_out_clips_are_fixed_spread_and_of_different_items() -> None:
    first, second = (list(held_out(NumberedClips(20, bad={5}), 4, 3)) for _ in range(2))
    assert [len(batch.names) for batch in first] == [3, 1]
    # 5 is bad; 1 is the first one that was not asked for.
    assert [item for batch in first for item in items(batch)] == [0, 1, 10, 15]
    assert [bad.name for batch in first for bad in batch.bad] == ["clip5"]
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)
    with pytest.raises(DataError, match=r"21 held-out clips were asked of a source of 20; expected 1\.\.20"):
        held_out(NumberedClips(20), 21)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_held_out_clips_become_fewer_when_many_are_bad(batch_size: int) -> None:
    lines: list[str] = []
    ledger = BadClipLedger(None, lines.append)
    for _ in range(2):
        batches = list(held_out(NumberedClips(4, bad={0, 1, 3}), 4, batch_size, ledger=ledger))
        assert [(items(batch), batch.names) for batch in batches] == [([2], ("clip2",))]
    assert lines == [f"skipped 'clip{bad}': reason {bad}" for bad in (0, 1, 3)]
    expected = r"^of 3 clips none of them can be used, the last is 'clip1': reason 1; "
    with pytest.raises(DataError, match=expected):
        list(held_out(NumberedClips(3, bad=range(3)), 2, batch_size))


def test_fixed_crop_keeps_the_list_of_clips_left_out() -> None:
    left_out = FixedCrops(InspectedClips(3), Crops(2, 2)).unusable
    assert [str(bad) for bad in left_out] == ["'left out': known before"]
    assert FixedCrops(NumberedClips(3), Crops(2, 2)).unusable == ()
