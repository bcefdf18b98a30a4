"""What the demo's report shows, as plain data. `wfvae.report.page` renders it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from wfvae.evaluation.subbands import Subband
from wfvae.export.parity.verification import Check


@dataclass(frozen=True)
class RunInfo:
    """What ran, on what, and how to repeat it."""

    model: str
    parameters: int
    bundle_hash: str
    backend: str
    versions: tuple[tuple[str, str], ...]
    cpu: str
    threads: int
    finished: datetime
    """When the run ended, with a time zone."""
    commands: tuple[str, ...]
    source: str
    """Where the video came from: a file name, or a description of the procedural clip."""
    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Throughput:
    """Speeds in frames per second, sizes in bytes."""

    encode_fps: float
    decode_fps: float
    stages: Mapping[str, float]
    encoder_state_bytes: int
    decoder_state_bytes: int
    raw_video_bytes: int
    latents_bytes: int
    video_file_bytes: int | None = None
    """The compressed video file; None if the source is not one file."""


@dataclass(frozen=True)
class Picture:
    """One frame before and after, both (H, W, 3) uint8."""

    frame: int
    reference: npt.NDArray[np.uint8]
    reconstruction: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. What is empty or None is left out of the page."""

    run: RunInfo
    throughput: Throughput
    parity: tuple[Check, ...]
    psnr_per_frame: tuple[float, ...]
    """dB; infinite for frames equal to the input."""
    subbands: Mapping[str, tuple[Subband, ...]]
    """By label, at most two: input and reconstruction."""
    pictures: tuple[Picture, ...]
    video: str | None = None
    """Path of the side-by-side video relative to the report, with forward slashes."""
