"""How fast is each backend and precision on this GPU, with how much memory, and do they agree?

    python benchmarks/gpu.py                    ten minutes; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --presets S --sizes 512 --budget 120
    python benchmarks/gpu.py --smoke            toy size on a CPU: tests the program only

The job is that of the paper's Fig. 4: 33 frames of 256, 512 and 768 squared, encoded and decoded,
whole and in chunks of 4, 8 and 16 frames, with random weights. Backends and precisions take turns
within a case, so that a busy or hot GPU slows all of them; each has a process of its own. The
result names what is missing, fails, or would take longer than the remaining time.

Peak memory is PyTorch's own count of its allocations, and for all backends the growth of the
device's used memory over a direction's first two runs, with the weights of an exported bundle
(`nvidia-smi`); nothing else should run on the GPU. A bundle's steps take and return arrays in host
memory, so PyTorch's comparable time is the one with copies.

TensorRT engines that are not ready in half of a preset's time are left out. To build them before,
keep bundles PRESET-PRECISION (such as L-fp16, with random weights of seed 0) with their engines in
a folder, and name it by --bundles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_worker import DIRECT, OUT_OF_MEMORY, STEPS
from harness.record import RESULTS, finish, machine, side, whole_clip

REFERENCE = "torch-fp32"
VARIANTS = (REFERENCE, "torch-tf32", "torch-bf16", "torch-fp16")
VARIANTS += ("onnxruntime-fp32", "onnxruntime-tf32", "onnxruntime-fp16", "tensorrt-fp32", "tensorrt-fp16")
SMOKE_VARIANTS = (REFERENCE, "torch-tf32", "onnxruntime-fp32", "tensorrt-fp32")
DIRECTIONS = ("encode", "decode")
TIME_IS_UP = "time is up"
MINIMUM_RUNS = 5
SPARE = 20.0  # seconds kept for the table and the file
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
ROW_FRAMES = 8
REAL_TIME = 24.0  # frames per second


class Failed(Exception):
    """What a worker could not do, and why."""


class Worker:
    """A process that runs one variant. See `gpu_worker.py`."""

    def __init__(self, variant: str, preset: str, device: str, folder: Path, job: Any, log: Any) -> None:
        self.variant = variant
        script = Path(__file__).with_name("gpu_worker.py")
        command = [sys.executable, script, variant, preset, device, folder, "--frames", job.frames]
        command += ["--sizes", *job.sizes, "--chunks", *job.chunks]
        # On a CPU nothing is measured, and threads of several processes would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if device == "cpu" else None
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self._process: Any = subprocess.Popen(list(map(str, command)), env=environment, **pipes)

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """Returns what the worker runs on. Raises `Failed` if it cannot."""
        ready: dict[str, Any] = self._receive(timeout)["ready"]
        return ready

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """Returns the answer to a request. Raises `Failed` with the worker's reason, or its end."""
        with contextlib.suppress(OSError):  # reading finds the end
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._receive(timeout)

    def _receive(self, timeout: float) -> dict[str, Any]:
        if not select.select([self._process.stdout], [], [], max(timeout, 0))[0]:
            self.stop()
            raise Failed(TIME_IS_UP)
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the process has ended, code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        """Releases the open case, or ends a process that cannot."""
        if self.alive:
            try:
                self.ask(30, do="close")
            except Failed:
                self.stop()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the process, which releases its memory on the GPU."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # a request that it never read
                pipe.close()


@dataclass(frozen=True)
class Case:
    """One clip, run one way by all variants."""

    preset: str
    size: int
    mode: str

    def name(self, variant: str) -> str:
        return f"{variant} {self.preset} {self.size} {self.mode}"


class Benchmark:
    """Runs the cases, and collects results and reasons."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self._folder = options, folder
        self.began = time.monotonic()
        self.device = "cpu" if options.smoke else "gpu"
        self._end = self.began
        self.cases: list[dict[str, Any]] = []
        self.parity: list[dict[str, Any]] = []
        self.streams: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self.backends: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds left for the present preset."""
        return self._end - time.monotonic()

    def run(self) -> None:
        """Runs the presets one after the other; a preset's processes start at once."""
        finish_at = self.began + self.options.budget - SPARE
        for number, preset in enumerate(self.options.presets):
            share = (finish_at - time.monotonic()) / (len(self.options.presets) - number)
            self._end = time.monotonic() + share
            with (self._folder / f"{preset}.log").open("wb") as log:
                workers = self._start(preset, log)
                try:
                    for case in self._cases(preset):
                        self._run_case(case, [worker for worker in workers if worker.alive])
                    for worker in workers:
                        if worker.alive:
                            self._run_streams(worker, preset)
                finally:
                    for worker in workers:
                        worker.stop()

    def _start(self, preset: str, log: Any) -> list[Worker]:
        """Returns the variants that are ready, engines built, before half of the time is over."""
        bundles, ready = self.options.bundles, []
        started = [
            # A folder each, since they start at once.
            Worker(variant, preset, self.device, bundles or self._folder / variant, self.options, log)
            for variant in self.options.variants
        ]
        half = self.left / 2
        deadline = time.monotonic() + half
        for worker in started:
            try:
                self.backends[f"{worker.variant} {preset}"] = worker.wait_ready(deadline - time.monotonic())
                ready.append(worker)
            except Failed as reason:
                text = f"not ready after {half:.0f} s; raise --budget, or build engines before (--bundles)"
                self.skipped[f"{worker.variant} {preset}"] = (
                    text if str(reason) == TIME_IS_UP else str(reason)
                )
                worker.stop()
        return ready

    def _cases(self, preset: str) -> Iterator[Case]:
        for size in sorted(self.options.sizes):
            for mode in (DIRECT, *map(str, self.options.chunks)):
                yield Case(preset, size, mode)

    def _run_case(self, case: Case, workers: list[Worker]) -> None:
        """Runs a case in as few waves as memory allows. The variants of a wave take turns."""
        waiting, wave = list(workers), 0
        while waiting:
            wave += 1
            active: list[Worker] = []
            results: dict[str, dict[str, Any]] = {}
            while waiting:
                worker = waiting.pop(0)
                try:
                    results[worker.variant] = self._open(worker, case)
                    active.append(worker)
                except Failed as reason:
                    worker.close()
                    if str(reason) == OUT_OF_MEMORY and active:
                        waiting.insert(0, worker)  # alone in the next wave
                        break
                    self.skipped[case.name(worker.variant)] = str(reason)
            self._take_turns(case, active, results)
            self._compare(case, results)
            for worker in active:
                worker.close()
            for variant, result in results.items():
                if "seconds" in result:
                    self.cases.append({"variant": variant, **asdict(case), "wave": wave, **result})

    def _open(self, worker: Worker, case: Case) -> dict[str, Any]:
        """Opens the case and runs each direction twice: the first run may choose algorithms."""
        if self.left <= 0:
            raise Failed(TIME_IS_UP)
        result: dict[str, Any] = {"device_memory_growth_mib": {}, "peak_allocated_mib": {}}
        before, needed = used_memory(self.device), 0.0
        worker.ask(self.left, do="open", rows=1, frames=self.options.frames, size=case.size, mode=case.mode)
        for direction in DIRECTIONS:
            kept = case.size == min(self.options.sizes)
            output = str(self._output(case, worker.variant, direction)) if kept else None
            worker.ask(self.left, do="run", direction=direction, keep=output)
            second = worker.ask(self.left, do="run", direction=direction)
            needed += self.options.runs * (second["seconds"] + (second["resident"] or 0))
            after, peak = used_memory(self.device), second["peak"]
            growth = None if after is None or before is None else after - before
            result["device_memory_growth_mib"][direction] = growth
            result["peak_allocated_mib"][direction] = None if peak is None else peak / (1 << 20)
            before = after
        if needed > self.left / 2:
            raise Failed(f"would take {needed:.0f} s, more than half of the {self.left:.0f} s that are left")
        return result

    def _take_turns(self, case: Case, active: list[Worker], results: dict[str, dict[str, Any]]) -> None:
        timings: dict[str, dict[str, list[float]]] = {worker.variant: {} for worker in active}
        for _ in range(self.options.runs):
            for worker in list(active):
                seconds = timings[worker.variant]
                try:
                    for direction in DIRECTIONS:
                        found = worker.ask(self.left + SPARE / 2, do="run", direction=direction)
                        seconds.setdefault(direction, []).append(found["seconds"])
                        if found["resident"] is not None:
                            seconds.setdefault(f"{direction}_on_gpu", []).append(found["resident"])
                except Failed as reason:
                    self.skipped[case.name(worker.variant)] = str(reason)
                    del timings[worker.variant]
                    active.remove(worker)
                    worker.close()
        for variant, found_seconds in timings.items():
            results[variant] |= {
                "seconds": {name: statistics.median(values) for name, values in found_seconds.items()},
                "slowest_by_fastest": {name: max(v) / min(v) for name, v in found_seconds.items()},
                "runs": self.options.runs,
            }

    def _compare(self, case: Case, variants: dict[str, dict[str, Any]]) -> None:
        """Compares with PyTorch in fp32 on the whole clip, and streams with direct inference."""
        direct = Case(case.preset, case.size, DIRECT)
        for variant in variants:
            for direction in DIRECTIONS:
                output = self._output(case, variant, direction)
                for against, other in (("reference", REFERENCE), ("own_direct", variant)):
                    path = self._output(direct, other, direction)
                    if output.exists() and path.exists() and path != output:
                        facts = {"variant": variant, **asdict(case), "direction": direction}
                        self.parity.append({**facts, "against": against, **difference(output, path)})

    def _run_streams(self, worker: Worker, preset: str) -> None:
        """Runs more and more rows in one batch, until memory or time ends."""
        size = 512 if 512 in self.options.sizes else min(self.options.sizes)
        found: list[dict[str, Any]] = []
        for rows in ROWS[:2] if self.options.smoke else ROWS:
            try:
                seconds = self._time_rows(worker, rows, size)
                speed = rows * ROW_FRAMES / seconds
                row = {"rows": rows, "seconds": seconds, "frames_per_second": speed}
                found.append({**row, "device_used_mib": used_memory(self.device)})
            except Failed as reason:
                self.skipped[f"streams of {worker.variant} {preset} {size}, {rows} rows"] = str(reason)
                break
            finally:
                worker.close()
        if found:
            best = max(row["frames_per_second"] for row in found)
            facts = {"variant": worker.variant, "preset": preset, "size": size, "frames_per_step": ROW_FRAMES}
            facts |= {"rows": found, "largest_batch": found[-1]["rows"], "best_frames_per_second": best}
            self.streams.append({**facts, "real_time_streams_at_24_fps": math.floor(best / REAL_TIME)})

    def _time_rows(self, worker: Worker, rows: int, size: int) -> float:
        if self.left <= 0:
            raise Failed(TIME_IS_UP)
        worker.ask(self.left, do="open", rows=rows, frames=ROW_FRAMES, size=size, mode=STEPS)
        worker.ask(self.left, do="run_steps")
        needed = worker.ask(self.left, do="run_steps")["seconds"] * self.options.runs
        if needed > self.left / 4:
            raise Failed(f"would take {needed:.0f} s, more than a quarter of the {self.left:.0f} s left")
        return statistics.median(
            worker.ask(self.left, do="run_steps")["seconds"] for _ in range(self.options.runs)
        )

    def _output(self, case: Case, variant: str, direction: str) -> Path:
        return self._folder / f"{case.preset}-{case.size}-{case.mode}-{variant}-{direction}.npy"


def difference(path: Path, other: Path) -> dict[str, Any]:
    """Returns the difference of two saved arrays, in double precision."""
    a, b = np.load(path).astype(np.float64), np.load(other).astype(np.float64)
    if a.shape != b.shape:
        return {"error": f"shapes {a.shape} and {b.shape}"}
    delta = np.abs(a - b)
    if not np.isfinite(delta).all():
        return {"error": "not finite"}
    largest = float(delta.max())
    found = {"max_abs": largest, "mean_abs": float(delta.mean()), "equal_values": float((a == b).mean())}
    return {**found, "relative_to_largest": largest / (float(np.abs(b).max()) or 1.0)}


def used_memory(device: str) -> int | None:
    """Returns the MiB in use on the GPU by any process, or None where they cannot be read."""
    facts = query_gpu("memory.used") if device == "gpu" else None
    return None if facts is None else int(facts[0])


def query_gpu(*fields: str) -> list[str] | None:
    """Returns nvidia-smi's values for the first GPU, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [part.strip() for part in done.stdout.split(",")] if done.returncode == 0 and done.stdout else None


def table(result: dict[str, Any]) -> str:
    """Returns the results as text."""
    heads = ("encode s", "decode s", "on GPU", "on GPU", "peak MiB", "peak MiB", "grown MiB", "grown MiB")
    lines = [f"{'':<18}{'preset':>7}{'size':>6}{'mode':>8}" + "".join(f"{head:>11}" for head in heads)]
    for case in result["cases"]:
        times = [case["seconds"].get(key) for key in (*DIRECTIONS, *(f"{d}_on_gpu" for d in DIRECTIONS))]
        texts = ["-" if value is None else f"{value:.4f}" for value in times]
        for key in ("peak_allocated_mib", "device_memory_growth_mib"):
            texts += ["-" if case[key][d] is None else f"{case[key][d]:,.0f}" for d in DIRECTIONS]
        columns = "".join(f"{text:>11}" for text in texts)
        lines.append(f"{case['variant']:<18}{case['preset']:>7}{case['size']:>6}{case['mode']:>8}{columns}")
    for found in result["parity"]:
        what = " ".join(str(found[key]) for key in ("variant", "preset", "size", "mode", "direction"))
        values = "" if "error" in found else f"{found['max_abs']:.2e}, {found['equal_values']:.1%} equal"
        lines.append(f"parity: {what} against {found['against']}: {found.get('error', values)}")
    for found in result["streams"]:
        what = (
            f"{found['variant']} {found['preset']} {found['size']}: up to {found['largest_batch']} in a batch"
        )
        speed, real = found["best_frames_per_second"], found["real_time_streams_at_24_fps"]
        lines.append(f"streams: {what}, {speed:.1f} frames/s, {real} in real time at 24 frames/s")
    lines += [f"skipped: {name}: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["S", "L"])
    parser.add_argument("--sizes", nargs="+", type=side, default=[256, 512, 768], help="height and width")
    parser.add_argument("--chunks", nargs="+", type=int, default=[4, 8, 16], help="frames, multiples of 4")
    parser.add_argument("--frames", type=whole_clip, default=33, help="1 + 4 n")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument(
        "--bundles", type=Path, help="folder of bundles PRESET-PRECISION; missing ones are made"
    )
    parser.add_argument("--runs", type=int, default=MINIMUM_RUNS, help=f"at least {MINIMUM_RUNS}")
    parser.add_argument("--budget", type=float, default=580, help="seconds in all (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="result file (default: results/gpu.json; none for --smoke)")
    parser.add_argument("--smoke", action="store_true", help="toy size on the CPU: tests the program")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.presets, options.sizes, options.chunks, options.frames = ["tiny"], [16], [4], 5
        options.variants = [variant for variant in options.variants if variant in SMOKE_VARIANTS]
    elif options.json is None:
        options.json = RESULTS / "gpu.json"
    if any(chunk < 4 or chunk % 4 for chunk in options.chunks):
        parser.error(f"--chunks is {options.chunks}; expected multiples of 4")
    if options.runs < MINIMUM_RUNS:
        parser.error(f"--runs is {options.runs}; expected at least {MINIMUM_RUNS}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    fields = ("name", "driver_version", "memory.total")
    gpu = None if options.smoke else query_gpu(*fields)
    if gpu is None and not options.smoke:
        print(
            "no NVIDIA GPU here (nvidia-smi finds none); --smoke tests the program on a CPU", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, Path(folder))
        benchmark.run()
    smoke = "toy sizes on a CPU, to test the program; these numbers mean nothing"
    job = {key: getattr(options, key) for key in ("frames", "sizes", "chunks", "runs", "budget")}
    collected = {
        key: getattr(benchmark, key) for key in ("backends", "cases", "parity", "streams", "skipped")
    }
    result = {
        "smoke": options.smoke,
        "note": smoke if options.smoke else "random weights",
        "machine": {"gpu": gpu and dict(zip(fields, gpu, strict=True)), **machine(1, "torch", "onnxruntime")},
        "job": job,
        "seconds": time.monotonic() - benchmark.began,
        **collected,
    }
    finish(result, options.json, table)
    if not benchmark.cases:
        print("nothing was measured", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
