"""`wfvae unpack`."""

import argparse
from pathlib import Path

from wfvae.cli import arguments
from wfvae.cli.output import progress_bar, show

SUMMARY = "shards of latents to latents of single videos"
DESCRIPTION = """\
Writes each sample of a data set as latents of its own, named by its key, which 'wfvae decode' and
'wfvae inspect' read. The bits are those in the shards.

  wfvae unpack latents/ samples/
  wfvae unpack latents/ samples/ --key 000000007 --format safetensors"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    text = "folder made by 'wfvae encode-dataset' or 'wfvae pack'; a path or a URL"
    parser.add_argument("shards", metavar="SHARDS", help=text)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="gets a file or store for each sample")
    text = "sample to write, again for several (default: all)"
    parser.add_argument("--key", action="append", default=[], metavar="KEY", help=text)
    add = arguments.option_adder(parser)
    add("--format", ("zarr", "safetensors", "npy"), "what to write (default: zarr)", default="zarr")
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Unpacks, and prints the report."""
    from wfvae.runtime.dataset.conversion import unpack_latents

    with progress_bar("unpack", "samples") as bar:
        report = unpack_latents(
            args.shards,
            args.folder,
            file_format=args.format,
            keys=args.key,
            progress=lambda stage, done, total: bar(done, total, stage),
        )
    show(args, report.to_dict(), f"{report.destination}: {report.samples} samples, {report.frames} frames")
    return 0
