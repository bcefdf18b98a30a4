"""`wfvae inspect`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from wfvae.cli.arguments import add_json_argument
from wfvae.cli.output import mebibytes, show
from wfvae.cli.subbands import check_plot, measure_subbands, plot_subbands, subband_table
from wfvae.errors import CheckpointError, InputError, MissingExtraError, WFVAEError

SUMMARY = "what a bundle, latents, a checkpoint or a video is"
DESCRIPTION = """\
Says what something is, and checks it as far as that is cheap: a bundle's hashes, a checkpoint's names and shapes.

  wfvae inspect bundle/ · wfvae inspect latents.zarr · wfvae inspect checkpoint/ · wfvae inspect runs/S1 · wfvae inspect in.mp4

With --subbands, the energy and entropy of each of a video's eight Haar sub-bands, from all its frames:

  wfvae inspect in.mp4 --subbands --plot subbands.svg"""

_LATENTS_SUFFIXES = (".zarr", ".npy", ".safetensors")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("thing", type=Path, metavar="BUNDLE|LATENTS|CHECKPOINT|VIDEO")
    group = parser.add_argument_group("sub-bands of a video")
    group.add_argument(
        "--subbands",
        action="store_true",
        help="read the video, and tell energy and entropy per Haar sub-band",
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw them into this SVG file")
    group.add_argument(
        "--bin-width",
        type=_bin_width,
        metavar="W",
        help="bins of the entropy's histogram, in 8-bit levels of the coefficients (default: 1)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Finds out what it is, and prints the facts."""
    path: Path = args.thing
    if not args.subbands and (args.plot is not None or args.bin_width is not None):
        raise InputError("--plot and --bin-width are for sub-bands; add --subbands")
    if not path.exists():
        raise WFVAEError(f"{path} does not exist; expected a bundle, latents, a checkpoint or a video")
    if args.subbands:
        return _subbands(args, path)
    if (path / "manifest.json").is_file():
        facts = _bundle(path)
    elif (path / "config.json").is_file():
        facts = _checkpoint(path)
    elif (path / "checkpoints").is_dir() or (path / "checkpoint").is_dir():
        facts = _run(path)
    elif path.suffix.lower() in _LATENTS_SUFFIXES:
        facts = _latents(path)
    elif path.suffix == ".ckpt":
        facts = _training_checkpoint(path)
    else:
        facts = _video(path)
    width = max(map(len, facts))
    show(
        args,
        facts,
        "\n".join(f"{key.ljust(width)}  {_text(value)}" for key, value in facts.items() if value is not None),
    )
    return 0


def _bin_width(text: str) -> float:
    try:
        width = float(text)
        if 0 < width < math.inf:
            return width
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a bin width; expected a number of 8-bit levels above 0, such as 1"
    )


def _subbands(args: argparse.Namespace, path: Path) -> int:
    if (
        (path / "manifest.json").is_file()
        or (path / "config.json").is_file()
        or path.suffix.lower() in (*_LATENTS_SUFFIXES, ".ckpt")
    ):
        raise InputError(f"{path} is no video; --subbands is for videos and folders of images")
    if args.plot is not None:
        check_plot(args.plot)
    facts = measure_subbands(path, args.bin_width or 1.0)
    if args.plot is not None:
        plot_subbands(facts, args.plot)
    show(args, facts, subband_table(facts))
    return 0


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _bundle(path: Path) -> dict[str, Any]:
    from wfvae.spec.manifest import Manifest
    from wfvae.spec.tuning import Tuning

    manifest = Manifest.read(path)
    manifest.verify_files(path)
    facts: dict[str, Any] = {
        "kind": "bundle",
        "identity": manifest.identity,
        "checkpoint": manifest.checkpoint_sha256,
        "parameters": manifest.parameters,
        "precision": manifest.precision,
        "size": "dynamic" if manifest.size is None else f"{manifest.size[0]}x{manifest.size[1]}",
        "encoder gives": manifest.latents,
        "opset": manifest.opset,
        "producer": dict(manifest.producer),
        "files": {name: mebibytes(record.bytes) for name, record in manifest.files.items()},
        "hashes": "all files are as exported",
    }
    for key, graph in manifest.graphs.items():
        stream = graph.stream
        facts[key] = (
            f"{graph.kind}, {stream.ratio} frames per latent, {len(graph.states)} state tensors, delay"
            f" {stream.delay}, drop {stream.drop}"
        )
    facts["engines"] = [engine.get("file", "?") for engine in manifest.engines] or "none"
    facts["tuned"] = [
        f"{entry.direction} {entry.height}x{entry.width} chunk {entry.chunk}"
        f" ({entry.setting.backend['name']}, {entry.setting.cpu})"
        for entry in Tuning.read(path, manifest.identity).entries
    ] or "none"
    return facts


def _latents(path: Path) -> dict[str, Any]:
    from wfvae.runtime.latents.latent_files import open_latents

    with open_latents(path) as reader:
        facts = {
            "kind": "latents",
            "count": reader.count,
            "shape": list(reader.shape),
            "dtype": str(reader.dtype),
            "complete": reader.complete,
        }
        return {
            **facts,
            **{key: value for key, value in reader.info.to_json().items() if key != "kind"},
            "values": reader.info.kind,
        }


def _run(path: Path) -> dict[str, Any]:
    """The newest averaged weights of a training run, or those of one of its checkpoints."""
    try:
        from wfvae.model.checkpoint import model_of_run
    except ModuleNotFoundError as error:
        raise MissingExtraError("a training run", str(error.name), "train") from error
    model = model_of_run(path)
    return {**_checkpoint(model), "kind": "training run", "checkpoint": str(model)}


def _checkpoint(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    from wfvae.model.config import WFVAEConfig

    config = WFVAEConfig.from_json(path / "config.json")
    weights = path / "diffusion_pytorch_model.safetensors"
    try:
        with safe_open(weights, framework="numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # not a mapping
            dtypes = sorted({str(file.get_slice(name).get_dtype()) for name in shapes})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {weights}: {error}; the checkpoint is incomplete or damaged"
        ) from error
    return {
        "kind": "checkpoint",
        "tensors": len(shapes),
        "values": sum(math.prod(shape) for shape in shapes.values()),
        "dtypes": dtypes,
        "temporal compression": config.temporal_compression,
        "latent channels": config.latent_dim,
        "config": config.to_dict(),
    }


def _training_checkpoint(path: Path) -> dict[str, Any]:
    from wfvae.model.checkpoint import read_training_checkpoint

    weights = read_training_checkpoint(path)
    return {
        "kind": "training checkpoint",
        "tensors": len(weights),
        "values": sum(t.numel() for t in weights.values()),
    }


def _video(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from wfvae.runtime.media.video_reader import open_video

    with open_video(path) as reader:
        facts = asdict(reader.info)
    return {
        "kind": "video",
        "source": facts.pop("kind"),
        **{
            key: value if isinstance(value, (int, type(None))) else str(value) for key, value in facts.items()
        },
    }
