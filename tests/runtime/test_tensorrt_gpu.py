"""TensorRT on a GPU (not yet run): pip install 'wfvae[export,tensorrt,dev]' and pytest -m gpu."""

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
from wfvae.export.tensorrt.build import BuildReport, build_engines, timing_cache_path
from wfvae.export.tensorrt.timing_cache import TimingCacheFile
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.backends.nvidia.cuda import Cuda
from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
from wfvae.spec.engines import BuildSettings, Span, engine_records
from wfvae.spec.manifest import Manifest
from wfvae.spec.tensorrt import TensorRT

pytestmark = pytest.mark.gpu
HEIGHT, WIDTH = 64, 96
SETTINGS = BuildSettings(
    Span(1, 1, 3), chunk=2, height=Span.of(HEIGHT), width=Span.of(WIDTH), whole_clip=8, optimization_level=1
)
NAME = "4x8x8-trilinear"
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 3e-1}
Engines = Callable[..., Bundle]


def build(path: Path, **options: Any) -> BuildReport:
    trt = TensorRT.load()
    return build_engines(path, SETTINGS, target_here(trt, Cuda(0)), trt, **options)


@pytest.fixture(scope="module")
def built(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`built(**export options)`: a bundle with engines for this GPU. Skips without one."""
    try:
        TensorRT.load()
        Cuda(0)
    except WFVAEError as error:
        pytest.skip(f"no GPU test: {error}")

    @cache
    def make(**options: Any) -> Path:
        path = tmp_path_factory.mktemp("engines") / "bundle"
        shutil.copytree(exported(NAME, **options), path)
        build(path)
        return path

    return make


@pytest.fixture(scope="module")
def engines(built: Callable[..., Path]) -> Engines:
    """`engines(cuda_graphs, **export options)`: such a bundle, opened on TensorRT."""

    @cache
    def open_(cuda_graphs: bool = False, **options: Any) -> Bundle:
        return open_bundle(built(**options), "tensorrt", cuda_graphs=cuda_graphs)

    return open_


def video(frames: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_engines_agree_with_onnxruntime_in_fp32(
    engines: Engines, opened: Callable[..., Bundle], precision: str
) -> None:
    bundle, reference, tolerance = engines(precision=precision), opened(NAME), TOLERANCE[precision]
    latents = reference.encode(video(26), chunk=2)
    error = np.abs(bundle.encode(video(26), chunk=2) - latents).max()
    assert error <= tolerance * max(1.0, np.abs(latents).max())
    options = {"frames": 26, "chunk": 2, "pixels": "float32"}
    assert (
        np.abs(bundle.decode(latents, **options) - reference.decode(latents, **options)).max()
        <= 2 * tolerance
    )


def test_verification_passes(engines: Engines) -> None:
    from wfvae.export.parity import verify

    result = verify(engines(), video(29))
    assert result.passed and "backend = onnxruntime" in {check.name for check in result.checks}
    backend = result.certificate("video.mp4")["backend"]
    assert backend["gpu"] and backend["driver"] != "unknown" and "CONVOLUTIONS" in backend["tactic_sources"]


def test_no_inner_tensor_differs_from_onnxruntime(engines: Engines, opened: Callable[..., Bundle]) -> None:
    from wfvae.export.parity.backend_search import search_backend
    from wfvae.export.parity.plans import Job
    from wfvae.export.parity.rules import BOUNDS

    job = Job(engines(), "encoder", video(9), 9, HEIGHT, WIDTH)
    found = search_backend(job, opened(NAME), (2, 1), BOUNDS["fp32"])
    assert found.startswith("no tensor differs within a step"), found


def test_cuda_graphs_give_same_bits(engines: Engines) -> None:
    plain, captured, frames = engines(), engines(cuda_graphs=True), video(4 * 20)
    latents = plain.encode(frames, chunk=2)
    assert np.array_equal(captured.encode(frames, chunk=2), latents)
    assert np.array_equal(captured.decode(latents, chunk=2), plain.decode(latents, chunk=2))
    assert captured.backend.describe()["cuda_graphs"] == "on"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_stream_restored_mid_clip_gives_same_bits(engines: Engines, precision: str) -> None:
    bundle, frames = engines(precision=precision), video(41)
    with bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        stream.push(frames[:21])
        saved = stream.snapshot()
        rest = np.concatenate([stream.push(frames[21:]), stream.finish()])
    with bundle.restore(saved, chunk=2) as stream:
        assert np.array_equal(np.concatenate([stream.push(frames[21:]), stream.finish()]), rest)


def test_pool_of_streams_agrees_with_each_alone(engines: Engines) -> None:
    bundle = engines()
    clips = {seed: video(17 + 4 * seed, seed) for seed in range(3)}
    results: dict[int, list[Any]] = {seed: [] for seed in clips}
    with bundle.encoder_pool(height=HEIGHT, width=WIDTH, rows=3, chunk=2) as pool:
        for seed, part in pool.run({seed: [clip] for seed, clip in clips.items()}):
            results[seed].append(part)
    for seed, clip in clips.items():
        alone = bundle.encode(clip, chunk=2)
        error = np.abs(np.concatenate(results[seed]) - alone).max()
        assert error <= TOLERANCE["fp32"] * max(1.0, np.abs(alone).max())


def test_first_step_gives_bits_of_polygraphys_runner(engines: Engines) -> None:
    """An independent way to run an engine, which allocates and copies everything for each run."""
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


def test_build_from_timing_cache_alone_succeeds(built: Callable[..., Path]) -> None:
    path = built()
    cache_path = timing_cache_path(path, target_here(TensorRT.load(), Cuda(0)))
    assert len(build(path, timing_cache=TimingCacheFile(cache_path, read_only=True), again=True).built) == 4


def test_gpu_goes_on_after_out_of_memory(engines: Engines) -> None:
    bundle = engines()
    expected = bundle.encode(video(9), chunk=2)
    with pytest.raises(ResourceError, match="no memory"):
        Cuda(0).allocate(1 << 50)
    assert np.array_equal(bundle.encode(video(9), chunk=2), expected)
