"""Files of latents: round trips, unfinished stores, and refusal of broken files."""

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from safetensors.numpy import save_file

from fixtures.latents_info import INFO
from fixtures.videos import one_line
from wfvae.errors import LatentsError, WFVAEError
from wfvae.runtime.latents.latent_files import SUFFIXES, open_latents, open_latents_writer

CLIP_SUFFIXES = [".safetensors", ".npy"]


def latents(count: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 6)).astype(dtype)


def write(path: Path, array: Any) -> None:
    with open_latents_writer(path, INFO) as writer:
        writer.append(array)
        writer.finish(frames=1 + 4 * (len(array) - 1))


def read(path: Path) -> Any:
    with open_latents(path) as reader:
        return reader.read()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(SUFFIXES),
    dtype=st.sampled_from([np.float32, np.float16]),
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    chunk=st.integers(1, 7),
    late=st.integers(0, 3),
)
def test_appended_latents_are_read_back_bit_for_bit(
    tmp_path: Path, suffix: str, dtype: Any, pieces: list[int], chunk: int, late: int
) -> None:
    array, path = latents(sum(pieces), dtype), tmp_path / f"z{suffix}"
    frames = max(1, 1 + 4 * (len(array) - 1) - late) if len(array) > 1 else 1
    with open_latents_writer(path, INFO, chunk_latents=chunk) as writer:
        for piece in pieces:
            done = writer.latents_done
            writer.append(array[done : done + piece])
            assert writer.latents_done == done + piece
        writer.finish(frames=frames)
    with open_latents(path) as reader:
        assert (reader.complete, reader.count, reader.shape) == (True, len(array), array.shape)
        assert (reader.dtype, reader.info) == (np.dtype(dtype), replace(INFO, frames=frames))
        assert reader.read().tobytes() == array.tobytes()
        assert np.concatenate(list(reader.chunks(chunk))).tobytes() == array.tobytes()
        middle = len(array) // 2
        assert reader.read(middle, len(array)).tobytes() == array[middle:].tobytes()
        assert reader.read(middle, middle).shape == (0, *array.shape[1:])
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
def test_an_unfinished_clip_keeps_the_former_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"z{suffix}"
    write(path, latents(3))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), open_latents_writer(path, INFO) as writer:
        writer.append(latents(2))
        raise KeyboardInterrupt
    with open_latents_writer(path, INFO) as writer:
        writer.append(latents(2))  # no finish
    assert path.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_an_unfinished_store_is_readable_and_resumes(tmp_path: Path) -> None:
    path, array = tmp_path / "z.zarr", latents(21)
    with open_latents_writer(path, INFO) as writer:
        writer.append(array[:7])
        during = open_latents(path)
        assert (during.count, during.complete, during.info.frames) == (7, False, None)
        writer.append(array[7:18])
    assert during.count == 7
    assert np.array_equal(read(path), array[:18])
    with open_latents_writer(path, INFO, resume=True) as writer:
        assert writer.latents_done == 18
        writer.truncate(5)
        assert (writer.latents_done, open_latents(path).count) == (5, 5)
        writer.append(array[5:])
        writer.finish(frames=80)
    assert np.array_equal(read(path), array)
    with pytest.raises(LatentsError, match="is complete"):
        open_latents_writer(path, INFO, resume=True)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.integers(1, 5), steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), max_size=5))
def test_store_appends_and_cuts_as_a_list(tmp_path: Path, chunk: int, steps: list[tuple[int, int]]) -> None:
    path, expected = tmp_path / "z.zarr", latents(0)
    with open_latents_writer(path, INFO, chunk_latents=chunk) as writer:
        for seed, (count, cut) in enumerate(steps):
            more = latents(count, seed=seed)
            writer.append(more)
            expected = np.concatenate([expected, more])[: max(0, len(expected) + count - cut)]
            writer.truncate(len(expected))
            assert np.array_equal(read(path), expected)


def test_a_failed_append_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, done = tmp_path / "z.zarr", os.replace, []

    def fail(source: Path, target: Path) -> None:
        if done:
            raise OSError(28, "No space left on device")
        done.append(target)
        real(source, target)

    with open_latents_writer(path, INFO, chunk_latents=2) as writer:
        writer.append(latents(3))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            with pytest.raises(WFVAEError, match="no space left") as excinfo:
                writer.append(latents(9, seed=1))
        one_line(excinfo)
        assert writer.latents_done == 3
        assert np.array_equal(read(path), latents(3))
        writer.append(latents(2, seed=2))
        assert np.array_equal(read(path)[3:], latents(2, seed=2))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_latent_that_is_not_finite_is_named(tmp_path: Path, suffix: str, bad: float) -> None:
    path, array = tmp_path / f"z{suffix}", latents(9)
    broken = array.copy()
    broken[4, 1, 2, 3] = bad
    with pytest.raises(LatentsError, match="latent 4 "):
        write(path, broken)
    write(path, array)
    overwrite_latent(path, 6, bad)
    with open_latents(path) as reader:
        assert np.array_equal(reader.read(0, 6), array[:6])
        with pytest.raises(LatentsError, match="latent 6 ") as excinfo:
            reader.read(5, 9)
        one_line(excinfo)


def overwrite_latent(path: Path, index: int, value: float) -> None:
    """Puts `value` into latent `index` of 9 without a writer."""
    if path.suffix == ".zarr":
        zarr.open_group(path)["latents"][index, 0, 0, 0] = value  # type: ignore[index]
        return
    whole, size = bytearray(path.read_bytes()), 3 * 4 * 6 * 4
    offset = len(whole) - (9 - index) * size
    whole[offset : offset + 4] = np.float32(value).tobytes()
    path.write_bytes(whole)


def test_a_lost_chunk_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "z.zarr"
    with open_latents_writer(path, INFO, chunk_latents=2) as writer:
        writer.append(latents(9))
        writer.finish(frames=33)
    shutil.rmtree(path / "latents" / "c" / "2")
    with pytest.raises(LatentsError, match="latent 4 "):
        read(path)


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_sidecar(path: Path) -> None:
    write(path.with_name("y.npy"), latents(7))
    os.replace(path.with_name("y.npy.json"), sidecar(path))


def newer_version(path: Path) -> None:
    sidecar(path).write_text(sidecar(path).read_text().replace("wfvae-latents/1", "wfvae-latents/9"))


def wrong_rank(path: Path) -> None:
    metadata = {"wfvae": json.dumps(replace(INFO, frames=13).to_json())}
    save_file({"latents": latents(4)[0]}, path, metadata=metadata)


def no_metadata(path: Path) -> None:
    zarr.create_group(path, overwrite=True).create_array("latents", shape=(4, 3, 4, 6), dtype="f4")


def metadata_cut(path: Path) -> None:
    file = path / "latents" / "zarr.json"
    file.write_text(file.read_text()[:100])


@pytest.mark.parametrize(
    ("suffix", "damage", "says"),
    [
        (".safetensors", cut, "cannot read"),
        (".safetensors", lambda path: save_file({"latents": latents(4)}, path), "no latents metadata"),
        (".safetensors", lambda path: save_file({"weights": latents(4)}, path), "latents"),
        (".safetensors", wrong_rank, "rank 4"),
        (".npy", cut, "cannot read"),
        (".npy", lambda path: np.save(path, np.array([{"a": 1}], dtype=object)), "cannot read"),
        (".npy", lambda path: sidecar(path).unlink(), "metadata"),
        (".npy", other_sidecar, "do not belong together"),
        (".npy", lambda path: np.save(path, np.zeros((4, 3, 4, 6), np.int32)), "float32 or float16"),
        (".npy", newer_version, "wfvae-latents/9"),
        (".zarr", no_metadata, "no wfvae-latents/1 metadata"),
        (".zarr", lambda path: shutil.rmtree(path / "latents"), "cannot read"),
        (".zarr", metadata_cut, "cannot read"),
    ],
)
def test_damage_is_refused(tmp_path: Path, suffix: str, damage: Callable[[Path], None], says: str) -> None:
    path = tmp_path / f"z{suffix}"
    write(path, latents(4))
    damage(path)
    with pytest.raises(LatentsError, match=says) as excinfo:
        open_latents(path)
    assert path.name in one_line(excinfo)


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.zarr").mkdir()
    (tmp_path / "precious.zarr" / "thesis.txt").write_text("x")
    (tmp_path / "file.zarr").write_text("x")
    write(tmp_path / "z.npy", latents(2))
    unreadable = {"none.npy": "no such latents", "z.pt": r"ending '\.pt'", "file.zarr": "directory"}
    for name, says in unreadable.items():
        with pytest.raises(LatentsError, match=says):
            open_latents(tmp_path / name)
    refused = {"z.pt": r"ending '\.pt'", "no/z.npy": "does not exist", "precious.zarr": "move it away"}
    for name, says in refused.items():
        with pytest.raises(LatentsError, match=says):
            open_latents_writer(tmp_path / name, INFO)
    with pytest.raises(LatentsError, match="cannot be resumed"):
        open_latents_writer(tmp_path / "z.npy", INFO, resume=True)
    with pytest.raises(LatentsError, match="already exists"):
        open_latents_writer(tmp_path / "z.npy", INFO, overwrite=False)


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
        for wrong in (latents(3, np.float16), latents(3)[:, :2]):
            with pytest.raises(LatentsError, match="one size and type"):
                writer.append(wrong)
        with pytest.raises(LatentsError, match="3 latents, but 10 frames"):
            writer.finish(frames=10)
        writer.finish(frames=9)
        with pytest.raises(LatentsError, match="closed"):
            writer.append(latents(1))
    with open_latents(path) as reader, pytest.raises(LatentsError, match="it holds 3"):
        reader.read(2, 4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_holds_only_a_few_latents(tmp_path: Path, suffix: str) -> None:
    path, count, size = tmp_path / f"big{suffix}", 64, 3 * 64 * 64 * 4
    info = replace(INFO, height=512, width=512, padded_height=512, padded_width=512)
    with open_latents_writer(path, info, chunk_latents=4) as writer:
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
    assert peak < 16 * size + 2**20  # a few chunks, not all 64 latents
