"""The learning rate over the steps of a run."""

from __future__ import annotations

import math

from wfvae.train.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Returns the rate of a step (from 0): a linear warm-up, then constant or a cosine."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    steps = settings.schedule_steps or steps
    progress = min((step - settings.warmup_steps) / max(steps - settings.warmup_steps, 1), 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.learning_rate * (settings.final_rate + (1.0 - settings.final_rate) * cosine)
