"""An endless stream of batches, made ahead of time by worker processes."""

import atexit
import itertools
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Self

from torch.utils.data import DataLoader

from wfvae.errors import DataError, TrainingError
from wfvae.train.data.batch import Batch, Failure, StepBatches
from wfvae.train.data.clip_source import BadClipLedger, ClipSource, Crops
from wfvae.train.data.sampling import Sampling
from wfvae.train.data.workers import (
    end_workers,
    next_batch,
    require_alive,
    settle_worker,
    start_workers,
    worker_context,
)


class BatchStream:
    """Iterates over batches without end; leaving its context ends the workers.

    The batch of a step depends on source, seed, batch_size, rank, world and step alone. So a run
    resumes exactly with `start_step`, the number of workers is free, and the ranks of a step hold
    row by row the batch of a single rank with `batch_size * world`.

    Args:
        source: of the clips; must be picklable if there are workers.
        batch_size: rows per rank.
        rank, world: this process's number, and the number of processes that train together.
        workers: processes that make batches ahead of time; 0 makes them here on demand.
        crops: random windows that are cut out of the clips; None takes them whole.
        ledger: where bad items are counted and reported.
        pin_memory: use page-locked memory, for asynchronous copies to a CUDA device.

    Attributes:
        step: the step of the next batch.

    Raises:
        DataError: the source has left out more items than the ledger allows.
    """

    def __init__(
        self,
        source: ClipSource,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start_step: int = 0,
        *,
        crops: Crops | None = None,
        ledger: BadClipLedger | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.step = start_step
        self.ledger = BadClipLedger() if ledger is None else ledger
        self.ledger.note(source.unusable, report=rank == 0)  # all ranks know these
        sampling = Sampling(seed, len(source), batch_size, rank, world, crops.per_clip if crops else 1)
        limit = len(source) if self.ledger.limit is None else self.ledger.limit
        steps = StepBatches(source, sampling, limit, crops)
        self._workers: list[BaseProcess] = []
        self._at_exit = partial(_close, weakref.ref(self))
        self._batches: Iterator[Batch | Failure] | None = None
        if workers == 0 and not pin_memory:
            self._batches = map(steps.__getitem__, itertools.count(start_step))
            return
        context = worker_context(preloaded=__name__) if workers else None
        with warnings.catch_warnings():
            # The number of workers is the caller's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = DataLoader(
                steps,
                batch_size=None,
                sampler=itertools.count(start_step),
                num_workers=workers,
                pin_memory=pin_memory,
                worker_init_fn=settle_worker,
                multiprocessing_context=context,
            )
            self._batches, self._workers = start_workers(loader)
        # Workers ignore the signal by which Python ends processes at exit, and would be waited for.
        atexit.register(self._at_exit)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
            DataError: too many items are bad, or none can be used.
            TrainingError: a worker was killed, or the stream is closed.
        """
        if self._batches is None:
            raise TrainingError(f"the stream of batches was closed before step {self.step}")
        require_alive(self._workers, self.step)
        made = next_batch(self._batches, self._workers, self.step)
        try:
            self.ledger.note(made.bad)
            if isinstance(made, Failure):
                raise DataError(made.message)
        except DataError:
            self.close()  # the next step must not be taken for this one
            raise
        self.step += 1
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers and waits for them; closing twice is fine."""
        atexit.unregister(self._at_exit)
        self._batches = None  # the loader's iterator asks its workers to end when it is deleted
        end_workers(self._workers)
        self._workers = []


def _close(stream: weakref.ref[BatchStream]) -> None:
    left = stream()
    if left is not None:
        left.close()
