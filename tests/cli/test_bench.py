"""`wfvae bench`: what it measures, what it chooses, and where the choice holds. No time is asserted
anywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.program import Program, clip, names, save
from wfvae.errors import BundleError, InputError, ResourceError
from wfvae.evaluation.sources import reconstruct
from wfvae.runtime import Bundle, decode_video, encode_video, open_bundle
from wfvae.runtime.chunk_speed import ChunkSpeed, choose, measure_direction
from wfvae.runtime.stream import DEFAULT_CHUNK
from wfvae.spec.manifest import Manifest
from wfvae.spec.tuning import TUNING_NAME, Setting, TunedChunk, Tuning

CPU = ("--provider", "cpu", "--threads", "1")
SIZE = ("--size", "14x20", "--runs", "2")


@pytest.fixture
def copy(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle of this test alone."""
    return Path(shutil.copytree(exported("small"), tmp_path / "bundle"))


def open_here(path: Path, **options: Any) -> Bundle:
    return open_bundle(path, provider="cpu", threads=1, **options)


def entry(
    bundle: Bundle, direction: Any = "encoder", chunk: int = 2, height: int = 16, width: int = 24
) -> TunedChunk:
    return TunedChunk(
        direction,
        height,
        width,
        Setting.here(bundle.backend.describe()),
        chunk,
        {1: 0.25, chunk: 0.125},
        "1.2.3",
    )


# The command --------------------------------------------------------------------------------------


def test_it_measures_and_stores_nothing_unasked(program: Program, copy: Path) -> None:
    before = names(copy)
    result = program.done("bench", copy, *CPU, *SIZE, "--chunks", 2, 1, 2)
    assert [(r["direction"], r["chunk"], r["frames"], r["runs"]) for r in result["results"]] == [
        ("encoder", 1, 4, 2),
        ("encoder", 2, 8, 2),
        ("decoder", 1, 4, 2),
        ("decoder", 2, 8, 2),
    ]
    for row in result["results"]:
        assert row["seconds"] > 0 and 0 < row["outside_engine"] < 1
        assert row["frames_per_second"] == pytest.approx(row["frames"] / row["seconds"])
        assert row["seconds_per_frame"] == pytest.approx(row["seconds"] / row["frames"])
        assert (
            row["planned_bytes"]
            == open_here(copy).plan(row["direction"], height=14, width=20, chunk=row["chunk"]).total_bytes
        )
    assert (
        result["tuned"] is None
        and result["backend"]["name"] == "onnxruntime"
        and result["machine"]["cores"] >= 1
    )
    assert names(copy) == before
    one = program("bench", copy, *CPU, *SIZE, "--chunks", 1, "--direction", "decode")
    assert one.code == 0 and "decoder" in one.out and "encoder" not in one.out and "frames/s" in one.out


def test_a_tuned_bundle_streams_by_it_and_stays_itself(program: Program, copy: Path, tmp_path: Path) -> None:
    video = save(tmp_path / "in.mp4", clip(13, 14, 20))
    identity = open_here(copy).identity
    manifest = (copy / "manifest.json").read_bytes()
    program.done("encode", copy, video, tmp_path / "before.npy", *CPU)
    with open_here(copy).encoder(height=14, width=20) as stream:
        stream.push(clip(3, 14, 20))
        snapshot = stream.snapshot()
    tuned = program.done("bench", copy, *CPU, *SIZE, "--chunks", 1, 3, "--tune")["tuned"]
    assert set(tuned) == {"encoder", "decoder"} and set(tuned.values()) <= {1, 3}
    bundle = open_here(copy)
    for direction, chunk in tuned.items():
        assert bundle.default_chunk(direction, height=14, width=20) == chunk
        assert bundle.default_chunk(direction, height=16, width=24) == chunk  # the same padded size
        assert bundle.default_chunk(direction, height=17, width=20) == DEFAULT_CHUNK
        assert bundle.plan(direction, height=14, width=20).chunk == chunk
    assert bundle.identity == identity and (copy / "manifest.json").read_bytes() == manifest
    bundle.restore(snapshot).close()
    program.done("encode", copy, video, tmp_path / "after.npy", *CPU)
    assert np.array_equal(np.load(tmp_path / "before.npy"), np.load(tmp_path / "after.npy"))
    program.done("decode", copy, tmp_path / "after.npy", tmp_path / "out.mkv", *CPU)
    assert f"encoder 16x24 chunk {tuned['encoder']} (onnxruntime" in program("inspect", copy).out


def test_steps_are_as_long_as_was_chosen(copy: Path, tmp_path: Path) -> None:
    """Through streams, pools, snapshots and files alike."""
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle, "encoder", 3), entry(bundle, "decoder", 2))
    lengths: list[int] = []
    for direction, per_latent in (("encoder", 4), ("decoder", 1)):
        session: Any = bundle.step_session(direction)  # type: ignore[arg-type]
        step = session.step

        def counted(
            state: Any, x: Any, start: Any, end: Any, step: Any = step, per_latent: int = per_latent
        ) -> Any:
            lengths.append(x.shape[1] // per_latent)
            return step(state, x, start, end)

        session.step = counted
    frames = clip(25, 16, 24)  # 7 latents
    latents = bundle.encode(frames)
    assert lengths == [3, 3, 1]
    lengths.clear()
    bundle.decode(latents[:5], frames=17)
    assert lengths[:3] == [2, 2, 1]
    lengths.clear()
    with bundle.encoder_pool(height=16, width=24, rows=1) as pool:
        stream = pool.open()
        stream.push(frames)
        stream.finish()
        while not stream.finished:
            pool.step()
    assert lengths == [3, 3, 1]
    lengths.clear()
    bundle.encode(frames, chunk=1)
    assert lengths == [1] * 7
    lengths.clear()
    video = save(tmp_path / "in.mp4", frames)
    encode_video(bundle, video, tmp_path / "z.npy")
    assert lengths == [3, 3, 1]
    lengths.clear()
    decode_video(bundle, tmp_path / "z.npy", tmp_path / "out.mkv")
    assert lengths[:4] == [2, 2, 2, 1]
    lengths.clear()
    made = [after for _, after in reconstruct(bundle, iter(frames), 16, 24, None)]
    assert lengths[:3] == [3, 2, 1] and sum(map(len, made)) == 25


def test_what_it_refuses(program: Program, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--size" in program.refused("bench", copy)
    assert "'0' is not an integer of at least 1" in program.refused("bench", copy, "--chunks", 0)
    assert "more than the limit" in program.refused("bench", copy, *CPU, *SIZE, "--limit", "1K")
    assert "is not a bundle" in program.refused("bench", copy.parent, *SIZE)
    bundle = open_here(copy)
    with pytest.raises(InputError, match="cuda:0, which does not name the GPU"):
        replace(
            entry(bundle).setting, backend={"name": "onnxruntime", "device": "cuda:0"}
        ).require_named_device()

    def full(self: Path, target: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    before = names(copy)
    with pytest.raises(ResourceError, match="No space left on device; the chunk lengths were not stored"):
        bundle.store_tuning(entry(bundle))
    assert names(copy) == before


def test_a_bundle_that_cannot_be_written_is_told_before_measuring(
    program: Program, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(
        "wfvae.runtime.chunk_speed.measure_direction", lambda *arguments: pytest.fail("it began to measure")
    )
    monkeypatch.setattr(Path, "touch", read_only)
    line = program.refused("bench", copy, *CPU, *SIZE, "--tune")
    assert f"cannot write {copy / TUNING_NAME}: Read-only file system" in line and "without --tune" in line


@pytest.mark.parametrize("as_json", [False, True])
def test_measurements_that_cannot_be_stored_are_shown(
    program: Program, copy: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Tuning, "require_writable", lambda folder: None)
    for name in ("write_text", "unlink"):  # such a file system refuses to remove what is not there, too
        monkeypatch.setattr(Path, name, read_only)
    outcome = program(
        "bench",
        copy,
        *CPU,
        *SIZE,
        "--chunks",
        1,
        "--direction",
        "decode",
        "--tune",
        *(["--json"] if as_json else []),
    )
    assert outcome.code == 2
    assert (
        "Read-only file system; the chunk lengths were not stored" in outcome.err
        and len(outcome.err.splitlines()) == 1
    )
    if as_json:
        assert [row["chunk"] for row in outcome.report["results"]] == [1] and outcome.report["tuned"] is None
    else:
        assert "decoder" in outcome.out and "stored" not in outcome.out


def test_progress_reaches_the_end(copy: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    measure_direction(
        open_here(copy), "decoder", (8, 8), [1, 2], 1, lambda done, total: calls.append((done, total))
    )
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == sorted({done for done, _ in calls})


# The choice ---------------------------------------------------------------------------------------


def speeds(seconds_per_frame: dict[int, float]) -> list[ChunkSpeed]:
    return [
        ChunkSpeed("encoder", chunk, 4 * chunk, 4 * chunk * each, 0.1, 1, 1)
        for chunk, each in seconds_per_frame.items()
    ]


def test_the_shortest_within_three_per_cent() -> None:
    assert choose(speeds({1: 1.2, 2: 1.029, 4: 1.0, 8: 1.01})).chunk == 2
    assert choose(speeds({1: 1.2, 2: 1.031, 4: 1.0, 8: 1.01})).chunk == 4
    assert choose(speeds({8: 1.0, 4: 1.02, 1: 1.5})).chunk == 4


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1e3), min_size=1))
def test_the_choice_is_fast_and_none_shorter_is(seconds: dict[int, float]) -> None:
    chosen = choose(speeds(seconds)).chunk
    fastest = min(seconds.values())
    assert seconds[chosen] <= fastest * 1.0301
    assert all(each > fastest * 1.0299 for chunk, each in seconds.items() if chunk < chosen)


# Where it holds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": "another CPU"},
        {"cores": 1000},
        {"backend": {"name": "openvino", "device": "x", "precision_hint": "bf16", "threads": "1"}},
    ],
)
def test_another_machine_or_backend_does_not_take_it(copy: Path, change: dict[str, Any]) -> None:
    bundle = open_here(copy)
    own = entry(bundle)
    bundle.store_tuning(replace(own, setting=replace(own.setting, **change)))
    assert open_here(copy).default_chunk("encoder", height=16, width=24) == DEFAULT_CHUNK
    bundle.store_tuning(own)
    assert open_here(copy).default_chunk("encoder", height=16, width=24) == own.chunk
    assert (
        open_bundle(copy, provider="cpu", threads=2).default_chunk("encoder", height=16, width=24)
        == DEFAULT_CHUNK
    )
    assert len(Tuning.read(copy, bundle.identity).entries) == 2


def test_a_choice_replaces_an_earlier_one_for_the_same(copy: Path) -> None:
    bundle = open_here(copy)
    others = [entry(bundle, "decoder"), entry(bundle, "encoder", width=32)]
    bundle.store_tuning(entry(bundle, chunk=2), *others)
    bundle.store_tuning(entry(bundle, chunk=5))
    assert Tuning.read(copy, bundle.identity).entries == (*others, entry(bundle, chunk=5))


def test_a_choice_that_does_not_fit_the_limit_is_not_taken(copy: Path) -> None:
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle, chunk=40))
    limit = bundle.plan("encoder", height=16, width=24, chunk=DEFAULT_CHUNK).total_bytes
    assert open_here(copy, memory_limit=limit).default_chunk("encoder", height=16, width=24) == DEFAULT_CHUNK
    assert open_here(copy, memory_limit=100 * limit).default_chunk("encoder", height=16, width=24) == 40


def test_choices_of_another_bundle_are_not_taken(copy: Path) -> None:
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle))
    assert Tuning.read(copy, "0" * 64) == Tuning("0" * 64)
    data = json.loads((copy / TUNING_NAME).read_text())
    (copy / TUNING_NAME).write_text(json.dumps({**data, "format": "wfvae-tuning/2"}))
    assert Tuning.read(copy, bundle.identity).entries == ()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"chunk": 2', '"chunk": 3'),
        lambda text: text.replace('"entries"', '"entrees"'),
        lambda text: "[]",
        lambda text: "\ufffd",
    ],
)
def test_a_damaged_file_is_named_and_can_be_made_anew(copy: Path, damage: Callable[[str], str]) -> None:
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle))
    path = copy / TUNING_NAME
    changed = damage(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(
        BundleError, match=r"tuning.json is damaged .*remove it, and measure again with: wfvae bench"
    ):
        open_here(copy).encoder(height=16, width=24)
    open_here(copy).encode(
        np.zeros((1, 16, 24, 3), np.uint8), chunk=1
    )  # who says what he wants is not kept from it
    open_here(copy).store_tuning(entry(bundle, chunk=7))
    assert open_here(copy).default_chunk("encoder", height=16, width=24) == 7


def test_the_file_is_as_documented(copy: Path) -> None:
    bundle = open_here(copy)
    bundle.store_tuning(entry(bundle))
    data = json.loads((copy / TUNING_NAME).read_text())
    assert set(data) == {"format", "bundle", "entries", "sha256"}
    assert (data["format"], data["bundle"]) == ("wfvae-tuning/1", Manifest.read(copy).identity)
    [found] = data["entries"]
    assert set(found) == {"direction", "height", "width", "setting", "chunk", "seconds_per_frame", "version"}
    assert set(found["setting"]) == {"backend", "cpu", "cores"}
    assert found["setting"]["backend"] == {
        "name": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "device": "cpu",
        "threads": "1",
    }
