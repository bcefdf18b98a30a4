"""A folder of videos as a source of clips."""

import hashlib
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from wfvae.errors import DataError
from wfvae.train.data.clip_source import EVERY_FRAME, BadClip, Clip, ClipSource, Strides
from wfvae.train.data.frame_pixels import PixelReader
from wfvae.train.data.video_file import UnusableError, VideoFacts, frames_from, refused, share_of_time
from wfvae.train.data.video_index import index_folder
from wfvae.video import VIDEO_SUFFIXES

_MISCOUNT = 16
"""Frames by which a container may count too many (edit lists, encoder delay)."""
_WHOLE = 0.9
"""Share of its stated time that a whole file has at least."""


class VideoFolder(ClipSource):
    """All videos below a folder. A clip begins at a random frame, is resized and centre-cropped.

    Args:
        root: the folder, searched with all folders below it.
        frames, size: of the clips; the size is (height, width) in pixels.
        index_path, progress, retry_bad: see `index_folder`.

    Raises:
        DataError: there are no videos, or none can be used.
        ResourceError: the index cannot be written.
    """

    def __init__(
        self,
        root: Path | str,
        frames: int,
        size: tuple[int, int],
        strides: Strides = EVERY_FRAME,
        *,
        index_path: Path | str,
        progress: Callable[[int, int], None] = lambda done, total: None,
        retry_bad: bool = True,
    ) -> None:
        self.root, self.frames, self.size, self.strides = Path(root), frames, size, strides
        files = index_folder(self.root, Path(index_path), progress, retry_bad=retry_bad)
        if not files:
            raise DataError(
                f"no videos below '{root}'; expected files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        self._videos: list[tuple[str, VideoFacts]] = []
        unusable: list[BadClip] = []
        for file in files:
            if file.facts is None:
                unusable.append(BadClip(file.path, file.reason))
            elif file.facts.frames < self._span(self.strides.largest):
                unusable.append(BadClip(file.path, self._too_short(file.facts.frames)))
            else:
                self._videos.append((file.path, file.facts))
        self._unusable = tuple(unusable)
        if not self._videos:
            raise DataError(
                f"none of the {len(files)} video files below '{root}' can be used; the first is {unusable[0]}"
            )

    def __len__(self) -> int:
        return len(self._videos)

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """Undecodable files and those with too few frames."""
        return self._unusable

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the paths and lengths of the usable videos."""
        listed = "\n".join(f"{path}\t{facts.frames}" for path, facts in self._videos)
        # Names of files may be any bytes.
        return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()

    def name(self, index: int) -> str:
        """The path relative to the folder."""
        return self._videos[index][0]

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """See `ClipSource.clip`; `rng` chooses the stride and the first frame."""
        name, facts = self._videos[index]
        stride = self.strides.draw(rng)
        start = int(rng.integers(facts.frames - self._span(stride) + 1))
        with refused(name):
            clip, missing = self._read(name, facts, start, stride)
            if missing > _MISCOUNT and share_of_time(self.root / name, facts) < _WHOLE:
                raise UnusableError(
                    f"it ends before {_WHOLE:.0%} of the time that its header promises; it may be cut short"
                    " or damaged"
                )
            back = 0
            # Containers count too many, and where the frame rate varies fewer frames may follow
            # than its mean promises. The frame from which on there are enough is not known.
            while missing and start:
                back = max(missing, 2 * back)
                start = max(start - back, 0)
                clip, missing = self._read(name, facts, start, stride)
            if missing:
                raise UnusableError(
                    f"it has {self._span(stride) - missing} frames, and its header promises {facts.frames};"
                    " it may be cut short or damaged"
                )
            return clip

    def _span(self, stride: int) -> int:
        return (self.frames - 1) * stride + 1

    def _read(self, name: str, facts: VideoFacts, start: int, stride: int) -> tuple[Clip, int]:
        """Returns the clip from frame `start` on, and how many of its frames the video lacks."""
        clip = np.empty((self.frames, *self.size, 3), np.uint8)
        pixels = PixelReader(facts.codec, self.size)
        span, passed = self._span(stride), 0
        with closing(frames_from(self.root / name, facts, start)) as frames:
            for frame in islice(frames, span):
                if not stride:
                    clip[:] = pixels.read(frame)
                elif passed % stride == 0:
                    clip[passed // stride] = pixels.read(frame)
                passed += 1
        return clip, span - passed

    def _too_short(self, frames: int) -> str:
        stride = self.strides.largest
        strided = f" with a stride of {stride}" if stride > 1 else ""
        least = self._span(stride)
        return f"it has {frames} frames, too few for {self.frames}{strided} (expected {least} or more)"
