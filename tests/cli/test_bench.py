"""`wfvae bench`: what it measures, what it chooses, and where the choice holds."""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fixtures.program import Program, clip, names, save
from wfvae.errors import BundleError, InputError
from wfvae.machine import processor_count, processor_name
from wfvae.runtime import Bundle, decode_video, encode_video, open_bundle
from wfvae.runtime.backends.onnxruntime import OnnxRuntimeStep
from wfvae.runtime.chunk_speed import ChunkSpeed, choose
from wfvae.spec.frames import DEFAULT_CHUNK
from wfvae.spec.manifest import Manifest
from wfvae.spec.tuning import TUNING_NAME, Setting, TunedChunk, Tuning

CPU = ("--provider", "cpu", "--threads", "1")
SIZE = ("--size", "14x20", "--runs", "2")


@pytest.fixture
def copy(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle of this test alone."""
    return Path(shutil.copytree(exported("small"), tmp_path / "bundle"))


def open_here(path: Path, **options: Any) -> Bundle:
    return open_bundle(path, **{"provider": "cpu", "threads": 1, **options})


def entry(bundle: Bundle, direction: Any = "encoder", chunk: int = 2, width: int = 24) -> TunedChunk:
    setting = Setting.here(bundle.backend.describe())
    return TunedChunk(direction, 16, width, setting, chunk, {1: 0.25, chunk: 0.125}, "1.2.3")


def default(bundle: Bundle, direction: Any = "encoder", height: int = 16, width: int = 24) -> int:
    return bundle.default_chunk(direction, height=height, width=width)


def failing(number: int, reason: str) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, reason)

    return fail


def test_bench_measures_every_length_and_stores_nothing_unasked(program: Program, copy: Path) -> None:
    before, bundle = names(copy), open_here(copy)
    result = program.done("bench", copy, *CPU, *SIZE, "--chunks", 2, 1, 2)
    rows = [(row["direction"], row["chunk"], row["frames"], row["runs"]) for row in result["results"]]
    assert rows == [("encoder", 1, 4, 2), ("encoder", 2, 8, 2), ("decoder", 1, 4, 2), ("decoder", 2, 8, 2)]
    for row in result["results"]:
        assert row["seconds"] > 0 and 0 < row["outside_engine"] < 1
        assert row["frames_per_second"] == pytest.approx(row["frames"] / row["seconds"])
        assert row["seconds_per_frame"] == pytest.approx(row["seconds"] / row["frames"])
        plan = bundle.plan(row["direction"], height=14, width=20, chunk=row["chunk"])
        assert row["planned_bytes"] == plan.total_bytes
    assert result["tuned"] is None and result["machine"]["cores"] >= 1
    assert result["backend"]["name"] == "onnxruntime" and names(copy) == before


def test_tuned_bundle_streams_in_the_chosen_chunks_and_keeps_its_identity(
    program: Program, copy: Path, tmp_path: Path
) -> None:
    video = save(tmp_path / "in.mp4", clip(13, 14, 20))
    identity, manifest = open_here(copy).identity, (copy / "manifest.json").read_bytes()
    program.done("encode", copy, video, tmp_path / "before.npy", *CPU)
    with open_here(copy).encoder(height=14, width=20) as stream:
        stream.push(clip(3, 14, 20))
        snapshot = stream.snapshot()
    tuned = program.done("bench", copy, *CPU, *SIZE, "--chunks", 1, 3, "--tune")["tuned"]
    assert set(tuned) == {"encoder", "decoder"} and set(tuned.values()) <= {1, 3}
    bundle = open_here(copy)
    for direction, chunk in tuned.items():
        assert default(bundle, direction, 14, 20) == default(bundle, direction, 16, 24) == chunk
        assert default(bundle, direction, 17, 20) == DEFAULT_CHUNK  # another padded size
        assert bundle.plan(direction, height=14, width=20).chunk == chunk
    assert bundle.identity == identity and (copy / "manifest.json").read_bytes() == manifest
    bundle.restore(snapshot).close()
    program.done("encode", copy, video, tmp_path / "after.npy", *CPU)
    assert np.array_equal(np.load(tmp_path / "before.npy"), np.load(tmp_path / "after.npy"))
    assert f"encoder 16x24 chunk {tuned['encoder']} (onnxruntime" in program("inspect", copy).out


def test_streams_pools_and_files_step_by_the_chosen_chunk(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, frames, lengths = open_here(copy), clip(25, 16, 24), []  # 7 latents
    bundle.store_tuning(entry(bundle, "encoder", 3), entry(bundle, "decoder", 2))
    video, step = save(tmp_path / "in.mp4", frames), OnnxRuntimeStep.step

    def counted(session: Any, state: Any, x: Any, *flags: Any) -> Any:
        lengths.append(x.shape[1] // (4 if session.graph.direction == "encoder" else 1))
        return step(session, state, x, *flags)

    def run_stream() -> None:
        with bundle.encoder(height=16, width=24) as stream:
            stream.run(frames)

    def run_pool() -> None:
        with bundle.encoder_pool(height=16, width=24, rows=1) as rows:
            list(rows.run({0: [frames]}))

    monkeypatch.setattr(OnnxRuntimeStep, "step", counted)
    jobs: list[tuple[Callable[[], object], list[int]]] = [
        (run_stream, [3, 3, 1]),
        (run_pool, [3, 3, 1]),
        (lambda: bundle.encode(frames, chunk=1), [1] * 7),
        (lambda: encode_video(bundle, video, tmp_path / "z.npy"), [3, 3, 1]),
        (lambda: decode_video(bundle, tmp_path / "z.npy", tmp_path / "out.mkv"), [2, 2, 2, 1]),
    ]
    for job, expected in jobs:
        lengths.clear()
        job()
        assert lengths[: len(expected)] == expected


def test_wrong_use_and_read_only_bundle_are_refused_before_measuring(
    program: Program, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--size" in program.refused("bench", copy)
    assert "'0' is not an integer of at least 1" in program.refused("bench", copy, "--chunks", 0)
    assert "more than the limit" in program.refused("bench", copy, *CPU, *SIZE, "--limit", "1K")
    setting = Setting({"name": "onnxruntime", "device": "cuda:0"}, "a CPU", 1)
    with pytest.raises(InputError, match="cuda:0, which does not name the GPU"):
        setting.require_named_device()
    measured = "wfvae.runtime.chunk_speed.measure_direction"
    monkeypatch.setattr(measured, lambda *arguments: pytest.fail("it began to measure"))
    monkeypatch.setattr("wfvae.files.Destination.create_file", failing(30, "Read-only file system"))
    line = program.refused("bench", copy, *CPU, *SIZE, "--tune")
    assert f"cannot write {copy / TUNING_NAME}: Read-only file system" in line and "without --tune" in line


def test_measurements_that_cannot_be_stored_are_shown(
    program: Program, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wfvae.files.os.replace", failing(28, "No space left on device"))
    outcome = program("bench", copy, *CPU, *SIZE, "--chunks", 1, "--direction", "decode", "--tune", "--json")
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "No space left on device" in outcome.err and "the chunk lengths were not stored" in outcome.err
    assert TUNING_NAME not in names(copy)
    assert [row["direction"] for row in outcome.report["results"]] == ["decoder"]
    assert outcome.report["tuned"] is None


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1e3), min_size=1))
def test_choice_is_within_three_per_cent_of_the_fastest_and_no_shorter_one_is(
    seconds: dict[int, float],
) -> None:
    measured = [ChunkSpeed("encoder", n, 4 * n, 4 * n * each, 0.1, 1, 1) for n, each in seconds.items()]
    chosen, fastest = choose(measured).chunk, min(seconds.values())
    assert seconds[chosen] <= fastest * 1.0301
    assert all(each > fastest * 1.0299 for chunk, each in seconds.items() if chunk < chosen)


@pytest.mark.parametrize("change", [{"cpu": "another CPU"}, {"cores": 1000}, {"backend": {"name": "x"}}])
def test_choice_of_another_machine_or_backend_is_not_taken(copy: Path, change: dict[str, Any]) -> None:
    bundle = open_here(copy)
    own = entry(bundle)
    bundle.store_tuning(replace(own, setting=replace(own.setting, **change)))
    assert default(open_here(copy)) == DEFAULT_CHUNK
    bundle.store_tuning(replace(own, chunk=5))
    bundle.store_tuning(own)
    assert default(open_here(copy)) == own.chunk
    assert default(open_here(copy, threads=2)) == DEFAULT_CHUNK
    assert len(Tuning.read(copy, bundle.identity).entries) == 2


def test_choice_that_does_not_fit_the_limit_is_not_taken(copy: Path) -> None:
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle, chunk=40))
    limit = bundle.plan("encoder", height=16, width=24, chunk=DEFAULT_CHUNK).total_bytes
    assert default(open_here(copy, memory_limit=limit)) == DEFAULT_CHUNK
    assert default(open_here(copy, memory_limit=limit - 1)) == DEFAULT_CHUNK // 2
    assert default(open_here(copy, memory_limit=1)) == 1
    assert default(open_here(copy, memory_limit=100 * limit)) == 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"chunk": 2', '"chunk": 3'),
        lambda text: "[]",
    ],
)
def test_damaged_file_is_named_and_can_be_made_anew(copy: Path, damage: Callable[[str], str]) -> None:
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle))
    path = copy / TUNING_NAME
    path.write_text(damage(path.read_text()))
    advice = r"tuning.json is damaged .*remove it, and measure again with: wfvae bench"
    with pytest.raises(BundleError, match=advice):
        open_here(copy).encoder(height=16, width=24)
    open_here(copy).encode(np.zeros((1, 16, 24, 3), np.uint8), chunk=1)  # needs no default
    open_here(copy).store_tuning(entry(bundle, chunk=7))
    assert default(open_here(copy)) == 7


def test_file_is_as_documented(copy: Path) -> None:
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle))
    backend = {"name": "onnxruntime", "provider": "CPUExecutionProvider", "device": "cpu", "threads": "1"}
    setting = {"backend": backend, "cpu": processor_name(), "cores": processor_count()}
    choice = {"direction": "encoder", "height": 16, "width": 24, "setting": setting, "chunk": 2}
    choice |= {"seconds_per_frame": {"1": 0.25, "2": 0.125}, "version": "1.2.3"}
    content = {"format": "wfvae-tuning/1", "bundle": Manifest.read(copy).identity, "entries": [choice]}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    assert json.loads((copy / TUNING_NAME).read_text()) == {**content, "sha256": sha256}


def test_choices_stored_at_the_same_time_are_all_kept(copy: Path) -> None:
    bundle = open_here(copy)
    widths = range(8, 104, 8)

    def store(width: int) -> None:
        Tuning.store(copy, bundle.identity, entry(bundle, width=width))

    with ThreadPoolExecutor(len(widths)) as threads:
        list(threads.map(store, widths))
    assert sorted(found.width for found in Tuning.read(copy, bundle.identity).entries) == list(widths)
