"""Checks of a job's source: that it is that of before, and that the output does not replace it."""

from importlib.metadata import version
from itertools import islice
from pathlib import Path

import av

from wfvae.errors import LatentsError, MediaError, StateError
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.chain import Chain, chain_of
from wfvae.runtime.jobs.checkpoints import START_OVER
from wfvae.runtime.latents.base import LatentsReader
from wfvae.runtime.media.image_folder import is_image_pattern
from wfvae.runtime.media.video_reader import VideoReader
from wfvae.runtime.media.video_writer import PIPE

_SPEED_ONLY = ("threads",)
"""What of a backend's description the result does not depend on."""
_LIBRARIES = ("libavcodec", "libavformat", "libswscale")
_PIECE = 16
"""Latents per read where all are read."""


def settings_of(bundle: Bundle, **options: object) -> dict[str, str]:
    """Returns what a job's result depends on besides bundle and source, by name.

    The options are those of the job. A job is resumed only where all of it is the same.
    """
    backend = {key: value for key, value in bundle.backend.describe().items() if key not in _SPEED_ONLY}
    backend["backend"] = backend.pop("name")
    versions = {name: ".".join(map(str, av.library_versions[name])) for name in _LIBRARIES}
    return {
        **{key: str(value) for key, value in options.items()},
        **{key if key == "backend" else f"backend {key}": str(value) for key, value in backend.items()},
        "wfvae": version("wfvae"),
        **versions,
    }


def skip_frames(reader: VideoReader, count: int, expected: str, source: str | Path) -> None:
    """Reads the frames that an interrupted job had consumed.

    Raises:
        StateError: their hash is not `expected`, or there are fewer.
    """
    chain = Chain()
    chain.extend(islice(reader, count))
    if chain.hexdigest != expected:
        raise StateError(
            f"the first {count} frames of '{source}' are not those that the interrupted job read, so it was"
            f" about another source; give that one, or {START_OVER}"
        )


def digest_latents(reader: LatentsReader, source: str | Path) -> str:
    """Returns the hash of all latents of a source.

    Raises:
        LatentsError: they are damaged, or not those of which a store states the hash.
    """
    found = chain_of(reader.chunks(_PIECE))
    if reader.digest not in (None, found):
        raise LatentsError(f"'{source}' was changed after it was complete; encode the video again")
    return found


def require_origin(bundle: Bundle, reader: LatentsReader, source: str | Path, any_bundle: bool) -> None:
    """Raises `LatentsError` unless the bundle can decode the latents."""
    info = reader.info
    if info.temporal_ratio != bundle.ratio:
        raise LatentsError(
            f"the latents {source} have {info.temporal_ratio} frames each, and this bundle's have"
            f" {bundle.ratio}"
        )
    same_model = bool(info.model) and info.model == bundle.manifest.checkpoint_sha256
    if not (info.bundle_hash == bundle.identity or same_model or any_bundle):
        raise LatentsError(
            f"the latents {source} were made by another model (bundle {info.bundle_hash[:12] or 'unknown'},"
            f" this one is {bundle.identity[:12]}); decode them with the bundle that encoded them, or insist"
            " with --any-bundle"
        )
    if not reader.count:
        raise LatentsError(f"{source} holds no latents yet; encode the video to it first")


def require_distinct(source: str | Path | None, out: str | Path) -> None:
    """Raises `MediaError` where the output would replace what it is made from."""
    if source is None or PIPE in (str(source), str(out)):
        return
    target = Path(out).parent if is_image_pattern(Path(out)) else Path(out)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise MediaError(
            f"'{out}' is the input itself ('{source}'), which would be lost; choose another name for the"
            " output"
        )
