"""`wfvae triton`."""

import argparse
import os
from pathlib import Path

from wfvae.cli.arguments import (
    add_bundle_argument,
    add_json_argument,
    option_adder,
    parse_bytes,
    parse_positive,
    parse_size,
    parse_threads,
)
from wfvae.cli.output import show
from wfvae.errors import MissingExtraError
from wfvae.runtime.backends.registry import BACKENDS

SUMMARY = "model repository for Triton Inference Server"
DESCRIPTION = """\
Writes encoder and decoder as stateful Triton models: a sequence is a stream, START and END are the
graphs' own flags, and the server keeps every state tensor between requests (implicit state).
docs/triton.md describes serving, and has a client.

  wfvae triton bundle/ repository/ --size 480x832
  wfvae triton bundle/ repository/ --platform tensorrt --max-batch 8
  wfvae triton bundle/ repository/ --platform python --backend openvino --device cpu

With the platform python, the models are this project's runtime in Triton's Python backend. One
repository serves videos of any size, and every backend.

Experimental: repositories were served on a CPU, and not on a GPU."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_bundle_argument(parser)
    add = option_adder(parser)
    add("repository", Path, "directory to make", "REPOSITORY")
    text = "video size served (default: the one the bundle was exported for); not for python"
    add("--size", parse_size, text, "HxW")
    platforms, text = ("onnxruntime", "tensorrt", "python"), "what runs the graphs (default: %(default)s)"
    add("--platform", platforms, text, default="onnxruntime")
    add("--name", str, "models are NAME_encoder and NAME_decoder (default: %(default)s)", "NAME", "wfvae")
    add("--overwrite", None, "replace a repository made before")

    add, default = option_adder(parser.add_argument_group("serving")), "(default: %(default)s)"
    add("--device", ("gpu", "cpu"), f"where the models run {default}", default="gpu")
    add("--gpus", _gpus, "GPUs to use (default: all that the server sees)", "N,N", ())
    add("--instances", parse_positive, f"copies per GPU {default}", "N", 1)
    add("--max-batch", parse_positive, f"streams that share one execution {default}", "N", 4)
    add("--max-sequences", parse_positive, "streams open at once (default: 4 times --max-batch)", "N")
    add("--max-delay", int, f"microseconds that a request waits for others {default}", "US", 2000)
    add("--idle", parse_positive, f"seconds after which a silent stream is dropped {default}", "S", 60)
    add("--same-buffer", None, "one buffer per state instead of two")
    add("--tf32", None, "let CUDA round fp32 products to TF32")
    add("--max-latents", parse_positive, f"largest step of a TensorRT engine {default}", "N", 8)

    add = option_adder(parser.add_argument_group("platform python"))
    add("--backend", BACKENDS, "backend of the runtime (default: auto, which is onnxruntime)", default="auto")
    add("--threads", parse_threads, "CPU threads of each model (default: all cores)", "N")
    text = "with openvino: what to compute in; bf16 is faster and rounds (default: fp32)"
    add("--precision-hint", ("fp32", "bf16"), text)
    add("--cuda-graphs", None, "with tensorrt: launch the steady step as a CUDA graph")
    add("--limit", parse_bytes, "refuse streams that need more memory, such as 8G", "BYTES")
    text = "most latents per step (default: from 'wfvae bench --tune', else 4)"
    add("--chunk", parse_positive, text, "N")
    text = "type of frames, in and out; float32 is in [-1, 1] (default: %(default)s)"
    add("--pixels", ("uint8", "float32"), text, default="uint8")
    add("--site-packages", _folders, "folders of packages that the server's Python lacks", "DIR[:DIR]", ())
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the repository, and prints what was made."""
    from wfvae.spec.manifest import Manifest

    try:
        from wfvae.export.triton.config import TritonOptions, oldest_server
        from wfvae.export.triton.repository import BUILD_NAME, write_repository
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing a Triton repository", str(error.name), "export") from error

    same: tuple[str, ...]
    same = ("platform", "size", "gpus", "instances", "max_batch", "max_sequences", "same_buffer", "tf32")
    same += ("max_latents", "name", "backend", "threads", "precision_hint", "cuda_graphs", "chunk", "pixels")
    options = TritonOptions(
        gpu=args.device == "gpu",
        max_delay_us=args.max_delay,
        idle_seconds=args.idle,
        memory_limit=args.limit,
        site_packages=args.site_packages,
        **{name: getattr(args, name) for name in same},
    )
    manifest = Manifest.read(args.bundle)
    manifest.verify_files(args.bundle)
    record = write_repository(args.bundle, args.repository, options, overwrite=args.overwrite)
    size = record["options"]["size"]
    sizes = "any size" if size is None else f"{size[0]}x{size[1]}"
    text = f"{args.repository}: {', '.join(record['models'])} for video of {sizes}"
    text += f", {record['precision']}, {args.platform}"
    if args.platform == "tensorrt":
        script = args.repository / BUILD_NAME
        text += f"\nbuild the engines with {script} inside the server's image before serving"
    if oldest := oldest_server(manifest, options):
        text += f"\nneeds Triton {oldest} or later"
    show(args, {"repository": str(args.repository), **record}, text)
    return 0


def _folders(text: str) -> tuple[str, ...]:
    return tuple(text.split(os.pathsep))


def _gpus(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        expected = "a list of GPUs; expected something like 0,1"
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None
