"""`wfvae evaluate`."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from wfvae.cli.arguments import add_execution_arguments, add_json_argument, option_adder, parse_positive
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
    text = "original video, or folder of videos"
    parser.add_argument("real", nargs="?", type=Path, metavar="REAL", help=text)
    text = "its reconstruction, or folder of reconstructions"
    parser.add_argument("reconstruction", nargs="?", type=Path, metavar="RECON", help=text)
    add = option_adder(parser)
    add("--bundle", Path, "reconstruct with this bundle instead of reading RECON", "BUNDLE")
    add("--data", Path, "with --bundle: the original videos", "DIR")
    add("--compare", Path, "other reconstructions of the same videos, for paired differences", "RECON")
    add("--compare-bundle", Path, "the same, reconstructed with this bundle", "BUNDLE")
    add("--matched", None, "score only videos found on both sides, instead of refusing")

    title = "labels in the tables (a bundle knows its channels and compression)"
    add = option_adder(parser.add_argument_group(title))
    for prefix, what in (("--", "the reconstructions"), ("--compare-", "the second set")):
        add(f"{prefix}name", str, f"name of {what} (default: that of the folder or bundle)", "NAME")
        add(f"{prefix}channels", parse_positive, "latent channels of the model that made the files", "N")
        add(f"{prefix}compression", _parse_compression, "its compression, such as 4x8x8", "TxHxW")

    add = option_adder(parser.add_argument_group("protocol"))
    add("--frames", parse_positive, "consecutive frames of each video (default: 33)", "N")
    add("--size", parse_positive, "resize the short side, crop a square of N (default: 256)", "N")
    add("--window", ("first", "centre"), "which frames (default: %(default)s)", default="first")
    add("--whole", None, "whole videos at their own size")

    add = option_adder(parser.add_argument_group("metrics"))
    text = (
        "weights of LPIPS's backbone: a file of torchvision's state dict; random, to try out (default:"
        " torchvision's, downloaded)"
    )
    add("--lpips-weights", str, text, "FILE|random|none")
    add("--lpips-net", ("alex", "vgg"), "backbone of LPIPS (default: %(default)s)", default="alex")
    add("--i3d", Path, "TorchScript network of video features, for FVD", "FILE")

    add = option_adder(parser.add_argument_group("results"))
    add("--worst", parse_positive, "worst videos to name per metric (default: %(default)s)", "N", _SHOWN)
    add("--out", Path, "write evaluation.json and evaluation.md there", "DIR")
    add_execution_arguments(parser)
    add = option_adder(parser.add_argument_group("execution of --compare-bundle, where it differs"))
    text = "what runs its graphs (default: as --backend and --precision-hint)"
    add("--compare-backend", str, text, "NAME")
    add("--compare-precision-hint", ("fp32", "bf16"), "with openvino: what to compute in")
    add_json_argument(parser)


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
    whole = args.whole and (args.frames or args.size or args.window != "first")
    twice = args.compare is not None and args.compare_bundle is not None
    no_bundle, no_second = args.bundle is None, args.compare_bundle is None
    alternatives = "REAL and RECON, or --bundle BUNDLE --data DIR"
    of_second = _first_given(args, _OF_SECOND) if no_second and args.compare is None else None
    of_second_bundle = _first_given(args, _OF_SECOND_BUNDLE) if no_second else None
    problems = {
        "--bundle and --data belong together: --bundle BUNDLE --data DIR": no_bundle != (args.data is None),
        f"{args.real} was given beside --bundle; give either {alternatives}": not no_bundle and any(files),
        f"nothing to compare; give {alternatives}": no_bundle and not all(files),
        "--whole takes all frames at their own size; leave out --frames, --size and --window": whole,
        "--chunk is for --bundle; RECON is only read": no_bundle and no_second and args.chunk is not None,
        "--compare and --compare-bundle were both given; the second set is one of the two": twice,
        f"{of_second} is for a second set; give one with --compare or --compare-bundle": of_second,
        f"{of_second_bundle} is for --compare-bundle, which was not given": of_second_bundle,
    }
    for bundle, prefix in ((args.bundle, ""), (args.compare_bundle, "compare_")):
        given = _first_given(args, [prefix + name for name in _KNOWN_TO_BUNDLES])
        known = f"{given} was given for the bundle {bundle}, which knows its own; leave it out"
        problems[known] = bundle is not None and given
    for problem, applies in problems.items():
        if applies:
            raise InputError(problem)


def _first_given(args: argparse.Namespace, names: Sequence[str]) -> str | None:
    """Returns the first of these options that was given."""
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None), None)
