"""Which samples of latents stand in which batch: a pure function of seed, epoch, step and rank."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LatentOrder:
    """The order in which the ranks of a run see samples, in batches of one shape.

    An epoch goes once through all samples. Shards are shuffled, then each run of `buffer` samples,
    as a shuffle buffer of that size does. A step's global batch is complete when so many samples of
    its shape have come; the ranks hold consecutive rows of it. What is left of each shape at the
    end is a smaller batch.
    """

    shards: Numbers
    """Each sample's shard."""
    shapes: Numbers
    """Each sample's shape, as a number."""
    seed: int
    batch_size: int
    """Rows per rank."""
    world: int
    buffer: int
    """0 keeps the order of the samples."""
    drop_last: bool
    """Leave out the smaller batches."""

    def global_batches(self, epoch: int) -> list[Numbers]:
        """Returns the samples of every step of an epoch; their number is the same in each epoch."""
        order, size = self._shuffled(epoch), self.batch_size * self.world
        shapes = self.shapes[order]
        by_shape = np.argsort(shapes, kind="stable")
        bounds = np.flatnonzero(np.diff(shapes[by_shape])) + 1
        batches, ends = [], []
        for number, places in enumerate(np.split(by_shape, bounds)):
            whole = len(places) // size * size
            for batch in places[:whole].reshape(-1, size):
                batches.append(order[batch])
                ends.append(int(batch[-1]))
            if whole < len(places) and not self.drop_last:
                batches.append(order[places[whole:]])
                ends.append(len(order) + number)
        return [batches[index] for index in np.argsort(ends, kind="stable")]

    def batches(
        self, epoch: int, rank: int, first_step: int = 0, worker: int = 0, workers: int = 1
    ) -> list[tuple[int, Numbers]]:
        """Returns a worker's share of a rank's batches from a step of an epoch on.

        Asking the workers in turn gives the rank's batches in order. Each is the step's number and
        the rank's rows; a step in which it has none is left out.
        """
        parts = (np.array_split(batch, self.world)[rank] for batch in self.global_batches(epoch))
        found = [(step, rows) for step, rows in enumerate(parts) if step >= first_step and len(rows)]
        return found[worker::workers]

    def _shuffled(self, epoch: int) -> Numbers:
        count = len(self.shards)
        if not self.buffer:
            return np.arange(count)
        rng = np.random.default_rng([self.seed, epoch])
        place = rng.permutation(int(self.shards.max(initial=0)) + 1)
        order = np.argsort(place[self.shards], kind="stable")
        return order[np.lexsort((rng.random(count), np.arange(count) // self.buffer))]
