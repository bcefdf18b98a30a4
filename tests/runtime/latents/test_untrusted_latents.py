"""Files and stores of latents that lie about themselves, change while they are read, or wait."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from msgspec.structs import replace

from fixtures.latents_info import INFO
from fixtures.videos import one_line
from wfvae import machine
from wfvae.errors import LatentsError, ResourceError
from wfvae.runtime.latents.latent_files import SUFFIXES, open_latents, open_latents_writer

COUNT = 9
LATENTS = np.random.default_rng(0).normal(size=(COUNT, 3, 4, 6)).astype(np.float32)


def write(path: Path, info: Any = INFO) -> Path:
    with open_latents_writer(path, info, chunk_latents=4) as writer:
        writer.append(LATENTS)
        writer.finish(frames=33)
    return path


def metadata_file(path: Path) -> Path:
    if path.suffix == ".zarr":
        return path / "latents" / "zarr.json"
    return path.with_name(path.name + ".json")


def change(path: Path, **values: Any) -> None:
    """Changes metadata in whatever file of a format holds them."""
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        known = json.loads(header["__metadata__"]["wfvae"]) | values
        header["__metadata__"]["wfvae"] = json.dumps(known)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        return
    content = json.loads(metadata_file(path).read_text())
    (content["attributes"]["wfvae"] if path.suffix == ".zarr" else content).update(values)
    metadata_file(path).write_text(json.dumps(content))


LIES: dict[str, Any] = {
    "height": 6000,
    "padded_height": 6000,
    "padded_width": 56,
    "frames": 2**53,
    "fps": "1e1000000000",
    "time_base": "1/0",
    "scale": [1.0, 2.0],
    "shift": [1.0, 2.0, 3.0, 4.0],
    "kind": "moments",
    "width": 2**62,
    "bundle_hash": "x" * 10_000,
    "temporal_ratio": [4],
    "model": {"a": 1},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("key", LIES)
def test_metadata_that_do_not_fit_the_array_are_refused(tmp_path: Path, suffix: str, key: str) -> None:
    path = write(tmp_path / f"z{suffix}")
    change(path, **{key: LIES[key]})
    with pytest.raises(LatentsError) as caught:
        open_latents(path)
    assert "z" in one_line(caught)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_latents_of_another_size_than_the_video_are_not_written(tmp_path: Path, suffix: str) -> None:
    info = replace(INFO, padded_height=40)
    with pytest.raises(LatentsError, match="latents of 4x6, and its metadata describe a video"):
        write(tmp_path / f"z{suffix}", info)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_file_that_shrinks_while_it_is_read_is_reported_and_no_signal_ends_the_process(
    tmp_path: Path, suffix: str
) -> None:
    path = write(tmp_path / f"z{suffix}")
    script = """
import os, sys
from wfvae.errors import LatentsError
from wfvae.runtime.latents.latent_files import open_latents
with open_latents(sys.argv[1]) as reader:
    first = reader.read(0, 2)
    os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) - 100)
    assert (reader.read(0, 2) == first).all()
    try:
        reader.read()
    except LatentsError as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "was cut short after it was opened" in done.stdout


def chunk(path: Path) -> Path:
    return path / "latents/c/1/0/0/0"


def as_pipe(path: Path) -> None:
    chunk(path).unlink()
    os.mkfifo(chunk(path))


def as_link(path: Path) -> None:
    chunk(path).rename(path.with_name("elsewhere"))
    chunk(path).symlink_to(path.with_name("elsewhere"))


CHUNKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (as_pipe, "not a regular file"),
    "a link": (as_link, "symbolic links"),
    "a device": (lambda path: (chunk(path).unlink(), chunk(path).symlink_to("/dev/zero")), "symbolic links"),
    "a folder": (lambda path: (chunk(path).unlink(), chunk(path).mkdir()), "not a regular file"),
    "short": (lambda path: os.truncate(chunk(path), 100), "100 bytes instead of 1152"),
    "huge": (lambda path: os.truncate(chunk(path), 1 << 40), "bytes instead of 1152"),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_chunk_that_is_no_file_of_its_size_is_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "z.zarr")
    damage, says = CHUNKS[kind]
    damage(path)
    with open_latents(path) as reader:
        assert np.array_equal(reader.read(0, 4), LATENTS[:4])
        with pytest.raises(LatentsError, match=says) as caught:
            reader.read()
        one_line(caught)


def other_codec(path: Path) -> None:
    array: Any = zarr.open_array(path / "latents", mode="r")
    attributes = dict(array.attrs)
    options: Any = {"chunks": (4, 3, 4, 6), "attributes": attributes, "fill_value": np.nan}
    again = zarr.create_array(path / "latents", data=np.array(array[:]), overwrite=True, **options)
    assert again.metadata.to_dict()["codecs"][1]["name"] == "zstd"  # type: ignore[index]


def with_layout(**changes: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(metadata_file(path).read_text())
        metadata_file(path).write_text(json.dumps({**content, **changes}))

    return damage


def chunks_of(*shape: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": shape}}


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another codec": (other_codec, "codecs"),
    "an unknown codec": (with_layout(codecs=[{"name": "bomb", "configuration": {}}]), "codecs"),
    "big-endian": (with_layout(codecs=[{"name": "bytes", "configuration": {"endian": "big"}}]), "codecs"),
    "another type": (with_layout(data_type="float64"), "data_type"),
    "a shape of another rank": (with_layout(shape=[9, 3, 4]), "shape"),
    "a negative shape": (with_layout(shape=[-9, 3, 4, 6]), "shape"),
    "more channels than chunks": (with_layout(shape=[9, 2**50, 4, 6]), "divide the array"),
    "chunks of nothing": (with_layout(chunk_grid=chunks_of(0, 3, 4, 6)), "chunk_shape"),
    "chunks in space": (with_layout(chunk_grid=chunks_of(4, 3, 2, 6)), "divide the array"),
    "sharding": (with_layout(storage_transformers=[{"name": "x"}]), "storage_transformers"),
    "Zarr 2": (with_layout(zarr_format=2), "zarr_format"),
    "attributes of another type": (with_layout(attributes=[]), "no wfvae-latents/1 metadata"),
    "no frames": (
        with_layout(attributes={"wfvae": {**INFO.to_json(), "complete": True}}),
        "number of frames is not known",
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_store_of_another_layout_is_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "z.zarr")
    damage, says = LAYOUTS[kind]
    damage(path)
    with pytest.raises(LatentsError, match=says) as caught:
        open_latents(path)
    assert "z.zarr" in one_line(caught)


def test_store_of_chunks_that_do_not_exist_is_not_allocated_beyond_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, side = write(tmp_path / "z.zarr"), 6000
    video = 8 * side
    change(
        path, frames=None, complete=False, height=video, width=video, padded_height=video, padded_width=video
    )
    shape = [2**40, 3, side, side]
    with_layout(shape=shape, chunk_grid=chunks_of(4, 3, side, side))(path)
    monkeypatch.setattr("wfvae.spec.memory.available_memory", lambda: 1 << 30)
    with open_latents(path) as reader:
        assert reader.count == 2**40
        with pytest.raises(ResourceError, match="MiB, and 1024 MiB are available") as caught:
            reader.read(0, 10)
        one_line(caught)


NPY_HEADERS = {
    "deep": "(" * 3000,
    "operators": "-" * 4000 + "1",
    "no literal": "__import__('os').getpid()",
    "Python 2": "{'descr': '<f4', 'fortran_order': False, 'shape': (9L, 3L, 4L, 6L), }",
    "long": "{" + " " * 60_000 + "}",
    "Fortran order": "{'descr': '<f4', 'fortran_order': True, 'shape': (9, 3, 4, 6), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (9, 3, 4, 6), }",
    "a type of a terabyte": "{'descr': '<U999999999', 'fortran_order': False, 'shape': (9, 3, 4, 6), }",
    "a huge shape": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 3, 4, 6), }}",
    "a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-9, 3, 4, 6), }",
    "many dimensions": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * 1000}), }}",
}


@pytest.mark.parametrize("kind", NPY_HEADERS)
def test_bad_npy_header_is_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "z.npy")
    text = NPY_HEADERS[kind].encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + LATENTS.tobytes())
    with pytest.raises(LatentsError) as caught:
        open_latents(path)
    assert "z.npy" in one_line(caught)


ENTRY = {"dtype": "F32", "shape": [9, 3, 4, 6], "data_offsets": [0, LATENTS.nbytes]}
ENTRIES: dict[str, Any] = {
    "a huge shape": {**ENTRY, "shape": [2**62, 2**62, 1, 1]},
    "an offset behind the end": {**ENTRY, "data_offsets": [100, LATENTS.nbytes + 100]},
    "an unknown type": {**ENTRY, "dtype": "F128"},
    "a negative size": {**ENTRY, "shape": [-9, 3, 4, 6]},
    "a further key": {**ENTRY, "more": 1},
    "no object": 7,
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_bad_safetensors_header_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "z.safetensors"
    metadata = {"wfvae": json.dumps(replace(INFO, frames=33).to_json())}
    text = json.dumps({"__metadata__": metadata, "latents": ENTRIES[kind]}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + LATENTS.tobytes())
    with pytest.raises(LatentsError) as caught:
        open_latents(path)
    assert "z.safetensors" in one_line(caught)


@pytest.mark.parametrize("length", [0, 7, 2**63, 2**64 - 1, 10**9])
def test_safetensors_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "z.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(LatentsError, match="cannot read"):
        open_latents(path)


def test_available_memory_is_that_of_this_machine() -> None:
    found = machine.available_memory()
    assert found is not None and 1 << 20 < found < 1 << 50
