"""`wfvae build`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wfvae.cli.arguments import add_json_argument, parse_bytes, parse_positive, parse_size
from wfvae.cli.output import mebibytes, show
from wfvae.errors import InputError
from wfvae.spec.engines import BuildSettings, Span

SUMMARY = "TensorRT engines for this machine's GPU"
DESCRIPTION = """\
Builds one TensorRT engine per direction from a bundle's graphs, into BUNDLE/engines/, and lists them in the manifest. An engine runs on
the GPU and TensorRT version that built it, for the sizes that it was built for; N means one size, MIN:OPT:MAX a range and its optimum.

  wfvae build bundle/ --size 480x832                        one size, steps of 4 latents and shorter
  wfvae build bundle/ --batch 1:4:8 --chunk 2 --size 256x256
  wfvae build bundle/ --size 64x96 --whole-clip 8           also what 'wfvae verify bundle/ --backend tensorrt' needs for 29 frames

What is there already is kept. Ctrl-C stops a build without leaving half a file.
Note: this command has never run on a GPU; TensorRT's libraries are not to be had on the machines that it was written on."""

_DEFAULTS = BuildSettings()


def _span(text: str) -> Span:
    try:
        return Span.parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory made by 'wfvae export'")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument(
        "--batch",
        type=_span,
        default=_DEFAULTS.batch,
        metavar="N",
        help="streams at once (default: %(default)s)",
    )
    sizes.add_argument(
        "--chunk",
        type=parse_positive,
        default=_DEFAULTS.chunk,
        metavar="N",
        help="latents per steady step (default: %(default)s)",
    )
    sizes.add_argument(
        "--height",
        type=_span,
        metavar="N",
        help=f"video height (default: {_DEFAULTS.height}, or the bundle's)",
    )
    sizes.add_argument(
        "--width", type=_span, metavar="N", help=f"video width (default: {_DEFAULTS.width}, or the bundle's)"
    )
    sizes.add_argument(
        "--size", type=parse_size, metavar="HxW", help="one video size, in place of --height and --width"
    )
    sizes.add_argument(
        "--whole-clip",
        type=parse_positive,
        metavar="N",
        help="also steps and direct graphs of up to N latents, for verification",
    )
    choices = parser.add_argument_group("choices")
    choices.add_argument(
        "--tf32",
        action="store_true",
        help="let fp32 products be rounded to TF32: faster, no longer exact fp32",
    )
    choices.add_argument(
        "--optimization-level",
        type=int,
        default=_DEFAULTS.optimization_level,
        choices=range(6),
        help="how long to search for fast kernels (default: %(default)s)",
    )
    choices.add_argument(
        "--workspace", type=parse_bytes, metavar="BYTES", help="scratch memory a kernel may use, such as 2G"
    )
    choices.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="kernel timings to reuse and add to (default: in the bundle)",
    )
    choices.add_argument(
        "--timing-cache-only",
        action="store_true",
        help="take all choices from the cache; fail where it has none",
    )
    choices.add_argument("--again", action="store_true", help="also build engines that are there already")
    choices.add_argument(
        "--device", type=int, default=0, metavar="N", help="which GPU (default: %(default)s)"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Builds, and prints what was made."""
    from wfvae.export.tensorrt.build import build_engines, timing_cache_path
    from wfvae.export.tensorrt.timing_cache import TimingCacheFile
    from wfvae.runtime.backends.nvidia.cuda import CudaBindings
    from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
    from wfvae.spec.manifest import Manifest
    from wfvae.spec.tensorrt import load_tensorrt

    settings = settings_from(args)
    Manifest.read(args.bundle)  # a wrong path is the likeliest mistake, and the cheapest to find
    trt = load_tensorrt()
    target = target_here(trt, CudaBindings(args.device))
    cache = TimingCacheFile(
        args.timing_cache or timing_cache_path(args.bundle, target), args.timing_cache_only
    )
    with _progress_bar() as progress:
        report = build_engines(
            args.bundle, settings, target, trt, timing_cache=cache, again=args.again, progress=progress
        )
    lines = [f"{args.bundle}: engines for {target}"]
    for label, records in (("built", report.built), ("kept", report.kept)):
        lines += [
            f"{label} {record.file}, {record.precision}, {mebibytes(record.bytes)}" for record in records
        ]
    data = {
        "built": [record.to_dict() for record in report.built],
        "kept": [record.to_dict() for record in report.kept],
    }
    show(args, data, "\n".join(lines))
    return 0


def settings_from(args: argparse.Namespace) -> BuildSettings:
    """The settings that the command line asks for. Raises `InputError` if they contradict each
    other.
    """
    height, width = args.height or _DEFAULTS.height, args.width or _DEFAULTS.width
    if args.size is not None:
        if args.height is not None or args.width is not None:
            raise InputError("--size stands for --height and --width; give one or the other")
        # Smaller videos are padded to multiples of 8 by the runtime, so that is what the engine
        # sees.
        height, width = (Span.of(-(-side // 8) * 8) for side in args.size)
    return BuildSettings(
        batch=args.batch,
        chunk=args.chunk,
        height=height,
        width=width,
        whole_clip=args.whole_clip,
        tf32=args.tf32,
        optimization_level=args.optimization_level,
        workspace=args.workspace,
    )


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar of the present phase's steps on a terminal's standard error; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("building", total=None)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total or None)

        yield report
