"""How much memory a graph's activations need at once, as formulas in its symbols."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product as combinations

import numpy as np
import onnx

from wfvae.export.recorder.attention import BLOCK_ROWS, ROWS
from wfvae.export.symbolic import Monomial, Size
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
    ROWS: (BLOCK_ROWS,),
}
# They write their result over an operand of its size that nothing needs afterwards.
_IN_PLACE = frozenset({"Add", "Div", "Mul", "Sigmoid", "Sub", "Where"})
_POSITIONS: Monomial = (f"height/{SPATIAL_RATIO}", f"width/{SPATIAL_RATIO}")
_Terms = tuple[tuple[float | str, ...], ...]


def scratch_peaks(
    nodes: Sequence[onnx.NodeProto],
    sizes: Mapping[str, Size],
    outputs: Sequence[str],
    attention_blocks: int = 1,
) -> tuple[_Terms, ...]:
    """Returns the sums of activation bytes that are largest at some clip size.

    Each is a list of products (factor, symbol, ...).

    Args:
        nodes: in order of execution.
        sizes: bytes of every tensor that a node makes.
        outputs: graph outputs, which the caller's buffers hold.
        attention_blocks: most blocks of queries in attention, if their length depends on the size.
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
    return tuple(terms for peak in _largest(list(moments)) for terms in _terms(peak, attention_blocks))


def _terms(peak: Size, attention_blocks: int) -> Iterator[_Terms]:
    """Yields the products of a sum: twice if it has blocks of queries, whose length is a maximum.

    A block has at most `BLOCK_ROWS` queries, or a part of the positions and the rest of a division.
    """
    if not any(ROWS in monomial for monomial in peak.terms):
        yield tuple((factor, *monomial) for monomial, factor in sorted(peak.terms.items()))
        return
    for rows in ({(): float(BLOCK_ROWS)}, {_POSITIONS: 1 / attention_blocks, (): 1.0}):
        products: dict[Monomial, float] = {}
        for monomial, factor in peak.terms.items():
            rest = tuple(symbol for symbol in monomial if symbol != ROWS)
            for more, times in rows.items() if rest != monomial else [((), 1.0)]:
                key = tuple(sorted((*rest, *more)))
                products[key] = products.get(key, 0) + factor * times
        found = sorted(products.items())
        yield tuple((int(factor) if factor == int(factor) else factor, *key) for key, factor in found)


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
