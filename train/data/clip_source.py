"""What training reads its clips from, and the account of clips that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wfvae.errors import DataError

Clip = npt.NDArray[np.uint8]
"""(T, H, W, 3) uint8 RGB, full range 0..255."""


class BadClip(DataError):
    """An item of a source that cannot be used, with the reason; training replaces it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"'{printable(name)}': {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[BadClip], tuple[str, str]]:
        return type(self), (self.name, self.reason)


def printable(name: str) -> str:
    r"""Escapes what a terminal cannot show, such as bytes that are not UTF-8 and line breaks.

    >>> printable("a\nb")
    'a\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class ClipSource(Protocol):
    """A set of items, each with clips to draw. Worker processes get a pickled copy."""

    def __len__(self) -> int:
        """Items, and so clips per epoch; at least 1."""

    def name(self, index: int) -> str:
        """The name of item `index` (0..len-1) in reports."""

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """A clip of the item: (T, H, W, 3) uint8, the same shape for all items.

        The result depends on `index` and on what `rng` yields alone, not on earlier calls.

        Raises:
            BadClip: this item cannot be used.
        """

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """Items that were left out; they are reported and counted like those met later."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Equal for sources with the same items in the same order; "" if items cannot change."""
        return ""


@dataclass(frozen=True)
class Strides:
    """Of how many frames of a video a clip takes one: drawn from 1 <= smallest <= largest."""

    largest: int = 1
    smallest: int = 1
    stills: float = 0.0
    """Share of the clips that show one frame all the time, 0..1."""

    def draw(self, rng: np.random.Generator) -> int:
        """Draws a stride, or 0 for a still. Where there is no choice, `rng` is not used."""
        if self.stills and rng.random() < self.stills:
            return 0
        if self.smallest == self.largest:
            return self.largest
        return int(rng.integers(self.smallest, self.largest + 1))


EVERY_FRAME = Strides()


@dataclass(frozen=True)
class Crops:
    """Windows of `height` x `width` pixels, over all frames of a clip, `per_clip` of each clip.

    Reading a clip costs the same whether one window of it is used or many. Those of one clip are
    spread over a few batches, see `Sampling`.
    """

    height: int
    width: int
    per_clip: int = 1

    def cut(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Cuts a random window, (T, height, width, 3), out of a clip (T, H, W, 3)."""
        rows, columns = clip.shape[1:3]
        top, left = int(rng.integers(rows - self.height + 1)), int(rng.integers(columns - self.width + 1))
        return np.ascontiguousarray(clip[:, top : top + self.height, left : left + self.width])


class FixedCrops(ClipSource):
    """One window of each of another source's clips, always the same: for validation."""

    def __init__(self, source: ClipSource, crops: Crops) -> None:
        self.source, self.crops = source, crops

    def __len__(self) -> int:
        return len(self.source)

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """See `ClipSource.unusable`."""
        return self.source.unusable

    def name(self, index: int) -> str:
        """See `ClipSource.name`."""
        return self.source.name(index)

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """See `ClipSource.clip`."""
        return self.crops.cut(self.source.clip(index, rng), np.random.default_rng(index))


class BadClipLedger:
    """Reports each bad file once, counts them, and stops the run when there are too many.

    Args:
        limit: different files that may be bad; None for any number.
        report: is given one line for each bad file.
    """

    def __init__(self, limit: int | None = 100, report: Callable[[str], None] = lambda line: None) -> None:
        self.limit = limit
        self._names: set[str] = set()
        self._report = report

    def __len__(self) -> int:
        return len(self._names)

    def note(self, bad: Iterable[BadClip], report: bool = True) -> None:
        """Counts bad files, and reports them if asked to; known ones change nothing.

        Raises:
            DataError: more than `limit` different files are bad. All of `bad` have been reported.
        """
        last = None
        for clip in bad:
            if clip.name not in self._names:
                last = clip
                self._names.add(clip.name)
                if report:
                    self._report(f"skipped {clip}")
        if last is not None and self.limit is not None and len(self) > self.limit:
            raise DataError(
                f"{len(self)} files cannot be used, more than the limit of {self.limit}; the last is {last};"
                " repair or remove them, or raise data.bad_files (or use videos that are too short with a"
                " smaller data.frames or data.stride)"
            )
