"""Do the energy paths and the wavelet loss help at the tiny size? Short trainings that differ in
nothing else (paper: Table 4, Fig. 7).

    python benchmarks/ablation.py --threads 2 --seeds 0 1        25 minutes on two cores: benchmarks/results/ablation.json and .md
    python benchmarks/ablation.py --steps 4000 --seeds 0 1 2

Every variant has the same data in the same order, the same number of steps, and initial weights of
the same seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from record import load_average, machine, write_json

from wfvae.train.config import TrainingConfig
from wfvae.train.loop import train
from wfvae.train.metrics import read_metrics
from wfvae.train.world import World

RESULTS = Path(__file__).parent / "results"
CLIPS = 32
VARIANTS = {
    "both paths, lambda_WL 0.1": [],
    "both paths, lambda_WL 0": ["loss.wavelet_weight=0.0"],
    "no paths (so no WL loss)": ["model.energy_flow_l2=false", "model.energy_flow_l3=false"],
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=1200, help="optimiser steps of each training (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="a training of every variant each (default: %(default)s)",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=CLIPS,
        help="held-out clips that are scored; other than the default needs --out (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the results go (default: over the committed ones)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(arguments)
    if args.clips != CLIPS and args.out is None:
        parser.error(
            f"--clips is not {CLIPS}: name a folder with --out, the committed results have that many"
        )
    args.out = args.out or RESULTS
    return args


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    rows = [
        measure(name, changes, seed, args.steps, args.clips)
        for seed in args.seeds
        for name, changes in VARIANTS.items()
    ]
    result = {
        "machine": machine(args.threads, "wfvae", "torch"),
        "load_average": load_average(),
        "minutes": (time.perf_counter() - began) / 60,
        "steps": args.steps,
        "clips": args.clips,
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "ablation.json", result)
    (args.out / "ablation.md").write_text(table(result), encoding="utf-8")
    print(json.dumps(result, indent=2) if args.json else table(result))


def measure(name: str, changes: list[str], seed: int, steps: int, clips: int) -> dict[str, Any]:
    """Trains one variant and scores its averaged weights on held-out clips."""
    settings = [
        f"run.steps={steps}",
        f"validation.clips={clips}",
        f"run.seed={seed}",
        f"run.checkpoint_every={steps}",
        *changes,
    ]
    config = TrainingConfig.load("tiny-quick", settings)
    with tempfile.TemporaryDirectory() as run:
        result = train(config, Path(run), World(0, 1, torch.device("cpu")))
        assert result.scores is not None
        precision = TrainingConfig.load(Path(run) / "config.toml").run.precision
        last = read_metrics(Path(run), "train")[-5:]
    parameters = sum(p.numel() for p in _model(config).parameters())
    return {
        "variant": name,
        "seed": seed,
        "precision": precision,
        "parameters": parameters,
        "psnr_db": result.scores.psnr_db,
        "ssim": result.scores.ssim,
        "training_l1": sum(line["reconstruction"] for line in last) / len(last),
        "wavelet_term": sum(line["wavelet"] for line in last) / len(last),
    }


def _model(config: TrainingConfig) -> torch.nn.Module:
    from wfvae import WFVAE

    return WFVAE(config.model.architecture())


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        (
            f"{result['steps']} steps of tiny-quick (crops of 64x64), one run per row; scored on"
            f" {result['clips']} held-out clips of 17 frames of 128x128."
        ),
        "",
        "| variant | seed | parameters | PSNR (dB) | SSIM | WL term at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['variant']} | {row['seed']} | {row['parameters']:,} | {row['psnr_db']:.2f} |"
        f" {row['ssim']:.4f} | {row['wavelet_term']:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
