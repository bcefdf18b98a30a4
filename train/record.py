"""The run's record and its clock: a line of JSON per logged step, TensorBoard events on request."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wfvae.errors import MissingExtraError, TrainingError
from wfvae.files import write_whole
from wfvae.spec.bounded import parse_object, read_bytes

METRICS_NAME = "metrics.jsonl"
_MOST_BYTES = 1 << 30
_NEVER = 10**9
"""Seconds between flushes of TensorBoard's thread, which a full disk would end with a traceback."""


class Metrics:
    """Appends to `RUN/metrics.jsonl`. Lines of steps that a resumed run makes again are removed.

    Each line has `step` and `kind`: "train" (losses, learning_rate, gradient_norm,
    frames_per_second, data_wait, compute, eta_seconds) or "validation" (psnr_db, ssim, lpips).

    Args:
        first_step: the step before the first one that is recorded.
        tensorboard: also write `RUN/tensorboard`.

    Raises:
        MissingExtraError: TensorBoard is not installed.
        TrainingError, ResourceError: a file cannot be written.
    """

    def __init__(self, run: Path, first_step: int, tensorboard: bool = False) -> None:
        self._path, self._events_path = run / METRICS_NAME, run / "tensorboard"
        writer = _summary_writer() if tensorboard else None
        with _writing(self._path):
            self._forget_after(first_step)
            self._path.open("a").close()
        self._events: Any = None
        if writer is not None:
            with _writing(self._events_path):
                # TensorBoard forgets what earlier files hold for these steps.
                folder = str(self._events_path)
                self._events = writer(folder, purge_step=first_step + 1, flush_secs=_NEVER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is None:
            return
        try:
            with _writing(self._events_path):
                self._events.close()
        except TrainingError:
            if error is None:  # otherwise the first error says what happened
                raise

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Adds a line. Raises `TrainingError` if the disk refuses."""
        line = {"kind": kind, "step": step, **{name: float(f"{v:.6g}") for name, v in values.items()}}
        with _writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            with _writing(self._events_path):
                for name, value in values.items():
                    self._events.add_scalar(f"{kind}/{name}", value, step)
                self._events.flush()

    def _forget_after(self, step: int) -> None:
        if not self._path.is_file():
            return
        kept = []
        for line in _lines(self._path):
            # What cannot be read is the last line of a run that was killed while it wrote.
            with suppress(TrainingError):
                if _parse(line)["step"] <= step:
                    kept.append(line)
        write_whole(self._path, "".join(f"{line}\n" for line in kept))


class Clock:
    """Sums up the seconds that a run spends waiting for data, computing and validating."""

    def __init__(self) -> None:
        self._spent = {"data_wait": 0.0, "compute": 0.0, "validation": 0.0}
        self._began = self._marked = time.perf_counter()
        self._at_mark = dict(self._spent)
        self._frames = self._steps = 0

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Adds the time spent inside to `what`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] += time.perf_counter() - began

    def count(self, frames: int) -> None:
        """Counts a step of so many frames."""
        self._frames += frames
        self._steps += 1

    def rates(self, left: int) -> dict[str, float]:
        """Returns rates since the last call, without validations, and the time of `left` steps."""
        now = time.perf_counter()
        spent = {name: seconds - self._at_mark[name] for name, seconds in self._spent.items()}
        elapsed = max(now - self._marked - spent["validation"], 1e-9)
        rates = {
            "frames_per_second": self._frames / elapsed,
            "data_wait": spent["data_wait"] / elapsed,
            "compute": spent["compute"] / elapsed,
            "eta_seconds": left * elapsed / self._steps,
        }
        self._marked, self._at_mark, self._frames, self._steps = now, dict(self._spent), 0, 0
        return rates

    def shares(self) -> dict[str, float]:
        """Returns shares of the whole time so far; the rest is `bookkeeping`."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        shares = {name: seconds / elapsed for name, seconds in self._spent.items()}
        return {**shares, "bookkeeping": max(1.0 - sum(shares.values()), 0.0)}


def read_metrics(directory: Path, kind: str) -> list[dict[str, float]]:
    """Returns the lines of one kind of a run's record, in order.

    Raises:
        TrainingError: there is no record, or it cannot be read.
    """
    path = directory / METRICS_NAME
    try:
        found = [_parse(line) for line in _lines(path)]
    except TrainingError as error:
        raise TrainingError(f"cannot read {path}: {error}") from error
    return [line for line in found if line.pop("kind") == kind]


def _lines(path: Path) -> list[str]:
    try:
        return read_bytes(path, TrainingError, _MOST_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise TrainingError(str(error)) from error


def _parse(line: str) -> dict[str, Any]:
    """Reads a line. Raises `TrainingError` unless it has a kind, a step, and numbers."""
    values = parse_object(line, TrainingError, finite=False)
    numbers = [value for key, value in values.items() if key != "kind"]
    if not isinstance(values.get("kind"), str) or type(values.get("step")) is not int:
        raise TrainingError("a line has no kind or no step")
    if not all(type(number) in (int, float) for number in numbers):
        raise TrainingError(f"step {values['step']} holds something else than numbers")
    return values


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("run.tensorboard", "tensorboard", "tensorboard") from error
    return SummaryWriter


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"cannot write {path}: {reason}; make room and go on with --resume") from error
