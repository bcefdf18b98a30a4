"""The run's record: a line of JSON per logged step, and TensorBoard events on request."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Self

from wfvae.errors import MissingExtraError, TrainingError

METRICS_NAME = "metrics.jsonl"


class Metrics:
    """Appends to `RUN/metrics.jsonl`. Lines of steps that a resumed run makes again are removed
    first.

    Each line has `step` and `kind`: "train" (losses, learning_rate, gradient_norm,
    frames_per_second, data_wait, compute, eta_seconds) or "validation" (psnr_db, ssim, lpips).
    """

    def __init__(self, run: Path, first_step: int, tensorboard: bool = False) -> None:
        """Opens the record for steps after `first_step`.

        Raises:
            MissingExtraError: TensorBoard was asked for and is not installed.
            TrainingError: a file cannot be written.
        """
        self._path = run / METRICS_NAME
        self._events = _EventFile(run / "tensorboard", first_step) if tensorboard else None
        try:
            self._forget_after(first_step)
            self._file = self._path.open("a", encoding="utf-8")
        except (OSError, ValueError) as error:
            if self._events is not None:
                with suppress(TrainingError):  # of the two errors the first one counts
                    self._events.close()
            raise TrainingError(f"cannot write {self._path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                self._close()
            finally:
                if self._events is not None:
                    self._events.close()
        except TrainingError:
            # Closing writes once more what could not be written before; the first error says what
            # happened, and what to do.
            if error is None:
                raise

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Adds a line. Raises `TrainingError` if the disk refuses."""
        try:
            self._file.write(
                json.dumps(
                    {"kind": kind, "step": step, **{name: _short(value) for name, value in values.items()}}
                )
                + "\n"
            )
            self._file.flush()
        except OSError as error:
            raise _refused(self._path, error) from error
        if self._events is not None:
            self._events.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def _close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _refused(self._path, error) from error

    def _forget_after(self, step: int) -> None:
        if not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the last line of a run that was killed while it wrote
        temporary = self._path.with_name(METRICS_NAME + ".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self._path)


def read_metrics(directory: Path, kind: str) -> list[dict[str, float]]:
    """The lines of one kind of a run's record, in order. Raises `TrainingError` if there is none."""
    path = directory / METRICS_NAME
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise TrainingError(f"cannot read {path}: {error}") from error
    return [line for line in lines if line.pop("kind") == kind]


def _short(value: float) -> float:
    """Six digits are more than anyone compares."""
    return float(f"{value:.6g}")


def _refused(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"cannot write {path}: {error.strerror or error}; make room and go on with --resume")


class _EventFile:
    """A file for TensorBoard, written at once. torch's `SummaryWriter` leaves that to a thread,
    which a full disk ends with a traceback.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            # By name: not installed everywhere, and without types.
            self._messages = import_module("tensorboard.compat.proto.event_pb2")
            records = import_module("tensorboard.summary.writer.record_writer")
        except ImportError as error:
            raise MissingExtraError("run.tensorboard", "tensorboard", "tensorboard") from error
        # Files are read in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        except OSError as error:
            raise TrainingError(f"cannot write {self._path}: {error.strerror}") from error
        self._records = records.RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        # TensorBoard forgets what the files before hold for this step and later ones.
        self._add(
            step=first_step + 1, session_log=self._messages.SessionLog(status=self._messages.SessionLog.START)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars. Raises `TrainingError` if the disk refuses."""
        try:
            self._add(
                step=step,
                summary={"value": [{"tag": tag, "simple_value": value} for tag, value in values.items()]},
            )
            self._file.flush()
        except OSError as error:
            raise _refused(self._path, error) from error

    def close(self) -> None:
        """Ends the file. Raises `TrainingError` if the disk refuses."""
        try:
            self._file.close()
        except OSError as error:
            raise _refused(self._path, error) from error

    def _add(self, **event: object) -> None:
        self._records.write(self._messages.Event(wall_time=time.time(), **event).SerializeToString())
