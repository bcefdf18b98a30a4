"""Checkpoint to bundle: graphs, weights and manifest, written to a temporary directory that is
renamed when complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import onnx
import torch
from msgspec.structs import replace

from wfvae.errors import BundleError
from wfvae.export.recorder.graph import trace
from wfvae.export.recorder.recording import FilterStore
from wfvae.export.weights import state_dict_sha256, store_constants
from wfvae.model.vae import WFVAE
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import (
    DIRECT,
    METADATA_KEY,
    STEP,
    WEIGHTS_NAME,
    GraphSpec,
    Kind,
    Manifest,
    Precision,
    TensorSpec,
    record_file,
)
from wfvae.spec.stream import Dim, Direction

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPSETS = range(18, 25)
DEFAULT_OPSET = 20
BF16_OPSET = 22
"""The first opset whose Conv takes bfloat16."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export."""

    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    """Fixed (height, width), multiples of 8; None leaves them symbolic."""
    latents: Literal["mean", "moments"] = "mean"
    """What the encoder graph gives."""
    opset: int | None = None
    """Version of ONNX's operators; None takes 20, and 22 for bf16."""
    convolutions: Literal["minimal", "plain"] = "minimal"
    """`minimal`: in fp32, fewer multiplications (`wfvae.export.forms.minimal_filtering`,
    `wfvae.export.forms.subpixel`); `plain`: as in the network.
    """
    direct: bool = False
    """Also write the whole-clip graphs without state, for verification."""

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise BundleError(f"precision is {self.precision!r}; expected one of {', '.join(DTYPES)}")
        if self.latents not in ("mean", "moments"):
            raise BundleError(f"latents is {self.latents!r}; expected mean or moments")
        if self.convolutions not in ("minimal", "plain"):
            raise BundleError(f"convolutions is {self.convolutions!r}; expected minimal or plain")
        if self.opset_version not in OPSETS:
            raise BundleError(f"opset is {self.opset}; expected {OPSETS.start} to {OPSETS.stop - 1}")
        if self.precision == "bf16" and self.opset_version < BF16_OPSET:
            raise BundleError(
                f"opset is {self.opset}; expected at least {BF16_OPSET} for bf16, which earlier convolutions"
                " do not take"
            )
        if self.size is not None and any(side < SPATIAL_RATIO or side % SPATIAL_RATIO for side in self.size):
            raise BundleError(
                f"size is {self.size[0]}x{self.size[1]}; expected multiples of {SPATIAL_RATIO}, or dynamic"
            )

    @property
    def forms(self) -> str:
        """Key of `wfvae.export.forms.table.FORMS`.

        Half precision is always plain: it has no bits to spare for sums of frames.
        """
        return self.convolutions if self.precision == "fp32" else "plain"

    @property
    def opset_version(self) -> int:
        """The opset that is exported."""
        return (
            self.opset
            if self.opset is not None
            else BF16_OPSET
            if self.precision == "bf16"
            else DEFAULT_OPSET
        )


def graph_key(direction: Direction, kind: Kind) -> str:
    """A graph's key in the manifest; its file is the key with `.onnx`."""
    return direction if kind == STEP else f"{direction}.{kind}"


def export_bundle(
    model: WFVAE,
    destination: str | Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> Manifest:
    """Writes a bundle.

    Args:
        model: any model that can be streamed; it is converted to the precision asked for (in
            place).
        destination: the bundle's directory.
        overwrite: replace an existing bundle (never a directory that is not one).
        progress: called with the name of each stage as it begins.

    Raises:
        StreamingError: the model cannot be streamed, or its state would change size from chunk to
            chunk.
        BundleError: wrong options, or the destination cannot be written.
    """
    options = options or ExportOptions()
    destination = Path(destination)
    _check_destination(destination, overwrite)
    checkpoint = state_dict_sha256(model.state_dict())
    model = model.to(device="cpu", dtype=DTYPES[options.precision]).eval()
    graphs = _graphs(model, options)

    building, former = (
        destination.with_name(f".{destination.name}.{os.getpid()}.{end}") for end in ("tmp", "old")
    )
    try:
        building.mkdir(parents=True)
        traced = {}
        filters: FilterStore = {}
        for key, graph in list(graphs.items()):
            progress(f"tracing {key}")
            traced[key] = trace(
                model,
                graph,
                mean_only=options.latents == "mean",
                size=options.size,
                opset=options.opset_version,
                convolutions=options.forms,
                filters=filters,
            )
            facts = traced[key]
            graphs[key] = replace(graph, weights_bytes=facts.weights_bytes, scratch_bytes=facts.scratch)
            traced[key].model.metadata_props.add(
                key=METADATA_KEY, value=json.dumps(graphs[key].to_dict(), sort_keys=True)
            )
        progress("writing weights")
        store_constants(traced.values(), building / WEIGHTS_NAME)
        for key, graph in graphs.items():
            progress(f"checking {graph.file}")
            path = building / graph.file
            path.write_bytes(traced[key].model.SerializeToString(deterministic=True))
            onnx.checker.check_model(str(path), full_check=True)
        manifest = Manifest(
            model=model.config.to_dict(),
            checkpoint_sha256=checkpoint,
            precision=options.precision,
            latents=options.latents,
            size=options.size,
            opset=options.opset_version,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            graphs=graphs,
            files={path.name: record_file(path) for path in sorted(building.iterdir())},
            producer={package: version(package) for package in ("wfvae", "torch", "onnx")},
        )
        manifest.write(building)
        if destination.exists():
            destination.replace(former)
        try:
            building.replace(destination)
        except OSError:
            if former.exists():
                former.replace(destination)
            raise
        shutil.rmtree(former, ignore_errors=True)
    except OSError as error:
        raise BundleError(
            f"cannot write the bundle {destination}: {error.strerror or error}; check the disk's space and"
            " permissions"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _check_destination(destination: Path, overwrite: bool) -> None:
    if not destination.exists():
        return
    is_bundle = destination.is_dir() and (destination / "manifest.json").is_file()
    if not is_bundle and not (destination.is_dir() and not any(destination.iterdir())):
        raise BundleError(f"{destination} exists and is not a bundle; choose another name")
    if is_bundle and not overwrite:
        raise BundleError(
            f"the bundle {destination} exists; choose another name, or replace it with --overwrite"
        )


def _graphs(model: WFVAE, options: ExportOptions) -> dict[str, GraphSpec]:
    kinds: tuple[Kind, ...] = (STEP, DIRECT) if options.direct else (STEP,)
    directions: tuple[Direction, ...] = ("encoder", "decoder")
    specs = [
        graph_spec(model, direction, kind, options.latents) for direction in directions for kind in kinds
    ]
    return {graph_key(spec.direction, spec.kind): spec for spec in specs}


def graph_spec(model: WFVAE, direction: Direction, kind: Kind, latents: str) -> GraphSpec:
    """Names, types and symbolic shapes of a graph's inputs and outputs."""
    stream = model.stream_spec(direction)
    channels = model.config.latent_dim
    given = f"{latents}, unscaled" if latents == "mean" else "means, then log-variances, unscaled"
    encoded = channels if latents == "mean" else 2 * channels
    sides: tuple[Dim, ...] = ("height/8", "width/8")
    frames = TensorSpec(
        "frames", "float32", ("batch", "frames", 3, "height", "width"), "RGB video in [-1, 1]"
    )
    if direction == "encoder":
        inputs = [frames]
        output = TensorSpec("latents", "float32", ("batch", "latents", encoded, *sides), given)
    else:
        inputs = [
            TensorSpec("latents", "float32", ("batch", "latents", channels, *sides), "unscaled latents")
        ]
        output = frames
    if kind == STEP:
        inputs.append(
            TensorSpec(
                "start", "bool", ("batch",), "this row's stream begins with this step; its state is ignored"
            )
        )
        if stream.needs_drain:
            inputs.append(
                TensorSpec(
                    "end",
                    "bool",
                    ("batch",),
                    "this row's stream ended before this step, which only drains it",
                )
            )
    file = f"{graph_key(direction, kind)}.onnx"
    return GraphSpec.of_stream(file, kind, stream, tuple(inputs), (output,))
