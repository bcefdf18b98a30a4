"""The exported graphs against what TensorRT's ONNX parser supports.

The graphs are those of the presets S, M and L, recorded on tensors without content: each in fp32,
and one in each half precision, where presets differ in sizes alone. Neither TensorRT nor an engine
is needed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from wfvae.export.bundle import DTYPES, ExportOptions, graph_spec
from wfvae.export.recorder.graph import trace
from wfvae.export.recorder.recorder import onnx_type
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.spec.manifest import GraphSpec
from wfvae.spec.tensorrt_engines import DIRECT_LATENTS, input_shapes

PRESETS, DIRECTIONS, KINDS = ("S", "M", "L"), ("encoder", "decoder"), ("step", "direct")
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
BOOLEANS = {TensorProto.BOOL}
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
ALL = NUMBERS | BOOLEANS
TYPES = ("float32", "float16", "bfloat16", "int32", "bool")
# From the support matrix of onnx-tensorrt (docs/operators.md, TensorRT 10.15, opsets 9 to 24): the
# types on which each operator computes, and in how many of its inputs. The others are shapes, axes,
# bounds and amounts.
SUPPORTED: list[tuple[set[int], int | None, str]] = [
    (ALL, 1, "Cast Expand Identity Reshape Shape Slice Squeeze Transpose Unsqueeze"),
    (ALL, None, "Concat Where"),
    (BOOLEANS, 2, "And Or"),
    (FLOATS, 1, "LayerNormalization Resize Sigmoid Softmax"),
    (FLOATS, 2, "MatMul"),
    (FLOATS, 3, "Conv"),
    (NUMBERS, 1, "DepthToSpace Pad Range"),
    (NUMBERS, 2, "Add Div Equal LessOrEqual Max Min Mul Sub"),
]
OPERATORS = {name: (types, count) for types, count, names in SUPPORTED for name in names.split()}
RESIZE = {(b"nearest", b"asymmetric", b"floor"), (b"linear", b"half_pixel", None)}
each_preset = pytest.mark.parametrize("preset", PRESETS)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_precision = pytest.mark.parametrize(
    ("preset", "precision"), [*((preset, "fp32") for preset in PRESETS), ("L", "fp16"), ("M", "bf16")]
)


@dataclass(frozen=True)
class Audited:
    spec: GraphSpec
    model: onnx.ModelProto
    constants: Mapping[str, torch.Tensor]


@cache
def model_of(preset: Any, precision: Any) -> WFVAE:
    with torch.device("meta"):
        return WFVAE(WFVAEConfig.preset(preset)).to(DTYPES[precision]).eval()


@cache
def traced(preset: Any, direction: Any, kind: Any, precision: Any) -> Audited:
    options, model = ExportOptions(precision=precision), model_of(preset, precision)
    spec = graph_spec(model, direction, kind)
    # As for target gpu, but in the form of convolutions that all other bundles have.
    found = trace(model, spec, opset=options.opset_version, convolutions=options.forms, empty_tensors=False)
    return Audited(spec, found.model, found.constants)


@cache
def sized(
    preset: Any, direction: Any, kind: str, precision: str, latents: int
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of every tensor for two rows of 72x96, an odd number of latent rows.

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
    # Of most constants the shape is enough; Resize needs its scales' values.
    resizes = [node for node in graph.node if node.op_type == "Resize"]
    scales = {node.input[2]: audited.constants[node.input[2]].numpy() for node in resizes}
    values: dict[str, Any] = {}
    for name, tensor in audited.constants.items():
        if tensor.device.type != "meta" and tensor.dtype == torch.int64:
            values[name] = tensor.numpy()
        else:
            info = helper.make_tensor_value_info(name, onnx_type(tensor.dtype), list(tensor.shape))
            graph.input.append(info)
    kept = []
    for node in graph.node:
        folded = fold(node, values, shapes)
        if folded is None:
            kept.append(node)
        else:
            values[node.output[0]] = folded
    del graph.node[:]
    graph.node.extend(kept)
    known = {name: np.asarray(value) for name, value in (values | scales).items()}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in known.items())
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {name: (TensorProto.INT64, np.asarray(value).shape) for name, value in values.items()}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor_type = value.type.tensor_type
        assert all(dim.HasField("dim_value") for dim in tensor_type.shape.dim), f"shape of {value.name}"
        shape = tuple(dim.dim_value for dim in tensor_type.shape.dim)
        found.setdefault(value.name, (tensor_type.elem_type, shape))
    return found


def fold(node: onnx.NodeProto, values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Any:
    """The value of a node that only depends on shapes, or None."""
    if node.op_type == "Shape":
        bounds = attributes_of(node)
        return np.array(shapes[node.input[0]][bounds["start"] : bounds["end"]])
    operations: dict[str, Any] = {
        "Add": np.add,
        "Sub": np.subtract,
        "Mul": np.multiply,
        "Div": np.floor_divide,
        "Max": np.maximum,
        "Concat": lambda *parts: np.concatenate(parts),
        "Squeeze": lambda a, axes: a.squeeze(tuple(axes)),
        "Range": np.arange,
    }
    if node.op_type not in operations or not all(name in values for name in node.input):
        return None
    return operations[node.op_type](*(values[name] for name in node.input))


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@each_precision
@each_kind
@each_direction
def test_operators_types_and_ranks_are_supported(
    preset: Any, direction: Any, kind: str, precision: str
) -> None:
    audited = traced(preset, direction, kind, precision)
    tensors = sized(preset, direction, kind, precision, 3)
    constants = audited.constants
    graph = audited.model.graph
    assert audited.model.opset_import[0].version in range(9, 25)
    supported = {onnx_type(getattr(torch, name)) for name in TYPES}
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} <= supported
    assert max(len(shape) for _, shape in tensors.values()) <= 8
    graph_attributes = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    for node in graph.node:
        name = node.name
        assert node.domain == "" and node.op_type in OPERATORS, f"{name}: TensorRT does not parse it"
        assert not any(a.type in graph_attributes for a in node.attribute), f"{name}: control flow"
        types, count = OPERATORS[node.op_type]
        assert {tensors[given][0] for given in node.input[:count]} <= types, name
        if node.op_type in ("LayerNormalization", "Softmax"):
            # Sums overflow in half precision.
            assert len(node.output) == 1 and tensors[node.input[0]][0] == TensorProto.FLOAT, name
        if node.op_type == "Conv":
            assert node.input[1] in constants and constants[node.input[1]].ndim == 4, name
        if node.op_type in ("Slice", "Pad", "Unsqueeze", "Squeeze"):
            # Bounds and axes must be constants, but for the end of an image's rows: TensorRT takes
            # such an end as a shape tensor.
            computed = [given for given in node.input[1:] if given not in constants]
            rows = node.op_type == "Slice" and constants[node.input[3]].tolist() == [2]
            assert computed in ([], [node.input[2]] if rows else []), name
        if node.op_type == "Resize":
            found = attributes_of(node)
            keys = ("mode", "coordinate_transformation_mode", "nearest_mode")
            assert tuple(found.get(key) for key in keys) in RESIZE and not found.get("antialias"), name
            assert len(tensors[node.input[0]][1]) == 4, name


def empty_tensors(*graph: Any) -> list[str]:
    return [name for name, (_, shape) in sized(*graph).items() if 0 in shape and name]


@each_precision
@each_kind
@each_direction
def test_no_reshape_leaves_a_size_to_infer(preset: Any, direction: Any, kind: str, precision: str) -> None:
    """TensorRT-RTX bounds an inferred size by products that overflow after a few of them."""
    audited = traced(preset, direction, kind, precision)
    targets = {node.input[1] for node in audited.model.graph.node if node.op_type == "Reshape"}
    parts = {name for node in audited.model.graph.node if node.output[0] in targets for name in node.input}
    constants = [audited.constants[name] for name in targets | parts if name in audited.constants]
    assert targets and constants and all(bool((sizes >= 0).all()) for sizes in constants)


@pytest.mark.parametrize("latents", [1, 2, 5])
@each_direction
@each_preset
def test_no_tensor_of_a_step_is_empty(preset: Any, direction: Any, latents: int) -> None:
    assert not empty_tensors(preset, direction, "step", "fp32", latents)


@pytest.mark.parametrize("latents", [DIRECT_LATENTS, DIRECT_LATENTS + 1])
@each_direction
def test_direct_graphs_have_no_empty_tensor_where_a_profile_begins(direction: Any, latents: int) -> None:
    assert not empty_tensors("S", direction, "direct", "fp32", latents)
    assert empty_tensors("S", "decoder", "direct", "fp32", 1)


def odd_channels(audited: Audited) -> Iterator[tuple[str, int]]:
    """Channels of convolutions that are no multiple of 8, and the module they are in."""
    for node in audited.model.graph.node:
        if node.op_type == "Conv":
            given, per_group = audited.constants[node.input[1]].shape[:2]
            for size in (given, per_group * attributes_of(node)["group"]):
                if size % 8:
                    yield node.name.rpartition("/")[0], size


@each_direction
@each_preset
def test_channels_are_multiples_of_8_but_for_video_and_latents(preset: Any, direction: Any) -> None:
    """TensorRT pads others: video has 3 channels, in pairs, in 4 sub-bands; latents have 4."""
    odd = set(odd_channels(traced(preset, direction, "step", "fp16")))
    assert {size for _, size in odd} <= {3, 6, 12, WFVAEConfig.preset(preset).latent_dim}
    wavelets = {f"encoder.wavelet_transform_{level}" for level in ("in", "l1", "l2")}
    outflow = {f"decoder.{name}" for name in ("conv_in", "connect_l1.1", "inverse_wavelet_transform_l1")}
    assert {module for module, _ in odd} <= wavelets | outflow | {"encoder.connect_l1"}
