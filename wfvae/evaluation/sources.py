"""Where reconstructions come from: files, or a bundle that the originals are streamed through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.evaluation.protocol import Frame, Prepared, Protocol, count_frames, open_prepared
from wfvae.evaluation.video_files import Pair
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.media.container_input import packet_count
from wfvae.runtime.reconstruction import ReconstructionStream

Frames = npt.NDArray[np.uint8]
_FRAMES_AT_ONCE = 8


class Source(Interface):
    """Pairs of original and reconstruction."""

    @property
    def names(self) -> list[str]:
        """The videos, in order."""
        ...

    def frames(self, name: str, protocol: Protocol) -> Iterator[tuple[Frames, Frames]]:
        """Yields a video and its reconstruction in equal pieces (T, H, W, 3) uint8, T >= 1."""
        ...


class FileSource:
    """Reconstructions in files, prepared as the originals are, unless they already were."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = {pair.name: pair for pair in pairs}

    @property
    def names(self) -> list[str]:
        return list(self._pairs)

    def frames(self, name: str, protocol: Protocol) -> Iterator[tuple[Frames, Frames]]:
        pair = self._pairs[name]
        with (
            open_prepared(pair.real, protocol) as real,
            open_prepared(pair.reconstruction, protocol) as reconstruction,
        ):
            _require_same_size(pair, real, reconstruction, protocol)
            _require_same_length(pair, real, reconstruction, protocol)
            both = itertools.zip_longest(real.frames, reconstruction.frames)
            count = 0
            while pieces := list(itertools.islice(both, _FRAMES_AT_ONCE)):
                for before, after in pieces:
                    if before is None or after is None:
                        raise InputError(
                            f"'{pair.real}' and '{pair.reconstruction}' do not have the same number of"
                            f" frames: one ends after {count}; a reconstruction must have every frame of its"
                            " original"
                        )
                    count += 1
                yield np.stack([before for before, _ in pieces]), np.stack([after for _, after in pieces])


def _require_same_size(pair: Pair, real: Prepared, reconstruction: Prepared, protocol: Protocol) -> None:
    """Refuses frames of another size or from another place."""
    if reconstruction.stored_size in (real.stored_size, (protocol.size, protocol.size)):
        return
    shapes = ["x".join(map(str, one.stored_size)) for one in (real, reconstruction)]
    prepared = f" or {protocol.size}x{protocol.size}, as the protocol prepares it"
    raise InputError(
        f"'{pair.real}' is {shapes[0]} and '{pair.reconstruction}' {shapes[1]}; expected the same"
        f" size{'' if protocol.size is None else prepared}"
    )


def _require_same_length(pair: Pair, real: Prepared, reconstruction: Prepared, protocol: Protocol) -> None:
    """Refuses a reconstruction that is too short or too long, even if its window is complete.

    Whole videos are read to their ends together and need no check here; for a centre window the
    frames have been counted. For the first frames, both videos are decoded to their ends only if
    their containers state different numbers, which may be wrong.
    """
    if protocol.frames is None:
        return
    before, after = real.count, reconstruction.count
    if before is None or after is None:
        stated = _stated_frames(pair.reconstruction, reconstruction)
        if stated == protocol.frames or stated == _stated_frames(pair.real, real):
            return
        before, after = count_frames(pair.real), count_frames(pair.reconstruction)
    if before != after and after != protocol.frames:
        raise InputError(
            f"'{pair.real}' has {before} frames and '{pair.reconstruction}' {after}; a reconstruction"
            f" must have every frame of its original, or just the {protocol.frames} that are scored"
        )


def _stated_frames(path: Path, video: Prepared) -> int:
    """Returns the number that the container states, else that of its packets, not decoded."""
    return packet_count(path) if video.stated is None else video.stated


@dataclass(frozen=True)
class BundleSource:
    """Reconstructions made by streaming the prepared originals through a bundle, in 8 bits."""

    bundle: Bundle
    videos: dict[str, Path]
    chunk: int | None = None
    """Latents per step; None takes what `wfvae bench --tune` chose, else 4."""

    @property
    def names(self) -> list[str]:
        return list(self.videos)

    def frames(self, name: str, protocol: Protocol) -> Iterator[tuple[Frames, Frames]]:
        with open_prepared(self.videos[name], protocol) as real:
            first = next(real.frames)
            frames = itertools.chain([first], real.frames)
            height, width = first.shape[:2]
            yield from reconstruct(self.bundle, frames, height, width, self.chunk)


def reconstruct(
    bundle: Bundle, frames: Iterator[Frame], height: int, width: int, chunk: int | None
) -> Iterator[tuple[Frames, Frames]]:
    """Streams frames (H, W, 3) uint8 through encoder and decoder.

    Yields:
        Pieces of the video, each with its reconstruction.
    """
    with ReconstructionStream(bundle, height, width, chunk) as stream:
        while piece := list(itertools.islice(frames, bundle.ratio * stream.chunk)):
            real, part = stream.push(np.stack(piece))
            if len(part):
                yield real, part
        real, part = stream.finish()
        if len(part):
            yield real, part
