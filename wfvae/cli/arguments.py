"""Arguments that several subcommands share, and the objects that they stand for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wfvae.errors import InputError
from wfvae.machine import processor_count

if TYPE_CHECKING:
    from wfvae.runtime import Bundle
    from wfvae.runtime.jobs import Report
    from wfvae.runtime.media.video_info import RawVideo

Value = TypeVar("Value", int, float, Fraction)

_MAX_RATE = 10_000
_MAX_CRF = 63
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _parse(
    text: str, convert: Callable[[str], Value], accept: Callable[[Value], bool], expected: str
) -> Value:
    """Converts `text`. Raises `ArgumentTypeError` if it cannot be converted or is not accepted."""
    try:
        value = convert(text)
        if accept(value):
            return value
    except (ValueError, OverflowError, ZeroDivisionError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")


def _digits(text: str) -> int:
    """Converts decimal digits only: `int` also takes signs, spaces and underscores."""
    if not text.isdecimal():
        raise ValueError
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """Parses `HxW` as (height, width)."""
    height, _, width = text.lower().partition("x")
    if height.isdecimal() and width.isdecimal() and int(height) and int(width):
        return int(height), int(width)
    raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected HEIGHTxWIDTH, such as 480x832")


def parse_raw(text: str) -> tuple[int, int]:
    """Parses `WxH` as (width, height)."""
    try:
        return parse_size(text)
    except argparse.ArgumentTypeError:
        expected = "a frame size; expected WIDTHxHEIGHT, such as 832x480"
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None


def parse_rate(text: str) -> Fraction:
    """Parses a frame rate such as 25 or 30000/1001."""
    # An exponent could ask for a number of a billion digits.
    rate = Fraction if "e" not in text.lower() else lambda _: Fraction(0)
    expected = "a frame rate; expected a number such as 25 or 30000/1001"
    return _parse(text, rate, lambda rate: 0 < rate <= _MAX_RATE, expected)


def parse_bytes(text: str) -> int:
    """Parses a number of bytes, with K, M, G or T for powers of 1024."""
    lowered = text.lower().removesuffix("ib").removesuffix("b")
    unit = lowered[-1:] if lowered[-1:] in _UNITS else ""
    expected = "a number of bytes; expected something like 800M or 16G"

    def convert(_: str) -> int:
        return int(float(lowered.removesuffix(unit)) * _UNITS[unit])

    return _parse(text, convert, lambda count: count > 0, expected)


def parse_positive(text: str) -> int:
    """Parses an integer of at least 1."""
    return _parse(text, _digits, lambda number: number > 0, "an integer of at least 1")


def parse_index(text: str) -> int:
    """Parses an integer of at least 0."""
    return _parse(text, _digits, lambda number: number >= 0, "an integer of at least 0")


def parse_threads(text: str) -> int:
    """Parses a number of threads. Far more threads than cores would only block each other."""
    cores = processor_count()
    limit = max(64, 4 * cores)
    expected = f"a number of threads; expected 1 to {limit}, this machine has {cores} cores"
    return _parse(text, _digits, lambda number: 0 < number <= limit, expected)


def parse_seconds(text: str) -> float:
    """Parses a finite time of at least 0 seconds."""
    expected = "a time; expected seconds, at least 0"
    return _parse(text, float, lambda seconds: 0 <= seconds < math.inf, expected)


def parse_quality(text: str) -> float:
    """Parses a constant quality on an encoder's scale."""
    expected = f"a quality; expected 0 (best, largest) to {_MAX_CRF}, such as 16 or 23"
    return _parse(text, float, lambda quality: 0 <= quality <= _MAX_CRF, expected)


def add_bundle_arguments(parser: argparse.ArgumentParser, chunk: bool = True) -> None:
    """Adds the bundle and the options of what runs it."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory made by 'wfvae export'")
    add_execution_arguments(parser, chunk)


def add_execution_arguments(parser: argparse.ArgumentParser, chunk: bool = True) -> None:
    """Adds the options of what runs a bundle."""
    add = parser.add_argument_group("execution").add_argument
    add(
        "--backend",
        default="auto",
        choices=("auto", "onnxruntime", "openvino", "tensorrt"),
        help="what runs the graphs (default: %(default)s, which is onnxruntime)",
    )
    add(
        "--provider",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="ONNX Runtime's device (default: %(default)s)",
    )
    add("--device", type=parse_index, default=0, metavar="N", help="which GPU (default: %(default)s)")
    add("--threads", type=parse_threads, metavar="N", help="CPU threads (default: all cores)")
    tf32 = "let CUDA round fp32 products to TF32: faster, no longer exact fp32"
    add("--tf32", action="store_true", help=tf32)
    cuda_graphs = "with tensorrt: launch the steady step as a CUDA graph"
    add("--cuda-graphs", action="store_true", help=cuda_graphs)
    hint = "with openvino: what to compute in; bf16 is faster and rounds (default: fp32)"
    add("--precision-hint", choices=("fp32", "bf16"), help=hint)
    limit = "refuse work that needs more memory, such as 8G"
    add("--limit", type=parse_bytes, metavar="BYTES", help=limit)
    if chunk:
        help_text = (
            "latents per step; results do not depend on it (default: from 'wfvae bench --tune', else 4)"
        )
        add("--chunk", type=parse_positive, metavar="N", help=help_text)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of reading a video."""
    add = parser.add_argument_group("reading").add_argument
    raw = "standard input is headerless RGB of this width and height, 8 bits per channel"
    add("--raw", type=parse_raw, metavar="WxH", help=raw)
    fps = "frame rate of a directory of images, or of --raw"
    add("--fps", type=parse_rate, metavar="RATE", help=fps)
    damaged = "continue over damaged frames as the decoder conceals them"
    add("--keep-damaged", action="store_true", help=damaged)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of writing a video."""
    add = parser.add_argument_group("writing").add_argument
    add("--codec", metavar="NAME", help="FFmpeg encoder (default: by file name)")
    crf = "constant quality on the encoder's scale; lower is better"
    add("--crf", type=parse_quality, metavar="Q", help=crf)
    container = "format of a pipe: matroska (default), rawvideo, mp4, webm, mpegts, nut"
    add("--container", metavar="NAME", help=container)


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of interrupted jobs."""
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument(
        "--checkpoint-every",
        type=parse_seconds,
        default=30.0,
        metavar="SECONDS",
        help="the most work that a kill may cost (default: %(default)s)",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def output_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of `OutputVideo` that the arguments set."""
    return {"codec": args.codec, "crf": args.crf}


def container_for(args: argparse.Namespace, destination: str) -> str | None:
    """Returns `--container`. Raises `InputError` if the destination is not a pipe."""
    container: str | None = args.container
    if container is not None and destination != "-":
        raise InputError(
            f"--container {container} was given for '{destination}'; it is for -, since a file's suffix"
            " chooses its format"
        )
    return container


def check_rate(args: argparse.Namespace, source: str) -> None:
    """Raises `InputError` if `--fps` was given for a container on a pipe, which states its own."""
    if args.fps is not None and args.raw is None and source == "-":
        raise InputError(
            "--fps was given for a container on standard input, which states its own; it is for images and"
            " --raw"
        )


def raw_layout(args: argparse.Namespace) -> RawVideo | None:
    """Returns the layout of a headerless pipe; None without `--raw`."""
    if args.raw is None:
        return None
    from wfvae.runtime.media.video_info import RawVideo

    width, height = args.raw
    return RawVideo(width, height, args.fps or Fraction(24))


def open_from(args: argparse.Namespace) -> Bundle:
    """Opens the bundle of the arguments."""
    from wfvae.runtime import open_bundle

    return open_bundle(
        args.bundle,
        args.backend,
        provider=args.provider,
        device_id=args.device,
        threads=args.threads,
        tf32=args.tf32,
        cuda_graphs=args.cuda_graphs,
        precision_hint=args.precision_hint,
        memory_limit=args.limit,
    )


def remarks(report: Report) -> str:
    """Returns what happened to the source that the numbers do not show."""
    turned = f"; turned by {report.rotation} degrees, as the source asks for" if report.rotation else ""
    return turned + ("; audio left out" if report.audio == "left out" else "")
