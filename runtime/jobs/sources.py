"""Checks of a job's source: which one it is, and that the output does not replace it."""

import hashlib
import json
from pathlib import Path

from wfvae.errors import LatentsError, MediaError
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.jobs.checkpoints import FROM_PIPE
from wfvae.runtime.latents.base import LatentsReader
from wfvae.runtime.media.image_folder import NUMBER_FORMAT
from wfvae.runtime.media.video_writer import PIPE

_FINGERPRINT_BYTES = 1 << 20
_FINGERPRINT_LATENTS = 16


def fingerprint_video(source: str | Path) -> str:
    """Returns a hash that distinguishes one video from another, or `FROM_PIPE`."""
    if str(source) == PIPE:
        return FROM_PIPE
    path = Path(source)
    digest = hashlib.sha256()
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            digest.update(f"{entry.name}:{entry.stat().st_size};".encode())
    else:
        with path.open("rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
        digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()


def fingerprint_latents(reader: LatentsReader, bundle: Bundle) -> str:
    """Returns a hash that distinguishes one decode of latents from another."""
    about = json.dumps([reader.info.to_json(), reader.shape, bundle.identity], sort_keys=True)
    digest = hashlib.sha256(about.encode())
    last = reader.count - 1
    for index in sorted({k * last // _FINGERPRINT_LATENTS for k in range(_FINGERPRINT_LATENTS + 1)}):
        digest.update(reader.read(index, index + 1).tobytes())
    return digest.hexdigest()


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
    target = Path(out).parent if NUMBER_FORMAT.search(Path(out).name) else Path(out)
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise MediaError(
            f"'{out}' is the input itself ('{source}'), which would be lost; choose another name for the"
            " output"
        )
