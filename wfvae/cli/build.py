"""`wfvae build`."""

import argparse
from pathlib import Path

from wfvae.cli import arguments
from wfvae.cli.output import mebibytes, progress_bar, show
from wfvae.errors import InputError
from wfvae.spec.frames import padded_size
from wfvae.spec.tensorrt_engines import BuildSettings, Span

SUMMARY = "TensorRT engines for this machine's GPU"
DESCRIPTION = """\
Builds one TensorRT engine per direction from a bundle's graphs into BUNDLE/engines/, and lists them
in the manifest. An engine runs on the GPU and TensorRT version that built it, for the sizes that it
was built for: N is one size, MIN:OPT:MAX a range and the size to optimise for.

  wfvae build bundle/ --size 480x832          one size, steps of 4 latents and shorter
  wfvae build bundle/ --batch 1:4:8 --chunk 2 --size 256x256
  wfvae build bundle/ --size 64x96 --whole-clip 8
                                              also what 'wfvae verify bundle/ --backend tensorrt'
                                              needs for 29 frames

Existing engines are kept. Ctrl-C stops a build without leaving partial files.
Experimental: not yet run on a GPU."""

_DEFAULTS = BuildSettings()


def _span(text: str) -> Span:
    try:
        return Span.parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_argument(parser)

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
    add("--device", int, "which GPU (default: %(default)s)", "N", 0)
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Builds, and prints what was made."""
    from wfvae.export.tensorrt.build import TimingCacheFile, build_engines, timing_cache_path
    from wfvae.runtime.backends.nvidia.cuda import Cuda
    from wfvae.runtime.backends.nvidia.tensorrt_backend import target_here
    from wfvae.spec.manifest import Manifest
    from wfvae.spec.tensorrt_api import TensorRT

    settings = settings_from(args)
    Manifest.read(args.bundle)  # a wrong path is the likeliest mistake, and the cheapest to find
    trt = TensorRT.load()
    target = target_here(trt, Cuda(args.device))
    path = args.timing_cache or timing_cache_path(args.bundle, target)
    cache = TimingCacheFile(path, args.timing_cache_only)
    with progress_bar("building", unit="steps") as advance:

        def progress(stage: str, done: int, total: int) -> None:
            advance(done, total or None, stage)

        report = build_engines(
            args.bundle, settings, target, trt, timing_cache=cache, again=args.again, progress=progress
        )
    lines, data = [f"{args.bundle}: engines for {target}"], {}
    for label, records in (("built", report.built), ("kept", report.kept)):
        lines += [f"{label} {r.file}, {r.precision}, {mebibytes(r.bytes)}" for r in records]
        data[label] = [record.to_dict() for record in records]
    show(args, data, "\n".join(lines))
    return 0


def settings_from(args: argparse.Namespace) -> BuildSettings:
    """Returns the settings of a command line. Raises `InputError` if they contradict each other."""
    height, width = args.height or _DEFAULTS.height, args.width or _DEFAULTS.width
    if args.size is not None:
        if args.height is not None or args.width is not None:
            raise InputError("--size stands for --height and --width; give one or the other")
        height, width = map(Span.of, padded_size(*args.size))  # as the runtime pads
    same = ("batch", "chunk", "whole_clip", "tf32", "optimization_level", "workspace")
    return BuildSettings(height=height, width=width, **{name: getattr(args, name) for name in same})
