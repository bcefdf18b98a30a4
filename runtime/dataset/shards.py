"""Samples of latents, and the WebDataset shards that hold them. Specified in `docs/datasets.md`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.storage import HashedFile
from wfvae.spec.latent_shards import SampleRow, ShardName
from wfvae.spec.manifest import Manifest
from wfvae.spec.records import Record


def describe_latents(manifest: Manifest, options: ClipOptions) -> dict[str, Any]:
    """Returns what index and samples say of the latents."""
    means = int(manifest.graphs["decoder"].inputs[0].shape[2])
    return {
        "kind": options.output,
        "channels": means if options.output == "mean" else 2 * means,
        "dtype": "float16" if options.dtype == "fp16" else "float32",
        "temporal_ratio": manifest.graphs["encoder"].stream.ratio,
        "scale": list(manifest.model["scale"]),
        "shift": list(manifest.model["shift"]),
        "bundle": manifest.identity,
        "model": manifest.checkpoint_sha256,
    }


class Failure(Record, frozen=True):
    """A video, or the rest of its windows, that is not in the shards."""

    source: str
    reason: str
    attempt: int = 1
    """How often it was tried."""


class PartRecord(Record, frozen=True):
    """What became of a part."""

    part: int
    shard: ShardName | None
    """Its file; None if all of its videos failed."""
    samples: int
    bytes: int
    sha256: str
    frames: int
    """Video frames that were encoded for its samples."""
    failures: tuple[Failure, ...]
    rows: tuple[SampleRow, ...]
    """Where its samples lie in the shard."""
    seconds: float
    engine_seconds: float


@dataclass(eq=False)
class Sample:
    """One sample while it is encoded. Its latents (t, D, h, w) lie in a file."""

    index: int
    window: int | None
    """None: the whole video."""
    about: dict[str, Any]
    data: Any
    """A temporary file."""
    preview: bytes | None = None
    frames: int = 0
    latents: int = 0
    shape: tuple[int, ...] = ()
    """Of one latent."""
    is_finite: bool = True

    @property
    def key(self) -> str:
        """The sample's name: the video's position in the source, and the window's number."""
        return f"{self.index:09d}" + ("" if self.window is None else f"-{self.window:06d}")

    def append(self, latents: npt.NDArray[Any]) -> None:
        """Adds latents (t, D, h, w)."""
        self.latents += len(latents)
        self.shape = latents.shape[1:]
        self.is_finite = self.is_finite and bool(np.isfinite(latents).all())
        self.data.write(np.ascontiguousarray(latents).data)


def write_shard(file: HashedFile, samples: Iterable[Sample]) -> tuple[SampleRow, ...]:
    """Writes samples in order of their keys, and returns where they lie.

    Equal samples give equal bytes.
    """
    rows = []
    with tarfile.open(fileobj=cast(Any, file), mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for sample in sorted(samples, key=lambda sample: sample.key):
            start = archive.offset
            about = {**sample.about, "frames": sample.frames}
            _add(archive, f"{sample.key}.json", json.dumps(about, ensure_ascii=False).encode())
            if sample.preview is not None:
                _add(archive, f"{sample.key}.jpg", sample.preview)
            header = _npy_header((sample.latents, *sample.shape), np.dtype(sample.about["latents"]["dtype"]))
            length = sample.data.tell()
            sample.data.seek(0)
            _add_file(
                archive, f"{sample.key}.npy", _Chain([io.BytesIO(header), sample.data]), len(header) + length
            )
            channels, height, width = sample.shape
            rows.append((start, archive.offset, sample.latents, channels, height, width))
    return tuple(rows)


def _npy_header(shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(shape),
    }
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    _add_file(archive, name, io.BytesIO(content), len(content))


def _add_file(archive: tarfile.TarFile, name: str, content: Any, length: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = length
    archive.addfile(entry, content)


class _Chain:
    """Several files, read one after another."""

    def __init__(self, files: list[Any]) -> None:
        self._files = files

    def read(self, count: int) -> bytes:
        """Returns up to `count` bytes, fewer only at the end."""
        found = b""
        while self._files and len(found) < count:
            piece = self._files[0].read(count - len(found))
            if piece:
                found += piece
            else:
                del self._files[0]
        return found
