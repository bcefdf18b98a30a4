"""How do speed and memory compare with other video autoencoders, for the same clip?

    python benchmarks/peers_speed.py --json benchmarks/results/peers-cpu.json
    python benchmarks/peers_speed.py --only 'wfvae-S/*' wan --sizes 64
    python benchmarks/peers_speed.py --checkout cv-vae=CODE od-vae=CODE,WEIGHTS
    python benchmarks/peers_speed.py --reduced         small models: tests the program

Every measurement is a fresh process, and models take turns; figures are medians. Models are those
of diffusers, in their published width. WF-VAE has 16 latent channels, as CogVideoX, Wan and
HunyuanVideo have. Their weights are random: speed and memory do not depend on them. CV-VAE, OD-VAE
and Open-Sora VAE run from `--checkout NAME=CODE[,WEIGHTS]` (README.md). `--mode direct` runs
whole clips, `--mode blocks` the way that each library offers for long ones.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import product
from typing import Any

from harness.engines import DIRECTIONS, ENGINES, random_bundles
from harness.processes import run_turns
from harness.record import CommandLine, finish
from peers import CHECKOUTS, PEERS
from peers.checkouts import parse_checkout

PRESETS = ("S", "M", "L")
OUR_ENGINES = {"torch": "PyTorch", **ENGINES}


def contenders(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the jobs that `--only` selects, ours first: each is a model on an engine."""
    found = []
    for preset, engine in product(("tiny",) if options.reduced else PRESETS, OUR_ENGINES):
        name, title = f"wfvae-{preset}/{engine}", f"WF-VAE-{preset} {OUR_ENGINES[engine]}"
        found.append({"name": name, "title": title, "engine": engine, "preset": preset})
    for name, peer in PEERS.items():
        found.append({"name": name, "title": peer.title, "engine": "peer", "peer": name})
    for name, checkout in CHECKOUTS.items():
        given = options.checkout.get(name)
        job = {"name": name, "title": checkout.title_of(given), "engine": "peer", "peer": name}
        about = {"weights": given.label, "version": checkout.version} if given else {}
        found.append({**job, "checkout": given, "about": about})
    keys = ("threads", "frames", "sizes", "mode", "latent_channels", "reduced")
    common = {key: getattr(options, key) for key in keys}
    return [one | common for one in found if any(fnmatch(one["name"], name) for name in options.only)]


def summary(job: dict[str, Any], runs: list[dict[str, Any]] | str) -> dict[str, Any]:
    """Returns medians by size, or the reason why there are none."""
    row: dict[str, Any] = {"name": job["name"], "title": job["title"]}
    if isinstance(runs, str):
        return {**row, "not_measured": runs}
    row |= job.get("about", {})
    row |= {key: runs[0][key] for key in ("parameters", "latent_channels", "compression", "loaded_mb")}
    cases = zip(*(run["cases"] for run in runs), strict=True)
    return {**row, "runs": len(runs), "sizes": [medians(case) for case in cases]}


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the medians of one size."""
    first = runs[0]
    if "not_measured" in first:
        return {"size": first["size"], "not_measured": first["not_measured"]}
    found: dict[str, Any] = {"size": first["size"], "frames": first["frames"]}
    for name in DIRECTIONS:
        seconds, cpu_seconds = ([run[name][key] for run in runs] for key in ("seconds", "cpu_seconds"))
        found[name] = {
            "all_seconds": seconds,
            "ms_per_frame": statistics.median(seconds) / first["frames"] * 1e3,
            "cpu_ms_per_frame": statistics.median(cpu_seconds) / first["frames"] * 1e3,
            "peak_mb": statistics.median(run[name]["peak_mb"] for run in runs),
        }
    return found


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandLine(__doc__, "peers-cpu.json", frames=17, runs=3)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="such as 'wfvae-*' or wan")
    parser.add_argument("--mode", choices=("direct", "blocks"), default="direct")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="multiples of 32")
    parser.add_argument("--latent-channels", type=int, default=16, help="of WF-VAE")
    checkout = "NAME=CODE[,WEIGHTS]"
    parser.add_argument("--checkout", type=parse_checkout, nargs="+", default=[], metavar=checkout)
    parser.add_argument("--reduced", action="store_true", help="small models of the same structure")
    options = parser.parse_args(arguments)
    if any(size < 32 or size % 32 for size in options.sizes):
        parser.error(f"--sizes are {options.sizes}; expected multiples of 32")
    if options.frames < 9:
        parser.error(f"--frames is {options.frames}; expected at least 9")
    options.checkout = dict(options.checkout)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    jobs = contenders(options)
    if not jobs:
        print(f"error: no model is called {' or '.join(options.only)}", file=sys.stderr)
        return 2
    presets = dict.fromkeys(job["preset"] for job in jobs if "preset" in job and job["engine"] != "torch")
    with random_bundles(presets, options.threads, latent_dim=options.latent_channels) as bundles:
        present = [{**job, "bundle": bundles.get(job.get("preset"))} for job in jobs]
        found = run_turns("peers_worker:measure", present, options.runs, options.threads)
    rows = [summary(job, runs) for job, runs in zip(jobs, found, strict=True)]
    job = {key: getattr(options, key) for key in ("mode", "frames", "latent_channels", "sizes", "reduced")}
    finish(options, "peers", job=job, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
