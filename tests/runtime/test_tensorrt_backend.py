"""The TensorRT backend over stand-ins for TensorRT and CUDA: this project's logic, without a GPU.

The stand-in engines run the bundle's graphs in ONNX Runtime, on memory that is filled as late as
streams and events allow. So a missing wait, a swapped address, an aliased buffer or a partly
written state gives wrong bits.
"""

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.fake_cuda import FakeCuda
from fixtures.fake_tensorrt import SCRATCH_BYTES, FakeContext, FakeTensorRT
from wfvae.errors import BundleError, InputError, ResourceError, StreamingError
from wfvae.export.tensorrt.build import build_engines
from wfvae.runtime.backends.base import BackendOptions
from wfvae.runtime.backends.nvidia.cuda import DeviceError
from wfvae.runtime.backends.nvidia.tensorrt_backend import TensorRTBackend, target_here
from wfvae.runtime.bundle import Bundle
from wfvae.runtime.pixels import frames_view, to_network
from wfvae.spec.manifest import Manifest
from wfvae.spec.tensorrt_api import RTX, TensorRT
from wfvae.spec.tensorrt_engines import BuildSettings, Span, portable_target

HEIGHT, WIDTH = 16, 24
SIZE = {"height": HEIGHT, "width": WIDTH}
SETTINGS = BuildSettings(Span(1, 1, 3), chunk=2, height=Span.of(HEIGHT), width=Span(8, 24, 32), whole_clip=5)
PLAIN, GRAPHS = BackendOptions(), BackendOptions(cuda_graphs=True)
NAME = "4x8x8-trilinear"
Patch = pytest.MonkeyPatch


def video(frames: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


@dataclass
class Setup:
    """A bundle with stand-in engines, opened on new stand-ins."""

    path: Path
    options: BackendOptions

    def __post_init__(self) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda)
        manifest = Manifest.read(self.path)
        libraries = [TensorRT(self.trt)]
        backend = TensorRTBackend(self.path, manifest, self.options, libraries=libraries, cuda=self.cuda)
        self.bundle: Any = Bundle(self.path, manifest, backend)

    def new_state(self, batch: int = 1) -> Any:
        return self.bundle.step_session("encoder").new_state(batch, HEIGHT, WIDTH)


Make = Callable[..., Setup]


@pytest.fixture(scope="module")
def built(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`built(**export options)`: a bundle with stand-in engines."""

    @cache
    def build(**options: Any) -> Path:
        path = tmp_path_factory.mktemp("engines") / "bundle"
        shutil.copytree(exported(NAME, **options), path)
        cuda = FakeCuda()
        trt = TensorRT(FakeTensorRT(cuda))
        build_engines(path, SETTINGS, target_here(trt, cuda), trt)
        return path

    return build


@pytest.fixture
def setup(built: Callable[..., Path]) -> Make:
    """`setup(options, **export options)`."""

    def open_(options: BackendOptions = PLAIN, **exports: Any) -> Setup:
        return Setup(built(**exports), options)

    return open_


@pytest.fixture(scope="module")
def reference(opened: Callable[..., Bundle]) -> Bundle:
    """The same bundle on ONNX Runtime, which also computes behind the stand-in."""
    return opened(NAME)


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(np.array_equal(array, wanted[name]) for name, array in found.items())


def stream_once(found: Setup, frames: Any) -> Any:
    with found.bundle.encoder(**SIZE, chunk=2) as stream:
        return np.concatenate([stream.push(frames), stream.finish()])


@pytest.mark.parametrize("options", [PLAIN, GRAPHS], ids=["plain", "cuda graphs"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_streams_give_bits_of_onnxruntime(
    setup: Make, reference: Bundle, chunk: int, options: BackendOptions
) -> None:
    found, frames = setup(options), video(26)
    bundle = found.bundle
    latents = bundle.encode(frames, chunk=chunk)
    assert np.array_equal(latents, reference.encode(frames, chunk=chunk))
    decoded = bundle.decode(latents, frames=26, chunk=chunk)
    assert np.array_equal(decoded, reference.decode(latents, frames=26, chunk=chunk))
    assert bool(found.cuda.counts["launch"]) == (options == GRAPHS and chunk < 5)  # 5 is not steady


def test_bfloat16_state_is_read_and_written_as_bits(setup: Make) -> None:
    session = setup(precision="bf16").bundle.step_session("decoder")
    state = session.new_state(2, HEIGHT, WIDTH)
    before = state.read()
    for spec in session.graph.states:
        assert before[spec.name].dtype == ("uint16" if spec.dtype == "bfloat16" else spec.dtype)
        assert not before[spec.name].any()
    x, no = np.zeros((2, 1, 4, HEIGHT // 8, WIDTH // 8), np.float32), np.zeros(2, np.bool_)
    for _ in range(3):  # the stand-in only counts steps here
        session.step(state, x, no, no)
    assert all((array == 3).all() for array in state.read().values())
    state.write({name: array + 4 for name, array in state.read().items()})
    assert all((array == 7).all() for array in state.read().values())


def test_verification_passes_and_certifies_gpu(setup: Make) -> None:
    from wfvae.export.parity import verify

    result = verify(setup().bundle, video(17))
    assert result.passed and {check.backend for check in result.checks} == {"tensorrt"}
    compared = [check for check in result.checks if check.name == "backend = onnxruntime"]
    assert [check.direction for check in compared] == ["encode", "decode"]
    assert all(check.equal_bits for check in compared)
    certified = result.certificate("video.mp4")["backend"]
    wanted = {"name": "tensorrt", "version": "11.4.0", "device": "cuda:0", "gpu": "Fake GPU"}
    wanted |= {"compute_capability": "9.0"}
    assert {**wanted, "tf32": "false", "cuda_graphs": "off"}.items() <= certified.items()


def test_steady_steps_allocate_nothing_and_share_scratch(setup: Make) -> None:
    found = setup()
    with found.bundle.encoder(**SIZE, chunk=2) as stream:
        latents = stream.push(video(1 + 8 * 4))
        held, count = found.cuda.held(), found.cuda.counts["allocate"]
        stream.push(video(8 * 3))
        assert found.cuda.held() == held and found.cuda.counts["allocate"] == count
    scratch = found.bundle.step_session("encoder").engine.device.scratch
    # What steps of two latents need, not what the largest profile (5) would.
    assert 0 <= scratch.place[1] - 2 * SCRATCH_BYTES["encoder"] < 256
    found.bundle.decode(latents, chunk=2)
    assert 0 <= scratch.place[1] - 2 * SCRATCH_BYTES["decoder"] < 256
    gc.collect()
    assert found.cuda.held()["device"] == 1  # scratch memory


@pytest.mark.slow
def test_out_of_memory_is_one_error_and_everything_is_released(setup: Make, reference: Bundle) -> None:
    found, frames = setup(), video(9)
    expected = reference.encode(frames)
    assert np.array_equal(stream_once(found, frames), expected)
    need = found.cuda.peak
    idle = found.cuda.held()
    for limit in np.linspace(found.cuda.held_bytes(), need - 1, 6).astype(int):
        found.cuda.limit = limit
        with pytest.raises(ResourceError, match="no memory"):
            stream_once(found, frames)
        gc.collect()
        assert found.cuda.held() == idle, limit
    found.cuda.limit = need
    assert np.array_equal(stream_once(found, frames), expected)


@pytest.mark.parametrize("options", [PLAIN, GRAPHS], ids=["plain", "cuda graphs"])
def test_closed_bundle_releases_engines_and_stream_keeps_its_own(
    setup: Make, options: BackendOptions
) -> None:
    found = setup(options)
    stream = found.bundle.encoder(**SIZE)
    stream.push(video(9))
    found.bundle.direct_session("encoder").run(np.zeros((1, 9, 3, HEIGHT, WIDTH), np.float32))
    found.bundle.close()
    stream.push(video(4))
    stream.close()
    del stream
    gc.collect()
    assert len(found.trt.engines) == 2 and not any(engine() for engine in found.trt.engines)
    assert found.cuda.held() == {"device": 1, "streams": 3}  # scratch, for what is opened next
    found.bundle = None
    gc.collect()
    assert not found.cuda.held()


METHODS = ("allocate", "allocate_pinned", "copy_in", "work", "copy_out", "synchronize_event")


@pytest.mark.parametrize(
    ("method", "options"), [*((method, PLAIN) for method in METHODS), ("work", GRAPHS), ("launch", GRAPHS)]
)
def test_failed_step_leaves_state_unchanged(
    setup: Make, reference: Bundle, method: str, options: BackendOptions
) -> None:
    found, frames = setup(options), video(37)
    session = found.bundle.step_session("encoder")
    state = session.new_state(1, HEIGHT, WIDTH)
    x = to_network(np.concatenate([frames[:1].repeat(3, axis=0), frames]))[None]
    yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
    short = 4 if method.startswith("allocate") else 8  # then buffers grow in the step that fails
    parts = [session.step(state, x[:, k : k + short], no if k else yes, no) for k in range(0, 32, short)]
    before = state.read()
    found.cuda.fail(method)
    with pytest.raises(DeviceError, match="failed, as the test wants"):
        session.step(state, x[:, 32:40], no, no)
    assert same(state.read(), before)
    parts.append(session.step(state, x[:, 32:40], no, no))
    assert np.array_equal(np.concatenate(parts, axis=1)[0], reference.encode(frames))


def test_interrupted_step_waits_for_device(setup: Make, reference: Bundle) -> None:
    found, frames = setup(), video(17)
    with found.bundle.encoder(**SIZE, chunk=2) as stream:
        parts = [stream.push(frames[:9])]
        found.cuda.fail("synchronize_event", error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            stream.push(frames[9:])
        assert not any(found.cuda.streams.values()), "work on buffers that may now be reused"
        parts += [stream.push(frames[:0]), stream.finish()]
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


def test_failed_write_leaves_state_unchanged(setup: Make) -> None:
    found = setup()
    state = found.new_state()
    before = state.read()
    changed = {name: array + 1 for name, array in before.items()}
    found.cuda.fail("copy_in", after=5)
    with pytest.raises(DeviceError):
        state.write(changed)
    assert same(state.read(), before)
    state.write(changed)
    assert same(state.read(), changed)


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("create_execution_context", ResourceError, "could not make a context"),
        ("set_optimization_profile_async", BundleError, "refused profile 0"),
        ("set_input_shape", BundleError, "refused the shape"),
        ("set_tensor_address", BundleError, "refused the address"),
        ("infer_shapes", BundleError, "cannot infer the shapes"),
        ("execute_async_v3", DeviceError, "a kernel failed"),
        ("execute_async_v3", ResourceError, r"could not run encoder\.onnx: out of memory; use a smaller ch"),
    ],
)
def test_call_that_tensorrt_refuses_is_an_error_and_stream_goes_on(
    setup: Make, reference: Bundle, method: str, error: type[Exception], message: str
) -> None:
    found, frames = setup(), video(9)
    found.trt.refuse.add(method)
    if error is ResourceError:
        found.trt.reason = "Requested amount of GPU memory (9 bytes) could not be allocated."
    with found.bundle.encoder(**SIZE, chunk=2) as stream:
        with pytest.raises(error, match=message):
            stream.push(frames)
        found.trt.refuse.clear()
        parts = [stream.push(frames[:0]), stream.finish()]
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


@pytest.mark.parametrize("method", ["begin_capture", "end_capture", "execute_async_v3"])
def test_step_that_cannot_be_captured_runs_without_graphs(
    setup: Make, reference: Bundle, monkeypatch: Patch, method: str
) -> None:
    found, frames = setup(GRAPHS), video(4 * 15)
    real = FakeContext.execute_async_v3

    def refuse_captured(self: FakeContext, stream: int) -> bool:
        return not found.cuda.capturing and real(self, stream)

    if method == "execute_async_v3":
        monkeypatch.setattr(FakeContext, method, refuse_captured)
    else:
        found.cuda.fail(method)
    assert np.array_equal(stream_once(found, frames), reference.encode(frames))
    assert found.bundle.backend.describe()["cuda_graphs"].startswith("fell back: ")
    gc.collect()
    assert not found.cuda.capturing and not found.cuda.held()["graphs"]


def test_graphs_are_captured_again_when_scratch_moves(setup: Make, reference: Bundle) -> None:
    found, frames = setup(GRAPHS), video(4 * 24)
    with found.bundle.encoder(**SIZE, chunk=2) as stream:
        parts = [stream.push(frames[:48])]
        found.bundle.decode(parts[0][:4], chunk=2)  # needs more scratch memory
        parts += [stream.push(frames[48:]), stream.finish()]
    assert found.cuda.counts["begin_capture"] == 2 + 2
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


@pytest.mark.parametrize("options", [PLAIN, GRAPHS], ids=["plain", "cuda graphs"])
def test_pool_keeps_rows_on_the_device_and_gives_bits_of_onnxruntime(
    setup: Make, reference: Bundle, options: BackendOptions
) -> None:
    found = setup(options)
    clips = [video(frames, seed) for seed, frames in enumerate((9, 26, 17, 13, 5))]
    pool = found.bundle.encoder_pool(**SIZE, rows=3, chunk=2)
    streams = [pool.open() for _ in clips]
    parts: list[list[Any]] = [[] for _ in clips]
    for turn in range(9):  # at each step another one of the streams has no input
        for number, (stream, clip) in enumerate(zip(streams, clips, strict=True)):
            if number != turn % 5 and not stream.feed.closed:
                stream.push(clip[stream.feed.frames_seen :][:8])
                if stream.feed.frames_seen == len(clip):
                    stream.finish()
        for stream, result in pool.step().items():
            parts[streams.index(stream)].append(result)
    while len(pool):
        for stream, result in pool.step().items():
            parts[streams.index(stream)].append(result)
    for clip, found_parts in zip(clips, parts, strict=True):
        assert np.array_equal(np.concatenate(found_parts), reference.encode(clip))
    assert found.cuda.counts["copy_within"]
    pool.close()
    gc.collect()
    assert found.cuda.held()["device"] == 1, "rows that were saved hold memory"


@pytest.mark.parametrize("options", [PLAIN, GRAPHS], ids=["plain", "cuda graphs"])
def test_arrays_on_the_device_stay_there_and_give_bits_of_onnxruntime(
    setup: Make, reference: Bundle, options: BackendOptions
) -> None:
    found, frames = setup(options), video(4 * 9).astype(np.float32) / 127.5 - 1
    memory = found.bundle.step_session("encoder").memory
    latents = reference.encode(frames)
    pixels = reference.decode(latents, pixels="float32")
    given = frames_view(memory.to_device(to_network(frames)), HEIGHT, WIDTH)
    found.bundle.decode(latents, chunk=2)  # so that all buffers are there
    with found.bundle.encoder(**SIZE, chunk=2, output="device") as stream:
        stream.queue(given)
        copied = found.cuda.counts.copy()
        encoded = stream.finish()
        flags = found.cuda.counts["copy_in"] - copied["copy_in"]  # `start` and `end` of each step
        assert flags == 2 * 5 and found.cuda.counts["copy_out"] == copied["copy_out"]
    assert encoded.device == (2, 0) and np.array_equal(memory.to_host(encoded), latents)
    decoded = found.bundle.decode(encoded, chunk=2, pixels="float32", output="device")
    assert np.array_equal(memory.to_host(decoded), pixels)
    assert np.array_equal(found.bundle.decode(encoded, chunk=2, pixels="float32"), pixels)
    with pytest.raises(InputError, match="latents are on cuda:0, and this bundle was opened on the CPU"):
        reference.decode(encoded)
    del given, encoded, decoded, stream
    gc.collect()
    assert found.cuda.held()["device"] == 1, "results hold memory after their last user"


@pytest.mark.parametrize("method", ["allocate", "copy_within"])
def test_failed_step_on_the_device_loses_nothing(setup: Make, reference: Bundle, method: str) -> None:
    found, frames = setup(), video(29)
    memory = found.bundle.step_session("encoder").memory
    with found.bundle.encoder(**SIZE, chunk=2, output="device") as stream:
        parts = [stream.push(frames[:13])]
        found.cuda.fail(method)
        with pytest.raises(DeviceError, match="failed, as the test wants"):
            stream.push(frames[13:])
        parts += [stream.push(frames[:0]), stream.finish()]
    assert np.array_equal(np.concatenate([memory.to_host(part) for part in parts]), reference.encode(frames))


def test_size_outside_of_profiles_is_refused(setup: Make) -> None:
    found = setup()
    with pytest.raises(InputError, match=r"takes batch 1:1:3.*this is batch 1.*32x24.*wfvae build"):
        found.bundle.encoder(height=32, width=WIDTH)
    with pytest.raises(InputError, match="batch 4"):
        found.new_state(4)
    with (
        found.bundle.encoder(**SIZE, chunk=9) as stream,
        pytest.raises(InputError, match="latents 6, 16x24; use another chunk"),
    ):
        stream.push(video(24))


def test_engine_of_the_flavour_that_fits_runs(
    exported: Callable[..., Path], reference: Bundle, tmp_path: Path, monkeypatch: Patch
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(exported(NAME), path)
    cuda = FakeCuda()
    monkeypatch.setattr(cuda, "name_and_capability", lambda: ("Fake RTX", "8.9"))
    rtx = TensorRT(FakeTensorRT(cuda, "1.7.1.116"), RTX)
    build_engines(path, SETTINGS, portable_target(RTX, rtx.version), rtx)
    libraries = [TensorRT(FakeTensorRT(cuda)), rtx]

    def opened() -> Bundle:
        manifest = Manifest.read(path)
        return Bundle(path, manifest, TensorRTBackend(path, manifest, PLAIN, libraries=libraries, cuda=cuda))

    assert not list(path.glob("engines/*.timing-cache"))
    found = opened()
    assert np.array_equal(found.encode(video(9), chunk=2), reference.encode(video(9), chunk=2))
    assert found.backend.describe()["flavour"] == "rtx"
    build_engines(path, SETTINGS, target_here(libraries[0], cuda), libraries[0])
    found = opened()
    assert np.array_equal(found.encode(video(9), chunk=2), reference.encode(video(9), chunk=2))
    assert found.backend.describe()["flavour"] == "tensorrt"  # it was timed on this GPU


def test_changed_engine_never_reaches_tensorrt(built: Callable[..., Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(built(), tmp_path / "bundle"))
    for file in (path / "engines").glob("encoder-*.engine"):
        file.write_bytes(file.read_bytes() + b" ")
    found = Setup(path, PLAIN)
    with pytest.raises(BundleError, match=r"has been changed \(its SHA-256 differs\); build it again: wfvae"):
        found.bundle.encoder(**SIZE)
    assert not found.trt.engines


def test_output_larger_than_its_buffer_is_refused_each_time(setup: Make, monkeypatch: Patch) -> None:
    real = FakeContext.get_tensor_shape
    monkeypatch.setattr(FakeContext, "get_tensor_shape", lambda self, name: (9, *real(self, name)[1:]))
    with setup().bundle.encoder(**SIZE, chunk=2) as stream:
        for data in (video(9), video(0)):
            with pytest.raises(BundleError, match=r"gives latents of shape \(9, .* where \(1, 2, 4, 2, 3\)"):
                stream.push(data)


def test_state_in_use_or_closed_is_refused(setup: Make) -> None:
    state = setup().new_state()
    with state.stepping(), pytest.raises(StreamingError, match="already in a step"):
        state.read()
    state.close()
    with pytest.raises(StreamingError, match="closed"):
        state.read()
