"""`wfvae reconstruct`."""

from __future__ import annotations

import argparse

from wfvae.cli.arguments import (
    add_bundle_arguments,
    add_input_arguments,
    add_json_argument,
    add_output_arguments,
    check_rate,
    container_for,
    open_from,
    output_settings,
    raw_layout,
    remarks,
)
from wfvae.cli.output import progress_bar, show

SUMMARY = "video to its reconstruction, in one pass"
DESCRIPTION = """\
Encodes and decodes a video in one pass and in constant memory. Audio, timestamps (variable frame rates too) and colour tags are
carried over; a rotation that the source only states is applied to the frames. Audio is copied from files, not from pipes, and left
out where the output holds none (gif, images, raw frames).

  wfvae reconstruct bundle/ in.mp4 out.mp4"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_bundle_arguments(parser)
    parser.add_argument("video", metavar="VIDEO", help="file, directory of images, or - for standard input")
    parser.add_argument("out", metavar="OUT", help="file, directory for PNG images, or - for standard output")
    parser.add_argument("--no-audio", dest="audio", action="store_false", help="leave the audio out")
    add_input_arguments(parser)
    add_output_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Reconstructs, and prints the report."""
    from wfvae.runtime import reconstruct_video

    check_rate(args, args.video)
    container = container_for(args, args.out)
    with open_from(args) as bundle, progress_bar("reconstruct") as progress:
        report = reconstruct_video(
            bundle,
            args.video,
            args.out,
            chunk=args.chunk,
            raw=raw_layout(args),
            fps=args.fps,
            keep_damaged=args.keep_damaged,
            audio=args.audio,
            output=output_settings(args),
            container=container,
            progress=progress,
        )
    text = (
        f"{report.destination}: {report.frames} frames {report.height}x{report.width};"
        f" {report.frames_per_second:.1f} frames/s{remarks(report)}"
    )
    show(args, report.to_dict(), text, to_stderr=args.out == "-")
    return 0
