"""The steps of a run, with its checkpoints, records and validations."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wfvae.errors import TrainingError
from wfvae.spec.runs import newest_of_run
from wfvae.train.checkpoints import write_checkpoint
from wfvae.train.config import TrainingConfig
from wfvae.train.data import Batch, BatchStream, printable
from wfvae.train.device import is_out_of_memory
from wfvae.train.processes import ENDED_ELSEWHERE, World, is_lost_peer
from wfvae.train.record import Clock, Metrics, read_metrics
from wfvae.train.sources import has_validation
from wfvae.train.step import NotFiniteError, Trainer
from wfvae.train.validation import Scores, Validator, last_good

_BEFORE_RESUMING = (
    "; --resume would make this step again: before that, take those clips out of the data, or remove the"
    " newest checkpoints to continue from an earlier one with --set optimizer.learning_rate= (lower) or"
    " optimizer.clip_norm="
)


@dataclass(frozen=True)
class Watcher:
    """Functions that a run calls while it trains."""

    progress: Callable[[int, int, dict[str, float]], None] = lambda done, total, values: None
    """Is given (steps made, steps in all, latest values) after every step."""
    notice: Callable[[str], None] = lambda line: None
    """Is given a line for each file that is skipped, and for what is unusual about a run when it
    begins. A process that is not the first reports only files that it meets itself."""
    stopping: Callable[[], bool] = lambda: False
    """Asked between steps; True ends the run after a checkpoint."""
    indexing: Callable[[int, int], None] = lambda done, total: None
    """Is given (files probed, files in all) while a folder of videos is indexed."""


@dataclass
class StepLoop:
    """Makes the steps of a run. Whatever ends it, the steps made so far are saved if possible."""

    config: TrainingConfig
    directory: Path
    world: World
    watcher: Watcher
    trainer: Trainer
    stream: BatchStream
    metrics: Metrics | None
    """None in processes other than the first, as is `validator`."""
    validator: Validator | None
    fingerprint: str
    """Of the clips, for checkpoints."""
    clock: Clock = field(default_factory=Clock)
    scores: Scores | None = None
    """Of the last validation."""

    def __post_init__(self) -> None:
        self._state = self.trainer.state
        self._saved = self._state.step

    def run(self) -> bool:
        """Makes all steps; returns False if the run was asked to stop before."""
        try:
            return self._run()
        except RuntimeError as error:
            if is_lost_peer(error):  # all exchanges of a step come before it changes anything
                self._rescue(TrainingError(ENDED_ELSEWHERE))
            raise

    def _run(self) -> bool:
        config, state, clock = self.config, self._state, self.clock
        steps = config.run.steps
        validate_every = config.validation.every if has_validation(config) else 0
        rates: dict[str, float] = {}
        while state.step < steps:
            batch = self._next_batch()
            if batch is None:
                return False
            with clock.measure("compute"):
                values = self._step(batch)
                self.world.synchronize_device()
            done = state.step
            clock.count(config.optimizer.batch * batch.frames.shape[2])
            if done % config.run.log_every == 0 or done == steps:
                rates = clock.rates(steps - done)
                self._record(values | rates)
            self.watcher.progress(done, steps, values | rates | clock.shares())
            due = validate_every > 0 and done % validate_every == 0
            # Before the validation: one that fails must neither lose these steps nor be repeated at
            # every resumption.
            if due or done % config.run.checkpoint_every == 0 or done == steps:
                self._save()
            if due and done < steps:
                self._validate()
        if state.step == steps:
            self._validate_end()
        return True

    def _next_batch(self) -> Batch | None:
        """Returns the batch of the next step; None if the run was asked to stop."""
        batch: Batch | None = None
        fault: Exception | None = None
        with self.clock.measure("data_wait"):
            try:
                batch = next(self.stream)
            except Exception as error:
                fault = error  # raised below, by all processes at the same place
            stopping = self.watcher.stopping()
            # Inside, since it waits for the data of the slowest process.
            ends = self.world.any(fault is not None or stopping)
        if not ends:
            return batch
        # Checked before the fault: a signal to the whole group may have ended a worker, too.
        if self.world.any(stopping):
            self._save()
            return None
        self._rescue(fault)
        self.world.wait()  # the end of one process is the end of all
        raise fault if fault is not None else TrainingError(ENDED_ELSEWHERE)

    def _step(self, batch: Batch) -> dict[str, float]:
        try:
            return self.trainer.step(batch.frames.chunk(self.config.optimizer.accumulate))
        except NotFiniteError as error:
            # The checkpoints before this one may be needed, to continue from before the divergence.
            self._rescue(error, keep_all=True)
            self.world.wait()  # until it is written
            if error.elsewhere:
                raise TrainingError(f"{error}, in another process, whose message says what to do") from error
            names = ", ".join(map(printable, batch.names))
            advice = _BEFORE_RESUMING if newest_of_run(self.directory) else ""
            raise TrainingError(
                f"{error}; the batch held {names}; {last_good(self.directory)}{advice}"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fault = f"step {self._state.step + 1}: out of memory on {self.world.device}"
            self._state.optimizer.zero_grad(set_to_none=True)  # room for the checkpoint
            if not self.trainer.updating:
                with suppress(RuntimeError, MemoryError):
                    self._rescue(TrainingError(fault))
            raise TrainingError(
                f"{fault}; {last_good(self.directory)}; resume it with run.activation_checkpointing=true or a"
                " small loss.perceptual_frames, or begin a new run with a larger optimizer.accumulate or"
                " smaller or shorter clips"
            ) from error

    def _record(self, values: dict[str, float]) -> None:
        if self.metrics is not None:
            try:
                self.metrics.write("train", self._state.step, values)
            except TrainingError as error:
                self._rescue(error)
                raise

    def _save(self) -> None:
        if self.world.is_first:
            self._write()
        self._saved = self._state.step
        self.world.wait()

    def _rescue(self, fault: Exception | None, *, keep_all: bool = False) -> None:
        """Saves the steps since the last checkpoint, if any, before `fault` ends the run."""
        if self.world.is_first and self._state.step != self._saved:
            try:
                self._write(keep_all=keep_all)
            except TrainingError as error:
                raise TrainingError(f"{fault}; {error}" if fault else str(error)) from (fault or error)

    def _write(self, *, keep_all: bool = False) -> None:
        size = self.world.size
        write_checkpoint(self.directory, self._state, self.config, self.fingerprint, size, keep_all=keep_all)

    def _validate(self) -> None:
        if self.validator is None or self.metrics is None:
            return
        with self.clock.measure("validation"):
            self.scores = self.validator.validate(self._state.average, self._state.step)
        values = {name: value for name, value in self.scores._asdict().items() if value is not None}
        self.metrics.write("validation", self._state.step, values)

    def _validate_end(self) -> None:
        """Makes the last validation, unless it was made before; the other processes wait for it."""
        if self.validator is not None:
            lines = read_metrics(self.directory, "validation")
            scored = [line for line in lines if {"psnr_db", "ssim"} <= line.keys()]
            made = [line for line in scored if line["step"] == self._state.step]
            if not made:
                self._validate()
            elif self.scores is None:
                self.scores = Scores(made[-1]["psnr_db"], made[-1]["ssim"], made[-1].get("lpips"))
        self.world.wait()
