"""What training reads its clips from, and clips that cannot be used."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from wfvae.errors import DataError

Clip = npt.NDArray[np.uint8]
"""(T, H, W, 3) uint8 RGB, full range 0..255."""


class BadClip(DataError):
    """An item of a source that cannot be used; training replaces it.

    Attributes:
        name: the item, as `ClipSource.name` gives it.
        reason: why, in a few words without a full stop.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"'{printable(name)}': {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadClip], tuple[str, str]]:
        return type(self), (self.name, self.reason)


class ShortClip(BadClip):
    """An item that is whole, but has fewer frames than a clip."""


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
