"""Checkpoints: the published directory format, training checkpoints, and Hugging Face repositories.
No pickle is ever executed.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from wfvae.errors import CheckpointError, MissingExtraError
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_MODEL, newest_of_run

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SHIPPED = ("tiny",)
"""Names of the checkpoints that come with the package, in `wfvae/data`."""
_LISTED = 8


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> WFVAE:
    """Loads a model for inference (in eval mode).

    Args:
        source: `tiny`, the small trained model that comes with the package (a directory of that
            name goes first); a directory with `config.json` and
            `diffusion_pytorch_model.safetensors`; the directory of a training run, whose newest
            averaged weights are taken; a training checkpoint `*.ckpt` with a `config.json` beside
            it; or a Hugging Face repository `owner/name` (needs the extra `hub`).
        device, dtype: where and in what precision the weights are placed.
        revision: branch, tag or commit of a Hugging Face repository.

    Raises:
        CheckpointError: naming every missing, unexpected and misshaped tensor, or what could not be
            read.
        ConfigError: if `config.json` is not a WF-VAE's.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{source} is a weights file; give the directory that holds it and its {CONFIG_NAME}"
        )
    if path.is_file():
        if path.suffix != ".ckpt":
            raise CheckpointError(
                f"{source} is not a checkpoint; expected a directory with {CONFIG_NAME} and {WEIGHTS_NAME},"
                " or a .ckpt file"
            )
        _require_config(path.parent, source)
        return _build(
            WFVAEConfig.from_json(path.parent / CONFIG_NAME),
            read_training_checkpoint(path),
            path,
            device,
            dtype,
        )
    if not path.is_dir() and str(source) in SHIPPED:
        path = Path(str(files("wfvae") / "weights" / str(source)))
    if not path.is_dir():
        path = _download(str(source), revision)
    path = model_of_run(path)
    _require_config(path, source)
    return _build(
        WFVAEConfig.from_json(path / CONFIG_NAME), _read_weights(path / WEIGHTS_NAME), path, device, dtype
    )


def model_of_run(directory: Path) -> Path:
    """The averaged weights in a run or in one of its checkpoints; the directory itself if it is
    neither.

    Raises `CheckpointError` if the run has no checkpoint yet.
    """
    if (directory / RUN_CHECKPOINTS).is_dir() and not (directory / CONFIG_NAME).is_file():
        newest = newest_of_run(directory)
        if newest is None:
            raise CheckpointError(
                f"the training run {directory} has no checkpoint yet; wait for its first one, or let it"
                " make one"
            )
        directory = newest
    return (
        directory / RUN_MODEL
        if (directory / RUN_MODEL).is_dir() and not (directory / CONFIG_NAME).is_file()
        else directory
    )


def _require_config(directory: Path, source: str | Path) -> None:
    if not (directory / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{directory} has no {CONFIG_NAME}, so {source} cannot be loaded; a checkpoint has one beside its"
            " weights"
        )


def save(model: WFVAE, directory: str | Path) -> None:
    """Writes `config.json` and the weights, each to a temporary name first. Raises
    `CheckpointError` if the disk refuses.
    """
    _write(
        {name: tensor.detach().to("cpu").contiguous() for name, tensor in model.state_dict().items()},
        model.config,
        Path(directory),
    )


def _write(tensors: Mapping[str, Tensor], config: WFVAEConfig, directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / (WEIGHTS_NAME + ".tmp")
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes files for the owner's eyes only
        os.replace(temporary, directory / WEIGHTS_NAME)
        temporary = directory / (CONFIG_NAME + ".tmp")
        temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, directory / CONFIG_NAME)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint {directory}: {error}") from error


def save_half(model: WFVAE, directory: str | Path) -> None:
    """As `save`, with the trained weights rounded to fp16: half the size. Haar taps stay fp32,
    since their synthesis inverts them exactly.

    `load` gives the rounded weights in the precision it is asked for.
    """
    trained = {name for name, _ in model.named_parameters()}
    tensors = {
        name: (t.half() if name in trained else t).detach().cpu().contiguous()
        for name, t in model.state_dict().items()
    }
    _write(tensors, model.config, Path(directory))


def read_training_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The generator's weights in a training checkpoint: the EMA if there is one, names without
    `module.`.

    Raises `CheckpointError` if the file is unreadable, holds anything but tensors and plain values,
    or holds no generator.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; all mean the same to a user
        raise CheckpointError(
            f"cannot read the training checkpoint {path} (pickled objects are refused):"
            f" {why_unreadable(error)}"
        ) from error
    content = content if isinstance(content, Mapping) else {}
    state_dict = content.get("state_dict")
    weights = content.get("ema_state_dict") or (
        state_dict.get("gen_model") if isinstance(state_dict, Mapping) else None
    )
    if not isinstance(weights, Mapping) or not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError(
            f"{path} holds neither ema_state_dict nor state_dict.gen_model; its entries are:"
            f" {_some(map(str, content))}"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}


def why_unreadable(error: Exception) -> str:
    """The first line of what `torch.load` or safetensors complain of, but for torch's advice to
    load pickled objects all the same.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of torch.save, or holds other objects than tensors"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def load_weights(model: WFVAE, weights: Mapping[str, Tensor], source: object) -> None:
    """Fills `model` strictly. Raises one `CheckpointError` that names all missing, unexpected and
    misshaped tensors.
    """
    expected = model.state_dict()
    problems: list[str] = []
    for what, names in (
        ("missing", [name for name in expected if name not in weights]),
        ("unexpected", [name for name in weights if name not in expected]),
        (
            "misshaped",
            [
                f"{name} {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in weights and weights[name].shape != tensor.shape
            ],
        ),
    ):
        if names:
            problems.append(f"{len(names)} {what}: {', '.join(names)}")
    if problems:
        raise CheckpointError(
            f"the weights in {source} are not those of this configuration; {'; '.join(problems)}"
        )
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"the weights in {source} are damaged: {name} holds NaN or infinite values")
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:  # the Haar filters report theirs through here
        raise CheckpointError(
            f"cannot load the weights in {source}: {' '.join(str(error).split())}"
        ) from error


def _build(
    config: WFVAEConfig,
    weights: Mapping[str, Tensor],
    source: Path,
    device: torch.device | str,
    dtype: torch.dtype,
) -> WFVAE:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CheckpointError(f"dtype is {dtype!r}; expected torch.float32, float16, bfloat16 or float64")
    model = WFVAE(config).to(dtype)
    load_weights(model, weights, source)
    return model.to(device).eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {WEIGHTS_NAME}; expected a checkpoint directory with {CONFIG_NAME} and"
            f" {WEIGHTS_NAME}"
        )
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; the file is damaged or not safetensors; copy it anew"
        ) from error
    return weights


def _download(name: str, revision: str | None) -> Path:
    """A local snapshot of a Hugging Face repository. Never exercised by the tests, which have no
    network.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(("/", ".ckpt")):
        raise CheckpointError(
            f"{name} does not exist; expected a checkpoint directory, a .ckpt file, or a Hugging Face name"
            " owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is not a local directory; loading it from Hugging Face", "huggingface_hub", "hub"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except Exception as error:  # the library's network and authorisation errors have no common base
        raise CheckpointError(f"cannot download {name}: {' '.join(str(error).split())}") from error


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "") or "none"
