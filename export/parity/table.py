"""A verification as a table for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from wfvae.export.parity.verification import Check, Verification

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def render_table(verification: Verification) -> RenderableType:
    """Returns a row per check, then first differences, what was not available, and the outcome."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    checks = verification.checks
    table = Table(title=f"Parity on {checks[0].backend}" if checks else "Parity", title_justify="left")
    for column in ("check", "direction", "plan"):
        table.add_column(column)
    for column in ("frames", "max abs", "max ULP", "equal bits", "PSNR dB", "required", "result"):
        table.add_column(column, justify="right")
    for check in checks:
        table.add_row(*_cells(check), Text("passed", "green") if check.passed else Text("FAILED", "bold red"))
    lines = [
        Text(f"{check.name}, {check.direction}, {check.plan}: {check.first_difference}")
        for check in checks
        if check.first_difference
    ]
    lines += [
        Text(f"not available: {entry.name}, {entry.direction}: {entry.reason}", "yellow")
        for entry in verification.not_available
    ]
    return Group(table, *lines, _outcome(verification))


def _outcome(verification: Verification) -> Text:
    from rich.text import Text

    count, failed = len(verification.checks), sum(not check.passed for check in verification.checks)
    if verification.passed:
        return Text(f"{count} checks passed", "green")
    return Text(f"{failed} of {count} checks failed" if count else "no check was made", "bold red")


def _cells(check: Check) -> tuple[str, ...]:
    below_all = min(100 * check.equal_share, 99.99)  # not rounded up to 100
    return (
        check.name,
        check.direction,
        check.plan if check.problem is None else f"{check.plan}: {check.problem}",
        str(check.frames),
        "-" if math.isnan(check.max_abs) else f"{check.max_abs:.3g}",
        "-" if check.max_ulp is None else f"{check.max_ulp:,}",
        "100 %" if check.equal_bits else f"{below_all:.2f} %",
        "-" if check.psnr_db is None else f"{check.psnr_db:.1f}",
        check.rule,
    )
