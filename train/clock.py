"""Where the time of a run goes, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Sums up the seconds that a run spends waiting for data, computing and validating."""

    def __init__(self) -> None:
        self._spent = {"data_wait": 0.0, "compute": 0.0, "validation": 0.0}
        self._began = self._marked = time.perf_counter()
        self._at_mark = dict(self._spent)
        self._frames = self._steps = 0

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Adds the time spent inside to `what`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] += time.perf_counter() - began

    def count(self, frames: int) -> None:
        """Counts a step of so many frames."""
        self._frames += frames
        self._steps += 1

    def rates(self, left: int) -> dict[str, float]:
        """Returns rates since the last call, without validations, and the time of `left` steps."""
        now = time.perf_counter()
        spent = {name: seconds - self._at_mark[name] for name, seconds in self._spent.items()}
        elapsed = max(now - self._marked - spent["validation"], 1e-9)
        rates = {
            "frames_per_second": self._frames / elapsed,
            "data_wait": spent["data_wait"] / elapsed,
            "compute": spent["compute"] / elapsed,
            "eta_seconds": left * elapsed / self._steps,
        }
        self._marked, self._at_mark, self._frames, self._steps = now, dict(self._spent), 0, 0
        return rates

    def shares(self) -> dict[str, float]:
        """Returns shares of the whole time so far; the rest is `bookkeeping`."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        shares = {name: seconds / elapsed for name, seconds in self._spent.items()}
        return {**shares, "bookkeeping": max(1.0 - sum(shares.values()), 0.0)}
