"""The ONNX graphs of a model: a direction's step graph, and its direct graph for verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import onnx
import torch
from onnx import helper
from torch import Tensor

from wfvae.export.forms.minimal_filtering import MinimalFiltering
from wfvae.export.recorder.liveness import scratch_peaks
from wfvae.export.recorder.symbolic import Length, Size
from wfvae.export.recorder.tracer import ONNX_TYPES, FilterStore, Traced, Tracer
from wfvae.model.causal import OfflineClip, StreamChunk
from wfvae.model.vae import WFVAE
from wfvae.spec.manifest import STEP, GraphSpec, TensorSpec, state_input, state_output
from wfvae.spec.stream import Dim, StateSpec

# ONNX's own intermediate representation version, by the first opset that goes with it.
_IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12}


@dataclass(frozen=True)
class TracedGraph:
    """An ONNX model without its constants, and the constants by name."""

    model: onnx.ModelProto
    constants: Mapping[str, Tensor]
    scratch: tuple[tuple[tuple[int | str, ...], ...], ...]
    """See `GraphSpec.scratch_bytes`."""

    @property
    def weights_bytes(self) -> int:
        """Bytes of all constants."""
        return sum(tensor.nbytes for tensor in self.constants.values())


def trace(
    model: WFVAE,
    graph: GraphSpec,
    mean_only: bool,
    size: tuple[int, int] | None,
    opset: int,
    minimal: bool = False,
    filters: FilterStore | None = None,
) -> TracedGraph:
    """Records `graph` from the network's own code.

    Args:
        model: in the precision of the graph's weights, eval mode.
        graph: names, types and symbolic shapes of inputs and outputs.
        mean_only: the encoder gives means instead of moments.
        size: fixed (height, width), or None.
        opset: version of ONNX's operators.
        minimal: compute convolutions with fewer multiplications where it fits
            (`wfvae.export.forms.minimal_filtering`, `wfvae.export.forms.subpixel`).
        filters: transformed filters that other graphs of the model left; new ones are added.

    Raises:
        StreamingError: if the graph would not hold for every length and size.
    """
    form = MinimalFiltering("last" if graph.stream.needs_drain else "first") if minimal else None
    tracer = Tracer(model, form, filters)
    sizes = _sizes(graph, size)
    inputs = {
        t.name: tracer.add_input(t.name, _resolve(t.shape, sizes), getattr(torch, t.dtype))
        for t in graph.inputs
    }
    states = {
        s.name: tracer.add_input(state_input(s.name), _resolve(s.shape, sizes), getattr(torch, s.dtype))
        for s in graph.states
    }
    with tracer.recording():
        results = _run(model, graph, tracer, inputs, states, mean_only)
    tracer.keep_only(results)
    expected: list[TensorSpec | StateSpec] = [*graph.outputs, *graph.states]
    names = [tensor.name for tensor in graph.outputs] + [state_output(state.name) for state in graph.states]
    for value, spec, name in zip(results, expected, names, strict=True):
        wanted = _resolve(spec.shape, sizes)
        if value.shape != wanted or value.dtype != getattr(torch, spec.dtype):
            raise AssertionError(
                f"the network gives {name} as {value.shape} {value.dtype}, but its specification says"
                f" {wanted} {spec.dtype}"
            )
    scratch = scratch_peaks(tracer.nodes, tracer.bytes, [value.name for value in results])
    _name_outputs(tracer, results, names)
    shapes = {t.name: t.shape for t in (*graph.inputs, *graph.outputs)}
    shapes |= {io(s.name): s.shape for s in graph.states for io in (state_input, state_output)}
    fixed = {} if size is None else {"height": size[0], "width": size[1]}
    inputs_info = [_value_info(v.name, v.dtype, shapes[v.name], fixed) for v in tracer.inputs]
    outputs_info = [
        _value_info(name, v.dtype, shapes[name], fixed) for name, v in zip(names, results, strict=True)
    ]
    onnx_graph = helper.make_graph(tracer.nodes, "wfvae", inputs_info, outputs_info)
    proto = helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR_VERSIONS[opset],
        producer_name="wfvae",
        producer_version="",
    )
    return TracedGraph(proto, tracer.constants, scratch)


def _run(
    model: WFVAE,
    graph: GraphSpec,
    tracer: Tracer,
    inputs: Mapping[str, Traced],
    states: Mapping[str, Traced],
    mean_only: bool,
) -> list[Traced]:
    """Runs the direction's network on stand-ins, and returns the graph's outputs in specified
    order.
    """
    network: Any = getattr(model, graph.direction)
    x: Any = inputs[graph.inputs[0].name].to(model.dtype)
    if graph.kind == STEP:
        start: Any = inputs["start"]
        end: Any = inputs["end"] if graph.has_end else None
        clip: Any = StreamChunk(cast("Mapping[str, Tensor]", states), start, end)
    else:
        clip = OfflineClip()
    result: Any = network(x, clip)
    if graph.direction == "decoder":
        output = result.video
    else:
        output = result.moments[:, :, : model.config.latent_dim] if mean_only else result.moments
    return [output.float(), *(clip.next_state[state.name] for state in graph.states)]


def _sizes(graph: GraphSpec, size: tuple[int, int] | None) -> dict[str, Length]:
    """Symbolic sizes by the specification's names. In a whole clip 1 + r n frames are 1 + n
    latents.
    """
    ratio, latents = graph.stream.ratio, Size.symbol("latents")
    sizes: dict[str, Length] = {"batch": Size.symbol("batch")}
    if graph.kind == STEP:
        sizes |= {"latents": latents, "frames": ratio * latents}
    else:
        groups = Size.symbol("groups")
        sizes |= {"latents": groups + 1, "frames": ratio * groups + 1}
    for axis, side in enumerate(("height", "width")):
        tiles: Length = Size.symbol(f"{side}/8") if size is None else size[axis] // 8
        sizes |= {f"{side}/8": tiles, f"{side}/4": 2 * tiles, f"{side}/2": 4 * tiles, side: 8 * tiles}
    return sizes


def _resolve(shape: tuple[Dim, ...], sizes: Mapping[str, Length]) -> tuple[Length, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def _name_outputs(tracer: Tracer, results: list[Traced], names: list[str]) -> None:
    """Gives the results their specified names: by renaming the tensor, or by a copy where it is an
    input or given out twice.
    """
    produced = {output: node for node in tracer.nodes for output in node.output}
    renamed: dict[str, str] = {}
    for value, name in zip(results, names, strict=True):
        if value.name in produced and value.name not in renamed:
            renamed[value.name] = name
        else:
            tracer.nodes.append(
                helper.make_node(
                    "Identity", [renamed.get(value.name, value.name)], [name], name=f"{name}/Identity"
                )
            )
    for node in tracer.nodes:
        for fields in (node.input, node.output):
            for index, tensor in enumerate(fields):
                fields[index] = renamed.get(tensor, tensor)


def _value_info(
    name: str, dtype: torch.dtype, shape: tuple[Dim, ...], fixed: Mapping[str, int]
) -> onnx.ValueInfoProto:
    dims: list[int | str] = []
    for dim in shape:
        symbol, _, divisor = str(dim).partition("/")
        dims.append(fixed[symbol] // int(divisor or 1) if symbol in fixed else dim)
    return helper.make_tensor_value_info(name, ONNX_TYPES[dtype], dims)
