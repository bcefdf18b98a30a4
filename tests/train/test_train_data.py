"""Batches of training data: what they depend on and what not, bad clips, lost workers, and the
procedural data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.clip_sources import SHAPE, DeadlyClips, InspectedClips, OddClips, ToldClips, UninstalledClips
from wfvae.errors import DataError, InputError, TrainingError
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
from wfvae.train.data.clip_source import ShortClip
from wfvae.train.data.procedural_clips import HELD_OUT_SEEDS, TRAINING_SEEDS, Split
from wfvae.train.data.workers import StartMethod, signals_held_back
from wfvae.video.synthetic.clips import ProceduralClip

QUICK = settings(deadline=None, max_examples=60)


def items(batch: Batch) -> list[int]:
    """The items that the rows say they are of."""
    return [int(row.permute(1, 2, 3, 0).flatten()[0]) for row in batch.frames]


def assert_same(one: Batch, other: Batch) -> None:
    assert one.frames.equal(other.frames)
    assert (one.names, one.step, one.epoch, one.position) == (
        other.names,
        other.step,
        other.epoch,
        other.position,
    )
    assert [str(bad) for bad in one.bad] == [str(bad) for bad in other.bad]


def taken(stream: BatchStream, count: int) -> list[Batch]:
    with stream:
        return list(islice(stream, count))


# ------------------------------------------------------------------------------------------------ what a batch depends on


def test_a_batch_says_what_it_holds() -> None:
    source = ToldClips(5)
    with BatchStream(source, 2, 0) as stream:
        assert iter(stream) is stream
        for step in range(6):
            assert stream.step == step
            batch = next(stream)
            assert batch.frames.shape == (2, 3, *SHAPE[:3])
            assert batch.frames.dtype == torch.uint8
            assert batch.frames.is_contiguous()
            assert batch.names == tuple(f"clip{item}" for item in items(batch))
            assert (batch.step, batch.epoch, batch.position) == (step, 2 * step // 5, 2 * step % 5)
            assert batch.bad == ()


@QUICK
@given(count=st.integers(1, 12), batch_size=st.integers(1, 7), seed=st.integers(0, 2**40))
def test_every_epoch_goes_once_through_all_items(count: int, batch_size: int, seed: int) -> None:
    batches = taken(BatchStream(ToldClips(count), batch_size, seed), -(-3 * count // batch_size))
    seen = [item for batch in batches for item in items(batch)]
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_order_and_in_crops() -> None:
    first, second = (next(BatchStream(ToldClips(12), 12, 0, start_step=step)) for step in (0, 1))
    other = next(BatchStream(ToldClips(12), 12, 1))
    assert items(first) != items(second)
    assert items(first) != items(other)
    crops = {item: row.flatten()[1:] for item, row in zip(items(first), first.frames, strict=True)}
    for batch in (second, other):
        for item, row in zip(items(batch), batch.frames, strict=True):
            assert not crops[item].equal(row.flatten()[1:])


@QUICK
@given(
    count=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    world=st.integers(1, 4),
    step=st.integers(0, 40),
    bad=st.sets(st.integers(0, 10), max_size=4),
)
def test_ranks_hold_row_by_row_the_batch_of_one(
    count: int, batch_size: int, world: int, step: int, bad: set[int]
) -> None:
    source = ToldClips(count, bad - {0})
    whole = next(BatchStream(source, batch_size * world, 7, start_step=step))
    parts = [next(BatchStream(source, batch_size, 7, rank, world, start_step=step)) for rank in range(world)]
    assert torch.cat([part.frames for part in parts]).equal(whole.frames)
    assert sum((part.names for part in parts), ()) == whole.names
    assert sum((tuple(map(str, part.bad)) for part in parts), ()) == tuple(map(str, whole.bad))
    assert (parts[0].epoch, parts[0].position) == (whole.epoch, whole.position)


@QUICK
@given(
    count=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    start=st.integers(0, 30),
    bad=st.sets(st.integers(1, 8), max_size=3),
)
def test_starting_at_a_step_gives_what_skipping_to_it_gives(
    count: int, batch_size: int, start: int, bad: set[int]
) -> None:
    source = ToldClips(count, bad)
    skipped = taken(BatchStream(source, batch_size, 3), start + 2)[start:]
    for one, other in zip(
        skipped, taken(BatchStream(source, batch_size, 3, start_step=start), 2), strict=True
    ):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    source = ToldClips(7, bad={2, 5})
    alone = taken(BatchStream(source, 3, 11, 1, 2, start_step=4), 9)
    helped = taken(BatchStream(source, 3, 11, 1, 2, start_step=4, workers=workers), 9)
    assert any(batch.bad for batch in alone)
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_way_workers_start_changes_nothing(method: StartMethod) -> None:
    source = ProceduralClips(1, 10, 3, (16, 24))
    alone = taken(BatchStream(source, 2, 0), 2)
    helped = taken(BatchStream(source, 2, 0, workers=1, start_method=method), 2)
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


def test_model_range() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_model_range(levels)
    assert values.dtype == torch.float32
    assert values.tolist() == [
        float(np.float32(np.float32(level) / np.float32(127.5)) - np.float32(1)) for level in range(256)
    ]
    assert (values[0].item(), values[255].item()) == (-1.0, 1.0)
    assert torch.round((values + 1) * 127.5).to(torch.uint8).equal(levels)


# ------------------------------------------------------------------------------------------------ bad clips


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_clips_are_replaced_counted_and_told_once(workers: int) -> None:
    lines: list[str] = []
    ledger = BadClipLedger(2, lines.append)
    batches = taken(BatchStream(ToldClips(6, bad={1, 4}), 4, 0, workers=workers, ledger=ledger), 9)
    assert all(len(batch.names) == 4 and not {1, 4} & set(items(batch)) for batch in batches)
    assert sorted(lines) == ["skipped 'clip1': reason 1", "skipped 'clip4': reason 4"]
    assert ledger.reasons == {"clip1": "reason 1", "clip4": "reason 4"}
    assert len(ledger) == 2
    # Each of the six epochs came upon both.
    assert sum(bad.name == "clip1" for batch in batches for bad in batch.bad) >= 6


def test_too_many_bad_clips_stop_the_run_after_all_were_told() -> None:
    lines: list[str] = []
    stream = BatchStream(ToldClips(40, bad=range(0, 40, 2)), 4, 0, ledger=BadClipLedger(3, lines.append))
    with (
        stream,
        pytest.raises(
            DataError,
            match=r"^(\d+) files cannot be used, more than the limit of 3; the last is 'clip\d+': reason",
        ),
    ):
        for _ in range(40):
            next(stream)
    assert len(lines) >= 4


def test_a_clip_known_to_be_bad_does_not_count_twice() -> None:
    ledger = BadClipLedger(1)
    for _ in range(3):
        ledger.note([BadClip("a", "why")])
    with pytest.raises(
        DataError, match="2 files cannot be used, more than the limit of 1; the last is 'b': for that"
    ):
        ledger.note([BadClip("b", "for that")])


def test_files_that_are_only_too_short_are_told_apart_when_there_are_too_many() -> None:
    short, broken = [ShortClip(name, "it has 4 frames") for name in "ab"], [BadClip("c", "no video")]
    with pytest.raises(
        DataError, match=r"no video; 2 of them are whole, but too short for data\.frames and data\.stride; "
    ):
        BadClipLedger(2).note([*short, *broken])
    with pytest.raises(
        DataError,
        match=r"limit of 0; the last is 'c': no video; repair or remove them, or raise data\.bad_files$",
    ):
        BadClipLedger(0).note(broken)
    assert isinstance(pickle.loads(pickle.dumps(short[0])), ShortClip)


def test_a_name_stays_on_its_line_whatever_it_holds() -> None:
    bad = BadClip("v\udcff\n\N{SNOWMAN}", "no video")
    assert (bad.name, str(bad)) == ("v\udcff\n\N{SNOWMAN}", "'v\\udcff\\n\N{SNOWMAN}': no video")


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_is_one_clear_line(workers: int) -> None:
    lines: list[str] = []
    stream = BatchStream(
        ToldClips(3, bad=range(3)), 2, 0, workers=workers, ledger=BadClipLedger(9, lines.append)
    )
    with (
        stream,
        pytest.raises(
            DataError, match=r"^of 3 clips none of them can be used, the last is 'clip\d': reason \d; [^\n]*$"
        ),
    ):
        next(stream)
    assert len(lines) == 3
    with pytest.raises(TrainingError, match="closed before step 0"):
        next(stream)
    with pytest.raises(DataError, match="the source of clips is empty"):
        BatchStream(ToldClips(0), 1, 0)


def test_what_a_source_left_out_is_told_too() -> None:
    lines: list[str] = []
    BatchStream(InspectedClips(3), 1, 0, ledger=BadClipLedger(1, lines.append)).close()
    assert lines == ["skipped 'left out': known before"]
    with pytest.raises(DataError, match="1 files cannot be used, more than the limit of 0"):
        BatchStream(InspectedClips(3), 1, 0, ledger=BadClipLedger(0))


def test_what_all_ranks_know_is_told_by_the_first_and_what_one_meets_by_that_one() -> None:
    lines: list[str] = []
    ledger = BadClipLedger(2, lines.append)
    BatchStream(InspectedClips(3), 1, 0, rank=1, world=2, ledger=ledger).close()
    assert (lines, len(ledger)) == ([], 1)
    ledger.note([BadClip("met", "cut short")])
    assert lines == ["skipped 'met': cut short"]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_source_stay_one_line(workers: int) -> None:
    for source, message in (
        (OddClips(2), r"'clip\d' gave a clip of shape .*, 'clip\d' one of .*; expected one shape"),
        (
            OddClips(2, np.float32),
            r"'clip1' gave a float32 array of shape \(1, 4, 6, 3\); expected uint8 \(T, H, W, 3\)",
        ),
        (
            UninstalledClips(2),
            r"drawing needs the package 'pencil', which is not installed; run: pip install 'wfvae\[train\]'",
        ),
    ):
        with (
            BatchStream(source, 2, 0, workers=workers) as stream,
            pytest.raises(DataError, match=f"^{message}$"),
        ):
            next(stream)


def test_bad_clips_travel_between_processes() -> None:
    bad = pickle.loads(pickle.dumps(BadClip("a.mp4", "too short")))
    assert (bad.name, bad.reason, str(bad)) == ("a.mp4", "too short", "'a.mp4': too short")


# ------------------------------------------------------------------------------------------------ worker processes


def test_closing_leaves_no_worker() -> None:
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    stream = BatchStream(ToldClips(4), 1, 0, workers=2)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    assert signal.getsignal(signal.SIGCHLD) is handler
    next(stream)
    pids = [worker.pid for worker in workers]
    stream.close()
    stream.close()
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)
    with pytest.raises(TrainingError, match="closed before step 1; open a new one with start_step=1"):
        next(stream)


def test_an_error_inside_leaves_no_worker() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyError), BatchStream(ToldClips(4), 1, 0, workers=1):
        raise KeyError
    assert set(multiprocessing.active_children()) == before


def test_a_lost_worker_is_one_clear_line_between_batches_and_its_step_can_be_resumed() -> None:
    before = set(multiprocessing.active_children())
    stream = BatchStream(ToldClips(4), 1, 0, workers=2)
    with stream:
        kept = [next(stream), next(stream)]
        victim = (set(multiprocessing.active_children()) - before).pop()
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(10)  # nothing is raised here, in the middle of a step
        with pytest.raises(
            TrainingError,
            match=rf"^data worker \d \(process {victim.pid}\) was killed by SIGKILL before step 2; [^\n]*$",
        ):
            next(stream)
    assert set(multiprocessing.active_children()) == before
    assert stream.step == 2
    for one, other in zip(kept, taken(BatchStream(ToldClips(4), 1, 0), 2), strict=True):
        assert_same(one, other)


@pytest.mark.slow
def test_a_worker_lost_while_it_is_waited_for_is_the_same_line() -> None:
    with (
        BatchStream(DeadlyClips(2), 2, 0, workers=1) as stream,
        pytest.raises(TrainingError, match="was killed by SIGKILL before step 0"),
    ):
        next(stream)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_end_with_a_main_process_that_is_killed(method: StartMethod, tmp_path: Path) -> None:
    program = tmp_path / "main.py"  # a file, which workers that are spawned can import again
    program.write_text(
        "import multiprocessing, time\nfrom wfvae.train.data import BatchStream, ProceduralClips\nif"
        " __name__ == '__main__':\n    stream = BatchStream(ProceduralClips(0, 4, 1, (16, 16)), 1, 0,"
        f" workers=2, start_method='{method}')\n    next(stream)\n    print(*[child.pid for child in"
        " multiprocessing.active_children()], flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as main:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        main.kill()
    assert len(workers) == 2
    end = time.monotonic() + 20
    while left := [pid for pid in workers if runs(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Asked once: between two questions a process may go. One that has ended may stay as a zombie
    until somebody asks after it.
    """
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_leave_interruptions_to_the_main_process() -> None:
    before = set(multiprocessing.active_children())
    with BatchStream(ToldClips(4), 1, 0, workers=1) as stream:
        next(stream)
        [worker] = set(multiprocessing.active_children()) - before
        for number in (signal.SIGINT, signal.SIGTERM):
            assert worker.pid is not None
            os.kill(worker.pid, number)
        for _ in range(8):
            next(stream)
        assert worker.is_alive()


def test_signals_wait_while_workers_start() -> None:
    """Whichever thread gets them."""
    told: list[str] = []
    before = signal.signal(signal.SIGINT, lambda *_: told.append("heeded"))
    try:
        with signals_held_back():
            signal.raise_signal(signal.SIGINT)
            signal.pthread_sigmask(
                signal.SIG_UNBLOCK, {signal.SIGINT}
            )  # as if another thread, which does not block it, had got it
            told.append("left")
        assert told[0] == "left" and set(told[1:]) == {"heeded"}
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.raise_signal(signal.SIGINT)
        assert told[-1] == "heeded"
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit"])
def test_a_program_that_ends_without_closing_leaves_no_worker(end: str) -> None:
    code = (
        "import os, signal\nfrom fixtures.clip_sources import ToldClips\nfrom wfvae.train.data import"
        " BatchStream\nimport multiprocessing\nif __name__ == '__main__':\n    stream ="
        " BatchStream(ToldClips(4), 1, 0, workers=1, start_method='fork')\n    next(stream)\n   "
        f" print(multiprocessing.active_children()[0].pid, flush=True)\n    {end}\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    worker = int(done.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(worker).wait(30)
    assert not psutil.pid_exists(worker)


# ------------------------------------------------------------------------------------------------ procedural clips


def test_procedural_clips_are_frames_of_procedural_videos() -> None:
    for split, seeds in (("train", TRAINING_SEEDS), ("held-out", HELD_OUT_SEEDS)):
        plain = ProceduralClips(3, 10, 4, (24, 32), stride=3, split=split, max_noise=0.0)  # type: ignore[arg-type]
        dense = ProceduralClips(3, 10, 10, (24, 32), stride=1, split=split, max_noise=0.0)  # type: ignore[arg-type]
        clip = plain.clip(2, np.random.default_rng(5))
        assert clip.shape == (4, 24, 32, 3)
        assert clip.dtype == np.uint8
        assert np.array_equal(clip, dense.clip(2, np.random.default_rng(5))[::3])
        assert len(seeds) >= 2**32


def test_training_and_held_out_seeds_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(range(2)) <= set(HELD_OUT_SEEDS[:9])
    assert HELD_OUT_SEEDS.stop <= TRAINING_SEEDS.start
    from wfvae.train.data import procedural_clips

    used: list[int] = []

    def watched(seed: int, *arguments: int, **options: object) -> ProceduralClip:
        used.append(seed)
        return ProceduralClip(seed, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(procedural_clips, "ProceduralClip", watched)
    for split, seeds in (("train", TRAINING_SEEDS), ("held-out", HELD_OUT_SEEDS)):
        source = ProceduralClips(0, 12, 1, (8, 8), split=split)  # type: ignore[arg-type]
        used.clear()
        for index in range(12):
            source.clip(index, np.random.default_rng(index))
        assert len(set(used)) == 12
        assert all(seed in seeds for seed in used)


def test_each_procedural_clip_draws_one_of_the_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    from wfvae.train.data import procedural_clips

    shown: list[str] = []

    def watched(seed: int, *arguments: int, scene: str, **options: object) -> ProceduralClip:
        shown.append(scene)
        return ProceduralClip(seed, *arguments, scene=scene, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(procedural_clips, "ProceduralClip", watched)
    source = ProceduralClips(0, 100, 1, (8, 8), scenes=("mixed", "titles", "titles"))
    shown.clear()
    for index in range(100):
        source.clip(index, np.random.default_rng(index))
    assert set(shown) == {"mixed", "titles"}
    assert 50 <= shown.count("titles") <= 80  # two of three, give or take


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_each_procedural_clip_draws_its_stride(split: Split) -> None:
    varied = ProceduralClips(3, 10, 4, (24, 32), stride=3, min_stride=2, split=split, max_noise=0.0)
    dense = ProceduralClips(3, 10, 10, (24, 32), split=split, max_noise=0.0)
    drawn = set()
    for index in range(10):
        frames = dense.clip(index, np.random.default_rng(index))
        clip = varied.clip(index, np.random.default_rng(index))
        drawn.update(
            stride for stride in (1, 2, 3) if np.array_equal(clip, frames[: 3 * stride + 1 : stride])
        )
    assert drawn == {2, 3}


def test_some_procedural_clips_stand_still() -> None:
    moving = ProceduralClips(3, 40, 4, (24, 32), stride=3, max_noise=8.0)
    source = ProceduralClips(3, 40, 4, (24, 32), stride=3, stills=0.5, max_noise=8.0)
    still = 0
    for index in range(40):
        clip, other = (one.clip(index, np.random.default_rng(index)) for one in (source, moving))
        assert np.array_equal(clip[0], other[0])
        if not np.array_equal(clip, other):
            still += 1
            assert np.array_equal(clip, np.broadcast_to(clip[0], clip.shape))
    assert 12 <= still <= 28


def test_a_list_of_one_scene_draws_nothing() -> None:
    """So runs from before there was a list go on with the clips that they would have had: these
    bits are theirs.
    """
    clip = ProceduralClips(0, 2, 2, (16, 16), max_noise=2.0).clip(0, np.random.default_rng(1))
    assert hashlib.sha256(clip.tobytes()).hexdigest().startswith("0530a5ab0214116e")


def test_training_clips_are_new_every_epoch_and_held_out_ones_never() -> None:
    train, fixed = ProceduralClips(0, 2, 2, (16, 16)), ProceduralClips(0, 2, 2, (16, 16), split="held-out")
    shown = [batch.frames for batch in taken(BatchStream(train, 2, 0), 3)]
    assert not any(one.equal(other) for one, other in ((shown[0], shown[1]), (shown[1], shown[2])))
    for index in range(2):
        assert np.array_equal(
            fixed.clip(index, np.random.default_rng(1)), fixed.clip(index, np.random.default_rng(2))
        )
    assert not np.array_equal(
        fixed.clip(0, np.random.default_rng(1)), fixed.clip(1, np.random.default_rng(1))
    )
    other = ProceduralClips(1, 2, 2, (16, 16), split="held-out")
    assert not np.array_equal(
        fixed.clip(0, np.random.default_rng(1)), other.clip(0, np.random.default_rng(1))
    )


def test_procedural_clips_move_and_differ() -> None:
    source = ProceduralClips(0, 16, 3, (32, 32), stride=4)
    clips = [source.clip(index, np.random.default_rng(index)).astype(float) for index in range(16)]
    moving = [np.abs(np.diff(clip, axis=0)).mean() > 0.3 for clip in clips]
    assert sum(moving) >= 12  # a few are plain or still
    levels = [clip.mean() for clip in clips]
    assert np.std(levels) > 15


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (4, 64)}, "height is 4; expected an integer in 8..8192"),
        ({"scenes": ["mixed", "sea"]}, "scene is 'sea'; expected"),
        ({"scenes": "titles"}, "scenes is 'titles'; expected a list"),
        ({"max_noise": 65}, "noise is 65"),
    ],
)
def test_wrong_procedural_sets_are_refused_before_workers_start(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProceduralClips(**{"seed": 0, "count": 1, "frames": 1, "size": (16, 16), **wrong})


# ------------------------------------------------------------------------------------------------ held-out clips


def test_held_out_clips_are_fixed_spread_and_of_different_items() -> None:
    batches = list(held_out(ToldClips(20, bad={5}), 4, 3))
    assert [len(batch.names) for batch in batches] == [3, 1]
    found = [item for batch in batches for item in items(batch)]
    assert found == [0, 1, 10, 15]  # 5 is bad; 1 is the first one not asked for
    assert [bad.name for batch in batches for bad in batch.bad] == ["clip5"]
    for one, other in zip(batches, held_out(ToldClips(20, bad={5}), 4, 3), strict=True):
        assert_same(one, other)
    with pytest.raises(DataError, match=r"21 held-out clips were asked of a source of 20; expected 1\.\.20"):
        held_out(ToldClips(20), 21)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_held_out_clips_become_fewer_when_too_many_are_bad(batch_size: int) -> None:
    lines: list[str] = []
    ledger = BadClipLedger(None, lines.append)
    for _ in range(2):
        batches = list(held_out(ToldClips(4, bad={0, 1, 3}), 4, batch_size, ledger=ledger))
        assert [(items(batch), batch.names) for batch in batches] == [([2], ("clip2",))]
    assert lines == [f"skipped 'clip{bad}': reason {bad}" for bad in (0, 1, 3)]
    with pytest.raises(
        DataError, match=r"^of 3 clips none of them can be used, the last is 'clip1': reason 1; "
    ):
        list(held_out(ToldClips(3, bad=range(3)), 2, batch_size))


def test_a_fixed_crop_does_not_hide_what_its_source_left_out() -> None:
    assert [str(bad) for bad in FixedCrops(InspectedClips(3), Crops(2, 2)).unusable] == [
        "'left out': known before"
    ]
    assert FixedCrops(ToldClips(3), Crops(2, 2)).unusable == ()
