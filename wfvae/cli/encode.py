"""`wfvae encode`."""

import argparse
from pathlib import Path

from wfvae.cli import arguments
from wfvae.cli.output import progress_bar, show

SUMMARY = "video to latents, in constant memory"
DESCRIPTION = """\
Streams a video of any length and size through the encoder.

  wfvae encode bundle/ in.mp4 latents.zarr           a stream: readable at any time, also after a kill
  wfvae encode bundle/ in.mp4 latents.safetensors    a clip; also .npy
  wfvae encode bundle/ frames/ latents.npy --fps 24  a directory of images
  wfvae encode bundle/ - latents.zarr < in.mkv       a pipe

Latents are written as (time, channels, height / 8, width / 8), unscaled. After an interruption, even
a kill -9, the same command with --resume continues and gives the same bits."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_arguments(parser)
    parser.add_argument("video", metavar="VIDEO", help="file, directory of images, or - for standard input")
    parser.add_argument("latents", type=Path, metavar="LATENTS", help=".zarr, .safetensors or .npy")
    arguments.add_resume_arguments(parser)
    arguments.add_input_arguments(parser)
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Encodes, and prints the report."""
    from wfvae.runtime import encode_video

    reading = arguments.reading_options(args, args.video)
    with arguments.open_from(args) as bundle, progress_bar("encode") as progress:
        report = encode_video(
            bundle,
            args.video,
            args.latents,
            chunk=args.chunk,
            resume=args.resume,
            checkpoint_seconds=args.checkpoint_every,
            progress=progress,
            **reading,
        )
    text = f"{report.destination}: {report.latents} latents of {report.summary}"
    if report.variable_frame_rate:
        text += f"; variable frame rate: latents keep the average, {report.fps:.3f} fps"
    text += arguments.remarks(report)
    show(args, report.to_dict(), text)
    return 0
