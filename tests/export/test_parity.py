"""Verification of bundles: equal bits where promised, and every failure is found and named."""

import hashlib
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from rich.console import Console

from wfvae.errors import CheckpointError, InputError
from wfvae.export.parity import Verification, measure, render_table, ulp_distance, verify
from wfvae.export.parity.rules import BOUNDS, EXACT, model_rule, plan_rule, stream_rule
from wfvae.model.vae import WFVAE
from wfvae.runtime import Bundle, open_bundle
from wfvae.spec.manifest import Manifest, record_file
from wfvae.video.synthetic.clips import ProceduralClip

FIXTURES = ("4x8x8-trilinear", "8x8x8-trilinear", "4x8x8-nearest-16ch")
EXACT_CHECKS = {"plan invariance", "stream = direct"}
JSON_KEYS = {"name", "direction", "backend", "plan", "frames", "equal_bits", "max_abs", "max_ulp", "psnr_db"}
Made = Callable[..., tuple[Path, WFVAE]]


def clip(frames: int, height: int = 16, width: int = 24) -> np.ndarray:
    return ProceduralClip(5, height, width).frames(0, frames)


def opened(path: Path) -> Bundle:
    return open_bundle(path, provider="cpu", threads=1)


@pytest.fixture(scope="module")
def bundles(exported: Callable[..., Path], reference_dir: Path) -> Made:
    """`bundles(name, **options)`: bundle and model of a fixture, or of the tiny model."""

    @cache
    def model_of(name: str) -> WFVAE:
        return WFVAE.from_pretrained("tiny" if name == "tiny" else reference_dir / name)

    return lambda name, **options: (exported(name, **options), model_of(name))


@pytest.fixture(scope="module")
def verified(bundles: Made) -> Verification:
    """One verification against its model, for tests of its JSON, certificate and table."""
    path, model = bundles("4x8x8-trilinear")
    return verify(opened(path), clip(13), against=model)


def broken(source: Path, target: Path, file: str, tensor: str, *, factor: float = 1e-3) -> Path:
    """Copies a bundle and adds to `tensor` a part of the step's first frame, which varies by plan.

    Its hashes are right.
    """
    shutil.copytree(source, target)
    model = onnx.load(str(target / file), load_external_data=False)
    index, node = next((k, node) for k, node in enumerate(model.graph.node) if tensor in node.output)
    node.output[0] = "whole"
    for value, name in enumerate(("zero", "one")):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    added = [
        helper.make_node("Slice", ["whole", "zero", "one", "zero"], ["first"], name="broken/first"),
        helper.make_node("Mul", ["first", "factor"], ["scaled"], name="broken/scaled"),
        helper.make_node("Add", ["whole", "scaled"], [tensor], name="broken/add"),
    ]
    for offset, new in enumerate(added):
        model.graph.node.insert(index + 1 + offset, new)
    onnx.save(model, str(target / file))
    manifest = Manifest.read(target)
    files = {**manifest.files, file: record_file(target / file)}
    msgspec.structs.replace(manifest, files=files).write(target)
    return target


def table_text(verification: Verification) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_table(verification))
    return console.export_text()


@pytest.mark.parametrize("name", [*FIXTURES, "tiny"])
def test_streams_have_the_bits_of_direct_inference_and_agree_with_the_model(
    name: str, bundles: Made, record_property: Callable[[str, object], None]
) -> None:
    path, model = bundles(name)
    frames = clip(33 if name.startswith("8") else 21, 20, 28)  # sizes that are not multiples of 8
    verification = verify(opened(path), frames, against=model)
    assert verification.passed, [check for check in verification.checks if not check.passed]
    assert not verification.not_available
    for direction in ("encode", "decode"):
        checks = [check for check in verification.checks if check.direction == direction]
        models = {"backend = model float32", "backend = model float64"}
        assert {check.name for check in checks} == EXACT_CHECKS | models
        exact = [check for check in checks if check.name in EXACT_CHECKS]
        assert len(exact) >= 10
        for check in exact:
            assert (check.equal_bits, check.max_ulp, check.max_abs, check.equal_share) == (True, 0, 0.0, 1.0)
            assert check.rule == "equal bits" and check.ulp_histogram.keys() == {"0"}
        lengths = {check.frames for check in exact if check.name == "stream = direct"}
        assert lengths == {len(frames), len(frames) - 1, 1}
        for check in checks:
            if check.name in models:
                record_property(f"{direction} {check.name}", check.max_abs)
                assert 0 < check.max_abs < 2e-5  # measured: about 5e-6


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_short_videos_have_equal_bits(frames: int, bundles: Made) -> None:
    for name in ("8x8x8-trilinear", "4x8x8-nearest-16ch"):
        verification = verify(opened(bundles(name)[0]), clip(frames, 8, 8))
        assert verification.passed and all(check.equal_bits for check in verification.checks)


def test_bundles_of_moments_and_of_a_fixed_size_pass(bundles: Made) -> None:
    path, model = bundles("4x8x8-trilinear", latents="moments", size=(16, 24))
    verification = verify(opened(path), clip(9), against=model)
    assert verification.passed
    assert {check.direction for check in verification.checks} == {"encode", "decode"}


def test_fp16_is_held_to_its_bound(bundles: Made) -> None:
    path, model = bundles("4x8x8-trilinear", precision="fp16")
    verification = verify(opened(path), clip(9), against=model)
    assert verification.passed
    for check in verification.checks:
        if check.name.startswith("backend = model"):
            assert 1e-4 < check.max_abs <= check.tolerance and not check.equal_bits


def test_bundle_without_direct_graphs_is_compared_with_one_step(bundles: Made) -> None:
    path, _ = bundles("4x8x8-trilinear", direct=False)
    verification = verify(opened(path), clip(9))
    assert verification.passed
    assert {check.name for check in verification.checks} == {"plan invariance", "stream = one call"}
    entries = verification.not_available
    assert [one.direction for one in entries] == ["encode", "decode"]
    assert all(one.name == "direct graph" for one in entries)
    assert all("--no-direct" in one.reason for one in entries)
    assert "not available: direct graph, encode" in table_text(verification)


def test_model_of_another_checkpoint_is_refused_and_no_model_is_changed(bundles: Made) -> None:
    path, model = bundles("4x8x8-trilinear")
    with pytest.raises(CheckpointError, match="was exported from"):
        verify(opened(path), clip(5), against=bundles("8x8x8-trilinear")[1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verify(opened(path), clip(5), against=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3)), np.zeros((16, 16, 3), np.uint8)]
)
def test_arrays_that_are_no_video_are_refused(frames: Any, bundles: Made) -> None:
    with pytest.raises(InputError, match="expected uint8 of shape"):
        verify(opened(bundles("4x8x8-trilinear")[0]), frames)


@pytest.mark.parametrize(
    ("file", "tensor", "direction"),
    [
        ("decoder.onnx", "decoder.up2.0.conv2/Conv_1", "decode"),
        ("encoder.onnx", "encoder.mid.0.conv1/Conv_2", "encode"),
    ],
)
def test_graph_that_mixes_frames_fails_and_the_tensor_is_named(
    file: str, tensor: str, direction: str, bundles: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = broken(bundles("4x8x8-trilinear")[0], tmp_path / "broken", file, tensor)
    verification = verify(opened(path), clip(9))
    failed = [check for check in verification.checks if not check.passed]
    assert {check.direction for check in failed} == {direction}
    found = {check.name: check.first_difference for check in failed if check.first_difference}
    assert found["plan invariance"].startswith(f"{tensor} (node broken/add, Add), by at most ")
    # The broken sum has no counterpart in the direct graph; the first tensor behind it that has one
    # is a convolution of the same stage.
    stage = tensor.rpartition(".")[0].rpartition(".")[0]
    assert found["stream = direct"].startswith(stage) and "Conv" in found["stream = direct"]
    assert sum(check.first_difference is not None for check in failed) == 2, "searched once per statement"
    assert capfd.readouterr() == ("", "")


def test_broken_direct_graph_is_named(bundles: Made, tmp_path: Path) -> None:
    file, tensor = "decoder.direct.onnx", "decoder.mid.0.conv1/Conv_0"
    path = broken(bundles("4x8x8-nearest-16ch")[0], tmp_path / "broken", file, tensor)
    verification = verify(opened(path), clip(9))
    assert {check.name for check in verification.checks if not check.passed} == {"stream = direct"}
    found = next(check.first_difference for check in verification.checks if check.first_difference)
    assert found.startswith("decoder.mid.0.conv2/Conv_0")


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_nan_in_a_step_graph_fails_every_plan(direction: str, bundles: Made, tmp_path: Path) -> None:
    file, tensor = f"{direction}.onnx", f"{direction}.mid.0.conv1/Conv_2"
    path = broken(bundles("4x8x8-trilinear")[0], tmp_path / "nan", file, tensor, factor=math.nan)
    verification = verify(opened(path), clip(5))
    checks = [check for check in verification.checks if check.direction == direction[:-1]]
    plans = [check for check in checks if check.name == "plan invariance"]
    assert plans and not any(check.passed for check in plans)
    assert all("NaN" in (check.problem or "") for check in plans)
    json.dumps(verification.to_json(), allow_nan=False)


def test_latents_that_cannot_be_decoded_fail_as_nothing_compared(bundles: Made, tmp_path: Path) -> None:
    file, tensor = "encoder.direct.onnx", "encoder.mid.0.conv1/Conv_2"
    path = broken(bundles("4x8x8-trilinear")[0], tmp_path / "nan", file, tensor, factor=math.nan)
    decode = [check for check in verify(opened(path), clip(5)).checks if check.direction == "decode"]
    assert decode and not any(check.passed or check.frames for check in decode)


@pytest.mark.parametrize("changed", [{"passed": False}, {"frames": 0}, {"max_abs": math.nan}])
def test_verification_with_a_check_that_does_not_hold_has_not_passed(
    verified: Verification, changed: dict[str, Any]
) -> None:
    assert verified.passed and all(check.first_difference is None for check in verified.checks)
    assert not Verification(()).passed
    assert not replace(verified, checks=(*verified.checks, replace(verified.checks[0], **changed))).passed


def test_comparison_of_nothing_or_of_nan_or_of_other_shapes_never_passes() -> None:
    one = np.ones((2, 3), np.float32)
    nan = np.full_like(one, np.nan)
    for actual, expected in ((one[:0], one[:0]), (one, one[:1]), (one, nan), (nan, nan)):
        found = measure(actual, expected, picture=True)
        assert found.problem
        assert not any(rule.accepts(found, math.inf) for rule in (EXACT, *BOUNDS.values()))


def test_zeros_of_both_signs_are_0_ulp_apart_and_not_equal_bits() -> None:
    found = measure(np.array([0.0, 1.0], np.float32), np.array([-0.0, 1.0], np.float32), picture=False)
    assert (found.equal_bits, found.max_ulp, found.max_abs, found.equal_share) == (False, 0, 0.0, 0.5)


def test_known_difference_has_the_worked_numbers() -> None:
    expected = np.zeros((10,), np.float32)
    actual = expected.copy()
    actual[0] = 0.02
    found = measure(actual, expected, picture=True)
    assert found.psnr_db == pytest.approx(10 * math.log10(4 / (0.02**2 / 10)))
    assert found.max_abs == pytest.approx(0.02) and found.equal_share == 0.9
    assert sum(found.ulp_histogram.values()) == 10 and found.ulp_histogram["0"] == 9
    assert measure(expected, expected, picture=True).psnr_db == math.inf
    infinite = np.array([np.inf], np.float32)
    assert measure(infinite, infinite, picture=False).max_abs == 0
    assert not EXACT.accepts(found, 0) and BOUNDS["fp16"].accepts(found, 0.03)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=True)


@given(FLOATS, st.integers(0, 40), st.booleans())
def test_ulp_counts_steps_of_nextafter(value: float, steps: int, up: bool) -> None:
    start = np.float32(value)
    there, taken = start, 0
    for _ in range(steps):
        with np.errstate(over="ignore"):  # the step beyond the largest number
            after = np.nextafter(there, np.float32(math.inf if up else -math.inf))
        if after == there:
            break
        there, taken = after, taken + 1
    a, b = np.array([start]), np.array([there])
    assert ulp_distance(a, b)[0] == taken == ulp_distance(b, a)[0]
    [label] = measure(a, b, picture=False).ulp_histogram
    low, _, high = label.partition("-")
    assert int(low) <= taken <= int(high or low)


@given(FLOATS, FLOATS, FLOATS)
def test_ulp_distances_add_up_along_the_line(a: float, b: float, c: float) -> None:
    low, middle, high = (np.array([value], np.float32) for value in sorted((a, b, c)))
    assert ulp_distance(low, high)[0] == ulp_distance(low, middle)[0] + ulp_distance(middle, high)[0]
    assert (ulp_distance(low, high)[0] == 0) == (low[0] == high[0])


def test_rules_ask_for_bits_only_where_they_are_attainable() -> None:
    cpu = {"name": "onnxruntime", "provider": "CPUExecutionProvider"}
    cuda = {"name": "onnxruntime", "provider": "CUDAExecutionProvider"}
    assert stream_rule(cpu, "fp32") is EXACT
    assert stream_rule(cpu, "fp32", volumes=True) is plan_rule(cpu, "fp32", volumes=True) is BOUNDS["fp32"]
    assert stream_rule(cpu, "fp16") is BOUNDS["fp16"]
    assert stream_rule(cuda, "fp32") is BOUNDS["fp32"]
    assert model_rule({**cuda, "tf32": "true"}, "fp32") is BOUNDS["tf32"]
    assert stream_rule({"name": "tensorrt"}, "bf16") is BOUNDS["bf16"]
    for backend in (cpu, cuda, {"name": "tensorrt"}):
        for precision in ("fp32", "fp16", "bf16"):
            assert plan_rule(backend, precision) is stream_rule(backend, precision)


def test_json_is_strict_and_has_the_documented_keys(verified: Verification) -> None:
    data = json.loads(json.dumps(verified.to_json(), allow_nan=False))
    assert data["passed"] is True and data["checks"]
    for check in data["checks"]:
        assert check.keys() >= JSON_KEYS and check["passed"] is True
        assert isinstance(check["equal_uint8"], bool) == (check["direction"] == "decode")
    assert {check["psnr_db"] for check in data["checks"] if check["equal_bits"]} == {None, "inf"}


def test_certificate_has_hashes_and_versions_and_names_no_place(
    verified: Verification, bundles: Made
) -> None:
    path, _ = bundles("4x8x8-trilinear")
    date = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    certificate = verified.certificate("/home/someone/films/walk.mp4", date)
    manifest = Manifest.read(path)
    assert certificate["bundle"]["identity"] == manifest.identity
    assert certificate["bundle"]["checkpoint_sha256"] == manifest.checkpoint_sha256
    assert certificate["bundle"]["files"] == {name: record.sha256 for name, record in manifest.files.items()}
    assert certificate["backend"]["name"] == "onnxruntime"
    assert {"python", "wfvae", "onnxruntime", "torch", "numpy"} <= certificate["versions"].keys()
    assert certificate["machine"].keys() == {"cpu", "cores", "os", "architecture"}
    assert certificate["date"] == "2026-01-02T03:04:05+00:00"
    assert certificate["video"]["source"] == "walk.mp4" and certificate["video"]["frames"] == 13
    lengths = {key: len(hashes) for key, hashes in certificate["frame_sha256"].items()}
    assert lengths == {"latents": 4, "frames_float32": 13, "frames_uint8": 13}
    assert certificate["checks"] == verified.to_json()["checks"]
    text = json.dumps(certificate, allow_nan=False)
    for private in (path, Path.home(), "someone", platform.node(), os.environ.get("USER"), "/home", "/tmp"):
        assert str(private) in ("", "/", "None") or str(private) not in text


def test_frame_hashes_are_those_of_a_stream(verified: Verification, bundles: Made) -> None:
    bundle = opened(bundles("4x8x8-trilinear")[0])
    latents = bundle.encode(clip(13), chunk=2)
    for key, arrays in (("latents", latents), ("frames_uint8", bundle.decode(latents, chunk=1))):
        expected = tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)
        assert verified.frame_sha256[key] == expected


def test_table_shows_numbers_and_outcome(verified: Verification) -> None:
    numbers = {"equal_bits": False, "equal_share": 0.99999, "max_ulp": 1234}
    failing = replace(verified.checks[-1], passed=False, first_difference="decoder.x (node x)", **numbers)
    for checks, words in (
        (verified.checks, "plan invariance|stream = direct|float64|equal bits|100 %|inf|checks passed"),
        ((failing,), "1,234|99.99 %|FAILED|decoder.x (node x)|1 of 1 checks failed"),
        ((), "no check was made"),
    ):
        text = table_text(replace(verified, checks=checks))
        assert all(word in text for word in words.split("|"))
