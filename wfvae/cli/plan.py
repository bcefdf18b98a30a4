"""`wfvae plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from wfvae.cli.arguments import add_json_argument, parse_bytes, parse_positive, parse_size
from wfvae.cli.output import mebibytes, show

SUMMARY = "memory that streams will need, before anything is allocated"
DESCRIPTION = """\
Tells the bytes of state, input and output, activations and weights of streams of a given size, from the manifest alone.

  wfvae plan bundle/ --size 480x832 --streams 4 --limit 16G    exit code 2 if it does not fit"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory made by 'wfvae export'")
    parser.add_argument(
        "--size", type=parse_size, required=True, metavar="HxW", help="video height and width"
    )
    parser.add_argument(
        "--streams",
        type=parse_positive,
        default=1,
        metavar="N",
        help="streams at once (default: %(default)s)",
    )
    parser.add_argument(
        "--chunk", type=parse_positive, default=4, metavar="N", help="latents per step (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=parse_bytes, metavar="BYTES", help="refuse if a direction needs more, such as 8G"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the plan of both directions."""
    from rich.table import Table

    from wfvae.spec.manifest import Manifest
    from wfvae.spec.memory import plan_memory

    manifest = Manifest.read(args.bundle)
    height, width = args.size
    plans = [
        plan_memory(manifest, "encoder", height, width, args.streams, args.chunk),
        plan_memory(manifest, "decoder", height, width, args.streams, args.chunk),
    ]
    if args.limit is not None:
        for plan in plans:
            plan.require(args.limit)
    table = Table(
        title=(
            f"{args.streams} stream(s) of {height}x{width}, {args.chunk} latents per step,"
            f" {manifest.precision}"
        ),
        title_justify="left",
    )
    for name in ("", "state per stream", "state held", "input and output", "activations", "weights", "total"):
        table.add_column(name, justify="left" if not name else "right")
    for plan in plans:
        parts = (
            plan.state_bytes,
            plan.held_state_bytes,
            plan.io_bytes,
            plan.scratch_bytes,
            plan.weights_bytes,
            plan.total_bytes,
        )
        table.add_row(plan.direction, *map(mebibytes, parts))
    table.caption = (
        "State is held in two buffers. Activations are what the graph needs at once; a backend's packing"
        " comes on top."
    )
    table.caption_justify = "left"
    show(args, {plan.direction: plan.to_dict() for plan in plans}, table)
    return 0
