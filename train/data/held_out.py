"""Fixed clips to measure on, the same at every validation and in every run."""

from __future__ import annotations

from collections.abc import Iterator

from wfvae.errors import DataError
from wfvae.train.data.bad_clips import BadClipLedger
from wfvae.train.data.batch import Batch, stack_clips
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource
from wfvae.train.data.sampling import NoneUsableError, check_clip, item_rng


def held_out(
    source: ClipSource, count: int, batch_size: int = 1, *, ledger: BadClipLedger | None = None
) -> Iterator[Batch]:
    """Yields `count` clips of different items, spread evenly over the source, in batches.

    A clip depends on the source and on `count` alone. A bad item is noted in `ledger` and replaced
    by the next usable one; when none is left there are fewer clips.

    Raises:
        DataError: the source has fewer than `count` items, or too many are bad for `ledger`.
        NoneUsableError: no item can be used.
    """
    if not 1 <= count <= len(source):
        raise DataError(
            f"{count} held-out clips were asked of a source of {len(source)}; expected 1..{len(source)}"
        )
    return _batches(source, count, batch_size, BadClipLedger(None) if ledger is None else ledger)


def _batches(source: ClipSource, count: int, batch_size: int, ledger: BadClipLedger) -> Iterator[Batch]:
    wanted = [place * len(source) // count for place in range(count)]
    spare = iter(sorted(set(range(len(source))).difference(wanted)))
    tried: list[BadClip] = []
    clips: list[Clip] = []
    names: list[str] = []
    bad: list[BadClip] = []
    step = position = 0
    for number, index in enumerate(wanted, 1):
        choice: int | None = index
        while choice is not None:
            try:
                clips.append(check_clip(source, choice, source.clip(choice, item_rng(0, 0, choice, 0))))
                names.append(source.name(choice))
                break
            except BadClip as error:
                bad.append(error)
                tried.append(error)
                ledger.note([error])
                choice = next(spare, None)
        if clips and (len(clips) == batch_size or number == count):
            yield Batch(stack_clips(clips), tuple(names), tuple(bad), step, 0, position)
            step, position = step + 1, position + len(clips)
            clips, names, bad = [], [], []
    if not position:
        raise NoneUsableError(tuple(tried), len(source))
