"""Checkpoints: directories as published, training checkpoints, and Hugging Face repositories.

They are read as a configuration and named tensors. No pickle is ever executed.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wfvae.errors import CheckpointError, MissingExtraError, ResourceError
from wfvae.files import replacing, write_whole
from wfvae.model.config import WFVAEConfig
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_MODEL, newest_of_run

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SHIPPED = ("tiny",)
"""Names of the checkpoints that come with the package, in `wfvae/weights`."""
_LISTED = 8


@dataclass(frozen=True)
class Checkpoint:
    """What was read."""

    config: WFVAEConfig
    weights: Mapping[str, Tensor]
    path: Path
    """Where it lies, for messages."""


def read_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Reads a checkpoint; see `wfvae.model.vae.WFVAE.from_pretrained`."""
    path = Path(source)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{source} is a weights file; give the directory with it and its {CONFIG_NAME}")
    if path.is_file():
        if path.suffix != ".ckpt":
            raise CheckpointError(
                f"{source} is not a checkpoint; expected a directory with {CONFIG_NAME} and {WEIGHTS_NAME},"
                " or a .ckpt file"
            )
        return Checkpoint(_read_config(path.parent, source), read_training_checkpoint(path), path)
    if not path.is_dir() and str(source) in SHIPPED:
        path = Path(str(files("wfvae") / "weights" / str(source)))
    if not path.is_dir():
        path = _download(str(source), revision)
    path = model_of_run(path)
    return Checkpoint(_read_config(path, source), _read_weights(path / WEIGHTS_NAME), path)


def model_of_run(directory: Path) -> Path:
    """Returns the averaged weights of a training run or of one of its checkpoints.

    Any other directory is returned as it is.

    Raises:
        CheckpointError: the run has no checkpoint yet.
    """
    if (directory / CONFIG_NAME).is_file():
        return directory
    if (directory / RUN_CHECKPOINTS).is_dir():
        newest = newest_of_run(directory)
        if newest is None:
            raise CheckpointError(f"the training run {directory} has no checkpoint yet; let it make one")
        directory = newest
    return directory / RUN_MODEL if (directory / RUN_MODEL).is_dir() else directory


def write_checkpoint(directory: Path, config: WFVAEConfig, weights: Mapping[str, Tensor]) -> None:
    """Writes `config.json` and the weights, each atomically.

    Raises:
        CheckpointError: the disk refuses.
    """
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    try:
        with replacing(directory / WEIGHTS_NAME) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        write_whole(directory / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")
    except (ResourceError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint {directory}: {error}") from error


def read_training_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the generator's weights, averaged ones if there are any, names without `module.`.

    Raises:
        CheckpointError: the file is unreadable, holds other objects than tensors and plain values,
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
    weights = content.get("ema_state_dict")
    state_dict = content.get("state_dict")
    if not weights and isinstance(state_dict, Mapping):
        weights = state_dict.get("gen_model")
    if not isinstance(weights, Mapping) or not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError(
            f"{path} holds neither ema_state_dict nor state_dict.gen_model; its entries are:"
            f" {_first_names(map(str, content))}"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}


def why_unreadable(error: Exception) -> str:
    """Returns the first line of an error of `torch.load` or safetensors.

    torch's own advice, to load pickled objects all the same, is left out.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of torch.save, or holds other objects than tensors"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Fills `model` strictly.

    Raises:
        CheckpointError: names all missing, unexpected and misshaped tensors, or a damaged one. The
            model is then unchanged.
    """
    expected = model.state_dict()
    found = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "misshaped": [
            f"{name} {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    problems = [f"{len(names)} {what}: {', '.join(names)}" for what, names in found.items() if names]
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
        reason = " ".join(str(error).split())
        raise CheckpointError(f"cannot load the weights in {source}: {reason}") from error


def _read_config(directory: Path, source: str | Path) -> WFVAEConfig:
    if not (directory / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{directory} has no {CONFIG_NAME}, so {source} cannot be loaded; a checkpoint has one beside its"
            " weights"
        )
    return WFVAEConfig.from_json(directory / CONFIG_NAME)


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
    """Returns a local snapshot of a Hugging Face repository."""
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


def _first_names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "") or "none"
