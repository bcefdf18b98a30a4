"""Every kind of bundle through the real builder and parser of TensorRT-RTX, which need no GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.program import Program
from wfvae.errors import BundleError, InputError
from wfvae.export.forms import FORMS
from wfvae.export.tensorrt.build import BuildReport, build_engines
from wfvae.spec.manifest import Manifest
from wfvae.spec.tensorrt_api import RTX, TensorRT
from wfvae.spec.tensorrt_engines import BuildSettings, Span, engine_records, portable_target, read_engine

pytest.importorskip(RTX.module, reason="the extra rtx is not installed: pip install 'wfvae[rtx]'")
SMALL = {"height": Span.of(64), "width": Span.of(96)}
DEFAULTS = BuildSettings()
STREAMS = BuildSettings(batch=Span(1, 4, 8), chunk=1)
Build = Callable[..., BuildReport]


@pytest.fixture
def build(exported: Callable[..., Path], tmp_path: Path) -> Build:
    """`build(name, settings, capabilities, **export options)`: engines beside links to a bundle."""

    def run(name: str, settings: BuildSettings, capabilities: Any = (), **options: Any) -> BuildReport:
        folder = linked(exported(name, **options), tmp_path)
        trt = TensorRT.load(RTX)
        target = portable_target(RTX, trt.version, capabilities)
        report = build_engines(folder, settings, target, trt)
        assert all(read_engine(record, folder) for record in report.built)
        return report

    return run


def linked(bundle: Path, folder: Path) -> Path:
    """A bundle of its own without a copy of the weights."""
    copy = folder / "bundle"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).symlink_to(path)
    manifest = copy / "manifest.json"
    content = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(content)
    return copy


@pytest.mark.slow
def test_default_export_builds_for_default_sizes_without_options(
    exported: Callable[..., Path], program: Program, tmp_path: Path
) -> None:
    """Of sizes that Reshape inferred, this builder made bounds that overflowed."""
    bundle = linked(exported("tiny", direct=False), tmp_path)
    done = program("build", bundle, "--flavour", "rtx", "--chunk", 1)
    assert done.code == 0, done.err
    assert "TensorRT-RTX needs no GPU to build" in done.out
    records = engine_records(Manifest.read(bundle))
    assert [(record.graph, record.target.compute_capabilities) for record in records] == [
        ("encoder", RTX.default),
        ("decoder", RTX.default),
    ]
    assert all(record.settings.height == DEFAULTS.height for record in records)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_half_precision_builds(build: Build, precision: str) -> None:
    report = build(
        "tiny", BuildSettings(chunk=1, **SMALL), ["8.9", "12.0"], direct=False, precision=precision
    )
    assert [record.graph for record in report.built] == ["encoder", "decoder"]
    assert {record.precision for record in report.built} == {precision}
    assert {record.target.compute_capabilities for record in report.built} == {("8.9", "12.0")}


KINDS: dict[str, BuildSettings] = {
    "default sizes": DEFAULTS,
    "one size, with direct graphs": BuildSettings(chunk=1, whole_clip=3, **SMALL),
    "batch 1:4:8": STREAMS,
}
# Each fixture, precision and kind; other tests build default sizes in fp32, and
# benchmarks/rtx_engines.py every preset in every precision.
MATRIX = [
    ("tiny", "fp32", "one size, with direct graphs"),
    ("4x8x8-trilinear", "fp16", "batch 1:4:8"),
    ("4x8x8-nearest-16ch", "fp32", "batch 1:4:8"),
    ("8x8x8-trilinear", "bf16", "default sizes"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "kind"), MATRIX)
def test_every_kind_of_bundle_builds(build: Build, name: str, precision: str, kind: str) -> None:
    settings = KINDS[kind]
    report = build(name, settings, precision=precision)
    graphs = ["encoder", "decoder"]
    if settings.whole_clip is not None:
        graphs = ["encoder", "encoder.direct", "decoder", "decoder.direct"]
    assert [record.graph for record in report.built] == graphs
    assert not report.warnings


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted(set(FORMS) - {"minimal"}))  # which the other tests build
def test_every_form_of_convolutions_builds_for_default_sizes(build: Build, form: str) -> None:
    report = build("tiny", BuildSettings(chunk=1), convolutions=form, direct=False)
    assert [record.graph for record in report.built] == ["encoder", "decoder"] and not report.warnings


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "precision"), [("S", "fp32"), ("L", "fp16")])
def test_presets_build_for_default_sizes(build: Build, preset: str, precision: str) -> None:
    report = build(preset, BuildSettings(chunk=1), direct=False, precision=precision)
    assert [record.graph for record in report.built] == ["encoder", "decoder"] and not report.warnings


def test_sizes_beyond_the_builder_are_refused_with_the_number(build: Build) -> None:
    settings = BuildSettings(batch=Span(1, 4, 8), chunk=80, height=Span.of(2160), width=Span.of(3840))
    with pytest.raises(InputError, match=r"would have 1,343,692,800,000 values \(640x1x16200x129600\)"):
        build("tiny", settings, direct=False)


def test_compute_capability_without_the_precision_is_refused_with_the_builders_reason(build: Build) -> None:
    with pytest.raises(BundleError, match=r"for Turing \(SM75\): FP32 GEMM is not supported"):
        build("tiny", BuildSettings(chunk=1, **SMALL), ["7.5"], direct=False)


def test_workspace_that_is_too_small_is_refused_with_advice(build: Build) -> None:
    settings = BuildSettings(chunk=1, workspace=1 << 20, **SMALL)
    with pytest.raises(BundleError, match=r"workspace limit.*narrower --batch.* --workspace allows more$"):
        build("tiny", settings, direct=False)
