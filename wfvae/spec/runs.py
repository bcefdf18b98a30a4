"""Layout of the directory of a training run."""

import re
from pathlib import Path

RUN_CONFIG = "config.toml"
"""The run's whole configuration."""
RUN_CHECKPOINTS, RUN_MODEL = "checkpoints", "checkpoint"
"""A training run holds `checkpoints/step-N/checkpoint/`, each a checkpoint directory of the
averaged weights.
"""


def newest_of_run(run: Path) -> Path | None:
    """Returns the newest complete checkpoint, `step-N`, of a training run, or None."""
    folder = run / RUN_CHECKPOINTS
    found = folder.iterdir() if folder.is_dir() else ()
    steps = [path for path in found if re.fullmatch(r"step-\d+", path.name)]
    return max(steps, key=lambda path: int(path.name.removeprefix("step-")), default=None)
