"""The TensorRT build and backend, driven by stand-ins for TensorRT and CUDA. A test of our logic:
nothing here runs on a GPU.

The stand-in engines run the bundle's graphs in ONNX Runtime, on memory that is filled as late as
streams and events allow. So a missing wait, a swapped address, an aliased buffer or a half-written
state shows as wrong bits.
"""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.fake_cuda import FakeCuda
from fixtures.fake_tensorrt import SCRATCH_BYTES, FakeContext, FakeTensorRT
from wfvae.errors import BundleError, InputError, ResourceError, StateError, StreamingError
from wfvae.export.tensorrt.build import build_engines
from wfvae.runtime.backends.nvidia.cuda import DeviceError
from wfvae.runtime.backends.nvidia.tensorrt_backend import TensorRTBackend, TensorRTOptions, target_here
from wfvae.runtime.bundle import Bundle
from wfvae.spec.engines import BuildSettings, Span
from wfvae.spec.manifest import Manifest

HEIGHT, WIDTH = 16, 24
SETTINGS = BuildSettings(Span(1, 1, 3), chunk=2, height=Span.of(HEIGHT), width=Span(8, 24, 32), whole_clip=5)
OPTIONS = TensorRTOptions()
NAME = "4x8x8-trilinear"


def video(frames: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


@dataclass
class Setup:
    """A bundle with stand-in engines, and the stand-ins."""

    path: Path
    cuda: FakeCuda
    trt: FakeTensorRT
    bundle: Bundle

    def reopen(self, options: TensorRTOptions = OPTIONS) -> Bundle:
        manifest = Manifest.read(self.path)
        return Bundle(
            self.path, manifest, TensorRTBackend(self.path, manifest, options, trt=self.trt, cuda=self.cuda)
        )


@pytest.fixture(scope="module")
def built(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`built(**export options)`: a bundle with stand-in engines."""
    made: dict[str, Path] = {}

    def build(**options: Any) -> Path:
        key = repr(options)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("engines") / "bundle"
            shutil.copytree(exported(NAME, **options), made[key])
            cuda = FakeCuda()
            trt = FakeTensorRT(cuda)
            build_engines(made[key], SETTINGS, target_here(trt, cuda), trt)
        return made[key]

    return build


@pytest.fixture
def setup(built: Callable[..., Path]) -> Callable[..., Setup]:
    """`setup(options, **export options)`: such a bundle, opened on new stand-ins."""

    def open_(options: TensorRTOptions = OPTIONS, **exports: Any) -> Setup:
        cuda = FakeCuda()
        found = Setup(built(**exports), cuda, FakeTensorRT(cuda), None)  # type: ignore[arg-type]
        found.bundle = found.reopen(options)
        return found

    return open_


@pytest.fixture(scope="module")
def reference(opened: Callable[..., Bundle]) -> Bundle:
    """The same bundle on ONNX Runtime, which also computes behind the stand-in: so equal bits are
    to be had.
    """
    return opened(NAME)


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "cuda graphs"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_streams_give_the_bits_of_onnxruntime(
    setup: Callable[..., Setup], reference: Bundle, chunk: int, graphs: bool
) -> None:
    bundle = setup(TensorRTOptions(cuda_graphs=graphs)).bundle
    frames = video(26)
    latents = bundle.encode(frames, chunk=chunk)
    assert np.array_equal(latents, reference.encode(frames, chunk=chunk))
    assert np.array_equal(
        bundle.decode(latents, frames=26, chunk=chunk), reference.decode(latents, frames=26, chunk=chunk)
    )


@pytest.mark.parametrize("latents", [1, 3, 5])
def test_whole_clips_through_the_direct_engine(
    setup: Callable[..., Setup], reference: Bundle, latents: int
) -> None:
    found = setup()
    for direction in ("encoder", "decoder"):
        frames = 1 + 4 * (latents - 1)
        shape = (
            (1, frames, 3, HEIGHT, WIDTH)
            if direction == "encoder"
            else (1, latents, 4, HEIGHT // 8, WIDTH // 8)
        )
        x = np.random.default_rng(1).standard_normal(shape, np.float32)
        session = found.bundle.direct_session(direction)  # type: ignore[arg-type]
        for again in (False, True):
            found.cuda.calls.clear()
            assert np.array_equal(session.run(x), reference.direct_session(direction).run(x))  # type: ignore[arg-type]
            assert not again or not {"allocate", "allocate_pinned"} & set(found.cuda.names()), (
                "buffers are reused"
            )
    with pytest.raises(
        InputError, match="takes batch 1:1:2, latents 3:5:5"
    ):  # a clip of two latents leaves empty tensors
        session.run(x[:, :1].repeat(2, axis=1))


def addresses(found: Setup, prefix: str) -> list[frozenset[int]]:
    """The addresses of each run's tensors with this prefix."""
    runs = [call[1] for call in found.cuda.calls if call[0] == "execute"]
    return [frozenset(place for name, place in run.items() if name.startswith(prefix)) for run in runs]


def test_state_buffers_alternate_and_are_never_copied(setup: Callable[..., Setup]) -> None:
    found = setup()
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        stream.push(video(1 + 8 * 4))
        before = found.cuda.held()
        found.cuda.calls.clear()
        stream.push(video(8 * 3))
        read, written = addresses(found, "state."), addresses(found, "next_state.")
        assert len(read) == 3
        assert read == [read[0], written[0], read[0]] and written == [written[0], read[0], written[0]]
        assert not read[0] & written[0]
        # One step: the frames and two flags in, the latents out. Nothing is allocated, and no state
        # is copied.
        names = found.cuda.names()
        assert (names.count("copy_in"), names.count("copy_out"), names.count("allocate")) == (9, 3, 0)
        assert found.cuda.held() == before


def test_work_and_copies_have_streams_of_their_own(setup: Callable[..., Setup]) -> None:
    found = setup()
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        stream.push(video(9))
        found.cuda.calls.clear()
        stream.push(video(8))
    device = stream.session.engine.device  # type: ignore[attr-defined]
    calls = [
        call
        for call in found.cuda.calls
        if call[0] in ("copy_in", "copy_out", "execute", "wait", "record", "synchronize_event")
    ]
    assert [call[0] for call in calls[:10]] == [
        *["copy_in", "copy_in", "copy_in", "record", "wait"],
        *["execute", "record", "wait", "copy_out", "record"],
    ]
    assert calls[10][0] == "synchronize_event"
    assert {call[3] for call in calls if call[0] == "copy_in"} == {device.copies_in}
    assert {call[3] for call in calls if call[0] == "copy_out"} == {device.copies_out}
    assert {call[2] for call in calls if call[0] == "execute"} == {device.compute}
    assert len({device.copies_in, device.copies_out, device.compute}) == 3
    # A step waits for its own result, not for everything that others have under way.
    assert "synchronize" not in [
        call[0] for call in found.cuda.calls[: found.cuda.names().index("synchronize_event")]
    ]


def test_encoder_and_decoder_share_one_scratch_area(setup: Callable[..., Setup]) -> None:
    found = setup()
    latents = found.bundle.encode(video(17), chunk=2)
    device = found.bundle.step_session("encoder").engine.device  # type: ignore[attr-defined]
    # What the shapes of a step of two latents need, not what the engine's largest profile (5)
    # would.
    assert device.scratch.size == -(-2 * SCRATCH_BYTES["encoder"] // 256) * 256
    found.bundle.decode(latents, chunk=2)
    assert device.scratch.size == -(-2 * SCRATCH_BYTES["decoder"] // 256) * 256
    assert len({run.scratch[0] for run in found.trt.runs[-3:]}) == 1
    # With no stream open, scratch is all that is held; only one was ever held at a time.
    gc.collect()
    assert found.cuda.held()["device"] == 1


def test_verification_runs_on_engines(setup: Callable[..., Setup]) -> None:
    pytest.importorskip("wfvae.export.parity")
    from wfvae.export.parity import verify

    result = verify(setup().bundle, video(17))
    assert result.passed
    assert {check.backend for check in result.checks} == {"tensorrt"}
    # Bit by bit, since ONNX Runtime also computes behind the stand-in.
    compared = [check for check in result.checks if check.name == "backend = onnxruntime"]
    assert [check.direction for check in compared] == ["encode", "decode"] and all(
        check.equal_bits for check in compared
    )
    certificate = result.certificate("video.mp4")
    wanted = {
        "version": "11.4.0",
        "gpu": "Fake GPU",
        "driver": "580.65.06",
        "tactic_sources": "JIT_CONVOLUTIONS",
    }
    assert wanted.items() <= certificate["backend"].items()


def test_an_engine_with_wrong_numbers_is_seen_and_searched(
    setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search itself is replaced: it needs TensorRT, see `tests/export/test_backend_search.py`."""
    from fixtures.fake_tensorrt import FakeEngine
    from wfvae.export.parity import backend_search, verify

    real = FakeEngine.compute

    def compute(self: FakeEngine, inputs: Any, shapes: Any) -> Any:
        found = real(self, inputs, shapes)
        return {**found, "latents": found["latents"] + np.float32(0.01)} if "latents" in found else found

    monkeypatch.setattr(FakeEngine, "compute", compute)
    asked: list[tuple[str, tuple[int, ...]]] = []
    found = "some tensor"

    def look(job: Any, reference: Bundle, steps: Any, rule: Any) -> str:
        asked.append((job.direction, steps))
        assert reference.backend.describe()["provider"] == "CPUExecutionProvider" and rule.tolerance == 1e-4
        return found

    monkeypatch.setattr(backend_search, "search_backend", look)
    result = verify(setup().bundle, video(17))
    bad = [check for check in result.checks if not check.passed]
    assert [(check.name, check.direction, check.first_difference) for check in bad] == [
        ("backend = onnxruntime", "encode", found)
    ]
    assert asked == [("encoder", (4, 1))]


def test_bfloat16_cannot_be_compared_with_onnxruntime_and_it_is_said(setup: Callable[..., Setup]) -> None:
    from wfvae.export.parity import verify

    result = verify(setup(precision="bf16", direct=False).bundle, video(9))  # the stand-in gives zeros
    assert not {check.name for check in result.checks} & {"backend = onnxruntime"}
    missing = {(entry.name, entry.direction): entry.reason for entry in result.not_available}
    assert all(
        "no bfloat16 convolution" in missing["backend = onnxruntime", verb] for verb in ("encode", "decode")
    )


def test_many_streams_in_one_batch(setup: Callable[..., Setup], reference: Bundle) -> None:
    found = setup()
    clips = {
        name: video(count, seed)
        for seed, (name, count) in enumerate({"a": 9, "b": 14, "c": 21, "d": 1}.items())
    }
    with found.bundle.encoder_pool(height=HEIGHT, width=WIDTH, rows=3, chunk=2) as pool:
        results: dict[str, list[Any]] = {name: [] for name in clips}
        for name, part in pool.run({name: np.array_split(clip, 3) for name, clip in clips.items()}):
            results[name].append(part)
    for name, clip in clips.items():
        assert np.array_equal(np.concatenate(results[name]), reference.encode(clip)), name


def test_threads_with_streams_of_their_own(setup: Callable[..., Setup], reference: Bundle) -> None:
    found = setup()
    # The stand-in itself is for one thread: this covers the locks around giving work, not the
    # waiting beside each other.
    clips = [video(13, seed) for seed in range(3)]
    results: list[Any] = [None] * 3
    gate = threading.Lock()

    def encode(index: int) -> None:
        with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=1) as stream:
            parts = []
            for frame in clips[index]:
                with gate:
                    parts.append(stream.push(frame[None]))
            with gate:
                parts.append(stream.finish())
        results[index] = np.concatenate(parts)

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for clip, result in zip(clips, results, strict=True):
        assert np.array_equal(result, reference.encode(clip))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_snapshots_go_through_host_copies(
    setup: Callable[..., Setup], opened: Callable[..., Bundle], precision: str
) -> None:
    found = setup(precision=precision)
    frames = video(21)
    expected = opened(NAME, precision=precision).encode(frames, chunk=2)
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        parts = [stream.push(frames[:11])]
        saved = stream.snapshot()
        stream.push(frames[:3])  # what came after a snapshot does not count
    with found.bundle.restore(saved, chunk=1) as stream:
        parts += [stream.push(frames[11:]), stream.finish()]
    assert np.array_equal(np.concatenate(parts), expected)


def test_bfloat16_state_is_kept_as_bits(setup: Callable[..., Setup]) -> None:
    found = setup(precision="bf16")
    session = found.bundle.step_session("decoder")
    state = session.new_state(2, HEIGHT, WIDTH)
    before = state.read()
    kinds = {spec.name: spec.dtype for spec in session.graph.states}
    assert {array.dtype.name for name, array in before.items() if kinds[name] == "bfloat16"} == {"uint16"}
    assert {array.dtype.name for name, array in before.items() if kinds[name] == "int32"} <= {"int32"}
    assert not any(array.any() for array in before.values())
    x, no = np.zeros((2, 1, 4, HEIGHT // 8, WIDTH // 8), np.float32), np.zeros(2, np.bool_)
    for _ in range(3):  # the stand-in only counts here
        session.step(state, x, no, no)
    assert all((array == 3).all() for array in state.read().values())
    state.write({name: array + 4 for name, array in state.read().items()})
    assert all((array == 7).all() for array in state.read().values())


def stream_once(found: Setup, frames: Any) -> Any:
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        return np.concatenate([stream.push(frames), stream.finish()])


FAILURES = (
    "allocate",
    "allocate_pinned",
    "copy_in",
    "wait",
    "record",
    "work",
    "copy_out",
    "synchronize_event",
)


@pytest.mark.parametrize(
    ("method", "graphs"), [*[(method, False) for method in FAILURES], ("work", True), ("launch", True)]
)
def test_a_failed_step_leaves_the_state_and_loses_nothing(
    setup: Callable[..., Setup], reference: Bundle, method: str, graphs: bool
) -> None:
    found = setup(TensorRTOptions(cuda_graphs=graphs))
    frames = video(37)
    stream = found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=1 if method.startswith("allocate") else 2)
    parts = [stream.push(frames[:21])]
    state = stream._state
    assert state is not None
    before = state.read()
    stream._chunk = 2  # a longer step than before, so that buffers must grow
    found.cuda.fail(method)
    with pytest.raises((DeviceError, ResourceError), match="failed, as the test wants"):
        stream._feed.push(frames[21:])
        stream._feed.close(None)
        list(stream._advance())
    assert not found.cuda.failures, "the step never came to the call that was to fail"
    after = state.read()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    parts.append(stream.finish())
    stream.close()
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


@pytest.mark.parametrize("method", ["work", "synchronize_event"])
def test_an_interrupt_in_a_step_waits_for_the_device(
    setup: Callable[..., Setup], reference: Bundle, method: str
) -> None:
    found = setup()
    frames = video(17)
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        parts = [stream.push(frames[:9])]
        found.cuda.fail(method, error=KeyboardInterrupt())  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            stream.push(frames[9:])
        assert not any(found.cuda.streams.values()), (
            "work is still under way on buffers that may now be reused"
        )
        parts += [stream.push(frames[:0]), stream.finish()]
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


def test_out_of_memory_is_one_error_and_everything_is_given_back(
    setup: Callable[..., Setup], reference: Bundle
) -> None:
    found = setup()
    frames = video(9)
    expected = reference.encode(frames)
    assert np.array_equal(stream_once(found, frames), expected)
    need, idle = found.cuda.peak, found.cuda.held()
    errors = 0
    for limit in np.linspace(found.cuda.held_bytes(), need - 1, 6).astype(int):
        found.cuda.limit = limit
        with pytest.raises(ResourceError, match="no memory"):
            stream_once(found, frames)
        gc.collect()
        assert found.cuda.held() == idle, limit
        errors += 1
    found.cuda.limit = need
    assert np.array_equal(stream_once(found, frames), expected)
    assert errors == 6


def test_growing_scratch_out_of_memory_keeps_the_other_direction(
    setup: Callable[..., Setup], reference: Bundle
) -> None:
    found = setup()
    frames = video(17)
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        parts = [stream.push(frames[:9])]
        session = found.bundle.step_session("decoder")
        state = session.new_state(1, HEIGHT, WIDTH)
        x, no = np.zeros((1, 2, 4, HEIGHT // 8, WIDTH // 8), np.float32), np.zeros(1, np.bool_)
        real = found.cuda.allocate

        def allocate(size: int) -> int:
            if size == -(-2 * SCRATCH_BYTES["decoder"] // 256) * 256:
                raise ResourceError("GPU 0 has no memory for more scratch")
            return real(size)

        found.cuda.allocate = allocate  # type: ignore[method-assign]
        scratch = session.engine.device.scratch  # type: ignore[attr-defined]
        before = scratch.size
        with pytest.raises(ResourceError, match="more scratch"):
            session.step(state, x, ~no, no)
        assert scratch.size == before and scratch.address
        parts += [stream.push(frames[9:]), stream.finish()]
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "cuda graphs"])
def test_everything_is_given_back_at_the_end(setup: Callable[..., Setup], graphs: bool) -> None:
    found = setup(TensorRTOptions(cuda_graphs=graphs))
    stream_once(found, video(25))
    stream = found.bundle.encoder(height=HEIGHT, width=WIDTH)
    stream.push(video(9))
    found.bundle.close()
    stream.push(video(4))  # a stream keeps what it needs
    stream.close()
    del stream
    found.bundle = None  # type: ignore[assignment]
    found.trt.runs.clear()
    gc.collect()
    assert not found.cuda.held()


def test_closing_a_bundle_gives_its_engines_back(setup: Callable[..., Setup]) -> None:
    found = setup()
    stream_once(found, video(9))
    x = np.zeros((1, 9, 3, HEIGHT, WIDTH), np.float32)
    found.bundle.direct_session("encoder").run(x)
    engines = [weakref.ref(run.engine) for run in found.trt.runs]
    found.trt.runs.clear()
    found.bundle.close()
    gc.collect()
    assert engines and not any(engine() for engine in engines)
    assert found.cuda.held() == {
        "device": 1,
        "streams": 3,
    }, "but for scratch memory and streams, for what is opened next"


@pytest.mark.parametrize("after", [0, 5])
def test_a_state_is_never_half_written(setup: Callable[..., Setup], after: int) -> None:
    found = setup()
    session = found.bundle.step_session("encoder")
    state = session.new_state(1, HEIGHT, WIDTH)
    before = state.read()
    found.cuda.fail("copy_in", after)
    with pytest.raises(DeviceError):
        state.write({name: array + 1 for name, array in before.items()})
    assert all(np.array_equal(array, before[name]) for name, array in state.read().items())
    state.write({name: array + 1 for name, array in before.items()})
    assert all(np.array_equal(array, before[name] + 1) for name, array in state.read().items())


def test_a_state_is_given_back_when_its_work_is_done(setup: Callable[..., Setup]) -> None:
    found = setup()
    session = found.bundle.step_session("encoder")
    state, done = session.new_state(1, HEIGHT, WIDTH), []
    found.cuda.enqueue(session.engine.device.compute, lambda: done.append(True))  # type: ignore[attr-defined]
    state.close()  # type: ignore[attr-defined]
    assert done and not found.cuda.held()["pinned"]


def test_outputs_larger_than_their_buffers_are_refused_each_time(
    setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = setup()
    real = FakeContext.get_tensor_shape
    monkeypatch.setattr(FakeContext, "get_tensor_shape", lambda self, name: (9, *real(self, name)[1:]))
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        for data in (video(9), video(9)[:0]):
            with pytest.raises(
                BundleError, match=r"gives latents of shape \(9, .* where \(1, 2, 4, 2, 3\) is expected"
            ):
                stream.push(data)


def test_a_state_in_use_or_closed_is_refused(setup: Callable[..., Setup]) -> None:
    session = setup().bundle.step_session("encoder")
    state = session.new_state(1, HEIGHT, WIDTH)
    with state.stepping(), pytest.raises(StreamingError, match="already in a step"):  # type: ignore[attr-defined]
        state.read()
    state.close()  # type: ignore[attr-defined]
    with pytest.raises(StreamingError, match="closed"):
        state.read()


# CUDA graphs --------------------------------------------------------------------------------------


def test_cuda_graphs_are_captured_once_per_direction_of_the_swap(
    setup: Callable[..., Setup], reference: Bundle
) -> None:
    found = setup(TensorRTOptions(cuda_graphs=True))
    frames = video(4 * 18)
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        parts = [stream.push(frames[:61])]  # eight steps
        names = found.cuda.names()
        # Two plain runs, two captures, and launches from then on.
        assert names.count("begin_capture") == names.count("end_capture") == 2
        assert names.count("execute") == 4 and names.count("launch") == 8 - 2
        parts += [stream.push(frames[61:]), stream.finish()]
        assert found.cuda.names().count("begin_capture") == 2
        assert found.cuda.held()["graphs"] == 2
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))
    assert found.bundle.backend.describe()["cuda_graphs"] == "on"
    gc.collect()
    assert found.cuda.held()["graphs"] == 0


def test_each_graph_has_a_context_that_nothing_else_touches(setup: Callable[..., Setup]) -> None:
    found = setup(TensorRTOptions(cuda_graphs=True))
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        stream.push(video(4 * 14))
        captured = {id(run) for run in found.trt.runs}
        stream.push(video(4))
        stream.finish()  # a short step, which uses the shared context of its profile
    plain = {id(run) for run in found.trt.runs} - captured
    assert len(captured) >= 2 and plain


@pytest.mark.parametrize("method", ["begin_capture", "end_capture", "execute"])
def test_what_cannot_be_captured_runs_without_graphs(
    setup: Callable[..., Setup], reference: Bundle, method: str
) -> None:
    found = setup(TensorRTOptions(cuda_graphs=True))
    frames = video(4 * 15)
    if method == "execute":
        real = found.cuda.begin_capture

        def begin(stream: int) -> None:
            real(stream)
            found.trt.refuse.add("execute_async_v3")

        def end(stream: int) -> int:
            found.trt.refuse.clear()
            return FakeCuda.end_capture(found.cuda, stream)

        found.cuda.begin_capture, found.cuda.end_capture = begin, end  # type: ignore[method-assign]
    else:
        found.cuda.fail(method)
    assert np.array_equal(stream_once(found, frames), reference.encode(frames))
    assert found.bundle.backend.describe()["cuda_graphs"].startswith("fell back: ")
    assert not found.cuda.capturing
    gc.collect()
    assert found.cuda.held()["graphs"] == 0


def test_graphs_are_captured_anew_when_memory_moves(setup: Callable[..., Setup], reference: Bundle) -> None:
    found = setup(TensorRTOptions(cuda_graphs=True))
    frames = video(4 * 24)
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        parts = [stream.push(frames[:48])]
        assert found.cuda.names().count("begin_capture") == 2
        found.bundle.decode(parts[0][:4], chunk=2)  # needs more scratch memory, which then lies elsewhere
        parts += [stream.push(frames[48:]), stream.finish()]
        assert found.cuda.names().count("begin_capture") >= 4
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


def test_a_state_that_is_dropped_during_a_capture_does_not_spoil_it(
    setup: Callable[..., Setup], reference: Bundle
) -> None:
    """The garbage collector may come at any place."""
    found = setup(TensorRTOptions(cuda_graphs=True))
    dropped = [found.bundle.step_session("encoder").new_state(1, HEIGHT, WIDTH)]
    real = found.cuda.begin_capture

    def begin(stream: int) -> None:
        real(stream)
        dropped.clear()
        gc.collect()

    found.cuda.begin_capture = begin  # type: ignore[method-assign]
    frames = video(4 * 14)
    assert np.array_equal(stream_once(found, frames), reference.encode(frames))
    assert not dropped and found.bundle.backend.describe()["cuda_graphs"] == "on"
    gc.collect()
    assert found.cuda.held()["pinned"] == 0


def test_a_failure_in_another_thread_waits_for_the_end_of_a_capture(setup: Callable[..., Setup]) -> None:
    found = setup()
    device = found.bundle.step_session("encoder").engine.device  # type: ignore[attr-defined]
    found.cuda.calls.clear()
    with device.enqueuing():
        thread = threading.Thread(target=device.drain)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and "synchronize" not in found.cuda.names()
    thread.join(10)
    assert found.cuda.names().count("synchronize") == 3


# What is refused ----------------------------------------------------------------------------------


def test_sizes_that_the_engine_does_not_take(setup: Callable[..., Setup]) -> None:
    bundle = setup().bundle
    with pytest.raises(InputError, match=r"takes batch 1:1:3.*this is batch 1.*32x24.*wfvae build"):
        bundle.encoder(height=32, width=WIDTH)
    with pytest.raises(InputError, match="batch 4"):
        bundle.step_session("encoder").new_state(4, HEIGHT, WIDTH)
    with (
        bundle.encoder(height=HEIGHT, width=WIDTH, chunk=9) as stream,
        pytest.raises(InputError, match="latents 6, 16x24; use another chunk"),
    ):
        stream.push(video(24))


def test_another_gpu_or_version_is_refused_with_the_command(setup: Callable[..., Setup]) -> None:
    found = setup()
    command = "wfvae build .*--batch 1:1:3 --chunk 2 --height 16 --width 8:24:32 --whole-clip 5"
    found.cuda.name = "Other GPU"
    with pytest.raises(
        BundleError,
        match=f"built with TensorRT 11.4.0 on Fake GPU .*this is TensorRT 11.4.0 on Other GPU.*{command}",
    ):
        found.reopen().encoder(height=HEIGHT, width=WIDTH)
    found.cuda.name, found.cuda.capability = "Fake GPU", "8.0"
    with pytest.raises(BundleError, match=r"compute capability 8\.0"):
        found.reopen().encoder(height=HEIGHT, width=WIDTH)
    found.cuda.capability, found.trt.__version__ = "9.0", "10.13.3"
    with pytest.raises(BundleError, match=r"and this is TensorRT 10\.13\.3"):
        found.reopen().encoder(height=HEIGHT, width=WIDTH)
    found.trt.__version__ = "11.4.0"
    with pytest.raises(BundleError, match=r"TF32 off, and on was asked for.*--tf32"):
        found.reopen(TensorRTOptions(tf32=True)).encoder(height=HEIGHT, width=WIDTH)


def test_a_changed_engine_never_reaches_tensorrt(setup: Callable[..., Setup], tmp_path: Path) -> None:
    found = setup()
    copy = tmp_path / "bundle"
    shutil.copytree(found.path, copy)
    found.path = copy
    for file in (copy / "engines").glob("encoder-*.engine"):
        file.write_bytes(file.read_bytes() + b" ")
    deserialized: list[bytes] = []
    bundle = found.reopen()
    bundle.backend._runtime.deserialize_cuda_engine = deserialized.append  # type: ignore[attr-defined]
    with pytest.raises(
        BundleError, match=r"has been changed \(its SHA-256 differs\); build it again: wfvae build"
    ):
        bundle.encoder(height=HEIGHT, width=WIDTH)
    assert not deserialized


def test_an_engine_of_other_tensors_is_refused(
    setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = setup()
    from fixtures.fake_tensorrt import FakeEngine

    monkeypatch.setattr(FakeEngine, "get_tensor_dtype", lambda self, name: self.trt.DataType.HALF)
    with pytest.raises(
        BundleError,
        match=(
            r"is not the engine that the manifest describes: it has frames as 3 instead of float32; .* more;"
            r" wfvae build"
        ),
    ):
        found.bundle.encoder(height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("create_execution_context", ResourceError),
        ("set_optimization_profile_async", BundleError),
        ("set_input_shape", BundleError),
        ("set_tensor_address", BundleError),
        ("infer_shapes", BundleError),
        ("execute_async_v3", DeviceError),
    ],
)
def test_what_tensorrt_refuses_is_an_error(
    setup: Callable[..., Setup], reference: Bundle, method: str, error: type[Exception]
) -> None:
    found = setup()
    frames = video(9)
    found.trt.refuse.add(method)
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        with pytest.raises(error, match="TensorRT"):
            stream.push(frames)
        found.trt.refuse.clear()
        parts = [stream.push(frames[:0]), stream.finish()]
    assert np.array_equal(np.concatenate(parts), reference.encode(frames))


def test_tensorrts_want_of_memory_is_a_resource_error(setup: Callable[..., Setup]) -> None:
    found = setup()
    found.trt.refuse.add("execute_async_v3")
    with found.bundle.encoder(height=HEIGHT, width=WIDTH, chunk=2) as stream:
        with pytest.raises(DeviceError, match=r"could not run encoder\.onnx: a kernel failed"):
            stream.push(video(9))
        found.trt.reason = "Requested amount of GPU memory (9 bytes) could not be allocated."
        with pytest.raises(
            ResourceError,
            match=r"could not run encoder\.onnx: out of memory; use a smaller chunk.*could not be allocated",
        ):
            stream.push(video(9)[:0])


def test_a_snapshot_of_another_size_is_refused(setup: Callable[..., Setup]) -> None:
    bundle = setup().bundle
    with bundle.encoder(height=HEIGHT, width=16) as stream:
        stream.push(video(5)[:, :, :16])
        saved = stream.snapshot()
    with bundle.encoder(height=HEIGHT, width=WIDTH) as stream, pytest.raises(StateError, match="16x16"):
        stream.restore(saved)


def test_options_are_described(setup: Callable[..., Setup]) -> None:
    found = setup()
    described = found.bundle.backend.describe()
    assert described == {
        "name": "tensorrt",
        "version": "11.4.0",
        "device": "cuda:0",
        "gpu": "Fake GPU",
        "compute_capability": "9.0",
        "driver": "580.65.06",
        "tactic_sources": "no engine is open",
        "tf32": "false",
        "cuda_graphs": "off",
    }
    session = found.bundle.step_session("encoder")
    assert found.bundle.backend.describe()["tactic_sources"] == "JIT_CONVOLUTIONS" and session
