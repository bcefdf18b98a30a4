"""3-D convolutions that are split into their time taps for OpenVINO in fp32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wfvae.runtime.backends.openvino_convolutions import split_time_taps

ov = pytest.importorskip("openvino", reason="needs the extra openvino: pip install 'wfvae[openvino]'")
CHANNELS, OUTPUTS = 5, 7


def convolution(taps: int, stride: int, before: int = 0, bias: bool = False) -> Any:
    op = ov.opset13
    frames = op.parameter([-1, CHANNELS, -1, -1, -1], np.float32)
    weight = np.random.default_rng(0).standard_normal((OUTPUTS, CHANNELS, taps, 3, 3)).astype(np.float32)
    pads = [before, 1, 0], [0, 0, 1]
    result = op.convolution(frames, op.constant(weight), [stride, stride, 1], *pads, [1, 1, 1])
    if bias:
        result = op.add(result, op.constant(np.arange(OUTPUTS, dtype=np.float32).reshape(1, -1, 1, 1, 1)))
    return ov.Model([result], [frames])


def time_taps(model: Any) -> list[int]:
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    return [node.input_value(1).get_partial_shape()[2].get_length() for node in nodes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (2, 1), (4, 3)])
def test_sum_of_taps_equals_the_convolution(taps: int, stride: int, bias: bool) -> None:
    frames = np.random.default_rng(1).standard_normal((2, CHANNELS, 7 + taps, 6, 5)).astype(np.float32)
    own, split = (convolution(taps, stride, bias=bias) for _ in range(2))
    assert split_time_taps(split) == 1 and time_taps(split) == [1] * taps
    core, settings = ov.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    expected, found = (core.compile_model(model, "CPU", settings)(frames)[0] for model in (own, split))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("taps", "before"), [(1, 0), (3, 2)])
def test_convolution_without_taps_or_padded_in_time_is_left_alone(taps: int, before: int) -> None:
    model = convolution(taps, 1, before)
    assert split_time_taps(model) == 0 and time_taps(model) == [taps]


def test_bundle_of_volumes_keeps_no_time_taps(exported: Callable[..., Path]) -> None:
    path = exported("4x8x8-trilinear", target="openvino") / "decoder.onnx"
    model = ov.Core().read_model(str(path))
    assert 3 in time_taps(model) and split_time_taps(model) > 5
    assert set(time_taps(model)) == {1}
