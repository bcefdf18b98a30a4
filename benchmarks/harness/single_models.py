"""ONNX models of a single operator or layer, as functions of an engine."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from harness.processes import NotMeasured, reason_of
from wfvae.errors import WFVAEError

Compiled = Callable[[Mapping[str, Any]], Any]
_OPSET, _IR_VERSION = 20, 9


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    output: str,
    constants: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """Returns a float32 model of these nodes with inputs of fixed shapes."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in inputs.items()
    ]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "single", values, [result], tensors)
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)


def compile_model(model: onnx.ModelProto, engine: str, threads: int) -> Compiled:
    """Returns the model as a function, in an engine with the runtime's own settings.

    Raises:
        NotMeasured: the engine is not installed, or this CPU lacks its precision.
    """
    backend, _, hint = engine.partition("-")
    try:
        if backend == "openvino":
            return _compile_openvino(model, hint or "fp32", threads)
    except WFVAEError as error:
        raise NotMeasured(reason_of(error)) from error
    import onnxruntime as ort

    from wfvae.runtime.backends.onnxruntime import session_options

    settings = session_options(threads)
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return partial(session.run, None)


def _compile_openvino(model: onnx.ModelProto, hint: str, threads: int) -> Compiled:
    from wfvae.runtime.backends.openvino import compile_settings, open_core, require_precision

    core = open_core()
    require_precision(
        hint, *(core.get_property("CPU", name) for name in ("OPTIMIZATION_CAPABILITIES", "FULL_DEVICE_NAME"))
    )
    settings = compile_settings(hint, threads)
    compiled = core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda feeds: request.infer(dict(feeds), share_inputs=True, share_outputs=True)
