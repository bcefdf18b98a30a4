"""`wfvae build`."""

import argparse
from pathlib import Path
from typing import Any

from wfvae.cli import arguments
from wfvae.cli.output import mebibytes, progress_bar, show
from wfvae.errors import BundleError, InputError, MissingExtraError, WFVAEError
from wfvae.spec.frames import padded_size
from wfvae.spec.tensorrt_api import FLAVOURS, RTX, TENSORRT, TensorRT
from wfvae.spec.tensorrt_engines import BuildSettings, Span, Target, portable_target

SUMMARY = "TensorRT engines for this machine's GPU, or portable TensorRT-RTX engines"
DESCRIPTION = """\
Builds one engine per direction from a bundle's graphs into BUNDLE/engines/, and lists them in the
manifest. An engine takes the sizes that it was built for: N is one size, MIN:OPT:MAX a range and the
size to optimise for.

A TensorRT engine runs on the GPU model and version that built it. TensorRT-RTX builds without a GPU;
its engines run on all RTX GPUs from Ampere on (compute capability 8.0, 8.6, 8.9, 12.0), or on those
that --compute-capability names.

  wfvae build bundle/ --flavour rtx           portable engines, on any machine
  wfvae build bundle/ --size 480x832          one size, steps of 4 latents and shorter
  wfvae build bundle/ --batch 1:4:8 --chunk 2 --size 256x256
  wfvae build bundle/ --size 64x96 --whole-clip 8
                                              also what 'wfvae verify bundle/ --backend tensorrt'
                                              needs for 29 frames

Existing engines are kept. Ctrl-C stops a build without leaving partial files.
Experimental: engines have not run on a GPU yet."""

_DEFAULTS = BuildSettings()


def _span(text: str) -> Span:
    try:
        return Span.parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_argument(parser)

    add = arguments.option_adder(group := parser.add_argument_group("builder"))
    text = "what builds and runs the engines (default: auto, TensorRT where it and a GPU are, else rtx)"
    add("--flavour", ("auto", *FLAVOURS), text, default="auto")
    text = "GPUs that an rtx engine is for, such as 8.9 12.0 (default: 8.0 8.6 8.9 12.0)"
    group.add_argument("--compute-capability", nargs="+", metavar="X.Y", default=(), help=text)
    add("--device", int, "which GPU TensorRT builds for (default: 0)", "N")

    add = arguments.option_adder(parser.add_argument_group("sizes"))
    add("--batch", _span, "streams at once (default: %(default)s)", "N", _DEFAULTS.batch)
    positive = arguments.parse_positive
    add("--chunk", positive, "latents per steady step (default: %(default)s)", "N", _DEFAULTS.chunk)
    for side in ("height", "width"):
        add(f"--{side}", _span, f"video {side} (default: {getattr(_DEFAULTS, side)}, or the bundle's)", "N")
    add("--size", arguments.parse_size, "one video size, in place of --height and --width", "HxW")
    text = "also steps and direct graphs of up to N latents, for verification"
    add("--whole-clip", positive, text, "N")

    group = parser.add_argument_group("choices")
    add = arguments.option_adder(group)
    add("--tf32", None, "round fp32 products to TF32: faster, less exact")
    level, text = _DEFAULTS.optimization_level, "how long to search for fast kernels (default: %(default)s)"
    group.add_argument("--optimization-level", type=int, default=level, choices=range(6), help=text)
    add("--workspace", arguments.parse_bytes, "scratch memory a kernel may use, such as 2G", "BYTES")
    add("--timing-cache", Path, "kernel timings to reuse and add to (default: in the bundle)", "FILE")
    add("--timing-cache-only", None, "take all choices from the cache; fail where it has none")
    add("--again", None, "also build engines that exist")
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Builds, and prints what was made."""
    from wfvae.export.tensorrt.build import TimingCacheFile, build_engines, timing_cache_path
    from wfvae.spec.manifest import Manifest

    settings = settings_from(args)
    Manifest.read(args.bundle)  # a wrong path is the likeliest mistake, and the cheapest to find
    trt, target, notes = _choose(args)
    cache = None
    if not trt.flavour.portable:
        path = args.timing_cache or timing_cache_path(args.bundle, target)
        cache = TimingCacheFile(path, args.timing_cache_only)
    with progress_bar("building", unit="steps") as advance:

        def progress(stage: str, done: int, total: int) -> None:
            advance(done, total or None, stage)

        report = build_engines(
            args.bundle, settings, target, trt, timing_cache=cache, again=args.again, progress=progress
        )
    data: dict[str, list[Any]] = {}
    lines = [f"{args.bundle}: engines with {target}", *notes]
    for label, records in (("built", report.built), ("kept", report.kept)):
        lines += [f"{label} {r.file}, {r.precision}, {mebibytes(r.bytes)}" for r in records]
        data[label] = [record.to_dict() for record in records]
    lines += [f"warning of {trt.flavour.title}: {text}" for text in report.warnings]
    show(args, {**data, "warnings": list(report.warnings)}, "\n".join(lines))
    return 0


def _choose(args: argparse.Namespace) -> tuple[TensorRT, Target, list[str]]:
    """Returns the builder, what it builds for, and remarks on the choice.

    Raises `InputError` for options of the other flavour, and whatever keeps the chosen one from
    building.
    """
    wanted = args.flavour
    if wanted == "auto" and args.compute_capability:
        wanted = "rtx"
    if wanted == "tensorrt":
        if args.compute_capability:
            problem = "--compute-capability was given, and a TensorRT engine is for the GPU that builds it"
            raise InputError(f"{problem}; leave it out, or use --flavour rtx")
        return (*_for_gpu(args), [])
    reason = ""
    if wanted == "auto":
        try:
            return (*_for_gpu(args), [])
        except WFVAEError as error:
            reason = str(error)
    return (*_for_any(args, reason), _remarks(reason))


def _for_gpu(args: argparse.Namespace) -> tuple[TensorRT, Target]:
    from wfvae.runtime.backends.nvidia.cuda import Cuda
    from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here

    trt = TensorRT.load(TENSORRT)
    return trt, target_here(trt, Cuda(args.device or 0))


def _for_any(args: argparse.Namespace, reason: str) -> tuple[TensorRT, Target]:
    try:
        trt = TensorRT.load(RTX)
    except MissingExtraError as error:
        if not reason:
            raise
        raise BundleError(f"TensorRT can't build here ({reason}), and {error}") from error
    given = {"--device": args.device is not None, "--timing-cache": args.timing_cache is not None}
    for option, is_given in {**given, "--timing-cache-only": args.timing_cache_only}.items():
        if is_given:
            why = f" ({reason})" if reason else ""
            problem = f"{option} was given, and {RTX.title} builds without a GPU and times no kernels{why}"
            raise InputError(f"{problem}; leave it out, or use --flavour tensorrt")
    return trt, portable_target(RTX, trt.version, args.compute_capability)


def _remarks(reason: str) -> list[str]:
    found = [f"{RTX.title} needs no GPU to build; kernels are compiled where the engine runs"]
    return [f"TensorRT can't build here: {reason}", *found] if reason else found


def settings_from(args: argparse.Namespace) -> BuildSettings:
    """Returns the settings of a command line. Raises `InputError` if they contradict each other."""
    height, width = args.height or _DEFAULTS.height, args.width or _DEFAULTS.width
    if args.size is not None:
        if args.height is not None or args.width is not None:
            raise InputError("--size stands for --height and --width; give one or the other")
        height, width = map(Span.of, padded_size(*args.size))  # as the runtime pads
    same = ("batch", "chunk", "whole_clip", "tf32", "optimization_level", "workspace")
    return BuildSettings(height=height, width=width, **{name: getattr(args, name) for name in same})
