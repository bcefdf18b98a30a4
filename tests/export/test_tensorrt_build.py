"""`wfvae build` against a stand-in for TensorRT: a test of our logic, not of TensorRT; nothing here
runs on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.fake_cuda import FakeCuda
from fixtures.fake_tensorrt import FakeTensorRT
from wfvae.cli.main import main
from wfvae.errors import BundleError, MissingExtraError, ResourceError
from wfvae.export.tensorrt.build import BuildReport, build_engines, timing_cache_path
from wfvae.export.tensorrt.progress import BuildProgress, cancelling
from wfvae.export.tensorrt.timing_cache import TimingCacheFile
from wfvae.runtime import open_bundle
from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
from wfvae.spec.engines import BuildSettings, Span, engine_records, read_engine
from wfvae.spec.manifest import Manifest

NAME = "4x8x8-nearest-16ch"
SETTINGS = BuildSettings(batch=Span(1, 2, 4), chunk=3, height=Span(16, 32, 64), width=Span(8, 48, 96))


class Builds:
    """A copy of a bundle and a stand-in that builds for it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.path = folder / "bundle"
        shutil.copytree(source, self.path)
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda)
        self.target = target_here(self.trt, self.cuda)

    def run(self, settings: BuildSettings = SETTINGS, **options: Any) -> BuildReport:
        return build_engines(self.path, settings, target_here(self.trt, self.cuda), self.trt, **options)

    def files(self) -> list[str]:
        folder = self.path / "engines"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def builds(exported: Callable[..., Path], tmp_path: Path) -> Builds:
    return Builds(exported(NAME), tmp_path)


def test_one_engine_per_direction_with_a_profile_per_kind_of_step(builds: Builds) -> None:
    identity = Manifest.read(builds.path).identity
    report = builds.run()
    assert [record.graph for record in report.built] == ["encoder", "decoder"] and not report.kept
    manifest = Manifest.read(builds.path)
    assert manifest.identity == identity and tuple(engine_records(manifest)) == report.built
    for record in report.built:
        assert read_engine(record, builds.path)
        assert record.target == builds.target and record.precision == "fp32"
    encoder = builds.trt.builds[0]
    assert encoder.network.path == builds.path / "encoder.onnx"
    steady, short = encoder.profiles
    assert steady["frames"] == ((1, 12, 3, 16, 8), (2, 12, 3, 32, 48), (4, 12, 3, 64, 96))
    assert short["frames"] == ((1, 4, 3, 16, 8), (2, 4, 3, 32, 48), (4, 8, 3, 64, 96))
    assert steady["start"] == ((1,), (2,), (4,))
    graph = manifest.graphs["encoder"]
    assert set(steady) == {t.name for t in graph.inputs} | {f"state.{s.name}" for s in graph.states}
    for state in graph.states:
        for (low, _, high), (height, width) in (
            (steady[f"state.{state.name}"], (64, 96)),
            (short[f"state.{state.name}"], (64, 96)),
        ):
            assert high == state.resolve(4, height, width) and low == state.resolve(1, 16, 8)
    assert all(
        0 not in shape
        for config in builds.trt.builds
        for profile in config.profiles
        for shapes in profile.values()
        for shape in shapes
    )


def test_whole_clips_and_direct_graphs_on_request(builds: Builds) -> None:
    report = builds.run(BuildSettings(whole_clip=6, height=Span.of(16), width=Span.of(16)))
    assert [record.graph for record in report.built] == [
        "encoder",
        "encoder.direct",
        "decoder",
        "decoder.direct",
    ]
    assert [profile.name for profile in report.built[0].profiles] == ["chunk", "short", "whole clip"]
    step, direct = builds.trt.builds[0].profiles[-1], builds.trt.builds[1].profiles[0]
    # Two streams in a batch, as verification runs them; a direct graph takes 1 + r n frames.
    assert step["frames"][2] == (2, 24, 3, 16, 16) and direct["frames"] == (
        (1, 9, 3, 16, 16),
        (1, 21, 3, 16, 16),
        (2, 21, 3, 16, 16),
    )


def test_a_fixed_size_is_the_only_size(exported: Callable[..., Path], tmp_path: Path) -> None:
    builds = Builds(exported(NAME, size=(16, 24)), tmp_path)
    builds.run()
    assert {shape[3:] for shape in builds.trt.builds[0].profiles[0]["frames"]} == {(16, 24)}
    assert engine_records(Manifest.read(builds.path))[0].settings.height == Span.of(16)


@pytest.mark.parametrize("tf32", [False, True])
def test_flags_and_limits_are_said_explicitly(builds: Builds, tf32: bool) -> None:
    builds.run(BuildSettings(tf32=tf32, optimization_level=5, workspace=1 << 30))
    flags = builds.trt.BuilderFlag
    for config in builds.trt.builds:
        assert (flags.TF32 in config.flags) is tf32
        assert (
            flags.EDITABLE_TIMING_CACHE in config.flags
            and flags.ERROR_ON_TIMING_CACHE_MISS not in config.flags
        )
        assert config.network.flags == 1 << builds.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert config.builder_optimization_level == 5 and config.pools == {
            builds.trt.MemoryPoolType.WORKSPACE: 1 << 30
        }


def test_what_is_there_is_kept_and_the_rest_is_built(builds: Builds) -> None:
    first = builds.run()
    again = builds.run()
    assert again.kept == first.built and not again.built and len(builds.trt.builds) == 2
    assert len(builds.run(again=True).built) == 2
    (builds.path / first.built[0].file).write_bytes(b"damaged")
    report = builds.run()
    assert [r.graph for r in report.built] == ["encoder"] and [r.graph for r in report.kept] == ["decoder"]
    # Another version adds engines; the others stay listed.
    builds.trt.__version__ = "10.13.3.9"
    builds.run()
    listed = engine_records(Manifest.read(builds.path))
    assert sorted(record.target.tensorrt for record in listed) == ["10.13.3.9"] * 2 + ["11.4.0"] * 2
    assert len({record.file for record in listed}) == 4


def test_a_damaged_entry_is_replaced(builds: Builds) -> None:
    builds.run()
    manifest = Manifest.read(builds.path)
    manifest.with_engines(
        ({**manifest.engines[0], "precision": "fp64"}, {"file": "engines/x"}, manifest.engines[1])
    ).write(builds.path)
    with pytest.raises(BundleError, match="build the engines anew"):
        engine_records(Manifest.read(builds.path))
    assert [record.graph for record in builds.run().built] == ["encoder"]
    assert len(engine_records(Manifest.read(builds.path))) == 2


def test_the_timing_cache_is_written_and_reused(builds: Builds, tmp_path: Path) -> None:
    builds.run()
    path = timing_cache_path(builds.path, builds.target)
    assert path.name == "trt11.4.0-fake-gpu-sm90.timing-cache" and path.read_bytes() == b"timed;timed;"
    other = TimingCacheFile(tmp_path / "folder" / "cache")
    builds.run(again=True, timing_cache=other)
    assert other.path.read_bytes() == b"timed;timed;"


def test_a_read_only_timing_cache_must_be_there_and_is_not_changed(builds: Builds, tmp_path: Path) -> None:
    cache = TimingCacheFile(tmp_path / "cache", read_only=True)
    with pytest.raises(BundleError, match="there is no timing cache"):
        builds.run(timing_cache=cache)
    cache.path.write_bytes(b"known;")
    builds.run(timing_cache=cache)
    assert cache.path.read_bytes() == b"known;"
    assert all(
        builds.trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS in config.flags for config in builds.trt.builds
    )
    builds.trt.build_result = None
    with pytest.raises(BundleError, match="the timing cache has no entry"):
        builds.run(again=True, timing_cache=cache)


@pytest.mark.parametrize("content", [b"damaged", b"of another GPU"])
def test_a_timing_cache_of_another_gpu_is_refused(builds: Builds, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").write_bytes(content)
    with pytest.raises(BundleError, match="refuses the timing cache"):
        builds.run(timing_cache=TimingCacheFile(tmp_path / "cache"))
    assert not builds.files()


def test_tensorrts_reasons_are_passed_on(builds: Builds) -> None:
    builds.trt.build_result = None
    with pytest.raises(
        BundleError, match=r"could not build encoder.onnx: no kernel for this layer; narrower"
    ):
        builds.run()
    builds.trt.parse_errors = ["unsupported"]
    with pytest.raises(
        BundleError, match=r"TensorRT 11\.4\.0 can't read encoder.onnx: some/node: unsupported"
    ):
        builds.run()
    assert not builds.files() and not Manifest.read(builds.path).engines


def test_progress_names_phases_and_counts_steps(builds: Builds) -> None:
    seen: list[tuple[str, int, int]] = []
    builds.run(progress=lambda *report: seen.append(report))
    assert ("encoder: Building Engine", 0, 3) in seen and ("encoder: Building Engine, Timing", 1, 3) in seen
    assert seen[-1] == ("decoder: Building Engine", 3, 3)


def test_a_display_that_fails_stops_no_build(builds: Builds) -> None:
    def fail(*report: Any) -> None:
        raise OSError("the terminal is gone")

    assert len(builds.run(progress=fail).built) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_between_steps_and_leaves_no_half_file(builds: Builds, number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    builds.trt.build_result = lambda: len(builds.trt.builds) == 2 and os.kill(os.getpid(), number)
    with pytest.raises(KeyboardInterrupt):
        builds.run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    # The encoder had been finished, and stays; the decoder is not there at all.
    [record] = engine_records(Manifest.read(builds.path))
    assert record.graph == "encoder"
    assert builds.files() == sorted(
        [Path(record.file).name, timing_cache_path(builds.path, builds.target).name]
    )
    builds.trt.build_result = "built"
    assert [record.graph for record in builds.run().built] == ["decoder"]


def test_an_interrupt_is_not_lost_when_tensorrt_finishes_all_the_same() -> None:
    progress = BuildProgress("encoder", lambda *report: None)
    with pytest.raises(KeyboardInterrupt), cancelling(progress):
        os.kill(os.getpid(), signal.SIGINT)
        assert progress.cancelled and not progress.advance("phase", 0)


def test_a_full_disk_leaves_nothing(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: Any) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        builds.run()
    assert not builds.files() and not Manifest.read(builds.path).engines


def test_a_changed_bundle_is_not_built_from(builds: Builds) -> None:
    with (builds.path / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"decoder\.onnx has \d+ bytes instead"):
        builds.run()


# The command and open_bundle ----------------------------------------------------------------------


@pytest.fixture
def installed(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """As if TensorRT were installed and there were a GPU."""
    monkeypatch.setattr("wfvae.spec.tensorrt.load_tensorrt", lambda: builds.trt)
    monkeypatch.setattr("wfvae.runtime.backends.nvidia.tensorrt_backend.load_tensorrt", lambda: builds.trt)
    monkeypatch.setattr("wfvae.runtime.backends.nvidia.cuda.CudaBindings", lambda device_id: builds.cuda)
    monkeypatch.setattr(
        "wfvae.runtime.backends.nvidia.tensorrt_backend.CudaBindings", lambda device_id: builds.cuda
    )
    return builds


def test_the_command_builds_and_open_bundle_runs(
    installed: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

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
    with pytest.raises(
        BundleError, match="damaged"
    ):  # hashes are checked for engines, whatever `verify` says
        open_bundle(installed.path, "tensorrt", verify=False)


def test_without_engines_the_error_is_the_command(installed: Builds) -> None:
    with (
        open_bundle(installed.path, "tensorrt") as bundle,
        pytest.raises(BundleError, match=r"has no TensorRT engine for encoder.*wfvae build"),
    ):
        bundle.encoder(height=16, width=16)


def test_without_tensorrt_the_error_is_one_line(builds: Builds, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("TensorRT is installed here")
    assert main(["build", str(builds.path)]) == 2
    assert (
        capsys.readouterr().err
        == "wfvae build: TensorRT needs the package 'tensorrt', which is not installed; run: pip install"
        " 'wfvae[tensorrt]'\n"
    )
    with pytest.raises(MissingExtraError, match=r"wfvae\[tensorrt\]"):
        open_bundle(builds.path, "tensorrt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "16x16", "--height", "16"], "give one or the other"),
        (["--height", "20"], "multiples of 8"),
    ],
)
def test_contradicting_sizes(
    builds: Builds, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["build", str(builds.path), *arguments]) == 2
    assert message in capsys.readouterr().err
