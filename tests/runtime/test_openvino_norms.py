"""Layer norms rewritten for OpenVINO: which ones, and how close to the definition they compute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wfvae.runtime.backends.openvino_norms import rewrite_norms

ov = pytest.importorskip("openvino", reason="needs the extra openvino: pip install 'wfvae[openvino]'")
NAME = "4x8x8-trilinear"
CHANNELS = 64
SCALE, SHIFT = np.random.default_rng(1).standard_normal((2, CHANNELS)).astype(np.float32)


def norm_model(
    order: Any = (0, 2, 3, 1),
    back: Any = (0, 3, 1, 2),
    axes: Any = (3,),
    variance: Any = True,
    users: int = 1,
    spatial: int = 2,
) -> Any:
    """A convolution, and a LayerNormalization between two transposes, as OpenVINO reads it."""
    op, ones = ov.opset13, [1] * spatial
    images = op.parameter([-1, CHANNELS, *[-1] * spatial], np.float32)
    identity = op.constant(np.eye(CHANNELS, dtype=np.float32).reshape(CHANNELS, CHANNELS, *ones))
    convolved = op.convolution(images, identity, ones, [0] * spatial, [0] * spatial, ones)
    turned = op.transpose(convolved, op.constant(np.array(order)))
    unit = op.mvn(turned, op.constant(np.array(axes)), variance, 1e-6, "inside_sqrt")
    result = op.add(op.multiply(unit, op.constant(SCALE)), op.constant(SHIFT))
    turned_back = op.transpose(result, op.constant(np.array(back)))
    return ov.Model([turned_back, *[op.relu(unit)] * (users - 1)], [images])


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("target", ["auto", "openvino"])
@pytest.mark.parametrize("graph", ["encoder", "decoder", "encoder.direct", "decoder.direct"])
def test_norms_of_a_bundle_are_rewritten_without_transposes(
    exported: Callable[..., Path], graph: str, target: str
) -> None:
    model = ov.Core().read_model(str(exported(NAME, target=target) / f"{graph}.onnx"))
    norms = kinds(model).count("MVN")
    assert rewrite_norms(model, coarse=False) == norms > 5
    assert "MVN" not in kinds(model)
    # Attention, block 1 of `mid`, transposes queries, keys, values, scores and its result.
    # Volumes are also transposed where they enter and leave the graph.
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Transpose"]
    nodes = [node for node in nodes if list(node.input_value(1).get_node().data) != [0, 2, 1, 3, 4]]
    attention = f"{graph.partition('.')[0]}.mid.1/"
    assert nodes and all(node.get_friendly_name().startswith(attention) for node in nodes)
    assert rewrite_norms(model, coarse=False) == 0


@pytest.mark.parametrize("size", [(12, 16), (2, 12, 16)])
@pytest.mark.parametrize("hint", ["fp32", "bf16"])
@pytest.mark.parametrize("mean", [0, 1, 10])
def test_rewritten_norm_is_as_close_to_the_definition_as_openvinos(
    mean: float, hint: str, size: tuple[int, ...]
) -> None:
    """In bf16 with one centring it would not be, at a mean of 10."""
    core = ov.Core()
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO does not list BF16 for this CPU")
    noise = np.random.default_rng(0).standard_normal((2, CHANNELS, *size))
    images = (mean + noise).astype(np.float32)
    centred = images - images.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    by_channel = (CHANNELS, *[1] * len(size))
    exact = centred / deviation * SCALE.reshape(by_channel) + SHIFT.reshape(by_channel)

    def error(model: Any) -> float:
        settings = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[hint]}
        found = core.compile_model(model, "CPU", settings)(images)[0]
        return float(np.sqrt(((found - exact) ** 2).mean()))

    last, first = ((0, 2, 3, 1), (0, 3, 1, 2)) if len(size) == 2 else ((0, 2, 3, 4, 1), (0, 4, 1, 2, 3))
    own, rewritten = (norm_model(last, first, (len(size) + 1,), spatial=len(size)) for _ in range(2))
    assert rewrite_norms(rewritten, coarse=hint == "bf16") == 1
    assert error(rewritten) < (1e-6 * (1 + mean) if hint == "fp32" else 1.6 * error(own))


TURNED = [0, 3, 2, 1]
OTHER_FORMS = [("order", TURNED), ("back", TURNED), ("axes", [2, 3]), ("variance", False), ("users", 2)]


@pytest.mark.parametrize(("part", "value"), OTHER_FORMS)
def test_norm_of_another_form_is_left_alone(part: str, value: Any) -> None:
    model = norm_model(**{part: value})
    assert rewrite_norms(model, coarse=False) == 0
    assert "MVN" in kinds(model)
