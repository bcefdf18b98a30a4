"""How do speed and memory compare with other video autoencoders, for the same clip?

    python benchmarks/peers_speed.py --json benchmarks/results/peers-cpu.json
    python benchmarks/peers_speed.py --only 'wfvae-S/*' wan --sizes 64
    python benchmarks/peers_speed.py --checkout od-vae=CODE,WEIGHTS
    python benchmarks/peers_speed.py --reduced         small models: tests the program

Every measurement is a fresh process, and models take turns; figures are medians. Models are those
of diffusers, in their published width. WF-VAE has 16 latent channels, as CogVideoX, Wan and
HunyuanVideo have. Weights are random: speed and memory do not depend on them. `--mode direct` runs
whole clips, `--mode blocks` the way that each library offers for long ones. FILE.svg is drawn, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import charts
from harness import tables
from harness.engines import DIRECTIONS, ENGINES
from harness.processes import run_isolated, run_turns
from harness.record import command_line, finish, machine
from peers import CHECKOUTS, PEERS
from peers.checkouts import parse_checkout

PRESETS = ("S", "M", "L")
OUR_ENGINES = {"torch": "PyTorch", **ENGINES}


@dataclass(frozen=True)
class Contender:
    """One row: a model on an engine."""

    name: str
    title: str
    job: dict[str, Any]
    problem: str | None = None
    """Why it cannot be measured."""

    def summary(self, runs: list[dict[str, Any]] | str) -> dict[str, Any]:
        """Returns medians by size, or the reason why there are none."""
        row: dict[str, Any] = {"name": self.name, "title": self.title}
        if isinstance(runs, str):
            return {**row, "not_measured": runs}
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
        seconds = [run[name]["seconds"] for run in runs]
        found[name] = {
            "all_seconds": seconds,
            "ms_per_frame": statistics.median(seconds) / first["frames"] * 1e3,
            "peak_mb": statistics.median(run[name]["peak_mb"] for run in runs),
        }
    return found


def contenders(options: argparse.Namespace, folder: Path) -> list[Contender]:
    """Returns those that `--only` selects, ours first."""
    common = {key: getattr(options, key) for key in ("threads", "frames", "sizes", "mode")}
    found = []
    for preset in ("tiny",) if options.reduced else PRESETS:
        ours = {"preset": preset, "latent_channels": options.latent_channels, "bundle": str(folder / preset)}
        for engine, title in OUR_ENGINES.items():
            job = {**common, **ours, "engine": engine}
            found.append(Contender(f"wfvae-{preset}/{engine}", f"WF-VAE-{preset} {title}", job))
    for name, peer in {**PEERS, **CHECKOUTS}.items():
        job = {**common, "engine": "peer", "peer": name, "reduced": options.reduced}
        if name in options.checkout:
            job["checkout"] = options.checkout[name]
        absent = name in CHECKOUTS and name not in options.checkout
        problem = "its code is in no library; give a local checkout with --checkout" if absent else None
        found.append(Contender(name, peer.title, job, problem))
    return [one for one in found if any(fnmatch(one.name, pattern) for pattern in options.only)]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line(__doc__, "peers-cpu.json")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="such as 'wfvae-*' or wan")
    parser.add_argument("--mode", choices=("direct", "blocks"), default="direct")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="multiples of 32")
    parser.add_argument("--frames", type=int, default=17, help="default: %(default)s; Allegro takes one less")
    parser.add_argument("--latent-channels", type=int, default=16, help="of WF-VAE (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="turns (default: %(default)s)")
    checkout = "NAME=CODE,WEIGHTS[,MODULE:ATTRIBUTE]"
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
    facts = machine(options.threads)
    with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
        field_of = contenders(options, Path(folder))
        if not field_of:
            print(f"error: no model is called {' or '.join(options.only)}", file=sys.stderr)
            return 2
        present = [one for one in field_of if one.problem is None]
        for job in {one.job["bundle"]: one.job for one in present if "bundle" in one.job}.values():
            export = {**job, "changes": {"latent_dim": job["latent_channels"]}}
            run_isolated("harness.engines:export_random", export, options.threads)
        jobs = [one.job for one in present]
        results = run_turns("peers_worker:measure", jobs, options.runs, options.threads)
    found = {one.name: runs for one, runs in zip(present, results, strict=True)}
    rows = [one.summary(one.problem or found[one.name]) for one in field_of]
    job = {key: getattr(options, key) for key in ("mode", "frames", "latent_channels", "sizes", "reduced")}
    result = {"machine": facts, "job": job, "rows": rows}
    finish(result, options.json, tables.peers)
    if options.json is not None:
        charts.draw(charts.peers(result), options.json.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
