"""OpenVINO as backend: the same streams, the same bits whatever the plan, and what it refuses."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.program import Program, clip, save
from wfvae.errors import BundleError, InputError, MissingExtraError, ResourceError
from wfvae.export.parity.rules import BOUNDS, EXACT, model_rule, plan_rule, stream_rule
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.backends.bfloat16 import narrow, widen
from wfvae.runtime.backends.openvino import open_core
from wfvae.runtime.backends.openvino_norms import norm_without_turning

ov = pytest.importorskip("openvino", reason="needs the extra openvino: pip install 'wfvae[openvino]'")
FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
HINTS = ("fp32", "bf16")
NAME = FIXTURES[0]
HEIGHT, WIDTH, FRAMES = 20, 27, 22
Opener = Callable[..., Bundle]


@pytest.fixture(scope="module")
def opened_here(exported: Callable[..., Path]) -> Opener:
    """`opened_here(name, hint, **export options)`: the bundle opened in OpenVINO, shared by the
    tests of this file.
    """

    @functools.cache
    def open_(name: str, hint: str = "fp32", **options: Any) -> Bundle:
        if hint == "bf16" and not computes_in_bf16():
            pytest.skip("OpenVINO does not list BF16 for this CPU")
        return open_bundle(exported(name, **options), "openvino", precision_hint=hint, threads=1)

    return open_


def computes_in_bf16() -> bool:
    return "BF16" in open_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def video(
    frames: int = FRAMES, seed: int = 0, height: int = HEIGHT, width: int = WIDTH
) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def decode(bundle: Bundle, latents: Any, **options: Any) -> Any:
    return bundle.decode(latents, pixels="float32", **options)


def same_bits(a: Any, b: Any) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# What streams give --------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("name", FIXTURES[1:])
def test_any_plan_gives_the_bits_of_one_call(opened_here: Opener, name: str, hint: str) -> None:
    """The first fixture is verified with all that `wfvae verify` tries, below."""
    bundle = opened_here(name, hint)
    frames = video(1 + 4 * bundle.ratio)
    latents = bundle.encode(frames, chunk=100)
    pictures = decode(bundle, latents, chunk=100)
    for chunk in (1, 3):
        assert same_bits(bundle.encode(frames, chunk=chunk), latents), chunk
        assert same_bits(decode(bundle, latents, chunk=chunk), pictures), chunk


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("name", FIXTURES[1:])
def test_results_are_those_of_onnxruntime(
    opened_here: Opener, opened: Callable[..., Bundle], name: str, hint: str
) -> None:
    here, there = opened_here(name, hint), opened(name)
    latents = there.encode(video())
    pairs = [(here.encode(video()), latents), (decode(here, latents), decode(there, latents))]
    for ours, theirs in pairs:
        error = float(np.abs(ours - theirs).max())
        assert error <= (1e-5 if hint == "fp32" else 0.05 * max(1.0, float(np.abs(theirs).max())))
        assert (error > 1e-3) == (hint == "bf16")  # so the hint is what it was computed in


@pytest.mark.parametrize("graph", ["encoder", "decoder", "encoder.direct", "decoder.direct"])
def test_norms_run_without_turning_frames(exported: Callable[..., Path], graph: str) -> None:
    model = ov.Core().read_model(str(exported(NAME) / f"{graph}.onnx"))
    norms = [node.get_type_name() for node in model.get_ops()].count("MVN")
    assert norm_without_turning(model, coarse=False) == norms > 5
    after = model.get_ordered_ops()
    assert "MVN" not in {node.get_type_name() for node in after}
    # What is left turns queries, keys, values, scores and the result of attention, which is block 1
    # of `mid`.
    turned = [node.get_friendly_name() for node in after if node.get_type_name() == "Transpose"]
    assert turned
    assert all(name.startswith(f"{graph.partition('.')[0]}.mid.1/") for name in turned), turned
    assert norm_without_turning(model, coarse=False) == 0


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("mean", [0, 1, 10])
def test_a_norm_without_turning_is_that_of_the_definition(mean: float, hint: str) -> None:
    """Not necessarily that of OpenVINO's norm, but in bf16 not much farther from the definition.
    With one centring it would be, at 10.
    """
    if hint == "bf16" and not computes_in_bf16():
        pytest.skip("OpenVINO does not list BF16 for this CPU")
    rng = np.random.default_rng(0)
    images = (mean + rng.standard_normal((2, NORM_CHANNELS, 12, 16))).astype(np.float32)
    wide = images.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    exact = (
        centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6) * NORM_SCALE[:, None, None]
        + NORM_SHIFT[:, None, None]
    )

    def error(model: Any) -> float:
        found = open_core().compile_model(
            model, "CPU", {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[hint]}
        )(images)[0]
        return float(np.sqrt(((found - exact) ** 2).mean()))

    own, ours = turned_norm(), turned_norm()
    assert norm_without_turning(ours, coarse=hint == "bf16") == 1
    assert error(ours) < (1e-6 * (1 + mean) if hint == "fp32" else 1.6 * error(own))


@pytest.mark.parametrize(
    "other",
    [
        {"order": [0, 3, 2, 1]},
        {"back": [0, 3, 2, 1]},
        {"axes": [2]},
        {"axes": [2, 3]},
        {"variance": False},
        {"users": 2},
        {"scaled_by": "input"},
    ],
)
def test_a_norm_that_looks_otherwise_stays(other: Any) -> None:
    model = turned_norm(**other)
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    assert norm_without_turning(model, coarse=False) == 0
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before


def test_norms_of_half_precision_graphs_stay(exported: Callable[..., Path]) -> None:
    model = ov.Core().read_model(str(exported(NAME, precision="fp16") / "decoder.onnx"))
    assert norm_without_turning(model, coarse=False) == 0


NORM_CHANNELS = 64
NORM_SCALE, NORM_SHIFT = np.random.default_rng(1).standard_normal((2, NORM_CHANNELS)).astype(np.float32)


def turned_norm(
    order: Any = (0, 2, 3, 1),
    back: Any = (0, 3, 1, 2),
    axes: Any = (3,),
    variance: bool = True,
    users: int = 1,
    scaled_by: str = "constant",
) -> Any:
    """A graph as a convolution and ONNX's LayerNormalization between two transposes become in
    OpenVINO.
    """
    op = ov.opset13
    images = op.parameter([-1, NORM_CHANNELS, -1, -1], np.float32)
    same = op.constant(np.eye(NORM_CHANNELS, dtype=np.float32)[:, :, None, None])
    turned = op.transpose(
        op.convolution(images, same, [1, 1], [0, 0], [0, 0], [1, 1]), op.constant(np.array(order))
    )
    unit = op.mvn(turned, op.constant(np.array(axes)), variance, 1e-6, "inside_sqrt")
    scale: Any = op.constant(NORM_SCALE)
    given = [images]
    if scaled_by == "input":
        scale = op.parameter([NORM_CHANNELS], np.float32)
        given.append(scale)
    result = op.add(op.multiply(unit, scale), op.constant(NORM_SHIFT))
    turned_back = op.transpose(result, op.constant(np.array(back)))
    return ov.Model([turned_back, *[op.relu(unit)] * (users - 1)], given)


@pytest.mark.parametrize("hint", HINTS)
def test_rows_of_a_pool_are_as_alone(opened_here: Opener, hint: str) -> None:
    bundle = opened_here(NAME, hint)
    clips = {seed: video(frames, seed) for seed, frames in ((0, 22), (1, 9), (2, 14))}
    found: dict[int, list[Any]] = {seed: [] for seed in clips}
    with bundle.encoder_pool(height=HEIGHT, width=WIDTH, rows=2, chunk=2) as pool:
        for seed, part in pool.run({seed: np.array_split(frames, 4) for seed, frames in clips.items()}):
            found[seed].append(part)
    for seed, frames in clips.items():
        assert same_bits(np.concatenate(found[seed]), bundle.encode(frames)), seed


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_snapshots_go_on_with_the_same_bits(opened_here: Opener, direction: str, hint: str) -> None:
    bundle = opened_here(NAME, hint)
    latents = bundle.encode(video())
    data, expected = (video(), latents) if direction == "encoder" else (latents, bundle.decode(latents))
    with getattr(bundle, direction)(
        height=HEIGHT if direction == "encoder" else 24, width=WIDTH if direction == "encoder" else 32
    ) as stream:
        parts = [stream.push(data[: len(data) // 2])]
        saved = stream.capture()
        # As the manifest says, whatever it is held in.
        assert {name: str(array.dtype) for name, array in saved.state.items()} == {
            spec.name: spec.dtype for spec in stream.spec.states
        }
    with bundle.restore(saved.to_bytes(), chunk=1) as stream:
        parts += [stream.push(data[len(data) // 2 :]), stream.finish()]
    assert same_bits(np.concatenate(parts), expected)


def test_snapshots_pass_between_backends(opened_here: Opener, opened: Callable[..., Bundle]) -> None:
    here, there = opened_here(NAME), opened(NAME)
    expected = there.encode(video())
    for first, second in ((here, there), (there, here)):
        with first.encoder(height=HEIGHT, width=WIDTH) as stream:
            parts = [stream.push(video()[:11])]
            saved = stream.snapshot()
        with second.restore(saved) as stream:
            parts += [stream.push(video()[11:]), stream.finish()]
        assert np.abs(np.concatenate(parts) - expected).max() <= 1e-5


def test_other_precisions_and_sizes(opened_here: Opener, opened: Callable[..., Bundle]) -> None:
    fixed = opened_here(NAME, size=(24, 32))
    assert same_bits(fixed.encode(video(), chunk=1), opened_here(NAME).encode(video()))
    with pytest.raises(InputError, match="24x32 only"):
        fixed.encode(video(height=40))
    half, expected = opened_here(NAME, precision="fp16"), opened(NAME, precision="fp16").encode(video())
    latents = half.encode(video())
    assert np.abs(latents - expected).max() <= 0.01 * max(1.0, np.abs(expected).max())
    # It computes in fp32 and rounds the state to fp16, so results depend on where steps end; the
    # rule for it asks for no bits.
    assert not same_bits(half.encode(video(), chunk=1), latents)


@pytest.mark.parametrize("hint", HINTS)
def test_a_bundle_in_bf16_gives_the_same_bits_whatever_the_plan(
    opened_here: Opener, opened: Callable[..., Bundle], hint: str
) -> None:
    brain = opened_here(NAME, hint, precision="bf16")
    latents = brain.encode(video())
    pictures = decode(brain, latents)
    allowed = 0.1 * max(1.0, np.abs(latents).max())
    assert np.abs(latents - opened(NAME).encode(video())).max() <= allowed
    with brain.encoder(height=HEIGHT, width=WIDTH) as stream:
        parts = [stream.push(video()[:11])]
        saved = stream.snapshot()
    with brain.restore(saved) as stream:
        parts += [stream.push(video()[11:]), stream.finish()]
    resumed = np.concatenate(parts)
    if not computes_in_bf16():
        # Computed in fp32 with its state rounded to bf16, as one in fp16 is: no bits are asked for
        # then.
        assert plan_rule(brain.backend.describe(), "bf16") is BOUNDS["bf16"]
        assert not same_bits(brain.encode(video(), chunk=1), latents)
        assert np.abs(resumed - latents).max() <= allowed
        return
    assert plan_rule(brain.backend.describe(), "bf16") is EXACT
    for chunk in (1, 3):
        assert same_bits(brain.encode(video(), chunk=chunk), latents), chunk
        assert same_bits(decode(brain, latents, chunk=chunk), pictures), chunk
    assert same_bits(resumed, latents)


# State --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_two_sets_of_tensors_change_roles(opened_here: Opener, direction: Any, hint: str) -> None:
    """No tensor is read and written in one step, and after the first steps none is allocated."""
    session = opened_here(NAME, hint).step_session(direction)
    state: Any = session.new_state(1, 24, 32)
    x = np.zeros((1, 4, 3, 24, 32) if direction == "encoder" else (1, 1, 4, 3, 4), np.float32)

    def places() -> set[int]:
        return {tensor.data.ctypes.data for tensor in state._tensors.values()}

    seen = []
    for step in range(6):
        before = places()
        session.step(state, x, np.array([step == 0]), np.array([False]))
        assert not before & places()
        seen.append(places())
    assert seen[0] == seen[2] == seen[4] and seen[1] == seen[3] == seen[5]
    held = {tensor.get_element_type() for tensor in state._tensors.values()}
    assert held - {ov.Type.i32} == {ov.Type.f32 if hint == "fp32" else ov.Type.bf16}


class FailingRequest:
    """A request that fails at chosen calls, before or after its work."""

    calls = 0

    def __init__(self, request: Any, fail_at: set[int], late: bool, error: BaseException) -> None:
        self._request, self._fail_at, self._late, self._error = request, fail_at, late, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def infer(self) -> None:
        FailingRequest.calls += 1
        fails = FailingRequest.calls in self._fail_at
        if self._late or not fails:
            self._request.infer()
        if fails:
            raise self._error


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("failed to allocate"), RuntimeError("no kernel"), MemoryError(), KeyboardInterrupt()],
)
def test_a_failed_step_loses_nothing(
    opened_here: Opener, monkeypatch: pytest.MonkeyPatch, late: bool, error: BaseException
) -> None:
    bundle = opened_here(NAME)
    latents = bundle.encode(video(14))
    expected = decode(bundle, latents)
    session: Any = bundle.step_session("decoder")
    make = session.new_request
    monkeypatch.setattr(FailingRequest, "calls", 0)
    monkeypatch.setattr(session, "new_request", lambda: FailingRequest(make(), {1, 4}, late, error))
    kinds = {"failed to allocate": ResourceError, "": ResourceError, "no kernel": BundleError}
    raised = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else kinds[str(error)]
    parts = []
    with bundle.decoder(height=24, width=32, pixels="float32", chunk=1) as stream:
        with pytest.raises(raised):
            stream.push(latents[:2])
        parts.append(stream.push(latents[:0]))
        with pytest.raises(raised):
            stream.push(latents[2:])
        parts += [stream.push(latents[:0]), stream.finish()]
    assert same_bits(np.concatenate(parts), expected)


def test_streams_of_two_threads_share_one_model(opened_here: Opener) -> None:
    bundle = opened_here(NAME)
    clips = [video(22, seed) for seed in range(2)]
    expected = [bundle.encode(frames) for frames in clips]
    results: list[list[Any]] = [[], []]
    together = threading.Barrier(2)

    def work(index: int) -> None:
        together.wait()
        results[index] += [bundle.encode(clips[index], chunk=1 + turn % 2) for turn in range(4)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        len(found) == 4 and all(same_bits(r, expected[index]) for r in found)
        for index, found in enumerate(results)
    )


@given(st.lists(st.floats(width=32), min_size=1))
def test_bfloat16_is_rounded_as_pytorch_does(values: list[float]) -> None:
    import torch

    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(widen(narrow(array)), expected, equal_nan=True)
    kept = narrow(array)
    assert np.array_equal(narrow(widen(kept)), kept)


# Set-up and refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", HINTS)
def test_the_hint_is_set_and_told(opened_here: Opener, hint: str) -> None:
    """Never left to OpenVINO, whose default is bf16 on some CPUs."""
    bundle = opened_here(NAME, hint)
    session: Any = bundle.step_session("encoder")
    assert (
        session._model.get_property("INFERENCE_PRECISION_HINT")
        == {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}[hint]
    )
    assert session._model.get_property("INFERENCE_NUM_THREADS") == 1
    described = bundle.backend.describe()
    assert described == {
        "name": "openvino",
        "version": ov.__version__.partition("-")[0],
        "device": open_core().get_property("CPU", "FULL_DEVICE_NAME"),
        "precision_hint": hint,
        "cpu_precisions": "fp32, bf16" if computes_in_bf16() else "fp32",
        "threads": "1",
    }


def test_signals_are_handled_after_bundles_were_closed(exported: Callable[..., Path]) -> None:
    """OpenVINO alone leaves a signal stack without memory behind if what was opened first is closed
    first: the next signal kills.
    """
    program = """
import gc, os, signal, sys
from wfvae.runtime import open_bundle
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
bundles = [open_bundle(sys.argv[1], "openvino", threads=1) for _ in range(2)]
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
    if bundles:
        bundles.pop(0).close()
    gc.collect()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, exported(NAME)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (0, "handled\n" * 3), ended.stderr


def test_fp32_is_the_default(exported: Callable[..., Path]) -> None:
    assert open_bundle(exported(NAME), "openvino").backend.describe()["precision_hint"] == "fp32"


def test_a_cpu_without_bf16(
    monkeypatch: pytest.MonkeyPatch, program: Program, exported: Callable[..., Path], tmp_path: Path
) -> None:
    import wfvae.runtime.backends.openvino as backend

    honest = backend.require_precision
    monkeypatch.setattr(
        backend, "require_precision", lambda hint, listed, device: honest(hint, ["FP32", "INT8"], "Some CPU")
    )
    source = save(tmp_path / "in.mp4", clip(5))
    command = (
        "encode",
        exported(NAME),
        source,
        tmp_path / "z.zarr",
        "--backend",
        "openvino",
        "--precision-hint",
    )
    complaint = program.refused(*command, "bf16")
    assert (
        "this CPU (Some CPU) does not compute in bf16 with OpenVINO, which lists FP32, INT8; use the"
        " precision hint fp32" in complaint
    )
    assert program.done(*command, "fp32")["latents"] == 2


def test_wrong_options(exported: Callable[..., Path], program: Program) -> None:
    path = exported(NAME)
    with pytest.raises(InputError, match="'fp8'; expected fp32 or bf16"):
        open_bundle(path, "openvino", precision_hint="fp8")
    with pytest.raises(InputError, match="only openvino has one"):
        open_bundle(path, precision_hint="bf16")
    with pytest.raises(InputError, match="runs on the CPU"):
        open_bundle(path, "openvino", provider="cuda")
    assert "only openvino has one" in program.refused("verify", path, "--precision-hint", "bf16")
    assert "invalid choice" in program.refused(
        "verify", path, "--backend", "openvino", "--precision-hint", "fp16"
    )


def test_without_openvino_the_extra_is_named(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MissingExtraError, match=r"'openvino', which is not installed; run: pip install 'wfvae\[openvino\]'"
    ):
        open_bundle(exported(NAME), "openvino")


def test_a_graph_that_cannot_be_read(exported: Callable[..., Path], tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(exported(NAME), copy)
    (copy / "weights.bin").unlink()
    with pytest.raises(BundleError, match=r"OpenVINO .* cannot load encoder.onnx"):
        open_bundle(copy, "openvino", verify=False).encode(video(1))


def test_it_needs_neither_torch_nor_onnxruntime_and_is_not_loaded_unasked(
    exported: Callable[..., Path],
) -> None:
    code = """
import sys, numpy as np
from wfvae.runtime import open_bundle
frames = np.zeros((5, 8, 8, 3), np.uint8)
bundle = open_bundle(sys.argv[1], sys.argv[2], threads=1)
assert bundle.decode(bundle.encode(frames)).shape == frames.shape
print(*sorted({"torch", "onnx", "onnxruntime", "openvino"} & sys.modules.keys()))
"""
    for backend in ("openvino", "onnxruntime"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(exported(NAME)), backend],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == [backend], done.stderr


# Verification -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", HINTS)
def test_verify_proves_its_statements(
    program: Program, exported: Callable[..., Path], tmp_path: Path, hint: str
) -> None:
    if hint == "bf16" and not computes_in_bf16():
        pytest.skip("OpenVINO does not list BF16 for this CPU")
    paper = tmp_path / "parity.json"
    options = (
        "--frames",
        13,
        "--size",
        "8x16",
        "--against",
        Path(__file__).parents[1] / "fixtures" / NAME,
        "--certificate",
        paper,
    )
    result = program.done(
        "verify", exported(NAME), "--backend", "openvino", "--precision-hint", hint, *options
    )
    checks = {
        name: [c for c in result["checks"] if c["name"] == name]
        for name in ("plan invariance", "stream = direct")
    }
    for found in checks.values():
        assert found and all(
            check["equal_bits"] and check["rule"] == "equal bits" and check["frames"] > 0 for check in found
        )
    against = [check for check in result["checks"] if check["name"].startswith("backend = model")]
    assert len(against) == 4 and all(0 < check["max_abs"] <= check["tolerance"] for check in against)
    certificate = json.loads(paper.read_text())
    assert certificate["backend"]["name"] == "openvino" and certificate["backend"]["precision_hint"] == hint
    assert certificate["versions"]["openvino"] and certificate["passed"] is True


@pytest.mark.slow
def test_the_parity_benchmark(tmp_path: Path) -> None:
    """As people run it, on a small clip: what equals what, per bundle, hint and model."""
    root = Path(__file__).resolve().parents[2]
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(root / "tests" / "fixtures" / NAME, checkpoints / NAME)
    (checkpoints / "no model").mkdir()
    small = (
        "--frames",
        9,
        "--size",
        "16x24",
        "--threads",
        1,
        "--reference",
        checkpoints,
        "--json",
        tmp_path / "parity.json",
    )
    command = [sys.executable, root / "benchmarks" / "openvino_parity.py", *small]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "parity.json").read_text())
    rows = {(row["model"], row["bundle"], row["hint"]): row for row in found["rows"]}
    assert set(rows) == {
        (model, bundle, hint)
        for model in (NAME, "tiny")
        for bundle in ("fp32", "bf16", "fp16")
        for hint in HINTS
    }
    for (model, bundle, hint), row in rows.items():
        if hint == "bf16" and not computes_in_bf16():
            assert "does not compute in bf16" in row["not_measured"]
            continue
        assert row["passed"], (model, bundle, hint, row["failed"])
        for direction in ("encode", "decode"):
            for statement in ("plan_invariance", "stream_direct"):
                one = row[statement][direction]
                assert one["checks"] >= 3 and (one["max_ulp"] == 0) == (one["max_abs"] == 0)
                if bundle == "fp32" or (
                    bundle == "bf16" and statement == "plan_invariance" and computes_in_bf16()
                ):
                    assert one["allowed"] == 0 and one["equal_bits"] and one["max_ulp"] == 0
            for precision in ("float32", "float64"):
                one = row[f"model_{precision}"][direction]
                assert one["checks"] == 1 and 0 < one["max_abs"] <= one["allowed"]
    text = (tmp_path / "parity.md").read_text()
    assert text in done.stdout + "\n" and found["machine"]["openvino"] == ov.__version__.partition("-")[0]
    assert all(f"| {model}, {bundle}, {hint} |" in text for model, bundle, hint in rows)


def test_rules() -> None:
    fp32, bf16 = (
        {"name": "openvino", "precision_hint": hint, "cpu_precisions": "fp32, bf16"} for hint in HINTS
    )
    assert stream_rule(fp32, "fp32") is stream_rule(bf16, "fp32") is EXACT
    assert (model_rule(fp32, "fp32"), model_rule(bf16, "fp32")) == (BOUNDS["fp32"], BOUNDS["bf16"])
    assert stream_rule(fp32, "fp16") is BOUNDS["fp16"] and stream_rule(bf16, "fp16") is BOUNDS["bf16"]
    assert stream_rule(fp32, "bf16") is EXACT and stream_rule(bf16, "bf16") is BOUNDS["bf16"]
    for precision in ("fp32", "bf16"):
        assert plan_rule(fp32, precision) is plan_rule(bf16, precision) is EXACT
    assert plan_rule(fp32, "fp16") is BOUNDS["fp16"] and plan_rule(bf16, "fp16") is BOUNDS["bf16"]
    # A CPU without bf16 computes bundles in it in fp32, and rounds their state.
    wider = {**fp32, "cpu_precisions": "fp32"}
    assert plan_rule(wider, "fp32") is stream_rule(wider, "fp32") is EXACT
    assert plan_rule(wider, "bf16") is stream_rule(wider, "bf16") is BOUNDS["bf16"]
