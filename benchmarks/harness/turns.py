"""Timing on a shared machine: jobs run turn by turn, so that a busy moment slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Key = TypeVar("Key")

REST = 0.3
"""Seconds between two jobs. The threads of an engine that has just finished spin for a while on the
cores that the next job needs.
"""


def timed(work: Callable[[], Any]) -> float:
    """Returns the seconds that one call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def take_turns(
    jobs: Mapping[Key, Callable[[], float]], turns: int, warm_up: bool = True
) -> dict[Key, list[float]]:
    """Runs all jobs `turns` times and returns the seconds that each job reports.

    Args:
        warm_up: run one more turn first, which is not counted. Pass False for jobs that warm up
            themselves.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in jobs}
    for turn in range(turns + warm_up):
        for name, job in jobs.items():
            time.sleep(REST)
            elapsed = job()
            if turn >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """Returns the median of the ratios within each turn."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def median_seconds(work: Callable[[], Any], least: float) -> float:
    """Warms up, then calls `work` for at least `least` seconds; returns the median of a call."""
    work()
    calls: list[float] = []
    while sum(calls) < least or not calls:
        calls.append(timed(work))
    return statistics.median(calls)
