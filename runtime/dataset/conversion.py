"""Latents of single videos to shards, and back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from wfvae.errors import DataError
from wfvae.files import prepare_folder
from wfvae.runtime.dataset.plan import DEFAULT_PART_BYTES
from wfvae.runtime.dataset.report import Stage, ignore_stage
from wfvae.runtime.dataset.settings import parse_shard_size
from wfvae.runtime.dataset.shards import Sample, write_shard
from wfvae.runtime.dataset.storage import ShardFolder, spool
from wfvae.runtime.dataset.worker import shard_name
from wfvae.runtime.latents.base import LatentsReader
from wfvae.runtime.latents.latent_files import open_latents, open_latents_writer
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.latent_shards import (
    FORMAT,
    INDEX,
    TABLE,
    LatentShardSet,
    SampleRow,
    ShardEntry,
    ShardSample,
    encode_table,
)
from wfvae.spec.latents import FORMAT as LATENTS_FORMAT
from wfvae.spec.latents import LatentsInfo
from wfvae.spec.records import name_differences

_PIECE = 16
"""Latents that are read at once."""
_OF_VIDEO = (
    "time_base",
    "color_range",
    "color_space",
    "color_primaries",
    "color_transfer",
    "mastering_display",
    "content_light",
    "sample_aspect_ratio",
    "start",
)
"""Metadata of latents that a sample carries under `video`."""


@dataclass(frozen=True)
class ConversionReport:
    """What was converted."""

    destination: str
    samples: int
    shards: int
    frames: int
    """Video frames of all samples."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, for JSON."""
        return asdict(self)


def pack_latents(
    latents: Sequence[str | Path],
    out: str | Path,
    *,
    shard_size: int | str | None = None,
    progress: Stage = ignore_stage,
) -> ConversionReport:
    """Writes latents of single videos, bit by bit, as a data set of shards.

    Args:
        latents: `.zarr`, `.safetensors` or `.npy`, complete and of one kind and model.
        out: a new or empty folder; a path, or a URL that fsspec knows.
        shard_size: samples of a shard, or bytes such as "256M"; 256 MiB by default.

    Raises:
        DataError: the folder is not empty, or the latents differ in kind or model.
        LatentsError: latents are unreadable, unfinished, or hold NaN.
        ResourceError: the disk is full.
    """
    most_bytes = parse_shard_size(shard_size) if isinstance(shard_size, str) else DEFAULT_PART_BYTES
    most_samples = shard_size if isinstance(shard_size, int) else math.inf
    folder = ShardFolder(str(out))
    if strangers := [name for name in folder.names() if name != ".lock"]:
        problem = f"'{out}' is not empty (it holds '{strangers[0]}')"
        raise DataError(f"{problem}; choose another folder, or remove what an interrupted run left in it")
    paths = [Path(path) for path in latents]
    described, frames = _describe_all(paths)
    folder.prepare()
    entries: list[ShardEntry] = []
    rows: list[tuple[SampleRow, ...]] = []
    with folder.held():
        for group in _groups(paths, most_samples, most_bytes):
            name = shard_name(len(entries))
            with ExitStack() as files:
                samples = [_sample(number, paths[number], files) for number in group]
                with folder.writing(name) as file:
                    rows.append(write_shard(file, samples))
            entries.append(ShardEntry(name, len(samples), file.count, file.sha256))
            progress("pack", group.stop, len(paths))
        table = encode_table(rows)
        folder.write(TABLE, table)
        index = {
            "format": FORMAT,
            "latents": described,
            "samples": len(paths),
            "frames": frames,
            "failures": 0,
            "shards": entries,
            "table_sha256": hashlib.sha256(table).hexdigest(),
        }
        # Last: shards without an index are an unfinished data set.
        folder.write(INDEX, msgspec.json.format(msgspec.json.encode(index), indent=2))
    return ConversionReport(str(out), len(paths), len(entries), frames)


def unpack_latents(
    shards: str | Path,
    out: str | Path,
    *,
    file_format: Literal["zarr", "safetensors", "npy"] = "zarr",
    keys: Sequence[str] = (),
    progress: Stage = ignore_stage,
) -> ConversionReport:
    """Writes samples of a data set, bit by bit, as latents of single videos that can be decoded.

    Args:
        shards: the folder of a finished data set; a path, or a URL that fsspec knows.
        out: a folder, which gets `<key>.<file_format>` of each sample, in place of a file of that
            name.
        keys: the samples to write; all if empty.

    Raises:
        DataError: shards are missing or changed, or there is no such key.
        LatentsError: a sample's metadata do not fit its latents.
        ResourceError: the disk is full.
    """
    data = LatentShardSet(str(shards))
    folder, wanted, frames, written = Path(out), set(keys), 0, 0
    prepare_folder(folder)
    for sample in data:
        if wanted and sample.key not in wanted:
            continue
        info = _info_of(sample, str(shards))
        with open_latents_writer(folder / f"{sample.key}.{file_format}", info) as writer:
            writer.append(sample.latents)
            writer.finish(sample.info.frames)
        written, frames = written + 1, frames + sample.info.frames
        wanted.discard(sample.key)
        progress("unpack", written, len(keys) or data.index.samples)
        if keys and not wanted:
            break
    if wanted:
        raise DataError(f"no sample {sorted(wanted)[0]} in '{shards}'; keys are the names in its .tar files")
    return ConversionReport(str(out), written, len(data.index.shards), frames)


def _open_complete(path: Path) -> LatentsReader:
    reader = open_latents(path)
    if not reader.complete:
        reader.close()
        raise DataError(f"'{path}' was not finished; finish it with 'wfvae encode --resume' first")
    return reader


def _describe_all(paths: Sequence[Path]) -> tuple[dict[str, Any], int]:
    """Returns what the index says of the latents, which is the same for all, and their frames."""
    first: dict[str, Any] | None = None
    frames = 0
    for path in paths:
        with _open_complete(path) as reader:
            described = _describe(reader)
            frames += cast(int, reader.info.frames)
        first = described if first is None else first
        if different := name_differences(first, described):
            problem = f"'{path}' does not fit '{paths[0]}': {', '.join(different)}"
            raise DataError(f"{problem}; pack latents of one kind and model into one data set")
    if first is None:
        raise DataError("no latents are given; name at least one")
    return first, frames


def _describe(reader: LatentsReader) -> dict[str, Any]:
    info = reader.info
    return {
        "kind": info.kind,
        "channels": reader.shape[1],
        "dtype": reader.dtype.name,
        "temporal_ratio": info.temporal_ratio,
        "scale": list(info.scale),
        "shift": list(info.shift),
        "bundle": info.bundle_hash,
        "model": info.model,
    }


def _groups(paths: Sequence[Path], most_samples: float, most_bytes: int) -> Iterator[range]:
    """Yields the positions of each shard's latents."""
    first = size = 0
    for number, path in enumerate(paths):
        with open_latents(path) as reader:
            count = math.prod(reader.shape) * reader.dtype.itemsize
        if number > first and (number - first >= most_samples or size + count > most_bytes):
            yield range(first, number)
            first, size = number, 0
        size += count
    yield range(first, len(paths))


def _sample(number: int, path: Path, files: ExitStack) -> Sample:
    with _open_complete(path) as reader:
        info = reader.info
        values = info.to_json()
        about = {
            "source": str(path),
            "window": {"number": 0, "first_frame": 0, "stride": 1},
            "fps": values["fps"],
            "source_height": info.height,
            "source_width": info.width,
            "height": info.height,
            "width": info.width,
            "latents": _describe(reader),
            "columns": {},
            "video": {key: values[key] for key in _OF_VIDEO if values[key] is not None},
        }
        sample = Sample(number, None, about, files.enter_context(spool()), frames=cast(int, info.frames))
        for latents in reader.chunks(_PIECE):
            sample.append(latents)
    return sample


def _info_of(sample: ShardSample, shards: str) -> LatentsInfo:
    info, about = sample.info, sample.info.latents
    _, _, rows, columns = sample.latents.shape
    video = sample.about.get("video")
    values = {
        "version": LATENTS_FORMAT,
        "frames": info.frames,
        "height": info.height,
        "width": info.width,
        "padded_height": rows * SPATIAL_RATIO,
        "padded_width": columns * SPATIAL_RATIO,
        "fps": info.fps,
        "kind": about.kind,
        "temporal_ratio": about.temporal_ratio,
        "scale": about.scale,
        "shift": about.shift,
        "bundle_hash": about.bundle,
        "model": about.model,
    }
    extra = {key: video[key] for key in _OF_VIDEO if key in video} if isinstance(video, dict) else {}
    return LatentsInfo.from_json(values | extra, f"{shards}/{sample.key}")
