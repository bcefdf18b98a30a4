"""Batches of clips, as bytes until they are on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from wfvae.errors import WFVAEError
from wfvae.train.data.clip_source import BadClip, BadClipLedger, Clip, ClipSource, Crops
from wfvae.train.data.sampling import WINDOW, Place, Sampling, crop_rng, draw, item_rng, none_usable

_OUT_OF_MEMORY = (
    "out of memory while clips were read; use smaller or shorter clips (data.height, data.width,"
    " data.frames), a smaller optimizer.batch or fewer data.workers"
)


@dataclass(frozen=True)
class Batch:
    """The clips of one step on one rank."""

    frames: torch.Tensor
    """(B, 3, T, H, W) uint8 RGB, 0..255, contiguous, on the CPU."""
    names: tuple[str, ...]
    """The item that each row was drawn from."""
    bad: tuple[BadClip, ...]
    """Items that were replaced while this batch was made."""

    def pin_memory(self) -> Batch:
        """Returns the batch with its frames in page-locked memory, for PyTorch's loader."""
        return replace(self, frames=self.frames.pin_memory())


def stack_clips(clips: Sequence[Clip]) -> torch.Tensor:
    """B clips (T, H, W, 3) -> (B, 3, T, H, W) uint8, contiguous."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous()


def to_model_range(frames: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 of any shape -> float32 in [-1, 1] on the same device, x / 127.5 - 1.

    >>> to_model_range(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return frames.to(torch.float32) / 127.5 - 1.0


@dataclass(frozen=True)
class Failure:
    """What a worker returns instead of a batch. An exception would arrive with a long traceback."""

    message: str
    bad: tuple[BadClip, ...]


class StepBatches(Dataset[Batch | Failure]):
    """Maps a step to its batch, so that the order of steps does not depend on the workers."""

    def __init__(self, source: ClipSource, sampling: Sampling, max_bad: int, crops: Crops | None) -> None:
        self._source, self._sampling, self._max_bad, self._crops = source, sampling, max_bad, crops
        # The latest clips of which more crops will be taken: a cache, on which no result depends.
        self._kept: OrderedDict[tuple[int, int], tuple[Clip, int]] = OrderedDict()

    def __getitem__(self, step: int) -> Batch | Failure:
        bad: list[BadClip] = []
        try:
            drawn = [self._draw(place, bad) for place in self._sampling.places(step)]
            names = tuple(self._source.name(item) for _, item in drawn)
            return Batch(stack_clips([clip for clip, _ in drawn]), names, tuple(bad))
        except WFVAEError as error:
            return Failure(str(error), tuple(bad))
        except MemoryError:
            return Failure(_OUT_OF_MEMORY, tuple(bad))

    def _draw(self, place: Place, bad: list[BadClip]) -> tuple[Clip, int]:
        seed, crops, key = self._sampling.seed, self._crops, place[:2]
        clip, item = self._kept.get(key) or draw(self._source, seed, place, self._max_bad, bad)
        if crops is None:
            return clip, item
        if crops.per_clip > 1:
            self._kept[key] = clip, item
            while len(self._kept) > WINDOW:
                self._kept.popitem(last=False)
        return crops.cut(clip, crop_rng(seed, place)), item


def held_out(source: ClipSource, wanted: int, ledger: BadClipLedger | None = None) -> Iterator[torch.Tensor]:
    """Yields clips of different items, spread evenly over the source: (1, 3, T, H, W) uint8.

    They are the same at every call. A bad item is noted in `ledger` and replaced by the next usable
    one; there are fewer clips than wanted when none is left.

    Raises:
        DataError: no item can be used, or too many are bad for `ledger`.
    """
    ledger = BadClipLedger(None) if ledger is None else ledger
    count = len(source)
    wanted = min(wanted, count)
    chosen = [place * count // wanted for place in range(wanted)]
    spare = iter(sorted(set(range(count)).difference(chosen)))
    tried = 0
    for first in chosen:
        item: int | None = first
        while item is not None:
            try:
                clip = source.clip(item, item_rng(0, 0, item, 0))
            except BadClip as error:
                ledger.note([error])
                tried += 1
                if tried == count:
                    raise none_usable(count, count, error) from error
                item = next(spare, None)
            else:
                yield stack_clips([clip])
                break
