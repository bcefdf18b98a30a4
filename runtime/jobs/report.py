"""What a job reports while it runs, and at its end."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

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
    """Video frames processed in this run."""
    latents: int
    height: int
    width: int
    fps: float
    """Frame rate of the video."""
    seconds: float
    """Wall time."""
    engine_seconds: float
    """Time spent in the backend."""
    resumed_at: int
    """Frames that an earlier run had finished."""
    complete: bool = True
    """False where the latents were of a stream that had not been finished."""
    variable_frame_rate: bool = False
    """Whether the source's frames are unevenly spaced. `reconstruct` keeps their times; latents
    keep the average rate only.
    """
    rotation: int = 0
    """Clockwise degrees by which the source's frames were rotated, as its metadata says."""
    audio: str | None = None
    """`copied`, `left out`, or None where there was none."""

    notices: tuple[str, ...] = ()
    """What a user should know of the source and the result, a phrase each."""

    @property
    def frames_per_second(self) -> float:
        """Throughput of this run."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def summary(self) -> str:
        """Frames, size and throughput, on one line."""
        resumed = f", resumed at frame {self.resumed_at}" if self.resumed_at else ""
        frames = f"{self.resumed_at + self.frames} frames {self.height}x{self.width}{resumed}"
        return f"{frames}; {self.frames_per_second:.1f} frames/s"

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields and the throughput, for JSON."""
        return {**asdict(self), "frames_per_second": self.frames_per_second}
