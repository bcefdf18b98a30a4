"""What the writers of videos have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError, MediaError
from wfvae.runtime.media.failures import translated
from wfvae.runtime.media.locks import acquired
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray


class FrameWriter(ABC):
    """A video opened for writing, which may be closed while another thread writes."""

    _REOPEN = "open a new writer"

    def __init__(self, video: OutputVideo, name: str) -> None:
        self._video, self._name = video, name
        self._open = True
        self._in_use = threading.Lock()

    def write(self, frames: npt.NDArray[np.uint8], times: Sequence[Fraction] | None = None) -> None:
        """Appends `frames`, uint8 (T, H, W, 3), RGB, 0..255.

        Args:
            times: T presentation times in seconds, strictly increasing also over calls, rounded to
                the output's tick. Without them each frame follows the previous one after 1 / fps;
                the first is at 0. Directories of images and raw pipes keep no times.

        Raises:
            InputError: arrays of another shape or dtype.
            MediaError: times that do not increase, or a failure of the encoder.
            ResourceError: the disk is full.
        """
        self._require_open()
        self._check(frames, times)
        with translated(f"writing '{self._name}'"):
            for index, frame in enumerate(frames):
                with self._in_use:
                    self._require_open()
                    self._write(frame, None if times is None else times[index])

    def _check(self, frames: npt.NDArray[np.uint8], times: Sequence[Fraction] | None) -> None:
        height, width = self._video.height, self._video.width
        is_array = isinstance(frames, np.ndarray)
        if not is_array or frames.dtype != np.uint8 or frames.shape[1:] != (height, width, 3):
            got = f"{frames.dtype} {frames.shape}" if is_array else type(frames).__name__
            raise InputError(
                f"frames to write are {got}; expected uint8 (T, {height}, {width}, 3), RGB, 0..255"
            )
        if times is not None and len(times) != len(frames):
            raise InputError(
                f"{len(times)} times were given for {len(frames)} frames; give one time in seconds per frame,"
                " or none"
            )

    def _require_open(self) -> None:
        if not self._open:
            raise MediaError(f"'{self._name}' is closed; {self._REOPEN} to write more")

    def _stop(self) -> None:
        """Ends writing and discards what is incomplete, after the frame that is being written."""
        self._open = False
        with acquired(self._in_use) as is_free:
            if is_free:
                self._discard()

    @abstractmethod
    def _write(self, frame: RGBArray, time: Fraction | None) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...
