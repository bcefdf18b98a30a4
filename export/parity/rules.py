"""What each comparison must satisfy: equal bits where they are attainable, else a stated bound."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from wfvae.export.parity.difference import Array, Difference
from wfvae.spec.exactness import clips_are_exact, plans_are_exact


@dataclass(frozen=True)
class Rule:
    """When a difference passes."""

    tolerance: float
    """Largest error allowed; 0 asks for equal bits."""
    relative: bool = False
    """The tolerance is a share of the reference's largest magnitude (if that is above 1)."""
    reason: str = ""
    """Why this much is allowed, and not more."""

    @property
    def text(self) -> str:
        if self.tolerance == 0:
            return "equal bits"
        return f"error <= {self.tolerance:g}" + (" of the largest value" if self.relative else "")

    def allowed(self, expected: Array) -> float:
        """Returns the largest absolute error allowed beside this reference."""
        peak = float(np.abs(expected).max(initial=0.0)) if self.relative else 0.0
        return self.tolerance * max(1.0, peak if math.isfinite(peak) else 0.0)

    def accepts(self, difference: Difference, allowed: float) -> bool:
        """Returns whether `difference` passes. NaN, another shape and no values never do."""
        if difference.problem is not None or difference.elements == 0:
            return False
        return difference.equal_bits if self.tolerance == 0 else difference.max_abs <= allowed


EXACT = Rule(
    0.0, reason="the CPU kernels compute each frame by the same operations however many share the call"
)

# Bounds on backend against model, and on stream against direct where equal bits cannot be promised.
# Measured on three reference models and a random tiny preset, 17 to 33 frames, largest error
# against the model in float64, latents and video alike. The reduced precisions are relative, since
# they round in proportion, and get about three times what was measured.
BOUNDS: Mapping[str, Rule] = {
    "fp32": Rule(
        1e-4,
        reason="measured 6e-6 on ONNX Runtime's CPU provider; the model itself is held to this bound against"
        " the published implementation, it leaves room for other orders of summation, and a wrong operation"
        " exceeds it by far",
    ),
    "tf32": Rule(
        1e-2,
        True,
        "products are rounded to 10 bits: measured 2.2e-3 of the largest value, PyTorch with operands"
        " rounded so (no GPU)",
    ),
    "fp16": Rule(
        1e-2,
        True,
        "products and activations are rounded to 10 bits: measured 3.5e-3 of the largest value, ONNX"
        " Runtime's CPU provider",
    ),
    "bf16": Rule(
        1e-1,
        True,
        "products and activations are rounded to 7 bits: measured 3.6e-2 of the largest value, PyTorch",
    ),
}


def model_rule(backend: Mapping[str, str], precision: str) -> Rule:
    """Returns the bound on the results of a backend (as it describes itself) beside the model's."""
    if backend.get("precision_hint") == "bf16":
        return BOUNDS["bf16"]
    return BOUNDS["tf32" if precision == "fp32" and backend.get("tf32") == "true" else precision]


def plan_rule(backend: Mapping[str, str], precision: str, *, volumes: bool = False) -> Rule:
    """Returns the rule of plan invariance: any steps beside one call of the step graph.

    `volumes` says whether the graph's convolutions are 3-D.
    """
    exact = plans_are_exact(backend, precision, volumes=volumes)
    return EXACT if exact else model_rule(backend, precision)


def stream_rule(backend: Mapping[str, str], precision: str, *, volumes: bool = False) -> Rule:
    """Returns the rule of stream = direct, as `plan_rule` does."""
    exact = clips_are_exact(backend, precision, volumes=volumes)
    return EXACT if exact else model_rule(backend, precision)


def reference_rule(backend: Mapping[str, str], precision: str) -> Rule:
    """Returns the bound on a backend's results beside ONNX Runtime's CPU provider, same bundle.

    Both round, the reference no more than the backend. Each differs from the model by at most what
    was measured, so the two differ by at most twice that, for which one bound has room.
    """
    rule = model_rule(backend, precision)
    return replace(rule, reason=f"either side may be as far from the model as this: {rule.reason}")
