"""`wfvae evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from wfvae.cli.arguments import add_execution_arguments, add_json_argument, parse_positive
from wfvae.errors import InputError, MissingExtraError

SUMMARY = "score reconstructions: PSNR, SSIM, LPIPS, FVD"
DESCRIPTION = """\
Scores reconstructions against their originals, or a bundle by streaming the originals through it.
Videos are matched by their path below the folder, without suffix; a folder of images is a video. By
default as in the paper: 33 frames of 256x256 of each video. Means over videos with 95 % intervals,
the worst videos by name, and with --compare the difference of two reconstructions, paired.

  wfvae evaluate real/ reconstructed/
  wfvae evaluate --bundle bundle/ --data real/ --i3d i3d_torchscript.pt --out results/
  wfvae evaluate real/ ours/ --compare theirs/ --json
  wfvae evaluate --bundle ours/ --data real/ --compare-bundle theirs/

Exit code 1 if videos had to be skipped: unreadable, too short, or not of one size with their
original. docs/evaluation.md has the definitions."""

_SHOWN = 5
_KNOWN_TO_BUNDLES = ("channels", "compression")
_OF_SECOND = ("compare_name", "compare_channels", "compare_compression")
_OF_SECOND_BUNDLE = ("compare_backend", "compare_precision_hint")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "real", nargs="?", type=Path, metavar="REAL", help="original video, or folder of videos"
    )
    text = "its reconstruction, or folder of reconstructions"
    parser.add_argument("reconstruction", nargs="?", type=Path, metavar="RECON", help=text)
    text = "reconstruct with this bundle instead of reading RECON"
    parser.add_argument("--bundle", type=Path, metavar="BUNDLE", help=text)
    parser.add_argument("--data", type=Path, metavar="DIR", help="with --bundle: the original videos")
    text = "other reconstructions of the same videos, for paired differences"
    parser.add_argument("--compare", type=Path, metavar="RECON", help=text)
    text = "the same, reconstructed with this bundle"
    parser.add_argument("--compare-bundle", type=Path, metavar="BUNDLE", help=text)
    text = "score only videos found on both sides, instead of refusing"
    parser.add_argument("--matched", action="store_true", help=text)
    group = parser.add_argument_group("labels in the tables (a bundle knows its channels and compression)")
    _add_labels(group, "--", "the reconstructions")
    _add_labels(group, "--compare-", "the second set")
    _add_protocol(parser.add_argument_group("protocol"))
    _add_metrics(parser.add_argument_group("metrics"))
    group = parser.add_argument_group("results")
    text = "worst videos to name per metric (default: %(default)s)"
    group.add_argument("--worst", type=parse_positive, default=_SHOWN, metavar="N", help=text)
    text = "write evaluation.json and evaluation.md there"
    group.add_argument("--out", type=Path, metavar="DIR", help=text)
    add_execution_arguments(parser)
    group = parser.add_argument_group("execution of --compare-bundle, where it differs")
    text = "what runs its graphs (default: as --backend and --precision-hint)"
    group.add_argument("--compare-backend", metavar="NAME", help=text)
    text = "with openvino: what to compute in"
    group.add_argument("--compare-precision-hint", choices=("fp32", "bf16"), help=text)
    add_json_argument(parser)


def _add_protocol(group: argparse._ArgumentGroup) -> None:
    text = "consecutive frames of each video (default: 33)"
    group.add_argument("--frames", type=parse_positive, metavar="N", help=text)
    text = "resize the short side, crop a square of N (default: 256)"
    group.add_argument("--size", type=parse_positive, metavar="N", help=text)
    text = "which frames (default: %(default)s)"
    group.add_argument("--window", choices=("first", "centre"), default="first", help=text)
    group.add_argument("--whole", action="store_true", help="whole videos at their own size")


def _add_metrics(group: argparse._ArgumentGroup) -> None:
    text = (
        "weights of LPIPS's backbone: a file of torchvision's state dict; random, to try out (default:"
        " torchvision's, downloaded)"
    )
    group.add_argument("--lpips-weights", metavar="FILE|random|none", help=text)
    text = "backbone of LPIPS (default: %(default)s)"
    group.add_argument("--lpips-net", choices=("alex", "vgg"), default="alex", help=text)
    text = "TorchScript network of video features, for FVD"
    group.add_argument("--i3d", type=Path, metavar="FILE", help=text)


def _add_labels(group: argparse._ArgumentGroup, prefix: str, what: str) -> None:
    text = f"name of {what} (default: that of the folder or bundle)"
    group.add_argument(f"{prefix}name", metavar="NAME", help=text)
    text = "latent channels of the model that made the files"
    group.add_argument(f"{prefix}channels", type=parse_positive, metavar="N", help=text)
    text = "its compression, such as 4x8x8"
    group.add_argument(f"{prefix}compression", type=_parse_compression, metavar="TxHxW", help=text)


def _parse_compression(text: str) -> tuple[int, int, int]:
    """Parses `TxHxW` to (time, height, width)."""
    try:
        time, height, width = (parse_positive(part) for part in text.lower().split("x"))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a compression; expected TIMExHEIGHTxWIDTH, such as 4x8x8"
        ) from error
    return time, height, width


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the scores, and returns 1 if videos were skipped."""
    _check_usage(args)
    for package in ("torch", "scipy", "skimage"):
        if find_spec(package) is None:
            raise MissingExtraError("evaluation", package, "eval")
    from wfvae.cli.evaluate_run import EvaluationRun

    return EvaluationRun(args).run()


def _check_usage(args: argparse.Namespace) -> None:
    """Raises `InputError` for arguments that exclude each other."""
    files = (args.real, args.reconstruction)
    second = args.compare is not None or args.compare_bundle is not None
    if (args.bundle is None) != (args.data is None):
        raise InputError("--bundle and --data belong together: --bundle BUNDLE --data DIR")
    if args.bundle is not None and any(files):
        raise InputError(
            f"{args.real} was given beside --bundle; give either REAL and RECON, or --bundle BUNDLE"
            " --data DIR"
        )
    if args.bundle is None and not all(files):
        raise InputError("nothing to compare; give REAL and RECON, or --bundle BUNDLE --data DIR")
    if args.whole and (args.frames or args.size or args.window != "first"):
        raise InputError(
            "--whole takes all frames at their own size; leave out --frames, --size and --window"
        )
    if args.bundle is None and args.compare_bundle is None and args.chunk is not None:
        raise InputError("--chunk is for --bundle; RECON is only read")
    if args.compare is not None and args.compare_bundle is not None:
        raise InputError("--compare and --compare-bundle were both given; the second set is one of the two")
    if not second and (given := _first_given(args, _OF_SECOND)):
        raise InputError(f"{given} is for a second set; give one with --compare or --compare-bundle")
    if args.compare_bundle is None and (given := _first_given(args, _OF_SECOND_BUNDLE)):
        raise InputError(f"{given} is for --compare-bundle, which was not given")
    for bundle, prefix in ((args.bundle, ""), (args.compare_bundle, "compare_")):
        names = [prefix + name for name in _KNOWN_TO_BUNDLES]
        if bundle is not None and (given := _first_given(args, names)):
            raise InputError(f"{given} was given for the bundle {bundle}, which knows its own; leave it out")


def _first_given(args: argparse.Namespace, names: Sequence[str]) -> str | None:
    """Returns the first of these options that was given."""
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None), None)
