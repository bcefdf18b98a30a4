"""Which frames of a video are scored, and at what size."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.runtime.media.video_reader import open_video

Frame = npt.NDArray[np.uint8]
Window = Literal["first", "centre"]

PAPER_FRAMES, PAPER_SIZE = 33, 256


@dataclass(frozen=True)
class Protocol:
    """The part of each video that is scored. The default is the paper's: 33 frames of 256x256."""

    frames: int | None = PAPER_FRAMES
    """Consecutive frames; None takes all."""
    size: int | None = PAPER_SIZE
    """The short side is resized to this many pixels (bilinear, antialiased, rounded to 8 bits) and
    a square is cropped from the centre; None leaves the size as it is."""
    window: Window = "first"
    """Whether the frames are the first ones, or lie in the middle of the video."""

    def describe(self) -> str:
        """Returns one phrase for people."""
        frames = "all frames" if self.frames is None else f"{self.frames} frames, {self.window} window"
        if self.size is None:
            return f"{frames}, own size"
        return f"{frames}, {self.size}x{self.size} (short side resized, centre crop)"


@dataclass(frozen=True)
class Prepared:
    """A video opened for scoring."""

    path: Path
    frames: Iterator[Frame]
    """(H, W, 3) uint8, prepared. Raises `InputError` if the video ends too early."""
    stored_size: tuple[int, int]
    """(height, width) of the video before preparation."""
    count: int | None
    """Frames in the video, where they had to be counted."""
    stated: int | None
    """Frames that the container states, which may be wrong; None where it states none."""


@contextmanager
def open_prepared(path: Path, protocol: Protocol) -> Iterator[Prepared]:
    """Opens a video and yields the frames that the protocol asks for, one at a time.

    A centre window needs the true number of frames, so the video is decoded twice then: the number
    that a container states may be wrong. Raises `InputError` if such a window does not fit.
    """
    count, start = None, 0
    if protocol.window == "centre" and protocol.frames is not None:
        count = count_frames(path)
        if count < protocol.frames:
            raise _too_short(path, count, protocol.frames)
        start = (count - protocol.frames) // 2
    with open_video(path) as reader:
        size = (reader.info.height, reader.info.width)
        if start:
            reader.seek_frames(start)
        yield Prepared(path, _window(path, iter(reader), protocol), size, count, reader.info.frames)


def count_frames(path: Path) -> int:
    """Counts the frames of a video by decoding it. Raises `MediaError` if it is damaged."""
    with open_video(path) as reader:
        return sum(1 for _ in reader)


def _window(path: Path, frames: Iterator[Frame], protocol: Protocol) -> Iterator[Frame]:
    given = 0
    for frame in itertools.islice(frames, protocol.frames):
        given += 1
        yield frame if protocol.size is None else square(frame, protocol.size)
    if protocol.frames is not None and given < protocol.frames:
        raise _too_short(path, given, protocol.frames)


def _too_short(path: Path, found: int, wanted: int) -> InputError:
    advice = "give longer videos, a smaller --frames, or --whole"
    return InputError(f"'{path}' has {found} frames, and {wanted} are scored; {advice}")


def square(frame: Frame, side: int) -> Frame:
    """Resizes the short side of a frame (H, W, 3) uint8 to `side` and crops the centre."""
    short = min(frame.shape[:2])
    if short != side:
        frame = resized(frame, frame.shape[0] * side // short, frame.shape[1] * side // short)
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return np.ascontiguousarray(frame[top : top + side, left : left + side])


def resized(frame: Frame, height: int, width: int) -> Frame:
    """Resizes a frame (H, W, 3) uint8: bilinear with antialiasing, rounded to 8 bits."""
    import torch

    planes: Any = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    planes = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    result: Frame = planes[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return result
