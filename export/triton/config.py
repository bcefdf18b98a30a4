"""`config.pbtxt` of a step graph for Triton Inference Server: text from the manifest.

`docs/triton.md` explains the entries.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from wfvae.errors import BundleError, InputError
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import GraphSpec, Manifest, TensorSpec
from wfvae.spec.records import Record, check_fields
from wfvae.spec.stream import Dim, Size, StateSpec, resolve

Platform = Literal["onnxruntime", "tensorrt"]
PLATFORMS: dict[Platform, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt_plan", "model.plan"),
}
"""The server's name of the platform, and the file that it loads."""
PARAMETER = "wfvae"
"""Key of the model parameter with the stream's rules for clients, as JSON."""
FORMAT = "wfvae-triton/1"
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}
TYPES |= {"int32": "TYPE_INT32", "bool": "TYPE_BOOL"}
"""The manifest's types in Triton's words."""
_CONTROLS = {"start": "CONTROL_SEQUENCE_START", "end": "CONTROL_SEQUENCE_END"}
_ORT_HEURISTIC = "1"  # the server's number for HEURISTIC
_BF16_SERVER = "26.03"
"""The first release whose ONNX Runtime backend has bfloat16 tensors."""


class TritonOptions(Record, frozen=True, kw_only=True):
    """How the server runs the models. Raises `InputError` on values out of range.

    Example:
        >>> TritonOptions(max_batch=8).sequences
        32
    """

    platform: Platform = "onnxruntime"
    size: tuple[int, int] | None = None
    """Video (height, width); None: the size that the bundle was exported for."""
    gpu: bool = True
    gpus: tuple[int, ...] = ()
    """GPUs to use; empty: all that the server sees."""
    instances: Size = 1
    """Copies of each model, per GPU. A sequence stays with one."""
    max_batch: Size = 4
    """Streams that share one execution."""
    max_sequences: Size | None = None
    """Streams open at once, per instance; each holds its state. None: four times `max_batch`."""
    max_delay_us: Annotated[int, Meta(ge=0)] = 2000
    """How long a request may wait for others to share an execution, in microseconds."""
    idle_seconds: Size = 60
    """A stream without a request for this long is dropped."""
    same_buffer: bool = False
    """One buffer per state instead of two. Halves the server's state memory."""
    tf32: bool = False
    max_latents: Size = 8
    """Largest step of a TensorRT engine."""
    name: Annotated[str, Meta(pattern=r"^[\w-]+$")] = "wfvae"
    """Models are called NAME_encoder and NAME_decoder."""

    def __post_init__(self) -> None:
        check_fields(self, InputError)
        if self.platform == "tensorrt" and not self.gpu:
            raise InputError("TensorRT engines run on GPUs only; use the platform onnxruntime on a CPU")
        if self.sequences < self.max_batch:
            expected = f"expected at least max_batch, {self.max_batch}"
            raise InputError(f"max_sequences is {self.sequences}; {expected}")

    @property
    def sequences(self) -> int:
        """Streams open at once, per instance."""
        return self.max_sequences or 4 * self.max_batch


def model_size(manifest: Manifest, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Returns the padded (height, width) of the models: the server needs the sizes of the states.

    Raises `InputError` if no size is known, or another than the bundle's is wanted.
    """
    if wanted is None:
        if manifest.size is None:
            raise InputError(
                "the bundle is for any size, and a Triton model has one; state it with --size HEIGHTxWIDTH"
            )
        return manifest.size
    size = padded_size(*wanted)
    if manifest.size is not None and manifest.size != size:
        fixed = "x".join(map(str, manifest.size))
        given = f"{wanted[0]}x{wanted[1]} is wanted"
        raise InputError(f"the bundle was exported for {fixed} only, and {given}; export another one")
    return size


def config_text(manifest: Manifest, graph: GraphSpec, options: TritonOptions) -> str:
    """Returns the `config.pbtxt` of one direction, the same text for the same arguments."""
    if options.platform == "onnxruntime" and manifest.precision == "bf16" and not options.gpu:
        raise BundleError(
            "the bundle is in bf16, and ONNX Runtime has no bf16 convolution on a CPU; "
            "export it with --precision fp16 or fp32, or serve it on a GPU"
        )
    size = model_size(manifest, options.size)
    made_by = f"Written by 'wfvae triton' from bundle {manifest.identity[:16]}"
    origin = f"# {made_by}; see docs/triton.md of wfvae.\n"
    if oldest := oldest_server(manifest, options):
        origin += f"# Needs Triton {oldest} or later.\n"
    return origin + to_text(_model(manifest, graph, options, size))


def oldest_server(manifest: Manifest, options: TritonOptions) -> str | None:
    """Returns the first release of the server that loads the models, where one is known not to."""
    bf16 = options.platform == "onnxruntime" and manifest.precision == "bf16"
    return _BF16_SERVER if bf16 else None


def tensor_dims(shape: Sequence[Dim], size: tuple[int, int]) -> list[int]:
    """Returns a tensor's dimensions without the batch: time is free (-1), and none becomes [1].

    Triton has no tensors with a batch axis only: control inputs must be (batch, 1), and dims must
    not be empty. The graphs in a repository have that second axis, see `with_second_axis`.
    """
    height, width = size
    return list(resolve(shape[1:], frames=-1, latents=-1, height=height, width=width)) or [1]


def stream_rules(manifest: Manifest, graph: GraphSpec, size: tuple[int, int]) -> dict[str, Any]:
    """Returns what a client needs: the graph's entry in the manifest, without its states."""
    return {
        "format": FORMAT,
        "bundle": manifest.identity,
        "precision": manifest.precision,
        "latents": manifest.latents,
        "size": list(size),
        "graph": {**graph.to_dict(), "states": [], "scratch_bytes": []},
    }


class Name(str):
    """An identifier of the protobuf text format, written without quotes."""


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """Writes a message in protobuf's text format. A list of mappings is a repeated message.

    Example:
        >>> print(to_text({"a": {"b": [1, -1], "kind": Name("KIND_CPU")}}), end="")
        a {
          b: [1, -1]
          kind: KIND_CPU
        }
    """
    lines = []
    for key, value in message.items():
        values = value if isinstance(value, list) else [value]
        if values and isinstance(values[0], Mapping):
            lines += [f"{indent}{key} {{\n{to_text(item, indent + '  ')}{indent}}}\n" for item in values]
        else:
            text = f"[{', '.join(map(_scalar, value))}]" if isinstance(value, list) else _scalar(value)
            lines.append(f"{indent}{key}: {text}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    # Quotes and escapes are the same in both formats.
    return str(value) if isinstance(value, Name) else json.dumps(value)


def _model(
    manifest: Manifest, graph: GraphSpec, options: TritonOptions, size: tuple[int, int]
) -> dict[str, Any]:
    platform, file = PLATFORMS[options.platform]
    kind = Name("KIND_GPU" if options.gpu else "KIND_CPU")
    gpus = {"gpus": list(options.gpus)} if options.gpu and options.gpus else {}
    model: dict[str, Any] = {
        "name": f"{options.name}_{graph.direction}",
        "platform": platform,
        "default_model_filename": file,
        "max_batch_size": options.max_batch,
        "input": [_tensor(graph.inputs[0], size)],
        "output": [_tensor(tensor, size) for tensor in graph.outputs],
        "sequence_batching": _sequences(graph, options, size),
        "instance_group": [{"kind": kind, "count": options.instances, **gpus}],
    }
    parameters = {PARAMETER: json.dumps(stream_rules(manifest, graph, size), sort_keys=True)}
    if options.platform == "onnxruntime":
        # Planned memory is kept for every length of step that was ever run.
        parameters["enable_mem_pattern"] = "0"
    if options.platform == "onnxruntime" and options.gpu:
        # With any parameter set, the server searches exhaustively if this one is missing, whatever
        # the settings of the accelerator. TF32 exists only there.
        parameters["cudnn_conv_algo_search"] = _ORT_HEURISTIC
        tf32 = {"key": "use_tf32", "value": str(int(options.tf32))}
        cuda = {"gpu_execution_accelerator": [{"name": "cuda", "parameters": [tf32]}]}
        model["optimization"] = {"execution_accelerators": cuda}
    model["parameters"] = [{"key": k, "value": {"string_value": v}} for k, v in parameters.items()]
    return model


def _tensor(tensor: TensorSpec, size: tuple[int, int]) -> dict[str, Any]:
    dims = tensor_dims(tensor.shape, size)
    return {"name": tensor.name, "data_type": Name(TYPES[tensor.dtype]), "dims": dims}


def _sequences(graph: GraphSpec, options: TritonOptions, size: tuple[int, int]) -> dict[str, Any]:
    controls = []
    for tensor in graph.inputs[1:]:
        control = {"kind": Name(_CONTROLS[tensor.name]), "bool_false_true": [False, True]}
        controls.append({"name": tensor.name, "control": [control]})
    return {
        "max_sequence_idle_microseconds": options.idle_seconds * 1_000_000,
        # `oldest` batches the streams that have a request. `direct` would compute empty rows for
        # those that have none.
        "oldest": {
            "max_candidate_sequences": options.sequences,
            "preferred_batch_size": [options.max_batch],
            "max_queue_delay_microseconds": options.max_delay_us,
        },
        "control_input": controls,
        "state": [_state(state, options, size) for state in graph.states],
    }


def _state(state: StateSpec, options: TritonOptions, size: tuple[int, int]) -> dict[str, Any]:
    if state.initial_value:
        text = f"state {state.name} begins with {state.initial_value}"
        raise BundleError(f"{text}; a Triton repository holds zeros only")
    kind = {"data_type": Name(TYPES[state.dtype]), "dims": tensor_dims(state.shape, size)}
    message: dict[str, Any] = {"input_name": state.input, "output_name": state.output, **kind}
    # `start` makes the graph ignore it, but without this the server leaves memory as it is.
    message["initial_state"] = [{"name": "zeros", **kind, "zero_data": True}]
    if options.same_buffer:
        message["use_same_buffer_for_input_output"] = True
    return message
