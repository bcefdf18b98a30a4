"""How a run reports to its caller, and is asked to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Watcher:
    """Functions that a run calls while it trains."""

    progress: Callable[[int, int, dict[str, float]], None] = lambda done, total, values: None
    """Is given (steps made, steps in all, latest values) after every step."""
    notice: Callable[[str], None] = lambda line: None
    """Is given a line for each file that is skipped, and for what is unusual about a run when it
    begins. A process that is not the first reports only files that it meets itself."""
    stopping: Callable[[], bool] = lambda: False
    """Asked between steps; True ends the run after a checkpoint."""
    indexing: Callable[[int, int], None] = lambda done, total: None
    """Is given (files probed, files in all) while a folder of videos is indexed."""
