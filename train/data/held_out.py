"""Fixed clips to measure on, the same at every validation and in every run."""

from __future__ import annotations

from collections.abc import Iterator

from wfvae.errors import DataError
from wfvae.train.data.batch import Batch, stack_clips
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource
from wfvae.train.data.sampling import NoneUsableError, check_clip, item_rng

__all__ = ["held_out"]


def held_out(source: ClipSource, count: int, batch_size: int = 1) -> Iterator[Batch]:
    """`count` clips of different items, spread evenly over the source, as batches of (B, 3, T, H, W) uint8; the last may be smaller.

    A clip depends on the source and on `count` alone. A bad item is replaced by the next usable one, and told in `Batch.bad`.

    Raises:
        DataError: the source has fewer than `count` items, or batch_size is below 1.
        NoneUsableError: too many items are bad to find `count`.
    """
    if not 1 <= count <= len(source):
        raise DataError(f"{count} held-out clips were asked of a source of {len(source)}; expected 1..{len(source)}")
    if batch_size < 1:
        raise DataError(f"batch_size of held-out clips is {batch_size}; expected at least 1")
    return _batches(source, count, batch_size)


def _batches(source: ClipSource, count: int, batch_size: int) -> Iterator[Batch]:
    wanted = [place * len(source) // count for place in range(count)]
    spare = iter(sorted(set(range(len(source))).difference(wanted)))
    tried: list[BadClip] = []
    for step, first in enumerate(range(0, count, batch_size)):
        clips: list[Clip] = []
        names: list[str] = []
        bad: list[BadClip] = []
        for index in wanted[first : first + batch_size]:
            choice: int | None = index
            while choice is not None:
                try:
                    clips.append(check_clip(source, choice, source.clip(choice, item_rng(0, 0, choice, 0))))
                    names.append(source.name(choice))
                    break
                except BadClip as error:
                    bad.append(error)
                    tried.append(error)
                    choice = next(spare, None)
            else:
                raise NoneUsableError(tuple(tried), len(source))
        yield Batch(stack_clips(clips), tuple(names), tuple(bad), step, 0, first)
