"""`wfvae inspect`."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wfvae.cli.arguments import add_json_argument, number_parser, option_adder
from wfvae.cli.output import mebibytes, show
from wfvae.cli.subbands import check_plot, measure_subbands, plot_subbands, subband_table
from wfvae.errors import CheckpointError, InputError, MissingExtraError, WFVAEError
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_MODEL

SUMMARY = "what a bundle, latents, a checkpoint or a video is"
DESCRIPTION = """\
Describes a file or directory, and checks it as far as that is cheap: a bundle's hashes, a
checkpoint's names and shapes, all latents. Latents that are missing, unreadable, not finite or
changed since they were encoded are listed by number, with exit code 1.

  wfvae inspect bundle/         wfvae inspect checkpoint/     wfvae inspect in.mp4
  wfvae inspect latents.zarr    wfvae inspect runs/S1

With --subbands, the energy and entropy of each of a video's eight Haar sub-bands, from all its
frames:

  wfvae inspect in.mp4 --subbands --plot subbands.svg"""

_DAMAGE = "damaged latents"
_LATENTS_SUFFIXES = (".zarr", ".npy", ".safetensors")
_BIN_WIDTH = "a bin width; expected a number of 8-bit levels above 0, such as 1"
parse_bin_width = number_parser(float, sys.float_info.min, sys.float_info.max, _BIN_WIDTH)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("thing", type=Path, metavar="BUNDLE|LATENTS|CHECKPOINT|VIDEO")
    add = option_adder(parser.add_argument_group("sub-bands of a video"))
    add("--subbands", None, "read the video, and print energy and entropy per Haar sub-band")
    add("--plot", Path, "draw them into this SVG file", "FILE")
    text = "bins of the entropy's histogram, in 8-bit levels of the coefficients (default: 1)"
    add("--bin-width", parse_bin_width, text, "W")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Recognises what the path is, and prints the facts."""
    path: Path = args.thing
    if not args.subbands and (args.plot is not None or args.bin_width is not None):
        raise InputError("--plot and --bin-width are for sub-bands; add --subbands")
    if not path.exists():
        raise WFVAEError(f"{path} does not exist; expected a bundle, latents, a checkpoint or a video")
    describe = _recognise(path)
    if args.subbands:
        if describe is not _video:
            raise InputError(f"{path} is no video; --subbands is for videos and folders of images")
        return _subbands(args, path)
    facts = describe(path)
    width = max(map(len, facts))
    shown = {
        key: value for key, value in facts.items() if value is not None and (key, value) != (_DAMAGE, {})
    }
    show(args, facts, "\n".join(f"{key.ljust(width)}  {_text(value)}" for key, value in shown.items()))
    return 1 if facts.get(_DAMAGE) else 0


def _recognise(path: Path) -> Callable[[Path], dict[str, Any]]:
    """Returns the function that describes what the path is."""
    if (path / "manifest.json").is_file():
        return _bundle
    if (path / "config.json").is_file():
        return _checkpoint
    if (path / RUN_CHECKPOINTS).is_dir() or (path / RUN_MODEL).is_dir():
        return _run
    if path.suffix.lower() in _LATENTS_SUFFIXES:
        return _latents
    return _training_checkpoint if path.suffix == ".ckpt" else _video


def _subbands(args: argparse.Namespace, path: Path) -> int:
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
        rules = f"{graph.ratio} frames per latent, {len(graph.states)} state tensors"
        facts[key] = f"{graph.kind}, {rules}, delay {graph.delay_frames}, drop {graph.drop_frames}"
    facts["engines"] = [engine.get("file", "?") for engine in manifest.engines] or "none"
    facts["tuned"] = [
        f"{entry.direction} {entry.height}x{entry.width} chunk {entry.chunk}"
        f" ({entry.setting.backend.get('name', '?')}, {entry.setting.cpu})"
        for entry in Tuning.read(path, manifest.identity).entries
    ] or "none"
    return facts


def _latents(path: Path) -> dict[str, Any]:
    from wfvae.runtime.latents.latent_files import open_latents

    with open_latents(path) as reader:
        facts = {"kind": "latents", "count": reader.count, "shape": list(reader.shape)}
        facts |= {"dtype": str(reader.dtype), "complete": reader.complete}
        info = reader.info.to_json()
        values = info.pop("kind")
        damage = reader.find_damage()
    found = {
        "missing": _ranges(damage.missing),
        "unreadable": _ranges(damage.unreadable),
        "not finite": _ranges(damage.not_finite),
        "hash": "differs from what was encoded" if damage.hash_differs else "",
    }
    return {**facts, **info, "values": values, _DAMAGE: {key: text for key, text in found.items() if text}}


def _ranges(numbers: list[int]) -> str:
    """Formats sorted numbers.

    >>> _ranges([0, 3, 4, 5])
    '0, 3-5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _run(path: Path) -> dict[str, Any]:
    """Describes a training run's newest averaged weights, or those of one of its checkpoints."""
    try:
        from wfvae.model.checkpoint import model_of_run
    except ModuleNotFoundError as error:
        raise MissingExtraError("a training run", str(error.name), "train") from error
    model = model_of_run(path)
    return {**_checkpoint(model), "kind": "training run", "checkpoint": str(model)}


def _checkpoint(path: Path) -> dict[str, Any]:
    from wfvae.model.config import WFVAEConfig
    from wfvae.spec.bounded import open_regular
    from wfvae.spec.safetensors_header import read_header

    config = WFVAEConfig.from_json(path / "config.json")
    weights = path / "diffusion_pytorch_model.safetensors"

    def unreadable(problem: str) -> CheckpointError:
        return CheckpointError(f"cannot read {weights}: {problem}; the checkpoint is incomplete or damaged")

    with open_regular(weights, unreadable) as file:
        tensors = read_header(file, unreadable).tensors
    shapes = {name: entry.shape for name, entry in tensors.items()}
    dtypes = sorted({entry.dtype for entry in tensors.values()})
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
    values = sum(tensor.numel() for tensor in weights.values())
    return {"kind": "training checkpoint", "tensors": len(weights), "values": values}


def _video(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from wfvae.runtime.media.video_reader import open_video

    with open_video(path) as reader:
        info = asdict(reader.info)
    facts = {"kind": "video", "source": info.pop("kind")}
    info["video_streams"] = list(info["video_streams"]) or None
    for key, value in info.items():
        facts[key] = value if isinstance(value, int | list | None) else str(value)
    return facts
