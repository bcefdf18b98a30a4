"""Symbolic sizes as tensors of the graph, computed from the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from wfvae.errors import StreamingError
from wfvae.export.recorder.builder import GraphBuilder, Value
from wfvae.export.symbolic import Length, Size


class ShapeWriter:
    """Adds to a graph the nodes that compute its sizes."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._symbols: dict[str, Value] = {}

    def target(self, sizes: Sequence[Length]) -> Value:
        """Returns the shape vector of a Reshape, which infers one symbolic size by itself (-1)."""
        symbolic = {axis: size for axis, size in enumerate(sizes) if isinstance(size, Size)}
        if symbolic:
            # The most composite one, such as a product of batch and frames, would cost most to
            # compute.
            inferred = max(symbolic, key=lambda axis: symbolic[axis].complexity)
            sizes = [-1 if axis == inferred else size for axis, size in enumerate(sizes)]
        if all(isinstance(size, int) for size in sizes):
            return self._builder.integers(cast("list[int]", list(sizes)))
        return self.vector(sizes)

    def vector(self, sizes: Sequence[Length]) -> Value:
        """Returns sizes as a vector of integers."""
        parts: list[Value] = []
        plain: list[int] = []
        for size in sizes:
            if isinstance(size, int):
                plain.append(size)
                continue
            if plain:
                parts.append(self._builder.integers(plain))
                plain = []
            parts.append(self.value(size))
        if plain:
            parts.append(self._builder.integers(plain))
        if len(parts) == 1:
            return parts[0]
        return self._builder.emit("Concat", parts, [len(sizes)], torch.int64, axis=0)

    def value(self, size: Size) -> Value:
        """Returns a size as a vector of one integer."""
        total: Value | None = None
        for monomial, factor in sorted(size.terms.items()):
            term: Value | None = None
            for symbol in monomial:
                source = self._symbol(symbol)
                term = source if term is None else self._apply("Mul", term, source)
            if term is None:
                term = self._builder.integers([factor])
            elif factor != 1:
                term = self._apply("Mul", term, factor)
            total = term if total is None else self._apply("Add", total, term)
        assert total is not None
        return total

    def _apply(self, operator: str, left: Value, right: Value | int) -> Value:
        other = right if isinstance(right, Value) else self._builder.integers([right])
        return self._builder.emit(operator, [left, other], [1], torch.int64)

    def _symbol(self, symbol: str) -> Value:
        if symbol not in self._symbols:
            self._builder.scopes.append("")
            self._symbols[symbol] = self._compute(symbol)
            self._builder.scopes.pop()
        return self._symbols[symbol]

    def _compute(self, symbol: str) -> Value:
        """Reads a symbol off the first input with a multiple of it, or halves another symbol."""
        if (whole := Size.halved(symbol)) is not None:
            return self._apply("Div", self._apply("Add", self._symbol(whole), 1), 2)
        for value in self._builder.inputs:
            for axis, size in enumerate(value.shape):
                if isinstance(size, Size) and set(size.terms) <= {(symbol,), ()} and (symbol,) in size.terms:
                    found = self._builder.emit("Shape", [value], [1], torch.int64, start=axis, end=axis + 1)
                    factor, offset = size.terms[(symbol,)], size.terms.get((), 0)
                    if offset:
                        found = self._apply("Sub", found, offset)
                    return found if factor == 1 else self._apply("Div", found, factor)
        raise StreamingError(f"no input of the graph has the size {symbol}")
