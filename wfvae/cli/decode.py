"""`wfvae decode`."""

from __future__ import annotations

import argparse
from pathlib import Path

from wfvae.cli.arguments import (
    add_bundle_arguments,
    add_json_argument,
    add_output_arguments,
    add_resume_arguments,
    container_for,
    open_from,
    output_settings,
)
from wfvae.cli.output import progress_bar, show

SUMMARY = "latents to video, in constant memory"
DESCRIPTION = """\
Streams latents through the decoder: exactly as many frames as were encoded, in their size, rate and colour range.

  wfvae decode bundle/ latents.zarr out.mp4
  wfvae decode bundle/ latents.zarr out.mp4 --audio-from in.mp4
  wfvae decode bundle/ latents.npy frames/                   PNG images
  wfvae decode bundle/ latents.zarr - --container rawvideo | ffplay -f rawvideo -pixel_format rgb24 -video_size 832x480 -

A file that was interrupted, even by a kill -9, is continued by the same command with --resume and ends with the same bytes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_bundle_arguments(parser)
    parser.add_argument("latents", type=Path, metavar="LATENTS", help="made by 'wfvae encode'")
    parser.add_argument(
        "video",
        metavar="VIDEO",
        help="file (mp4, mkv, webm, mov, gif), directory for PNG images, or - for standard output",
    )
    add_resume_arguments(parser)
    parser.add_argument("--any-bundle", action="store_true", help="accept latents that another model encoded")
    parser.add_argument("--audio-from", type=Path, metavar="FILE", help="copy this file's audio")
    add_output_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Decodes, and prints the report."""
    from wfvae.runtime import decode_video

    container = container_for(args, args.video)
    with open_from(args) as bundle, progress_bar("decode") as progress:
        report = decode_video(
            bundle,
            args.latents,
            args.video,
            chunk=args.chunk,
            resume=args.resume,
            checkpoint_seconds=args.checkpoint_every,
            any_bundle=args.any_bundle,
            audio_from=args.audio_from,
            output=output_settings(args),
            container=container,
            progress=progress,
        )
    resumed = f", resumed at frame {report.resumed_at}" if report.resumed_at else ""
    unfinished = "" if report.complete else " (the encoding had not been finished)"
    total = report.resumed_at + report.frames
    text = (
        f"{report.destination}: {total} frames {report.height}x{report.width}{resumed}{unfinished};"
        f" {report.frames_per_second:.1f} frames/s"
    )
    show(args, report.to_dict(), text, to_stderr=args.video == "-")
    return 0
