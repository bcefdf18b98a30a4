"""Checkpoint to bundle: graphs, weights and manifest."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Literal

import onnx
import torch
from msgspec.structs import replace

from wfvae.errors import BundleError, ResourceError
from wfvae.export.forms import FORMS, TARGETS
from wfvae.export.recorder.graph import trace
from wfvae.export.recorder.recorder import FilterStore
from wfvae.export.weights import state_dict_sha256, store_constants
from wfvae.files import check_replaceable, replacing
from wfvae.model.encoder import RGB
from wfvae.model.vae import WFVAE
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import (
    DIRECT,
    MANIFEST_NAME,
    METADATA_KEY,
    OPSETS,
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
DEFAULT_OPSET = 20
BF16_OPSET = 22
"""The first opset whose Conv takes bfloat16."""
_START = "this row's stream begins with this step; its state is ignored"
_END = "this row's stream ended before this step, which only drains it"


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
    target: Literal["auto", "cpu", "openvino", "gpu"] = "auto"
    """Where the bundle will run, which chooses `convolutions`. It runs everywhere."""
    convolutions: Literal["minimal", "plain", "volume", "mixed"] | None = None
    """How they are computed (`wfvae.export.forms`); None leaves it to `target`. `minimal`: fewer
    multiplications in fp32. `plain`: as the network, a sum over time taps. `volume`: one 3-D
    convolution. `mixed`: that, but wide ones over time taps.
    """
    direct: bool = True
    """Also write the whole-clip graphs without state, which share the weights."""

    def __post_init__(self) -> None:
        latents = ("mean", "moments")
        choices = {"precision": DTYPES, "latents": latents, "target": TARGETS, "convolutions": FORMS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed and (name, getattr(self, name)) != ("convolutions", None):
                raise BundleError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        if self.opset_version not in OPSETS:
            raise BundleError(f"opset is {self.opset}; expected {OPSETS.start} to {OPSETS.stop - 1}")
        if self.precision == "bf16" and self.opset_version < BF16_OPSET:
            expected = f"at least {BF16_OPSET} for bf16, which earlier convolutions do not take"
            raise BundleError(f"opset is {self.opset}; expected {expected}")
        if self.size is not None and any(side < SPATIAL_RATIO or side % SPATIAL_RATIO for side in self.size):
            expected = f"multiples of {SPATIAL_RATIO}, or dynamic"
            raise BundleError(f"size is {self.size[0]}x{self.size[1]}; expected {expected}")

    @property
    def forms(self) -> str:
        """Key of `FORMS`. Half precision is not minimal: it has no bits to spare for such sums."""
        chosen = self.convolutions or TARGETS[self.target]
        return "plain" if chosen == "minimal" and self.precision != "fp32" else chosen

    @property
    def empty_tensors(self) -> bool:
        """Whether tensors may be empty at some sizes, which was never tried on GPUs."""
        return self.target != "gpu"

    @property
    def opset_version(self) -> int:
        """The opset that is exported."""
        if self.opset is not None:
            return self.opset
        return BF16_OPSET if self.precision == "bf16" else DEFAULT_OPSET


def graph_key(direction: Direction, kind: Kind) -> str:
    """Returns a graph's key in the manifest; its file is the key with `.onnx`."""
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
        model: any model that can be streamed; it is converted to the wanted precision (in place).
        destination: the bundle's directory.
        options: what to export.
        overwrite: replace an existing bundle (never a directory that is not one).
        progress: called with the name of each stage as it begins.

    Raises:
        StreamingError: the model cannot be streamed, or its state would change size from chunk to
            chunk.
        BundleError: the destination exists, or cannot be written.

    Example:
        >>> manifest = export_bundle(WFVAE.from_pretrained("tiny"), "bundle")
        >>> sorted(path.name for path in Path("bundle").iterdir() if path.suffix == ".onnx")
        ['decoder.direct.onnx', 'decoder.onnx', 'encoder.direct.onnx', 'encoder.onnx']
    """
    options = options or ExportOptions()
    destination = Path(destination)
    check_replaceable(destination, "bundle", MANIFEST_NAME, overwrite)
    checkpoint = state_dict_sha256(model.state_dict())
    model = model.to(device="cpu", dtype=DTYPES[options.precision]).eval()
    kinds: tuple[Kind, ...] = (STEP, DIRECT) if options.direct else (STEP,)
    directions: tuple[Direction, ...] = ("encoder", "decoder")
    specs = [graph_spec(model, *graph, options.latents) for graph in product(directions, kinds)]
    try:
        with replacing(destination) as building:
            building.mkdir()
            graphs = _write_graphs(model, specs, options, building, progress)
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
    except ResourceError as error:
        raise BundleError(f"the bundle is not written: {error}") from error
    return manifest


def _write_graphs(
    model: WFVAE,
    specs: list[GraphSpec],
    options: ExportOptions,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, GraphSpec]:
    """Writes graphs and weights into `folder`; returns the specifications, completed, by key."""
    graphs, traced = {}, {}
    filters: FilterStore = {}
    for spec in specs:
        key = graph_key(spec.direction, spec.kind)
        progress(f"tracing {key}")
        found = traced[key] = trace(
            model,
            spec,
            size=options.size,
            opset=options.opset_version,
            convolutions=options.forms,
            filters=filters,
            empty_tensors=options.empty_tensors,
        )
        graphs[key] = replace(spec, weights_bytes=found.weights_bytes, scratch_bytes=found.scratch)
        metadata = json.dumps(graphs[key].to_dict(), sort_keys=True)
        found.model.metadata_props.add(key=METADATA_KEY, value=metadata)
    progress("writing weights")
    store_constants(traced.values(), folder / WEIGHTS_NAME)
    for key, graph in graphs.items():
        progress(f"checking {graph.file}")
        path = folder / graph.file
        path.write_bytes(traced[key].model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path), full_check=True)
    return graphs


def graph_spec(model: WFVAE, direction: Direction, kind: Kind, latents: str = "mean") -> GraphSpec:
    """Returns names, types and symbolic shapes of a graph's inputs and outputs."""
    stream = model.stream_spec(direction)
    channels, sides = model.config.latent_dim, (f"height/{SPATIAL_RATIO}", f"width/{SPATIAL_RATIO}")
    frames_shape: tuple[Dim, ...] = ("batch", "frames", RGB, "height", "width")
    frames = TensorSpec("frames", "float32", frames_shape, "RGB video in [-1, 1]")
    meaning = "unscaled latents"
    if direction == "encoder":
        meaning = "mean, unscaled" if latents == "mean" else "means, then log-variances, unscaled"
        channels *= 1 if latents == "mean" else 2
    coded = TensorSpec("latents", "float32", ("batch", "latents", channels, *sides), meaning)
    inputs, output = ([frames], coded) if direction == "encoder" else ([coded], frames)
    if kind == STEP:
        inputs.append(TensorSpec("start", "bool", ("batch",), _START))
        if stream.needs_drain:
            inputs.append(TensorSpec("end", "bool", ("batch",), _END))
    return GraphSpec(
        file=f"{graph_key(direction, kind)}.onnx",
        kind=kind,
        direction=direction,
        ratio=stream.ratio,
        delay_frames=stream.delay,
        inputs=tuple(inputs),
        outputs=(output,),
        states=stream.states if kind == STEP else (),
    )
