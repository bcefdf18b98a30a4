"""What a device can do: whether bf16 is fast on it, and errors for full memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wfvae.errors import TrainingError

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""As `torch.cpu.get_capabilities` names them, of x86-64 and of ARM64."""


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16 products; without them fp32 is faster."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error reports a lack of memory, of the device or of the computer."""
    # On a CPU torch raises a RuntimeError, with another message for sizes that no computer has.
    messages = ("can't allocate memory", "Storage size calculation")
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(message in str(error) for message in messages)


@contextmanager
def memory_for(purpose: str, device: torch.device, advice: str) -> Iterator[None]:
    """Raises `TrainingError` with the purpose and the advice if memory does not suffice inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory on {device}, for {purpose}; {advice}") from error
