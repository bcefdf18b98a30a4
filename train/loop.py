"""A training run: from a configuration and a run directory to checkpoints, a record and scores.

RUN/config.toml  metrics.jsonl  index.json  checkpoints/step-N/  validation/step-N/clip-0.png
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wfvae.errors import ConfigError, DataError, InputError, TrainingError
from wfvae.model.vae import WFVAE
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_CONFIG, newest_of_run
from wfvae.train.bf16_support import computes_in_bf16
from wfvae.train.checkpoints import (
    check_same_run,
    config_of,
    data_of,
    processes_of,
    read_checkpoint,
    unfinished,
    write_checkpoint,
)
from wfvae.train.config import TrainingConfig
from wfvae.train.data import (
    BadClipLedger,
    Batch,
    BatchStream,
    ClipSource,
    FiniteSource,
    InspectedSource,
    held_out,
    printable,
)
from wfvae.train.initial import initial_model
from wfvae.train.metrics import Metrics, read_metrics
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.run_lock import locked
from wfvae.train.sources import (
    has_validation,
    require_outside,
    training_crops,
    training_source,
    validation_source,
)
from wfvae.train.state import TrainingState
from wfvae.train.step import NotFiniteError, Trainer
from wfvae.train.validation import NotFiniteScoresError, Scores, check_needs, validate
from wfvae.train.world import ENDED_ELSEWHERE, World, tells_of_lost_peer

_SIGN_EVERY = 60.0
"""Seconds of indexing between two signs to the other processes, which would not wait for ever
without one.
"""
_SLOW_BF16 = (
    "bf16 is slower here than fp32, as a processor has no instructions for it; a new run with"
    " run.precision=auto takes fp32"
)
_SMALLER_MODEL = "choose a smaller model.preset, model.base_channels or loss.discriminator_channels"
_SMALLER_VALIDATION = "fewer validation.frames, or a smaller validation.height and validation.width"
_OTHERWISE = "the run goes on, but not as it would have without the interruption"


@dataclass(frozen=True)
class Watcher:
    """What a run tells while it goes, and how it is asked to stop."""

    progress: Callable[[int, int, dict[str, float]], None] = lambda done, total, values: None
    """Given (steps made, steps in all, latest values) after every step."""
    notice: Callable[[str], None] = lambda line: None
    """Given one line for each file that is skipped, in training or in validation, and for what is
    unusual about a run when it begins. A process that is not the first leaves the latter out, and
    those files that the index names."""
    stopping: Callable[[], bool] = lambda: False
    """Asked between steps; True ends the run after a checkpoint."""
    indexing: Callable[[int, int], None] | None = None
    """Given (files looked at, files in all) while a folder of videos is indexed."""


@dataclass
class RunResult:
    """What a run came to."""

    directory: Path
    step: int
    finished: bool
    """False if it was asked to stop before `run.steps`."""
    scores: Scores | None
    """Of the last validation of this process, or of the run's end if it had come to that before;
    None if there is none.
    """
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
    """Runs, or goes on with, a stage of training.

    A run that was killed at any moment and resumed ends with the weights of an uninterrupted one
    (bit for bit on a CPU with the same number of threads): a step depends on the state and the seed
    alone.

    Args:
        config: all settings.
        directory: of the run; made if missing, must hold no run unless `resume`.
        world: the processes of the run.
        resume: go on from the newest checkpoint, or start if there is none yet.
        steering: keys `section.key` that were set for this call. The learning rate and the norm of
            clipping may differ from the run's before only if they are among them.
        watcher: for progress and stopping.

    Raises:
        ConfigError: the batch does not divide among processes, the directory holds a run, or the
            resumed run has other settings.
        CheckpointError, DataError, TrainingError, MissingExtraError: naming what is wrong and what
            to do.
    """
    return _Run(config, directory, world, watcher or Watcher(), steering).go(resume)


class _Run:
    def __init__(
        self,
        config: TrainingConfig,
        directory: Path,
        world: World,
        watcher: Watcher,
        steering: Collection[str],
    ) -> None:
        self._config, self._directory, self._world, self._watcher = config, directory, world, watcher
        self._steering = steering
        self._share = _share(config, world)
        self._clock = _Clock()
        self._ledger = BadClipLedger(config.data.bad_files, watcher.notice)
        # Without a limit: whatever is left is scored.
        self._held_out_ledger = BadClipLedger(None, lambda line: watcher.notice(f"validation: {line}"))
        self._scores: Scores | None = None
        self._validation: ClipSource | None = None
        self._perceptual: PerceptualLoss | None = None
        self._fingerprint = ""
        self._saved = 0
        """The step of the newest checkpoint, or that from which the run started."""
        self._slow_bf16 = False
        """Whether a process has a device without bf16."""
        self._sign_given = 0.0

    def go(self, resume: bool) -> RunResult:
        require_outside(self._config, self._directory)
        if has_validation(self._config):
            check_needs(self._config)
        self._open_directory()
        with locked(self._directory) if self._world.is_first else nullcontext():
            return self._run(resume)

    def _run(self, resume: bool) -> RunResult:
        checkpoint = self._enter(resume)
        config, world, directory = self._config, self._world, self._directory
        state = self._state(checkpoint)
        self._saved = state.step
        if state.step > config.run.steps:
            raise ConfigError(
                f"run.steps is {config.run.steps}, and {checkpoint} has made {state.step}; expected at least"
                " as many"
            )
        perceptual: PerceptualLoss | None = None
        if config.loss.perceptual != "none":
            with self._full_memory("for LPIPS", _SMALLER_MODEL):
                perceptual = PerceptualLoss(config.loss.perceptual).to(world.device)
        self._perceptual = perceptual
        if not world.is_first:
            # The first process writes the index, which the others then find. It may take long, so
            # it says now and then that it goes on.
            while world.any(False):
                pass
        source = training_source(config, directory, self._indexing, retry_bad=world.is_first)
        self._note_changes(source, checkpoint)
        if world.is_first:
            self._validation = validation_source(config, directory, self._indexing)
            if self._validation is not None and isinstance(self._validation, InspectedSource):
                self._held_out_ledger.note(self._validation.unusable)
            world.any(False)
            if checkpoint is None and config.run.precision == "bf16" and self._slow_bf16:
                self._watcher.notice(_SLOW_BF16)
        with self._full_memory("for training's copies of the model", _SMALLER_MODEL):
            trainer = Trainer(config, state, world, perceptual)
        stream = BatchStream(
            source,
            self._share,
            config.run.seed,
            world.rank,
            world.size,
            config.data.workers,
            state.step,
            crops=training_crops(config),
            ledger=self._ledger,
            pin_memory=world.device.type == "cuda",
        )
        with (
            stream,
            (
                Metrics(directory, state.step, config.run.tensorboard) if world.is_first else _NoMetrics()
            ) as metrics,
        ):
            if world.is_first:
                # After all that may refuse these settings: a run that goes on keeps those of before
                # then.
                self._note_settings()
            self._clock.start()
            try:
                finished = self._steps(trainer, stream, metrics)
            except RuntimeError as error:
                if tells_of_lost_peer(error):  # all exchanges of a step come before it changes anything
                    self._rescue(state, TrainingError(ENDED_ELSEWHERE))
                raise
        return RunResult(
            directory, state.step, finished, self._scores, len(self._ledger), self._clock.shares()
        )

    def _steps(self, trainer: Trainer, stream: BatchStream, metrics: Metrics | _NoMetrics) -> bool:
        config, state, clock = self._config, trainer.state, self._clock
        steps, validate_every = config.run.steps, config.validation.every if has_validation(config) else 0
        rates: dict[str, float] = {}
        while state.step < steps:
            batch = self._next_batch(stream, state)
            if batch is None:
                return False
            with clock.measure("compute"):
                values = self._step(trainer, batch)
                self._world.synchronize_device()
            done = state.step
            clock.count(config.optimizer.batch * batch.frames.shape[2])
            if done % config.run.log_every == 0 or done == steps:
                rates = clock.since_last(steps - done)
                self._record(metrics, state, values | rates)
            self._watcher.progress(done, steps, values | rates | clock.shares())
            due = validate_every > 0 and done % validate_every == 0
            # Before the validation: one that fails must neither lose these steps nor come again at
            # every resumption.
            if due or done % config.run.checkpoint_every == 0 or done == steps:
                self._save(state)
            if due and done < steps:
                self._validate(state.average, done, metrics)
        if state.step == steps:
            self._validate_end(state.average, steps, metrics)
        return True

    def _next_batch(self, stream: BatchStream, state: TrainingState) -> Batch | None:
        """The batch of the next step; None if the run was asked to stop. Then, and before it
        raises, the steps made are saved.
        """
        batch: Batch | None = None
        fault: Exception | None = None
        with self._clock.measure("data_wait"):
            try:
                batch = next(stream)
            except Exception as error:
                fault = error  # raised below, by all processes at the same place
            stopping = self._watcher.stopping()
            # Within the measure, since it waits for the data of the slowest process.
            goes_on = not self._world.any(fault is not None or stopping)
        if goes_on:
            return batch
        # First of all: the signal may have ended a process that batches come from, too, as SIGTERM
        # to a whole process group does.
        if self._world.any(stopping):
            self._save(state)
            return None
        self._rescue(state, fault)
        self._world.wait()  # the end of one process is the end of all
        raise fault if fault is not None else TrainingError(ENDED_ELSEWHERE)

    def _record(self, metrics: Metrics | _NoMetrics, state: TrainingState, values: dict[str, float]) -> None:
        try:
            metrics.write("train", state.step, values)
        except TrainingError as error:
            self._rescue(state, error)
            raise

    def _rescue(self, state: TrainingState, fault: Exception | None, *, keep_all: bool = False) -> None:
        """Saves what was done since the last checkpoint, if anything, before `fault` ends the run."""
        if not self._world.is_first or state.step == self._saved:
            return
        try:
            self._write(state, keep_all=keep_all)
        except TrainingError as error:
            raise TrainingError(f"{fault}; {error}" if fault else str(error)) from (fault or error)

    def _step(self, trainer: Trainer, batch: Batch) -> dict[str, float]:
        try:
            return trainer.step(_parts(batch.frames, self._config.optimizer.accumulate))
        except NotFiniteError as error:
            # The checkpoints before this one may be needed, to go on from before it went wrong.
            self._rescue(trainer.state, error, keep_all=True)
            self._world.wait()  # until it is written
            if error.elsewhere:
                raise TrainingError(f"{error}, in another process, whose message says what to do") from error
            advice = (
                "; --resume would make this step again: before that, take those clips out of the data, or"
                " remove the newest checkpoints to go on from an earlier one with --set"
                " optimizer.learning_rate= (lower) or optimizer.clip_norm="
            )
            raise TrainingError(
                f"{error}; the batch held {', '.join(map(printable, batch.names))}; {self._kept()}"
                + (advice if newest_of_run(self._directory) else "")
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not _tells_of_full_memory(error):
                raise
            fault = f"step {trainer.state.step + 1}: out of memory on {self._world.device}"
            trainer.state.optimizer.zero_grad(set_to_none=True)  # room for what is written
            if not trainer.updating:
                with suppress(RuntimeError, MemoryError):
                    self._rescue(trainer.state, TrainingError(fault))
            raise TrainingError(
                f"{fault}; {self._kept()}; resume it with run.activation_checkpointing=true or a small"
                " loss.perceptual_frames, or begin a new run with a larger optimizer.accumulate or smaller"
                " or shorter clips"
            ) from error

    def _kept(self) -> str:
        last = newest_of_run(self._directory)
        return f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"

    def _save(self, state: TrainingState) -> None:
        if self._world.is_first:
            self._write(state)
        self._saved = state.step
        self._world.wait()

    def _write(self, state: TrainingState, *, keep_all: bool = False) -> None:
        write_checkpoint(
            self._directory, state, self._config, self._fingerprint, self._world.size, keep_all=keep_all
        )

    def _validate_end(self, model: WFVAE, step: int, metrics: Metrics | _NoMetrics) -> None:
        """The last validation; also that of a run which was interrupted in it. The other processes
        wait, so as not to end before.
        """
        if self._validation is not None:
            made = [line for line in read_metrics(self._directory, "validation") if line["step"] == step]
            if not made:
                self._validate(model, step, metrics)
            elif self._scores is None:
                self._scores = Scores(made[-1]["psnr_db"], made[-1]["ssim"], made[-1].get("lpips"))
        self._world.wait()

    def _validate(self, model: WFVAE, step: int, metrics: Metrics | _NoMetrics) -> None:
        if self._validation is None:
            return
        settings = self._config.validation
        batches = held_out(
            self._validation, min(settings.clips, len(self._validation)), ledger=self._held_out_ledger
        )
        pictures = self._directory / "validation" / f"step-{step:08d}"
        with self._clock.measure("validation"):
            try:
                with self._full_memory(
                    f"for the validation of step {step}",
                    f"{self._kept()}; resume it with {_SMALLER_VALIDATION}",
                ):
                    self._scores = validate(model, batches, self._perceptual, pictures, settings.pictures)
            except NotFiniteScoresError as error:
                raise TrainingError(
                    f"the validation of step {step}: {error}; the run has diverged, in this step or before:"
                    f" remove the newest of {self._directory / RUN_CHECKPOINTS}, and --resume from an earlier"
                    " one with --set optimizer.learning_rate= (lower) or optimizer.clip_norm=, or train anew"
                ) from error
            except (DataError, InputError) as error:
                raise TrainingError(f"the validation of step {step}: {error}") from error
        metrics.write(
            "validation",
            step,
            {name: value for name, value in self._scores._asdict().items() if value is not None},
        )

    def _note_changes(self, source: ClipSource, checkpoint: Path | None) -> None:
        """Tells if clips or processes are others than before, so that the run is not what it would
        have been.
        """
        self._fingerprint = source.fingerprint if isinstance(source, FiniteSource) else ""
        if checkpoint is None or not self._world.is_first:
            return
        before = data_of(checkpoint)
        if before and before != self._fingerprint:
            self._watcher.notice(
                f"the videos below {self._config.data.folder} are not those of before; {_OTHERWISE}"
            )
        processes = processes_of(checkpoint)
        if processes is not None and processes != self._world.size:
            self._watcher.notice(
                f"there were {processes} processes before, and now there are {self._world.size}; {_OTHERWISE}"
            )

    def _indexing(self, done: int, total: int) -> None:
        """Passes on how far the index is. The first process also tells the others, who wait for it,
        that it has not stopped.
        """
        if self._watcher.indexing is not None:
            self._watcher.indexing(done, total)
        if self._world.is_first and (now := time.perf_counter()) - self._sign_given >= _SIGN_EVERY:
            self._world.any(True)
            self._sign_given = now

    def _open_directory(self) -> None:
        """Makes the run's directory. Only the first process writes; the others wait for it."""
        if self._world.is_first:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(
                    f"cannot write the run directory {self._directory}: {error.strerror}"
                ) from error

    def _enter(self, resume: bool) -> Path | None:
        """The checkpoint to go on from, once its settings and these are known to agree."""
        directory = self._directory
        newest = newest_of_run(directory)
        if newest is not None and not resume:
            raise ConfigError(
                f"{directory} holds a training run up to {newest.name}; go on with --resume, or choose"
                " another --out"
            )
        self._slow_bf16 = self._world.any(not computes_in_bf16(self._world.device))
        self._choose_precision(newest)
        config = self._config
        lines = []
        if newest is not None:
            lines = [f"{change}; {_OTHERWISE}" for change in check_same_run(newest, config, self._steering)]
            if (before := config_of(newest).run.initial) != config.run.initial:
                lines.append(
                    f"run.initial is {config.run.initial!r} and was {before!r}; only a new run starts from"
                    " it, this one goes on"
                )
        elif resume:
            lines = [f"there is no checkpoint in {directory} to go on from; training begins at step 0"]
        if newest is None and config.run.initial and (made := unfinished(Path(config.run.initial))):
            lines.append(
                f"run.initial {config.run.initial} has not ended: this run starts from its step {made[0]} of"
                f" {made[1]}"
            )
        if not has_validation(config):
            lines.append("validation.folder is not set, so nothing is validated")
        if self._world.is_first:
            for line in lines:
                self._watcher.notice(line)
        self._world.wait()
        return newest

    def _note_settings(self) -> None:
        directory = self._directory
        try:
            (directory / RUN_CHECKPOINTS).mkdir(exist_ok=True)
            temporary = directory / (RUN_CONFIG + ".tmp")
            temporary.write_text(self._config.to_toml(), encoding="utf-8")
            os.replace(temporary, directory / RUN_CONFIG)
        except OSError as error:
            raise TrainingError(f"cannot write the run directory {directory}: {error.strerror}") from error

    def _choose_precision(self, checkpoint: Path | None) -> None:
        """Puts in place of "auto" what the run has had, or for a new one what is fast in all
        processes.
        """
        if self._config.run.precision != "auto":
            return
        fast: Literal["fp32", "bf16"] = "fp32" if self._slow_bf16 else "bf16"
        chosen = fast if checkpoint is None else config_of(checkpoint).run.precision
        self._config = self._config.with_changes(run={"precision": chosen})

    def _state(self, checkpoint: Path | None) -> TrainingState:
        with self._full_memory("for the model with its average, optimiser and discriminator", _SMALLER_MODEL):
            state = TrainingState.fresh(
                self._config, self._world.device, initial_model(self._config, checkpoint)
            )
        if checkpoint is not None:
            read_checkpoint(checkpoint, state)
        return state

    @contextmanager
    def _full_memory(self, purpose: str, advice: str) -> Iterator[None]:
        """Tells of memory that is not there for some purpose, and what to do."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _tells_of_full_memory(error):
                raise
            raise TrainingError(f"out of memory on {self._world.device}, {purpose}; {advice}") from error


class _NoMetrics:
    """What processes other than the first write: nothing."""

    def __enter__(self) -> _NoMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Writes nothing."""


class _Clock:
    """Where the time of a run goes."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {"data_wait": 0.0, "compute": 0.0, "validation": 0.0}
        self._began = self._marked = time.perf_counter()
        self._at_mark: dict[str, float] = dict(self._spent)
        self._frames = self._steps = 0

    def start(self) -> None:
        self._began = self._marked = time.perf_counter()

    def measure(self, what: str) -> _Measure:
        return _Measure(self._spent, what)

    def count(self, frames: int) -> None:
        """Takes in that a step has been made with so many frames."""
        self._frames += frames
        self._steps += 1

    def since_last(self, left: int) -> dict[str, float]:
        """Rates since the last call, without validations, and the time that `left` steps take at
        that rate.
        """
        now = time.perf_counter()
        delta = {name: self._spent[name] - self._at_mark[name] for name in self._spent}
        elapsed = max(now - self._marked - delta["validation"], 1e-9)
        frames, steps = self._frames, self._steps
        self._marked, self._at_mark, self._frames, self._steps = now, dict(self._spent), 0, 0
        return {
            "frames_per_second": frames / elapsed,
            "data_wait": delta["data_wait"] / elapsed,
            "compute": delta["compute"] / elapsed,
            "eta_seconds": left * elapsed / steps,
        }

    def shares(self) -> dict[str, float]:
        """Shares of the whole time so far; what is left is `bookkeeping`."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        shares = {name: seconds / elapsed for name, seconds in self._spent.items()}
        return {**shares, "bookkeeping": max(1.0 - sum(shares.values()), 0.0)}


class _Measure:
    def __init__(self, spent: dict[str, float], what: str) -> None:
        self._spent, self._what, self._began = spent, what, 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._spent[self._what] += time.perf_counter() - self._began


def _tells_of_full_memory(error: Exception) -> bool:
    # On a CPU torch has no kind of its own for it, and another message for what no computer can
    # have.
    messages = ("can't allocate memory", "Storage size calculation")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        message in str(error) for message in messages
    )


def _share(config: TrainingConfig, world: World) -> int:
    """Clips of each process per step."""
    batch, parts = config.optimizer.batch, world.size * config.optimizer.accumulate
    if batch % parts:
        raise ConfigError(
            f"optimizer.batch is {batch}, which does not divide among {world.size} processes x"
            f" {config.optimizer.accumulate} parts (optimizer.accumulate); use a multiple of {parts}"
        )
    return batch // world.size


def _parts(frames: Tensor, count: int) -> tuple[Tensor, ...]:
    return frames.chunk(count)
