"""Shards of latents as training data: batches of one shape, shuffled, split and resumed exactly.

`docs/datasets.md` has an example that feeds a diffusion model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from wfvae.errors import DataError, WFVAEError
from wfvae.model.distribution import LOGVAR_RANGE
from wfvae.spec.latent_shards import LatentShardSet, ShardSample
from wfvae.spec.latents import Factors
from wfvae.spec.records import name_differences
from wfvae.train.data.batch import Failure
from wfvae.train.data.latent_order import LatentOrder, Numbers
from wfvae.train.data.workers import end_workers, next_batch, settle_worker, start_workers, worker_context

DEFAULT_SHUFFLE = 4096


@dataclass(frozen=True)
class LatentBatch:
    """Samples of one shape."""

    latents: torch.Tensor
    """(B, D, t, h, w) float32, contiguous, on the CPU."""
    keys: tuple[str, ...]
    """Each row's key in the shards."""
    columns: tuple[Mapping[str, Any], ...]
    """What the source said of each row's video, such as its caption."""
    epoch: int
    step: int
    """The batch's number in its epoch, the same on all ranks."""

    def column(self, name: str) -> list[Any]:
        """Returns a column's value for each row. Raises `DataError` if a row has none."""
        for key, columns in zip(self.keys, self.columns, strict=True):
            if name not in columns:
                known = ", ".join(columns) or "none"
                raise DataError(f"the sample {key} has no column '{name}'; it has: {known}")
        return [columns[name] for columns in self.columns]

    def pin_memory(self) -> LatentBatch:
        """Returns the batch with its latents in page-locked memory, for PyTorch's loader."""
        return replace(self, latents=self.latents.pin_memory())


class LatentShards(IterableDataset[LatentBatch]):
    """Iterates over the batches of one epoch; a data set for `LatentLoader` or PyTorch's loader.

    A batch depends on the data, the arguments, epoch and step alone. So the number of loader's
    workers is free, among which the batches are split, and the ranks of a step hold row by row the
    batch of a single rank with `batch_size * world`.

    Args:
        url: the folder of a finished data set; a path, or a URL that fsspec knows.
        batch_size: rows per rank. The last batches of an epoch are smaller, one of each shape, and
            ranks without a row do not have them.
        rank, world: this process's number, and the number of processes that train together.
        shuffle: samples that are mixed with each other, after the shards; 0 keeps the stored order.
        drop_last: leave out the smaller batches; then all ranks have equally many.
        scaled: return (z - shift) * scale, with each sample's factors, instead of z.
        posterior: what becomes of moments: latents drawn anew in each epoch, from the seed, or the
            mean. Stored means are what they are.
        verify: compare the SHA-256 of every shard first, which reads all of it. Sizes are always
            compared.

    Raises:
        DataError: there is no index, or a shard is missing or changed, also while it is read.

    Example:
        >>> from wfvae import WFVAE
        >>> from wfvae.export.bundle import export_bundle
        >>> from wfvae.runtime.dataset.conversion import pack_latents
        >>> from wfvae.runtime.jobs import encode_video
        >>> from wfvae.runtime.bundle import open_bundle
        >>> from PIL import Image
        >>> Path("frames").mkdir()
        >>> for k in range(5):
        ...     Image.new("RGB", (32, 16)).save(f"frames/{k}.png")
        >>> _ = export_bundle(WFVAE.from_pretrained("tiny"), Path("bundle"))
        >>> with open_bundle("bundle") as bundle:
        ...     _ = encode_video(bundle, "frames", "a.npy")
        >>> _ = pack_latents(["a.npy"], "latents")
        >>> dataset = LatentShards("latents", batch_size=8)
        >>> tuple(next(iter(dataset)).latents.shape)
        (1, 16, 2, 2, 4)
    """

    def __init__(
        self,
        url: str | Path,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        shuffle: int = DEFAULT_SHUFFLE,
        drop_last: bool = False,
        scaled: bool = True,
        posterior: Literal["sample", "mean"] = "sample",
        verify: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or shuffle < 0:
            given = f"batch_size {batch_size}, rank {rank} of {world}, shuffle {shuffle}"
            raise DataError(f"{given} cannot be; give a batch_size of at least 1, a rank below world")
        self._set = LatentShardSet(str(url), verify=verify)
        self._table = self._set.table()
        shapes = np.unique(self._table.shapes, axis=0, return_inverse=True)[1].reshape(-1)
        self._order = LatentOrder(self._table.shard, shapes, seed, batch_size, world, shuffle, drop_last)
        self._rank, self._scaled, self._posterior = rank, scaled, posterior
        self._epoch = self._step = 0

    @property
    def samples(self) -> int:
        """The number of samples in the data set."""
        return len(self._table)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the order of samples; a state of other settings does not fit."""
        order = self._order
        return {
            "data": self._set.identity,
            "seed": order.seed,
            "batch": order.batch_size * order.world,
            "shuffle": order.buffer,
            "drop_last": order.drop_last,
        }

    def starting_at(self, epoch: int, step: int = 0) -> Self:
        """Returns the data set from a step of an epoch on."""
        moved = copy.copy(self)
        moved._epoch, moved._step = epoch, step
        return moved

    def __iter__(self) -> Iterator[LatentBatch]:
        worker = get_worker_info()
        share = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step, rows in self._order.batches(self._epoch, self._rank, self._step, *share):
            yield self._read(step, rows)

    def _read(self, step: int, rows: Numbers) -> LatentBatch:
        samples = self._set.read(self._table, rows)
        latents = [self._values(sample, int(row)) for sample, row in zip(samples, rows, strict=True)]
        time, channels, height, width = latents[0].shape
        stacked = np.empty((len(latents), channels, time, height, width), np.float32)
        np.stack([values.swapaxes(0, 1) for values in latents], out=stacked)
        return LatentBatch(
            torch.from_numpy(stacked),
            tuple(sample.key for sample in samples),
            tuple(sample.info.columns for sample in samples),
            self._epoch,
            step,
        )

    def _values(self, sample: ShardSample, row: int) -> npt.NDArray[np.float32]:
        """Returns (t, D, h, w), drawn and scaled."""
        values, about = sample.latents.astype(np.float32), sample.info.latents
        if about.kind == "moments":
            mean, logvar = np.split(values, 2, axis=1)
            values = mean
            if self._posterior == "sample":
                rng = np.random.default_rng([self._order.seed, 1, self._epoch, row])
                noise = rng.standard_normal(mean.shape, np.float32)
                deviation = np.exp(0.5 * logvar.clip(*LOGVAR_RANGE))
                values = (mean + deviation * noise).astype(np.float32)
        if self._scaled:
            channels = values.shape[1]
            values = (values - _per_channel(about.shift, 0, channels)) * _per_channel(
                about.scale, 1, channels
            )
        return values


class LatentLoader:
    """Iterates over batches, made ahead of time by worker processes, and knows its position.

    One iteration is one epoch; after `load_state_dict`, or a `break`, the rest of one. As with
    PyTorch's loader, a script that uses workers begins under `if __name__ == "__main__":`.

    Args:
        workers: processes that make batches; 0 makes them here on demand. It is free to change
            between runs.
        pin_memory: use page-locked memory, for asynchronous copies to a CUDA device.

    Attributes:
        epoch, step: of the next batch.

    Raises:
        DataError: while iterating, if a shard cannot be read.
        TrainingError: while iterating, if a worker was killed.
    """

    def __init__(self, dataset: LatentShards, workers: int = 0, *, pin_memory: bool = False) -> None:
        self.epoch = self.step = 0
        self._dataset, self._count, self._pin_memory = dataset, workers, pin_memory

    def __iter__(self) -> Iterator[LatentBatch]:
        made, workers = self._start(self._dataset.starting_at(self.epoch, self.step))
        try:
            while True:
                try:
                    batch = next_batch(made, workers, self.step)
                except StopIteration:
                    break
                if isinstance(batch, Failure):
                    raise DataError(batch.message)
                self.step = batch.step + 1
                yield batch
        finally:
            del made  # it asks its workers to end when it is deleted
            end_workers(workers)
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the position behind the batch that was returned last, as plain values."""
        return {"epoch": self.epoch, "step": self.step, **self._dataset.settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues behind the batch at which `state_dict` was called.

        Raises `DataError` if the state is of other data or settings.
        """
        settings = self._dataset.settings
        before = {key: state.get(key) for key in settings}
        if different := name_differences(before, settings):
            raise DataError(
                f"the state of the latents has other settings: {', '.join(different)};"
                " use the same data and settings"
            )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _start(self, dataset: LatentShards) -> tuple[Iterator[LatentBatch | Failure], list[BaseProcess]]:
        batches = _Reported(dataset)
        if not self._count and not self._pin_memory:
            return iter(batches), []
        with warnings.catch_warnings():
            # The number of workers is the caller's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            return start_workers(
                DataLoader(
                    batches,
                    batch_size=None,
                    num_workers=self._count,
                    pin_memory=self._pin_memory,
                    worker_init_fn=settle_worker,
                    multiprocessing_context=worker_context(preloaded=__name__) if self._count else None,
                )
            )


class _Reported(IterableDataset[LatentBatch | Failure]):
    """Ends with what went wrong. An exception would arrive from a worker with a long traceback."""

    def __init__(self, dataset: LatentShards) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[LatentBatch | Failure]:
        try:
            yield from self._dataset
        except WFVAEError as error:
            yield Failure(str(error), ())


def _per_channel(factors: Factors, default: float, channels: int) -> npt.NDArray[np.float32]:
    """Returns one number for each channel or one for all, for (t, D, h, w)."""
    values = np.array(factors or (default,), np.float32)
    # Of another length, they are all the same: LatentsInfo.check_shape.
    return values.reshape(-1, 1, 1) if len(values) == channels else values[:1].reshape(1, 1, 1)
