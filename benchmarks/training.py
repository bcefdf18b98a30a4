"""What does activation checkpointing save in a training step, and what does it cost?

    python benchmarks/training.py --json benchmarks/results/training-cpu.json
    python benchmarks/training.py --preset tiny --frames 5 --size 64

One step on a clip of the paper's stage I, with and without checkpointing, and with and without
LPIPS (random weights) and the discriminator; each in a fresh process in fp32, after a step on a
small clip.
"""

import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from harness.memory import peak_mb, resident_mb, restart_peak
from harness.processes import NotMeasured, run_isolated
from harness.record import CommandLine, finish
from harness.turns import timed

from wfvae.train.config import TrainingConfig
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.processes import World
from wfvae.train.state import TrainingState
from wfvae.train.step import Trainer


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Makes two steps and measures the second, when the optimiser's moments exist."""
    torch.set_num_threads(job["threads"])
    settings = [
        f"model.preset={job['preset']}",
        "data.kind=procedural",
        f"data.frames={job['frames']}",
        f"data.height={job['size']}",
        f"data.width={job['size']}",
        f"loss.perceptual={'random' if job['all_losses'] else 'none'}",
        f"loss.adversarial={str(job['all_losses']).lower()}",
        "optimizer.batch=1",
        "run.precision=fp32",
        f"run.activation_checkpointing={str(job['checkpointing']).lower()}",
    ]
    config, device = TrainingConfig.load("S-stage1", settings), torch.device("cpu")
    perceptual = PerceptualLoss("random") if job["all_losses"] else None
    trainer = Trainer(config, TrainingState.fresh(config, device), World(0, 1, device), perceptual)
    small, clip = (
        torch.randint(0, 256, (1, 3, frames, size, size), dtype=torch.uint8)
        for frames, size in ((5, 64), (job["frames"], job["size"]))
    )
    trainer.step([small])
    restart_peak()
    before = resident_mb()
    seconds = timed(partial(trainer.step, [clip]))
    return {"peak_mb": peak_mb(), "step_mb": peak_mb() - before, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "training-cpu.json", preset="S", frames=25, size=256)
    options = parser.parse_args(arguments)
    rows = []
    for all_losses, checkpointing in product((False, True), repeat=2):
        row: dict[str, Any] = {"all_losses": all_losses, "checkpointing": checkpointing}
        try:
            row |= run_isolated(
                "training:step", {**options.job, **row, "threads": options.threads}, options.threads
            )
        except NotMeasured as reason:
            row["not_measured"] = str(reason)
        rows.append(row)
    finish(options, "training", job=options.job, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
