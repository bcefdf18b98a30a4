"""What the demo's report shows, as plain data: numbers, texts and a few frames. `export.report`
renders it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.export.parity.verification import Check


@dataclass(frozen=True)
class RunInfo:
    """What ran, on what, and how to repeat it."""

    model: str
    """Name of the model, such as "WF-VAE-S"."""
    parameters: int
    """Number of the model's parameters."""
    bundle_hash: str
    """Hash of the bundle's weights, as in its manifest."""
    backend: str
    """Name of the backend that produced the numbers."""
    versions: tuple[tuple[str, str], ...]
    """(package, version) pairs."""
    cpu: str
    """The processor's name."""
    threads: int
    """Threads the backend was given."""
    finished: datetime
    """When the run ended; shown with its time zone if it has one."""
    commands: tuple[str, ...]
    """Command lines that a user can repeat, in order."""
    source: str
    """Where the video came from: a file name, or a description of the procedural clip."""
    frames: int
    height: int
    width: int
    fps: float
    """The video's frame rate."""


@dataclass(frozen=True)
class Stage:
    """Wall time of one stage of the run."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Throughput:
    """Speeds and sizes."""

    encode_fps: float
    """Video frames encoded per second of wall time."""
    decode_fps: float
    stages: tuple[Stage, ...]
    encoder_state_bytes: int
    """Bytes of state that one encoder stream holds between steps."""
    decoder_state_bytes: int
    raw_video_bytes: int
    """Bytes of the video as 8-bit RGB, frames x height x width x 3."""
    latents_bytes: int
    """Bytes of the latents as written."""
    video_file_bytes: int | None = None
    """Bytes of the compressed video file, None when the clip was never a file."""


@dataclass(frozen=True)
class StepTimes:
    """Wall time of every step of a stream."""

    label: str
    """What a step is, such as "encode, 8 frames per step"."""
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class SubbandBar:
    """One sub-band of one video."""

    name: str
    """LLL ... HHH; the letters stand for time, height, width."""
    energy_share: float
    """Part of the energy of all bands, 0..1."""
    entropy_bits: float
    """Shannon entropy of the quantised coefficients, bits per coefficient."""


@dataclass(frozen=True)
class SubbandSeries:
    """The sub-bands of one video."""

    label: str
    """Whose they are, such as "input"."""
    bars: tuple[SubbandBar, ...]


@dataclass(frozen=True)
class Picture:
    """One frame before and after."""

    frame: int
    """Its index in the video."""
    reference: npt.NDArray[np.uint8]
    """(H, W, 3) uint8."""
    reconstruction: npt.NDArray[np.uint8]
    """(H, W, 3) uint8."""


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. What is empty or None is left out of the page."""

    run: RunInfo
    throughput: Throughput
    parity: tuple[Check, ...]
    psnr_per_frame: tuple[float, ...]
    """PSNR in dB of the reconstruction against the input, infinite where they are equal."""
    step_times: tuple[StepTimes, ...] = ()
    subbands: tuple[SubbandSeries, ...] = ()
    """One series or two (input and reconstruction)."""
    subband_bin_width: float = 1.0
    """Bin width of the entropies, in 8-bit levels."""
    pictures: tuple[Picture, ...] = ()
    difference_gain: int = 8
    """Amplification of the differences shown."""
    video: str | None = None
    """Path of the side-by-side video relative to the report, with forward slashes."""
    title: str = "WF-VAE demo report"

    def __post_init__(self) -> None:
        if self.video is not None and (
            self.video.startswith(("/", "\\")) or ":" in self.video or not self.video
        ):
            raise InputError(
                f"video is {self.video!r}; expected a path relative to the report, such as 'side_by_side.mp4'"
            )
        if any(math.isnan(value) for value in self.psnr_per_frame):
            raise InputError(
                "psnr_per_frame holds a value that is not a number; a frame equal to the input has an"
                " infinite PSNR"
            )
        if len(self.subbands) > 2:
            raise InputError(
                f"{len(self.subbands)} series of sub-bands were given; expected at most two, input and"
                " reconstruction"
            )
