"""Which clip stands where: a pure function of seed, step, rank and row.

So the clips of a step are the same for any number of workers and any starting step.
"""

from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wfvae.errors import DataError
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource

_ORDER, _CLIP, _CROP = 0, 1, 2

WINDOW = 8
"""Items whose crops are mixed with each other when there are several of each."""


class Place(NamedTuple):
    """Where a row of a batch comes from."""

    epoch: int
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
        return [self._place(row) for row in range(first, first + self.batch_size)]

    def _place(self, row: int) -> Place:
        epoch, position = divmod(row, self.count * self.crops)
        # The latest is kept: making it takes longer than a step if there are millions of items.
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.count)}
        order = self._orders[epoch]
        if self.crops == 1:
            return Place(epoch, int(order[position]))
        window, inside = divmod(position, WINDOW * self.crops)
        items = min(WINDOW, self.count - window * WINDOW)
        mixed = np.random.default_rng([self.seed, _ORDER, epoch, window]).permutation(items * self.crops)
        item, crop = divmod(int(mixed[inside]), self.crops)
        return Place(epoch, int(order[window * WINDOW + item]), crop)


def draw(source: ClipSource, seed: int, place: Place, max_bad: int, bad: list[BadClip]) -> tuple[Clip, int]:
    """Draws a clip of the place's item, or of a replacement from the seed; returns it and its item.

    Adds items that are bad to `bad`. Raises `DataError` if more than `max_bad`, or all, are.
    """
    tried: set[int] = set()
    for attempt in count():
        rng = item_rng(seed, place.epoch, place.item, attempt)
        item = place.item if attempt == 0 else int(rng.integers(len(source)))
        if item in tried:
            continue
        try:
            return source.clip(item, rng), item
        except BadClip as error:
            tried.add(item)
            bad.append(error)
            if len(tried) > max_bad or len(tried) == len(source):
                raise none_usable(len(tried), len(source), error) from error
    raise AssertionError


def crop_rng(seed: int, place: Place) -> np.random.Generator:
    """Returns the generator of one crop."""
    return np.random.default_rng([seed, _CROP, place.epoch, place.item, place.crop])


def item_rng(seed: int, epoch: int, item: int, attempt: int) -> np.random.Generator:
    """Returns the generator of one attempt to draw a clip for an item."""
    return np.random.default_rng([seed, _CLIP, epoch, item, attempt])


def none_usable(tried: int, items: int, last: BadClip) -> DataError:
    """Returns the error for a source of so many items."""
    which = "none of them" if tried == items else f"none of the {tried} that were tried"
    return DataError(
        f"of {items} clips {which} can be used, the last is {last}; repair the data, or choose others"
    )
