"""What a job tells while it runs and when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wfvae.runtime.backends.base import BoolArray, FloatArray, StepSession, StreamState

if TYPE_CHECKING:
    pass

Progress = Callable[[int, int | None], None]
"""Called with frames done and frames in all, None if unknown."""


def no_progress(done: int, total: int | None) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Report:
    """What a job did."""

    source: str
    destination: str
    frames: int
    """Video frames that went through in this run."""
    latents: int
    height: int
    width: int
    fps: float
    """Frame rate of the video."""
    seconds: float
    """Wall time."""
    engine_seconds: float
    """Time inside the backend."""
    resumed_at: int
    """Frames that an earlier run had finished."""
    complete: bool = True
    """False where the latents were of a stream that had not been finished."""
    variable_frame_rate: bool = False
    """Whether the source's frames are unevenly spaced. `reconstruct` keeps their times; latents
    keep the average rate only.
    """
    rotation: int = 0
    """Clockwise degrees by which the source's frames were turned, as it asks for."""
    audio: str | None = None
    """`copied`, `left out`, or None where there was none."""

    @property
    def frames_per_second(self) -> float:
        """Throughput of this run."""
        return self.frames / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "frames_per_second": self.frames_per_second}


class TimedSession:
    """Measures the time spent in a session."""

    def __init__(self, session: StepSession) -> None:
        self.graph = session.graph
        self.seconds = 0.0
        self._session = session

    def new_state(self, batch: int, height: int, width: int) -> StreamState:
        return self._session.new_state(batch, height, width)

    def step(self, state: StreamState, x: FloatArray, start: BoolArray, end: BoolArray) -> FloatArray:
        began = time.perf_counter()
        result = self._session.step(state, x, start, end)
        self.seconds += time.perf_counter() - began
        return result
