"""Streams through ONNX Runtime's CUDA provider. Run with `pytest -m gpu` on a machine with an
NVIDIA GPU; skipped, by name, elsewhere.

These tests have never run: no machine so far had a GPU. What is measured is written to the terminal
and recorded (`--junitxml`).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.pixels import to_network

pytestmark = pytest.mark.gpu
FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
DIRECTIONS = ("encoder", "decoder")
HEIGHT, WIDTH = 60, 90
# fp32 without TF32: the same numbers in another order of summation.
TOLERANCE = 1e-4
# Of the largest value: ten bits of mantissa, through some sixty layers.
TF32_TOLERANCE = FP16_TOLERANCE = 2e-2
Opener = Callable[..., Bundle]
Report = Callable[[str, float], None]


def _driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def on_gpu(exported: Callable[..., Path]) -> Opener:
    """`on_gpu(name, precision=..., tf32=...)`: a bundle on the GPU. Skips without a GPU; with one,
    a provider that fails is a failure.
    """
    available = ort.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        pytest.skip(
            f"this ONNX Runtime ({ort.__version__}) has no CUDA provider, only {', '.join(available)}:"
            " install onnxruntime-gpu"
        )
    if not _driver():
        pytest.skip("no NVIDIA driver here (libcuda.so.1)")
    with redirect_stdout(sys.stderr):  # it prints what it does not find
        ort.preload_dlls()

    def open_(name: str, tf32: bool = False, **options: Any) -> Bundle:
        return open_bundle(exported(name, **options), provider="cuda", tf32=tf32)

    return open_


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]) -> Report:
    """Writes a number to the terminal, past pytest's capture, and into the record."""

    def write(what: str, value: float) -> None:
        record_property(what, value)
        with capsys.disabled():
            sys.stdout.write(f"\n    {what}: {value:.3g}")

    return write


def clip(frames: int = 21, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def difference(a: Any, b: Any) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(np.abs(a.astype(np.float64) - b).max())


def decode(bundle: Bundle, latents: Any, **options: Any) -> Any:
    return bundle.decode(latents, pixels="float32", **options)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_session_is_on_the_gpu(on_gpu: Opener, direction: Any) -> None:
    """ONNX Runtime goes on silently on the CPU where the provider cannot be set up; here that is a
    failure.
    """
    session: Any = on_gpu("4x8x8-trilinear").step_session(direction)
    assert session._session.get_providers()[0] == "CUDAExecutionProvider"
    settings = session._session.get_provider_options()["CUDAExecutionProvider"]
    assert settings["cudnn_conv_algo_search"] == "HEURISTIC" and settings["use_tf32"] == "0"


def test_verification_passes_and_names_the_gpu(on_gpu: Opener) -> None:
    from wfvae.export.parity import verify

    result = verify(on_gpu("4x8x8-trilinear"), clip(13))
    assert result.passed and "backend = onnxruntime" in {check.name for check in result.checks}
    backend = result.certificate("video.mp4")["backend"]
    assert all(backend.get(key) for key in ("gpu", "driver", "cuda", "cudnn")), backend


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_state_stays_on_the_gpu(on_gpu: Opener, direction: Any) -> None:
    session = on_gpu("4x8x8-trilinear").step_session(direction)
    state: Any = session.new_state(1, 64, 96)

    def places() -> list[tuple[str, int]]:
        return [
            (value.device_name(), value.data_ptr())
            for buffers in state._buffers
            for value in buffers.values()
        ]

    before = places()
    assert {device for device, _ in before} == {"cuda"} and len(set(before)) == len(before)
    x = np.zeros((1, 4, 3, 64, 96) if direction == "encoder" else (1, 1, 4, 8, 12), np.float32)
    for start in (True, False, False):
        session.step(state, x, np.array([start]), np.array([False]))
        assert places() == before


@pytest.mark.parametrize("name", FIXTURES)
def test_plans(on_gpu: Opener, report: Report, name: str) -> None:
    """Plan invariance, measured: another chunk may choose another kernel, so bits may differ."""
    bundle = on_gpu(name)
    latents = [bundle.encode(clip(), chunk=chunk) for chunk in (100, 1, 2, 3)]
    frames = [decode(bundle, latents[0], chunk=chunk) for chunk in (100, 1, 2, 3)]
    for what, results in (("latents", latents), ("frames", frames)):
        largest = max(difference(result, results[0]) for result in results[1:])
        report(f"{name}, {what}, largest difference between plans", largest)
        assert largest <= TOLERANCE


def test_the_same_plan_gives_the_same_bits(on_gpu: Opener) -> None:
    bundle, again = on_gpu("4x8x8-trilinear"), on_gpu("4x8x8-trilinear")
    latents = bundle.encode(clip(), chunk=2)
    assert all(b.encode(clip(), chunk=2).tobytes() == latents.tobytes() for b in (bundle, again))
    frames = bundle.decode(latents, chunk=2)
    assert all(b.decode(latents, chunk=2).tobytes() == frames.tobytes() for b in (bundle, again))


@pytest.mark.parametrize("name", FIXTURES)
def test_streams_give_what_direct_inference_gives(on_gpu: Opener, report: Report, name: str) -> None:
    bundle = on_gpu(name)
    frames = clip(1 + 2 * bundle.ratio)
    latents = bundle.encode(frames)
    direct = bundle.direct_session("encoder").run(to_network(frames)[None])[0]
    whole = bundle.direct_session("decoder").run(latents[None])[0].transpose(0, 2, 3, 1)
    streamed = decode(bundle, latents)
    for what, found in (("encode", difference(direct, latents)), ("decode", difference(whole, streamed))):
        report(f"{name}, {what}, stream against direct inference", found)
        assert found <= TOLERANCE


@pytest.mark.parametrize("name", FIXTURES)
def test_the_gpu_gives_what_the_cpu_gives(on_gpu: Opener, opened: Opener, report: Report, name: str) -> None:
    gpu, cpu = on_gpu(name), opened(name)
    latents = cpu.encode(clip())
    options = {"frames": 21, "height": HEIGHT, "width": WIDTH}
    found = {"encode": difference(gpu.encode(clip()), latents)}
    found["decode"] = difference(decode(gpu, latents, **options), decode(cpu, latents, **options))
    for what, value in found.items():
        report(f"{name}, {what}, CUDA against CPU, fp32", value)
        assert value <= TOLERANCE


def test_tf32_is_off_unless_asked_for(on_gpu: Opener, opened: Opener, report: Report) -> None:
    exact, rounded, cpu = (
        on_gpu("4x8x8-trilinear"),
        on_gpu("4x8x8-trilinear", tf32=True),
        opened("4x8x8-trilinear"),
    )
    latents = cpu.encode(clip())
    for what, off, on, wanted in (
        ("encode", exact.encode(clip()), rounded.encode(clip()), latents),
        ("decode", decode(exact, latents), decode(rounded, latents), decode(cpu, latents)),
    ):
        largest = float(np.abs(wanted).max())
        report(f"{what}, TF32 off against CPU", difference(off, wanted))
        report(f"{what}, TF32 on against CPU", difference(on, wanted))
        assert difference(off, wanted) <= TOLERANCE
        assert difference(on, wanted) <= TF32_TOLERANCE * largest
        # Small channels may find no TF32 kernel; then both are alike. Off must never be the worse.
        assert difference(off, wanted) <= difference(on, wanted) + TOLERANCE


def test_fp16(on_gpu: Opener, opened: Opener, report: Report) -> None:
    half, full = on_gpu("4x8x8-trilinear", precision="fp16"), opened("4x8x8-trilinear")
    latents = full.encode(clip())
    for what, found, wanted in (
        ("encode", half.encode(clip()), latents),
        ("decode", decode(half, latents), decode(full, latents)),
    ):
        report(
            f"{what}, fp16 against fp32, of the largest value",
            difference(found, wanted) / float(np.abs(wanted).max()),
        )
        assert (
            np.isfinite(found).all()
            and 0 < difference(found, wanted) <= FP16_TOLERANCE * np.abs(wanted).max()
        )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_snapshots_on_the_gpu(on_gpu: Opener, precision: str) -> None:
    bundle = on_gpu("4x8x8-trilinear", precision=precision)
    wanted = bundle.encode(clip(), chunk=1)
    with bundle.encoder(height=HEIGHT, width=WIDTH, chunk=1) as stream:
        head = stream.push(clip()[:9])
        snapshot = stream.snapshot()
    with bundle.restore(snapshot, chunk=1) as stream:
        latents = np.concatenate([head, stream.push(clip()[9:]), stream.finish()])
    assert latents.tobytes() == wanted.tobytes()


def test_many_streams(on_gpu: Opener, report: Report) -> None:
    """Eight streams of unequal length, three rows: each as when it runs alone, but for rounding."""
    bundle = on_gpu("4x8x8-trilinear")
    clips = {key: clip(5 + 4 * (key % 3), key) for key in range(8)}
    parts: dict[int, list[Any]] = {key: [] for key in clips}
    with bundle.encoder_pool(height=HEIGHT, width=WIDTH, rows=3, chunk=1) as pool:
        for key, part in pool.run({key: [frames] for key, frames in clips.items()}):
            parts[key].append(part)
    largest = max(
        difference(np.concatenate(parts[key]), bundle.encode(frames, chunk=1))
        for key, frames in clips.items()
    )
    report("8 streams in 3 rows, against each alone", largest)
    assert largest <= TOLERANCE


def test_device_memory_is_constant(on_gpu: Opener, report: Report) -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no nvidia-smi to read the device's memory with")

    def used() -> int:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])

    bundle = on_gpu("4x8x8-trilinear")
    with bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        for _ in range(20):
            stream.push(clip(8))
        before = used()
        for _ in range(200):
            stream.push(clip(8))
        grown = used() - before
    report("growth of device memory over 1,600 frames, MiB (others may use the GPU, too)", grown)
    assert grown <= 64
