"""Means over videos and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wfvae.errors import InputError

CONFIDENCE = 0.95
METHOD = (
    "mean over videos; 95 % interval by Student's t with n - 1 degrees of freedom, videos taken as"
    " independent"
)


@dataclass(frozen=True)
class Mean:
    """The mean of finite values and its interval."""

    value: float
    low: float | None
    """Lower end of the two-sided 95 % interval; None for a single value, of which nothing can be
    told.
    """
    high: float | None
    count: int
    """Values averaged."""


def mean_interval(values: Sequence[float]) -> Mean:
    """The mean and its interval by Student's t distribution.

    Raises:
        InputError: there are no values, or one is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise InputError(
            f"the mean of {len(values)} values cannot be taken; expected at least one, all finite"
        )
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, None, None, 1)
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return Mean(mean, mean - reach, mean + reach, count)
