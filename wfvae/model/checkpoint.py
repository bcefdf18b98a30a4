"""Checkpoints: directories as published, training checkpoints, and Hugging Face repositories.

They are read as a configuration and named tensors. No pickle is ever executed.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wfvae.errors import CheckpointError, MissingExtraError, ResourceError
from wfvae.files import replacing, write_whole
from wfvae.model.config import WFVAEConfig
from wfvae.model.torch_files import check_weights, read_torch_file
from wfvae.spec.bounded import open_regular, read_exactly
from wfvae.spec.memory import require_memory
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_MODEL, newest_of_run
from wfvae.spec.safetensors_header import read_header

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SHIPPED = ("tiny",)
"""Names of the checkpoints that come with the package, in `wfvae/weights`."""
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that are of DistributedDataParallel and averages, torch.compile, FSDP, and
activation checkpointing. No module of the network has such a name.
"""
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_PIECE_BYTES = 1 << 23
_DIRECTORY = f"a directory with {CONFIG_NAME} and {WEIGHTS_NAME}"


def read_checkpoint(
    source: str | Path, revision: str | None = None, subfolder: str | None = None
) -> tuple[WFVAEConfig, dict[str, Tensor], Path]:
    """Reads configuration, weights and their place; see `wfvae.model.vae.WFVAE.from_pretrained`."""
    path, inside = Path(source), PurePosixPath(subfolder or "")
    if inside.is_absolute() or ".." in inside.parts:
        raise CheckpointError(f"subfolder is {subfolder!r}; expected a folder inside of {source}")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{source} is a weights file; give the directory with it and its {CONFIG_NAME}")
    if path.is_file():
        if inside.parts:
            raise CheckpointError(f"{source} is a file, which has no subfolder {subfolder}; give a directory")
        if path.suffix != ".ckpt":
            raise CheckpointError(f"{source} is not a checkpoint; expected {_DIRECTORY}, or a .ckpt file")
        return _read_config(path.parent), read_training_checkpoint(path), path
    if not path.is_dir() and str(source) in SHIPPED:
        path = Path(str(files("wfvae") / "weights" / str(source)))
    if not path.is_dir():
        path = _download(str(source), revision, inside)
    path = model_of_run(path / inside)
    return _read_config(path), _read_weights(path), path


def model_of_run(directory: Path) -> Path:
    """Returns the averaged weights of a training run or its checkpoint; any other path as it is.

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
    """Writes `config.json` and the weights, each atomically, under their names without wrappers.

    Raises:
        CheckpointError: the disk refuses.
    """
    named = unwrapped_names(weights, directory)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in named.items()}
    try:
        with replacing(directory / WEIGHTS_NAME) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        write_whole(directory / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")
    except (ResourceError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the checkpoint {directory}: {error}") from error


def read_training_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Reads the generator's weights, averaged ones if there are any.

    Raises:
        CheckpointError: the file is unreadable, holds pickled objects, or holds no generator, or
            tensors that are not dense or larger than the file.
    """
    path = Path(path)
    content = read_torch_file(path, "training checkpoint")
    content = content if isinstance(content, Mapping) else {}
    weights = content.get("ema_state_dict")
    state_dict = content.get("state_dict")
    if not weights and isinstance(state_dict, Mapping):
        weights = state_dict.get("gen_model")
    if not isinstance(weights, Mapping) or not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError(
            f"{path} holds neither ema_state_dict nor state_dict.gen_model; its first entries are:"
            f" {', '.join(str(name)[:40] for name in islice(content, 8)) or 'none'}"
        )
    check_weights(weights, path)
    for name, tensor in weights.items():
        _require_finite(name, tensor, path)
    return unwrapped_names(weights, path)


def unwrapped_names(weights: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Returns weights without what wrappers of modules, such as `torch.compile`, add to names.

    Raises:
        CheckpointError: two tensors get the same name.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        plain = ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
        if plain in found:
            twice = f"{source} has two tensors {plain}, as the model names it and as a wrapper does"
            raise CheckpointError(f"{twice}; keep one of them")
        found[plain] = tensor
    return found


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Gives the tensors to `model`, which may be on the device `meta`, or leaves it as it is.

    Raises:
        CheckpointError: names all missing, unexpected and misshaped tensors, or a damaged filter.
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
        summary = "; ".join(problems)
        raise CheckpointError(f"the weights in {source} are not those of this configuration; {summary}")
    try:
        model.load_state_dict(dict(weights), strict=True, assign=True)
    except RuntimeError as error:  # the Haar filters report theirs through here
        raise CheckpointError(
            f"cannot load the weights in {source}: {' '.join(str(error).split())}"
        ) from error


def _file_in(directory: Path, name: str) -> Path:
    if not (directory / name).is_file():
        raise CheckpointError(f"{directory} has no {name}; expected {_DIRECTORY}")
    return directory / name


def _read_config(directory: Path) -> WFVAEConfig:
    return WFVAEConfig.from_json(_file_in(directory, CONFIG_NAME))


def _read_weights(directory: Path) -> dict[str, Tensor]:
    path = _file_in(directory, WEIGHTS_NAME)
    weights = read_tensors(path)
    for name, tensor in _copies(path):
        _require_finite(name, tensor, path)
    return unwrapped_names(weights, path)


def _copies(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields pieces of a safetensors file's tensors, flat, by name; they must be floating-point.

    They are read and not mapped: what is mapped counts as memory of the process once it is seen.
    """
    with open_regular(path, partial(_damaged, path)) as file:
        header = read_header(file, partial(_damaged, path))
        for name, entry in header.tensors.items():
            if (dtype := _FLOATS.get(entry.dtype)) is None:
                raise _damaged(path, f"{name[:100]} is {entry.dtype}, expected one of {', '.join(_FLOATS)}")
            first, last = (header.data_start + offset for offset in entry.data_offsets)
            for begin in range(first, last, _PIECE_BYTES):
                piece = bytearray(min(_PIECE_BYTES, last - begin))
                if not read_exactly(file, memoryview(piece), begin):
                    raise _damaged(path, "it became shorter while it was read")
                yield name, torch.frombuffer(piece, dtype=dtype)


def _require_finite(name: str, tensor: Tensor, source: object) -> None:
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"the weights in {source} are damaged: {name} holds NaN or infinite values")


def _damaged(path: Path, problem: str) -> CheckpointError:
    advice = "the file is damaged or not safetensors; copy it anew"
    return CheckpointError(f"cannot read {path}: {problem}; {advice}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Maps a safetensors file.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
        ResourceError: the machine has not so much memory.
    """
    fail = partial(_damaged, path)
    with open_regular(path, fail) as file:
        header = read_header(file, fail)
        size = sum(end - begin for begin, end in (entry.data_offsets for entry in header.tensors.values()))
    require_memory(size, f"the tensors of {path}", "use a smaller model")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error


def _download(name: str, revision: str | None, inside: PurePosixPath) -> Path:
    """Returns a local snapshot of a Hugging Face repository, with what is in one of its folders."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(("/", ".ckpt")):
        expected = "a checkpoint directory, a .ckpt file, or a Hugging Face name owner/name"
        raise CheckpointError(f"{name} does not exist; expected {expected}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        purpose = f"{name} is not a local directory; loading it from Hugging Face"
        raise MissingExtraError(purpose, "huggingface_hub", "hub") from error
    try:
        wanted = [str(inside / file) for file in (CONFIG_NAME, WEIGHTS_NAME)]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the library's network and authorisation errors have no common base
        raise CheckpointError(f"cannot download {name}: {' '.join(str(error).split())}") from error
