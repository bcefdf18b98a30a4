"""The bundle's manifest: everything a client needs to drive the graphs. No torch. Specified in
`docs/bundle-format.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wfvae.errors import BundleError
from wfvae.spec.stream import Dim, Direction, StateSpec, StreamSpec

FORMAT = "wfvae-bundle/1"
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.bin"
METADATA_KEY = "wfvae.graph"
"""Key of the ONNX metadata entry that repeats a graph's part of the manifest."""

STEP, DIRECT = "step", "direct"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. Symbols in `shape`: batch, frames, latents, height, width,
    height/k, width/k.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    meaning: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "meaning": self.meaning}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorSpec:
        return cls(str(data["name"]), str(data["dtype"]), tuple(data["shape"]), str(data["meaning"]))


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph. A `step` graph advances streams and carries state; a `direct` graph takes a
    whole clip and has none.
    """

    file: str
    kind: str
    stream: StreamSpec
    inputs: tuple[TensorSpec, ...]
    """Without the state tensors."""
    outputs: tuple[TensorSpec, ...]
    """Without the state tensors."""
    weights_bytes: int = 0
    """Bytes of the weights that this graph reads."""
    scratch: tuple[tuple[tuple[int | str, ...], ...], ...] = ()
    """Bytes of activations alive at once: the largest of these sums of products. Each product is a
    factor and symbols among batch, latents, height/8, width/8."""

    @property
    def direction(self) -> Direction:
        return self.stream.direction

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """State tensors of a step graph; a direct graph has none."""
        return self.stream.states if self.kind == STEP else ()

    @property
    def has_end(self) -> bool:
        """Whether the graph takes the `end` flag."""
        return any(tensor.name == "end" for tensor in self.inputs)

    def to_dict(self) -> dict[str, Any]:
        stream = self.stream
        return {
            "file": self.file,
            "kind": self.kind,
            "direction": stream.direction,
            "ratio": stream.ratio,
            "chunk_multiple": stream.chunk_multiple,
            "lead_frames": stream.ratio - 1 if stream.direction == "encoder" else 0,
            "delay_frames": stream.delay,
            "drop_frames": stream.drop,
            "drain": stream.needs_drain,
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
            "weights_bytes": self.weights_bytes,
            "scratch_bytes": [[list(term) for term in peak] for peak in self.scratch],
            "states": [
                {**state.to_dict(), "input": state_input(state.name), "output": state_output(state.name)}
                for state in self.states
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GraphSpec:
        states = tuple(StateSpec.from_dict(state) for state in data["states"])
        stream = StreamSpec(data["direction"], int(data["ratio"]), int(data["delay_frames"]), states)
        inputs, outputs = (
            tuple(TensorSpec.from_dict(tensor) for tensor in data[key]) for key in ("inputs", "outputs")
        )
        scratch = tuple(tuple(tuple(term) for term in peak) for peak in data["scratch_bytes"])
        return cls(
            str(data["file"]), str(data["kind"]), stream, inputs, outputs, int(data["weights_bytes"]), scratch
        )


def state_input(name: str) -> str:
    """Graph input that takes the state tensor `name`."""
    return f"state.{name}"


def state_output(name: str) -> str:
    """Graph output that gives the state tensor `name` for the next step."""
    return f"next_state.{name}"


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle, by content."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`."""

    model: Mapping[str, Any]
    """The model's configuration, as in its `config.json`."""
    checkpoint_sha256: str
    """Hash of the checkpoint's tensors (names, types, shapes, values): two exports of one
    checkpoint agree in it.
    """
    precision: str
    """Type of weights, activations and state: fp32, fp16 or bf16. Frames and latents are float32 at
    any precision.
    """
    latents: str
    """What the encoder gives: `mean` (D channels) or `moments` (2 D channels: mean, log-variance)."""
    size: tuple[int, int] | None
    """(height, width) if they are fixed in the graphs, None if they are symbolic."""
    opset: int
    parameters: int
    """Trainable parameters of the model."""
    graphs: Mapping[str, GraphSpec]
    """By key: `encoder`, `decoder`, and on request `encoder.direct`, `decoder.direct`."""
    files: Mapping[str, FileRecord]
    """Every file that the graphs need, by name relative to the bundle."""
    producer: Mapping[str, str]
    """Versions of what made the bundle."""
    engines: tuple[Mapping[str, Any], ...] = field(default=())
    """TensorRT engines, see `docs/bundle-format.md`. They do not enter the bundle's identity."""

    @property
    def identity(self) -> str:
        """Hash of everything but the engines. Latents and snapshots name it, so that they are not
        mixed with another bundle's.
        """
        return _identity(self._content())

    def with_engines(self, engines: tuple[Mapping[str, Any], ...]) -> Manifest:
        return replace(self, engines=engines)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self._content(),
            "identity": self.identity,
            "engines": [dict(engine) for engine in self.engines],
        }

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": dict(self.model),
            "checkpoint_sha256": self.checkpoint_sha256,
            "parameters": self.parameters,
            "precision": self.precision,
            "latents": self.latents,
            "size": None if self.size is None else list(self.size),
            "opset": self.opset,
            "graphs": {key: graph.to_dict() for key, graph in self.graphs.items()},
            "files": {
                name: {"sha256": record.sha256, "bytes": record.bytes} for name, record in self.files.items()
            },
            "producer": dict(self.producer),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Raises `BundleError` if the format is another, an entry is missing or of the wrong kind,
        or anything has been changed.
        """
        if data.get("format") != FORMAT:
            raise BundleError(
                f"the manifest's format is {data.get('format')!r}; this version reads {FORMAT!r}; export the"
                " bundle anew"
            )
        try:
            size = data["size"]
            manifest = cls(
                model=data["model"],
                checkpoint_sha256=str(data["checkpoint_sha256"]),
                precision=str(data["precision"]),
                latents=str(data["latents"]),
                size=None if size is None else (int(size[0]), int(size[1])),
                opset=int(data["opset"]),
                parameters=int(data["parameters"]),
                graphs={key: GraphSpec.from_dict(graph) for key, graph in data["graphs"].items()},
                files={
                    name: FileRecord(str(f["sha256"]), int(f["bytes"])) for name, f in data["files"].items()
                },
                producer=data["producer"],
                engines=tuple(data["engines"]),
            )
            content = {key: value for key, value in data.items() if key not in ("identity", "engines")}
            unchanged = data["identity"] == manifest.identity == _identity(content)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BundleError(
                f"the manifest is damaged: {type(error).__name__} {error}; export the bundle anew"
            ) from error
        if not unchanged:
            raise BundleError(
                f"{MANIFEST_NAME} has been changed (its SHA-256 differs); copy the bundle anew, or export it"
                " again"
            )
        manifest._check_names()
        return manifest

    def _check_names(self) -> None:
        missing = [key for key in ("encoder", "decoder") if key not in self.graphs]
        missing += [graph.file for graph in self.graphs.values() if graph.file not in self.files]
        foreign = [name for name in self.files if Path(name).name != name]
        if missing or foreign:
            problems = [f"{', '.join(missing)} missing"] * bool(missing) + [
                f"{', '.join(foreign)} outside of the bundle"
            ] * bool(foreign)
            raise BundleError(f"the manifest is incomplete: {'; '.join(problems)}; export the bundle anew")

    def write(self, bundle: Path) -> None:
        """Writes `manifest.json` to a temporary name, then renames it."""
        temporary = bundle / (MANIFEST_NAME + ".tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(bundle / MANIFEST_NAME)

    @classmethod
    def read(cls, bundle: Path) -> Manifest:
        """Raises `BundleError` if there is no readable manifest in `bundle`."""
        path = bundle / MANIFEST_NAME
        if not path.is_file():
            raise BundleError(
                f"{bundle} is not a bundle: it has no {MANIFEST_NAME}; make one with: wfvae export CHECKPOINT"
                " BUNDLE"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read {path}: {error}; export the bundle anew") from error
        if not isinstance(data, dict):
            raise BundleError(f"cannot read {path}: expected a JSON object; export the bundle anew")
        return cls.from_dict(data)

    def verify_files(self, bundle: Path) -> None:
        """Raises `BundleError` naming every file that is missing or whose content is not what was
        exported.
        """
        problems = []
        for name, record in self.files.items():
            path = bundle / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != record.bytes:
                problems.append(f"{name} has {path.stat().st_size} bytes instead of {record.bytes}")
            elif file_sha256(path) != record.sha256:
                problems.append(f"{name} has been changed (its SHA-256 differs)")
        if problems:
            raise BundleError(
                f"the bundle {bundle} is damaged: {'; '.join(problems)}; copy it anew, or export it again"
            )


def _identity(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path) -> FileRecord:
    """The record of an existing file."""
    return FileRecord(file_sha256(path), path.stat().st_size)
