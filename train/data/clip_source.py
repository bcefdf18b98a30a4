"""What training reads its clips from, and how a clip that cannot be used is told."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from wfvae.errors import DataError

__all__ = ["BadClip", "Clip", "ClipSource", "FiniteSource", "InspectedSource", "ShortClip", "printable"]

Clip = npt.NDArray[np.uint8]
"""(T, H, W, 3) uint8 RGB, full range 0..255."""


class BadClip(DataError):
    """One item of a source that cannot be used; training skips it and goes on.

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
    """An item that is whole, but has too few frames for the clips asked for."""


def printable(name: str) -> str:
    """A name as messages give it: what no terminal shows, such as bytes that are not UTF-8 and line
    breaks, is escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class ClipSource(Protocol):
    """A set of items from each of which a clip can be drawn. Must be picklable: worker processes
    get a copy.
    """

    def __len__(self) -> int:
        """Items, and so clips per epoch; at least 1."""

    def name(self, index: int) -> str:
        """What a report calls the item `index` (0..len-1)."""

    def clip(self, index: int, rng: np.random.Generator) -> Clip:
        """A clip of the item: (T, H, W, 3) uint8, the same shape for all items.

        The result depends on `index` and on what `rng` yields alone, not on earlier calls.

        Raises:
            BadClip: this item cannot be used.
        """


@runtime_checkable
class InspectedSource(Protocol):
    """A source that has already left out items, which are to be reported and counted like those met
    later.
    """

    @property
    def unusable(self) -> tuple[BadClip, ...]:
        """The items left out, with the reasons."""


@runtime_checkable
class FiniteSource(Protocol):
    """A source whose items may change between a run and its resumption, and with them what a seed
    draws.
    """

    @property
    def fingerprint(self) -> str:
        """Equal for two sources if they hold the same items in the same order."""
