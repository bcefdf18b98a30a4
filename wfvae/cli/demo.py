"""`wfvae demo`."""

import argparse
from pathlib import Path

from wfvae.cli.arguments import add_json_argument, option_adder, parse_positive
from wfvae.cli.output import show
from wfvae.errors import MissingExtraError
from wfvae.files import prepare_folder

SUMMARY = "the whole job on a generated or given video, with a report"
DESCRIPTION = """\
Makes a clip of 10 s (or takes yours), exports the tiny model, streams the clip through encode and
decode, verifies that the stream equals direct inference, and writes reconstruction.mp4,
side_by_side.mp4 and report.html.

The tiny model was trained on procedural video only (docs/training.md): its pictures of anything
else are soft.

  wfvae demo
  wfvae demo my.mp4 --out demo/"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    text = "video to use (default: a generated clip of 10 s, 256x256)"
    parser.add_argument("video", nargs="?", metavar="VIDEO", help=text)
    add = option_adder(parser)
    add("--out", Path, "where to write (default: %(default)s)", "DIR", Path("demo"))
    add("--checkpoint", str, "model to use (default: the packaged tiny model)", "CHECKPOINT", "tiny")
    add("--threads", parse_positive, "CPU threads (default: all cores)", "N")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demo, and returns 1 if the verification failed."""
    try:
        from wfvae.cli.demo_run import run_demo
    except ModuleNotFoundError as error:
        raise MissingExtraError("the demo", str(error.name), "export") from error
    prepare_folder(args.out)
    result, text = run_demo(args.out, args.video, args.checkpoint, args.threads)
    show(args, result, text)
    return 0 if result["passed"] else 1
