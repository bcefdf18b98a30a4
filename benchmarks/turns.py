"""Measurements on a machine that others use too: jobs run turn by turn, so that a busy moment slows
all alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Seconds = Sequence[float]


_REST = 0.3
"""Seconds between two jobs: the threads of an engine that has just finished spin for a while, on
the cores of the next one.
"""


def take_turns(
    jobs: Mapping[str, Callable[[], float]], runs: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each job, which measures itself. With `warm_up` a first turn is not counted;
    without it, jobs warm up by themselves.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(runs + warm_up):
        for name, job in jobs.items():
            time.sleep(_REST)
            elapsed = job()
            if turn >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def ratio(these: Seconds, those: Seconds) -> float:
    """The median of the ratios of runs of the same turn."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))
