"""Files of latents: what goes in comes out, what is unfinished stays readable, what is broken is
refused in one line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from safetensors.numpy import load_file, save_file

from fixtures.latents_info import INFO
from wfvae.errors import LatentsError, WFVAEError
from wfvae.runtime.latents.latent_files import SUFFIXES, LatentsInfo, open_latents, open_latents_writer


def latents(count: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 6)).astype(dtype)


def write(path: Path, array: Any, frames: int | None = None, info: LatentsInfo = INFO) -> None:
    with open_latents_writer(path, info) as writer:
        writer.append(array)
        writer.finish(frames=frames or 1 + 4 * (len(array) - 1))


def one_line(excinfo: pytest.ExceptionInfo[WFVAEError]) -> str:
    text = str(excinfo.value)
    assert "\n" not in text
    return text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(SUFFIXES),
    dtype=st.sampled_from([np.float32, np.float16]),
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    chunk=st.integers(1, 7),
    late=st.integers(0, 3),
)
def test_what_is_appended_is_read_back_bit_for_bit(
    tmp_path: Path, suffix: str, dtype: Any, pieces: list[int], chunk: int, late: int
) -> None:
    array = latents(sum(pieces), dtype)
    frames = max(1, 1 + 4 * (len(array) - 1) - late) if len(array) > 1 else 1
    path = tmp_path / f"z{suffix}"
    with open_latents_writer(path, INFO, chunk_latents=chunk) as writer:
        start = 0
        for piece in pieces:
            writer.append(array[start : start + piece])
            start += piece
            assert writer.latents_done == start
        writer.finish(frames=frames)
    with open_latents(path) as reader:
        assert (reader.complete, reader.count, reader.shape, reader.dtype) == (
            True,
            len(array),
            array.shape,
            np.dtype(dtype),
        )
        assert reader.info == replace(INFO, frames=frames)
        assert reader.read().tobytes() == array.tobytes()
        assert np.concatenate(list(reader.chunks(chunk))).tobytes() == array.tobytes()
        middle = len(array) // 2
        assert reader.read(middle, len(array)).tobytes() == array[middle:].tobytes()
        assert reader.read(middle, middle).shape == (0, *array.shape[1:])
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_formats_are_what_other_tools_expect(tmp_path: Path) -> None:
    array = latents(5)
    for suffix in SUFFIXES:
        write(tmp_path / f"z{suffix}", array)
    assert np.array_equal(load_file(tmp_path / "z.safetensors")["latents"], array)
    assert np.array_equal(np.load(tmp_path / "z.npy"), array)
    group = zarr.open_group(tmp_path / "z.zarr", mode="r")
    assert np.array_equal(np.asarray(group["latents"]), array)
    assert group.metadata.zarr_format == 3


@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_a_clip_appears_only_when_it_is_finished(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"z{suffix}"
    write(path, latents(3))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), open_latents_writer(path, INFO) as writer:
        writer.append(latents(2))
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    with open_latents_writer(path, INFO) as writer:
        writer.append(latents(2))  # no finish
    assert path.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_an_unfinished_store_is_readable_and_goes_on(tmp_path: Path) -> None:
    path, array = tmp_path / "z.zarr", latents(21)
    with open_latents_writer(path, INFO) as writer:
        writer.append(array[:7])
        reader = open_latents(path)  # while it is written
        assert (reader.count, reader.complete, reader.info.frames) == (7, False, None)
        writer.append(array[7:18])
    assert reader.count == 7
    with open_latents(path) as reader:
        assert (reader.count, reader.complete, reader.info.frames) == (18, False, None)
        assert np.array_equal(reader.read(), array[:18])
    with open_latents_writer(path, INFO, resume=True) as writer:
        assert writer.latents_done == 18
        writer.truncate(5)
        assert (writer.latents_done, open_latents(path).count) == (5, 5)
        writer.append(array[5:])
        writer.finish(frames=80)
    assert np.array_equal(open_latents(path).read(), array)
    with pytest.raises(LatentsError, match="is complete"):
        open_latents_writer(path, INFO, resume=True)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=5),
)
def test_appending_and_truncating_are_those_of_a_list(
    tmp_path: Path, chunk: int, steps: list[tuple[int, int]]
) -> None:
    path = tmp_path / "z.zarr"
    expected = latents(0)
    with open_latents_writer(path, INFO, chunk_latents=chunk) as writer:
        for seed, (count, cut) in enumerate(steps):
            more = latents(count, seed=seed)
            writer.append(more)
            expected = np.concatenate([expected, more])[: max(0, len(expected) + count - cut)]
            writer.truncate(len(expected))
            assert np.array_equal(open_latents(path).read(), expected)


def test_resume_without_a_store_begins_one_and_refuses_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "z.zarr"
    with open_latents_writer(path, INFO, resume=True) as writer:
        assert writer.latents_done == 0
        writer.append(latents(2))
    other = replace(INFO, bundle_hash="another", width=40)
    with pytest.raises(LatentsError, match="width, bundle_hash"):
        open_latents_writer(path, other, resume=True)
    with pytest.raises(LatentsError, match=r"\.zarr"):
        open_latents_writer(tmp_path / "z.npy", INFO, resume=True)


KILLED = """
import sys, numpy as np
from fractions import Fraction
from wfvae.runtime.latents.latent_files import LatentsInfo, open_latents_writer
info = LatentsInfo(None, 30, 41, 32, 48, Fraction(24), "mean", 4)
with open_latents_writer(sys.argv[1], info, chunk_latents=3) as writer:
    for index in range(100000):
        writer.append(np.full((2, 3, 16, 16), index, np.float32))
        if index == 5:
            print("running", flush=True)
"""


def test_after_a_kill_every_latent_that_counts_is_whole(tmp_path: Path) -> None:
    for attempt in range(3):
        path = tmp_path / f"{attempt}.zarr"
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            seen = 0
            for _ in range(5 * (attempt + 1)):  # a reader beside the writer
                reader = open_latents(path)
                assert reader.count >= seen
                seen = reader.count
                assert np.array_equal(reader.read()[:, 0, 0, 0], np.repeat(np.arange(seen // 2), 2))
            process.send_signal(signal.SIGKILL)
        reader = open_latents(path)
        assert reader.count >= 12
        assert reader.count % 2 == 0
        assert np.array_equal(reader.read()[:, 0, 0, 0], np.repeat(np.arange(reader.count // 2), 2))
        with open_latents_writer(path, replace(reader.info, frames=None), resume=True) as writer:
            done = writer.latents_done
            writer.append(np.zeros((1, 3, 16, 16), np.float32))
            writer.finish(frames=1 + 4 * done)
        assert open_latents(path).complete


def test_a_failed_append_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "z.zarr"
    with open_latents_writer(path, INFO, chunk_latents=2) as writer:
        writer.append(latents(3))
        real, calls = os.replace, 0

        def fail(*args: Any, **kwargs: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise OSError(28, "No space left on device")
            real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda self, target: fail(self, target))
            with pytest.raises(WFVAEError, match="no space left") as excinfo:
                writer.append(latents(9, seed=1))
        one_line(excinfo)
        assert writer.latents_done == 3
        assert np.array_equal(open_latents(path).read(), latents(3))
        writer.append(latents(2, seed=2))  # and it can go on
        assert np.array_equal(open_latents(path).read(3), latents(2, seed=2))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_latent_that_is_not_finite_is_named(tmp_path: Path, suffix: str, bad: float) -> None:
    array = latents(9)
    path = tmp_path / f"z{suffix}"
    with pytest.raises(LatentsError, match="latent 4 "), open_latents_writer(path, INFO) as writer:
        broken = array.copy()
        broken[4, 1, 2, 3] = bad
        writer.append(broken)
    write(path, array)
    poison(path, suffix, 6, bad)
    with open_latents(path) as reader:
        assert np.array_equal(reader.read(0, 6), array[:6])
        with pytest.raises(LatentsError, match="latent 6 ") as excinfo:
            reader.read(5, 9)
        one_line(excinfo)


def poison(path: Path, suffix: str, index: int, value: float) -> None:
    """Put `value` into latent `index`, behind the writer's back."""
    if suffix == ".zarr":
        zarr.open_group(path)["latents"][index, 0, 0, 0] = value  # type: ignore[index]
        return
    whole = bytearray(path.read_bytes())
    size = 9 * 3 * 4 * 6 * 4
    offset = len(whole) - size + index * size // 9
    whole[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(whole)


def test_a_lost_chunk_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "z.zarr"
    with open_latents_writer(path, INFO, chunk_latents=2) as writer:
        writer.append(latents(9))
        writer.finish(frames=33)
    shutil.rmtree(path / "latents" / "c" / "2")
    with pytest.raises(LatentsError, match="latent 4 "):
        open_latents(path).read()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_sidecar(path: Path) -> None:
    path.with_name(path.name + ".json").unlink()


def other_sidecar(path: Path) -> None:
    write(path.with_name("y.npy"), latents(7))
    os.replace(path.with_name("y.npy.json"), path.with_name(path.name + ".json"))


def text(path: Path) -> None:
    path.write_text("not latents at all")


def plain_safetensors(path: Path) -> None:
    save_file({"latents": latents(4)}, path)


def foreign_tensor(path: Path) -> None:
    save_file({"weights": latents(4)}, path)


def wrong_rank_safetensors(path: Path) -> None:
    save_file(
        {"latents": latents(4)[0]},
        path,
        metadata={"wfvae": json.dumps(replace(INFO, frames=13).to_json())},
    )


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def integers(path: Path) -> None:
    np.save(path, np.zeros((4, 3, 4, 6), np.int32))


def wrong_rank(path: Path) -> None:
    np.save(path, np.zeros((4, 3), np.float32))


def newer_version(path: Path) -> None:
    sidecar = path.with_name(path.name + ".json")
    sidecar.write_text(sidecar.read_text().replace("wfvae-latents/1", "wfvae-latents/9"))


def no_metadata(path: Path) -> None:
    shutil.rmtree(path)
    zarr.create_group(path).create_array("latents", shape=(4, 3, 4, 6), dtype="f4")


def no_array(path: Path) -> None:
    shutil.rmtree(path / "latents")


def metadata_cut(path: Path) -> None:
    file = path / "latents" / "zarr.json"
    file.write_text(file.read_text()[:100])


@pytest.mark.parametrize(
    ("suffix", "damage", "says"),
    [
        (".safetensors", cut, "cannot read"),
        (".safetensors", text, "cannot read"),
        (".safetensors", plain_safetensors, "no latents metadata"),
        (".safetensors", foreign_tensor, "latents"),
        (".safetensors", wrong_rank_safetensors, "rank 4"),
        (".npy", cut, "cannot read"),
        (".npy", text, "cannot read"),
        (".npy", pickled, "cannot read"),
        (".npy", no_sidecar, "metadata"),
        (".npy", other_sidecar, "do not belong together"),
        (".npy", integers, "float32 or float16"),
        (".npy", wrong_rank, "do not belong together|rank 4"),
        (".npy", newer_version, "wfvae-latents/9"),
        (".zarr", no_metadata, "no wfvae-latents/1 metadata"),
        (".zarr", no_array, "cannot read"),
        (".zarr", metadata_cut, "cannot read"),
    ],
)
def test_what_is_no_latents_is_refused_in_one_line(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / f"z{suffix}"
    write(path, latents(4))
    damage(path)
    with pytest.raises(LatentsError, match=says) as excinfo:
        open_latents(path)
    assert path.name in one_line(excinfo)


def test_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LatentsError, match="no such latents"):
        open_latents(tmp_path / "none.npy")
    with pytest.raises(LatentsError, match=r"ending '\.pt'"):
        open_latents(tmp_path / "z.pt")
    with pytest.raises(LatentsError, match=r"ending '\.pt'"):
        open_latents_writer(tmp_path / "z.pt", INFO)
    with pytest.raises(LatentsError, match="does not exist"):
        open_latents_writer(tmp_path / "no" / "z.npy", INFO)
    (tmp_path / "precious.zarr").mkdir()
    (tmp_path / "precious.zarr" / "thesis.txt").write_text("x")
    with pytest.raises(LatentsError, match="move it away"):
        open_latents_writer(tmp_path / "precious.zarr", INFO)
    write(tmp_path / "z.npy", latents(2))
    with pytest.raises(LatentsError, match="already exists"):
        open_latents_writer(tmp_path / "z.npy", INFO, overwrite=False)
    (tmp_path / "file.zarr").write_text("x")
    with pytest.raises(LatentsError, match="directory"):
        open_latents(tmp_path / "file.zarr")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wrong_arrays_and_counts_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"z{suffix}"
    with open_latents_writer(path, INFO) as writer:
        with pytest.raises(LatentsError, match="at least one"):
            writer.finish(frames=1)
        wrong: Any
        for wrong in (latents(2)[0], latents(2, np.float64), latents(0), [[1.0]]):
            with pytest.raises(LatentsError, match="float32 or float16"):
                writer.append(wrong)
        writer.append(latents(3))
        with pytest.raises(LatentsError, match="one size and type"):
            writer.append(latents(3, np.float16))
        with pytest.raises(LatentsError, match="one size and type"):
            writer.append(latents(3)[:, :2])
        with pytest.raises(LatentsError, match="3 latents, but 10 frames"):
            writer.finish(frames=10)
        writer.finish(frames=9)
        with pytest.raises(LatentsError, match="closed"):
            writer.append(latents(1))
    with open_latents(path) as reader, pytest.raises(LatentsError, match="it holds 3"):
        reader.read(2, 4)


def test_an_old_store_is_replaced_by_the_first_append_not_before(tmp_path: Path) -> None:
    path = tmp_path / "z.zarr"
    write(path, latents(4))
    with open_latents_writer(path, INFO) as writer:
        assert open_latents(path).count == 4
        writer.append(latents(1))
        assert (open_latents(path).count, open_latents(path).complete) == (1, False)


@settings(max_examples=50, deadline=None)
@given(
    frames=st.none() | st.integers(1, 10**9),
    fps=st.fractions(min_value=Fraction(1, 100), max_value=1000),
    ratio=st.sampled_from([4, 8]),
    scale=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    tick=st.none() | st.just(Fraction(1, 90000)),
)
def test_metadata_survives_json(
    frames: int | None, fps: Fraction, ratio: Any, scale: list[float], tick: Fraction | None
) -> None:
    info = replace(INFO, frames=frames, fps=fps, temporal_ratio=ratio, scale=tuple(scale), time_base=tick)
    assert LatentsInfo.from_json(json.loads(json.dumps(info.to_json())), "x") == info


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 0},
        {"kind": "logits"},
        {"temporal_ratio": 3},
        {"padded_width": 40},
        {"fps": Fraction(0)},
        {"version": "v2"},
    ],
)
def test_metadata_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LatentsError):
        replace(INFO, **change)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_is_lazy(tmp_path: Path, suffix: str) -> None:
    path, count, size = tmp_path / f"big{suffix}", 64, 3 * 64 * 64 * 4
    with open_latents_writer(path, INFO, chunk_latents=4) as writer:
        for index in range(count):
            writer.append(np.full((1, 3, 64, 64), index, np.float32))
        writer.finish(frames=1 + 4 * (count - 1))
    tracemalloc.start()
    try:
        with open_latents(path) as reader:
            for index, piece in enumerate(reader.chunks(1)):
                assert (piece == index).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * size + 2**20  # a few chunks and the interpreter's own, not the 64 latents of the file
