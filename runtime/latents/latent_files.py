"""Opening latents for reading and writing; the suffix of the name chooses the format."""

from pathlib import Path

from wfvae.errors import LatentsError
from wfvae.files import Destination, check_destination, claim
from wfvae.runtime.latents.base import LatentsReader, LatentsWriter
from wfvae.runtime.latents.clip_latents import NPYWriter, SafetensorsWriter, open_npy, open_safetensors
from wfvae.runtime.latents.zarr_reading import open_store
from wfvae.spec.latents import LatentsInfo

SUFFIXES = (".safetensors", ".npy", ".zarr")
DEFAULT_CHUNK_LATENTS = 16
# Zarr is imported where a store is written: importing it takes nearly as long as all the rest of
# the runtime.


def open_latents(path: str | Path) -> LatentsReader:
    """Opens latents for reading.

    Raises:
        LatentsError: a missing, truncated or foreign file, missing metadata, or an array that is
            not (T', D, h, w).

    Example:
        >>> import numpy as np
        >>> info = LatentsInfo(
        ...     None, height=16, width=24, padded_height=16, padded_width=24, fps=25, kind="mean",
        ...     temporal_ratio=4)
        >>> with open_latents_writer("clip.safetensors", info) as writer:
        ...     writer.append(np.zeros((2, 8, 2, 3), np.float32))
        ...     writer.finish(frames=5)
        >>> with open_latents("clip.safetensors") as reader:
        ...     reader.info.frames, reader.read(0, 1).shape
        (5, (1, 8, 2, 3))
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.exists():
        raise LatentsError(f"no such latents: '{path}'; check the path")
    if path.is_dir() != (suffix == ".zarr"):
        kind = "directory" if path.is_dir() else "file"
        raise LatentsError(f"'{path}' is a {kind}; a .zarr store is a directory, the other formats are files")
    if suffix == ".zarr":
        return open_store(path)
    return open_safetensors(path) if suffix == ".safetensors" else open_npy(path)


def open_latents_writer(
    path: str | Path | Destination,
    info: LatentsInfo,
    *,
    resume: bool = False,
    overwrite: bool = True,
    chunk_latents: int = DEFAULT_CHUNK_LATENTS,
) -> LatentsWriter:
    """Opens latents for writing; see `open_latents` for an example.

    Args:
        path: locked until the writer is closed, unless the caller holds a `Destination` of it.
        info: the metadata; `frames` is set by `finish`.
        resume: for `.zarr`: continue an unfinished store after its `latents_done` latents, or begin
            a new one if it does not exist.
        overwrite: replace an existing file when the first latents (zarr) or the last ones (clips)
            are written.
        chunk_latents: for `.zarr`: latents per chunk file. Appending multiples of it is cheapest.

    Raises:
        LatentsError: a foreign file or store, or settings that do not fit.
        ResourceError: another job writes there, or nothing can be written there.
    """
    name = path.path if isinstance(path, Destination) else Path(path)
    suffix = _suffix(name)
    if resume and suffix != ".zarr":
        raise LatentsError(f"'{name}' cannot be resumed; write to a name ending in .zarr for that")
    overwrite = overwrite or resume
    check_latents_destination(name, overwrite=overwrite)
    destination = path.part() if isinstance(path, Destination) else latents_destination(name, overwrite)
    try:
        if suffix == ".zarr":
            from wfvae.runtime.latents.zarr_latents import ZarrWriter

            return ZarrWriter(destination, info, resume=resume, chunk_latents=chunk_latents)
        writer = SafetensorsWriter if suffix == ".safetensors" else NPYWriter
        return writer(destination, info)
    except BaseException:
        destination.release()
        raise


def latents_destination(path: Path, overwrite: bool) -> Destination:
    """Locks the place of latents.

    Raises as `check_latents_destination` does, and `ResourceError` if another job writes there.
    """
    return claim(path, lambda: check_latents_destination(path, overwrite=overwrite))


def check_latents_destination(path: Path, *, overwrite: bool) -> None:
    """Raises `LatentsError` or `ResourceError` if latents cannot be written to `path`."""
    is_store = _suffix(path) == ".zarr"
    check_destination(path, overwrite=overwrite, error=LatentsError, is_folder=is_store)
    if is_store and path.exists() and not (path / "zarr.json").is_file():
        raise LatentsError(f"'{path}' exists and is no Zarr store; move it away or choose another name")


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        problem = f"cannot tell the latents format of '{path}' from its ending '{path.suffix}'"
        raise LatentsError(f"{problem}; use one of {', '.join(SUFFIXES)}")
    return suffix
