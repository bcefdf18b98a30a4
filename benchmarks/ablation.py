"""Do the energy paths and the wavelet loss help at the tiny size (paper: Table 4, Fig. 7)?

    python benchmarks/ablation.py --seeds 0 1 --json benchmarks/results/ablation.json

Short trainings that differ in nothing else: every variant has the same data in the same order, the
same number of steps, and initial weights of the same seed.
"""

import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from harness.record import CommandLine, finish

from wfvae.train.config import TrainingConfig
from wfvae.train.processes import World
from wfvae.train.record import read_metrics
from wfvae.train.run import train

VARIANTS = {
    "both paths, lambda_WL 0.1": [],
    "both paths, lambda_WL 0": ["loss.wavelet_weight=0.0"],
    "no paths (so no WL loss)": ["model.energy_flow_l2=false", "model.energy_flow_l3=false"],
}


def measure(variant: str, seed: int, steps: int, clips: int) -> dict[str, Any]:
    """Trains one variant and scores its averaged weights on held-out clips."""
    settings = [
        f"run.steps={steps}",
        f"run.checkpoint_every={steps}",
        f"run.seed={seed}",
        f"validation.clips={clips}",
        *VARIANTS[variant],
    ]
    config = TrainingConfig.load("tiny-quick", settings)
    with tempfile.TemporaryDirectory() as run:
        result = train(config, Path(run), World(0, 1, torch.device("cpu")))
        precision = TrainingConfig.load(Path(run) / "config.toml").run.precision
        last = read_metrics(Path(run), "train")[-5:]
    assert result.scores is not None
    return {
        "variant": variant,
        "seed": seed,
        "precision": precision,
        "psnr_db": result.scores.psnr_db,
        "ssim": result.scores.ssim,
        "wavelet_term": fmean(line["wavelet"] for line in last),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "ablation.json")
    parser.add_argument("--steps", type=int, default=1200, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a training of every variant each")
    parser.add_argument("--clips", type=int, default=32, help="that are scored")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pairs = product(options.seeds, VARIANTS)
    rows = [measure(variant, seed, options.steps, options.clips) for seed, variant in pairs]
    finish(options, "ablation", steps=options.steps, clips=options.clips, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
