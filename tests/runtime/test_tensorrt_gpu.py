"""TensorRT on a GPU. These tests have never run: the machines that this was written on have neither
a GPU nor TensorRT's libraries.

Where both are: pip install 'wfvae[export,tensorrt,dev]' and pytest -m gpu
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wfvae.errors import ResourceError, WFVAEError
from wfvae.runtime import Bundle, open_bundle
from wfvae.spec.engines import BuildSettings, Span, engine_records
from wfvae.spec.manifest import Manifest

pytestmark = pytest.mark.gpu
HEIGHT, WIDTH = 64, 96
SETTINGS = BuildSettings(
    Span(1, 1, 3), chunk=2, height=Span.of(HEIGHT), width=Span.of(WIDTH), whole_clip=8, optimization_level=1
)
NAME = "4x8x8-trilinear"
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 3e-1}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Any:
    """The GPU, or what is missing."""
    from wfvae.runtime.backends.nvidia.cuda import CudaBindings
    from wfvae.spec.tensorrt import load_tensorrt

    try:
        load_tensorrt()
        return CudaBindings(0)
    except WFVAEError as error:
        pytest.skip(f"no GPU test: {error}")


@pytest.fixture(scope="module")
def built(
    exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, gpu: Any
) -> Callable[..., Path]:
    """`built(**export options)`: a bundle with engines for this GPU."""
    from wfvae.export.tensorrt.build import build_engines
    from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
    from wfvae.spec.tensorrt import load_tensorrt

    @cache
    def build(**options: Any) -> Path:
        path = tmp_path_factory.mktemp("engines") / "bundle"
        shutil.copytree(exported(NAME, **options), path)
        trt = load_tensorrt()
        build_engines(path, SETTINGS, target_here(trt, gpu), trt)
        return path

    return build


@pytest.fixture(scope="module")
def engines(built: Callable[..., Path]) -> Callable[..., Bundle]:
    """`engines(cuda_graphs, **export options)`: such a bundle, opened on TensorRT."""

    @cache
    def open_(cuda_graphs: bool = False, **options: Any) -> Bundle:
        return open_bundle(built(**options), "tensorrt", cuda_graphs=cuda_graphs)

    return open_


def video(frames: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_engines_agree_with_onnxruntime_in_fp32(
    engines: Callable[..., Bundle], opened: Callable[..., Bundle], precision: str
) -> None:
    bundle = engines(precision=precision)
    latents = opened(NAME).encode(video(26), chunk=2)
    assert np.abs(bundle.encode(video(26), chunk=2) - latents).max() <= TOLERANCE[precision] * max(
        1.0, np.abs(latents).max()
    )
    expected = opened(NAME).decode(latents, frames=26, chunk=2, pixels="float32")
    assert (
        np.abs(bundle.decode(latents, frames=26, chunk=2, pixels="float32") - expected).max()
        <= TOLERANCE[precision] * 2
    )


def test_verification_passes(engines: Callable[..., Bundle]) -> None:
    from wfvae.export.parity import verify

    result = verify(engines(), video(29))
    assert result.passed and {"backend = onnxruntime"} <= {check.name for check in result.checks}
    backend = result.certificate("video.mp4")["backend"]
    assert (
        backend["gpu"]
        and backend["driver"] != "unknown"
        and backend["tactic_sources"] not in ("none", "no engine is open")
    )


def test_no_tensor_of_an_engine_differs_from_onnxruntime(
    engines: Callable[..., Bundle], opened: Callable[..., Bundle]
) -> None:
    from wfvae.export.parity.backend_search import search_backend
    from wfvae.export.parity.plans import Job
    from wfvae.export.parity.rules import BOUNDS

    job = Job(engines(), "encoder", video(9), 9, HEIGHT, WIDTH)
    found = search_backend(job, opened(NAME), (2, 1), BOUNDS["fp32"])
    assert found.startswith("no tensor differs within a step"), found


def test_cuda_graphs_change_no_bit(engines: Callable[..., Bundle]) -> None:
    frames = video(4 * 20)
    plain, captured = engines(), engines(cuda_graphs=True)
    latents = plain.encode(frames, chunk=2)
    assert np.array_equal(captured.encode(frames, chunk=2), latents)
    assert np.array_equal(captured.decode(latents, chunk=2), plain.decode(latents, chunk=2))
    assert captured.backend.describe()["cuda_graphs"] == "on"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_snapshot_is_taken_up_with_the_same_bits(engines: Callable[..., Bundle], precision: str) -> None:
    bundle, frames = engines(precision=precision), video(41)
    with bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        first = stream.push(frames[:21])
        saved = stream.snapshot()
        rest = np.concatenate([stream.push(frames[21:]), stream.finish()])
    with bundle.restore(saved, chunk=2) as stream:
        assert np.array_equal(np.concatenate([stream.push(frames[21:]), stream.finish()]), rest)
    assert len(first) and len(rest)


def test_streams_in_one_batch_do_not_mix(engines: Callable[..., Bundle]) -> None:
    bundle = engines()
    clips = {seed: video(17 + 4 * seed, seed) for seed in range(3)}
    results: dict[int, list[Any]] = {seed: [] for seed in clips}
    with bundle.encoder_pool(height=HEIGHT, width=WIDTH, rows=3, chunk=2) as pool:
        for seed, part in pool.run({seed: [clip] for seed, clip in clips.items()}):
            results[seed].append(part)
    for seed, clip in clips.items():
        alone = bundle.encode(clip, chunk=2)
        assert np.abs(np.concatenate(results[seed]) - alone).max() <= TOLERANCE["fp32"] * max(
            1.0, np.abs(alone).max()
        )


def test_the_first_step_is_what_polygraphy_runs(engines: Callable[..., Bundle]) -> None:
    """An independent way to run an engine: Polygraphy's loader and its runner, which allocates and
    copies everything anew.
    """
    pytest.importorskip("polygraphy")
    loaders = importlib.import_module("polygraphy.backend.trt")
    bundle = engines()
    session = bundle.step_session("encoder")
    x = np.random.default_rng(0).uniform(-1, 1, (1, 8, 3, HEIGHT, WIDTH)).astype(np.float32)
    yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
    state = session.new_state(1, HEIGHT, WIDTH)
    feeds = {"frames": x, "start": yes, **{f"state.{name}": array for name, array in state.read().items()}}
    [record] = [r for r in engine_records(Manifest.read(bundle.path)) if r.graph == "encoder"]
    engine = loaders.EngineFromBytes((bundle.path / record.file).read_bytes())
    with loaders.TrtRunner(engine, optimization_profile=0) as runner:
        expected = {name: np.array(array) for name, array in runner.infer(feeds).items()}
    assert np.array_equal(session.step(state, x, yes, no), expected["latents"])
    for name, array in state.read().items():
        assert np.array_equal(array, expected[f"next_state.{name}"]), name


def test_a_build_from_the_timing_cache_alone(built: Callable[..., Path], gpu: Any) -> None:
    from wfvae.export.tensorrt.build import build_engines, timing_cache_path
    from wfvae.export.tensorrt.timing_cache import TimingCacheFile
    from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
    from wfvae.spec.tensorrt import load_tensorrt

    path, trt = built(), load_tensorrt()
    target = target_here(trt, gpu)
    cache_file = TimingCacheFile(timing_cache_path(path, target), read_only=True)
    assert len(build_engines(path, SETTINGS, target, trt, timing_cache=cache_file, again=True).built) == 4


def test_out_of_memory_is_one_error_and_the_gpu_goes_on(engines: Callable[..., Bundle]) -> None:
    bundle = engines()
    device = bundle.step_session("encoder").engine.device  # type: ignore[attr-defined]
    expected = bundle.encode(video(9), chunk=2)
    with pytest.raises(ResourceError, match="no memory"):
        device.cuda.allocate(1 << 50)
    assert np.array_equal(bundle.encode(video(9), chunk=2), expected)
