"""`wfvae decode`."""

import argparse
from pathlib import Path

from wfvae.cli import arguments
from wfvae.cli.output import progress_bar, show

SUMMARY = "latents to video, in constant memory"
DESCRIPTION = """\
Streams latents through the decoder: exactly as many frames as were encoded, in their size, rate,
pixel aspect and colour, with the HDR10 metadata of their source.

  wfvae decode bundle/ latents.zarr out.mp4
  wfvae decode bundle/ latents.zarr out.mp4 --audio-from in.mp4
  wfvae decode bundle/ latents.npy frames/                   PNG images
  wfvae decode bundle/ latents.zarr - --container rawvideo | \\
      ffplay -f rawvideo -pixel_format rgb24 -video_size 832x480 -

A file that was interrupted, even by a kill -9, is continued by the same command with --resume, to
the same bytes."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_arguments(parser)
    add = arguments.option_adder(parser)
    add("latents", Path, "made by 'wfvae encode'", "LATENTS")
    text = "file (mp4, mkv, webm, mov, gif), directory for PNG images, or - for standard output"
    add("video", str, text, "VIDEO")
    arguments.add_resume_arguments(parser)
    add("--any-bundle", None, "accept latents that another model encoded")
    add("--audio-from", Path, "copy this file's audio, in step with the video", "FILE")
    arguments.add_output_arguments(parser)
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Decodes, and prints the report."""
    from wfvae.runtime import decode_video

    writing = arguments.writing_options(args, args.video)
    with arguments.open_from(args) as bundle, progress_bar("decode") as progress:
        report = decode_video(
            bundle,
            args.latents,
            args.video,
            chunk=args.chunk,
            resume=args.resume,
            checkpoint_seconds=args.checkpoint_every,
            any_bundle=args.any_bundle,
            audio_from=args.audio_from,
            progress=progress,
            **writing,
        )
    text = f"{report.destination}: {report.summary}"
    if not report.complete:
        text += "; the encoding had not been finished"
    text += arguments.remarks(report)
    show(args, report.to_dict(), text, to_stderr=args.video == "-")
    return 0
