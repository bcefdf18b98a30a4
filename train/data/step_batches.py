"""The batch of any step: what a worker process computes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch.utils.data import Dataset

from wfvae.errors import DataError, WFVAEError
from wfvae.train.data.batch import Batch, stack_clips
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource, printable
from wfvae.train.data.crops import Crops
from wfvae.train.data.sampling import WINDOW, Drawn, NoneUsableError, Place, Sampling, crop_rng, draw

_OUT_OF_MEMORY = (
    "out of memory while clips were read; use smaller or shorter clips (data.height, data.width,"
    " data.frames), a smaller optimizer.batch or fewer data.workers"
)


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
        self._kept: OrderedDict[tuple[int, int], Drawn] = OrderedDict()

    def __getitem__(self, step: int) -> Batch | Failure:
        bad: list[BadClip] = []
        try:
            return self._make(step, bad)
        except NoneUsableError as error:
            return Failure(str(error), (*bad, *error.bad))
        except WFVAEError as error:
            return Failure(str(error), tuple(bad))
        except MemoryError:
            return Failure(_OUT_OF_MEMORY, tuple(bad))

    def _make(self, step: int, bad: list[BadClip]) -> Batch:
        clips: list[Clip] = []
        names: list[str] = []
        places = self._sampling.places(step)
        for place in places:
            drawn = self._draw(place)
            bad += drawn.bad
            name = self._source.name(drawn.item)
            if clips and drawn.clip.shape != clips[0].shape:
                raise DataError(
                    f"'{printable(name)}' gave a clip of shape {drawn.clip.shape}, '{printable(names[0])}'"
                    f" one of {clips[0].shape}; expected one shape"
                )
            clips.append(drawn.clip)
            names.append(name)
        return Batch(stack_clips(clips), tuple(names), tuple(bad), step, places[0].epoch, places[0].position)

    def _draw(self, place: Place) -> Drawn:
        seed, crops = self._sampling.seed, self._crops
        key = (place.epoch, place.item)
        drawn = self._kept.get(key) or draw(self._source, seed, place.epoch, place.item, self._max_bad)
        if crops is None:
            return drawn
        if crops.per_clip > 1:
            self._kept[key] = drawn
            while len(self._kept) > WINDOW:
                self._kept.popitem(last=False)
        return drawn._replace(clip=crops.cut(drawn.clip, crop_rng(seed, place)))
