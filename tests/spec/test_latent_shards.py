"""Data sets of latents that someone forged."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.latent_shards import write_shards
from wfvae.errors import DataError
from wfvae.spec.latent_shards import LatentShardSet

pytest.importorskip("fsspec")


def forge(folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> None:
    """Changes a data set's files and index, and enters the hash of its list of samples."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(folder, index)
    if (table := folder / "samples.npy").is_file():
        index["table_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    path.write_text(json.dumps(index))


def rows(column: int, value: int) -> Callable[[Path, dict[str, Any]], None]:
    """Returns a change of the first row of the list of samples."""

    def change(folder: Path, index: dict[str, Any]) -> None:
        table = np.load(folder / "samples.npy")
        table[0, column] = value
        np.save(folder / "samples.npy", table)

    return change


def pipe(name: str) -> Callable[[Path, dict[str, Any]], None]:
    """Returns the change of a file to a pipe."""

    def change(folder: Path, index: dict[str, Any]) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def other_key(name: str) -> Callable[[Path, dict[str, Any]], None]:
    """Returns a change of the first sample's name, without a list of samples."""

    def change(folder: Path, index: dict[str, Any]) -> None:
        shard = folder / index["shards"][0]["name"]
        with tarfile.open(shard) as archive:
            files = [(entry.name, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]
        with tarfile.open(shard, "w") as archive:
            for old, content in files:
                entry = tarfile.TarInfo(old.replace("000000000", name))
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        index["shards"][0]["bytes"] = shard.stat().st_size
        del index["table_sha256"]
        (folder / "samples.npy").unlink()

    return change


FORGED = {
    "a pipe as shard": (pipe("latents-000000.tar"), "it is not a regular file"),
    "a pipe as list": (pipe("samples.npy"), "it is not a regular file"),
    "another shard's number": (rows(0, 99), "does not list"),
    "bytes before the shard": (rows(1, -512), "does not list"),
    "bytes behind the shard": (rows(2, 1 << 60), "does not list"),
    "a shape of more than its bytes": (rows(3, 1 << 62), "does not list"),
    "samples without end": (lambda _, index: index.update(samples=2**62), "does not list"),
    "a shard in another folder": (lambda _, index: index["shards"][0].update(name="../x.tar"), "index"),
    "a sample in another folder": (other_key("/tmp/x"), "expected a name without folders"),
    "a sample with a terminal's codes": (other_key("\x1b[31m"), "expected a name without folders"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_data_set_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    write_shards(tmp_path, [2, 3, 2], per_shard=2)
    change, problem = FORGED[case]
    forge(tmp_path, change)
    with pytest.raises(DataError, match=problem) as caught:
        LatentShardSet(str(tmp_path)).table()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
