"""Numbers as people read them in the report."""

from __future__ import annotations

import math

TIMES, MISSING = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number for reading: infinite as a sign, missing as a dash."""
    if value is None:
        return MISSING
    if math.isinf(value):
        return "∞" + unit
    return f"{value:,.{digits}f}{unit}"


def byte_count(count: int) -> str:
    """A size in the largest binary unit that leaves at least one before the point."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count:,} bytes" if unit == "bytes" else f"{size:,.1f} {unit}"


def exact_bytes(count: int) -> str:
    """A size as `byte_count`, with the exact count where that is rounded."""
    return byte_count(count) if count < 1024 else f"{byte_count(count)} ({count:,} bytes)"


def scientific(value: float) -> str:
    """A deviation: zero as 0, else three digits and an exponent."""
    return "0" if value == 0 else f"{value:.2e}"


def seconds_text(value: float) -> str:
    """A duration with sensible digits."""
    return f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"


def percent(part: int, whole: int) -> str:
    """A share in percent, a dash when there is no whole."""
    return f"{100 * part / whole:.2f} %" if whole else number(None)


def share_text(value: float) -> str:
    """A share that may be tiny: four significant digits."""
    return f"{value:.4g}"
