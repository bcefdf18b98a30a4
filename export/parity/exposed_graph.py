"""A graph of the bundle with chosen inner tensors as outputs, run step by step.

Polygraphy exposes the tensors; it is imported only when a search is made.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from wfvae.export.parity.difference import Array
from wfvae.runtime.backends.onnxruntime import OnnxRuntimeBackend, session_options
from wfvae.runtime.bundle import Bundle
from wfvae.spec.manifest import STEP, GraphSpec
from wfvae.spec.stream import resolve

Feeds = Mapping[str, Array]
Infer = Callable[[Feeds], Mapping[str, Array]]

_FLOAT_BYTES = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}
"""Types that are compared. Integers are shapes and counters, and NumPy has no bfloat16."""
_STATE_TYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}


@dataclass(frozen=True)
class FrameAxis:
    """Where a tensor's frames are, and how many there are for each latent of a step or clip."""

    axis: int
    per_latent: int
    bytes_per_latent: int

    def own_frames(self, array: Array, latents: int) -> Array:
        """Returns a step's own frames, frames first: the last ones, behind the cached frames."""
        frames = np.moveaxis(array, self.axis, 0)
        return frames[len(frames) - self.per_latent * latents :]


class ExposedGraph:
    """One graph of an opened bundle at one video size."""

    def __init__(self, bundle: Bundle, graph: GraphSpec, height: int, width: int) -> None:
        self.spec, self.bundle = graph, bundle
        self._height, self._width = height, width
        self.model = onnx.load(str(bundle.path / graph.file), load_external_data=False)

    @cached_property
    def frame_axes(self) -> dict[str, FrameAxis]:
        """The inner tensors and outputs that consist of frames, in graph order.

        Found by comparing the shapes for two lengths: exactly one axis may grow, in proportion
        (plus the cached frames).
        """
        short, long = self._float_shapes(2), self._float_shapes(3)
        found = {}
        for name, (first, item_bytes) in short.items():
            second, _ = long.get(name, ((), 0))
            grown = [axis for axis, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
            if len(first) != len(second) or len(grown) != 1:
                continue
            [axis] = grown
            per_latent = second[axis] - first[axis]
            if per_latent <= 0 or (self.spec.kind == STEP and first[axis] < 2 * per_latent):
                continue
            size = math.prod(first) // first[axis] * per_latent * item_bytes
            found[name] = FrameAxis(axis, per_latent, size)
        return found

    @cached_property
    def _types(self) -> dict[str, Any]:
        """ONNX's numbers of the types of inner tensors and outputs."""
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        values = (*inferred.value_info, *inferred.output)
        return {value.name: value.type.tensor_type.elem_type for value in values}

    @property
    def order(self) -> list[str]:
        return [output for node in self.model.graph.node for output in node.output if output]

    def describe(self, name: str) -> str:
        [node] = [node for node in self.model.graph.node if name in node.output]
        return f"{name} (node {node.name}, {node.op_type})"

    def float_tensors(self, latents: int) -> dict[str, int]:
        """Returns the floating-point tensors that nodes make, with their bytes in such a step."""
        shapes = self._float_shapes(latents)
        return {name: math.prod(shape) * item_bytes for name, (shape, item_bytes) in shapes.items()}

    def run_steps(self, x: Array, steps: Sequence[int], names: Collection[str]) -> dict[str, Array]:
        """Returns the named tensors' frames over a whole stream, frames first.

        `x` is the network input without batch. A drain follows `steps` where the decoder needs one.
        """
        parts: dict[str, list[Array]] = {name: [] for name in names}
        for latents, _, results in self._stream(x, steps, names):
            for name in names:
                parts[name].append(self.frame_axes[name].own_frames(results[name], latents))
        return {name: np.concatenate(found) for name, found in parts.items()}

    def feeds(self, x: Array, steps: Sequence[int]) -> list[dict[str, Array]]:
        """Returns all inputs of each step, states included, as this graph computes them."""
        return [feeds for _, feeds, _ in self._stream(x, steps, ())]

    def _stream(
        self, x: Array, steps: Sequence[int], names: Collection[str]
    ) -> Iterator[tuple[int, dict[str, Array], Mapping[str, Array]]]:
        stream = self.spec.stream
        state = {}
        for spec in stream.states:
            shape = spec.resolve(1, self._height, self._width)
            state[spec.input] = np.full(shape, spec.initial_value, _STATE_TYPES[spec.dtype])
        plan = [(count, False) for count in steps] + ([(1, True)] if stream.needs_drain else [])
        position = 0
        infer = self.open([*names, *(spec.output for spec in stream.states)])
        for index, (latents, drain) in enumerate(plan):
            taken = stream.chunk_multiple * latents
            piece = np.zeros((taken, *x.shape[1:]), x.dtype) if drain else x[position : position + taken]
            position += taken
            feeds = {
                self.spec.inputs[0].name: np.ascontiguousarray(piece[None]),
                "start": np.array([index == 0]),
                **({"end": np.array([drain])} if self.spec.has_end else {}),
                **state,
            }
            results = infer(feeds)
            state = {spec.input: results[spec.output] for spec in stream.states}
            yield latents, feeds, results

    def run_clip(self, x: Array, names: Collection[str]) -> dict[str, Array]:
        """Returns the named tensors of a direct graph for a clip without batch, frames first."""
        results = self.open(names)({self.spec.inputs[0].name: x[None]})
        return {name: np.moveaxis(results[name], self.frame_axes[name].axis, 0) for name in names}

    def exposing(self, names: Collection[str]) -> onnx.ModelProto:
        """Returns a copy of the graph with these outputs. Its weights stay in the bundle's file."""
        from polygraphy.backend.onnx import modify_outputs

        model: onnx.ModelProto = modify_outputs(self.model, outputs=list(dict.fromkeys(names)), copy=True)
        for output in model.graph.output:  # TensorRT's parser wants their types
            output.type.tensor_type.elem_type = self._types[output.name]
        return model

    def open(self, names: Collection[str]) -> Infer:
        """Returns a function from inputs to these tensors, computed by ONNX Runtime."""
        outputs = list(dict.fromkeys(names))
        session = self.session(self.exposing(outputs))

        def infer(feeds: Feeds) -> dict[str, Array]:
            return dict(zip(outputs, session.run(outputs, dict(feeds)), strict=True))

        return infer

    def session(self, model: onnx.ModelProto) -> Any:
        """Opens an ONNX Runtime session as the backend does; on the CPU for other backends."""
        threads = self.bundle.backend.describe().get("threads", "all")
        options = session_options(None if threads == "all" else int(threads))
        # The weights stay in the bundle's file, though the graph comes from memory.
        folder_option = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder_option, str(self.bundle.path.resolve()))
        backend = self.bundle.backend
        providers = (
            backend.providers() if isinstance(backend, OnnxRuntimeBackend) else ["CPUExecutionProvider"]
        )
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)

    def _float_shapes(self, latents: int) -> dict[str, tuple[tuple[int, ...], int]]:
        """Returns shape and bytes per value of floating-point tensors for a step or clip, in order.

        A run on zeros gives them, by a node beside each tensor with its shape. Tensors with no
        values are left out.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        sizes = {name: _FLOAT_BYTES.get(kind) for name, kind in self._types.items()}
        names = [name for name in self.order if sizes.get(name)]
        del model.graph.output[:]
        for name in names:
            shape = helper.make_tensor_value_info(f"shape/{name}", onnx.TensorProto.INT64, [None])
            model.graph.node.append(helper.make_node("Shape", [name], [shape.name]))
            model.graph.output.append(shape)
        shapes = [tuple(map(int, shape)) for shape in self.session(model).run(None, self._zeros(latents))]
        return {
            name: (shape, size)
            for name, shape in zip(names, shapes, strict=True)
            if (size := sizes[name]) and 0 not in shape
        }

    def _zeros(self, latents: int) -> dict[str, Array]:
        ratio = self.spec.stream.ratio
        frames = ratio * latents if self.spec.kind == STEP else 1 + ratio * (latents - 1)
        sizes = {"latents": latents, "frames": frames, "height": self._height, "width": self._width}
        feeds = {}
        for value in self.model.graph.input:
            tensor = value.type.tensor_type
            shape = resolve([dim.dim_param or dim.dim_value for dim in tensor.shape.dim], batch=1, **sizes)
            feeds[value.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return feeds


def blocks(sizes: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Cuts names with their sizes into runs of at most `budget` (at least one name each)."""
    block: list[str] = []
    used = 0
    for name, size in sizes.items():
        if block and used + size > budget:
            yield block
            block, used = [], 0
        block.append(name)
        used += size
    if block:
        yield block
