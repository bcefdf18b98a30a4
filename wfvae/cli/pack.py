"""`wfvae pack`."""

import argparse

from wfvae.cli import arguments
from wfvae.cli.output import progress_bar, show

SUMMARY = "latents of single videos to shards that a training job reads"
DESCRIPTION = """\
Writes latents that 'wfvae encode' made as a data set of WebDataset shards, in the format of
'wfvae encode-dataset' and with the same bits. 'wfvae unpack' is the way back.

  wfvae pack a.zarr b.zarr latents/
  wfvae pack encoded/*.safetensors latents/ --shard-size 256M"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    text = "made by 'wfvae encode': .zarr, .safetensors or .npy"
    parser.add_argument("latents", nargs="+", metavar="LATENTS", help=text)
    parser.add_argument("out", metavar="OUT", help="new folder of the shards; a path or a URL")
    arguments.add_shard_size_argument(parser, "256M")
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Packs, and prints the report."""
    from wfvae.runtime.dataset.conversion import pack_latents

    with progress_bar("pack", "samples") as bar:
        report = pack_latents(
            args.latents,
            args.out,
            shard_size=args.shard_size,
            progress=lambda stage, done, total: bar(done, total, stage),
        )
    text = f"{report.destination}: {report.samples} samples in {report.shards} shards; {report.frames} frames"
    show(args, report.to_dict(), text)
    return 0
