"""Files of `torch.save` that want more memory than they have, or whose tensors are unusual."""

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wfvae.errors import CheckpointError
from wfvae.model.checkpoint import read_training_checkpoint
from wfvae.model.torch_files import read_torch_file

UNUSUAL: dict[str, tuple[Callable[[], Tensor], str]] = {
    "view of terabytes": (lambda: torch.zeros(1).expand(10**12), "larger than its"),
    "sparse": (lambda: torch.zeros(4).to_sparse(), "sparse"),
    "sparse rows": (lambda: torch.zeros(4, 4).to_sparse_csr(), "sparse"),
    "without data": (lambda: torch.zeros(4, device="meta"), "empty"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8), "torch.qint8"),
    "complex": (lambda: torch.zeros(4, dtype=torch.complex64), "torch.complex64; expected one of"),
    "of 8 bits": (lambda: torch.zeros(4).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "of integers": (lambda: torch.zeros(4, dtype=torch.int64), "torch.int64"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_tensor_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, says = UNUSUAL[kind]
    path = tmp_path / "a.ckpt"
    torch.save({"ema_state_dict": {"decoder.weight": make()}}, path)
    with pytest.raises(CheckpointError, match=rf"a\.ckpt holds decoder\.weight.*{says}") as caught:
        read_training_checkpoint(path)
    assert len(str(caught.value)) < 500


def test_many_names_of_one_storage_are_refused(tmp_path: Path) -> None:
    shared = torch.zeros(10**5)
    torch.save({"ema_state_dict": {str(number): shared for number in range(100)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="larger than its"):
        read_training_checkpoint(tmp_path / "a.ckpt")


def test_compressed_member_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    stored = io.BytesIO()
    torch.save({"ema_state_dict": {"w": torch.zeros(1)}}, stored)
    path, size = tmp_path / "a.ckpt", 3 << 29
    with (
        zipfile.ZipFile(stored) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, True, 1) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        [entry] = [one for one in archive.infolist() if one.filename.endswith("data/0")]
    place = content.rindex(entry.filename.encode())  # in the list of members at the end
    content[place - 22 : place - 18] = size.to_bytes(4, "little")
    content[entry.header_offset + 22 : entry.header_offset + 26] = size.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="allocate memory") as caught:
        read_training_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_torch_file(tmp_path / "a.ckpt", "checkpoint")


def test_pickle_of_another_protocol_is_refused_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", b"\x80\xa4."), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", data)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
            read_torch_file(path, "checkpoint")
    assert not given
