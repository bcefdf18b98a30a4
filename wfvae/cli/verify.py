"""`wfvae verify`."""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wfvae.cli import arguments
from wfvae.cli.output import show
from wfvae.errors import InputError, MissingExtraError
from wfvae.files import write_whole

SUMMARY = "prove that the stream equals direct inference, bit by bit"
DESCRIPTION = """\
Checks these statements, in both directions, and prints numbers for each:

  plan invariance   any chunk plan, any interleaving of streams, any snapshot in between give the
                    same bits
  stream = direct   the stream gives what direct inference of the whole clip gives (through the
                    graph without state, which is there unless exported with --no-direct)
  backend = model   with --against CHECKPOINT: the exported graphs against PyTorch in float32 and
                    float64
  backend = onnxruntime   on any other backend or provider: against ONNX Runtime on the CPU

On ONNX Runtime's CPU provider in fp32, and on OpenVINO for bundles in fp32 with either precision
hint, the first two must hold with equal bits; so must the first for bundles in bf16 on OpenVINO.
Exit code 1 if a check fails; on ONNX Runtime the first tensor that differs is then named.

  wfvae verify bundle/ --video in.mp4 --frames 33 --certificate parity.json"""

DEFAULT_FRAMES = 29
DEFAULT_SIZE = (64, 96)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_arguments(parser, chunk=False)
    add, frames = arguments.option_adder(parser), "frames to use (default: %(default)s)"
    add("--video", str, "clip to check with (default: a generated one)", "VIDEO")
    add("--frames", arguments.parse_positive, frames, "N", DEFAULT_FRAMES)
    add("--size", arguments.parse_size, "size of the generated clip (default: 64x96)", "HxW")
    add("--against", str, "also compare with this checkpoint in PyTorch", "CHECKPOINT")
    add("--certificate", Path, "write a certificate: hashes, versions, machine, checks (JSON)", "FILE")
    arguments.add_input_arguments(parser)
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Verifies, prints the table, and returns 1 if a check failed."""
    try:
        from wfvae.export.parity import render_table, verify
    except ModuleNotFoundError as error:
        raise MissingExtraError("verification", str(error.name), "export") from error
    from rich.console import Console

    model = None
    if args.against is not None:
        from wfvae.model.vae import WFVAE

        model = WFVAE.from_pretrained(args.against)
    with arguments.open_from(args) as bundle, Console(stderr=True).status("verifying") as status:

        def progress(stage: str, done: int, total: int) -> None:
            status.update(f"verifying {stage} ({done} of {total})")

        frames, source = _clip(args, bundle.manifest.size)
        result = verify(bundle, frames, against=model, progress=progress)
    if args.certificate is not None:
        write_whole(args.certificate, json.dumps(result.certificate(source), indent=2) + "\n")
    show(args, result.to_json(), render_table(result))
    return 0 if result.passed else 1


def _clip(args: argparse.Namespace, fixed: tuple[int, int] | None) -> tuple[npt.NDArray[np.uint8], str]:
    """Returns the frames to check with, and a description."""
    if args.video is None:
        from wfvae.video.synthetic.clips import ProceduralClip

        height, width = args.size or fixed or DEFAULT_SIZE
        clip = ProceduralClip(0, height, width, args.frames)
        return clip.frames(0, args.frames), f"procedural clip, seed 0, {height}x{width}"
    if args.size is not None:
        raise InputError("--size is for the generated clip; a video has its own size")
    from wfvae.runtime.media.video_reader import open_video

    with open_video(args.video, **arguments.reading_options(args, args.video)) as reader:
        frames = np.stack(list(itertools.islice(iter(reader), args.frames)))
    return frames, Path(args.video).name
