"""Faults of a run: what ends it, what is saved before, and what the message says."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fixtures.program import Program
from fixtures.training import (
    CPU,
    WITH_DISCRIMINATOR,
    assert_same_bits,
    folder_settings,
    make_videos,
    newest_step,
    random_clips,
    small,
    small_trainer,
    state_of,
    steps_kept,
    write_config,
)
from wfvae.errors import CheckpointError, DataError, TrainingError
from wfvae.train.checkpoints import read_facts, write_checkpoint, write_facts
from wfvae.train.data import Batch, BatchStream, ProceduralClips
from wfvae.train.losses import hinge_discriminator_loss
from wfvae.train.run import Watcher, train
from wfvae.train.state import TrainingState
from wfvae.train.step import Trainer

RARE = {"run__checkpoint_every": 100, "validation__every": 0}
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")


def raising(error: BaseException) -> Callable[..., None]:
    """A function that raises."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        ("decoder.conv_out.bias", "total is nan"),
        ("encoder.conv_out.conv.bias", r"in the autoencoder, z has \d+ values that are NaN"),
    ],
)
def test_nan_ends_the_run_with_step_batch_and_checkpoint(copied_run: Path, weight: str, found: str) -> None:
    tensors = state_of(copied_run)
    tensors[f"model.{weight}"][:] = float("nan")
    newest = copied_run / "checkpoints" / "step-00000006"
    save_file(tensors, newest / "training.safetensors")
    write_facts(newest, read_facts(newest))
    expected = (
        rf"^step 7: {found}.*; the batch held procedural.*last good checkpoint is .*step-00000006; --resume"
    )
    with pytest.raises(TrainingError, match=expected + " would make this step "):
        train(small(**WITH_DISCRIMINATOR, run__steps=8), copied_run, CPU, resume=True)
    assert newest_step(copied_run) == 6


def test_nan_costs_no_step_and_no_checkpoint(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(**WITH_DISCRIMINATOR, run__keep=1, validation__every=0)
    broken: list[bool] = []

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return hinge_discriminator_loss(real, fake) * (float("nan") if broken else 1.0)

    watcher = Watcher(lambda done, *_: broken.append(True) if done == 3 else None)
    expected = r"^step 4: discriminator is nan.*; the last good checkpoint is .*step-00000003; --resume would"
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=expected):
        patch.setattr("wfvae.train.step.hinge_discriminator_loss", loss)
        train(config, tmp_path, CPU, watcher=watcher)
    assert steps_kept(tmp_path) == [2, 3]  # the one before is kept as well, to continue in another way
    assert train(config, tmp_path, CPU, resume=True).finished
    assert_same_bits(state_of(finished_run), state_of(tmp_path))


def test_nan_gradient_of_the_discriminator_changes_nothing() -> None:
    # Its loss is finite; in a checkpoint the gradient would break every resumption.
    trainer = small_trainer(small(**WITH_DISCRIMINATOR))
    state = trainer.state
    assert state.discriminator is not None
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    state.discriminator.head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: discriminator_gradient_norm is nan"):
        trainer.step([random_clips()])
    assert state.step == 0
    after = state.tensors()
    assert_same_bits(before, {name: after[name] for name in before})


def test_weights_diverged_in_the_last_step_raise_at_its_validation(tmp_path: Path) -> None:
    diverging = {"optimizer__learning_rate": 1e18, "optimizer__warmup_steps": 0, "optimizer__ema_decay": 0.0}
    expected = (
        r"the validation of step 1: (latents|reconstructions) are NaN or infinite; the run has diverged.*:"
        r" remove the newest of .*checkpoints, and --resume from an earlier one with --set"
        r" optimizer.learning_rate"
    )
    for resume in (False, True):
        with pytest.raises(TrainingError, match=expected):
            train(small(**diverging, run__steps=1), tmp_path, CPU, resume=resume)


def test_damaged_checkpoint_raises_and_the_one_before_resumes(finished_run: Path, copied_run: Path) -> None:
    newest = copied_run / "checkpoints" / "step-00000006"
    config = small(**WITH_DISCRIMINATOR)
    with (newest / "training.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"remove .*step-00000006 to resume from the one before"):
        train(config, copied_run, CPU, resume=True)
    shutil.rmtree(newest)
    assert train(config, copied_run, CPU, resume=True).step == 6
    assert_same_bits(state_of(finished_run), state_of(copied_run))
    (newest / "training.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="to resume from the one before"):
        train(config, copied_run, CPU, resume=True)


@pytest.mark.parametrize(
    "name", ["training.safetensors", "training.json", "checkpoint/diffusion_pytorch_model.safetensors"]
)
def test_one_changed_bit_of_a_checkpoint_is_refused(copied_run: Path, name: str) -> None:
    newest = copied_run / "checkpoints" / "step-00000006"
    data = bytearray((newest / name).read_bytes())
    index = data.index(b"wavelet") if name == "training.json" else len(data) - 1000
    data[index] ^= 1
    (newest / name).write_bytes(data)
    refused = rf"{name}: it was changed after it was written.*remove .*step-00000006 to resume"
    with pytest.raises(CheckpointError, match=refused):
        train(small(**WITH_DISCRIMINATOR), copied_run, CPU, resume=True)


def test_checkpoint_with_a_missing_or_swapped_file_is_refused(copied_run: Path) -> None:
    newest, before = (copied_run / "checkpoints" / f"step-0000000{step}" for step in (6, 4))
    for copied in (before / "training.safetensors", None):
        (newest / "training.safetensors").unlink()
        if copied is not None:
            shutil.copyfile(copied, newest / "training.safetensors")
        with pytest.raises(CheckpointError, match=r"training\.safetensors: .*to resume from the one before"):
            train(small(**WITH_DISCRIMINATOR), copied_run, CPU, resume=True)


def test_full_disk_keeps_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    config = small(run__keep=5)
    state = TrainingState.fresh(config, CPU.device)
    write_checkpoint(tmp_path, state, config)
    state.step = 1
    monkeypatch.setattr("wfvae.train.checkpoints.save_file", full_disk)
    expected = "No space left on device; step-00000000 is whole: make room and go on with --resume"
    with pytest.raises(TrainingError, match=expected):
        write_checkpoint(tmp_path, state, config)
    assert steps_kept(tmp_path) == [0]


def test_lost_worker_costs_no_step(finished_run: Path, tmp_path: Path) -> None:
    config = small(**WITH_DISCRIMINATOR, **RARE, data__workers=1)
    before = set(multiprocessing.active_children())

    def lose(done: int, *_: object) -> None:
        if done == 3:
            [worker] = set(multiprocessing.active_children()) - before
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(10)

    expected = r"^data worker 0 .* was killed by SIGKILL before step 3; .*resume the run from its last check"
    with pytest.raises(TrainingError, match=expected):
        train(config, tmp_path, CPU, watcher=Watcher(lose))
    assert newest_step(tmp_path) == 3
    assert train(config, tmp_path, CPU, resume=True).finished
    assert_same_bits(state_of(finished_run), state_of(tmp_path))


def test_too_many_bad_files_cost_no_step(tmp_path: Path, program: Program) -> None:
    videos, run = make_videos(tmp_path / "videos", "a.mp4", "b.mp4"), tmp_path / "run"
    whole = (videos / "a.mp4").read_bytes()
    config = folder_settings(videos, data__bad_files=0, run__steps=4, **RARE)

    def spoil(*_: object) -> None:
        (videos / "a.mp4").write_bytes(b"no video")

    # In the first step there is nothing to save; later there is.
    at_once = Watcher(indexing=lambda done, total: spoil() if done == total else None)
    with pytest.raises(DataError, match="1 files cannot be used, more than the limit of 0"):
        train(config, run, CPU, watcher=at_once)
    assert steps_kept(run) == []
    (videos / "a.mp4").write_bytes(whole)
    later = Watcher(lambda done, *_: spoil() if done == 2 else None)
    expected = r"1 files cannot be used, more than the limit of 0; the last is 'a.mp4'"
    with pytest.raises(DataError, match=expected):
        train(config, run, CPU, watcher=later)
    assert newest_step(run) == 2
    (videos / "a.mp4").write_bytes(whole)
    written = write_config(config, tmp_path / "x.toml")
    assert program("train", written, "--out", run, "--resume", "--json").report["step"] == 4


def test_fault_between_steps_on_a_full_disk_reports_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(stream: BatchStream) -> Batch:
        if stream.step == 1:
            raise TrainingError("a worker was lost")
        return next_batch(stream)

    next_batch = BatchStream.__next__
    monkeypatch.setattr(BatchStream, "__next__", lost)
    full = raising(TrainingError("cannot write the checkpoint"))
    monkeypatch.setattr("wfvae.train.step_loop.write_checkpoint", full)
    with pytest.raises(TrainingError, match=r"^a worker was lost; cannot write the checkpoint$"):
        train(small(), tmp_path, CPU)


@pytest.mark.parametrize("updating", [False, True])
def test_lack_of_memory_saves_the_steps_before_unless_weights_are_changing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updating: bool
) -> None:
    made = Trainer._step

    def full(trainer: Trainer, parts: Any) -> dict[str, float]:
        if trainer.state.step == 2:
            trainer.updating = updating
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return made(trainer, parts)

    monkeypatch.setattr(Trainer, "_step", full)
    kept = "there is no checkpoint before it" if updating else "the last good checkpoint is .*step-00000002"
    with pytest.raises(TrainingError, match=f"step 3: out of memory on cpu; {kept}; resume it with"):
        train(small(run__steps=4, run__checkpoint_every=100), tmp_path, CPU)
    assert steps_kept(tmp_path) == ([] if updating else [2])


def test_trainer_is_updating_only_while_weights_change() -> None:
    trainer = small_trainer(small())
    seen: list[bool] = []
    trainer.state.model.decoder.register_forward_hook(lambda *_: seen.append(trainer.updating))
    trainer.state.optimizer.register_step_pre_hook(lambda *_: seen.append(trainer.updating))
    trainer.step([random_clips()])
    assert (seen, trainer.updating) == ([False, True], False)


def test_lack_of_memory_elsewhere_names_its_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wfvae.train.validation.validate", raising(NO_MEMORY))
        expected = (
            r"^out of memory on cpu, for the validation of step 1; the last good .*step-00000001; resume it"
            r" with fewer validation\.frames"
        )
        with pytest.raises(TrainingError, match=expected):
            train(small(run__steps=2, validation__every=1), tmp_path / "validation", CPU)
    # What no computer has.
    monkeypatch.setattr("wfvae.train.run.initial_model", lambda *_: torch.empty(1 << 62))
    expected = r"out of memory on cpu, for the model with its average.*; choose a smaller model\.preset"
    with pytest.raises(TrainingError, match=expected):
        train(small(), tmp_path / "model", CPU)


def test_lack_of_memory_for_clips_accuses_no_clip(copied_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(ProceduralClips, "clip", raising(MemoryError()))
    config = small(**WITH_DISCRIMINATOR, run__steps=8)
    expected = r"^out of memory while clips were read; use smaller or shorter clips \(data\.height"
    with pytest.raises(DataError, match=expected):
        train(config, copied_run, CPU, resume=True, watcher=Watcher(notice=lines.append))
    assert lines == []
