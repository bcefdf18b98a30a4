"""Files of `torch.save`, from which no code runs and which cannot take more memory than they hold.

`weights_only` keeps pickles from running code, but neither a compressed member nor a view of any
size over a few bytes from filling the memory; it also returns tensors that are sparse, quantized or
without data, on which most operators fail.
"""

import os
import pickle
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wfvae.errors import CheckpointError
from wfvae.machine import limited_memory
from wfvae.spec.bounded import open_regular

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LOADING_BYTES = 1 << 28
_LONGEST_NAME = 100


def read_torch_file(path: Path, what: str) -> Any:
    """Reads what `torch.save` wrote, on the CPU.

    Args:
        what: what the file is called in errors, such as "training checkpoint".

    Raises:
        CheckpointError: the file is unreadable, or holds other objects than tensors and containers.
    """
    fail = partial(_unreadable, path, what)
    with open_regular(path, fail) as file:
        size = os.fstat(file.fileno()).st_size
    try:
        with limited_memory(size + _LOADING_BYTES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols, which are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; all mean the same to a user
        raise fail(_why(error)) from error


def check_weights(weights: Mapping[Any, Any], path: Path) -> None:
    """Checks that all values are dense floating-point tensors which the file really holds.

    Raises:
        CheckpointError: names the first tensor that is something else.
    """
    size, total = path.stat().st_size, 0
    for name, tensor in weights.items():
        called = f"{path} holds {str(name)[:_LONGEST_NAME]}"
        if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
            raise CheckpointError(f"{called} as a sparse, nested or empty tensor; save dense ones")
        if tensor.dtype not in WEIGHT_DTYPES:
            kinds = ", ".join(map(str, WEIGHT_DTYPES))
            raise CheckpointError(f"{called} as {tensor.dtype}; expected one of {kinds}")
        total += tensor.numel() * tensor.element_size()
        if total > size:
            shape = f"of shape {list(tensor.shape)}"
            raise CheckpointError(
                f"{called} {shape}, with which its tensors are larger than its {size} bytes; save it anew"
            )


def _why(error: Exception) -> str:
    """Returns the first line of an error, without torch's advice to load pickles all the same."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is no file of torch.save, or holds other objects than tensors"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreadable(path: Path, what: str, problem: str) -> CheckpointError:
    return CheckpointError(f"cannot read the {what} {path} (pickled objects are refused): {problem}")
