"""ONNX Runtime's CUDA provider and TensorRT on a GPU (not yet run): `pytest -m gpu`.

A backend that is not installed is skipped with the reason. `--junitxml` records measured numbers.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from wfvae.errors import WFVAEError
from wfvae.export.tensorrt.build import build_engines
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.backends.nvidia.cuda import Cuda
from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
from wfvae.spec.tensorrt_api import TensorRT
from wfvae.spec.tensorrt_engines import BuildSettings, Span

pytestmark = pytest.mark.gpu
CUDA, TENSORRT = "onnxruntime", "tensorrt"
BACKENDS = pytest.mark.parametrize("backend", [CUDA, TENSORRT])
FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
NAME = FIXTURES[0]
HEIGHT, WIDTH = 60, 90  # padded to 64x96
SIZE = {"height": HEIGHT, "width": WIDTH}
SETTINGS = BuildSettings(
    Span(1, 1, 3), chunk=2, height=Span.of(64), width=Span.of(96), whole_clip=8, optimization_level=1
)
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}
"""Of the largest value."""
Opener = Callable[..., Bundle]
Report = Callable[[str, object], None]


def require(backend: str) -> None:
    """Skips unless the backend has a GPU."""
    if backend == TENSORRT:
        try:
            TensorRT.load()
            Cuda(0)
        except WFVAEError as error:
            pytest.skip(f"no GPU test: {error}")
    elif "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip(f"ONNX Runtime {ort.__version__} has no CUDA provider: install onnxruntime-gpu")
    elif shutil.which("nvidia-smi") is None:
        pytest.skip("no NVIDIA driver here (nvidia-smi)")
    else:
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()


@pytest.fixture(scope="module")
def on_gpu(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """`on_gpu(backend, name, precision=..., tf32=..., cuda_graphs=...)`: a bundle on the GPU."""

    @cache
    def built(name: str, precision: str) -> Path:
        path = tmp_path_factory.mktemp("engines") / "bundle"
        shutil.copytree(exported(name, precision=precision), path)
        trt = TensorRT.load()
        build_engines(path, SETTINGS, target_here(trt, Cuda(0)), trt)
        return path

    def open_(backend: str, name: str = NAME, precision: str = "fp32", **options: Any) -> Bundle:
        require(backend)
        if backend == TENSORRT:
            return open_bundle(built(name, precision), TENSORRT, **options)
        return open_bundle(exported(name, precision=precision), provider="cuda", **options)

    return open_


def clip(frames: int = 26, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def both(bundle: Bundle, latents: Any, chunk: int = 2) -> dict[str, Any]:
    """What the bundle encodes, and what it decodes from `latents`."""
    decoded = bundle.decode(latents, frames=len(clip()), **SIZE, chunk=chunk, pixels="float32")
    return {"encode": bundle.encode(clip(), chunk=chunk), "decode": decoded}


def error(found: Any, wanted: Any) -> float:
    assert found.shape == wanted.shape and found.dtype == wanted.dtype and np.isfinite(found).all()
    return float(np.abs(found.astype(np.float64) - wanted).max() / max(1.0, np.abs(wanted).max()))


PRECISIONS = [*((backend, name, "fp32") for backend in (CUDA, TENSORRT) for name in FIXTURES)]
PRECISIONS += [(CUDA, NAME, "tf32"), (CUDA, NAME, "fp16"), (TENSORRT, NAME, "fp16"), (TENSORRT, NAME, "bf16")]


@pytest.mark.parametrize(("backend", "name", "precision"), PRECISIONS)
def test_gpu_agrees_with_cpu_in_fp32(
    on_gpu: Opener, opened: Opener, record_property: Report, backend: str, name: str, precision: str
) -> None:
    cpu, tf32 = opened(name), precision == "tf32"
    gpu = on_gpu(backend, name, "fp32" if tf32 else precision, tf32=tf32)
    latents = cpu.encode(clip())
    found, wanted = both(gpu, latents), both(cpu, latents)
    for what, array in wanted.items():
        value = error(found[what], array)
        record_property(f"{backend}, {name}, {what}, {precision} against the CPU in fp32", value)
        assert value <= TOLERANCE[precision]


@BACKENDS
@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in FIXTURES), (NAME, "fp16")])
def test_verification_passes_and_names_gpu(on_gpu: Opener, backend: str, name: str, precision: str) -> None:
    """Plans, batches, snapshots and direct inference agree, and so does ONNX Runtime on the CPU."""
    from wfvae.export.parity import verify

    result = verify(on_gpu(backend, name, precision), clip(29))
    assert result.passed and "backend = onnxruntime" in {check.name for check in result.checks}
    certified = result.certificate("video.mp4")["backend"]
    assert all(certified.get(key) for key in ("gpu", "driver")), certified


@BACKENDS
def test_tensors_on_the_gpu_give_the_bits_of_the_host(on_gpu: Opener, backend: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} sees no GPU")
    bundle, frames = on_gpu(backend), torch.from_numpy(clip()[:, :56, :88]).cuda()
    floats = (frames.permute(0, 3, 1, 2) / 127.5 - 1).contiguous().permute(0, 2, 3, 1)
    for given in (frames, floats, floats.contiguous(), floats.bfloat16()):
        expected = bundle.encode(given.cpu(), chunk=2)
        latents = torch.from_dlpack(bundle.encode(given, chunk=2, output="device"))
        assert latents.is_cuda and np.array_equal(latents.cpu().numpy(), expected)
    decoded = bundle.decode(latents, chunk=2, pixels="float32", output="device")
    wanted = bundle.decode(latents.cpu(), chunk=2, pixels="float32")
    assert np.array_equal(torch.from_dlpack(decoded).cpu().numpy(), wanted)


@BACKENDS
def test_device_memory_is_constant(on_gpu: Opener, backend: str) -> None:
    def used() -> int:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])

    with on_gpu(backend).encoder(**SIZE, chunk=2) as stream:
        for _ in range(20):
            stream.push(clip(8))
        before = used()
        for _ in range(200):
            stream.push(clip(8))
        assert used() - before <= 64, "MiB over 1,600 frames (others may use the GPU)"


def test_cuda_graphs_give_same_bits(on_gpu: Opener, opened: Opener) -> None:
    plain, captured = on_gpu(TENSORRT), on_gpu(TENSORRT, cuda_graphs=True)
    latents = opened(NAME).encode(clip())
    wanted, found = both(plain, latents), both(captured, latents)
    assert all(np.array_equal(found[what], array) for what, array in wanted.items())
    assert captured.backend.describe()["cuda_graphs"] == "on"
