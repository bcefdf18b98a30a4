"""Jobs in processes of their own: memory is theirs alone, and what one leaves behind does not touch
the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 900.0
"""Seconds after which a job is given up."""
_REASON_LENGTH = 300


class NotMeasured(Exception):
    """Why there is no number."""


def run_isolated(script: Path, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """What `answer` in a fresh process of `script` made of `job`.

    Raises:
        NotMeasured: with the reason in one line, if the job could not be done, died, or took too
            long.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(script), json.dumps(job)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"no result after {PATIENCE:.0f} s") from None
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])  # libraries may have printed before
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or ["without a word"]
        raise NotMeasured(
            f"the process ended with code {done.returncode}: {last[0][:_REASON_LENGTH]}"
        ) from None
    if "not_measured" in found:
        raise NotMeasured(found["not_measured"])
    return dict(found)


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The other side: prints what `work` makes of the job on the command line, or why it could not."""
    try:
        found = work(json.loads(sys.argv[1]))
    except (Exception, MemoryError) as error:  # of whatever library: the reason belongs into the table
        text = " ".join(str(error).split())[:_REASON_LENGTH]
        found = {
            "not_measured": text if isinstance(error, NotMeasured) else f"{type(error).__name__}: {text}"
        }
    print("\n" + json.dumps(found), flush=True)
