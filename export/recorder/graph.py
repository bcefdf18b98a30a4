"""The ONNX graphs of a model: a direction's step graph, and its direct graph for verification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor

from wfvae.export.forms.form import Unpaired
from wfvae.export.recorder import overrides  # noqa: F401  # registers what traced tensors do
from wfvae.export.recorder.liveness import scratch_peaks
from wfvae.export.recorder.recorder import FilterStore, Recorder, Shape, Value, onnx_type
from wfvae.export.recorder.tensor import TracedTensor
from wfvae.export.symbolic import Length, Size
from wfvae.model.causal import OfflineClip, StreamChunk
from wfvae.model.vae import WFVAE
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import STEP, GraphSpec, TensorSpec
from wfvae.spec.stream import Dim, StateSpec


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


_Declared = dict[str, TensorSpec | StateSpec]
"""Inputs or outputs, state included, by their names in the graph."""


def trace(
    model: WFVAE,
    graph: GraphSpec,
    *,
    size: tuple[int, int] | None = None,
    opset: int,
    convolutions: str = "plain",
    filters: FilterStore | None = None,
    empty_tensors: bool = True,
) -> TracedGraph:
    """Records `graph` from the network's own code.

    Args:
        model: in the precision of the graph's weights, eval mode.
        graph: names, types and symbolic shapes of inputs and outputs.
        size: fixed (height, width), or None.
        opset: version of ONNX's operators.
        convolutions: a key of `wfvae.export.forms.FORMS`.
        filters: transformed filters that other graphs of the model left; new ones are added.
        empty_tensors: whether tensors may be empty at some sizes of frames.

    Raises:
        StreamingError: the graph would not hold for every length and size.
    """
    unpaired: Unpaired = "last" if graph.stream.needs_drain else "first"
    recorder = Recorder(model, convolutions, unpaired, filters, empty_tensors)
    sizes = _sizes(graph, size)
    inputs: _Declared = {t.name: t for t in graph.inputs} | {s.input: s for s in graph.states}
    outputs: _Declared = {t.name: t for t in graph.outputs} | {s.output: s for s in graph.states}
    given = {}
    for name, spec in inputs.items():
        value = recorder.add_input(name, _resolve(spec.shape, sizes), getattr(torch, spec.dtype))
        given[spec.name] = TracedTensor(recorder, value)
    with recorder.recording():
        results = _run(model, graph, given)
        results = [result.stored for result in results]
    recorder.keep_only(results)
    for result, (name, spec) in zip(results, outputs.items(), strict=True):
        found, wanted = (
            (result.shape, result.dtype),
            (_resolve(spec.shape, sizes), getattr(torch, spec.dtype)),
        )
        if found != wanted:
            raise AssertionError(f"the network returns {name} as {found}, but its specification is {wanted}")
    scratch = scratch_peaks(recorder.nodes, recorder.bytes, [value.name for value in results])
    _name_outputs(recorder.nodes, results, list(outputs))
    signature = (_value_infos(inputs, size), _value_infos(outputs, size))
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        helper.make_graph(recorder.nodes, "wfvae", *signature),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="wfvae",
        producer_version="",
    )
    return TracedGraph(proto, recorder.constants, scratch)


def _run(model: WFVAE, graph: GraphSpec, given: Mapping[str, Any]) -> list[Value]:
    """Runs the direction's network, and returns the graph's outputs in specified order."""
    network: Any = getattr(model, graph.direction)
    clip: Any = OfflineClip()
    if graph.kind == STEP:
        # A graph without the flag `end` has nothing that reads it.
        clip = StreamChunk(given, given["start"], given.get("end", given["start"]))
    output, _, _ = network(given[graph.inputs[0].name].to(model.dtype), clip)
    channels = graph.outputs[0].shape[2]
    if output.shape[2] != channels:  # means, without the log-variances
        output = output[:, :, :channels]
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


def _value_infos(tensors: _Declared, size: tuple[int, int] | None) -> list[onnx.ValueInfoProto]:
    fixed = {} if size is None else {"height": size[0], "width": size[1]}

    def known(dim: Dim) -> Dim:
        symbol, _, divisor = str(dim).partition("/")
        return fixed[symbol] // int(divisor or 1) if symbol in fixed else dim

    return [
        helper.make_tensor_value_info(name, onnx_type(getattr(torch, spec.dtype)), [*map(known, spec.shape)])
        for name, spec in tensors.items()
    ]
