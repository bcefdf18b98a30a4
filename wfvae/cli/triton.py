"""`wfvae triton`."""

from __future__ import annotations

import argparse
from pathlib import Path

from wfvae.cli.arguments import add_bundle_argument, add_json_argument, parse_positive, parse_size
from wfvae.cli.output import show
from wfvae.errors import MissingExtraError

SUMMARY = "model repository for Triton Inference Server"
DESCRIPTION = """\
Writes encoder and decoder as stateful Triton models: a sequence is a stream, START and END are the
graphs' own flags, and the server keeps every state tensor between requests (implicit state).
docs/triton.md describes serving, and has a client.

  wfvae triton bundle/ repository/ --size 480x832
  wfvae triton bundle/ repository/ --platform tensorrt --max-batch 8

Experimental: the configuration is checked against Triton's own schema, and has not been served on a
GPU."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_bundle_argument(parser)
    add = parser.add_argument
    add("repository", type=Path, metavar="REPOSITORY", help="directory to make")
    text = "video size served (default: the one the bundle was exported for)"
    add("--size", type=parse_size, metavar="HxW", help=text)
    platforms, text = ("onnxruntime", "tensorrt"), "what runs the graphs (default: %(default)s)"
    add("--platform", choices=platforms, default="onnxruntime", help=text)
    text = "models are NAME_encoder and NAME_decoder (default: %(default)s)"
    add("--name", default="wfvae", metavar="NAME", help=text)
    add("--overwrite", action="store_true", help="replace a repository made before")

    add = parser.add_argument_group("serving").add_argument
    text = "where the models run (default: %(default)s)"
    add("--device", choices=("gpu", "cpu"), default="gpu", help=text)
    text = "GPUs to use (default: all that the server sees)"
    add("--gpus", type=_gpus, default=(), metavar="N,N", help=text)
    default = "(default: %(default)s)"
    for option, count, text in (
        ("--instances", 1, f"copies per GPU {default}"),
        ("--max-batch", 4, f"streams that share one execution {default}"),
        ("--max-sequences", None, "streams open at once (default: 4 times --max-batch)"),
    ):
        add(option, type=parse_positive, default=count, metavar="N", help=text)
    text = f"microseconds that a request waits for others {default}"
    add("--max-delay", type=int, default=2000, metavar="US", help=text)
    text = f"seconds after which a silent stream is dropped {default}"
    add("--idle", type=parse_positive, default=60, metavar="S", help=text)
    add("--same-buffer", action="store_true", help="one buffer per state instead of two")
    add("--tf32", action="store_true", help="let CUDA round fp32 products to TF32")
    text = "largest step of a TensorRT engine (default: %(default)s)"
    add("--max-latents", type=parse_positive, default=8, metavar="N", help=text)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the repository, and prints what was made."""
    from wfvae.spec.manifest import Manifest

    try:
        from wfvae.export.triton.config import TritonOptions
        from wfvae.export.triton.repository import BUILD_NAME, write_repository
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing a Triton repository", str(error.name), "export") from error

    same = ("platform", "size", "gpus", "instances", "max_batch", "max_sequences", "same_buffer", "tf32")
    fields = {name: getattr(args, name) for name in (*same, "max_latents", "name")}
    options = TritonOptions(
        gpu=args.device == "gpu", max_delay_us=args.max_delay, idle_seconds=args.idle, **fields
    )
    Manifest.read(args.bundle).verify_files(args.bundle)
    record = write_repository(args.bundle, args.repository, options, overwrite=args.overwrite)
    height, width = record["options"]["size"]
    text = f"{args.repository}: {', '.join(record['models'])} for video of {height}x{width}"
    text += f", {record['precision']}, {args.platform}"
    if args.platform == "tensorrt":
        script = args.repository / BUILD_NAME
        text += f"\nbuild the engines with {script} inside the server's image before serving"
    show(args, {"repository": str(args.repository), **record}, text)
    return 0


def _gpus(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        expected = "a list of GPUs; expected something like 0,1"
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None
