"""Where reconstructions come from: files, or a bundle that the originals are streamed through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.evaluation.frame_counts import announced_frames, decoded_frames
from wfvae.evaluation.protocol import Frame, Prepared, Protocol, open_prepared
from wfvae.evaluation.video_files import Pair
from wfvae.runtime.bundle import Bundle
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
        """A video and its reconstruction in pieces (T, H, W, 3) uint8 of equal shape, T >= 1,
        prepared as `protocol` says.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """Reconstructions that lie in files. They are prepared as the originals are, unless they have
    been already.
    """

    pairs: tuple[Pair, ...]

    @property
    def names(self) -> list[str]:
        return [pair.name for pair in self.pairs]

    def frames(self, name: str, protocol: Protocol) -> Iterator[tuple[Frames, Frames]]:
        pair = next(pair for pair in self.pairs if pair.name == name)
        with (
            open_prepared(pair.real, protocol) as real,
            open_prepared(pair.reconstruction, protocol) as reconstruction,
        ):
            self._require_same_picture(pair, real, reconstruction, protocol)
            self._require_same_length(pair, real, reconstruction, protocol)
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

    @staticmethod
    def _require_same_picture(
        pair: Pair, real: Prepared, reconstruction: Prepared, protocol: Protocol
    ) -> None:
        """Frames of another size or from another place would be compared in silence."""
        prepared = (protocol.size, protocol.size)
        if reconstruction.stored_size not in (real.stored_size, prepared):
            shapes = ["x".join(map(str, one.stored_size)) for one in (real, reconstruction)]
            also = (
                ""
                if protocol.size is None
                else f" or {protocol.size}x{protocol.size}, as the protocol prepares it"
            )
            raise InputError(
                f"'{pair.real}' is {shapes[0]} and '{pair.reconstruction}' {shapes[1]}; expected the same"
                f" size{also}"
            )

    @staticmethod
    def _require_same_length(
        pair: Pair, real: Prepared, reconstruction: Prepared, protocol: Protocol
    ) -> None:
        """A reconstruction that ends too early, or has frames too many, must not pass because the
        window lies before that.

        Whole videos are read to their ends together, and tell it then. For a centre window the
        frames have been counted. For the first frames, all others are decoded only if what the
        containers announce differs, which may have harmless reasons.
        """
        if protocol.frames is None:
            return
        before, after = real.count, reconstruction.count
        if before is None or after is None:
            announced = announced_frames(pair.reconstruction, reconstruction.stated)
            if announced == protocol.frames or announced == announced_frames(pair.real, real.stated):
                return
            before, after = decoded_frames(pair.real), decoded_frames(pair.reconstruction)
        if before != after and after != protocol.frames:
            raise InputError(
                f"'{pair.real}' has {before} frames and '{pair.reconstruction}' {after}; a reconstruction"
                f" must have every frame of its original, or just the {protocol.frames} that are scored"
            )


@dataclass(frozen=True)
class BundleSource:
    """Reconstructions made by streaming the prepared originals through a bundle, in 8 bits, in
    memory that does not grow with length.
    """

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
            yield from reconstruct(
                self.bundle, itertools.chain([first], real.frames), first.shape[0], first.shape[1], self.chunk
            )


def reconstruct(
    bundle: Bundle, frames: Iterator[Frame], height: int, width: int, chunk: int | None
) -> Iterator[tuple[Frames, Frames]]:
    """Streams frames (H, W, 3) uint8 through encoder and decoder; gives each piece of the video
    with its reconstruction.
    """
    with ReconstructionStream(bundle, height, width, chunk) as stream:
        while piece := list(itertools.islice(frames, bundle.ratio * stream.chunk)):
            real, part = stream.push(np.stack(piece))
            if len(part):
                yield real, part
        real, part = stream.finish()
        if len(part):
            yield real, part
