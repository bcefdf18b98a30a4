"""A graph of the bundle with chosen inner tensors as outputs, run step by step with state fed by
hand.

Polygraphy exposes the tensors and runs the sessions; it is imported only when a search is made.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from wfvae.export.parity.difference import Array
from wfvae.runtime.bundle import Bundle
from wfvae.spec.manifest import STEP, GraphSpec, state_input, state_output
from wfvae.spec.stream import resolve_dim

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
"""Types that are compared. Integers are shapes and counters, and NumPy has no bfloat16."""
_SEVERITY_ERROR = 3


@dataclass(frozen=True)
class FrameAxis:
    """Where a tensor's frames are, and how many there are for each latent of a step or clip."""

    axis: int
    per_latent: int
    bytes_per_latent: int

    def own_frames(self, array: Array, latents: int) -> Array:
        """The frames that belong to a step, frames first: the last ones, behind what was carried
        over from the step before.
        """
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
        """The inner tensors and outputs that are made of frames, in graph order.

        Found by comparing the shapes for two lengths: exactly one axis may grow, in proportion
        (plus what is carried over).
        """
        short, long = self._shapes(2), self._shapes(3)
        found = {}
        for name in self.order:
            (kind, first), (other_kind, second) = short.get(name, (0, None)), long.get(name, (0, None))
            if (
                kind not in _FLOATS
                or kind != other_kind
                or first is None
                or second is None
                or len(first) != len(second)
            ):
                continue
            grown = [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
            if len(grown) != 1 or 0 in first:
                continue
            per_latent = second[grown[0]] - first[grown[0]]
            if per_latent <= 0 or (self.spec.kind == STEP and first[grown[0]] < 2 * per_latent):
                continue
            size = (
                int(np.prod(first))
                // first[grown[0]]
                * per_latent
                * (4 if kind == onnx.TensorProto.FLOAT else 2)
            )
            found[name] = FrameAxis(grown[0], per_latent, size)
        return found

    @property
    def order(self) -> list[str]:
        """Every tensor that a node makes, in graph order."""
        return [output for node in self.model.graph.node for output in node.output if output]

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {output: node for node in self.model.graph.node for output in node.output}

    def run_steps(self, x: Array, steps: Sequence[int], names: Collection[str]) -> dict[str, Array]:
        """The named tensors' frames over a whole stream, concatenated, frames first.

        Args:
            x: network input of one stream, without batch: all of its frames with lead and tail, or
                all latents.
            steps: latents per step; a drain follows where the decoder needs one.
        """
        parts: dict[str, list[Array]] = {name: [] for name in names}
        for latents, _, results in self._stream(x, steps, names):
            for name in names:
                parts[name].append(np.array(self.frame_axes[name].own_frames(results[name], latents)))
        return {name: np.concatenate(found) for name, found in parts.items()}

    def feeds(self, x: Array, steps: Sequence[int]) -> list[dict[str, Array]]:
        """All inputs of each step of a stream, states included, as this graph makes them; arguments
        as of `run_steps`.
        """
        return [feeds for _, feeds, _ in self._stream(x, steps, ())]

    def _stream(
        self, x: Array, steps: Sequence[int], names: Collection[str]
    ) -> Iterator[tuple[int, dict[str, Array], Mapping[str, Array]]]:
        """Each step's latents, inputs and results; these are good until the next one."""
        stream = self.spec.stream
        state = {
            spec.name: np.full(
                spec.resolve(1, self._height, self._width), spec.initial_value, _numpy_type(spec.dtype)
            )
            for spec in stream.states
        }
        plan = [(count, False) for count in steps] + ([(1, True)] if stream.needs_drain else [])
        position = 0
        with self._runner([*names, *(state_output(name) for name in state)]) as runner:
            for index, (latents, drain) in enumerate(plan):
                taken = stream.chunk_multiple * latents
                piece = np.zeros((taken, *x.shape[1:]), x.dtype) if drain else x[position : position + taken]
                position += taken
                feeds = {
                    self.spec.inputs[0].name: np.ascontiguousarray(piece[None]),
                    "start": np.array([index == 0]),
                }
                if self.spec.has_end:
                    feeds["end"] = np.array([drain])
                feeds |= {state_input(name): array for name, array in state.items()}
                results = runner.infer(feeds)
                state = {name: np.array(results[state_output(name)]) for name in state}
                yield latents, feeds, results

    def run_clip(self, x: Array, names: Collection[str]) -> dict[str, Array]:
        """The named tensors of a direct graph for a whole clip without batch, frames first."""
        with self._runner(list(names)) as runner:
            results = runner.infer({self.spec.inputs[0].name: x[None]})
            return {
                name: np.moveaxis(np.array(results[name]), self.frame_axes[name].axis, 0) for name in names
            }

    def float_tensors(self, latents: int) -> dict[str, int]:
        """The tensors of floating point that nodes make, in graph order, and their bytes in a step
        of `latents`.
        """
        shapes = self._shapes(latents)
        found = {}
        for name in self.order:
            kind, shape = shapes.get(name, (0, None))
            if kind in _FLOATS and shape is not None and 0 not in shape:
                found[name] = math.prod(shape) * (4 if kind == onnx.TensorProto.FLOAT else 2)
        return found

    def exposing(self, names: Collection[str]) -> onnx.ModelProto:
        """A copy of the graph with these tensors as its outputs. Its weights stay in the bundle's
        file.
        """
        from polygraphy.backend.onnx import modify_outputs

        return modify_outputs(self.model, outputs=list(dict.fromkeys(names)), copy=True)  # type: ignore[no-any-return]

    def _runner(self, names: Sequence[str]) -> Any:
        from polygraphy.backend.onnxrt import OnnxrtRunner

        return OnnxrtRunner(self.session(self.exposing(names)))

    def session(self, model: onnx.ModelProto) -> Any:
        """An ONNX Runtime session as the backend opens them: same provider, same number of threads.
        On the CPU for other backends.
        """
        import onnxruntime as ort

        described = self.bundle.backend.describe()
        options = ort.SessionOptions()
        options.log_severity_level = _SEVERITY_ERROR
        # The weights stay in the bundle's file, though the graph comes from memory.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.bundle.path.resolve())
        )
        if described.get("threads", "all") != "all":
            options.intra_op_num_threads = int(described["threads"])
        providers: list[Any] = [described.get("provider", "CPUExecutionProvider")]
        if providers[0] == "CUDAExecutionProvider":
            device = int(described.get("device", "cuda:0").partition(":")[2])
            settings = {
                "device_id": device,
                "cudnn_conv_algo_search": "HEURISTIC",
                "use_tf32": int(described.get("tf32") == "true"),
            }
            providers = [(providers[0], settings), "CPUExecutionProvider"]
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)

    def _shapes(self, latents: int) -> dict[str, tuple[int, tuple[int, ...] | None]]:
        """Type and shape of every tensor for a step or clip of `latents`; None where it could not
        be inferred.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        self._fix_sizes(model, latents)
        self._fold_shape_arithmetic(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        found = {}
        for value in (*inferred.value_info, *inferred.output):
            kind = value.type.tensor_type
            known = all(dim.HasField("dim_value") for dim in kind.shape.dim)
            found[value.name] = (
                int(kind.elem_type),
                tuple(int(dim.dim_value) for dim in kind.shape.dim) if known else None,
            )
        return found

    def _fix_sizes(self, model: onnx.ModelProto, latents: int) -> None:
        ratio = self.spec.stream.ratio
        counts = {
            "latents": latents,
            "frames": ratio * latents if self.spec.kind == STEP else 1 + ratio * (latents - 1),
        }
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    symbol = dim.dim_param
                    size = (
                        counts[symbol]
                        if symbol in counts
                        else resolve_dim(symbol, 1, self._height, self._width)
                    )
                    dim.Clear()
                    dim.dim_value = size

    def _fold_shape_arithmetic(self, model: onnx.ModelProto) -> None:
        """Makes computed shapes constants: ONNX's own inference does not follow divisions of sizes."""
        from polygraphy.backend.onnx import modify_outputs

        made = {output for node in model.graph.node for output in node.output}
        asks = [
            node
            for node in model.graph.node
            if node.op_type in ("Reshape", "Expand", "Range") and node.input[1] in made
        ]
        wanted = list(dict.fromkeys(node.input[1] for node in asks))
        if not wanted:
            return
        session = self.session(modify_outputs(model, outputs=wanted, copy=True))
        feeds = {
            value.name: np.zeros(
                [dim.dim_value for dim in value.type.tensor_type.shape.dim], _input_type(value)
            )
            for value in model.graph.input
        }
        for name, value in zip(wanted, session.run(wanted, feeds), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(value, f"folded/{name}"))
        for node in asks:
            node.input[1] = f"folded/{node.input[1]}"


def blocks(names: Sequence[str], sizes: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Cuts `names` into runs whose sizes sum to at most `budget` (at least one name each)."""
    block: list[str] = []
    used = 0
    for name in names:
        if block and used + sizes[name] > budget:
            yield block
            block, used = [], 0
        block.append(name)
        used += sizes[name]
    if block:
        yield block


def _input_type(value: onnx.ValueInfoProto) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _numpy_type(name: str) -> Any:
    return {"float32": np.float32, "float16": np.float16, "int32": np.int32}[name]
