"""TensorRT engines of a bundle, as data: what they were built for, where they may run, and how to
build them again. No torch.

Nothing here has ever run on a GPU: TensorRT's libraries are not to be had on the machines that this
was written on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from wfvae.errors import BundleError, InputError
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import STEP, GraphSpec, Manifest
from wfvae.spec.stream import Dim, resolve_dim

ENGINES_FOLDER = "engines"
WHOLE_CLIP = "whole clip"
"""Name of the profile that is for verification only."""
DIRECT_LATENTS = 3
"""The shortest clip that leaves no tensor without frames inside a direct graph."""


@dataclass(frozen=True)
class Span:
    """The sizes that an engine takes along one axis, and the one that it is tuned for."""

    low: int
    best: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.best <= self.high:
            raise InputError(f"{self} is not a range; expected 1 <= MIN <= OPT <= MAX")

    def __contains__(self, size: int) -> bool:
        return self.low <= size <= self.high

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.best}:{self.high}"

    @classmethod
    def parse(cls, text: str) -> Span:
        """`N`, or `MIN:OPT:MAX`. Raises `InputError`."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
            raise InputError(f"{text!r} is not a range; expected N or MIN:OPT:MAX")
        low, best, high = (int(part) for part in parts * (3 // len(parts)))
        return cls(low, best, high)

    @classmethod
    def of(cls, size: int) -> Span:
        """One size only."""
        return cls(size, size, size)


@dataclass(frozen=True)
class BuildSettings:
    """What engines are built for: the options of `wfvae build`."""

    batch: Span = Span(1, 1, 1)
    chunk: int = 4
    """Latents per step of the steady stream."""
    height: Span = Span(64, 480, 832)
    """Padded video height."""
    width: Span = Span(64, 832, 832)
    whole_clip: int | None = None
    """Latents of a whole clip in one step and through the direct graphs, which `wfvae verify`
    wants.
    """
    tf32: bool = False
    """Let fp32 products be rounded to TF32."""
    optimization_level: int = 3
    """0 to 5: how long TensorRT searches for fast kernels."""
    workspace: int | None = None
    """Most bytes of scratch memory that a kernel may use; None leaves it to TensorRT."""

    def __post_init__(self) -> None:
        if self.chunk < 1 or (self.whole_clip is not None and self.whole_clip < 1):
            raise InputError(
                f"chunk is {self.chunk} and whole clip {self.whole_clip}; expected at least 1 latent"
            )
        if not 0 <= self.optimization_level <= 5:
            raise InputError(f"the optimisation level is {self.optimization_level}; expected 0 to 5")
        for name, span in (("height", self.height), ("width", self.width)):
            if any(size % SPATIAL_RATIO for size in (span.low, span.best, span.high)):
                raise InputError(f"the {name} is {span}; expected multiples of {SPATIAL_RATIO}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BuildSettings:
        spans = {name: Span(**data[name]) for name in ("batch", "height", "width")}
        return cls(**{**data, **spans})

    def command(self, bundle: Path | str) -> str:
        """The command line that builds such engines."""
        words = ["wfvae", "build", str(bundle)]
        for name, value in asdict(self).items():
            if value != asdict(_DEFAULTS)[name]:
                attribute = getattr(self, name)
                words += [f"--{name.replace('_', '-')}"] + ([] if attribute is True else [str(attribute)])
        return shlex.join(words)


_DEFAULTS = BuildSettings()


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: a range of sizes for every axis that can change."""

    name: str
    batch: Span
    latents: Span
    height: Span
    width: Span

    def admits(self, batch: int, latents: int, height: int, width: int) -> bool:
        """Whether the profile takes this input."""
        return (
            batch in self.batch and latents in self.latents and height in self.height and width in self.width
        )

    @property
    def steady(self) -> bool:
        """Whether it takes one number of latents only."""
        return self.latents.low == self.latents.high

    def shapes(self, graph: GraphSpec) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """(smallest, best, largest) shape of every input of `graph`, states included."""
        spans = (self.batch, self.latents, self.height, self.width)
        low, best, high = (
            input_shapes(graph, *(getattr(span, end) for span in spans)) for end in ("low", "best", "high")
        )
        return {name: (low[name], best[name], high[name]) for name in low}


@dataclass(frozen=True)
class Target:
    """Where an engine was built, and so where it runs."""

    tensorrt: str
    """TensorRT's version."""
    gpu: str
    """The GPU's name."""
    compute_capability: str
    """Such as 9.0."""

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu} (compute capability {self.compute_capability})"

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(
            r"[^A-Za-z0-9.]+",
            "-",
            f"trt{self.tensorrt}-{self.gpu}-sm{self.compute_capability.replace('.', '')}",
        ).lower()


@dataclass(frozen=True)
class EngineRecord:
    """An engine's entry in the manifest."""

    graph: str
    """Key of the graph that it was built from."""
    graph_sha256: str
    """Hash of the graph's file and its weights, see `graph_sha256`."""
    precision: str
    settings: BuildSettings
    profiles: tuple[Profile, ...]
    """In the engine's order."""
    target: Target
    sha256: str
    """Of the engine's file."""
    bytes: int

    @property
    def key(self) -> str:
        """What the engine is found by: hash of graph, precision, profiles, settings and target."""
        return engine_key(self.graph_sha256, self.precision, self.settings, self.profiles, self.target)

    @property
    def file(self) -> str:
        """The engine's file, relative to the bundle."""
        return engine_file(self.graph, self.key)

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "key": self.key, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineRecord:
        """Raises `BundleError` if the entry is damaged, or names a file that is not the engine's."""
        try:
            record = cls(
                graph=str(data["graph"]),
                graph_sha256=str(data["graph_sha256"]),
                precision=str(data["precision"]),
                settings=BuildSettings.from_dict(data["settings"]),
                profiles=tuple(
                    Profile(
                        str(p["name"]), *(Span(**p[axis]) for axis in ("batch", "latents", "height", "width"))
                    )
                    for p in data["profiles"]
                ),
                target=Target(**data["target"]),
                sha256=str(data["sha256"]),
                bytes=int(data["bytes"]),
            )
            unchanged = data["key"] == record.key and data["file"] == record.file
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"an engine's entry in the manifest is damaged ({type(error).__name__} {error}); build the"
                " engines anew"
            ) from error
        if not unchanged or PurePosixPath(record.file).parent != PurePosixPath(ENGINES_FOLDER):
            raise BundleError(
                f"the manifest's entry of {data['file']} has been changed; build the engines anew: wfvae"
                " build BUNDLE"
            )
        return record


def read_engine(record: EngineRecord, bundle: Path) -> bytes:
    """The engine's content. Raises `BundleError` unless it is what was built: an engine is code,
    and is never loaded unchecked.
    """
    again = f"build it again: {record.settings.command(bundle)}"
    try:
        content = (bundle / record.file).read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {record.file}: {error.strerror}; {again}") from error
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleError(f"{record.file} has been changed (its SHA-256 differs); {again}")
    return content


def engine_file(graph: str, key: str) -> str:
    """The file of an engine, relative to the bundle."""
    return f"{ENGINES_FOLDER}/{graph}-{key[:16]}.engine"


def engine_key(
    graph_hash: str, precision: str, settings: BuildSettings, profiles: tuple[Profile, ...], target: Target
) -> str:
    """Hash of everything that an engine depends on."""
    content = {
        "graph": graph_hash,
        "precision": precision,
        "tf32": settings.tf32,
        "optimization_level": settings.optimization_level,
        "workspace": settings.workspace,
        "profiles": [asdict(profile) for profile in profiles],
        "target": asdict(target),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def graph_sha256(manifest: Manifest, graph: str) -> str:
    """Hash of a graph's file and of the weights it refers to, from the manifest's records."""
    names = [
        manifest.graphs[graph].file,
        *sorted(name for name in manifest.files if not name.endswith(".onnx")),
    ]
    content = "".join(f"{name}:{manifest.files[name].sha256};" for name in names)
    return hashlib.sha256(content.encode()).hexdigest()


def fit_settings(settings: BuildSettings, manifest: Manifest) -> BuildSettings:
    """The settings with the size that a bundle of fixed size has."""
    if manifest.size is None:
        return settings
    height, width = (Span.of(side) for side in manifest.size)
    return BuildSettings(**{**vars(settings), "height": height, "width": width})


def profiles_for(settings: BuildSettings, graph: GraphSpec) -> tuple[Profile, ...]:
    """The profiles of an engine for `graph`.

    A step graph has one for the steady chunk and one for what is shorter (a stream's start in small
    pushes, its tail, its drain), and on request one for whole clips. A direct graph has only the
    last.
    """
    axes = {"batch": settings.batch, "height": settings.height, "width": settings.width}
    whole = settings.whole_clip
    longest = whole or 0
    # Verification runs up to two streams in one batch. More of them, of whole clips, could have
    # more values than a tensor may.
    clip = (
        []
        if whole is None
        else [Profile(WHOLE_CLIP, latents=Span(1, whole, whole), **{**axes, "batch": Span(1, 1, 2)})]
    )
    if graph.kind != STEP:
        return tuple(
            replace(
                profile,
                latents=Span(DIRECT_LATENTS, max(longest, DIRECT_LATENTS), max(longest, DIRECT_LATENTS)),
            )
            for profile in clip
        )
    steady = Profile("chunk", latents=Span.of(settings.chunk), **axes)
    short = [Profile("short", latents=Span(1, 1, settings.chunk - 1), **axes)] if settings.chunk > 1 else []
    return (steady, *short, *clip)


def input_shapes(
    graph: GraphSpec, batch: int, latents: int, height: int, width: int
) -> dict[str, tuple[int, ...]]:
    """The shape of every input of a graph, states included, for this batch, number of latents and
    padded video size.
    """
    ratio = graph.stream.ratio
    frames = ratio * latents if graph.kind == STEP else 1 + ratio * (latents - 1)
    sizes = {"latents": latents, "frames": frames}

    def resolve(shape: tuple[Dim, ...]) -> tuple[int, ...]:
        return tuple(sizes[dim] if dim in sizes else resolve_dim(dim, batch, height, width) for dim in shape)

    shapes = {tensor.name: resolve(tensor.shape) for tensor in graph.inputs}
    return shapes | {f"state.{state.name}": resolve(state.shape) for state in graph.states}


def engine_records(manifest: Manifest) -> list[EngineRecord]:
    """All engines that the manifest lists. Raises `BundleError` if an entry is damaged."""
    return [EngineRecord.from_dict(entry) for entry in manifest.engines]


def sound_entries(manifest: Manifest) -> list[tuple[EngineRecord, Mapping[str, Any]]]:
    """The engines whose entries are not damaged, which is what a new build goes by."""
    found = []
    for entry in manifest.engines:
        with contextlib.suppress(BundleError):
            found.append((EngineRecord.from_dict(entry), entry))
    return found


def find_engine(manifest: Manifest, bundle: Path, graph: str, target: Target, tf32: bool) -> EngineRecord:
    """The newest engine of `graph` that may run on `target`.

    Raises `BundleError` saying what there is, what is wanted and the command that builds it: an
    engine of another GPU or version of TensorRT does not load at best, and one of another graph
    would compute something else.
    """
    of_graph = [record for record in engine_records(manifest) if record.graph == graph]
    if not of_graph:
        direct = manifest.graphs[graph].kind != STEP
        command = BuildSettings(whole_clip=8 if direct else None, tf32=tf32).command(bundle)
        raise BundleError(f"the bundle has no TensorRT engine for {graph}; build it: {command}")
    problems: list[str] = []
    for record in reversed(of_graph):
        problems = _differences(record, manifest, target, tf32)
        if not problems:
            return record
    nearest = of_graph[-1].settings
    command = BuildSettings(**{**vars(nearest), "tf32": tf32}).command(bundle)
    raise BundleError(
        f"the bundle's TensorRT engine for {graph} can't run here: {'; '.join(problems)}; build one:"
        f" {command}"
    )


def _differences(record: EngineRecord, manifest: Manifest, target: Target, tf32: bool) -> list[str]:
    problems = []
    if record.target != target:
        problems.append(f"it was built with {record.target}, and this is {target}")
    if record.graph_sha256 != graph_sha256(manifest, record.graph) or record.precision != manifest.precision:
        problems.append("it was built from another graph or other weights")
    if record.precision == "fp32" and record.settings.tf32 != tf32:
        problems.append(
            f"it was built with TF32 {'on' if record.settings.tf32 else 'off'}, and {'on' if tf32 else 'off'}"
            " was asked for"
        )
    return problems
