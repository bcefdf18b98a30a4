"""TensorRT engines of a bundle as data: what they were built for, and where they may run.

Experimental: see the README's table "Status".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, structs

from wfvae.errors import BundleError, InputError
from wfvae.files import locked
from wfvae.spec.frames import DEFAULT_CHUNK, SPATIAL_RATIO
from wfvae.spec.manifest import LOCK_NAME, SHA256, STEP, GraphName, GraphSpec, Manifest, Precision
from wfvae.spec.records import Record, check_fields, read_unchanged
from wfvae.spec.stream import Size, Text, resolve
from wfvae.spec.tensorrt_api import FLAVOURS, Flavour, FlavourName

ENGINES_FOLDER = "engines"
WHOLE_CLIP: Literal["whole clip"] = "whole clip"
"""Name of the profile that is for verification only."""
DIRECT_LATENTS = 3
"""The shortest clip that leaves no tensor without frames inside a direct graph."""


class Span(Record, frozen=True):
    """The sizes that an engine takes along one axis, and the one that it is tuned for."""

    low: Size
    best: Size
    high: Size

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.best <= self.high:
            raise InputError(f"{self} is not a range; expected 1 <= MIN <= OPT <= MAX")

    def __contains__(self, size: int) -> bool:
        return self.low <= size <= self.high

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.best}:{self.high}"

    @classmethod
    def parse(cls, text: str) -> Span:
        """Reads `N`, or `MIN:OPT:MAX`. Raises `InputError`."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise InputError(f"{text!r} is not a range; expected N or MIN:OPT:MAX")
        low, best, high = (int(part) for part in parts * (3 // len(parts)))
        return cls(low, best, high)

    @classmethod
    def of(cls, size: int) -> Span:
        """Returns the span of one size only."""
        return cls(size, size, size)


_MULTIPLES = {"properties": {end: {"multipleOf": SPATIAL_RATIO} for end in ("low", "best", "high")}}
Side = Annotated[Span, Meta(extra_json_schema=_MULTIPLES)]


class BuildSettings(Record, frozen=True):
    """What engines are built for: the options of `wfvae build`."""

    batch: Span = Span(1, 1, 1)
    chunk: Size = DEFAULT_CHUNK
    """Latents per step of the steady stream."""
    height: Side = Span(64, 480, 832)
    """Padded video height."""
    width: Side = Span(64, 832, 832)
    whole_clip: Size | None = None
    """Latents of a whole clip in one step and through the direct graphs, for `wfvae verify`."""
    tf32: bool = False
    """Let fp32 products be rounded to TF32."""
    optimization_level: Annotated[int, Meta(ge=0, le=5)] = 3
    """How long TensorRT searches for fast kernels."""
    workspace: Size | None = None
    """Most bytes of scratch memory that a kernel may use; None leaves it to TensorRT."""

    def __post_init__(self) -> None:
        check_fields(self, InputError)
        for name, span in (("height", self.height), ("width", self.width)):
            if any(size % SPATIAL_RATIO for size in (span.low, span.best, span.high)):
                raise InputError(f"the {name} is {span}; expected multiples of {SPATIAL_RATIO}")

    def command(self, bundle: Path | str, target: Sequence[str] = ()) -> str:
        """Returns the command line that builds such engines, with the options of a target."""
        words = ["wfvae", "build", str(bundle), *target]
        for field in structs.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                option = f"--{field.name.replace('_', '-')}"
                words += [option] if value is True else [option, str(value)]
        return shlex.join(words)


class Profile(Record, frozen=True):
    """One optimisation profile: a range of sizes for every axis that can change."""

    name: Literal["chunk", "short", "whole clip"]
    batch: Span
    latents: Span
    height: Side
    width: Side

    def admits(self, batch: int, latents: int, height: int, width: int) -> bool:
        """Whether the profile takes this input."""
        fits = batch in self.batch and latents in self.latents
        return fits and height in self.height and width in self.width

    @property
    def steady(self) -> bool:
        """Whether it takes one number of latents only."""
        return self.latents.low == self.latents.high

    def shapes(self, graph: GraphSpec) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Returns the (smallest, best, largest) shape of every input, states included."""
        spans = (self.batch, self.latents, self.height, self.width)
        ends = [[getattr(span, end) for span in spans] for end in ("low", "best", "high")]
        low, best, high = (input_shapes(graph, *sizes) for sizes in ends)
        return {name: (low[name], best[name], high[name]) for name in low}


ComputeCapability = Annotated[str, Meta(pattern=r"^[0-9]+\.[0-9]+$")]


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


class Target(Record, frozen=True):
    """What an engine was built with and for, and so where it runs."""

    flavour: FlavourName
    version: Text
    """TensorRT's or TensorRT-RTX's."""
    compute_capabilities: Annotated[tuple[ComputeCapability, ...], Meta(min_length=1)]
    gpu: Text | None = None
    """Name of the only GPU on which a TensorRT engine runs; None for a portable engine."""

    def __str__(self) -> str:
        capabilities = ", ".join(self.compute_capabilities)
        if self.gpu is None:
            return f"{self.title} for GPUs of compute capability {capabilities}"
        return f"{self.title} on {self.gpu} (compute capability {capabilities})"

    @property
    def title(self) -> str:
        """Name and version of the library."""
        return f"{FLAVOURS[self.flavour].title} {self.version}"

    @property
    def slug(self) -> str:
        """The target as part of a file name."""
        capabilities = "-".join(capability.replace(".", "") for capability in self.compute_capabilities)
        text = f"trt{self.version}-{self.gpu or self.flavour}-sm{capabilities}"
        return re.sub(r"[^A-Za-z0-9.]+", "-", text).lower()

    def options(self) -> list[str]:
        """Returns the options of `wfvae build` that choose such a target."""
        flavour = FLAVOURS[self.flavour]
        if not flavour.portable:
            return []
        chosen = self.compute_capabilities != flavour.default
        narrowed = ["--compute-capability", *self.compute_capabilities] if chosen else []
        return ["--flavour", self.flavour, *narrowed]


def portable_target(flavour: Flavour, version: str, compute_capabilities: Sequence[str] = ()) -> Target:
    """Returns the target of portable engines: the given compute capabilities, or the default ones.

    Raises `InputError` if the flavour can't build for one of them.
    """
    unknown = sorted(set(compute_capabilities) - set(flavour.supported), key=float)
    if unknown:
        given, known = ", ".join(unknown), ", ".join(flavour.supported)
        raise InputError(
            f"{flavour.title} can't build for compute capability {given}; expected some of {known}"
            " (for other GPUs, build with TensorRT on the GPU: --flavour tensorrt)"
        )
    chosen = tuple(sorted(set(compute_capabilities), key=float))
    return Target(flavour.name, version, chosen or flavour.default)


class EngineRecord(Record, frozen=True, kw_only=True):
    """An engine's entry in the manifest."""

    file: Annotated[str, Meta(pattern=r"^engines/(encoder|decoder)(\.direct)?-[0-9a-f]{16}\.engine$")] = ""
    """The engine's file relative to the bundle, computed here."""
    key: SHA256 = ""
    """Hash of graph, precision, profiles, settings and target, computed here."""
    graph: GraphName
    """Key of the graph that it was built from."""
    graph_sha256: SHA256
    """Hash of the graph's file and its weights, see `graph_sha256`."""
    precision: Precision
    settings: BuildSettings
    profiles: Annotated[tuple[Profile, ...], Meta(min_length=1, max_length=3)]
    """In the engine's order."""
    target: Target
    sha256: SHA256
    bytes: Size

    def __post_init__(self) -> None:
        content = {
            "graph": self.graph_sha256,
            "precision": self.precision,
            "tf32": self.settings.tf32,
            "optimization_level": self.settings.optimization_level,
            "workspace": self.settings.workspace,
            "profiles": [profile.to_dict() for profile in self.profiles],
            "target": self.target.to_dict(),
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        structs.force_setattr(self, "key", key)
        structs.force_setattr(self, "file", f"{ENGINES_FOLDER}/{self.graph}-{key[:16]}.engine")

    def command(self, bundle: Path | str) -> str:
        """Returns the command line that builds this engine."""
        return self.settings.command(bundle, self.target.options())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineRecord:
        """Raises `BundleError` if the entry is damaged or names a file not the engine's."""

        def damaged(problem: str) -> BundleError:
            entry = f"the manifest's entry of {data.get('file')} is damaged"
            return BundleError(f"{entry} ({problem}); build the engines anew: wfvae build BUNDLE")

        return read_unchanged(cls, data, damaged)


def read_engine(record: EngineRecord, bundle: Path) -> bytes:
    """Returns the engine's content. Raises `BundleError` unless it is unchanged: it is code."""
    again = f"build it again: {record.command(bundle)}"
    try:
        content = (bundle / record.file).read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {record.file}: {error.strerror}; {again}") from error
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleError(f"{record.file} has been changed (its SHA-256 differs); {again}")
    return content


def graph_sha256(manifest: Manifest, graph: str) -> str:
    """Hash of a graph's file and of the weights it refers to, from the manifest's records."""
    weights = sorted(name for name in manifest.files if not name.endswith(".onnx"))
    names = [manifest.graphs[graph].file, *weights]
    content = "".join(f"{name}:{manifest.files[name].sha256};" for name in names)
    return hashlib.sha256(content.encode()).hexdigest()


def fit_settings(settings: BuildSettings, manifest: Manifest) -> BuildSettings:
    """Returns the settings with the size that a bundle of fixed size has."""
    if manifest.size is None:
        return settings
    height, width = (Span.of(side) for side in manifest.size)
    return structs.replace(settings, height=height, width=width)


def profiles_for(settings: BuildSettings, graph: GraphSpec) -> tuple[Profile, ...]:
    """Returns the profiles of an engine for `graph`.

    A step graph has one for the steady chunk, one for shorter ones (first pushes, tail, drain), and
    on request one for whole clips. A direct graph has only the last.
    """
    batch, chunk, sides = settings.batch, settings.chunk, (settings.height, settings.width)
    found = []
    if graph.kind == STEP:
        found.append(Profile("chunk", batch, Span.of(chunk), *sides))
        if chunk > 1:
            found.append(Profile("short", batch, Span(1, 1, chunk - 1), *sides))
    if settings.whole_clip is not None:
        # Verification runs up to two streams in one batch. More of them, of whole clips, could have
        # more values than a tensor may.
        shortest = 1 if graph.kind == STEP else DIRECT_LATENTS
        longest = max(settings.whole_clip, shortest)
        found.append(Profile(WHOLE_CLIP, Span(1, 1, 2), Span(shortest, longest, longest), *sides))
    return tuple(found)


def input_shapes(
    graph: GraphSpec, batch: int, latents: int, height: int, width: int
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every input, states included, for `latents` per step or whole clip."""
    frames = graph.ratio * latents if graph.kind == STEP else 1 + graph.ratio * (latents - 1)
    sizes = {"batch": batch, "latents": latents, "frames": frames, "height": height, "width": width}
    shapes = {tensor.name: resolve(tensor.shape, **sizes) for tensor in graph.inputs}
    return shapes | {state.input: resolve(state.shape, **sizes) for state in graph.states}


def engine_records(manifest: Manifest) -> list[EngineRecord]:
    """Returns all engines that the manifest lists. Raises `BundleError` if an entry is damaged."""
    return [EngineRecord.from_dict(entry) for entry in manifest.engines]


def sound_records(manifest: Manifest) -> list[EngineRecord]:
    """Returns the engines whose entries are not damaged, which is what a new build goes by."""
    found = []
    for entry in manifest.engines:
        with contextlib.suppress(BundleError):
            found.append(EngineRecord.from_dict(entry))
    return found


def list_engine(bundle: Path, record: EngineRecord) -> None:
    """Adds an engine to the manifest; entries of the same file and damaged ones are dropped.

    Builds that run at the same time wait for each other, for a minute at most.
    """
    busy = f"another process is changing the manifest of {bundle}; wait for it, or end it"
    with locked(bundle / LOCK_NAME, busy, wait=60):
        manifest = Manifest.read(bundle)
        records = [other for other in sound_records(manifest) if other.file != record.file]
        listed = tuple(entry.to_dict() for entry in [*records, record])
        structs.replace(manifest, engines=listed).write(bundle)


def find_engine(
    manifest: Manifest, bundle: Path, graph: str, gpu: Gpu, versions: Mapping[FlavourName, str], tf32: bool
) -> EngineRecord:
    """Returns the newest engine of `graph` that may run here, of the first flavour that has one.

    Args:
        versions: of the installed flavours.

    Raises:
        BundleError: there is none; with what differs and the command that builds one.
    """
    of_graph = [record for record in engine_records(manifest) if record.graph == graph]
    if not of_graph:
        direct = manifest.graphs[graph].kind != STEP
        command = BuildSettings(whole_clip=8 if direct else None, tf32=tf32).command(bundle)
        raise BundleError(f"the bundle has no TensorRT engine for {graph}; build it: {command}")
    for flavour in FLAVOURS:
        for record in reversed(of_graph):
            if record.target.flavour == flavour and not _problems(record, manifest, gpu, versions, tf32):
                return record
    newest = of_graph[-1]
    problems = "; ".join(_problems(newest, manifest, gpu, versions, tf32))
    command = structs.replace(newest.settings, tf32=tf32).command(bundle, _fitting(newest.target, gpu))
    title = FLAVOURS[newest.target.flavour].title
    text = f"the bundle's {title} engine for {graph} can't run here: {problems}"
    raise BundleError(f"{text}; build one: {command}")


def _problems(
    record: EngineRecord, manifest: Manifest, gpu: Gpu, versions: Mapping[FlavourName, str], tf32: bool
) -> list[str]:
    """Returns why an engine may not run on a GPU with these versions."""
    target, flavour = record.target, FLAVOURS[record.target.flavour]
    version = versions.get(flavour.name)
    problems = []
    if version is None:
        problems.append(f"{flavour.title} is not installed (pip install 'wfvae[{flavour.extra}]')")
    elif version != target.version:
        problems.append(f"it was built with {target.title}, and this is {flavour.title} {version}")
    if gpu.compute_capability not in target.compute_capabilities or target.gpu not in (None, gpu.name):
        problems.append(f"it was built with {target}, and this is {gpu}")
    if record.graph_sha256 != graph_sha256(manifest, record.graph) or record.precision != manifest.precision:
        problems.append("it was built from another graph or other weights")
    if record.precision == "fp32" and record.settings.tf32 != tf32:
        built, wanted = ("on" if on else "off" for on in (record.settings.tf32, tf32))
        problems.append(f"it was built with TF32 {built}, and {wanted} was asked for")
    return problems


def _fitting(target: Target, gpu: Gpu) -> list[str]:
    """Returns the options of `wfvae build` for the nearest target that fits a GPU."""
    flavour, capability = FLAVOURS[target.flavour], gpu.compute_capability
    if not flavour.portable or capability in target.compute_capabilities:
        return target.options()
    if capability not in flavour.supported:
        return ["--flavour", "tensorrt"]
    default = flavour.default if capability in flavour.default else (capability,)
    return structs.replace(target, compute_capabilities=default).options()
