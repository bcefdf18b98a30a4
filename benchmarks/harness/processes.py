"""Jobs in fresh processes: memory is theirs alone, and nothing carries over to the next."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 900.0
"""Seconds after which a job is given up."""
BENCHMARKS = Path(__file__).parents[1]
_REASON_LENGTH = 300
_CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from harness.processes import serve; serve()"


class NotMeasured(Exception):
    """The reason why there is no number, in one line."""


def reason_of(error: BaseException) -> str:
    """Returns the message of an exception in one line, or its type where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:_REASON_LENGTH]


def no_result_after(seconds: float) -> str:
    """Returns the reason of a job that was given up."""
    return f"no result after {seconds:.0f} s"


def run_isolated(
    function: str, job: dict[str, Any], threads: int, patience: float = PATIENCE
) -> dict[str, Any]:
    """Calls `function` ("module:name", in this folder) with `job` in a fresh process.

    Returns:
        The function's result, passed as JSON.

    Raises:
        NotMeasured: the function raised, the process died, or it took longer than `patience`.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", _CHILD, str(BENCHMARKS), function, json.dumps(job)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotMeasured(no_result_after(patience)) from None
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])  # libraries may have printed before
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or ["no error message"]
        reason = last[0][:_REASON_LENGTH]
        raise NotMeasured(f"the process ended with code {done.returncode}: {reason}") from None
    if "not_measured" in found:
        raise NotMeasured(found["not_measured"])
    return dict(found)


def run_turns(
    function: str, jobs: Sequence[dict[str, Any]], turns: int, threads: int
) -> list[list[dict[str, Any]] | str]:
    """Runs all jobs turn by turn, each in a fresh process.

    Returns:
        For each job its results, or the reason why it has none.
    """
    found: list[list[dict[str, Any]] | str] = [[] for _ in jobs]
    for turn in range(turns):
        for index, (job, runs) in enumerate(zip(jobs, found, strict=True)):
            if not isinstance(runs, str):
                try:
                    runs.append(run_isolated(function, job, threads))
                except NotMeasured as reason:
                    found[index] = str(reason)
        print(f"turn {turn + 1} of {turns}: done", file=sys.stderr)
    return found


def serve() -> None:
    """Runs in the fresh process: prints the function's result, or the reason why there is none."""
    module, name = sys.argv[2].split(":")
    try:
        found = getattr(importlib.import_module(module), name)(json.loads(sys.argv[3]))
    except NotMeasured as reason:
        found = {"not_measured": str(reason)}
    except Exception as error:  # of any library: the reason is part of the result
        found = {"not_measured": f"{type(error).__name__}: {reason_of(error)}"}
    print("\n" + json.dumps(found), flush=True)
