"""Streams on an NVIDIA GPU through ONNX Runtime's CUDA provider. These tests have never run: no machine so far had one. Run them first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from wfvae.runtime import Bundle, open_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="this ONNX Runtime has no CUDA provider; install onnxruntime-gpu on a machine with an NVIDIA GPU",
    ),
]
FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
# fp32 without TF32, against the CPU: other orders of summation, nothing else.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def on_gpu(exported: Callable[..., Path]) -> Callable[..., Bundle]:
    """`on_gpu(name, **options)`: a bundle opened on the GPU."""
    return lambda name, **options: open_bundle(exported(name, **options), provider="cuda")


def clip(frames: int = 19) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (frames, 21, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", FIXTURES)
def test_the_gpu_gives_what_the_cpu_gives(on_gpu: Callable[..., Bundle], opened: Callable[..., Bundle], name: str) -> None:
    gpu, cpu, size = on_gpu(name), opened(name), {"frames": 19, "height": 21, "width": 30}
    assert gpu.backend.describe()["provider"] == "CUDAExecutionProvider"
    wanted = cpu.encode(clip())
    np.testing.assert_allclose(gpu.encode(clip()), wanted, rtol=0, atol=TOLERANCE)
    options: Any = {**size, "pixels": "float32"}
    np.testing.assert_allclose(gpu.decode(wanted, **options), cpu.decode(wanted, **options), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FIXTURES)
def test_plans_agree(on_gpu: Callable[..., Bundle], name: str, record_property: Callable[[str, object], None]) -> None:
    """Another batch shape may choose another kernel, so bits may differ; how much is recorded (`--junitxml`) and bounded."""
    bundle = on_gpu(name)
    latents = [bundle.encode(clip(), chunk=chunk) for chunk in (1, 2, 3, 100)]
    frames = [bundle.decode(latents[0], chunk=chunk, pixels="float32") for chunk in (1, 2, 3, 100)]
    for what, results in (("latents", latents), ("frames", frames)):
        largest = max(float(np.abs(result - results[-1]).max()) for result in results[:-1])
        record_property(f"{name} {what}: largest difference between plans", largest)
        assert largest <= TOLERANCE


def test_a_plan_repeated_gives_the_same_bits(on_gpu: Callable[..., Bundle]) -> None:
    bundle = on_gpu("4x8x8-trilinear")
    assert bundle.encode(clip(), chunk=2).tobytes() == bundle.encode(clip(), chunk=2).tobytes()


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_state_stays_on_the_device(on_gpu: Callable[..., Bundle], direction: Any) -> None:
    """Two buffers per tensor on the GPU whose addresses never change: a step moves no state."""
    session = on_gpu("4x8x8-trilinear").step_session(direction)
    state: Any = session.new_state(1, 32, 32)

    def addresses() -> list[tuple[str, int]]:
        return [(value.device_name(), value.data_ptr()) for buffers in state._buffers for value in buffers.values()]

    before = addresses()
    assert {device for device, _ in before} == {"cuda"} and len(set(before)) == len(before)
    x = np.zeros((1, 4, 3, 32, 32) if direction == "encoder" else (1, 1, 4, 4, 4), np.float32)
    for start in (True, False, False):
        session.step(state, x, np.array([start]), np.array([False]))
        assert addresses() == before


def test_snapshots_move_between_devices(on_gpu: Callable[..., Bundle], opened: Callable[..., Bundle]) -> None:
    gpu, cpu = on_gpu("4x8x8-trilinear"), opened("4x8x8-trilinear")
    wanted = cpu.encode(clip())
    for first, second in ((gpu, cpu), (cpu, gpu)):
        with first.encoder(height=21, width=30) as stream:
            head = stream.push(clip()[:9])
            snapshot = stream.snapshot()
        with second.restore(snapshot) as stream:
            latents = np.concatenate([head, stream.push(clip()[9:]), stream.finish()])
        np.testing.assert_allclose(latents, wanted, rtol=0, atol=TOLERANCE)


def test_pools(on_gpu: Callable[..., Bundle]) -> None:
    bundle = on_gpu("4x8x8-trilinear")
    sources = {key: clip(5 + 4 * key) for key in range(4)}
    parts: dict[int, list[Any]] = {key: [] for key in sources}
    with bundle.encoder_pool(height=21, width=30, rows=2, chunk=1) as pool:
        for key, part in pool.run({key: [frames] for key, frames in sources.items()}):
            parts[key].append(part)
    for key, frames in sources.items():
        np.testing.assert_allclose(np.concatenate(parts[key]), bundle.encode(frames), rtol=0, atol=TOLERANCE)


def test_fp16(on_gpu: Callable[..., Bundle], opened: Callable[..., Bundle]) -> None:
    half, full = on_gpu("4x8x8-trilinear", precision="fp16"), opened("4x8x8-trilinear")
    wanted = full.encode(clip())
    assert 0 < np.abs(half.encode(clip()) - wanted).max() < 0.01 * np.abs(wanted).max()
    frames = full.decode(wanted, pixels="float32")
    assert 0 < np.abs(half.decode(wanted, pixels="float32") - frames).max() < 0.01 * np.abs(frames).max()
