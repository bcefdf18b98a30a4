"""Symbolic sizes as tensors of the graph, computed from the shapes of its inputs."""

from collections.abc import Sequence
from functools import partial, reduce
from itertools import chain, groupby

import torch

from wfvae.errors import StreamingError
from wfvae.export.recorder.recorder import Recorder, Value
from wfvae.export.symbolic import Length, Monomial, Size


def size_vector(recorder: Recorder, sizes: Sequence[Length]) -> Value:
    """Returns sizes as a vector of integers.

    Reshape could infer one of them (-1), but TensorRT-RTX then bounds it by products that grow from
    one Reshape to the next, until they overflow ("Assertion bound >= 0 failed").
    """
    parts: list[Value] = []
    for plain, group in groupby(sizes, key=lambda size: isinstance(size, int)):
        run = list(group)
        parts += [recorder.integers(run)] if plain else [size_value(recorder, Size.of(s)) for s in run]
    if len(parts) == 1:
        return parts[0]
    return recorder.emit("Concat", parts, [len(sizes)], torch.int64, axis=0)


def size_value(recorder: Recorder, size: Size) -> Value:
    """Returns a size as a vector of one integer, at least 0."""

    def term(monomial: Monomial, factor: int) -> Value:
        number = [recorder.integers([factor])] if factor != 1 or not monomial else []
        symbols = (_symbol(recorder, symbol) for symbol in monomial)
        return reduce(partial(_apply, recorder, "Mul"), chain(symbols, number))

    terms = (term(monomial, factor) for monomial, factor in sorted(size.terms.items()))
    value = reduce(partial(_apply, recorder, "Add"), terms)
    return _apply(recorder, "Max", value, 0) if size.smallest < 0 else value


def _apply(recorder: Recorder, operator: str, left: Value, right: Value | int) -> Value:
    other = right if isinstance(right, Value) else recorder.integers([right])
    return recorder.emit(operator, [left, other], [1], torch.int64)


def _symbol(recorder: Recorder, symbol: str) -> Value:
    if symbol not in recorder.symbols:
        recorder.scopes.append("")
        recorder.symbols[symbol] = _compute(recorder, symbol)
        recorder.scopes.pop()
    return recorder.symbols[symbol]


def _compute(recorder: Recorder, symbol: str) -> Value:
    """Reads a symbol off the first input with a multiple of it, or halves another symbol."""
    if (whole := Size.halved(symbol)) is not None:
        return _apply(recorder, "Div", _apply(recorder, "Add", _symbol(recorder, whole), 1), 2)
    for value in recorder.inputs:
        for axis, size in enumerate(value.shape):
            if isinstance(size, Size) and set(size.terms) <= {(symbol,), ()} and (symbol,) in size.terms:
                found = recorder.emit("Shape", [value], [1], torch.int64, start=axis, end=axis + 1)
                factor, offset = size.terms[(symbol,)], size.terms.get((), 0)
                if offset:
                    found = _apply(recorder, "Sub", found, offset)
                return found if factor == 1 else _apply(recorder, "Div", found, factor)
    raise StreamingError(f"no input of the graph has the size {symbol}")
