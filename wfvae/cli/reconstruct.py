"""`wfvae reconstruct`."""

import argparse

from wfvae.cli import arguments
from wfvae.cli.output import progress_bar, show

SUMMARY = "video to its reconstruction, in one pass"
DESCRIPTION = """\
Encodes and decodes a video in one pass and in constant memory. Audio, timestamps (variable frame
rates too), pixel aspect, colour tags and HDR10 metadata are kept; a rotation in the metadata is
applied to the frames. Audio is copied from files, not from pipes, and left out where the output
cannot hold it (gif, images, raw frames). What the output cannot hold is named in the result.

  wfvae reconstruct bundle/ in.mp4 out.mp4"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_arguments(parser)
    parser.add_argument("video", metavar="VIDEO", help="file, directory of images, or - for standard input")
    parser.add_argument("out", metavar="OUT", help="file, directory for PNG images, or - for standard output")
    parser.add_argument("--no-audio", dest="audio", action="store_false", help="leave the audio out")
    arguments.add_input_arguments(parser)
    arguments.add_output_arguments(parser)
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Reconstructs, and prints the report."""
    from wfvae.runtime import reconstruct_video

    options = arguments.reading_options(args, args.video) | arguments.writing_options(args, args.out)
    with arguments.open_from(args) as bundle, progress_bar("reconstruct") as progress:
        report = reconstruct_video(
            bundle, args.video, args.out, chunk=args.chunk, audio=args.audio, progress=progress, **options
        )
    text = f"{report.destination}: {report.summary}{arguments.remarks(report)}"
    show(args, report.to_dict(), text, to_stderr=args.out == "-")
    return 0
