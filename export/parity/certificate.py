"""A certificate: what was verified, with what, where and when, as JSON that names no person, no
host and no path.
"""

from __future__ import annotations

import hashlib
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from wfvae.export.parity.difference import Array
from wfvae.machine import describe_machine

if TYPE_CHECKING:
    from wfvae.export.parity.verification import Verification

FORMAT = "wfvae-parity/1"
_PACKAGES = (
    "wfvae",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "polygraphy",
    "tensorrt",
    "torch",
)


def write_certificate(
    verification: Verification, source: str, date: datetime | None = None
) -> dict[str, Any]:
    """The certificate of a verification, strict JSON.

    Per-frame hashes are SHA-256 of each latent's (D, h, w) or frame's (H, W, 3) values, row-major,
    little-endian, as direct inference (or, without a direct graph, one step of everything) gave
    them.
    """
    manifest = verification.manifest
    moment = (date or datetime.now(UTC)).astimezone(UTC)
    return {
        "format": FORMAT,
        "passed": verification.passed,
        "date": moment.isoformat(timespec="seconds"),
        "bundle": (
            None
            if manifest is None
            else {
                "identity": manifest.identity,
                "checkpoint_sha256": manifest.checkpoint_sha256,
                "precision": manifest.precision,
                "latents": manifest.latents,
                "producer": dict(manifest.producer),
                "files": {name: record.sha256 for name, record in manifest.files.items()},
            }
        ),
        "backend": dict(verification.backend),
        "versions": _versions(),
        "machine": describe_machine(),
        "video": {"source": _without_folders(source), **verification.video},
        "checks": verification.to_json()["checks"],
        "not_available": verification.to_json()["not_available"],
        "frame_sha256": {name: list(hashes) for name, hashes in verification.frame_sha256.items()},
    }


def frame_hashes(frames: Array) -> tuple[str, ...]:
    """SHA-256 of each entry along the first axis, as little-endian bytes."""
    portable = frames.astype(frames.dtype.newbyteorder("<"), copy=False)
    return tuple(hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest() for frame in portable)


def array_sha256(array: Array) -> str:
    """SHA-256 of an array's bytes, row-major."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _without_folders(source: str) -> str:
    return re.split(r"[\\/]", source.rstrip("\\/"))[-1]
