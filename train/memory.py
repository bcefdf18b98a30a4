"""Errors for a lack of memory, which name what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wfvae.errors import TrainingError


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
