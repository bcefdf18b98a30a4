"""A training run: from a configuration and a run directory to checkpoints, a record and scores."""

import time
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from wfvae.errors import ConfigError, TrainingError
from wfvae.files import locked, write_whole
from wfvae.model.encoder import RGB
from wfvae.model.streaming import require_memory_of
from wfvae.model.vae import WFVAE
from wfvae.spec.memory import require_memory
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_CONFIG
from wfvae.train.checkpoints import read_checkpoint, read_facts
from wfvae.train.config import TrainingConfig
from wfvae.train.data import BadClipLedger, BatchStream, ClipSource
from wfvae.train.device import computes_in_bf16, memory_for
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.processes import World
from wfvae.train.record import Metrics
from wfvae.train.resuming import (
    checkpoint_to_resume,
    choose_precision,
    data_notices,
    initial_model,
    start_notices,
)
from wfvae.train.sources import (
    has_validation,
    require_outside,
    training_crops,
    training_source,
    validation_source,
)
from wfvae.train.state import TrainingState
from wfvae.train.step import Trainer
from wfvae.train.step_loop import StepLoop, Watcher
from wfvae.train.validation import Scores, Validator, check_needs

__all__ = ["RunResult", "Watcher", "train"]

_SIGNAL_EVERY = 60.0
"""Seconds of indexing between two signals to the other processes, whose wait would time out."""
_SLOW_BF16 = (
    "bf16 is slower here than fp32, as a processor has no instructions for it; a new run with"
    " run.precision=auto takes fp32"
)
_COPIES = 5
"""Of the weights: the model, its average, gradients, and two moments."""
_FLOAT_BYTES, _KERNEL = 4, 3**3
_SMALLER_MODEL = "choose a smaller model.preset, model.base_channels or loss.discriminator_channels"


@dataclass
class RunResult:
    """The outcome of a call of `train`."""

    directory: Path
    step: int
    finished: bool
    """False if it was asked to stop before `run.steps`."""
    scores: Scores | None
    """Of the last validation; None if there is none."""
    bad_files: int
    """Of the data trained on."""
    shares: dict[str, float] = field(default_factory=dict)
    """Shares of this process's time: `data_wait`, `compute` (forward, backward, optimiser),
    `validation`, `bookkeeping`.
    """


def train(
    config: TrainingConfig,
    directory: Path,
    world: World,
    *,
    resume: bool = False,
    steering: Collection[str] = (),
    watcher: Watcher | None = None,
) -> RunResult:
    """Starts or resumes a stage of training, and returns when it ends.

    A run that was killed at any moment and resumed ends with the weights of an uninterrupted one
    (bit for bit on a CPU with the same number of threads): a step depends on the state and the seed
    alone.

    Args:
        directory: of the run; made if missing, must hold no run unless `resume`.
        resume: continue from the newest checkpoint, or start if there is none yet.
        steering: keys `section.key` that were set for this call. The learning rate and the norm of
            clipping may differ from the run's before only if they are among them.

    Raises:
        ConfigError: the batch does not divide among processes, the directory holds a run, or the
            resumed run has other settings.
        CheckpointError, DataError, TrainingError, ResourceError, MissingExtraError: see the text.
    """
    share = _clips_per_process(config, world)
    _require_memory(config, share, world)
    require_outside(config, directory)
    if has_validation(config):
        check_needs(config)
    if world.is_first:
        _make_folder(directory)
    busy = f"another process trains in {directory}; wait for it or stop it, or choose another --out"
    with locked(directory / ".lock", busy) if world.is_first else nullcontext():
        return _train(config, directory, world, share, resume, steering, watcher or Watcher())


def _train(
    config: TrainingConfig,
    directory: Path,
    world: World,
    share: int,
    resume: bool,
    steering: Collection[str],
    watcher: Watcher,
) -> RunResult:
    notice = watcher.notice if world.is_first else Watcher().notice
    checkpoint = checkpoint_to_resume(directory, resume)
    slow_bf16 = world.any(not computes_in_bf16(world.device))
    config = choose_precision(config, checkpoint, slow_bf16)
    for line in start_notices(config, directory, checkpoint, resume, steering):
        notice(line)
    world.wait()
    state = _state(config, checkpoint, world)
    perceptual: PerceptualLoss | None = None
    if config.loss.perceptual != "none":
        with memory_for("LPIPS", world.device, _SMALLER_MODEL):
            perceptual = PerceptualLoss(config.loss.perceptual).to(world.device)
    source, held_out = _open_sources(config, directory, world, watcher)
    if checkpoint is not None:
        for line in data_notices(read_facts(checkpoint), source, config.data.folder, world.size):
            notice(line)
    elif config.run.precision == "bf16" and slow_bf16:
        notice(_SLOW_BF16)
    validator: Validator | None = None
    if held_out is not None:
        # Without a limit: what is left is scored.
        spared = BadClipLedger(None, lambda line: watcher.notice(f"validation: {line}"))
        spared.note(held_out.unusable)
        validator = Validator(config.validation, directory, held_out, spared, perceptual)
    with memory_for("training's copies of the model", world.device, _SMALLER_MODEL):
        trainer = Trainer(config, state, world, perceptual)
    ledger = BadClipLedger(config.data.bad_files, watcher.notice)
    stream = BatchStream(
        source,
        share,
        config.run.seed,
        world.rank,
        world.size,
        config.data.workers,
        state.step,
        crops=training_crops(config),
        ledger=ledger,
        pin_memory=world.device.type == "cuda",
    )
    record = Metrics(directory, state.step, config.run.tensorboard) if world.is_first else nullcontext()
    with stream, record as metrics:
        if world.is_first:  # once nothing has refused these settings
            write_whole(directory / RUN_CONFIG, config.to_toml())
            _make_folder(directory / RUN_CHECKPOINTS)
        parts = (trainer, stream, metrics, validator, source.fingerprint)
        loop = StepLoop(config, directory, world, watcher, *parts)
        finished = loop.run()
    return RunResult(directory, state.step, finished, loop.scores, len(ledger), loop.clock.shares())


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write the run directory {path}: {error.strerror}") from error


def _require_memory(config: TrainingConfig, share: int, world: World) -> None:
    """Raises `ResourceError` if the clips of a step, or the models, exceed the memory."""
    data, loss = config.data, config.loss
    values = share * data.frames * data.height * data.width * RGB
    size = f"{share} clips of {data.frames}x{data.height}x{data.width}"
    require_memory(values * _FLOAT_BYTES, size, "use a smaller batch, data.frames or size")
    if world.device.type != "cpu":
        return
    require_memory_of(WFVAE, config.model.architecture(), copies=_COPIES)
    layers = range(loss.discriminator_layers + 1)
    widths = [RGB, *(loss.discriminator_channels * min(2**layer, 8) for layer in layers)]
    weights = sum(_KERNEL * before * after for before, after in pairwise(widths)) * loss.adversarial
    what = f"{_COPIES} x {weights} weights of the discriminator"
    require_memory(_COPIES * weights * _FLOAT_BYTES, what, _SMALLER_MODEL)


def _clips_per_process(config: TrainingConfig, world: World) -> int:
    batch, parts = config.optimizer.batch, world.size * config.optimizer.accumulate
    if batch % parts:
        raise ConfigError(
            f"optimizer.batch is {batch}, which does not divide among {world.size} processes x"
            f" {config.optimizer.accumulate} parts (optimizer.accumulate); use a multiple of {parts}"
        )
    return batch // world.size


def _state(config: TrainingConfig, checkpoint: Path | None, world: World) -> TrainingState:
    purpose = "the model with its average, optimiser and discriminator"
    with memory_for(purpose, world.device, _SMALLER_MODEL):
        state = TrainingState.fresh(config, world.device, initial_model(config, checkpoint))
    if checkpoint is not None:
        read_checkpoint(checkpoint, state)
    if state.step > config.run.steps:
        raise ConfigError(
            f"run.steps is {config.run.steps}, and {checkpoint} has made {state.step}; expected at least as"
            " many"
        )
    return state


def _open_sources(
    config: TrainingConfig, directory: Path, world: World, watcher: Watcher
) -> tuple[ClipSource, ClipSource | None]:
    """Returns the clips to train on, and in the first process those to validate on.

    The first process writes the index, which the others then read. Indexing may take longer than
    processes wait for each other, so it signals now and then that it is running.
    """
    if not world.is_first:
        while world.any(False):
            pass
        return training_source(config, directory, watcher.indexing, retry_bad=False), None
    signalled = 0.0

    def indexing(done: int, total: int) -> None:
        nonlocal signalled
        watcher.indexing(done, total)
        if (now := time.perf_counter()) - signalled >= _SIGNAL_EVERY:
            world.any(True)
            signalled = now

    sources = training_source(config, directory, indexing), validation_source(config, directory, indexing)
    world.any(False)
    return sources
