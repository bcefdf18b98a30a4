"""`wfvae plan`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from wfvae.cli import arguments
from wfvae.cli.output import mebibytes, show, text_table
from wfvae.spec.frames import DEFAULT_CHUNK

if TYPE_CHECKING:
    from wfvae.spec.stream import Direction

SUMMARY = "memory that streams will need, before anything is allocated"
DESCRIPTION = """\
Prints the bytes of state, input and output, activations and weights of streams of a given size,
computed from the manifest alone.

  wfvae plan bundle/ --size 480x832 --streams 4 --limit 16G    exit code 2 if it does not fit"""

_COLUMNS = ("", "state per stream", "state held", "input and output", "activations", "weights", "total")
_CAPTION = (
    "State is held in two buffers. Activations are what the graph needs at once; a backend's packing comes"
    " on top."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add, positive = arguments.option_adder(parser), arguments.parse_positive
    arguments.add_bundle_argument(parser)
    parser.add_argument(
        "--size", type=arguments.parse_size, required=True, metavar="HxW", help="video height and width"
    )
    add("--streams", positive, "streams at once (default: 1)", "N", 1)
    text = "latents per step (default: %(default)s, also where 'wfvae bench --tune' stored another one)"
    add("--chunk", positive, text, "N", DEFAULT_CHUNK)
    add("--limit", arguments.parse_bytes, "refuse if a direction needs more, such as 8G", "BYTES")
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the plan of both directions."""
    from wfvae.spec.manifest import Manifest
    from wfvae.spec.memory import plan_memory

    manifest = Manifest.read(args.bundle)
    directions: tuple[Direction, ...] = ("encoder", "decoder")
    height, width = args.size
    plans = [plan_memory(manifest, way, height, width, args.streams, args.chunk) for way in directions]
    rows = []
    for plan in plans:
        if args.limit is not None:
            plan.require(args.limit)
        state = (plan.state_bytes, plan.held_state_bytes)
        parts = (*state, plan.io_bytes, plan.scratch_bytes, plan.weights_bytes, plan.total_bytes)
        rows.append((plan.direction, *map(mebibytes, parts)))
    streams = f"{args.streams} stream(s) of {height}x{width}"
    title = f"{streams}, {args.chunk} latents per step, {manifest.precision}"
    show(
        args, {plan.direction: plan.to_dict() for plan in plans}, text_table(_COLUMNS, rows, title, _CAPTION)
    )
    return 0
