"""How do speed and memory compare with other video autoencoders, for the same clips?

    python benchmarks/peers_speed.py --json benchmarks/results/peers-cpu.json
    python benchmarks/peers_speed.py --frames 17 33 --sizes 64 128 --runs 1 --json FILE
    python benchmarks/peers_speed.py --frames 17 --sizes 256 --json FILE --resume   adds to FILE
    python benchmarks/peers_speed.py --only 'wfvae-S/*' wan
    python benchmarks/peers_speed.py --checkout cv-vae=CODE od-vae=CODE,WEIGHTS
    python benchmarks/peers_speed.py --reduced         small models: tests the program

Every measurement of a model and a clip is a fresh process, and models take turns. FILE is written
after each, and `--resume` measures only what it lacks. Models are those of diffusers, in their
published width. WF-VAE has 16 latent channels, as CogVideoX, Wan and HunyuanVideo have; for
OpenVINO in bf16 on a CPU with AMX, it is exported with `--target openvino`. Weights are random:
speed and memory do not depend on them. CV-VAE, OD-VAE and Open-Sora VAE run from `--checkout
NAME=CODE[,WEIGHTS]` (README.md). `--mode direct` runs whole clips, `--mode blocks` the way that
each library offers for long ones.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from itertools import product
from typing import Any

from harness.engines import ENGINES, random_bundles
from harness.memory import is_out_of_memory, more_than
from harness.processes import PATIENCE, NotMeasured, no_result_after, run_isolated
from harness.record import CommandLine, finish, positive, save
from peers import CHECKOUTS, PEERS
from peers.checkouts import parse_checkout

Row = dict[str, Any]
PRESETS = ("S", "M", "L")
OUR_ENGINES = {"torch": "PyTorch", **ENGINES}
TARGETS = ("auto", "openvino")
"""Of bundles."""
MEMORY_SHARE = 0.8
"""Of the machine's, that a model may take by default."""
COMMON = ("mode", "latent_channels", "reduced")
"""Options that all measurements of a file share."""
NO_CODE = "its code is in no library; give a local checkout with --checkout"


def contenders(options: argparse.Namespace) -> list[tuple[dict[str, Any], Row]]:
    """Returns models on engines that `--only` selects, ours first: job and result without clips."""
    found: list[tuple[dict[str, Any], Row]] = []
    for preset, engine in product(("tiny",) if options.reduced else PRESETS, OUR_ENGINES):
        row = {"name": f"wfvae-{preset}/{engine}", "title": f"WF-VAE-{preset} {OUR_ENGINES[engine]}"}
        job = {"engine": engine, "preset": preset, "target": "auto"}
        if engine == "openvino-bf16" and "amx_bf16" in options.machine["cpu_features"]:
            job["target"] = "openvino"
            row = {"name": row["name"] + "-amx", "title": row["title"] + " (AMX)"}
        found.append((job, row))
    for name, peer in PEERS.items():
        found.append(({"engine": "peer", "peer": name}, {"name": name, "title": peer.title}))
    for name, checkout in CHECKOUTS.items():
        given = options.checkout.get(name)
        row = {"name": name, "title": checkout.title_of(given)}
        row |= {"weights": given.label, "version": checkout.version} if given else {"not_measured": NO_CODE}
        found.append(({"engine": "peer", "peer": name, "checkout": given}, row))
    common = {key: getattr(options, key) for key in ("threads", "memory_gb", *COMMON)}
    chosen = [(job, row) for job, row in found if any(fnmatch(row["name"], name) for name in options.only)]
    return [(job | common, {**row, "clips": []}) for job, row in chosen]


def kept_rows(options: argparse.Namespace) -> dict[str, Row]:
    """Returns the rows of the file that is resumed, by name.

    Raises:
        ValueError: it was measured with other options or on another machine.
    """
    result = json.loads(options.json.read_text(encoding="utf-8"))
    now = {**options.machine, **options.job}
    for name, value in {**result["machine"], **result["job"]}.items():
        # What was written has fewer digits.
        if name != "load_average" and name in now and not isinstance(value, float) and value != now[name]:
            raise ValueError(f"it has {name} {value}, now it is {now[name]}")
    return {row["name"]: row for row in result["rows"]}


def joined(kept: dict[str, Row], rows: Sequence[Row]) -> list[Row]:
    """Returns new rows with the clips that were measured, and rows that only the file has.

    Raises:
        ValueError: the file's are of other weights or of another version of the code.
    """
    for row in rows:
        old = kept.get(row["name"], {})
        for key in ("weights", "version"):
            if key in old and key in row and old[key] != row[key]:
                raise ValueError(f"it has {row['name']} with {key} {old[key]!r}, now {row[key]!r}")
        if old.get("clips"):
            row |= {key: value for key, value in old.items() if key not in ("not_measured", "title")}
            row.pop("not_measured", None)
    names = {row["name"] for row in rows}
    return [*rows, *(row for name, row in kept.items() if name not in names)]


def pending(row: Row, frames: int, size: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Returns a clip of a row, added if it is new, unless it needs no further run."""
    if "not_measured" in row:
        return None
    found = [clip for clip in row["clips"] if (clip["frames"], clip["size"]) == (frames, size)]
    if not found:
        found = [{"frames": frames, "size": size, "runs": []}]
        row["clips"] += found
    [clip] = found
    exceeded = clip.get("not_measured") in (more_than(options.memory_gb), no_result_after(options.time_limit))
    return None if exceeded or len(clip["runs"]) >= options.runs else clip


def measure(job: dict[str, Any], row: Row, clip: dict[str, Any], options: argparse.Namespace) -> None:
    """Adds a run to a clip, or the reason why there is none."""
    clip.pop("not_measured", None)
    wanted = {**job, "frames": clip["frames"], "size": clip["size"]}
    try:
        found = run_isolated("peers_worker:measure", wanted, options.threads, options.time_limit)
    except NotMeasured as reason:
        text = str(reason)
        clip["not_measured"] = more_than(options.memory_gb) if is_out_of_memory(text) else text
    else:
        row |= found["about"]
        clip["frames_taken"] = found["frames_taken"]
        clip["runs"].append(found["run"])


def turns(
    jobs: Sequence[tuple[dict[str, Any], Row]], options: argparse.Namespace
) -> Iterator[tuple[dict[str, Any], Row, dict[str, Any]]]:
    """Yields jobs with their row and clip: small clips first, all models in a turn."""
    sizes = sorted(product(options.frames, options.sizes), key=lambda clip: clip[0] * clip[1] ** 2)
    failed = set()
    for (frames, size), turn in product(sizes, range(options.runs)):
        for job, row in jobs:
            clip = pending(row, frames, size, options)
            if clip is not None and len(clip["runs"]) <= turn and id(clip) not in failed:
                yield job, row, clip
                if "not_measured" in clip:
                    failed.add(id(clip))


@contextmanager
def bundles(
    jobs: Sequence[dict[str, Any]], options: argparse.Namespace
) -> Iterator[dict[tuple[Any, Any], str]]:
    """Yields folders of the bundles that jobs need, by target and preset."""
    found = {}
    with ExitStack() as stack:
        for target in TARGETS:
            needs = (job for job in jobs if job["engine"] in ENGINES and job["target"] == target)
            presets = dict.fromkeys(job["preset"] for job in needs)
            made = random_bundles(presets, options.threads, target, latent_dim=options.latent_channels)
            found |= {(target, preset): path for preset, path in stack.enter_context(made).items()}
        yield found


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandLine(__doc__, "peers-cpu.json", runs=3)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="such as 'wfvae-*' or wan")
    parser.add_argument("--mode", choices=("direct", "blocks"), default="direct")
    parser.add_argument("--frames", type=positive, nargs="+", default=[17], help="of the clips, at least 9")
    parser.add_argument("--sizes", type=positive, nargs="+", default=[64, 128], help="multiples of 32")
    parser.add_argument("--latent-channels", type=int, default=16, help="of WF-VAE")
    checkout = "NAME=CODE[,WEIGHTS]"
    parser.add_argument("--checkout", type=parse_checkout, nargs="+", default=[], metavar=checkout)
    parser.add_argument("--reduced", action="store_true", help="small models of the same structure")
    parser.add_argument("--resume", action="store_true", help="keep what the file of --json has")
    memory = f"of one model and clip (default: {MEMORY_SHARE:.0%} of this machine's)"
    parser.add_argument("--memory-gb", type=positive, help=memory.replace("%", "%%"))
    parser.add_argument(
        "--time-limit", type=positive, default=PATIENCE, metavar="SECONDS", help="of the same"
    )
    options = parser.parse_args(arguments)
    if any(size % 32 for size in options.sizes):
        parser.error(f"--sizes are {options.sizes}; expected multiples of 32")
    if min(options.frames) < 9:
        parser.error(f"--frames are {options.frames}; expected at least 9")
    if options.resume and options.json is None:
        parser.error("--resume needs --json FILE")
    options.checkout = dict(options.checkout)
    options.memory_gb = options.memory_gb or max(1, int(MEMORY_SHARE * options.machine["memory_gb"]))
    options.job = {key: getattr(options, key) for key in COMMON}
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    jobs = contenders(options)
    if not jobs:
        print(f"error: no model is called {' or '.join(options.only)}", file=sys.stderr)
        return 2
    try:
        kept = kept_rows(options) if options.resume and options.json.exists() else {}
        rows = joined(kept, [row for _, row in jobs])
    except (ValueError, KeyError, TypeError) as error:
        print(f"error: {options.json} cannot be resumed: {error}; use another file", file=sys.stderr)
        return 2
    with bundles([job for job, _, _ in turns(jobs, options)], options) as found:
        for job, row, clip in turns(jobs, options):
            print(f"{clip['frames']} frames, {clip['size']} pixels: {row['name']}", file=sys.stderr)
            bundle = found.get((job.get("target"), job.get("preset")))
            measure({**job, "bundle": bundle}, row, clip, options)
            save(options, job=options.job, rows=rows)
    finish(options, "peers", "peers-memory", job=options.job, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
