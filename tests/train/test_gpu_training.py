"""Training on a GPU. Run with `pytest -m gpu` on a machine with an NVIDIA GPU; skipped elsewhere.
These tests have never run.
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from fixtures.training import random_clips
from wfvae.train.config import TrainingConfig
from wfvae.train.processes import World
from wfvae.train.run import train
from wfvae.train.state import TrainingState
from wfvae.train.step import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU test: this PyTorch sees no CUDA device"),
]
SETTINGS = ["data.height=64", "data.width=64", "data.workers=0", "optimizer.batch=2", "loss.adversarial=true"]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_is_that_of_the_cpu(recompute: bool) -> None:
    values = []
    options = [*SETTINGS, "run.precision=fp32", f"run.activation_checkpointing={str(recompute).lower()}"]
    config = TrainingConfig.load("tiny-quick", options)
    for device in (torch.device("cpu"), torch.device("cuda")):
        state = TrainingState.fresh(config, device)
        assert state.discriminator is not None
        for module in state.discriminator.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # the generators of the two devices draw differently
        trainer = Trainer(config, state, World(0, 1, device), None)
        values.append(trainer.step([random_clips(2, 3, 9, 64, 64)]))
    assert values[0].keys() == values[1].keys()
    for name, expected in values[0].items():
        assert values[1][name] == pytest.approx(expected, rel=2e-2, abs=1e-6), name


def test_a_run_in_bf16_ends_with_scores(tmp_path: Path) -> None:
    shape = ["validation.clips=2", "validation.frames=5", "validation.height=64", "validation.width=64"]
    config = TrainingConfig.load("tiny-quick", [*SETTINGS, *shape, "run.steps=3"])
    result = train(config, tmp_path, World(0, 1, torch.device("cuda")))
    assert result.finished
    assert result.scores is not None and result.scores.psnr_db > 0
