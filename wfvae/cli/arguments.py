"""Arguments that several subcommands share, and the objects that they stand for."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wfvae.errors import InputError
from wfvae.machine import processor_count
from wfvae.runtime.backends.registry import BACKENDS

if TYPE_CHECKING:
    from wfvae.runtime import Bundle
    from wfvae.runtime.jobs import Report

Value = TypeVar("Value", int, float, Fraction)
Kind = tuple[str, ...] | Callable[[str], Any] | None

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def number_parser(
    convert: Callable[[str], Value], low: float, high: float, expected: str
) -> Callable[[str], Value]:
    """Returns a parser of numbers in low..high. It raises `ArgumentTypeError` with `expected`."""

    def parse(text: str) -> Value:
        try:
            value = convert(text)
            if low <= value <= high:
                return value
        except (ValueError, OverflowError, ZeroDivisionError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")

    return parse


def _digits(text: str) -> int:
    """Converts decimal digits only: `int` also takes signs, spaces and underscores."""
    if not text.isdecimal():
        raise ValueError
    return int(text)


def _rate(text: str) -> Fraction:
    """Converts a rate above 0, without an exponent, which could ask for a billion digits."""
    if "e" in text.lower() or Fraction(text) == 0:
        raise ValueError
    return Fraction(text)


def _bytes(text: str) -> int:
    """Converts a number of bytes, with K, M, G or T for powers of 1024."""
    number = text.lower().removesuffix("ib").removesuffix("b")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    return int(float(number.removesuffix(unit)) * _UNITS[unit])


CORES = processor_count()
MAX_THREADS = max(64, 4 * CORES)
"""Far more threads than cores would only block each other."""

parse_positive = number_parser(_digits, 1, math.inf, "an integer of at least 1")
parse_index = number_parser(_digits, 0, math.inf, "an integer of at least 0")
parse_threads = number_parser(
    _digits,
    1,
    MAX_THREADS,
    f"a number of threads; expected 1 to {MAX_THREADS}, this machine has {CORES} cores",
)
parse_seconds = number_parser(float, 0, sys.float_info.max, "a time; expected seconds, at least 0")
parse_quality = number_parser(float, 0, 63, "a quality; expected 0 (best, largest) to 63, such as 16 or 23")
parse_bytes = number_parser(_bytes, 1, math.inf, "a number of bytes; expected something like 800M or 16G")
parse_rate = number_parser(_rate, 0, 10_000, "a frame rate; expected a number such as 25 or 30000/1001")


def _parse_sides(text: str, expected: str) -> tuple[int, int]:
    first, _, second = text.lower().partition("x")
    if first.isdecimal() and second.isdecimal() and int(first) and int(second):
        return int(first), int(second)
    raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")


def parse_size(text: str) -> tuple[int, int]:
    """Parses `HxW` as (height, width)."""
    return _parse_sides(text, "a size; expected HEIGHTxWIDTH, such as 480x832")


def parse_raw(text: str) -> tuple[int, int]:
    """Parses `WxH` as (width, height)."""
    return _parse_sides(text, "a frame size; expected WIDTHxHEIGHT, such as 832x480")


def option_adder(parser: argparse._ActionsContainer) -> Callable[..., None]:
    """Returns a function that adds one argument to a parser or a group of it.

    `kind` is None for a flag, the choices, or what converts the text.
    """

    def add(name: str, kind: Kind, text: str, metavar: str | None = None, default: Any = None) -> None:
        if kind is None:
            parser.add_argument(name, action="store_true", help=text)
        elif isinstance(kind, tuple):
            parser.add_argument(name, choices=kind, default=default, help=text)
        else:
            parser.add_argument(name, type=kind, metavar=metavar, default=default, help=text)

    return add


def add_bundle_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the bundle."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory made by 'wfvae export'")


def add_bundle_arguments(parser: argparse.ArgumentParser, chunk: bool = True) -> None:
    """Adds the bundle and the options of what runs it."""
    add_bundle_argument(parser)
    add_execution_arguments(parser, chunk)


def add_execution_arguments(parser: argparse.ArgumentParser, chunk: bool = True) -> None:
    """Adds the options of what runs a bundle."""
    add = option_adder(parser.add_argument_group("execution"))
    text = "what runs the graphs (default: auto, which is onnxruntime)"
    add("--backend", BACKENDS, text, default="auto")
    providers = ("auto", "cpu", "cuda")
    add("--provider", providers, "ONNX Runtime's device (default: auto)", default="auto")
    add("--device", parse_index, "which GPU (default: 0)", "N", 0)
    add("--threads", parse_threads, "CPU threads (default: all cores)", "N")
    add("--tf32", None, "let CUDA round fp32 products to TF32: faster, no longer exact fp32")
    add("--cuda-graphs", None, "with tensorrt: launch the steady step as a CUDA graph")
    text = "with openvino: what to compute in; bf16 is faster and rounds (default: fp32)"
    add("--precision-hint", ("fp32", "bf16"), text)
    if chunk:
        text = "latents per step; results do not depend on it (default: from 'wfvae bench --tune', else 4)"
        add("--chunk", parse_positive, text, "N")


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of reading a video."""
    add = option_adder(parser.add_argument_group("reading"))
    text = "standard input is headerless RGB of this width and height, 8 bits per channel"
    add("--raw", parse_raw, text, "WxH")
    add("--fps", parse_rate, "frame rate of a directory of images, or of --raw", "RATE")
    add("--keep-damaged", None, "continue over damaged frames as the decoder conceals them")
    text = "index of the video stream (default: the file's default one; 'wfvae inspect' lists them)"
    add("--stream", parse_index, text, "N")
    add("--deinterlace", None, "make one progressive frame of each interlaced one (FFmpeg's bwdif)")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of writing a video."""
    add = option_adder(parser.add_argument_group("writing"))
    add("--codec", str, "FFmpeg encoder (default: by file name)", "NAME")
    add("--crf", parse_quality, "constant quality on the encoder's scale; lower is better", "Q")
    text = "format of a pipe: matroska (default), rawvideo, mp4, webm, mpegts, nut"
    add("--container", str, text, "NAME")


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of interrupted jobs."""
    add, text = option_adder(parser), "the most work that a kill may cost (default: %(default)s)"
    add("--resume", None, "continue an interrupted run")
    add("--checkpoint-every", parse_seconds, text, "SECONDS", 30.0)


def add_shard_size_argument(parser: argparse._ActionsContainer, default: str) -> None:
    """Adds `--shard-size`; `default` is what the help states."""

    def parse(text: str) -> str | int:
        return parse_positive(text) if text.isdecimal() else text

    text = f"samples of a shard, or bytes such as 256M (default: {default})"
    option_adder(parser)("--shard-size", parse, text, "N|BYTES")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def reading_options(args: argparse.Namespace, source: str) -> dict[str, Any]:
    """Returns the options of reading a video, as the functions of the runtime take them.

    Raises `InputError` if `--fps` was given for a container on a pipe, which states its own.
    """
    raw = None
    if args.raw is not None:
        from wfvae.runtime.media.video_info import RawVideo

        width, height = args.raw
        raw = RawVideo(width, height, args.fps or Fraction(24))
    elif args.fps is not None and source == "-":
        problem = "--fps was given for a container on standard input, which states its own"
        raise InputError(f"{problem}; it is for images and --raw")
    choices = {"video_stream": args.stream, "deinterlace": args.deinterlace}
    return {"raw": raw, "fps": args.fps, "keep_damaged": args.keep_damaged, **choices}


def writing_options(args: argparse.Namespace, destination: str) -> dict[str, Any]:
    """Returns the options of writing a video. Raises `InputError` for `--container` and no pipe."""
    if args.container is not None and destination != "-":
        problem = f"--container {args.container} was given for '{destination}'"
        raise InputError(f"{problem}; it is for -, since a file's suffix chooses its format")
    return {"output": {"codec": args.codec, "crf": args.crf}, "container": args.container}


def open_from(args: argparse.Namespace) -> Bundle:
    """Opens the bundle of the arguments."""
    from wfvae.runtime import open_bundle

    return open_bundle(args.bundle, **execution_options(args))


def execution_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `open_bundle` that the options of execution stand for."""
    return {
        "backend": args.backend,
        "provider": args.provider,
        "device_id": args.device,
        "threads": args.threads,
        "tf32": args.tf32,
        "cuda_graphs": args.cuda_graphs,
        "precision_hint": args.precision_hint,
        "memory_limit": args.limit,
    }


def remarks(report: Report) -> str:
    """Returns what happened to the source that the numbers do not show."""
    turned = f"turned by {report.rotation} degrees, as the source asks for" if report.rotation else ""
    silent = "audio left out" if report.audio == "left out" else ""
    return "".join(f"; {text}" for text in (turned, silent, *report.notices) if text)
