"""Attention in blocks of queries, so that no more than a block's scores are in memory.

Rows of scores do not depend on each other: the results are those of whole attention, bit for bit.
The blocks are written out one after the other, since neither the bundle format nor TensorRT-RTX
takes loops. Where the size of frames is symbolic, the graph computes the length of all blocks: the
first of them hold all rows of a small frame, and the others are empty.
"""

from collections.abc import Iterator, Sequence

import torch

from wfvae.export.recorder.recorder import Recorder, Value
from wfvae.export.recorder.shapes import size_value
from wfvae.export.recorder.tensor import TracedTensor
from wfvae.export.symbolic import Length, Size, product

BLOCK_ROWS = 1024
"""Most queries of a block. A frame of 256x256 pixels has so many positions."""
MOST_BLOCKS = 8
"""Frames of more than `BLOCK_ROWS * MOST_BLOCKS` positions, about 720x720, have longer blocks. Each
block costs a small frame a little, though it is empty."""
ROWS = "rows"
"""Symbol of the queries of a block, where the size of frames is symbolic."""
_POSITIONS = 2
"""Axis of (frames, one head, positions, channels)."""
_SLICE_TO_END = (1 << 63) - 1


def query_blocks(query: TracedTensor, most: int) -> Iterator[TracedTensor]:
    """Cuts queries (frames, one head, positions, channels) into at most `most` runs of positions.

    All have one length, but the last that is not empty may be shorter. Only frames of one position
    have a run of one: ONNX Runtime multiplies a single row with another kernel.
    """
    positions = query.shape[_POSITIONS]
    if most == 1:
        yield query
        return
    if not isinstance(positions, Size):
        rows = -(-positions // min(-(-positions // BLOCK_ROWS), most))
        for first in range(0, positions, rows):
            yield query[:, :, first : first + rows] if rows < positions else query
        return
    recorder = query.recorder
    shape = (*query.shape[:_POSITIONS], Size.symbol(ROWS), *query.shape[_POSITIONS + 1 :])
    length = _block_length(recorder, positions, most)
    axis = recorder.integers([_POSITIONS])
    for block in range(most):
        begin, end = (_calculate(recorder, "Mul", length, number) for number in (block, block + 1))
        if block == most - 1:
            end = recorder.integers([_SLICE_TO_END])
        yield query.emit("Slice", [query, begin, end, axis], shape)


def join_blocks(results: Sequence[TracedTensor], shape: Sequence[Length]) -> TracedTensor:
    """Concatenates the results of blocks to a tensor of this shape."""
    if len(results) == 1:
        return results[0]
    recorder, whole = results[0].recorder, product(shape) * results[0].dtype.itemsize
    for result in results:
        if any(ROWS in monomial for monomial in recorder.bytes[result.name].terms):
            # Together they have all positions, however many of them are empty.
            recorder.bytes[result.name] = Size({m: -(-n // len(results)) for m, n in whole.terms.items()})
    return results[0].emit("Concat", results, shape, axis=_POSITIONS)


def _block_length(recorder: Recorder, positions: Size, most: int) -> Value:
    """Divides the positions evenly by the fewest blocks that can hold them."""
    total = size_value(recorder, positions)

    def rounded_up(value: Value, divisor: Value | int) -> Value:
        before = _calculate(recorder, "Sub", _calculate(recorder, "Add", value, divisor), 1)
        return _calculate(recorder, "Div", before, divisor)

    count = _calculate(recorder, "Min", rounded_up(total, BLOCK_ROWS), most)
    return rounded_up(total, count)


def _calculate(recorder: Recorder, operator: str, left: Value, right: Value | int) -> Value:
    other = right if isinstance(right, Value) else recorder.integers([right])
    return recorder.emit(operator, [left, other], [1], torch.int64)
