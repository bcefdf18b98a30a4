"""Do mutated files end a command by anything but one line? Counts per format.

    python benchmarks/mutated_files.py --json benchmarks/results/mutated-files.json
    python benchmarks/mutated_files.py --only onnx --first 500 --cases 500 --json onnx-1.json
    python benchmarks/mutated_files.py --merge onnx-*.json --json onnx.json

Each case mutates one file of a small bundle, clip, checkpoint or run by a seed, mostly with hashes
that fit, and runs commands and functions on it. A fault is a traceback, "internal error", another
exception than a `WFVAEError`, a signal, more than 20 seconds of computing, more than 2 GB, or a
further line on standard error. Commands may take 1 GiB (`--limit`). Cases run in processes that are
replaced when they die.
"""

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

from harness.record import CommandLine, finish, positive

HANG_SECONDS = 20.0
START_SECONDS = 300.0
MOST_BYTES = 2 * 10**9
ALLOWED_BYTES = 1 << 30
REFUSED = 2
_REPORTED = 10


def work_on(samples: Path, name: str, seed: int, first: int, end: int) -> None:
    """Runs the cases first..end, and prints a line of JSON before and after each."""
    from mutations.formats import FORMATS

    from wfvae.machine import memory_allowance
    from wfvae.runtime.backends.session_cache import SessionCache, shared_sessions

    os.environ["OMP_NUM_THREADS"] = "1"
    report = os.fdopen(os.dup(1), "w", buffering=1)
    with shared_sessions(SessionCache(8)), memory_allowance(ALLOWED_BYTES):
        for index in range(first, end):
            report.write(json.dumps({"begin": index}) + "\n")
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                found = run_case(FORMATS[name](samples, work, Random(f"{name} {seed} {index}")))
            report.write(json.dumps({"index": index, **found}) + "\n")


def run_case(steps: Any) -> dict[str, Any]:
    """Runs the steps of a case, and returns how they ended, and the faults."""
    from wfvae.cli import main as cli
    from wfvae.errors import WFVAEError

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of memory
    outcomes, faults = [], []
    with captured() as read:
        for step in steps:
            try:
                code = cli.main(step) if isinstance(step, list) else step() and 0
            except WFVAEError as error:
                code = REFUSED
                if "\n" in str(error):
                    faults.append(f"an error of several lines: {error}"[:300])
            except SystemExit as stop:
                code = cast(int, stop.code)
            except Exception:
                code = -1
                faults.append(traceback.format_exc(limit=-4)[-1200:])
            outcomes.append(code or 0)
            out, err = read()
            is_command = isinstance(step, list)
            lines = err.splitlines()
            if "internal error" in err or "Traceback" in err or outcomes[-1] not in (0, 1, REFUSED):
                faults.append(f"{step if is_command else 'function'}: {err}"[-800:])
            elif len(lines) != (1 if is_command and outcomes[-1] == REFUSED else 0):
                faults.append(f"{len(lines)} lines on standard error: {err}"[:600])
            if any((letter < " " and letter not in "\n\t") or letter == "\x7f" for letter in err + out):
                faults.append(f"control characters: {(err + out)[:200]!r}")
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    if peak > MOST_BYTES:
        faults.append(f"{peak} bytes")
    return {"outcomes": outcomes, "faults": faults, "peak": peak}


@contextlib.contextmanager
def captured() -> Any:
    """Captures both streams by their descriptors, so that lines of native libraries count, too."""
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files = (out, err)

        def read() -> list[str]:
            sys.stdout.flush()
            sys.stderr.flush()
            texts = []
            for file in files:
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
                file.seek(0)
                file.truncate()
            return texts

        for file, number in zip(files, (1, 2), strict=True):
            os.dup2(file.fileno(), number)
        try:
            yield read
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)


def run_format(name: str, samples: Path, seed: int, first: int, cases: int) -> dict[str, Any]:
    """Runs some cases of a format in processes of their own."""
    began, done, end = time.perf_counter(), first, first + cases
    outcomes: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    peak = 0
    while done < end:
        for entry in watch(name, samples, seed, done, end):
            if "fault" in entry:
                faults.append({"case": entry["index"], "fault": entry["fault"]})
            else:
                outcomes["refused" if REFUSED in entry["outcomes"] else "accepted"] += 1
                faults += [{"case": entry["index"], "fault": fault} for fault in entry["faults"]]
                peak = max(peak, entry["peak"])
            done = entry["index"] + 1
    return {
        "format": name,
        "first": first,
        "cases": cases,
        "refused": outcomes["refused"],
        "accepted": outcomes["accepted"],
        "faults": len(faults),
        "peak_mb": peak / 1e6,
        "seconds": time.perf_counter() - began,
        "examples": faults[:_REPORTED],
    }


def watch(name: str, samples: Path, seed: int, first: int, end: int) -> Any:
    """Yields the results of a process until it is done, dies or hangs."""
    words = ["--worker", name, str(samples), str(seed), str(first), str(end)]
    process = subprocess.Popen(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    current, buffer, began = None, b"", False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            last = (time.perf_counter(), 0.0)
            while True:
                if not selector.select(1.0):
                    # On a busy machine a case may wait long; a hang computes, or waits for ever.
                    waited, used = time.perf_counter() - last[0], seconds_of(process.pid) - last[1]
                    if waited > START_SECONDS or (began and used > HANG_SECONDS):
                        yield {"index": first if current is None else current, "fault": "no end after 20 s"}
                        return
                    continue
                last = (time.perf_counter(), seconds_of(process.pid))
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    break
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    entry = json.loads(line)
                    began = True
                    current = entry.get("begin")
                    if current is None:
                        yield entry
        code = process.wait()
        if code or current is not None:
            yield {"index": first if current is None else current, "fault": f"the process ended with {code}"}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def seconds_of(process: int) -> float:
    """Returns the processor time that a process has taken."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def merge(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins the rows of pieces of a format. Raises `ValueError` if two have cases in common."""
    merged: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["format"], row["first"])):
        whole = merged.get(row["format"])
        if whole is None:
            merged[row["format"]] = dict(row)
            continue
        if row["first"] < whole["first"] + whole["cases"]:
            raise ValueError(f"case {row['first']} of {row['format']} is in two pieces")
        for key in ("cases", "refused", "accepted", "faults", "seconds"):
            whole[key] += row[key]
        whole["peak_mb"] = max(whole["peak_mb"], row["peak_mb"])
        whole["examples"] = (whole["examples"] + row["examples"])[:_REPORTED]
    return list(merged.values())


def read_pieces(paths: Sequence[Path]) -> dict[str, Any]:
    """Returns the joined result of files that this program wrote with one seed."""
    results = [json.loads(path.read_text()) for path in paths]
    if len(seeds := {result["seed"] for result in results}) > 1:
        raise ValueError(f"the pieces have the seeds {sorted(seeds)}")
    rows = merge(row for result in results for row in result["results"])
    return {**results[0], "results": rows}


def main(arguments: list[str] | None = None) -> int:
    parser = CommandLine(__doc__, "mutated-files.json")
    parser.add_argument("--cases", type=positive, default=5000, help="of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="FILE", help="join results; run nothing")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    parser.add_argument("--only", nargs="+", metavar="FORMAT", help="leave out the other formats")
    parser.add_argument("--samples", type=Path, metavar="DIR", help="a folder for the sound files, kept")
    options = parser.parse_args(arguments)
    if options.merge:
        found = read_pieces(options.merge)
        options.machine = found.pop("machine")
        return has_faults(finish(options, "mutated-files", **found))
    from mutations.formats import FORMATS
    from mutations.samples import make_samples

    chosen = options.only or list(FORMATS)
    if unknown := set(chosen) - set(FORMATS):
        parser.error(f"unknown formats {', '.join(sorted(unknown))}; known are {', '.join(FORMATS)}")
    folder = options.samples or Path(tempfile.mkdtemp())
    try:
        if not (folder / "interrupted").exists():
            folder.mkdir(exist_ok=True)
            make_samples(folder)
        results = []
        for name in chosen:
            results.append(run_format(name, folder, options.seed, options.first, options.cases))
            print(f"{name}: {results[-1]}", file=sys.stderr)
        found = finish(options, "mutated-files", seed=options.seed, results=results)
    finally:
        if options.samples is None:
            shutil.rmtree(folder)
    return has_faults(found)


def has_faults(result: dict[str, Any]) -> int:
    """Returns 1 if a format had a fault, else 0."""
    return int(any(row["faults"] for row in result["results"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work_on(Path(sys.argv[3]), sys.argv[2], *map(int, sys.argv[4:]))
    else:
        sys.exit(main())
