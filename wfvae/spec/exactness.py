"""Where results have equal bits however many frames share a call of the graph."""

from collections.abc import Mapping


def is_reference(backend: Mapping[str, str]) -> bool:
    """Returns whether this is ONNX Runtime's CPU provider, the reference for other backends.

    Args:
        backend: what it says of itself (`Backend.describe`).
    """
    return backend.get("name") == "onnxruntime" and backend.get("provider") == "CPUExecutionProvider"


def plans_are_exact(backend: Mapping[str, str], precision: str, *, volumes: bool = False) -> bool:
    """Returns whether any plan of steps gives the bits of any other one.

    Args:
        backend: what it says of itself.
        precision: the bundle's.
        volumes: whether the graph's convolutions are 3-D, which ONNX Runtime's CPU provider sums in
            an order that depends on how many frames share the call.

    ONNX Runtime's kernels of 2-D convolutions compute each frame by the same operations in any
    call, so fp32 results must have equal bits. The same was measured for OpenVINO, with both hints,
    for bundles in a precision that it computes in on this CPU. (Others, fp16 and on many CPUs bf16,
    it computes in a wider type and rounds only the state, so results depend on where steps end.)
    Elsewhere a library may choose another kernel for another shape.
    """
    if backend.get("name") == "openvino":
        return precision in backend["cpu_precisions"].split(", ")
    return is_reference(backend) and precision == "fp32" and not volumes


def clips_are_exact(backend: Mapping[str, str], precision: str, *, volumes: bool = False) -> bool:
    """Returns whether the direct graph gives the stream's bits.

    So it is where plans are exact, but for bf16 with OpenVINO's bf16 hint: there the direct graph
    rounds at other places than the step graph, whose state is bfloat16.
    """
    rounded_elsewhere = backend.get("precision_hint") == "bf16" and precision == "bf16"
    return plans_are_exact(backend, precision, volumes=volumes) and not rounded_elsewhere
