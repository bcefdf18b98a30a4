"""`wfvae pack` and `wfvae unpack`: latents of single videos to shards and back, bit by bit."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fixtures.latents_info import INFO
from fixtures.program import Program
from wfvae.runtime.latents.latent_files import SUFFIXES, open_latents, open_latents_writer
from wfvae.spec.latent_shards import LatentShardSet
from wfvae.spec.latents import LatentsInfo

pytest.importorskip("fsspec")
FULL = replace(
    INFO,
    color_primaries="bt2020",
    color_transfer="smpte2084",
    mastering_display="G(1,2)B(3,4)R(5,6)WP(7,8)L(10,1)",
    content_light="1000,400",
    sample_aspect_ratio=Fraction(4, 3),
    start=Fraction(1, 3),
)


def write(path: Path, info: LatentsInfo = FULL, seed: int = 0, dtype: str = "float32") -> Path:
    """Writes 20 latents of 77 frames."""
    channels = 6 if info.kind == "moments" else 3
    latents: Any = np.random.default_rng(seed).normal(size=(20, channels, 4, 6)).astype(dtype)
    with open_latents_writer(path, info) as writer:
        writer.append(latents)
        writer.finish(77)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("kind", "dtype"), [("mean", "float32"), ("moments", "float16")])
def test_latents_packed_and_unpacked_have_bits_and_metadata_of_before(
    suffix: str, kind: Any, dtype: str, program: Program, tmp_path: Path
) -> None:
    info = replace(FULL, kind=kind)
    paths = [write(tmp_path / f"{seed}{suffix}", info, seed, dtype) for seed in range(3)]
    packed = program.done("pack", *paths, tmp_path / "shards", "--shard-size", 2)
    assert (packed["samples"], packed["shards"], packed["frames"]) == (3, 2, 3 * 77)
    program.done("unpack", tmp_path / "shards", tmp_path / "back", "--format", suffix[1:])
    for number, path in enumerate(paths):
        with open_latents(path) as before, open_latents(tmp_path / f"back/{number:09d}{suffix}") as after:
            assert after.info == before.info and after.complete
            assert after.dtype == before.dtype and after.digest == before.digest
            assert after.read().tobytes() == before.read().tobytes()


def test_shards_unpacked_and_packed_again_are_the_same_samples(program: Program, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.zarr", seed=seed) for seed in range(2)]
    program.done("pack", *paths, tmp_path / "one")
    program.done("unpack", tmp_path / "one", tmp_path / "back", "--format", "npy")
    program.done("pack", *sorted((tmp_path / "back").glob("*.npy")), tmp_path / "two")
    for before, after in zip(
        LatentShardSet(str(tmp_path / "one"), verify=True), LatentShardSet(str(tmp_path / "two")), strict=True
    ):
        assert after.key == before.key and after.latents.tobytes() == before.latents.tobytes()
        assert after.about | {"source": ""} == before.about | {"source": ""}
    indices = [json.loads((tmp_path / name / "index.json").read_text()) for name in ("one", "two")]
    assert indices[0]["latents"] == indices[1]["latents"] and indices[0]["samples"] == 2


def test_chosen_keys_alone_are_unpacked(program: Program, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.npy", seed=seed) for seed in range(3)]
    program.done("pack", *paths, tmp_path / "shards")
    program.done("unpack", tmp_path / "shards", tmp_path / "back", "--key", "000000001")
    assert [path.name for path in (tmp_path / "back").glob("[!.]*")] == ["000000001.zarr"]
    line = program.refused("unpack", tmp_path / "shards", tmp_path / "back", "--key", "1")
    assert "no sample 1 in" in line


def test_latents_that_cannot_be_one_data_set_are_refused_in_one_line(
    program: Program, tmp_path: Path
) -> None:
    a, out = write(tmp_path / "a.npy"), tmp_path / "out"
    b = write(tmp_path / "b.npy", replace(FULL, kind="moments"))
    assert "kind was mean, and is moments" in program.refused("pack", a, b, out)
    with open_latents_writer(tmp_path / "c.zarr", FULL) as writer:
        writer.append(np.zeros((2, 3, 4, 6), np.float32))
    assert "c.zarr' was not finished" in program.refused("pack", tmp_path / "c.zarr", out)
    assert not out.exists()
    assert f"'{tmp_path}' is not empty" in program.refused("pack", a, tmp_path)
    assert "no index.json can be read" in program.refused("unpack", tmp_path, tmp_path / "back")
