"""`config.pbtxt` of a step graph for Triton Inference Server: text from the manifest.

`docs/triton.md` explains the entries.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta
from msgspec.structs import fields

from wfvae.errors import BundleError, InputError
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import GraphSpec, Manifest, TensorSpec
from wfvae.spec.records import Record, check_fields
from wfvae.spec.serving import SERVING_PARAMETER, ServingOptions
from wfvae.spec.stream import Dim, Size, StateSpec, resolve

Platform = Literal["onnxruntime", "tensorrt", "python"]
PLATFORMS: dict[Platform, dict[str, str]] = {
    "onnxruntime": {"platform": "onnxruntime_onnx", "default_model_filename": "model.onnx"},
    "tensorrt": {"platform": "tensorrt_plan", "default_model_filename": "model.plan"},
    "python": {"backend": "python", "default_model_filename": "model.py"},
}
"""What loads a model, in the server's words, and the file that it loads."""
PARAMETER = "wfvae"
"""Key of the model parameter with the stream's rules for clients, as JSON."""
FORMAT = "wfvae-triton/1"
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}
TYPES |= {"int32": "TYPE_INT32", "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8"}
"""The manifest's types in Triton's words."""
_CONTROLS = {"start": "CONTROL_SEQUENCE_START", "end": "CONTROL_SEQUENCE_END"}
_PYTHON_ONLY = (
    "backend",
    "threads",
    "precision_hint",
    "cuda_graphs",
    "memory_limit",
    "chunk",
    "pixels",
    "site_packages",
)
_STATEFUL_ONLY = ("size", "same_buffer")
"""Options of platforms whose state the server keeps."""
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
    backend: str = "auto"
    """Backend of the runtime. This and the following are for the platform python."""
    threads: Size | None = None
    precision_hint: Literal["fp32", "bf16"] | None = None
    cuda_graphs: bool = False
    memory_limit: Size | None = None
    """Bytes for the streams that share a step."""
    chunk: Size | None = None
    """Most latents per step; None: the tuned length, else 4."""
    pixels: Literal["uint8", "float32"] = "uint8"
    """Type of frames, in and out."""
    site_packages: tuple[str, ...] = ()
    """Folders of Python packages that the server's own Python does not search."""

    def __post_init__(self) -> None:
        check_fields(self, InputError)
        if self.platform == "tensorrt" and not self.gpu:
            raise InputError("TensorRT engines run on GPUs only; use the platform onnxruntime on a CPU")
        served, defaults = self.platform == "python", {f.name: f.default for f in fields(TritonOptions)}
        for name in _STATEFUL_ONLY if served else _PYTHON_ONLY:
            if getattr(self, name) != defaults[name]:
                problem = (
                    f"{name} is {getattr(self, name)!r}, which the platform {self.platform} does not have"
                )
                raise InputError(f"{problem}; leave it out, or choose another platform")
        if served and self.gpu and self.backend == "openvino":
            raise InputError(
                "the backend openvino runs on CPUs, and the models are for GPUs; use --device cpu"
            )
        if self.sequences < self.max_batch:
            expected = f"expected at least max_batch, {self.max_batch}"
            raise InputError(f"max_sequences is {self.sequences}; {expected}")

    @property
    def sequences(self) -> int:
        """Streams open at once, per instance."""
        return self.max_sequences or 4 * self.max_batch


def model_size(manifest: Manifest, options: TritonOptions) -> tuple[int, int] | None:
    """Returns the padded (height, width) of the models: the server needs the sizes of the states.

    None is any size, which the platform python serves from a bundle of any size. Raises
    `InputError` if no size is known, or another than the bundle's is wanted.
    """
    wanted = options.size
    if options.platform == "python":
        return manifest.size
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
    size = model_size(manifest, options)
    made_by = f"Written by 'wfvae triton' from bundle {manifest.identity[:16]}"
    origin = f"# {made_by}; see docs/triton.md of wfvae.\n"
    if oldest := oldest_server(manifest, options):
        origin += f"# Needs Triton {oldest} or later.\n"
    if size is None or options.platform == "python":
        return origin + to_text(_runtime_model(manifest, graph, options, size))
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


def stream_rules(
    manifest: Manifest, graph: GraphSpec, options: TritonOptions, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Returns what a client needs: the graph's entry in the manifest, without its states."""
    return {
        "format": FORMAT,
        "requests": "video" if options.platform == "python" else "steps",
        "bundle": manifest.identity,
        "precision": manifest.precision,
        "latents": manifest.latents,
        "size": None if size is None else list(size),
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
    model: dict[str, Any] = {
        **_common(graph, options),
        "input": [_tensor(graph.inputs[0], size)],
        "output": [_tensor(tensor, size) for tensor in graph.outputs],
        "sequence_batching": _sequences(graph, options, size),
    }
    parameters = {PARAMETER: _json(stream_rules(manifest, graph, options, size))}
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
    model["parameters"] = _parameters(parameters)
    return model


def _runtime_model(
    manifest: Manifest, graph: GraphSpec, options: TritonOptions, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Returns the configuration of the runtime in the Python backend, which batches by itself."""
    ends = [graph.inputs[0], graph.outputs[0]]
    [latents] = [tensor for tensor in ends if tensor.name == "latents"]
    forms: dict[str, dict[str, Any]] = {
        "frames": {"data_type": Name(TYPES[options.pixels]), "dims": [-1, -1, -1, 3]},
        "latents": {"data_type": Name(TYPES["float32"]), "dims": [-1, latents.shape[2], -1, -1]},
    }
    given, returned = ({"name": tensor.name, **forms[tensor.name]} for tensor in ends)
    serving = ServingOptions(
        backend=options.backend,
        threads=options.threads,
        tf32=options.tf32,
        cuda_graphs=options.cuda_graphs,
        precision_hint=options.precision_hint,
        memory_limit=options.memory_limit,
        chunk=options.chunk,
        rows=options.max_batch,
        idle_seconds=options.idle_seconds,
        pixels=options.pixels,
    )
    rules = stream_rules(manifest, graph, options, size)
    return {
        **_common(graph, options),
        # Requests of one batch may be of different sizes and lengths.
        "input": [{**given, "allow_ragged_batch": True}],
        "output": [returned],
        "sequence_batching": _batching(options, {"max_queue_delay_microseconds": 0}),
        "parameters": _parameters({PARAMETER: _json(rules), SERVING_PARAMETER: _json(serving.to_dict())}),
    }


def _common(graph: GraphSpec, options: TritonOptions) -> dict[str, Any]:
    """Returns the entries that the models of all platforms have."""
    kind = Name("KIND_GPU" if options.gpu else "KIND_CPU")
    gpus = {"gpus": list(options.gpus)} if options.gpu and options.gpus else {}
    loaded_by: dict[str, Any] = {**PLATFORMS[options.platform]}
    return {
        "name": f"{options.name}_{graph.direction}",
        **loaded_by,
        "max_batch_size": options.max_batch,
        "instance_group": [{"kind": kind, "count": options.instances} | gpus],
    }


def _batching(options: TritonOptions, more: Mapping[str, Any]) -> dict[str, Any]:
    # `oldest` batches the streams that have a request. `direct` would compute empty rows for those
    # that have none.
    return {
        "max_sequence_idle_microseconds": options.idle_seconds * 1_000_000,
        "oldest": {"max_candidate_sequences": options.sequences, **more},
    }


def _parameters(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True)


def _tensor(tensor: TensorSpec, size: tuple[int, int]) -> dict[str, Any]:
    dims = tensor_dims(tensor.shape, size)
    return {"name": tensor.name, "data_type": Name(TYPES[tensor.dtype]), "dims": dims}


def _sequences(graph: GraphSpec, options: TritonOptions, size: tuple[int, int]) -> dict[str, Any]:
    controls = []
    for tensor in graph.inputs[1:]:
        control = {"kind": Name(_CONTROLS[tensor.name]), "bool_false_true": [False, True]}
        controls.append({"name": tensor.name, "control": [control]})
    waiting = {
        "preferred_batch_size": [options.max_batch],
        "max_queue_delay_microseconds": options.max_delay_us,
    }
    return {
        **_batching(options, waiting),
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
