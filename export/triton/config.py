"""`config.pbtxt` of a step graph for Triton Inference Server: pure text from the manifest.
Explained in `docs/triton.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wfvae.errors import BundleError, InputError
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import GraphSpec, Manifest, TensorSpec, state_input, state_output
from wfvae.spec.stream import Dim, StateSpec, resolve_dim

Platform = Literal["onnxruntime", "tensorrt"]
PLATFORMS: dict[Platform, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt_plan", "model.plan"),
}
"""What the server calls the platform, and the file it loads."""
PARAMETER = "wfvae"
"""Key of the model parameter that tells a client the stream's rules, as JSON."""
FORMAT = "wfvae-triton/1"
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float64": "TYPE_FP64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}
_ORT_HEURISTIC = "1"  # the server's number for HEURISTIC
_TIME = ("frames", "latents")


@dataclass(frozen=True)
class TritonOptions:
    """How the server shall run the models."""

    platform: Platform = "onnxruntime"
    size: tuple[int, int] | None = None
    """Video (height, width); None: the size that the bundle was exported for."""
    gpu: bool = True
    gpus: tuple[int, ...] = ()
    """GPUs to use; empty: all that the server sees."""
    instances: int = 1
    """Copies of each model, per GPU. A sequence stays with one."""
    max_batch: int = 4
    """Streams that share one execution."""
    max_sequences: int | None = None
    """Streams open at once, per instance; each holds its state. None: four times `max_batch`."""
    max_delay_us: int = 2000
    """How long a request may wait for others to share an execution, in microseconds."""
    idle_seconds: int = 60
    """A stream without a request for so long is dropped."""
    same_buffer: bool = False
    """One buffer per state instead of two. Halves the server's state memory."""
    tf32: bool = False
    max_latents: int = 8
    """Largest step a TensorRT engine takes."""
    name: str = "wfvae"
    """Models are called NAME_encoder and NAME_decoder."""

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            raise InputError(f"platform is {self.platform!r}; expected {' or '.join(PLATFORMS)}")
        if self.platform == "tensorrt" and not self.gpu:
            raise InputError("TensorRT engines run on GPUs only; use the platform onnxruntime on a CPU")
        if not self.name.replace("_", "").replace("-", "").isalnum():
            raise InputError(f"name is {self.name!r}; expected letters, digits, _ and -")
        for field in ("instances", "max_batch", "max_latents", "idle_seconds"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} is {getattr(self, field)}; expected at least 1")
        if self.max_delay_us < 0:
            raise InputError(f"max_delay_us is {self.max_delay_us}; expected at least 0")
        if self.sequences < self.max_batch:
            raise InputError(
                f"max_sequences is {self.sequences}; expected at least max_batch, {self.max_batch}"
            )

    @property
    def sequences(self) -> int:
        """Streams open at once, per instance."""
        return 4 * self.max_batch if self.max_sequences is None else self.max_sequences


def model_size(manifest: Manifest, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The padded (height, width) of the models: the server needs the states' sizes, so one
    repository is for one size.

    Raises `InputError` if no size is known, or another than the bundle's is wanted.
    """
    if wanted is None:
        if manifest.size is None:
            raise InputError(
                "the bundle is for any size, and a Triton model has one; state it with --size HEIGHTxWIDTH"
            )
        return manifest.size
    size = padded_size(*wanted)
    if manifest.size not in (None, size):
        fixed = "x".join(map(str, manifest.size))
        raise InputError(
            f"the bundle was exported for {fixed} only, and {wanted[0]}x{wanted[1]} is wanted; export"
            " another one"
        )
    return size


def config_text(manifest: Manifest, graph: GraphSpec, options: TritonOptions) -> str:
    """The whole `config.pbtxt` of one direction, the same text for the same arguments."""
    if options.platform == "onnxruntime" and manifest.precision == "bf16":
        raise BundleError(
            "Triton's ONNX Runtime backend has no bfloat16 tensors, and this bundle's states are bfloat16; "
            "export it with --precision fp16 or fp32, or use --platform tensorrt"
        )
    size = model_size(manifest, options.size)
    heading = (
        f"# Written by 'wfvae triton' from bundle {manifest.identity[:16]}; see docs/triton.md of wfvae.\n"
    )
    return heading + to_text(_model(manifest, graph, options, size))


def tensor_dims(shape: Sequence[Dim], size: tuple[int, int]) -> list[int]:
    """A tensor's dimensions without the batch, as the server wants them: time is free (-1), and
    none at all becomes [1].

    Triton has no tensors with a batch axis only: control inputs must be (batch, 1), and dims must
    not be empty. The graphs in a repository have that second axis, see `wfvae.export.triton.graph`.
    """
    return [-1 if dim in _TIME else resolve_dim(dim, 1, *size) for dim in shape[1:]] or [1]


def stream_rules(manifest: Manifest, graph: GraphSpec, size: tuple[int, int]) -> dict[str, Any]:
    """What a client must know. `graph` is that of the manifest, less what only a runtime that holds
    the state needs.
    """
    facts = {**graph.to_dict(), "states": [], "scratch_bytes": []}
    return {
        "format": FORMAT,
        "bundle": manifest.identity,
        "precision": manifest.precision,
        "latents": manifest.latents,
        "size": list(size),
        "graph": facts,
    }


class Name(str):
    """An identifier of the protobuf text format, written without quotes."""


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format. A list of mappings is a repeated message, any other list
    a repeated scalar.
    """
    lines = []
    for key, value in message.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key} {{\n{to_text(value, indent + '  ')}{indent}}}\n")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.extend(f"{indent}{key} {{\n{to_text(item, indent + '  ')}{indent}}}\n" for item in value)
        elif isinstance(value, list):
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, value))}]\n")
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Name | int):
        return str(value)
    return json.dumps(value)  # quotes and escapes as the text format has them


def _model(
    manifest: Manifest, graph: GraphSpec, options: TritonOptions, size: tuple[int, int]
) -> dict[str, Any]:
    platform, file = PLATFORMS[options.platform]
    model: dict[str, Any] = {
        "name": f"{options.name}_{graph.direction}",
        "platform": platform,
        "default_model_filename": file,
        "max_batch_size": options.max_batch,
        "input": [_tensor(graph.inputs[0], size)],
        "output": [_tensor(tensor, size) for tensor in graph.outputs],
        "sequence_batching": _sequences(graph, options, size),
        "instance_group": [_instances(options)],
    }
    parameters = {PARAMETER: json.dumps(stream_rules(manifest, graph, size), sort_keys=True)}
    if options.platform == "onnxruntime" and options.gpu:
        # The algorithm search must stand here: with any parameter set, the server takes EXHAUSTIVE
        # if this one is missing, whatever the accelerator's settings say. TF32 is known there only.
        parameters["cudnn_conv_algo_search"] = _ORT_HEURISTIC
        tf32 = {"key": "use_tf32", "value": str(int(options.tf32))}
        model["optimization"] = {
            "execution_accelerators": {"gpu_execution_accelerator": [{"name": "cuda", "parameters": [tf32]}]}
        }
    model["parameters"] = [
        {"key": key, "value": {"string_value": value}} for key, value in parameters.items()
    ]
    return model


def _tensor(tensor: TensorSpec, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": Name(TYPES[tensor.dtype]),
        "dims": tensor_dims(tensor.shape, size),
    }


def _sequences(graph: GraphSpec, options: TritonOptions, size: tuple[int, int]) -> dict[str, Any]:
    kinds = {"start": "CONTROL_SEQUENCE_START", "end": "CONTROL_SEQUENCE_END"}
    controls = [tensor.name for tensor in graph.inputs[1:]]
    return {
        "max_sequence_idle_microseconds": options.idle_seconds * 1_000_000,
        # `oldest` batches the streams that have a request. `direct` would compute empty rows for
        # those that have none.
        "oldest": {
            "max_candidate_sequences": options.sequences,
            "preferred_batch_size": [options.max_batch],
            "max_queue_delay_microseconds": options.max_delay_us,
        },
        "control_input": [
            {"name": name, "control": [{"kind": Name(kinds[name]), "bool_false_true": [False, True]}]}
            for name in controls
        ],
        "state": [_state(state, options, size) for state in graph.states],
    }


def _state(state: StateSpec, options: TritonOptions, size: tuple[int, int]) -> dict[str, Any]:
    if state.initial_value != 0:
        raise BundleError(
            f"state {state.name} begins with {state.initial_value}; a Triton repository holds zeros only"
        )
    kind = {"data_type": Name(TYPES[state.dtype]), "dims": tensor_dims(state.shape, size)}
    message: dict[str, Any] = {
        "input_name": state_input(state.name),
        "output_name": state_output(state.name),
        **kind,
    }
    # `start` makes the graph ignore it, but without this the server leaves memory as it finds it.
    message["initial_state"] = [{"name": "zeros", **kind, "zero_data": True}]
    if options.same_buffer:
        message["use_same_buffer_for_input_output"] = True
    return message


def _instances(options: TritonOptions) -> dict[str, Any]:
    group: dict[str, Any] = {
        "kind": Name("KIND_GPU" if options.gpu else "KIND_CPU"),
        "count": options.instances,
    }
    if options.gpu and options.gpus:
        group["gpus"] = list(options.gpus)
    return group
