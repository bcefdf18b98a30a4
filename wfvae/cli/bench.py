"""`wfvae bench`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from wfvae.cli import arguments
from wfvae.cli.output import mebibytes, progress_bar, show, text_table
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

_COLUMNS = ("direction", "latents", "frames", "ms per chunk", "frames/s", "outside the engine")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_arguments(parser, chunk=False)
    add = arguments.option_adder(parser)
    add("--size", arguments.parse_size, "video size (needed unless the bundle was exported for one)", "HxW")
    text, positive = "latents per step (default: 1 2 4 8)", arguments.parse_positive
    parser.add_argument("--chunks", type=positive, nargs="+", default=(1, 2, 4, 8), metavar="N", help=text)
    add("--direction", ("both", "encode", "decode"), "what to measure (default: both)", default="both")
    add("--runs", positive, "turns that count (default: 5)", "N", 5)
    add("--tune", None, "store the best chunk lengths in the bundle")
    arguments.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, and stores the choice on request."""
    from wfvae.spec.tuning import Setting, Tuning

    with arguments.open_from(args) as bundle:
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
    backend = ", ".join(f"{key} {value}" if key != "name" else value for key, value in described.items())
    rows = [
        (
            speed.direction,
            str(speed.chunk),
            str(speed.frames),
            f"{speed.seconds * 1e3:,.1f}",
            f"{speed.frames_per_second:,.2f}",
            f"{speed.outside_engine:.2%}",
            mebibytes(speed.planned_bytes),
            "stored" if chosen.get(speed.direction) is speed else "",
        )
        for found in speeds.values()
        for speed in found
    ]
    runs = next(iter(speeds.values()))[0].runs
    title = f"{size[0]}x{size[1]}, medians of {runs} runs; {backend}"
    return text_table((*_COLUMNS, "planned memory", ""), rows, title)
