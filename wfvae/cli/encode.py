"""`wfvae encode`."""

from __future__ import annotations

import argparse
from pathlib import Path

from wfvae.cli.arguments import (
    add_bundle_arguments,
    add_input_arguments,
    add_json_argument,
    add_resume_arguments,
    check_rate,
    open_from,
    raw_layout,
    remarks,
)
from wfvae.cli.output import progress_bar, show

SUMMARY = "video to latents, in constant memory"
DESCRIPTION = """\
Streams a video of any length and size through the encoder.

  wfvae encode bundle/ in.mp4 latents.zarr           a stream: readable while it is written, and after a kill
  wfvae encode bundle/ in.mp4 latents.safetensors    a clip; also .npy
  wfvae encode bundle/ frames/ latents.npy --fps 24  a directory of images
  wfvae encode bundle/ - latents.zarr < in.mkv       a pipe

Latents are written as (time, channels, height / 8, width / 8), unscaled. After an interruption, even a kill -9, the same
command with --resume goes on and ends with the same bits."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_bundle_arguments(parser)
    parser.add_argument("video", metavar="VIDEO", help="file, directory of images, or - for standard input")
    parser.add_argument("latents", type=Path, metavar="LATENTS", help=".zarr, .safetensors or .npy")
    add_resume_arguments(parser)
    add_input_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Encodes, and prints the report."""
    from wfvae.runtime import encode_video

    check_rate(args, args.video)
    with open_from(args) as bundle, progress_bar("encode") as progress:
        report = encode_video(
            bundle,
            args.video,
            args.latents,
            chunk=args.chunk,
            resume=args.resume,
            checkpoint_seconds=args.checkpoint_every,
            raw=raw_layout(args),
            fps=args.fps,
            keep_damaged=args.keep_damaged,
            progress=progress,
        )
    resumed = f", resumed at frame {report.resumed_at}" if report.resumed_at else ""
    total = report.resumed_at + report.frames
    uneven = (
        f"; variable frame rate: latents keep the average, {report.fps:.3f} fps"
        if report.variable_frame_rate
        else ""
    )
    text = (
        f"{report.destination}: {report.latents} latents of {total} frames"
        f" {report.height}x{report.width}{resumed}; {report.frames_per_second:.1f}"
        f" frames/s{uneven}{remarks(report)}"
    )
    show(args, report.to_dict(), text)
    return 0
