"""The bundle's manifest: everything a client needs to drive the graphs.

The format is specified in `docs/bundle-format.md`; its JSON Schema is generated from these classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta
from msgspec.structs import force_setattr

from wfvae.errors import BundleError
from wfvae.files import write_whole
from wfvae.spec.bounded import read_json
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.records import Record, read_unchanged
from wfvae.spec.stream import LARGEST_SIDE, Direction, Shape, Size, StateSpec, StreamSpec, Text

FORMAT: Final = "wfvae-bundle/1"
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.bin"
LOCK_NAME = ".lock"
"""Held while the manifest's engines or the tuning are changed."""
METADATA_KEY = "wfvae.graph"
"""Key of the ONNX metadata entry that repeats a graph's part of the manifest."""

OPSETS = range(18, 25)
"""Versions of ONNX's operators that graphs can have."""
MOST_TERMS, MOST_FACTORS, LARGEST_FACTOR = 256, 16, 2**48
"""In `scratch_bytes`: sums, and products in each; factors of a product; the number among these."""
_SHOWN_PROBLEMS = 4
STEP: Final = "step"
DIRECT: Final = "direct"
Kind = Literal["step", "direct"]
Count = Annotated[int, Meta(ge=0)]
SHA256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
GraphName = Annotated[str, Meta(pattern=r"^(encoder|decoder)(\.direct)?$")]
Precision = Literal["fp32", "fp16", "bf16"]
Factor = int | Annotated[str, Meta(pattern="^(batch|latents|groups|height/8|width/8)$")]
FIRST_IS_INTEGER = {"prefixItems": [{"type": "integer"}]}
Product = Annotated[tuple[Factor, ...], Meta(min_length=1, extra_json_schema=FIRST_IS_INTEGER)]
PaddedSide = Annotated[int, Meta(ge=SPATIAL_RATIO, multiple_of=SPATIAL_RATIO)]


class TensorSpec(Record, frozen=True):
    """One input or output of a graph, other than state."""

    name: Annotated[str, Meta(pattern="^(frames|latents|start|end)$")]
    dtype: Literal["float32", "bool"]
    shape: Shape
    """Sizes, or the symbols batch, frames, latents, height, width, height/k, width/k."""
    meaning: Text


class GraphSpec(Record, frozen=True, kw_only=True):
    """One ONNX graph.

    A `step` graph advances streams and carries state; a `direct` graph takes a whole clip.
    """

    file: FileName
    kind: Kind
    direction: Direction
    ratio: Literal[4, 8]
    chunk_multiple: Size = 1
    """This, `lead_frames`, `drop_frames` and `drain` follow from the stream, see `StreamSpec`."""
    lead_frames: Count = 0
    delay_frames: Count
    drop_frames: Count = 0
    drain: bool = False
    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=3)]
    """Without the state tensors."""
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=1)]
    """Without the state tensors."""
    weights_bytes: Count = 0
    """Bytes of the weights that this graph reads."""
    scratch_bytes: tuple[Annotated[tuple[Product, ...], Meta(min_length=1)], ...] = ()
    """Bytes of activations alive at once: the largest of these sums of products. Each product is a
    factor and symbols among batch, latents, height/8, width/8."""
    states: tuple[StateSpec, ...] = ()
    """State tensors of a step graph; a direct graph has none."""

    def __post_init__(self) -> None:
        stream = self.stream
        force_setattr(self, "chunk_multiple", stream.chunk_multiple)
        force_setattr(self, "lead_frames", stream.lead)
        force_setattr(self, "drop_frames", stream.drop)
        force_setattr(self, "drain", stream.needs_drain)
        if (self.direction == "encoder" and self.delay_frames) or (self.kind == DIRECT and self.states):
            raise BundleError(f"{self.file} has a delay or state tensors, which a graph of its kind has not")

    @property
    def stream(self) -> StreamSpec:
        """The rules of the graph's stream."""
        return StreamSpec(self.direction, self.ratio, self.delay_frames, self.states)

    @property
    def has_end(self) -> bool:
        """Whether the graph takes the `end` flag."""
        return any(tensor.name == "end" for tensor in self.inputs)

    def problems(self, channels: int) -> Iterator[str]:
        """Yields what cannot be of a graph whose latents have so many channels."""
        if self.delay_frames >= self.ratio:
            yield f"delay_frames is {self.delay_frames}; expected less than the ratio {self.ratio}"
        sides = (f"height/{SPATIAL_RATIO}", f"width/{SPATIAL_RATIO}")
        layouts: dict[str, tuple[str, Shape]] = {
            "frames": ("float32", ("batch", "frames", 3, "height", "width")),
            "latents": ("float32", ("batch", "latents", channels, *sides)),
            "start": ("bool", ("batch",)),
            "end": ("bool", ("batch",)),
        }
        names = ["frames", "latents"] if self.direction == "encoder" else ["latents", "frames"]
        flags = ["start", *(["end"] if self.drain else [])] if self.kind == STEP else []
        for part, tensors, expected in (
            ("inputs", self.inputs, [names[0], *flags]),
            ("outputs", self.outputs, names[1:]),
        ):
            if (found := [tensor.name for tensor in tensors]) != expected:
                yield f"{part} are {', '.join(found)}; expected {', '.join(expected)}"
            for tensor in tensors:
                given, wanted = (tensor.dtype, tensor.shape), layouts.get(tensor.name)
                if given != wanted:
                    yield f"{part} has {tensor.name} of {given}; expected {wanted}"
        if len({state.name for state in self.states}) != len(self.states):
            yield "states has two of one name"
        for state in self.states:
            yield from (f"states has {state.name[:80]!r} {problem}" for problem in state.problems())
        yield from self._scratch_problems()

    def _scratch_problems(self) -> Iterator[str]:
        symbols = {"batch", "latents", "height/8", "width/8", *(["groups"] if self.kind == DIRECT else [])}
        if max(map(len, (self.scratch_bytes, *self.scratch_bytes))) > MOST_TERMS:
            yield f"scratch_bytes has more than {MOST_TERMS} sums, or one of them more products"
            return
        for product in (product for terms in self.scratch_bytes for product in terms):
            numbers = [factor for factor in product if isinstance(factor, int)]
            if len(product) > MOST_FACTORS or len(numbers) > 1:
                yield f"scratch_bytes has a product of {len(product)} factors, {len(numbers)} of them numbers"
            elif any(not 0 <= number <= LARGEST_FACTOR for number in numbers):
                yield f"scratch_bytes has the factor {numbers[0]}; expected 0..{LARGEST_FACTOR}"
            elif not symbols.issuperset(factor for factor in product if isinstance(factor, str)):
                yield f"scratch_bytes has {product}; expected the symbols {', '.join(sorted(symbols))}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GraphSpec:
        """Reads a graph's entry of a manifest. Raises `BundleError`."""
        return read_unchanged(cls, data, _damaged)


class FileRecord(Record, frozen=True):
    """A file of the bundle, by content."""

    sha256: SHA256
    bytes: Count


class Manifest(Record, frozen=True, kw_only=True):
    """The content of `manifest.json`."""

    format: Literal["wfvae-bundle/1"] = FORMAT
    model: Annotated[Mapping[str, Any], Meta(extra_json_schema={"required": ["latent_dim"]})]
    """The model's configuration, as in its `config.json`. No client needs it to run the graphs."""
    checkpoint_sha256: SHA256
    """Hash of the checkpoint's tensors (names, types, shapes, values), the same in all exports."""
    parameters: Size
    """Trainable parameters of the model."""
    precision: Precision
    """Type of weights, activations and state. Frames and latents are float32 at any precision."""
    latents: Literal["mean", "moments"]
    """The encoder's output: `mean` (D channels) or `moments` (2 D channels: mean, log-variance)."""
    size: tuple[PaddedSide, PaddedSide] | None
    """(height, width) if they are fixed in the graphs, None if they are symbolic."""
    opset: Annotated[int, Meta(ge=OPSETS.start, le=OPSETS.stop - 1)]
    graphs: Annotated[
        Mapping[GraphName, GraphSpec], Meta(extra_json_schema={"required": ["encoder", "decoder"]})
    ]
    files: Annotated[Mapping[FileName, FileRecord], Meta(extra_json_schema={"required": [WEIGHTS_NAME]})]
    """Every file that the graphs need, by name relative to the bundle."""
    producer: Mapping[str, str]
    """Versions of the packages that made the bundle."""
    identity: SHA256 = ""
    """Hash of everything but the engines, computed here. Latents and snapshots refer to it."""
    engines: tuple[Mapping[str, Any], ...] = ()
    """TensorRT engines, read by `wfvae.spec.tensorrt_engines`."""

    def __post_init__(self) -> None:
        content = self.to_dict()
        del content["identity"], content["engines"]
        force_setattr(self, "identity", json_sha256(content))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Raises `BundleError` if the format is another, an entry wrong, or something changed."""
        if data.get("format") != FORMAT:
            problem = f"the manifest's format is {data.get('format')!r}; this version reads {FORMAT!r}"
            raise BundleError(f"{problem}; export the bundle anew")
        manifest = read_unchanged(cls, data, _damaged)
        problems = [f"{key} is missing" for key in ("encoder", "decoder") if key not in manifest.graphs]
        for key, graph in manifest.graphs.items():
            if graph.file not in manifest.files:
                problems.append(f"{graph.file} is missing")
            if key != graph.direction + ("" if graph.kind == STEP else f".{DIRECT}"):
                problems.append(f"{key} is the {graph.kind} graph of the {graph.direction}")
            if graph.kind == STEP and not graph.states:
                problems.append(f"the states of {key} are missing")
        if not problems:
            problems = list(manifest._contradictions())
        if problems:
            shown = "; ".join(problems[:_SHOWN_PROBLEMS])
            raise BundleError(f"the manifest is incomplete or wrong: {shown}; export the bundle anew")
        return manifest

    def _contradictions(self) -> Iterator[str]:
        """Yields what no graph can be, or what two entries say differently."""
        if self.size is not None and max(self.size) > LARGEST_SIDE:
            yield f"size is {self.size}; expected sides of at most {LARGEST_SIDE}"
        channels = self.model.get("latent_dim")
        if type(channels) is not int or not 1 <= channels <= LARGEST_SIDE:
            yield f"model.latent_dim is {channels!r}; expected an integer in 1..{LARGEST_SIDE}"
            return
        for key in ("scale", "shift"):
            factors: Any = self.model.get(key)
            known = isinstance(factors, list) and all(type(value) in (int, float) for value in factors)
            # The published 16-channel model lists four equal numbers.
            if not known or (len(factors) != channels and len(set(factors)) != 1):
                yield f"model.{key} is no list of one number for all or each of {channels} channels"
        first = self.graphs["encoder"]
        for key, graph in self.graphs.items():
            if graph.ratio != first.ratio:
                yield f"{key}.ratio is {graph.ratio}, that of the encoder {first.ratio}"
            if graph.delay_frames != self.graphs[graph.direction].delay_frames:
                yield f"{key}.delay_frames is not that of the {graph.direction}"
            moments = graph.direction == "encoder" and self.latents == "moments"
            yield from (f"{key}.{problem}" for problem in graph.problems(channels * (2 if moments else 1)))

    def write(self, bundle: Path) -> None:
        """Writes `manifest.json` atomically. Raises `ResourceError` if that fails."""
        write_whole(bundle / MANIFEST_NAME, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def read(cls, bundle: Path) -> Manifest:
        """Reads `manifest.json`. Raises `BundleError` if `bundle` has no whole one."""
        path = bundle / MANIFEST_NAME

        def unreadable(problem: str) -> BundleError:
            return BundleError(f"cannot read {path}: {problem}; export the bundle anew")

        if not path.is_file():
            problem = f"{bundle} is not a bundle: it has no {MANIFEST_NAME}"
            raise BundleError(f"{problem}; make one with: wfvae export CHECKPOINT BUNDLE")
        return cls.from_dict(read_json(path, unreadable))

    def verify_files(self, bundle: Path, contents: Collection[str] | None = None) -> None:
        """Raises `BundleError` naming every file that is missing or was changed.

        `contents` names the files that are read, by default all; of others the size is compared.
        """
        problems = []
        for name, record in self.files.items():
            path = bundle / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != record.bytes:
                problems.append(f"{name} has {path.stat().st_size} bytes instead of {record.bytes}")
            elif (contents is None or name in contents) and file_sha256(path) != record.sha256:
                problems.append(f"{name} has been changed (its SHA-256 differs)")
        if problems:
            damage = "; ".join(problems)
            raise BundleError(f"the bundle {bundle} is damaged: {damage}; copy it anew, or export it again")


def _damaged(problem: str) -> BundleError:
    return BundleError(f"the manifest is damaged: {problem}; export the bundle anew")


def json_sha256(content: Mapping[str, Any]) -> str:
    """SHA-256 of an object as JSON, with keys sorted and no white space."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path) -> FileRecord:
    """Returns the record of an existing file."""
    return FileRecord(file_sha256(path), path.stat().st_size)
