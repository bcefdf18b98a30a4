"""`wfvae build` over a stand-in for TensorRT: this project's logic, without a GPU."""

import inspect
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from fixtures.fake_cuda import FakeCuda
from fixtures.fake_tensorrt import FakeTensorRT
from wfvae.cli.main import main
from wfvae.errors import BundleError, MissingExtraError, ResourceError
from wfvae.export.tensorrt.build import BuildReport, TimingCacheFile, build_engines, timing_cache_path
from wfvae.runtime import open_bundle
from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
from wfvae.spec import tensorrt_api
from wfvae.spec.manifest import Manifest
from wfvae.spec.tensorrt_api import TensorRT
from wfvae.spec.tensorrt_engines import BuildSettings, Span, engine_records, read_engine

NAME = "4x8x8-nearest-16ch"
SETTINGS = BuildSettings(chunk=3, height=Span(16, 32, 64), width=Span(8, 48, 96))


class Builds:
    """A copy of a bundle and a stand-in that builds for it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.path = folder / "bundle"
        shutil.copytree(source, self.path)
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda)

    def run(self, settings: BuildSettings = SETTINGS, **options: Any) -> BuildReport:
        trt = TensorRT(self.trt)
        return build_engines(self.path, settings, target_here(trt, self.cuda), trt, **options)

    @property
    def cache(self) -> Path:
        return timing_cache_path(self.path, target_here(TensorRT(self.trt), self.cuda))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("engines/[!.]*"))

    def listed(self) -> list[str]:
        return [record.graph for record in engine_records(Manifest.read(self.path))]


@pytest.fixture
def builds(exported: Callable[..., Path], tmp_path: Path) -> Builds:
    return Builds(exported(NAME), tmp_path)


def test_build_gives_engine_per_direction_and_keeps_bundle_identity(builds: Builds) -> None:
    identity = Manifest.read(builds.path).identity
    report = builds.run()
    assert [record.graph for record in report.built] == ["encoder", "decoder"] and not report.kept
    manifest = Manifest.read(builds.path)
    assert manifest.identity == identity and tuple(engine_records(manifest)) == report.built
    assert all(read_engine(record, builds.path) for record in report.built)
    assert builds.cache.name == "trt11.4.0-fake-gpu-sm90.timing-cache"
    assert builds.cache.read_bytes() == b"timed;timed;"


def test_whole_clip_builds_direct_graphs_too(exported: Callable[..., Path], tmp_path: Path) -> None:
    report = Builds(exported(NAME, size=(16, 24)), tmp_path).run(BuildSettings(whole_clip=6))
    graphs = ["encoder", "encoder.direct", "decoder", "decoder.direct"]
    assert [record.graph for record in report.built] == graphs
    assert {record.settings.height for record in report.built} == {Span.of(16)}


def test_existing_engines_are_kept(builds: Builds) -> None:
    first = builds.run()
    again = builds.run()
    assert again.kept == first.built and not again.built
    assert len(builds.run(again=True).built) == 2
    (builds.path / first.built[0].file).write_bytes(b"damaged")
    report = builds.run()
    assert [r.graph for r in report.built] == ["encoder"] and [r.graph for r in report.kept] == ["decoder"]
    builds.trt.__version__ = "10.13.3.9"
    builds.run()
    versions = [record.target.version for record in engine_records(Manifest.read(builds.path))]
    assert sorted(versions) == ["10.13.3.9"] * 2 + ["11.4.0"] * 2


def test_read_only_timing_cache_must_exist_and_is_not_changed(builds: Builds, tmp_path: Path) -> None:
    cache = TimingCacheFile(tmp_path / "cache", read_only=True)
    with pytest.raises(BundleError, match="there is no timing cache"):
        builds.run(timing_cache=cache)
    cache.path.write_bytes(b"known;")
    builds.run(timing_cache=cache)
    assert cache.path.read_bytes() == b"known;"
    builds.trt.build_result = None
    with pytest.raises(BundleError, match="the timing cache has no entry"):
        builds.run(again=True, timing_cache=cache)


def test_progress_names_phases_and_counts_steps(builds: Builds) -> None:
    seen: list[tuple[str, int, int]] = []

    def report(*progress: Any) -> None:
        seen.append(progress)
        raise OSError("a display that fails stops no build")

    assert len(builds.run(progress=report).built) == 2
    assert ("encoder: Building Engine", 0, 3) in seen and ("encoder: Building Engine, Timing", 1, 3) in seen
    assert seen[-1] == ("decoder: Building Engine", 3, 3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("parser", r"TensorRT 11\.4\.0 can't read encoder.onnx: some/node: unsupported"),
        ("build", r"could not build encoder.onnx: no kernel for this layer$"),
        ("timing cache", "refuses the timing cache"),
        ("disk", "No space left on device"),
    ],
)
def test_failed_build_names_the_reason_and_leaves_nothing(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, message: str
) -> None:
    options = {}
    match fault:
        case "parser":
            builds.trt.parse_errors = ["unsupported"]
        case "build":
            builds.trt.build_result = None
        case "timing cache":
            options["timing_cache"] = TimingCacheFile(tmp_path / "cache")
            options["timing_cache"].path.write_bytes(b"damaged")
        case "disk":
            full = OSError(28, "No space left on device")
            monkeypatch.setattr("wfvae.files.os.replace", Mock(side_effect=full))
    with pytest.raises((BundleError, ResourceError), match=message):
        builds.run(**options)
    assert not builds.files() and not builds.listed()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_between_steps_without_partial_file(builds: Builds, number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    builds.trt.build_result = lambda: len(builds.listed()) == 1 and os.kill(os.getpid(), number)
    with pytest.raises(KeyboardInterrupt):
        builds.run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    [record] = engine_records(Manifest.read(builds.path))
    assert record.graph == "encoder"
    assert builds.files() == sorted([Path(record.file).name, builds.cache.name])
    builds.trt.build_result = "built"
    assert [record.graph for record in builds.run().built] == ["decoder"]


def test_command_builds_and_open_bundle_runs(
    builds: Builds, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wfvae.spec.tensorrt_api.TensorRT.load", lambda flavour: TensorRT(builds.trt))
    for module in ("cuda", "tensorrt_backend"):
        monkeypatch.setattr(f"wfvae.runtime.backends.nvidia.{module}.Cuda", lambda device_id: builds.cuda)
    with (
        open_bundle(builds.path, "tensorrt") as bundle,
        pytest.raises(BundleError, match=r"has no TensorRT engine for encoder.*wfvae build"),
    ):
        bundle.encoder(height=16, width=16)
    arguments = ["build", str(builds.path), "--size", "15x24", "--batch", "1:1:2", "--chunk", "2"]
    assert main([*arguments, "--json"]) == 0
    built = json.loads(capsys.readouterr().out)["built"]
    assert [engine["graph"] for engine in built] == ["encoder", "decoder"]
    assert built[0]["settings"]["height"] == {"low": 16, "best": 16, "high": 16}
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "kept engines/encoder-" in text and "TensorRT 11.4.0 on Fake GPU (compute capability 9.0)" in text
    frames = np.random.default_rng(0).integers(0, 256, (9, 15, 24, 3), dtype=np.uint8)
    with (
        open_bundle(builds.path, "tensorrt", cuda_graphs=True, verify=False) as engines,
        open_bundle(builds.path) as reference,
    ):
        assert np.array_equal(engines.encode(frames, chunk=2), reference.encode(frames, chunk=2))
    with (builds.path / "weights.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="damaged"):  # engines are code: `verify` changes nothing
        open_bundle(builds.path, "tensorrt", verify=False)


def test_missing_tensorrt_is_one_line(
    builds: Builds, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_api, "_load", inspect.unwrap(tensorrt_api._load))
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    needs, rtx_needs = (
        f"{title} needs the package '{package}', which is not installed; run: pip install 'wfvae[{extra}]'"
        for title, package, extra in (
            ("TensorRT", "tensorrt", "tensorrt"),
            ("TensorRT-RTX", "tensorrt_rtx", "rtx"),
        )
    )
    for flavour, text in {
        "tensorrt": needs,
        "rtx": rtx_needs,
        "auto": f"TensorRT can't build here ({needs}), and {rtx_needs}",
    }.items():
        assert main(["build", str(builds.path), "--flavour", flavour]) == 2
        assert capsys.readouterr().err == f"wfvae build: {text}\n"
    with pytest.raises(MissingExtraError, match=r"wfvae\[tensorrt\]"):
        open_bundle(builds.path, "tensorrt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--flavour", "tensorrt", "--compute-capability", "8.9"],
            "is for the GPU that builds it; leave it out",
        ),
        (["--flavour", "rtx", "--device", "0"], "--device was given, and TensorRT-RTX builds without a GPU"),
        (["--flavour", "rtx", "--timing-cache-only"], "--timing-cache-only was given, and TensorRT-RTX"),
        (["--compute-capability", "9.0"], "can't build for compute capability 9.0; expected some of"),
    ],
)
def test_options_of_the_other_flavour_are_refused(
    builds: Builds,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    found = {flavour: TensorRT(builds.trt, flavour) for flavour in tensorrt_api.FLAVOURS.values()}
    monkeypatch.setattr("wfvae.spec.tensorrt_api.TensorRT.load", found.__getitem__)
    assert main(["build", str(builds.path), *options]) == 2
    assert message in capsys.readouterr().err


def test_warnings_of_the_builder_are_shown_once(
    builds: Builds, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wfvae.spec.tensorrt_api.TensorRT.load", lambda flavour: TensorRT(builds.trt))
    monkeypatch.setattr("wfvae.runtime.backends.nvidia.cuda.Cuda", lambda device_id: builds.cuda)
    builds.trt.warning = "a kernel\nis slow"
    arguments = ["build", str(builds.path), "--size", "16x24"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("warning of TensorRT: a kernel is slow") == 1
    assert main([*arguments, "--again", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == ["a kernel is slow"]


def test_contradicting_sizes_are_refused(builds: Builds, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(builds.path), "--size", "16x16", "--height", "16"]) == 2
    assert "give one or the other" in capsys.readouterr().err
