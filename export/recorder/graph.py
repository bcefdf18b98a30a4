"""The ONNX graphs of a model: a direction's step graph, and its direct graph for verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor

from wfvae.export.forms.form import Unpaired
from wfvae.export.recorder import overrides  # noqa: F401  # registers what traced tensors do
from wfvae.export.recorder.builder import Shape, Value, onnx_type
from wfvae.export.recorder.liveness import scratch_peaks
from wfvae.export.recorder.recording import FilterStore, Recorder
from wfvae.export.recorder.tensor import TracedTensor
from wfvae.export.symbolic import Length, Size
from wfvae.model.causal import OfflineClip, StreamChunk
from wfvae.model.vae import WFVAE
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import STEP, GraphSpec
from wfvae.spec.stream import Dim

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


@dataclass(frozen=True)
class _Tensor:
    """An input or output, state included, as the graph declares it."""

    key: str
    name: str
    shape: tuple[Dim, ...]
    dtype: torch.dtype


def trace(
    model: WFVAE,
    graph: GraphSpec,
    *,
    mean_only: bool = True,
    size: tuple[int, int] | None = None,
    opset: int,
    convolutions: str = "plain",
    filters: FilterStore | None = None,
) -> TracedGraph:
    """Records `graph` from the network's own code.

    Args:
        model: in the precision of the graph's weights, eval mode.
        graph: names, types and symbolic shapes of inputs and outputs.
        mean_only: the encoder returns means instead of moments.
        size: fixed (height, width), or None.
        opset: version of ONNX's operators.
        convolutions: a key of `wfvae.export.forms.table.FORMS`.
        filters: transformed filters that other graphs of the model left; new ones are added.

    Raises:
        StreamingError: the graph would not hold for every length and size.
    """
    unpaired: Unpaired = "last" if graph.stream.needs_drain else "first"
    recorder = Recorder(model, convolutions, unpaired, filters)
    builder, sizes = recorder.builder, _sizes(graph, size)
    inputs, outputs = _declared(graph, "input"), _declared(graph, "output")
    given = {}
    for tensor in inputs:
        value = builder.add_input(tensor.name, _resolve(tensor.shape, sizes), tensor.dtype)
        given[tensor.key] = TracedTensor(recorder, value)
    with recorder.recording():
        results = _run(model, graph, given, mean_only)
    builder.keep_only(results)
    for result, wanted in zip(results, outputs, strict=True):
        shape = _resolve(wanted.shape, sizes)
        if result.shape != shape or result.dtype != wanted.dtype:
            raise AssertionError(
                f"the network returns {wanted.name} as {result.shape} {result.dtype}, but its specification"
                f" is {shape} {wanted.dtype}"
            )
    scratch = scratch_peaks(builder.nodes, builder.bytes, [value.name for value in results])
    _name_outputs(builder.nodes, results, [tensor.name for tensor in outputs])
    fixed = {} if size is None else {"height": size[0], "width": size[1]}
    proto = helper.make_model(
        helper.make_graph(
            builder.nodes,
            "wfvae",
            [_value_info(tensor, fixed) for tensor in inputs],
            [_value_info(tensor, fixed) for tensor in outputs],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR_VERSIONS[opset],
        producer_name="wfvae",
        producer_version="",
    )
    return TracedGraph(proto, builder.constants, scratch)


def _declared(graph: GraphSpec, side: str) -> list[_Tensor]:
    tensors = graph.inputs if side == "input" else graph.outputs
    return [
        *(_Tensor(t.name, t.name, t.shape, getattr(torch, t.dtype)) for t in tensors),
        *(_Tensor(s.name, getattr(s, side), s.shape, getattr(torch, s.dtype)) for s in graph.states),
    ]


def _run(model: WFVAE, graph: GraphSpec, given: Mapping[str, Any], mean_only: bool) -> list[TracedTensor]:
    """Runs the direction's network, and returns the graph's outputs in specified order."""
    network: Any = getattr(model, graph.direction)
    clip: Any = OfflineClip()
    if graph.kind == STEP:
        end: Any = given.get("end")
        state = {spec.name: given[spec.name] for spec in graph.states}
        clip = StreamChunk(state, given["start"], end)
    output, _, _ = network(given[graph.inputs[0].name].to(model.dtype), clip)
    if graph.direction == "encoder" and mean_only:
        output = output[:, :, : model.config.latent_dim]
    return [output.float(), *(clip.next_state[state.name] for state in graph.states)]


def _sizes(graph: GraphSpec, size: tuple[int, int] | None) -> dict[str, Length]:
    """Returns symbolic sizes by the specification's names.

    In a whole clip, 1 + r n frames are 1 + n latents.
    """
    ratio, latents = graph.stream.ratio, Size.symbol("latents")
    sizes: dict[str, Length] = {"batch": Size.symbol("batch")}
    if graph.kind == STEP:
        sizes |= {"latents": latents, "frames": ratio * latents}
    else:
        groups = Size.symbol("groups")
        sizes |= {"latents": groups + 1, "frames": ratio * groups + 1}
    for axis, side in enumerate(("height", "width")):
        smallest = f"{side}/{SPATIAL_RATIO}"
        tiles: Length = Size.symbol(smallest) if size is None else size[axis] // SPATIAL_RATIO
        sizes |= {smallest: tiles, f"{side}/4": 2 * tiles, f"{side}/2": 4 * tiles}
        sizes[side] = SPATIAL_RATIO * tiles
    return sizes


def _resolve(shape: tuple[Dim, ...], sizes: Mapping[str, Length]) -> Shape:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def _name_outputs(nodes: list[onnx.NodeProto], results: Sequence[Value], names: Sequence[str]) -> None:
    """Gives the results their specified names, by a copy where one is an input or two outputs."""
    produced = {output for node in nodes for output in node.output}
    renamed: dict[str, str] = {}
    for value, name in zip(results, names, strict=True):
        if value.name in produced and value.name not in renamed:
            renamed[value.name] = name
        else:
            source = renamed.get(value.name, value.name)
            nodes.append(helper.make_node("Identity", [source], [name], name=f"{name}/Identity"))
    for node in nodes:
        for fields in (node.input, node.output):
            for index, tensor in enumerate(fields):
                fields[index] = renamed.get(tensor, tensor)


def _value_info(tensor: _Tensor, fixed: Mapping[str, int]) -> onnx.ValueInfoProto:
    dims: list[int | str] = []
    for dim in tensor.shape:
        symbol, _, divisor = str(dim).partition("/")
        dims.append(fixed[symbol] // int(divisor or 1) if symbol in fixed else dim)
    return helper.make_tensor_value_info(tensor.name, onnx_type(tensor.dtype), dims)
