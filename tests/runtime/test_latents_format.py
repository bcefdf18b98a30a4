"""The latents files' specification: libraries of others read what the runtime writes."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors
import zarr
from msgspec.structs import fields, replace

from fixtures.latents_info import INFO as COMPLETE
from wfvae.runtime.latents.latent_files import LatentsInfo, open_latents, open_latents_writer

TEXT = (Path(__file__).parents[2] / "docs" / "latents-format.md").read_text(encoding="utf-8")
INFO = replace(COMPLETE, bundle_hash="12ab", color_space=None)
EXPECTED = {
    "version": "wfvae-latents/1",
    "frames": 19,
    "height": 30,
    "width": 41,
    "padded_height": 32,
    "padded_width": 48,
    "fps": "30000/1001",
    "kind": "mean",
    "temporal_ratio": 4,
    "scale": [0.5, 1.25, 3.0],
    "shift": [0.0, -0.1, 1e-9],
    "bundle_hash": "12ab",
    "model": "WF-VAE-S",
    "time_base": "1/90000",
    "color_range": "tv",
    "color_space": None,
    "color_primaries": "bt2020",
    "color_transfer": "smpte2084",
    "mastering_display": "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)",
    "content_light": "1000,400",
    "sample_aspect_ratio": "4/3",
    "start": "1/50",
}


def write(path: Path, dtype: Any, finish: bool = True) -> npt.NDArray[Any]:
    latents = np.random.default_rng(0).standard_normal((6, 3, 4, 6)).astype(dtype)
    with open_latents_writer(path, INFO, chunk_latents=4) as writer:
        for part in (latents[:1], latents[1:4], latents[4:]):
            writer.append(part)
        if finish:
            writer.finish(frames=19)
    return latents


@pytest.mark.parametrize(("dtype", "code"), [(np.float32, "F32"), (np.float16, "F16")])
def test_safetensors_file_is_as_documented(tmp_path: Path, dtype: Any, code: str) -> None:
    latents = write(tmp_path / "z.safetensors", dtype)
    with safetensors.safe_open(tmp_path / "z.safetensors", framework="numpy") as file:  # type: ignore[no-untyped-call]
        assert list(file.keys()) == ["latents"]
        assert file.get_tensor("latents").tobytes() == latents.tobytes()
        assert json.loads(file.metadata()["wfvae"]) == EXPECTED
    # Read without a library, too.
    data = (tmp_path / "z.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])["latents"]
    assert header == {"dtype": code, "shape": [6, 3, 4, 6], "data_offsets": [0, latents.nbytes]}
    assert data[8 + length :] == latents.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_npy_file_is_as_documented(tmp_path: Path, dtype: Any) -> None:
    latents = write(tmp_path / "z.npy", dtype)
    read = np.load(tmp_path / "z.npy", allow_pickle=False)
    assert read.dtype == dtype and read.flags.c_contiguous and read.tobytes() == latents.tobytes()
    assert (tmp_path / "z.npy").read_bytes()[:8] == b"\x93NUMPY\x01\x00"
    sidecar = tmp_path / "z.npy.json"
    known = json.loads(sidecar.read_text(encoding="utf-8"))
    assert known == {**EXPECTED, "count": 6}
    sidecar.write_text(json.dumps({**known, "later": 1}), encoding="utf-8")  # unknown keys are ignored
    with open_latents(tmp_path / "z.npy") as reader:
        assert reader.info == replace(INFO, frames=19)


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_zarr_store_is_as_documented(tmp_path: Path, dtype: Any, finish: bool) -> None:
    latents = write(tmp_path / "z.zarr", dtype, finish)
    group = zarr.open_group(tmp_path / "z.zarr", mode="r")
    assert dict(group.attrs) == {"format": "wfvae-latents/1"}
    array: Any = group["latents"]
    assert array.dtype == dtype and np.asarray(array[:]).tobytes() == latents.tobytes()
    expected = {**EXPECTED, "frames": 19 if finish else None, "complete": finish}
    if finish:
        digest = bytes(32)
        for latent in latents:
            digest = hashlib.sha256(digest + latent.tobytes()).digest()
        expected["sha256"] = digest.hex()
    assert array.attrs["wfvae"] == expected
    # Read without a library, too.
    metadata = json.loads((tmp_path / "z.zarr/latents/zarr.json").read_text(encoding="utf-8"))
    assert metadata["shape"] == [6, 3, 4, 6]
    assert metadata["dimension_names"] == ["time", "channel", "height", "width"]
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes"] and metadata["fill_value"] == "NaN"
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [4, 3, 4, 6]
    chunk = np.frombuffer((tmp_path / "z.zarr/latents/c/0/0/0/0").read_bytes(), dtype).reshape(4, 3, 4, 6)
    assert chunk.tobytes() == latents[:4].tobytes()


def test_document_lists_every_key_and_no_other() -> None:
    table = TEXT.partition("## Metadata")[2].partition("## `.safetensors`")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, flags=re.MULTILINE)
    documented = re.findall(r"`([^`]+)`", " ".join(rows))
    assert len(documented) == len(set(documented))
    assert set(documented) == set(EXPECTED) == {field.name for field in fields(LatentsInfo)}
