"""Engines that a bundle is measured on: a backend, and a precision hint where it has one."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.processes import NotMeasured, reason_of, run_isolated
from wfvae.errors import WFVAEError
from wfvae.runtime import Bundle, open_bundle
from wfvae.spec.frames import SPATIAL_RATIO, latent_frames
from wfvae.spec.stream import Direction

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "openvino-bf16": "OpenVINO bf16"}
"""With their titles."""
DIRECTIONS: dict[str, Direction] = {"encode": "encoder", "decode": "decoder"}


def open_on(engine: str, path: str | Path, threads: int, verify: bool = False) -> Bundle:
    """Opens the bundle on the CPU.

    Raises:
        NotMeasured: the engine is not installed, or this CPU does not support its precision.
    """
    backend, _, hint = engine.partition("-")
    options: dict[str, Any] = {"provider": "cpu"} if backend == "onnxruntime" else {}
    options |= {"precision_hint": hint} if hint else {}
    try:
        return open_bundle(path, backend, threads=threads, verify=verify, **options)
    except WFVAEError as error:
        raise NotMeasured(reason_of(error)) from error


@contextmanager
def open_all(path: str | Path, threads: int) -> Iterator[tuple[dict[str, Bundle], dict[str, str]]]:
    """Yields the bundle on every engine of this machine, and the reasons why others are missing."""
    found: dict[str, Bundle] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        for engine in ENGINES:
            try:
                found[engine] = stack.enter_context(open_on(engine, path, threads))
            except NotMeasured as reason:
                missing[engine] = str(reason)
        yield found, missing


@contextmanager
def random_bundles(
    presets: Iterable[str], threads: int, target: str = "auto", **changes: Any
) -> Iterator[dict[str, str]]:
    """Yields folders of bundles of presets with random weights, with direct graphs."""
    with TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        found = {preset: str(Path(folder) / preset) for preset in presets}
        for preset, path in found.items():
            job = {"preset": preset, "changes": changes, "bundle": path, "target": target}
            run_isolated("harness.engines:export_random", job, threads)
        yield found


def export_random(job: dict[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own, since it loads PyTorch."""
    from wfvae import WFVAE, WFVAEConfig
    from wfvae.export.bundle import ExportOptions, export_bundle

    config = WFVAEConfig.preset(job["preset"], **job.get("changes", {}))
    options = ExportOptions(precision=job.get("precision", "fp32"), target=job.get("target", "auto"))
    export_bundle(WFVAE.random(config, 0).eval(), job["bundle"], options)
    return {}


@contextmanager
def exported(model: Any, **options: Any) -> Iterator[tuple[Path, Any]]:
    """Yields the folder of a model's bundle, and its manifest."""
    from wfvae.export.bundle import ExportOptions, export_bundle

    with TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        path = Path(folder) / "bundle"
        yield path, export_bundle(model, path, ExportOptions(**options))


def latent_channels(bundle: Bundle) -> int:
    """Returns the channels of the decoder's input."""
    return int(bundle.manifest.graphs["decoder"].inputs[0].shape[2])


def noise(bundle: Bundle, direction: Direction, frames: int, size: int) -> npt.NDArray[np.float32]:
    """Returns noise as the network takes it: video (1, T, 3, H, W) or latents (1, t, D, h, w)."""
    rng = np.random.default_rng(0)
    if direction == "encoder":
        return rng.uniform(-1, 1, (1, frames, 3, size, size)).astype(np.float32)
    count, place = latent_frames(frames, bundle.ratio), size // SPATIAL_RATIO
    return rng.standard_normal((1, count, latent_channels(bundle), place, place), np.float32)


def pushes(bundle: Bundle, direction: Direction, clip: npt.NDArray[np.float32], chunk: int) -> list[Any]:
    """Splits a clip of `noise` into pieces of `chunk` latents, as streams take them."""
    if direction == "decoder":
        return np.split(clip[0], range(chunk, clip.shape[1], chunk))
    step = chunk * bundle.ratio
    return np.split(np.ascontiguousarray(clip[0].transpose(0, 2, 3, 1)), range(step, clip.shape[1], step))
