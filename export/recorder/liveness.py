"""How much memory a graph's activations need at once, as formulas in its symbols."""

import math
from collections.abc import Mapping, Sequence
from itertools import product as combinations

import numpy as np
import onnx

from wfvae.export.recorder.attention import without_rows
from wfvae.export.symbolic import Size
from wfvae.spec.frames import SPATIAL_RATIO

# Operators whose result is the same memory under another shape.
_VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Identity"})
# Sizes at which the largest sum is looked for: it is one of few, and which one depends on the clip.
_PROBES = {
    "batch": (1, 4),
    "latents": (1, 2, 4, 16),
    "groups": (1, 4),
    f"height/{SPATIAL_RATIO}": (4, 32, 128),
    f"width/{SPATIAL_RATIO}": (4, 32, 128),
}
# They write their result over an operand of its size that nothing needs afterwards.
_IN_PLACE = frozenset({"Add", "Div", "Mul", "Sigmoid", "Sub", "Where"})


def scratch_peaks(
    nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, Size], outputs: Sequence[str]
) -> tuple[tuple[tuple[int | str, ...], ...], ...]:
    """Returns the sums of activation bytes that are largest at some clip size.

    Each is a list of products (factor, symbol, ...).

    Args:
        nodes: in order of execution.
        sizes: bytes of every tensor that a node makes.
        outputs: graph outputs, which the caller's buffers hold.
    """
    owner: dict[str, str] = {}
    for node in nodes:
        for output in node.output:
            owner[output] = owner.get(node.input[0], node.input[0]) if node.op_type in _VIEWS else output
    last_use: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            last_use[owner.get(name, name)] = index
    held = {owner.get(name, name) for name in outputs}
    total = Size.of(0)
    moments: dict[Size, None] = {}
    alive: set[str] = set()
    ending: dict[int, list[str]] = {}
    for index, node in enumerate(nodes):
        for output in node.output:
            if owner[output] == output and output in sizes and output not in held:
                operands = [owner.get(name, name) for name in node.input if node.op_type in _IN_PLACE]
                free = [name for name in operands if name in alive and last_use[name] == index]
                free = [name for name in free if sizes[name] == sizes[output]]
                if free:
                    alive.remove(free[0])
                else:
                    total = total + sizes[output]
                alive.add(output)
                ending.setdefault(max(last_use.get(output, index), index), []).append(output)
        moments[total] = None
        for name in alive.intersection(ending.get(index, ())):
            alive.remove(name)
            total = total - sizes[name]
    bounds = [bound for moment in moments for bound in without_rows(moment)]
    peaks = [sorted(peak.terms.items()) for peak in _largest(bounds)]
    return tuple(tuple((factor, *monomial) for monomial, factor in peak) for peak in peaks)


def _largest(candidates: list[Size]) -> list[Size]:
    monomials = sorted({monomial for size in candidates for monomial in size.terms})
    symbols = sorted({symbol for monomial in monomials for symbol in monomial})
    factors = np.array([[size.terms.get(monomial, 0) for monomial in monomials] for size in candidates])
    winners: dict[Size, None] = {}
    for values in combinations(*(_PROBES[symbol] for symbol in symbols)):
        point = dict(zip(symbols, values, strict=True))
        products = [math.prod(point[symbol] for symbol in monomial) for monomial in monomials]
        winners[candidates[int(np.argmax(factors @ products))]] = None
    return list(winners)
