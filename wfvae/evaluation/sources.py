"""Where reconstructions come from: files, or a bundle that the originals are streamed through."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.evaluation.protocol import Frame, Prepared, Protocol, count_frames, open_prepared
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.media.container_input import packet_count
from wfvae.runtime.reconstruction import ReconstructionStream

Frames = npt.NDArray[np.uint8]
Pieces = Iterator[tuple[Frames, Frames]]
"""A video and its reconstruction in equal pieces (T, H, W, 3) uint8, T >= 1."""
Videos = Mapping[str, Callable[[Protocol], Pieces]]
"""Opens each video, by name."""
_FRAMES_AT_ONCE = 8


def file_videos(pairs: Mapping[str, tuple[Path, Path]]) -> Videos:
    """Returns originals and reconstructions in files, which are prepared alike."""
    return {name: partial(_read_pair, *paths) for name, paths in pairs.items()}


def bundle_videos(bundle: Bundle, paths: Mapping[str, Path], chunk: int | None = None) -> Videos:
    """Returns originals that are prepared and streamed through a bundle, in 8 bits."""
    return {name: partial(_read_and_reconstruct, bundle, path, chunk) for name, path in paths.items()}


def _read_pair(original: Path, result: Path, protocol: Protocol) -> Pieces:
    with open_prepared(original, protocol) as real, open_prepared(result, protocol) as reconstruction:
        _require_same_size(real, reconstruction, protocol)
        _require_same_length(real, reconstruction, protocol)
        both = itertools.zip_longest(real.frames, reconstruction.frames)
        count = 0
        while pieces := list(itertools.islice(both, _FRAMES_AT_ONCE)):
            whole = [(before, after) for before, after in pieces if before is not None and after is not None]
            count += len(whole)
            if len(whole) < len(pieces):
                problem = f"'{original}' and '{result}' do not have the same number of frames"
                advice = "a reconstruction must have every frame of its original"
                raise InputError(f"{problem}: one ends after {count}; {advice}")
            befores, afters = zip(*whole, strict=True)
            yield np.stack(befores), np.stack(afters)


def _require_same_size(real: Prepared, reconstruction: Prepared, protocol: Protocol) -> None:
    """Refuses frames of another size or from another place."""
    if reconstruction.stored_size in (real.stored_size, (protocol.size, protocol.size)):
        return
    shapes = ["x".join(map(str, one.stored_size)) for one in (real, reconstruction)]
    prepared = f" or {protocol.size}x{protocol.size}, as the protocol prepares it"
    expected = f"expected the same size{'' if protocol.size is None else prepared}"
    raise InputError(f"'{real.path}' is {shapes[0]} and '{reconstruction.path}' {shapes[1]}; {expected}")


def _require_same_length(real: Prepared, reconstruction: Prepared, protocol: Protocol) -> None:
    """Refuses a reconstruction that is too short or too long, even if its window is complete.

    Whole videos are read to their ends together and need no check here; for a centre window the
    frames have been counted. For the first frames, both videos are decoded to their ends only if
    their containers state different numbers, which may be wrong.
    """
    if protocol.frames is None:
        return
    before, after = real.count, reconstruction.count
    if before is None or after is None:
        stated = _stated_frames(reconstruction)
        if stated in (protocol.frames, _stated_frames(real)):
            return
        before, after = count_frames(real.path), count_frames(reconstruction.path)
    if before != after and after != protocol.frames:
        problem = f"'{real.path}' has {before} frames and '{reconstruction.path}' {after}"
        advice = f"every frame of its original, or just the {protocol.frames} that are scored"
        raise InputError(f"{problem}; a reconstruction must have {advice}")


def _stated_frames(video: Prepared) -> int:
    """Returns the number that the container states, else that of its packets, not decoded."""
    return packet_count(video.path) if video.stated is None else video.stated


def _read_and_reconstruct(bundle: Bundle, path: Path, chunk: int | None, protocol: Protocol) -> Pieces:
    with open_prepared(path, protocol) as real:
        first = next(real.frames)
        height, width, _ = first.shape
        yield from reconstruct(bundle, itertools.chain([first], real.frames), height, width, chunk)


def reconstruct(
    bundle: Bundle, frames: Iterator[Frame], height: int, width: int, chunk: int | None
) -> Pieces:
    """Streams frames (H, W, 3) uint8 through encoder and decoder."""
    with ReconstructionStream(bundle, height, width, chunk) as stream:
        while piece := list(itertools.islice(frames, bundle.ratio * stream.chunk)):
            real, part = stream.push(np.stack(piece))
            if len(part):
                yield real, part
        real, part = stream.finish()
        if len(part):
            yield real, part
