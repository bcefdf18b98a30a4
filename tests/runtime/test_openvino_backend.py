"""OpenVINO as backend: the same streams, the same bits whatever the plan, and its refusals."""

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.program import Program, run_python
from fixtures.streams import (
    Passage,
    at_once,
    failing,
    finish_despite_failures,
    noise,
    passage,
    run_one_after_the_other,
    same_bits,
)
from wfvae.errors import BundleError, InputError, MissingExtraError, ResourceError
from wfvae.export.parity import verify
from wfvae.export.parity.rules import BOUNDS, EXACT, model_rule, plan_rule, stream_rule
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.backends.openvino import open_core, require_precision
from wfvae.video.synthetic.clips import ProceduralClip

ov = pytest.importorskip("openvino", reason="needs the extra openvino: pip install 'wfvae[openvino]'")
ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
HINTS = ("fp32", "bf16")
NAME = FIXTURES[0]
# In bf16, the two whose decoders also carry the state of an interpolation.
each_fixture_and_hint = pytest.mark.parametrize(
    ("name", "hint"), [*((name, "fp32") for name in FIXTURES), (NAME, "bf16"), (FIXTURES[2], "bf16")]
)
HEIGHT, WIDTH, FRAMES = 20, 27, 22
Opener = Callable[..., Bundle]


@pytest.fixture(scope="module")
def opened_here(exported: Callable[..., Path]) -> Opener:
    """`opened_here(name, hint, **export options)`: a bundle opened in OpenVINO."""

    @functools.cache
    def open_(name: str, hint: str = "fp32", **options: Any) -> Bundle:
        require(hint)
        return open_bundle(exported(name, **options), "openvino", precision_hint=hint, threads=1)

    return open_


def computes_in_bf16() -> bool:
    return "BF16" in open_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def require(hint: str) -> None:
    if hint == "bf16" and not computes_in_bf16():
        pytest.skip("OpenVINO does not list BF16 for this CPU")


def source_of(bundle: Bundle, direction: str, frames: int = FRAMES, seed: int = 0) -> Passage:
    return passage(bundle, direction, frames, HEIGHT, WIDTH, seed)


def resumed(source: Passage, second: Bundle, chunk: int | None = None) -> Any:
    """What a stream gives that moves to another bundle in the middle of its input."""
    half = len(source.data) // 2
    with source.open() as stream:
        parts = [stream.push(source.data[:half])]
        saved = stream.capture()
    # The types are the manifest's, whatever the state is held in.
    types = {name: str(array.dtype).replace("uint16", "bfloat16") for name, array in saved.state.items()}
    assert types == {spec.name: spec.dtype for spec in stream.spec.states}
    with second.restore(saved.to_bytes(), chunk=chunk) as continued:
        parts += [continued.push(source.data[half:]), continued.finish()]
    return np.concatenate(parts)


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@each_fixture_and_hint
def test_any_plan_gives_the_bits_of_one_call(
    opened_here: Opener, name: str, direction: str, hint: str
) -> None:
    """Also one that moves to another stream. `wfvae verify`, below, tries more."""
    bundle = opened_here(name, hint)
    source = source_of(bundle, direction)
    for chunk in (1, 3):
        with source.open(chunk) as stream:
            assert source.is_result([stream.push(source.data), stream.finish()]), chunk
    assert same_bits(resumed(source, bundle, chunk=1), source.expected)


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("name", FIXTURES[1:])
def test_results_are_close_to_onnxruntimes(opened_here: Opener, opened: Opener, name: str, hint: str) -> None:
    here, there = opened_here(name, hint), opened(name)
    video = noise(FRAMES, HEIGHT, WIDTH)
    latents = there.encode(video)
    pairs = [
        (here.encode(video), latents),
        (here.decode(latents, pixels="float32"), there.decode(latents, pixels="float32")),
    ]
    for ours, theirs in pairs:
        error = float(np.abs(ours - theirs).max())
        assert error <= (1e-5 if hint == "fp32" else 0.05 * max(1.0, float(np.abs(theirs).max())))
        assert (error > 1e-3) == (hint == "bf16")  # so the hint is what it was computed in


@pytest.mark.parametrize("hint", HINTS)
def test_rows_of_a_pool_give_the_bits_of_single_streams(opened_here: Opener, hint: str) -> None:
    bundle = opened_here(NAME, hint)
    clips = {seed: source_of(bundle, "encoder", frames, seed) for seed, frames in enumerate((22, 9, 14))}
    found: dict[int, list[Any]] = {seed: [] for seed in clips}
    with bundle.encoder_pool(height=HEIGHT, width=WIDTH, rows=2, chunk=2) as pool:
        for seed, part in pool.run({seed: np.array_split(clip.data, 4) for seed, clip in clips.items()}):
            found[seed].append(part)
    assert all(clips[seed].is_result(parts) for seed, parts in found.items())


def test_pool_copies_state_only_when_its_batch_grows(
    opened_here: Opener, counted: Callable[..., Counter[str]]
) -> None:
    bundle = opened_here(NAME)
    pool = bundle.encoder_pool(height=HEIGHT, width=WIDTH, rows=2, chunk=1)
    copies = counted(pool)
    run_one_after_the_other(pool, bundle, "encoder", HEIGHT, WIDTH)
    assert not copies
    clip = source_of(bundle, "encoder", 17)
    first, second = pool.open(), pool.open()
    first.push(clip.data)
    pool.step()
    second.push(clip.data)
    pool.step()
    assert copies == {"grow": 1}  # a step of one row left tensors of one row


@pytest.mark.parametrize("target", ["auto", "openvino"])
def test_snapshots_pass_between_backends(opened_here: Opener, opened: Opener, target: str) -> None:
    """Whatever order of axes the state is held in."""
    here, there = opened_here(NAME, target=target), opened(NAME, target=target)
    for first, second in ((here, there), (there, here)):
        source = source_of(first, "encoder")
        assert np.abs(resumed(source, second) - source.expected).max() <= 1e-5


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.01), ("bf16", 0.1)])
def test_half_precision_bundle_gives_same_bits_where_the_rules_demand_it(
    opened_here: Opener, opened: Opener, precision: str, bound: float, hint: str
) -> None:
    half = opened_here(NAME, hint, precision=precision)
    source = source_of(half, "encoder")
    latents = source.expected
    allowed = (bound if hint == "fp32" else 0.1) * max(1.0, np.abs(latents).max())
    assert np.abs(latents - opened(NAME).encode(source.data)).max() <= allowed
    continued, in_steps = resumed(source, half), half.encode(source.data, chunk=1)
    exact = precision == "bf16" and computes_in_bf16()
    assert (plan_rule(half.backend.describe(), precision) is EXACT) == exact
    # Otherwise computed in a wider type, with the state rounded wherever a step ends.
    assert same_bits(in_steps, latents) == exact
    assert same_bits(continued, latents) if exact else np.abs(continued - latents).max() <= allowed
    if exact:
        pictures = source_of(half, "decoder")
        with pictures.open(chunk=1) as stream:
            assert pictures.is_result([stream.push(pictures.data), stream.finish()])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("failed to allocate"), ResourceError),
        (RuntimeError("no kernel"), BundleError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failed_step_loses_nothing(
    opened_here: Opener,
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    source = source_of(opened_here(NAME), "decoder", 14)
    session: Any = source.bundle.step_session("decoder")
    make, calls = session.new_state, list[None]()

    def make_failing(*sizes: int) -> Any:
        state = make(*sizes)
        for request in state._requests:
            monkeypatch.setattr(request, "infer", failing(request.infer, {1, 4}, late, error, calls))
        return state

    monkeypatch.setattr(session, "new_state", make_failing)
    with source.open(chunk=1) as stream:
        result, failures = finish_despite_failures(stream, source.data, 2, raised)
    assert failures == 2
    assert same_bits(result, source.expected)


def test_streams_of_two_threads_give_the_bits_of_one(opened_here: Opener) -> None:
    bundle = opened_here(NAME)
    sources = [source_of(bundle, "encoder", seed=seed) for seed in range(2)]

    def work(index: int) -> None:
        for turn in range(4):
            found = bundle.encode(sources[index].data, chunk=1 + turn % 2)
            assert same_bits(found, sources[index].expected)

    at_once(work)


@pytest.mark.parametrize("hint", HINTS)
def test_precision_hint_and_threads_are_set_and_described(opened_here: Opener, hint: str) -> None:
    """The hint is never left to OpenVINO, whose default is bf16 on some CPUs."""
    bundle = opened_here(NAME, **({} if hint == "fp32" else {"hint": hint}))
    sizes = bundle.step_session("encoder")._compiled  # type: ignore[attr-defined]
    model, small = sizes.of(24, 24).model, sizes.of(24, 16).model
    assert model.get_property("INFERENCE_PRECISION_HINT") == {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}[hint]
    assert small.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert model.get_property("INFERENCE_NUM_THREADS") == small.get_property("INFERENCE_NUM_THREADS") == 1
    described = bundle.backend.describe()
    assert (described["name"], described["precision_hint"], described["threads"]) == ("openvino", hint, "1")
    assert described["cpu_precisions"] == ("fp32, bf16" if computes_in_bf16() else "fp32")


def test_signals_are_handled_after_bundles_were_closed(exported: Callable[..., Path]) -> None:
    """Otherwise, closing bundles in the order of opening makes the next signal fatal."""
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
    assert run_python(program, exported(NAME)) == "handled\n" * 3


def test_wrong_options_and_missing_support_are_refused(
    exported: Callable[..., Path], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(NAME)
    with pytest.raises(InputError, match="'fp8'; expected fp32 or bf16"):
        open_bundle(path, "openvino", precision_hint="fp8")
    with pytest.raises(InputError, match="runs on the CPU"):
        open_bundle(path, "openvino", provider="cuda")
    assert "only openvino has one" in program.refused("verify", path, "--precision-hint", "bf16")
    message = r"\(Some CPU\) does not compute in bf16 .* lists FP32, INT8; use the precision hint fp32"
    with pytest.raises(BundleError, match=message):
        require_precision("bf16", ["FP32", "INT8"], "Some CPU")
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = r"'openvino', which is not installed; run: pip install 'wfvae\[openvino\]'"
    with pytest.raises(MissingExtraError, match=message):
        open_bundle(path, "openvino")


def test_openvino_imports_neither_torch_nor_onnxruntime(exported: Callable[..., Path]) -> None:
    code = """
import sys, numpy as np
from wfvae.runtime import open_bundle
frames = np.zeros((5, 8, 8, 3), np.uint8)
bundle = open_bundle(sys.argv[1], "openvino", threads=1)
assert bundle.decode(bundle.encode(frames)).shape == frames.shape
print(*{"torch", "onnx", "onnxruntime", "openvino"} & sys.modules.keys())
"""
    assert run_python(code, exported(NAME)).split() == ["openvino"]


@pytest.mark.parametrize("hint", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_verify_of_openvino_passes_and_certifies(
    program: Program, exported: Callable[..., Path], tmp_path: Path, hint: str
) -> None:
    require(hint)
    paper = tmp_path / "parity.json"
    backend = ("--backend", "openvino", "--precision-hint", hint)
    options = ("--frames", 9, "--size", "8x16", "--certificate", paper)
    checkpoint = ROOT / "tests" / "fixtures" / NAME
    checks = program.done("verify", exported(NAME), *backend, *options, "--against", checkpoint)["checks"]
    for name in ("plan invariance", "stream = direct"):
        found = [check for check in checks if check["name"] == name]
        assert found and all(check["equal_bits"] and check["rule"] == "equal bits" for check in found)
        assert all(check["frames"] > 0 for check in found)
    against = [check for check in checks if check["name"].startswith("backend = model")]
    assert len(against) == 4 and all(0 < check["max_abs"] <= check["tolerance"] for check in against)
    certificate = json.loads(paper.read_text())
    assert certificate["backend"]["name"] == "openvino" and certificate["backend"]["precision_hint"] == hint


@pytest.mark.slow
@each_fixture_and_hint
def test_volumes_give_equal_bits(opened_here: Opener, name: str, hint: str) -> None:
    """At one latent, and at several."""
    bundle = opened_here(name, hint, target="openvino")
    for height, width in ((8, 8), (24, 40)):
        verification = verify(bundle, ProceduralClip(0, height, width).frames(0, 13))
        assert verification.passed, [check for check in verification.checks if not check.passed]
        # 13 frames are fewer latents at a ratio of 8, and so fewer lengths of steps.
        expected = {4: 24, 8: 22}[bundle.ratio]
        assert [check.rule for check in verification.checks].count("equal bits") == expected


def test_rules_demand_equal_bits_where_the_precision_allows_it() -> None:
    fp32, bf16 = (
        {"name": "openvino", "precision_hint": hint, "cpu_precisions": "fp32, bf16"} for hint in HINTS
    )
    wider = {**fp32, "cpu_precisions": "fp32"}  # computes bundles in bf16 in fp32, and rounds their state
    for backend, precision, plan, stream in (
        (fp32, "fp32", EXACT, EXACT),
        (bf16, "fp32", EXACT, EXACT),
        (wider, "fp32", EXACT, EXACT),
        (fp32, "fp16", BOUNDS["fp16"], BOUNDS["fp16"]),
        (bf16, "fp16", BOUNDS["bf16"], BOUNDS["bf16"]),
        (fp32, "bf16", EXACT, EXACT),
        (bf16, "bf16", EXACT, BOUNDS["bf16"]),
        (wider, "bf16", BOUNDS["bf16"], BOUNDS["bf16"]),
    ):
        assert (plan_rule(backend, precision), stream_rule(backend, precision)) == (plan, stream)
    assert (model_rule(fp32, "fp32"), model_rule(bf16, "fp32")) == (BOUNDS["fp32"], BOUNDS["bf16"])
