"""The result of a verification: its checks, as JSON, as a certificate and as a table."""

from __future__ import annotations

import hashlib
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from wfvae.export.parity.difference import Array, Difference
from wfvae.machine import describe_machine

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wfvae.spec.manifest import Manifest

FORMAT = "wfvae-parity/1"
_PACKAGES = ["wfvae", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "polygraphy", "tensorrt"]
_PACKAGES += ["torch", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"]
_PACKAGES += ["nvidia-cudnn-cu12", "nvidia-cudnn-cu13"]


@dataclass(frozen=True, kw_only=True)
class Check(Difference):
    """One comparison."""

    name: str
    """The statement: "plan invariance", "stream = direct", "backend = model float32", ..."""
    direction: str
    """"encode" or "decode"."""
    backend: str
    plan: str
    """The plan that was streamed, or the clip that was compared."""
    frames: int
    """Video frames compared; 0 if none could be."""
    passed: bool
    tolerance: float
    """Largest absolute error allowed; 0 asks for equal bits."""
    rule: str
    reason: str = ""
    """Why the rule is what it is."""
    equal_uint8: bool | None = None
    """Whether the frames rounded to 8 bits are equal, too; None for latents."""
    first_difference: str | None = None
    """The first tensor at which the two computations differ, if it was searched for."""

    @property
    def holds(self) -> bool:
        """Whether it passed, compared something, and found numbers."""
        return self.passed and self.frames > 0 and not math.isnan(self.max_abs)

    def to_json(self) -> dict[str, Any]:
        """Returns strict JSON: an infinite PSNR is "inf", a number that does not exist is null."""
        place = {key: getattr(self, key) for key in ("name", "direction", "backend", "plan", "frames")}
        values = place | vars(self) | {"ulp_histogram": dict(self.ulp_histogram)}
        del values["elements"]
        for key in ("max_abs", "psnr_db"):
            value = values[key]
            if value is not None and not math.isfinite(value):
                values[key] = None if math.isnan(value) else str(value)
        return values


@dataclass(frozen=True)
class NotAvailable:
    """Something that cannot be checked with this bundle. It is neither passed nor failed."""

    name: str
    direction: str
    reason: str


@dataclass(frozen=True)
class Verification:
    """All checks of a bundle on one video."""

    checks: tuple[Check, ...]
    not_available: tuple[NotAvailable, ...] = ()
    manifest: Manifest | None = None
    backend: Mapping[str, str] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    """frames, height, width and sha256 of the uint8 frames."""
    frame_sha256: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Per-frame hashes of `latents`, `frames_float32` and `frames_uint8`."""

    @property
    def passed(self) -> bool:
        """Whether there were checks, all of them compared something, and all passed."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Returns strict JSON: {"passed", "checks", "not_available"}."""
        return {
            "passed": self.passed,
            "checks": [check.to_json() for check in self.checks],
            "not_available": [vars(entry).copy() for entry in self.not_available],
        }

    def certificate(self, source: str, date: datetime | None = None) -> dict[str, Any]:
        """Returns what was verified, with what, where and when, as strict JSON.

        It names no person, no host and no path. Per-frame hashes are SHA-256 of each latent's
        (D, h, w) or frame's (H, W, 3) values, row-major, little-endian, as direct inference (or,
        without a direct graph, one step of everything) computed them.

        Args:
            source: where the video came from; of a path only the file's name is kept.
            date: when, with a time zone; the present moment by default.
        """
        found = self.to_json()
        moment = (date or datetime.now(UTC)).astimezone(UTC)
        return {
            "format": FORMAT,
            "passed": self.passed,
            "date": moment.isoformat(timespec="seconds"),
            "bundle": self._describe_bundle(),
            "backend": dict(self.backend),
            "versions": _installed_versions(),
            "machine": describe_machine(),
            "video": {"source": re.split(r"[\\/]", source.rstrip("\\/"))[-1], **self.video},
            "checks": found["checks"],
            "not_available": found["not_available"],
            "frame_sha256": {name: list(hashes) for name, hashes in self.frame_sha256.items()},
        }

    def _describe_bundle(self) -> dict[str, Any] | None:
        if self.manifest is None:
            return None
        keys = ("identity", "checkpoint_sha256", "precision", "latents")
        return {
            **{key: getattr(self.manifest, key) for key in keys},
            "producer": dict(self.manifest.producer),
            "files": {name: record.sha256 for name, record in self.manifest.files.items()},
        }


def array_sha256(array: Array) -> str:
    """Returns the SHA-256 of an array's values, row-major, little-endian."""
    portable = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(portable).tobytes()).hexdigest()


def _installed_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def render_table(verification: Verification) -> RenderableType:
    """Returns a row per check, then first differences, what was not available, and the outcome."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    checks = verification.checks
    table = Table(title=f"Parity on {checks[0].backend}" if checks else "Parity", title_justify="left")
    for column in ("check", "direction", "plan"):
        table.add_column(column)
    for column in ("frames", "max abs", "max ULP", "equal bits", "PSNR dB", "required", "result"):
        table.add_column(column, justify="right")
    for check in checks:
        table.add_row(*_cells(check), Text("passed", "green") if check.passed else Text("FAILED", "bold red"))
    lines = [
        Text(f"{check.name}, {check.direction}, {check.plan}: {check.first_difference}")
        for check in checks
        if check.first_difference
    ]
    lines += [
        Text(f"not available: {entry.name}, {entry.direction}: {entry.reason}", "yellow")
        for entry in verification.not_available
    ]
    failed = sum(not check.passed for check in checks)
    outcome = f"{failed} of {len(checks)} checks failed" if checks else "no check was made"
    if verification.passed:
        return Group(table, *lines, Text(f"{len(checks)} checks passed", "green"))
    return Group(table, *lines, Text(outcome, "bold red"))


def _cells(check: Check) -> tuple[str, ...]:
    below_all = min(100 * check.equal_share, 99.99)  # not rounded up to 100
    return (
        check.name,
        check.direction,
        check.plan if check.problem is None else f"{check.plan}: {check.problem}",
        str(check.frames),
        "-" if math.isnan(check.max_abs) else f"{check.max_abs:.3g}",
        "-" if check.max_ulp is None else f"{check.max_ulp:,}",
        "100 %" if check.equal_bits else f"{below_all:.2f} %",
        "-" if check.psnr_db is None else f"{check.psnr_db:.1f}",
        check.rule,
    )
