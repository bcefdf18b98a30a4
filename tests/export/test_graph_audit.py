"""The exported graphs against what TensorRT's ONNX parser says it takes. A test of the graphs: no
TensorRT, nothing is run.

The graphs are those of the presets S, M and L in all precisions, traced on tensors without content.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from wfvae.export.bundle import DTYPES, ExportOptions, graph_spec
from wfvae.export.recorder.builder import onnx_type
from wfvae.export.recorder.graph import trace
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.spec.engines import DIRECT_LATENTS, input_shapes
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.tensorrt import DATA_TYPES

PRESETS: tuple[Literal["S", "M", "L"], ...] = ("S", "M", "L")
DIRECTIONS: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
KINDS = ("step", "direct")
OPSETS = {precision: ExportOptions(precision=precision).opset_version for precision in DTYPES}
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
INTEGERS = {TensorProto.INT32, TensorProto.INT64}
BOOLEANS = {TensorProto.BOOL}
NUMBERS, ALL = FLOATS | INTEGERS, FLOATS | INTEGERS | BOOLEANS
# From the support matrix of onnx-tensorrt (docs/operators.md, TensorRT 10.15, opsets 9 to 24), for
# the operators that we use.
OPERATORS = {
    **dict.fromkeys(("And", "Or"), BOOLEANS),
    **dict.fromkeys(("Conv", "LayerNormalization", "MatMul", "Resize", "Sigmoid", "Softmax"), FLOATS),
    **dict.fromkeys(
        ("Add", "DepthToSpace", "Div", "Equal", "LessOrEqual", "Min", "Mul", "Pad", "Range", "Sub"), NUMBERS
    ),
    **dict.fromkeys(
        (
            "Cast",
            "Concat",
            "Expand",
            "Identity",
            "Reshape",
            "Shape",
            "Slice",
            "Squeeze",
            "Transpose",
            "Unsqueeze",
            "Where",
        ),
        ALL,
    ),
}
RESIZE = {("nearest", "asymmetric", "floor"), ("linear", "half_pixel", None)}


@dataclass(frozen=True)
class Audited:
    """A graph, and its tensors' types and shapes for inputs of one size."""

    spec: GraphSpec
    model: onnx.ModelProto
    constants: dict[str, torch.Tensor]


@cache
def traced(
    preset: Literal["S", "M", "L"], direction: Literal["encoder", "decoder"], kind: str, precision: Any
) -> Audited:
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.preset(preset)).to(DTYPES[precision]).eval()
    spec = graph_spec(model, direction, kind, "mean")
    found = trace(model, spec, opset=OPSETS[precision], convolutions=ExportOptions(precision=precision).forms)
    return Audited(spec, found.model, dict(found.constants))


@cache
def sized(
    preset: Any, direction: Any, kind: str, precision: str, latents: int
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of every tensor, for a batch of two of 72x96, with an odd number of latent
    rows.

    What the graph computes from shapes is folded here.
    """
    audited = traced(preset, direction, kind, precision)
    model = onnx.ModelProto()
    model.CopyFrom(audited.model)
    graph = model.graph
    shapes = input_shapes(audited.spec, 2, latents, 72, 96)
    for value in graph.input:
        del value.type.tensor_type.shape.dim[:]
        for size in shapes[value.name]:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    values = {
        name: tensor.numpy()
        for name, tensor in audited.constants.items()
        if tensor.device.type != "meta" and tensor.dtype == torch.int64
    }
    kept = []
    for node in graph.node:
        folded = _fold(node, values, shapes)
        if folded is None:
            kept.append(node)
        else:
            values[node.output[0]] = folded
    del graph.node[:]
    graph.node.extend(kept)
    for name, tensor in audited.constants.items():
        if name not in values:
            graph.input.append(
                helper.make_tensor_value_info(name, onnx_type(tensor.dtype), list(tensor.shape))
            )
    # Resize needs its scales' values; other constants' shapes do.
    for node in graph.node:
        if node.op_type == "Resize":
            scales = audited.constants[node.input[2]]
            graph.initializer.append(numpy_helper.from_array(scales.numpy(), node.input[2]))
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
    )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        kind = value.type.tensor_type
        assert all(dim.HasField("dim_value") for dim in kind.shape.dim), f"{value.name} has no known shape"
        found[value.name] = (kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim))
    found |= {name: (TensorProto.INT64, np.asarray(value).shape) for name, value in values.items()}
    return found


def _fold(node: onnx.NodeProto, values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Any:
    """The value of a node that only depends on shapes, or None."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Shape":
        return np.array(shapes[node.input[0]][attributes["start"] : attributes["end"]])
    if not all(name in values for name in node.input):
        return None
    given = [values[name] for name in node.input]
    operations: dict[str, Any] = {
        "Add": lambda a, b: a + b,
        "Sub": lambda a, b: a - b,
        "Mul": lambda a, b: a * b,
        "Div": lambda a, b: a // b,
        "Concat": lambda *parts: np.concatenate(parts),
        "Squeeze": lambda a, axes: a.squeeze(tuple(axes)),
        "Range": lambda start, end, step: np.arange(start, end, step),
    }
    return operations[node.op_type](*given) if node.op_type in operations else None


ALL_GRAPHS = [
    (p, d, k, precision) for p in PRESETS for d in DIRECTIONS for k in KINDS for precision in OPSETS
]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize(("preset", "direction", "kind", "precision"), ALL_GRAPHS)
def test_operators_and_types_are_in_the_parsers_list(
    preset: Any, direction: Any, kind: str, precision: str
) -> None:
    audited = traced(preset, direction, kind, precision)
    tensors = sized(preset, direction, kind, precision, 3)
    assert audited.model.opset_import[0].version in range(9, 25)
    problems = []
    for node in audited.model.graph.node:
        assert node.domain == "" and node.op_type in OPERATORS, (
            f"{node.name} is not among the operators that TensorRT parses"
        )
        assert not any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute
        ), "control flow"
        # What a node computes on; the rest are shapes, axes, bounds and amounts.
        first = {"Where": 1}.get(node.op_type, 0)
        count = {
            "Add": 2,
            "Sub": 2,
            "Mul": 2,
            "Div": 2,
            "Min": 2,
            "Equal": 2,
            "Concat": len(node.input),
            "Conv": 3,
        }.get(node.op_type, 1)
        for name in node.input[first : first + count]:
            if tensors[name][0] not in OPERATORS[node.op_type]:
                problems.append(
                    f"{node.name}: {TensorProto.DataType.Name(tensors[name][0])} for {node.op_type}"
                )
        if node.op_type == "LayerNormalization":
            assert len(node.output) == 1 and tensors[node.input[0]][0] == TensorProto.FLOAT, (
                "norms' sums overflow in half precision"
            )
        if node.op_type == "Softmax":
            assert tensors[node.input[0]][0] == TensorProto.FLOAT
        if node.op_type == "Conv":
            assert node.input[1] in audited.constants and len(audited.constants[node.input[1]].shape) == 4
        if node.op_type in ("Slice", "Pad", "Unsqueeze", "Squeeze"):
            computed = [name for name in node.input[1:] if name not in audited.constants]
            # Where a row more than the image has was computed, it is cut off again: TensorRT takes
            # such an end as a shape tensor.
            rows = (
                node.op_type == "Slice"
                and computed == [node.input[2]]
                and audited.constants[node.input[3]].tolist() == [2]
            )
            assert not computed or rows, "bounds and axes must be constants"
        if node.op_type == "Resize":
            found = attributes_of(node)
            modes = tuple(
                text(found.get(key)) for key in ("mode", "coordinate_transformation_mode", "nearest_mode")
            )
            assert modes in RESIZE and len(tensors[node.input[0]][1]) == 4 and not found.get("antialias")
    assert not problems


@pytest.mark.parametrize(("preset", "direction", "kind", "precision"), ALL_GRAPHS)
def test_ranks_and_types_of_inputs_and_outputs(
    preset: Any, direction: Any, kind: str, precision: str
) -> None:
    audited = traced(preset, direction, kind, precision)
    names = {onnx_type(getattr(torch, name)) for name in DATA_TYPES}
    for value in [*audited.model.graph.input, *audited.model.graph.output]:
        assert value.type.tensor_type.elem_type in names, value.name
    assert max(len(shape) for _, shape in sized(preset, direction, kind, precision, 3).values()) <= 8


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("latents", [1, 2, 5])
def test_no_tensor_of_a_step_is_empty(preset: Any, direction: Any, latents: int) -> None:
    tensors = sized(preset, direction, "step", "fp32", latents)
    assert not [name for name, (_, shape) in tensors.items() if 0 in shape and name]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_direct_graphs_have_no_empty_tensor_from_three_latents_on(direction: Any) -> None:
    """Where a direct engine's profile begins."""
    for latents in (DIRECT_LATENTS, DIRECT_LATENTS + 1):
        assert not [
            name
            for name, (_, shape) in sized("S", direction, "direct", "fp32", latents).items()
            if 0 in shape
        ]


def odd_channels(audited: Audited) -> Iterator[tuple[str, int]]:
    """Channels of convolutions, grouped ones taken as a whole, that are no multiple of 8, and the
    module they are in.
    """
    for node in audited.model.graph.node:
        if node.op_type == "Conv":
            given, per_group = audited.constants[node.input[1]].shape[:2]
            module = node.name.rpartition("/")[0]
            yield from (
                (module, size) for size in (given, per_group * attributes_of(node)["group"]) if size % 8
            )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_channels_are_multiples_of_8_but_for_video_and_latents(preset: Any, direction: Any) -> None:
    """TensorRT pads others. What is left is what video and latents are: 3 channels, in pairs, in 4
    sub-bands; 4 latent channels.
    """
    odd = set(odd_channels(traced(preset, direction, "step", "fp16")))
    assert {size for _, size in odd} <= {3, 6, 12, WFVAEConfig.preset(preset).latent_dim}
    assert {module for module, _ in odd} <= {
        *(
            f"encoder.{name}"
            for name in ("wavelet_transform_in", "wavelet_transform_l1", "wavelet_transform_l2", "connect_l1")
        ),
        *(f"decoder.{name}" for name in ("conv_in", "connect_l1.1", "inverse_wavelet_transform_l1")),
    }


def test_the_audit_finds_what_it_looks_for() -> None:
    assert [name for name, (_, shape) in sized("S", "decoder", "direct", "fp32", 1).items() if 0 in shape], (
        "an image leaves empty tensors there"
    )
    assert (
        "ScatterND" not in OPERATORS
        and "Loop" not in OPERATORS
        and "If" not in OPERATORS
        and "ConvTranspose" not in OPERATORS
    )
