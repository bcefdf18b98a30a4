"""Numbers as the report shows them."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Formats a number; an infinite one as ∞, a missing one as a dash.

    Example:
        >>> number(1234.5, 1, " dB")
        '1,234.5 dB'
    """
    if value is None:
        return "–"
    return "∞" + unit if math.isinf(value) else f"{value:,.{digits}f}{unit}"


def scientific(value: float) -> str:
    """Formats a deviation: zero as 0, else with three digits and an exponent."""
    return "0" if value == 0 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Formats a duration in seconds."""
    return f"{seconds:,.2f} s" if seconds < 100 else f"{seconds:,.0f} s"
