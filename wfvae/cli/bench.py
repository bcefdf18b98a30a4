"""`wfvae bench`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from wfvae.cli.arguments import add_bundle_arguments, add_json_argument, open_from, parse_positive, parse_size
from wfvae.cli.output import mebibytes, progress_bar, show
from wfvae.errors import InputError
from wfvae.machine import describe_machine

if TYPE_CHECKING:
    from rich.table import Table

    from wfvae.runtime.bundle import Bundle
    from wfvae.runtime.chunk_speed import ChunkSpeed
    from wfvae.spec.stream import Direction
    from wfvae.spec.tuning import Setting

    Speeds = dict[Direction, list[ChunkSpeed]]
    Chosen = dict[Direction, ChunkSpeed]

SUMMARY = "measure a bundle's speed here, and choose the chunk length"
DESCRIPTION = """\
Streams a generated video through the bundle on this machine, in chunks of several lengths, and
prints frames per second, time per chunk and the share of it outside the engine. All lengths take
turns, and figures are medians. A chunk of N latents holds 4 N frames (8 N in a model with 8 frames
per latent), and its results come when all of them have arrived.

With --tune, the shortest chunk within 3 % of the fastest is stored in the bundle, for each
direction. Streams then use it by default, for video of this size, with the same backend, precision
hint and number of threads, on a machine with the same processor and cores. It changes no result,
and latents and snapshots stay valid.

  wfvae bench bundle/ --size 480x832 --tune"""

_COLUMNS = ("latents", "frames", "ms per chunk", "frames/s", "outside the engine", "planned memory")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_bundle_arguments(parser, chunk=False)
    add = parser.add_argument
    text = "video size (needed unless the bundle was exported for one)"
    add("--size", type=parse_size, metavar="HxW", help=text)
    text = "latents per step (default: 1 2 4 8)"
    add("--chunks", type=parse_positive, nargs="+", default=(1, 2, 4, 8), metavar="N", help=text)
    directions = ("both", "encode", "decode")
    add("--direction", choices=directions, default="both", help="what to measure (default: both)")
    add("--runs", type=parse_positive, default=5, metavar="N", help="turns that count (default: 5)")
    add("--tune", action="store_true", help="store the best chunk lengths in the bundle")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and stores the choice on request."""
    from wfvae.spec.tuning import Setting, Tuning

    with open_from(args) as bundle:
        size = args.size or bundle.manifest.size
        if size is None:
            problem = "this bundle takes video of any size, and speed depends on it"
            raise InputError(f"{problem}; give one, such as --size 480x832")
        described = bundle.backend.describe()
        setting = Setting.here(described)
        if args.tune:
            setting.require_named_device()
            Tuning.require_writable(bundle.path)
        speeds = _measure(bundle, size, args)
        chosen: Chosen = {}
        try:
            if args.tune:
                chosen = _store(bundle, size, setting, speeds)
        finally:  # the measurements are shown even if they cannot be stored
            data = {
                "bundle": bundle.identity,
                "backend": described,
                "machine": describe_machine(),
                "height": size[0],
                "width": size[1],
                "results": [speed.to_dict() for found in speeds.values() for speed in found],
                "tuned": {direction: speed.chunk for direction, speed in chosen.items()} or None,
            }
            show(args, data, _table(described, size, speeds, chosen))
    return 0


def _measure(bundle: Bundle, size: tuple[int, int], args: argparse.Namespace) -> Speeds:
    from wfvae.runtime.chunk_speed import measure_direction

    verbs: dict[Direction, str] = {"encoder": "encode", "decoder": "decode"}
    speeds = {}
    for direction, verb in verbs.items():
        if args.direction in ("both", verb):
            with progress_bar(f"measuring the {direction}") as advance:
                found = measure_direction(bundle, direction, size, args.chunks, args.runs, advance)
                speeds[direction] = found
    return speeds


def _store(bundle: Bundle, size: tuple[int, int], setting: Setting, speeds: Speeds) -> Chosen:
    from wfvae.runtime.chunk_speed import choose
    from wfvae.spec.frames import padded_size
    from wfvae.spec.tuning import TunedChunk

    version = bundle.backend.describe().get("version", "")
    chosen, entries = {}, []
    for direction, found in speeds.items():
        chosen[direction] = choose(found)
        seconds = {speed.chunk: speed.seconds_per_frame for speed in found}
        chunk = chosen[direction].chunk
        entries.append(TunedChunk(direction, *padded_size(*size), setting, chunk, seconds, version))
    bundle.store_tuning(*entries)
    return chosen


def _table(described: dict[str, str], size: tuple[int, int], speeds: Speeds, chosen: Chosen) -> Table:
    from rich.table import Table

    backend = ", ".join(f"{key} {value}" if key != "name" else value for key, value in described.items())
    runs = next(iter(speeds.values()))[0].runs
    table = Table(title=f"{size[0]}x{size[1]}, medians of {runs} runs; {backend}", title_justify="left")
    table.add_column("direction")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.add_column("")
    for speed in (speed for found in speeds.values() for speed in found):
        times = (
            f"{speed.seconds * 1e3:,.1f}",
            f"{speed.frames_per_second:,.2f}",
            f"{speed.outside_engine:.2%}",
        )
        stored = "stored" if chosen.get(speed.direction) is speed else ""
        counts = (str(speed.chunk), str(speed.frames))
        table.add_row(speed.direction, *counts, *times, mebibytes(speed.planned_bytes), stored)
    return table
