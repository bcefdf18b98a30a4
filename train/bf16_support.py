"""Whether bf16 makes training faster on a device, which `run.precision = "auto"` depends on."""

from __future__ import annotations

import torch

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""As `torch.cpu.get_capabilities` names them, of x86-64 and of ARM64."""


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16 products; without them fp32 is faster."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS)
