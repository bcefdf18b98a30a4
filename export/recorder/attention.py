"""Attention in blocks of queries, so that no more than a block's scores are in memory.

Rows of scores do not depend on each other: the results are those of whole attention, bit for bit.
The blocks are written out one after the other, since neither the bundle format nor TensorRT-RTX
takes loops. Where the size of frames is symbolic, the graph computes the length of all blocks: the
first of them hold all rows of a small frame, and the others are empty. A graph of any size that may
have no empty tensors has whole attention.
"""

from collections.abc import Iterator, Sequence

import torch

from wfvae.export.recorder.recorder import Recorder, Value
from wfvae.export.recorder.shapes import size_value
from wfvae.export.recorder.tensor import TracedTensor
from wfvae.export.symbolic import Length, Monomial, Size, product
from wfvae.spec.frames import SPATIAL_RATIO

BLOCK_ROWS = 1024
"""Most queries of a block. A frame of 256x256 pixels has so many positions."""
MOST_BLOCKS = 8
"""Frames of more than `BLOCK_ROWS * MOST_BLOCKS` positions, about 720x720, have longer blocks. Each
block costs a small frame a little, though it is empty."""
ROWS = "rows"
"""Symbol of the queries of a block, where the size of frames is symbolic."""
_POSITIONS: Monomial = (f"height/{SPATIAL_RATIO}", f"width/{SPATIAL_RATIO}")
_POSITION_AXIS = 2
"""Of (frames, one head, positions, channels)."""
_SLICE_TO_END = (1 << 63) - 1


def query_blocks(queries: TracedTensor) -> Iterator[TracedTensor]:
    """Cuts queries (frames, one head, positions, channels) into runs of positions.

    All have one length, but the last that is not empty may be shorter. Only frames of one position
    have a run of one: ONNX Runtime multiplies a single row with another kernel.
    """
    positions = queries.shape[_POSITION_AXIS]
    if not isinstance(positions, Size):
        rows = -(-positions // min(-(-positions // BLOCK_ROWS), MOST_BLOCKS))
        for first in range(0, positions, rows):
            yield queries[:, :, first : first + rows] if rows < positions else queries
        return
    recorder = queries.recorder
    if not recorder.empty_tensors:
        yield queries
        return
    shape = (*queries.shape[:_POSITION_AXIS], Size.symbol(ROWS), *queries.shape[_POSITION_AXIS + 1 :])
    length = _block_length(recorder, positions)
    axis = recorder.integers([_POSITION_AXIS])
    for block in range(MOST_BLOCKS):
        begin, end = (_calculate(recorder, "Mul", length, number) for number in (block, block + 1))
        if block == MOST_BLOCKS - 1:
            end = recorder.integers([_SLICE_TO_END])
        yield queries.emit("Slice", [queries, begin, end, axis], shape)


def join_blocks(results: Sequence[TracedTensor], shape: Sequence[Length]) -> TracedTensor:
    """Concatenates the results of blocks to a tensor of this shape."""
    if len(results) == 1:
        return results[0]
    recorder, whole = results[0].recorder, product(shape) * results[0].dtype.itemsize
    for result in results:
        if any(ROWS in monomial for monomial in recorder.bytes[result.name].terms):
            # Together they have all positions, however many of them are empty.
            recorder.bytes[result.name] = Size({m: -(-n // len(results)) for m, n in whole.terms.items()})
    return results[0].emit("Concat", results, shape, axis=_POSITION_AXIS)


def without_rows(size: Size) -> list[Size]:
    """Returns sizes of which the largest bounds a size with the symbol `ROWS`.

    A block has at most `BLOCK_ROWS` queries, or a part of the positions and the rest of a division.
    """
    fixed, per_row = Size.of(0), Size.of(0)
    for monomial, factor in size.terms.items():
        others = tuple(symbol for symbol in monomial if symbol != ROWS)
        if ROWS in monomial:
            per_row = per_row + Size({others: factor})
        else:
            fixed = fixed + Size({monomial: factor})
    if not per_row:
        return [size]
    share = Size({monomial: -(-factor // MOST_BLOCKS) for monomial, factor in per_row.terms.items()})
    return [fixed + per_row * BLOCK_ROWS, fixed + share * Size({_POSITIONS: 1}) + per_row]


def _block_length(recorder: Recorder, positions: Size) -> Value:
    """Divides the positions evenly by the fewest blocks that can hold them."""
    total = size_value(recorder, positions)

    def rounded_up(value: Value, divisor: Value | int) -> Value:
        before = _calculate(recorder, "Sub", _calculate(recorder, "Add", value, divisor), 1)
        return _calculate(recorder, "Div", before, divisor)

    count = _calculate(recorder, "Min", rounded_up(total, BLOCK_ROWS), MOST_BLOCKS)
    return rounded_up(total, count)


def _calculate(recorder: Recorder, operator: str, left: Value, right: Value | int) -> Value:
    other = right if isinstance(right, Value) else recorder.integers([right])
    return recorder.emit(operator, [left, other], [1], torch.int64)
