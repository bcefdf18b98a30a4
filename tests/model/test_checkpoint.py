"""Checkpoints: the published format, strict reading, and no pickle that runs."""

import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from wfvae.errors import CheckpointError, MissingExtraError
from wfvae.model.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_weights, read_training_checkpoint
from wfvae.model.vae import WFVAE

ModelFactory = Callable[..., WFVAE]
NAMES = ["4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear"]
TAP = "decoder.inverse_wavelet_transform_out.gh_v"


@pytest.fixture
def saved(small_model: ModelFactory, tmp_path: Path) -> Path:
    """A checkpoint directory that a test may damage."""
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(dict(found), dict(expected), rtol=0, atol=0)


def weights_of(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(directory / WEIGHTS_NAME)
    return tensors


# The directory format


@pytest.mark.parametrize("name", NAMES)
def test_saving_a_published_checkpoint_gives_the_same_files(
    name: str, reference_dir: Path, tmp_path: Path
) -> None:
    WFVAE.from_pretrained(reference_dir / name).save_pretrained(tmp_path)
    assert_same(weights_of(tmp_path), weights_of(reference_dir / name))
    config = json.loads((reference_dir / name / CONFIG_NAME).read_text())
    del config["_diffusers_version"]
    assert json.loads((tmp_path / CONFIG_NAME).read_text()) == config
    with safe_open(tmp_path / WEIGHTS_NAME, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in tmp_path.iterdir())


OTHER = {"temporal_compression": 8, "energy_flow_l2": False, "scale": (1.0, 2.0, 3.0, 4.0)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("overrides", [{}, OTHER])
def test_round_trip_changes_nothing(
    dtype: torch.dtype, overrides: dict[str, Any], small_model: ModelFactory, tmp_path: Path
) -> None:
    model = small_model(dtype, **overrides)
    model.save_pretrained(str(tmp_path / "new" / "folder"))
    again = WFVAE.from_pretrained(str(tmp_path / "new" / "folder"), dtype=dtype)
    assert again.config == model.config
    assert not again.training
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_loaded_model_has_the_wanted_dtype_and_device(saved: Path, dtype: torch.dtype) -> None:
    model = WFVAE.from_pretrained(saved, device="cpu", dtype=dtype)
    assert {t.dtype for t in [*model.state_dict().values(), *model.buffers()]} == {dtype}
    elsewhere = WFVAE.from_pretrained(saved, device=torch.device("meta"), dtype=dtype)
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("wrong", [torch.int8, "bf16"])
def test_dtype_that_is_no_float_is_refused(saved: Path, name: str, wrong: Any) -> None:
    with pytest.raises(CheckpointError, match=r"dtype is .*; expected torch\.float32"):
        WFVAE.from_pretrained(saved, **{name: wrong})


def test_torch_dtype_is_another_name_of_dtype(saved: Path) -> None:
    assert WFVAE.from_pretrained(saved, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    both = {"dtype": torch.float16, "torch_dtype": torch.float16}
    assert WFVAE.from_pretrained(saved, **both).dtype == torch.float16
    with pytest.raises(CheckpointError, match=r"dtype is torch\.float16, but torch_dtype is torch\.float32"):
        WFVAE.from_pretrained(saved, dtype=torch.float16, torch_dtype=torch.float32)


def test_model_in_a_subfolder_loads(saved: Path) -> None:
    (saved.parent / "pipeline" / "parts").mkdir(parents=True)
    saved.rename(saved.parent / "pipeline" / "parts" / "vae")
    pipeline = saved.parent / "pipeline"
    expected = WFVAE.from_pretrained(pipeline / "parts" / "vae").state_dict()
    assert_same(WFVAE.from_pretrained(pipeline, subfolder="parts/vae").state_dict(), expected)
    with pytest.raises(CheckpointError, match=rf"other has no {CONFIG_NAME}"):
        WFVAE.from_pretrained(pipeline, subfolder="other")
    for outside in ("../pipeline/parts/vae", str(pipeline / "parts" / "vae")):
        with pytest.raises(CheckpointError, match=r"subfolder is .*; expected a folder inside of"):
            WFVAE.from_pretrained(pipeline, subfolder=outside)
    with pytest.raises(CheckpointError, match="is a file, which has no subfolder vae"):
        WFVAE.from_pretrained(pipeline / "parts" / "vae" / CONFIG_NAME, subfolder="vae")


def test_interrupted_save_leaves_the_old_checkpoint(
    saved: Path, small_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / WEIGHTS_NAME).read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wfvae.model.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*No space left"):
        small_model(latent_dim=8).save_pretrained(saved)
    assert (saved / WEIGHTS_NAME).read_bytes() == before
    assert WFVAE.from_pretrained(saved).config.latent_dim == 4
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        small_model().save_pretrained(saved / CONFIG_NAME / "model")


# Strictness


def rewrite(saved: Path, **changes: Tensor | None) -> None:
    """Changes, adds or removes (None) weights of a checkpoint."""
    weights = {**weights_of(saved), **changes}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, saved / WEIGHTS_NAME)


def test_one_error_names_all_that_is_wrong(saved: Path) -> None:
    missing = ("encoder.conv_out.conv.bias", TAP, "decoder.conv_in.conv.weight")
    added = {"encoder.extra": torch.ones(1), "loss.logvar": torch.zeros(1)}
    rewrite(saved, **dict.fromkeys(missing), **added, **{"decoder.norm_out.norm.weight": torch.ones(3)})
    with pytest.raises(CheckpointError) as raised:
        WFVAE.from_pretrained(saved)
    misshaped = "1 misshaped: decoder.norm_out.norm.weight (3,), expected (8,)"
    for part in ("3 missing: ", *missing, "2 unexpected: encoder.extra, loss.logvar", misshaped, str(saved)):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"), [(TAP, "is not a Haar filter"), ("decoder.conv_in.conv.bias", "holds NaN")]
)
def test_damaged_tensor_is_refused_by_name(saved: Path, name: str, message: str) -> None:
    tensor = weights_of(saved)[name]
    tensor.view(-1)[0] = 0.5 if name == TAP else torch.nan
    rewrite(saved, **{name: tensor})
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        WFVAE.from_pretrained(saved)


def test_training_checkpoint_with_a_damaged_value_is_refused(saved: Path) -> None:
    weights = weights_of(saved)
    weights["decoder.conv_in.conv.bias"][0] = torch.nan
    torch.save({"ema_state_dict": weights}, saved / "run.ckpt")
    with pytest.raises(
        CheckpointError, match=r"run\.ckpt are damaged: decoder\.conv_in\.conv\.bias holds NaN"
    ):
        WFVAE.from_pretrained(saved / "run.ckpt")


def test_value_is_checked_in_every_piece_that_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wfvae.model.checkpoint._PIECE_BYTES", 64)
    name = "decoder.conv_in.conv.weight"
    tensor = weights_of(saved)[name]
    tensor.view(-1)[-1] = torch.inf
    rewrite(saved, **{name: tensor})
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinite"):
        WFVAE.from_pretrained(saved)


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are read from /proc")
def test_loaded_weights_stay_mapped_from_their_file_until_converted(saved: Path) -> None:
    def mapped(model: WFVAE) -> list[bool]:
        ranges = [
            [int(end, 16) for end in line.split()[0].split("-")]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(str(saved / WEIGHTS_NAME))
        ]
        return [any(first <= one.data_ptr() < last for first, last in ranges) for one in model.parameters()]

    assert all(mapped(WFVAE.from_pretrained(saved)))
    assert not any(mapped(WFVAE.from_pretrained(saved, dtype=torch.bfloat16)))


def test_training_a_loaded_model_leaves_its_file(saved: Path) -> None:
    before = (saved / WEIGHTS_NAME).read_bytes()
    model = WFVAE.from_pretrained(saved)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (saved / WEIGHTS_NAME).read_bytes() == before
    model.save_pretrained(saved)
    assert_same(WFVAE.from_pretrained(saved).state_dict(), model.state_dict())


def test_refused_checkpoint_leaves_the_model_unchanged(small_model: ModelFactory) -> None:
    model = small_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    other = {key: tensor + 1 for key, tensor in before.items() if "conv_in" not in key}
    with pytest.raises(CheckpointError):
        load_weights(model, other, "memory")
    assert_same(model.state_dict(), before)


def test_truncated_or_missing_files_are_named(saved: Path) -> None:
    whole = (saved / WEIGHTS_NAME).read_bytes()
    for damaged in (b"", whole[:100], whole[:-7]):
        (saved / WEIGHTS_NAME).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"cannot read .*{WEIGHTS_NAME}.*damaged"):
            WFVAE.from_pretrained(saved)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        (saved / name).unlink()
        with pytest.raises(CheckpointError, match=f"has no {name}; expected a directory with {CONFIG_NAME}"):
            WFVAE.from_pretrained(saved)


def test_path_that_is_no_checkpoint_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="is a weights file; give the directory"):
        WFVAE.from_pretrained(saved / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=r"config.json is not a checkpoint; expected a directory"):
        WFVAE.from_pretrained(saved / CONFIG_NAME)
    for absent in (saved / "nowhere", "./relative/folder", "name", "checkpoints/absent.ckpt"):
        with pytest.raises(CheckpointError, match="does not exist; expected a checkpoint directory"):
            WFVAE.from_pretrained(absent)


# Names of wrapped modules


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module."])
def test_weights_of_a_wrapped_model_load(prefix: str, saved: Path) -> None:
    weights = weights_of(saved)
    save_file(prefixed(weights, prefix), saved / WEIGHTS_NAME)
    assert_same(WFVAE.from_pretrained(saved).state_dict(), weights)


def test_model_with_compiled_parts_saves_and_loads_plain_names(
    small_model: ModelFactory, tmp_path: Path
) -> None:
    model = small_model()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.decoder.mid = torch.compile(model.decoder.mid, backend="eager")
    wrapped = torch.compile(model, backend="eager")
    assert any(name.startswith("_orig_mod.decoder.mid._orig_mod.") for name in wrapped.state_dict())
    wrapped.save_pretrained(tmp_path / "saved")
    assert_same(weights_of(tmp_path / "saved"), expected)
    torch.save({"ema_state_dict": wrapped.state_dict()}, tmp_path / "saved" / "a.ckpt")
    assert_same(WFVAE.from_pretrained(tmp_path / "saved" / "a.ckpt").state_dict(), expected)


def test_tensor_with_and_without_prefix_is_refused(saved: Path) -> None:
    weights = weights_of(saved)
    save_file({**weights, f"_orig_mod.{TAP}": weights[TAP].clone()}, saved / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=f"has two tensors {TAP}, as the model names it"):
        WFVAE.from_pretrained(saved)


# Training checkpoints


def prefixed(weights: dict[str, Tensor], prefix: str, offset: float = 0.0) -> dict[str, Tensor]:
    return {prefix + key: tensor + offset * key.endswith("bias") for key, tensor in weights.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("averaged", [True, False])
def test_training_checkpoint_loads_averaged_weights_first(prefix: str, averaged: bool, saved: Path) -> None:
    weights = weights_of(saved)
    models = {"gen_model": prefixed(weights, prefix, offset=1.0), "dics_model": {"w": torch.ones(1)}}
    optimizer = {"gen_optimizer": {"lr": 1e-5, "betas": (0.9, 0.999)}}
    content: dict[str, Any] = {"epoch": 3, "state_dict": models, "optimizer_state": optimizer}
    if averaged:
        content["ema_state_dict"] = prefixed(weights, prefix)
    torch.save(content, saved / "checkpoint-10.ckpt")
    (saved / WEIGHTS_NAME).unlink()
    state = WFVAE.from_pretrained(saved / "checkpoint-10.ckpt").state_dict()
    assert_same(state, prefixed(weights, "", offset=0.0 if averaged else 1.0))


@pytest.mark.parametrize(
    "content", [{"epoch": 1}, {"state_dict": {"w": torch.ones(1)}}, {"ema_state_dict": {"w": 1}}, [1], None]
)
def test_file_that_is_no_training_checkpoint_is_refused(content: Any, saved: Path) -> None:
    torch.save(content, saved / "a.ckpt")
    message = r"holds neither ema_state_dict nor state_dict\.gen_model"
    if content is None:
        (saved / "a.ckpt").write_bytes(b"not a checkpoint")
        message = "cannot read the training checkpoint"
    with pytest.raises(CheckpointError, match=message):
        WFVAE.from_pretrained(saved / "a.ckpt")


class Malicious:
    """What a pickle may do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_object_is_refused_and_never_executed(zipped: bool, saved: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "executed"
    content = {"ema_state_dict": weights_of(saved), "config": Malicious(evidence)}
    torch.save(content, saved / "a.ckpt", _use_new_zipfile_serialization=zipped)
    message = r"a\.ckpt .*pickled objects are refused\): it is no file of torch\.save, or holds other"
    for read in (WFVAE.from_pretrained, read_training_checkpoint):
        with pytest.raises(CheckpointError, match=message):
            read(saved / "a.ckpt")
    assert not evidence.exists()
    torch.load(saved / "a.ckpt", weights_only=False)  # the trap is a real one
    assert evidence.exists()


# Hugging Face


def test_hub_name_is_downloaded_if_the_extra_is_installed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = r"some/model is not a local directory.*pip install 'wfvae\[hub\]'"
    with pytest.raises(MissingExtraError, match=message):
        WFVAE.from_pretrained("some/model")
    asked: list[tuple[object, ...]] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        if name == "no/access":
            raise RuntimeError("401:\n unauthorised")
        asked.append((name, revision, allow_patterns))
        return str(saved)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = WFVAE.from_pretrained("some/model", revision="v1")
    assert asked == [("some/model", "v1", [CONFIG_NAME, WEIGHTS_NAME])]
    assert_same(model.state_dict(), weights_of(saved))
    with pytest.raises(CheckpointError, match=f"has no {CONFIG_NAME}"):  # this repository has no such part
        WFVAE.from_pretrained("some/model", subfolder="vae")
    assert asked[1:] == [("some/model", None, [f"vae/{CONFIG_NAME}", f"vae/{WEIGHTS_NAME}"])]
    with pytest.raises(CheckpointError, match="cannot download no/access: 401: unauthorised"):
        WFVAE.from_pretrained("no/access")
