"""Whether bf16 makes training faster on a device, or slower, and what `run.precision = "auto"` therefore is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from wfvae.train.config import TrainingConfig

__all__ = ["computes_in_bf16", "cpu_computes_in_bf16", "with_precision"]

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""As `torch.cpu.get_capabilities` names them, of x86-64 and of ARM64."""


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bf16. Without them PyTorch computes the same results, only slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_computes_in_bf16(torch.cpu.get_capabilities())


def cpu_computes_in_bf16(capabilities: Mapping[str, Any]) -> bool:
    """The same of a processor with these capabilities, named as by `torch.cpu.get_capabilities`."""
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)


def with_precision(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """The settings with "auto" replaced by what is faster on the device; others as they are."""
    if config.run.precision != "auto":
        return config
    return replace(config, run=replace(config.run, precision="bf16" if computes_in_bf16(device) else "fp32"))
