"""Where things lie in the directory of a training run. No torch, so that it is known at once."""

from __future__ import annotations

import re
from pathlib import Path

RUN_CONFIG = "config.toml"
"""The run's whole configuration."""
RUN_CHECKPOINTS, RUN_MODEL = "checkpoints", "checkpoint"
"""A training run holds `checkpoints/step-N/checkpoint/`, each a checkpoint directory of the
averaged weights.
"""


def newest_of_run(run: Path) -> Path | None:
    """The newest whole checkpoint, `step-N`, of a training run; None if there is none."""
    folder = run / RUN_CHECKPOINTS
    steps = (
        [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)] if folder.is_dir() else []
    )
    return max(steps, key=lambda path: int(path.name.removeprefix("step-")), default=None)
