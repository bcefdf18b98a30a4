"""Which clip stands where: a pure function of seed, step, rank and row.

So the clips of a step are the same for any number of workers and any starting step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource, printable

_ORDER, _CLIP, _CROP = 0, 1, 2

WINDOW = 8
"""Items whose crops are mixed with each other when there are several of each."""


class Place(NamedTuple):
    """Where a row of a batch comes from."""

    epoch: int
    position: int
    """Place in the epoch's order."""
    item: int
    """Number of the item in the source."""
    crop: int = 0
    """Number of the crop of the item's clip."""


class Sampling:
    """The order in which the ranks of a run see the items.

    Every epoch goes once through all items in an order of its own. The rows of a step's global
    batch, rank by rank, are the next `batch_size * world` places of that endless order.

    With several crops per item an epoch is that much longer: the crops of `WINDOW` items that
    follow each other are shuffled, so that a batch holds different items and each item is needed
    for a short while only.
    """

    def __init__(
        self, seed: int, count: int, batch_size: int, rank: int = 0, world: int = 1, crops: int = 1
    ) -> None:
        self.seed, self.count, self.batch_size = seed, count, batch_size
        self.rank, self.world, self.crops = rank, world, crops
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def places(self, step: int) -> list[Place]:
        """Returns the places of this rank's rows at a step."""
        first = (step * self.world + self.rank) * self.batch_size
        places = []
        for row in range(first, first + self.batch_size):
            epoch, position = divmod(row, self.count * self.crops)
            turn, crop = self._turn(epoch, position)
            places.append(Place(epoch, position, int(self._order(epoch)[turn]), crop))
        return places

    def _turn(self, epoch: int, position: int) -> tuple[int, int]:
        """Returns the item's place in the epoch's order, and the crop, at a position."""
        if self.crops == 1:
            return position, 0
        window, inside = divmod(position, WINDOW * self.crops)
        items = min(WINDOW, self.count - window * WINDOW)
        mixed = np.random.default_rng([self.seed, _ORDER, epoch, window]).permutation(items * self.crops)
        item, crop = divmod(int(mixed[inside]), self.crops)
        return window * WINDOW + item, crop

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        # The latest is kept: making it takes longer than a step if there are millions of items.
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.count)}
        return self._orders[epoch]


class Drawn(NamedTuple):
    """A clip, and the items that were bad before it."""

    clip: Clip
    item: int
    """The item of the clip; another than the one asked for if that was bad."""
    bad: tuple[BadClip, ...]


class NoneUsableError(DataError):
    """Every item tried for a row was bad; `bad` holds all of them."""

    def __init__(self, bad: tuple[BadClip, ...], count: int) -> None:
        tried = "none of them" if len(bad) == count else f"none of the {len(bad)} that were tried"
        super().__init__(
            f"of {count} clips {tried} can be used, the last is {bad[-1]}; repair the data, or choose others"
        )
        self.bad = bad


def draw(source: ClipSource, seed: int, epoch: int, index: int, max_bad: int) -> Drawn:
    """Draws a clip of the item `index`, or of a replacement from the seed if it is bad.

    Raises:
        NoneUsableError: more than `max_bad` items, or all, are bad.
    """
    count = len(source)
    bad: dict[int, BadClip] = {}
    for choice, rng in _choices(seed, epoch, index, count):
        if choice in bad:
            continue
        try:
            return Drawn(check_clip(source, choice, source.clip(choice, rng)), choice, tuple(bad.values()))
        except BadClip as error:
            bad[choice] = error
        if len(bad) > max_bad or len(bad) == count:
            break
    raise NoneUsableError(tuple(bad.values()), count)


def _choices(seed: int, epoch: int, index: int, count: int) -> Iterator[tuple[int, np.random.Generator]]:
    """Yields the item asked for, then random ones without end, each with its own generator."""
    attempt = 0
    while True:
        rng = item_rng(seed, epoch, index, attempt)
        yield (index if attempt == 0 else int(rng.integers(count))), rng
        attempt += 1


def item_rng(seed: int, epoch: int, index: int, attempt: int) -> np.random.Generator:
    """Returns the generator of one attempt to draw a clip for the item `index`."""
    return np.random.default_rng([seed, _CLIP, epoch, index, attempt])


def crop_rng(seed: int, place: Place) -> np.random.Generator:
    """Returns the generator of one crop."""
    return np.random.default_rng([seed, _CROP, place.epoch, place.item, place.crop])


def check_clip(source: ClipSource, index: int, clip: Clip) -> Clip:
    """Returns the clip, or raises `DataError` if it is not what `ClipSource.clip` promises."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        name = printable(source.name(index))
        raise DataError(
            f"'{name}' gave a {clip.dtype} array of shape {clip.shape}; expected uint8 (T, H, W, 3)"
        )
    return clip
