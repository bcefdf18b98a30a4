"""`wfvae build` over a stand-in for TensorRT: this project's logic, without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.fake_cuda import FakeCuda
from fixtures.fake_tensorrt import FakeTensorRT
from wfvae.cli.main import main
from wfvae.errors import BundleError, MissingExtraError, ResourceError
from wfvae.export.tensorrt.build import BuildReport, build_engines, timing_cache_path
from wfvae.export.tensorrt.timing_cache import TimingCacheFile
from wfvae.runtime import open_bundle
from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
from wfvae.spec.engines import BuildSettings, Span, engine_records, read_engine
from wfvae.spec.manifest import Manifest
from wfvae.spec.tensorrt import TensorRT

NAME = "4x8x8-nearest-16ch"
SETTINGS = BuildSettings(batch=Span(1, 2, 4), chunk=3, height=Span(16, 32, 64), width=Span(8, 48, 96))


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


def test_build_gives_engine_per_direction_with_profiles_of_manifest(builds: Builds) -> None:
    identity = Manifest.read(builds.path).identity
    report = builds.run()
    assert [record.graph for record in report.built] == ["encoder", "decoder"] and not report.kept
    manifest = Manifest.read(builds.path)
    assert manifest.identity == identity and tuple(engine_records(manifest)) == report.built
    assert all(read_engine(record, builds.path) for record in report.built)
    assert builds.trt.builds[0].network.path == builds.path / "encoder.onnx"
    steady, short = builds.trt.builds[0].profiles
    assert steady["frames"] == ((1, 12, 3, 16, 8), (2, 12, 3, 32, 48), (4, 12, 3, 64, 96))
    assert short["frames"] == ((1, 4, 3, 16, 8), (2, 4, 3, 32, 48), (4, 8, 3, 64, 96))
    assert steady["start"] == short["start"] == ((1,), (2,), (4,))
    graph = manifest.graphs["encoder"]
    assert set(steady) == {t.name for t in graph.inputs} | {f"state.{s.name}" for s in graph.states}
    for state in graph.states:
        low, _, high = steady[f"state.{state.name}"]
        assert (low, high) == (state.resolve(1, 16, 8), state.resolve(4, 64, 96))


def test_whole_clips_and_direct_graphs_are_built_on_request(builds: Builds) -> None:
    report = builds.run(BuildSettings(whole_clip=6, height=Span.of(16), width=Span.of(16)))
    graphs = ["encoder", "encoder.direct", "decoder", "decoder.direct"]
    assert [record.graph for record in report.built] == graphs
    assert [profile.name for profile in report.built[0].profiles] == ["chunk", "short", "whole clip"]
    step, direct = builds.trt.builds[0].profiles[-1], builds.trt.builds[1].profiles[0]
    # Verification runs two streams in a batch; a direct graph takes 1 + r n frames.
    assert step["frames"][2] == (2, 24, 3, 16, 16)
    assert direct["frames"] == ((1, 9, 3, 16, 16), (1, 21, 3, 16, 16), (2, 21, 3, 16, 16))


def test_bundle_of_fixed_size_overrides_size(exported: Callable[..., Path], tmp_path: Path) -> None:
    builds = Builds(exported(NAME, size=(16, 24)), tmp_path)
    assert builds.run().built[0].settings.height == Span.of(16)
    assert {shape[3:] for shape in builds.trt.builds[0].profiles[0]["frames"]} == {(16, 24)}


@pytest.mark.parametrize("tf32", [False, True])
def test_flags_and_limits_are_set_explicitly(builds: Builds, tf32: bool) -> None:
    builds.run(BuildSettings(tf32=tf32, optimization_level=5, workspace=1 << 30))
    flags = builds.trt.BuilderFlag
    for config in builds.trt.builds:
        assert config.flags == {flags.EDITABLE_TIMING_CACHE} | ({flags.TF32} if tf32 else set())
        assert config.network.flags == 1 << builds.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert config.builder_optimization_level == 5
        assert config.pools == {builds.trt.MemoryPoolType.WORKSPACE: 1 << 30}


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
    versions = [record.target.tensorrt for record in engine_records(Manifest.read(builds.path))]
    assert sorted(versions) == ["10.13.3.9"] * 2 + ["11.4.0"] * 2


def test_damaged_entry_is_replaced(builds: Builds) -> None:
    builds.run()
    manifest = Manifest.read(builds.path)
    damaged = {**manifest.engines[0], "precision": "fp64"}, {"file": "engines/x"}
    manifest.with_engines((*damaged, manifest.engines[1])).write(builds.path)
    with pytest.raises(BundleError, match="build the engines anew"):
        builds.listed()
    assert [record.graph for record in builds.run().built] == ["encoder"]
    assert sorted(builds.listed()) == ["decoder", "encoder"]


def test_engine_added_during_build_stays_listed(builds: Builds) -> None:
    def build_other() -> None:
        builds.trt.build_result = "built"
        builds.run(BuildSettings(chunk=1))

    builds.trt.build_result = build_other
    builds.run()
    assert sorted(builds.listed()) == ["decoder"] * 2 + ["encoder"] * 2


# The timing cache ---------------------------------------------------------------------------------


def test_timing_cache_is_written_and_reused(builds: Builds, tmp_path: Path) -> None:
    builds.run()
    assert builds.cache.name == "trt11.4.0-fake-gpu-sm90.timing-cache"
    assert builds.cache.read_bytes() == b"timed;timed;"
    other = TimingCacheFile(tmp_path / "folder" / "cache")
    builds.run(again=True, timing_cache=other)
    assert other.path.read_bytes() == b"timed;timed;"


def test_read_only_timing_cache_must_exist_and_is_not_changed(builds: Builds, tmp_path: Path) -> None:
    cache = TimingCacheFile(tmp_path / "cache", read_only=True)
    with pytest.raises(BundleError, match="there is no timing cache"):
        builds.run(timing_cache=cache)
    cache.path.write_bytes(b"known;")
    builds.run(timing_cache=cache)
    assert cache.path.read_bytes() == b"known;"
    assert builds.trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS in builds.trt.builds[-1].flags
    builds.trt.build_result = None
    with pytest.raises(BundleError, match="the timing cache has no entry"):
        builds.run(again=True, timing_cache=cache)


@pytest.mark.parametrize("content", [b"damaged", b"of another GPU"])
def test_unfit_timing_cache_is_refused(builds: Builds, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").write_bytes(content)
    with pytest.raises(BundleError, match="refuses the timing cache"):
        builds.run(timing_cache=TimingCacheFile(tmp_path / "cache"))
    assert not builds.files()


# Progress and failures ----------------------------------------------------------------------------


def test_error_has_tensorrts_reason(builds: Builds) -> None:
    builds.trt.build_result = None
    with pytest.raises(
        BundleError, match=r"could not build encoder.onnx: no kernel for this layer; narrower"
    ):
        builds.run()
    builds.trt.parse_errors = ["unsupported"]
    with pytest.raises(BundleError, match=r"TensorRT 11\.4\.0 can't read encoder.onnx: some/node: unsuppor"):
        builds.run()
    assert not builds.files() and not builds.listed()


def test_progress_names_phases_and_counts_steps(builds: Builds) -> None:
    seen: list[tuple[str, int, int]] = []

    def report(*progress: Any) -> None:
        seen.append(progress)
        raise OSError("a display that fails stops no build")

    assert len(builds.run(progress=report).built) == 2
    assert ("encoder: Building Engine", 0, 3) in seen and ("encoder: Building Engine, Timing", 1, 3) in seen
    assert seen[-1] == ("decoder: Building Engine", 3, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_between_steps_without_partial_file(builds: Builds, number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    builds.trt.build_result = lambda: len(builds.trt.builds) == 2 and os.kill(os.getpid(), number)
    with pytest.raises(KeyboardInterrupt):
        builds.run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    [record] = engine_records(Manifest.read(builds.path))
    assert record.graph == "encoder"
    assert builds.files() == sorted([Path(record.file).name, builds.cache.name])
    builds.trt.build_result = "built"
    assert [record.graph for record in builds.run().built] == ["decoder"]


def test_full_disk_leaves_nothing(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wfvae.files.commit", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        builds.run()
    assert not builds.files() and not builds.listed()


def test_changed_bundle_is_refused(builds: Builds) -> None:
    with (builds.path / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"decoder\.onnx has \d+ bytes instead"):
        builds.run()


# The command and open_bundle ----------------------------------------------------------------------


@pytest.fixture
def installed(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """As if TensorRT were installed and there were a GPU."""
    monkeypatch.setattr("wfvae.spec.tensorrt.TensorRT.load", lambda: TensorRT(builds.trt))
    for module in ("cuda", "tensorrt_backend"):
        monkeypatch.setattr(f"wfvae.runtime.backends.nvidia.{module}.Cuda", lambda device_id: builds.cuda)
    return builds


def test_command_builds_and_open_bundle_runs(installed: Builds, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["build", str(installed.path), "--size", "15x24", "--batch", "1:1:2", "--chunk", "2"]
    assert main([*arguments, "--json"]) == 0
    built = json.loads(capsys.readouterr().out)["built"]
    assert [engine["graph"] for engine in built] == ["encoder", "decoder"]
    assert built[0]["settings"]["height"] == {"low": 16, "best": 16, "high": 16}
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "kept engines/encoder-" in text and "TensorRT 11.4.0 on Fake GPU (compute capability 9.0)" in text
    frames = np.random.default_rng(0).integers(0, 256, (9, 15, 24, 3), dtype=np.uint8)
    with (
        open_bundle(installed.path, "tensorrt", cuda_graphs=True, verify=False) as engines,
        open_bundle(installed.path) as reference,
    ):
        assert np.array_equal(engines.encode(frames, chunk=2), reference.encode(frames, chunk=2))
    with (installed.path / "weights.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="damaged"):  # engines are code: `verify` changes nothing
        open_bundle(installed.path, "tensorrt", verify=False)


def test_bundle_without_engines_names_the_command(installed: Builds) -> None:
    with (
        open_bundle(installed.path, "tensorrt") as bundle,
        pytest.raises(BundleError, match=r"has no TensorRT engine for encoder.*wfvae build"),
    ):
        bundle.encoder(height=16, width=16)


def test_missing_tensorrt_is_one_line(
    builds: Builds, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["build", str(builds.path)]) == 2
    needs = "wfvae build: TensorRT needs the package 'tensorrt', which is not installed; run: pip install"
    assert capsys.readouterr().err == f"{needs} 'wfvae[tensorrt]'\n"
    with pytest.raises(MissingExtraError, match=r"wfvae\[tensorrt\]"):
        open_bundle(builds.path, "tensorrt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "16x16", "--height", "16"], "give one or the other"),
        (["--height", "20"], "multiples of 8"),
    ],
)
def test_contradicting_sizes_are_refused(
    builds: Builds, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["build", str(builds.path), *arguments]) == 2
    assert message in capsys.readouterr().err
