"""What several subcommands share: arguments, output and progress."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from wfvae.errors import InputError
from wfvae.machine import processor_count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wfvae.runtime.bundle import Bundle
    from wfvae.runtime.jobs import Report
    from wfvae.runtime.media.video_info import RawVideo

_WIDE = 200
_MAX_RATE = 10_000
_MAX_CRF = 63
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> tuple[int, int]:
    """`HxW` to (height, width)."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
        if height > 0 and width > 0:
            return height, width
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected HEIGHTxWIDTH, such as 480x832")


def parse_raw(text: str) -> tuple[int, int]:
    """`WxH` to (width, height)."""
    try:
        return parse_size(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a frame size; expected WIDTHxHEIGHT, such as 832x480"
        ) from None


def parse_rate(text: str) -> Fraction:
    """A frame rate such as 25 or 30000/1001."""
    try:
        # An exponent could ask for a number of a billion digits.
        rate = Fraction(text) if "e" not in text.lower() else Fraction(0)
        if 0 < rate <= _MAX_RATE:
            return rate
    except (ValueError, ZeroDivisionError):
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a frame rate; expected a number such as 25 or 30000/1001"
    )


def parse_bytes(text: str) -> int:
    """A number of bytes, with K, M, G or T for powers of 1024."""
    lowered = text.lower().removesuffix("ib").removesuffix("b")
    number, unit = (lowered[:-1], lowered[-1]) if lowered and lowered[-1] in "kmgt" else (lowered, "")
    try:
        value = int(float(number) * _UNITS[unit])
        if value > 0:
            return value
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a number of bytes; expected something like 800M or 16G"
    )


def parse_positive(text: str) -> int:
    """An integer of at least 1."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")


def parse_threads(text: str) -> int:
    """A number of threads. Far more than there are cores would only keep each other from working."""
    cores = processor_count()
    limit = max(64, 4 * cores)
    if text.isdecimal() and 0 < int(text) <= limit:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a number of threads; expected 1 to {limit}, this machine has {cores} cores"
    )


def parse_index(text: str) -> int:
    """An integer of at least 0."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")


def parse_seconds(text: str) -> float:
    """A time of at least 0 seconds."""
    try:
        seconds = float(text)
        if 0 <= seconds < math.inf:
            return seconds
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a time; expected seconds, at least 0")


def parse_quality(text: str) -> float:
    """A constant quality on an encoder's scale."""
    try:
        quality = float(text)
        if 0 <= quality <= _MAX_CRF:
            return quality
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a quality; expected 0 (best, largest) to {_MAX_CRF}, such as 16 or 23"
    )


def add_bundle_arguments(parser: argparse.ArgumentParser, chunk: bool = True) -> None:
    """The bundle and what runs it."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory made by 'wfvae export'")
    add_execution_arguments(parser, chunk)


def add_execution_arguments(parser: argparse.ArgumentParser, chunk: bool = True) -> None:
    """What runs a bundle."""
    group = parser.add_argument_group("execution")
    group.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "onnxruntime", "openvino", "tensorrt"),
        help="what runs the graphs (default: %(default)s, which is onnxruntime)",
    )
    group.add_argument(
        "--provider",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="ONNX Runtime's device (default: %(default)s)",
    )
    group.add_argument(
        "--device", type=parse_index, default=0, metavar="N", help="which GPU (default: %(default)s)"
    )
    group.add_argument("--threads", type=parse_threads, metavar="N", help="CPU threads (default: all cores)")
    group.add_argument(
        "--tf32",
        action="store_true",
        help="let CUDA round fp32 products to TF32: faster, no longer exact fp32",
    )
    group.add_argument(
        "--cuda-graphs", action="store_true", help="with tensorrt: launch the steady step as a CUDA graph"
    )
    group.add_argument(
        "--precision-hint",
        choices=("fp32", "bf16"),
        help="with openvino: what to compute in; bf16 is faster and rounds (default: fp32)",
    )
    group.add_argument(
        "--limit", type=parse_bytes, metavar="BYTES", help="refuse what would need more memory, such as 8G"
    )
    if chunk:
        group.add_argument(
            "--chunk",
            type=parse_positive,
            metavar="N",
            help=(
                "latents per step; results do not depend on it (default: as 'wfvae bench --tune' chose,"
                " else 4)"
            ),
        )


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """How a video source is read."""
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--raw",
        type=parse_raw,
        metavar="WxH",
        help="standard input is headerless RGB of this width and height, 8 bits per channel",
    )
    group.add_argument(
        "--fps", type=parse_rate, metavar="RATE", help="frame rate of a directory of images, or of --raw"
    )
    group.add_argument(
        "--keep-damaged", action="store_true", help="go on over damaged frames as the decoder conceals them"
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """How a video is written."""
    group = parser.add_argument_group("writing")
    group.add_argument("--codec", metavar="NAME", help="FFmpeg encoder (default: by file name)")
    group.add_argument(
        "--crf",
        type=parse_quality,
        metavar="Q",
        help="constant quality on the encoder's scale; lower is better",
    )
    group.add_argument(
        "--container",
        metavar="NAME",
        help="format of a pipe: matroska (default), rawvideo, mp4, webm, mpegts, nut",
    )


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """What an interruption may cost, and how to go on after one."""
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument(
        "--checkpoint-every",
        type=parse_seconds,
        default=30.0,
        metavar="SECONDS",
        help="work that a kill may cost at most (default: %(default)s)",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def output_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `OutputVideo` from the command line."""
    return {"codec": args.codec, "crf": args.crf}


def container_for(args: argparse.Namespace, destination: str) -> str | None:
    """`--container`, which is for pipes. Raises `InputError` where it was given for a file."""
    if args.container is not None and destination != "-":
        raise InputError(
            f"--container {args.container} was given for '{destination}'; it is for -, the ending of a file"
            " tells its format"
        )
    container: str | None = args.container
    return container


def check_rate(args: argparse.Namespace, source: str) -> None:
    """Raises `InputError` where `--fps` was given for a container on a pipe, which states its own."""
    if args.fps is not None and args.raw is None and source == "-":
        raise InputError(
            "--fps was given for a container on standard input, which states its own; it is for images and"
            " --raw"
        )


def remarks(report: Report) -> str:
    """What happened to the source that is not to be seen from the numbers."""
    turned = f"; turned by {report.rotation} degrees, as the source asks for" if report.rotation else ""
    return turned + ("; audio left out" if report.audio == "left out" else "")


def raw_layout(args: argparse.Namespace) -> RawVideo | None:
    """The layout of a headerless pipe, if one was given."""
    if args.raw is None:
        return None
    from wfvae.runtime.media.video_info import RawVideo

    width, height = args.raw
    return RawVideo(width, height, args.fps or Fraction(24))


def open_from(args: argparse.Namespace) -> Bundle:
    """The bundle that the arguments name."""
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


def show(args: argparse.Namespace, data: Any, text: RenderableType, to_stderr: bool = False) -> None:
    """Prints the result: JSON on request, else for people. `to_stderr` keeps a data pipe on
    standard output clean.

    Raises `OSError` that names the stream if it takes nothing, as on a full disk.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed by whoever started the program
        return
    try:
        _print(args, data, text, stream)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(
            error.errno, error.strerror, "standard error" if to_stderr else "standard output"
        ) from error


def _print(args: argparse.Namespace, data: Any, text: RenderableType, stream: TextIO) -> None:
    if args.json:
        stream.write(json.dumps(data, indent=2) + "\n")
        return
    if isinstance(text, str):
        # Names of files may be bytes that are no text.
        stream.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        return
    from rich.console import Console

    # Off a terminal there is no width to fit in.
    Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE).print(text)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with frames, rate and time left on a terminal's standard error; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames  {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not on_terminal, transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")

        def advance(done: int, total: int | None) -> None:
            speed = bar.tasks[task].speed
            # A container may understate its frames.
            shown = total if total is not None and total >= done else None
            bar.update(task, completed=done, total=shown, rate=f"{speed:.1f} fps" if speed else "")

        yield advance


def mebibytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / (1 << 20):,.1f} MiB"
