"""A verification as a table for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wfvae.export.parity.verification import Check, Verification

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def render_table(verification: Verification) -> RenderableType:
    """Every check in a row; below it where computations part, what was not available, and the
    outcome.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"Parity on {verification.checks[0].backend}" if verification.checks else "Parity",
        title_justify="left",
    )
    for column in ("check", "direction", "plan"):
        table.add_column(column)
    for column in ("frames", "max abs", "max ULP", "equal bits", "PSNR dB", "held to", "result"):
        table.add_column(column, justify="right")
    for check in verification.checks:
        table.add_row(*_cells(check), Text("passed", "green") if check.passed else Text("FAILED", "bold red"))
    lines = [
        Text(f"{c.name}, {c.direction}, {c.plan}: {c.first_difference}")
        for c in verification.checks
        if c.first_difference
    ]
    lines += [
        Text(f"not available: {entry.name}, {entry.direction}: {entry.reason}", "yellow")
        for entry in verification.not_available
    ]
    lines.append(outcome(verification))
    return Group(table, *lines)


def outcome(verification: Verification) -> Text:
    """The last line."""
    from rich.text import Text

    failed = sum(not check.passed for check in verification.checks)
    if verification.passed:
        return Text(f"{len(verification.checks)} checks passed", "green")
    return Text(
        (
            f"{failed} of {len(verification.checks)} checks failed"
            if verification.checks
            else "no check was made"
        ),
        "bold red",
    )


def _cells(check: Check) -> tuple[str, ...]:
    return (
        check.name,
        check.direction,
        check.plan if check.problem is None else f"{check.plan}: {check.problem}",
        str(check.frames),
        "-" if math.isnan(check.max_abs) else f"{check.max_abs:.3g}",
        "-" if check.max_ulp is None else f"{check.max_ulp:,}",
        "100 %" if check.equal_bits else f"{_below_all(check.equal_share):.2f} %",
        "-" if check.psnr_db is None else f"{check.psnr_db:.1f}",
        check.rule,
    )


def _below_all(share: float) -> float:
    """Per cent, never rounded up to 100 where something differs."""
    return min(100 * share, 99.99)
