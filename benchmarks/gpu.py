"""All measurements on one GPU, in one go: time, memory and agreement of every backend and precision
that is there.

    python benchmarks/gpu.py                    everything, within ten minutes; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --presets S --sizes 512 --budget 120
    python benchmarks/gpu.py --smoke            the same program on a CPU at toy size: tests its logic, measures nothing

The job is that of the paper's Fig. 4: 33 frames of 256, 512 and 768 squared, encoded and decoded,
whole and in chunks of 4, 8 and 16 frames. Backends and precisions take turns within a case, so that
a busy or hot GPU slows all alike; each has a process of its own. What is missing, fails, or would
take longer than the time that is left is named in the result, with the reason. Weights are random.

Peak memory is PyTorch's own count of what it allocated, and for all backends the growth of the
device's used memory over a direction's first two runs, weights of an exported bundle included
(`nvidia-smi`); nothing else should run on the GPU. Steps of a bundle take and give arrays in host
memory, so the comparable time of PyTorch is the one with copies from and to the host; its time with
data on the GPU stands beside it.

TensorRT engines are built within half of a preset's time, or left out. To build them before, keep
bundles PRESET-PRECISION (such as L-fp16, with random weights of seed 0 if the parity numbers shall
mean something) with their engines in a folder, and name it by --bundles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wfvae.machine import processor_name

VARIANTS = (
    "torch-fp32",
    "torch-tf32",
    "torch-bf16",
    "torch-fp16",
    "onnxruntime-fp32",
    "onnxruntime-tf32",
    "onnxruntime-fp16",
    "tensorrt-fp32",
    "tensorrt-fp16",
)
DIRECT = "direct"
OUT_OF_MEMORY = "out of memory"  # as the worker calls it
TIME_IS_UP = "time is up"
DIRECTIONS = ("encode", "decode")
REFERENCE = "torch-fp32"
MINIMUM_RUNS = 5
SPARE = 20.0  # seconds kept for the table and the file
SMOKE_VARIANTS = ("torch-fp32", "torch-tf32", "onnxruntime-fp32", "tensorrt-fp32")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
ROW_FRAMES = 8
REAL_TIME = 24.0  # frames per second
MEBIBYTE = 1 << 20


@dataclass
class Clock:
    """The time budget."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began) - SPARE

    def allows(self, seconds: float) -> bool:
        return seconds <= self.left


class Failed(Exception):
    """What a worker could not do, and why."""


class Worker:
    """A process that runs one variant. See `gpu_worker.py`."""

    def __init__(
        self, variant: str, preset: str, device: str, folder: Path, job: argparse.Namespace, log: Any
    ) -> None:
        self.variant = variant
        script = Path(__file__).with_name("gpu_worker.py")
        command = [
            sys.executable,
            str(script),
            variant,
            preset,
            device,
            str(folder),
            "--frames",
            str(job.frames),
        ]
        command += ["--sizes", *map(str, job.sizes), "--chunks", *map(str, job.chunks)]
        # On a CPU nothing is measured, and threads of several processes would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if device == "cpu" else None
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        )

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """What the worker runs on. Raises `Failed` if it cannot."""
        found = self._receive(timeout)
        if "unavailable" in found:
            raise Failed(found["unavailable"])
        ready: dict[str, Any] = found["ready"]
        return ready

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """The answer to one request. Raises `Failed` with the worker's reason, or if it takes too
        long or has died.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Failed(f"the process has ended, code {self._process.wait()}") from error
        found = self._receive(timeout)
        if "error" in found:
            raise Failed(found["error"])
        return found

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(timeout, 0))[0]:
            self.stop()
            raise Failed(TIME_IS_UP)
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the process has ended, code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends the process. Its memory on the GPU goes with it."""
        self._process.kill()
        self._process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Lets go of a process that has ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a request that it never took
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
        self.options, self.clock, self._folder = options, Clock(options.budget), folder
        self.device = "cpu" if options.smoke else "gpu"
        self.cases: list[dict[str, Any]] = []
        self.parity: list[dict[str, Any]] = []
        self.streams: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self.backends: dict[str, Any] = {}

    def run(self) -> None:
        """One preset after the other: all its processes start at once, which takes the time of the
        slowest.
        """
        for number, preset in enumerate(self.options.presets):
            share = self.clock.left / (len(self.options.presets) - number)
            end = time.monotonic() + share
            with (self._folder / f"{preset}.log").open("wb") as log:
                workers = self._start(preset, log, end)
                try:
                    # Sizes in this order: 512 is the paper's table, 256 the parity check.
                    for case in self._cases(preset):
                        self._run_case(case, [w for w in workers if w.alive], end)
                    for worker in workers:
                        if worker.alive:
                            self._run_streams(worker, preset, end)
                finally:
                    for worker in workers:
                        worker.stop()

    def _start(self, preset: str, log: Any, end: float) -> list[Worker]:
        """The variants that are ready before half of the time is over: engines must be built before
        anything is measured.
        """
        started = [
            Worker(variant, preset, self.device, self._bundles(variant), self.options, log)
            for variant in self.options.variants
        ]
        ready = []
        half = (end - time.monotonic()) / 2
        deadline = time.monotonic() + half
        for worker in started:
            try:
                self.backends[f"{worker.variant} {preset}"] = worker.wait_ready(deadline - time.monotonic())
                ready.append(worker)
            except Failed as reason:
                late = (
                    f"not ready after {half:.0f} s; raise --budget, or build engines before and name them by"
                    " --bundles"
                )
                self.skipped[f"{worker.variant} {preset}"] = (
                    late if str(reason) == TIME_IS_UP else str(reason)
                )
                worker.stop()
        return ready

    def _bundles(self, variant: str) -> Path:
        """Where a variant finds or makes its bundles: one place for each, since they start at once."""
        if self.options.bundles is not None:
            folder: Path = self.options.bundles
            return folder
        return self._folder / variant

    def _cases(self, preset: str) -> Iterator[Case]:
        sizes = sorted(self.options.sizes)
        for size in sizes:
            for mode in (DIRECT, *map(str, self.options.chunks)):
                yield Case(preset, size, mode)

    def _run_case(self, case: Case, workers: list[Worker], end: float) -> None:
        """Runs a case in as few waves as memory allows. The variants of a wave are open together,
        and take turns.
        """
        waiting, wave = list(workers), 0
        while waiting:
            wave += 1
            active: list[Worker] = []
            results: dict[str, dict[str, Any]] = {}
            while waiting and not (active and self._is_tight(results)):
                worker = waiting[0]
                try:
                    results[worker.variant] = self._open(worker, case, end)
                    active.append(worker)
                except Failed as reason:
                    self._close(worker)
                    if str(reason) == OUT_OF_MEMORY and active:
                        break  # the next wave tries it alone
                    self.skipped[case.name(worker.variant)] = str(reason)
                del waiting[0]
            self._take_turns(case, active, results, end)
            self._compare(case, results)
            for worker in active:
                self._close(worker)
            for variant, result in results.items():
                if "seconds" in result:
                    facts = {
                        "variant": variant,
                        "preset": case.preset,
                        "size": case.size,
                        "mode": case.mode,
                        "wave": wave,
                    }
                    self.cases.append({**facts, **result})

    def _is_tight(self, results: dict[str, dict[str, Any]]) -> bool:
        """Whether another variant of this case might not fit beside those that are open."""
        facts = query_gpu("memory.total", "memory.used") if self.device == "gpu" else None
        growth = [
            sum(value or 0 for value in result["device_memory_growth_mib"].values())
            for result in results.values()
        ]
        return facts is not None and int(facts[0]) - int(facts[1]) < 1.2 * max(growth)

    def _open(self, worker: Worker, case: Case, end: float) -> dict[str, Any]:
        """Opens the case and runs each direction twice: the first run may choose algorithms, the
        second tells what a run takes.
        """
        left = min(end - time.monotonic(), self.clock.left)
        if left <= 0:
            raise Failed(TIME_IS_UP)
        result: dict[str, Any] = {"device_memory_growth_mib": {}, "peak_allocated_mib": {}}
        before = used_memory(self.device)
        worker.ask(left, do="open", frames=self.options.frames, size=case.size, mode=case.mode)
        needed = 0.0
        for direction in DIRECTIONS:
            keep = (
                str(self._output(case, worker.variant, direction))
                if case.size == min(self.options.sizes)
                else None
            )
            worker.ask(left, do="run", direction=direction, keep=keep)
            second = worker.ask(left, do="run", direction=direction)
            needed += self.options.runs * (second["seconds"] + (second["resident"] or 0))
            after = used_memory(self.device)
            result["device_memory_growth_mib"][direction] = (
                None if after is None or before is None else after - before
            )
            result["peak_allocated_mib"][direction] = (
                None if second["peak"] is None else second["peak"] / MEBIBYTE
            )
            before = after
        left = min(end - time.monotonic(), self.clock.left)
        if needed > left / 2:
            raise Failed(f"would take {needed:.0f} s, more than half of the {left:.0f} s that are left")
        return result

    def _take_turns(
        self, case: Case, active: list[Worker], results: dict[str, dict[str, Any]], end: float
    ) -> None:
        timings: dict[str, dict[str, list[float]]] = {}
        for _ in range(self.options.runs):
            for worker in list(active):
                try:
                    for direction in DIRECTIONS:
                        left = min(end - time.monotonic(), self.clock.left) + SPARE / 2
                        found = worker.ask(left, do="run", direction=direction)
                        seconds = timings.setdefault(worker.variant, {})
                        seconds.setdefault(direction, []).append(found["seconds"])
                        if found["resident"] is not None:
                            seconds.setdefault(f"{direction}_on_gpu", []).append(found["resident"])
                except Failed as reason:
                    self.skipped[case.name(worker.variant)] = str(reason)
                    timings.pop(worker.variant, None)
                    active.remove(worker)
                    self._close(worker)
        for variant, seconds in timings.items():
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            spread = {name: max(values) / min(values) for name, values in seconds.items()}
            results[variant] |= {"seconds": medians, "slowest_by_fastest": spread, "runs": self.options.runs}

    def _compare(self, case: Case, results: dict[str, dict[str, Any]]) -> None:
        """Each variant against PyTorch in fp32 on the whole clip, and its stream against its own
        direct inference.
        """
        for variant in results:
            for direction in DIRECTIONS:
                output = self._output(case, variant, direction)
                if not output.exists():
                    continue
                direct = Case(case.preset, case.size, DIRECT)
                pairs = {
                    "reference": self._output(direct, REFERENCE, direction),
                    "own_direct": self._output(direct, variant, direction),
                }
                for against, path in pairs.items():
                    if path.exists() and path != output:
                        facts = {
                            "variant": variant,
                            "preset": case.preset,
                            "size": case.size,
                            "mode": case.mode,
                        }
                        self.parity.append(
                            {**facts, "direction": direction, "against": against, **difference(output, path)}
                        )

    def _run_streams(self, worker: Worker, preset: str, end: float) -> None:
        """More and more rows in one batch, until memory, time or throughput ends it."""
        size = 512 if 512 in self.options.sizes else min(self.options.sizes)
        found: dict[str, Any] = {
            "variant": worker.variant,
            "preset": preset,
            "size": size,
            "frames_per_step": ROW_FRAMES,
            "rows": [],
        }
        name = f"streams of {worker.variant} {preset} {size}"
        for rows in ROWS if not self.options.smoke else ROWS[:2]:
            left = min(end - time.monotonic(), self.clock.left)
            try:
                if left <= 0:
                    raise Failed(TIME_IS_UP)
                worker.ask(left, do="open_rows", rows=rows, frames=ROW_FRAMES, size=size)
                worker.ask(left, do="run_rows")
                first = worker.ask(left, do="run_rows")["seconds"]
                if first * self.options.runs > left / 4:
                    raise Failed(
                        f"{rows} rows would take {first * self.options.runs:.0f} s, more than a quarter of"
                        " the time that is left"
                    )
                runs = [worker.ask(left, do="run_rows")["seconds"] for _ in range(self.options.runs)]
                median = statistics.median(runs)
                speed = rows * ROW_FRAMES / median
                found["rows"].append(
                    {
                        "rows": rows,
                        "seconds": median,
                        "frames_per_second": speed,
                        "device_used_mib": used_memory(self.device),
                    }
                )
                self._close(worker)
            except Failed as reason:
                self.skipped[f"{name}, {rows} rows"] = str(reason)
                self._close(worker)
                break
        if found["rows"]:
            best = max(found["rows"], key=lambda row: row["frames_per_second"])
            found["largest_batch"] = found["rows"][-1]["rows"]
            found["best_frames_per_second"] = best["frames_per_second"]
            found["real_time_streams_at_24_fps"] = math.floor(best["frames_per_second"] / REAL_TIME)
            self.streams.append(found)

    def _close(self, worker: Worker) -> None:
        if worker.alive:
            try:
                worker.ask(30, do="close")
            except Failed:
                worker.stop()

    def _output(self, case: Case, variant: str, direction: str) -> Path:
        return self._folder / f"{case.preset}-{case.size}-{case.mode}-{variant}-{direction}.npy"


def difference(path: Path, other: Path) -> dict[str, Any]:
    """Of two saved arrays, in double precision."""
    a, b = np.load(path).astype(np.float64), np.load(other).astype(np.float64)
    if a.shape != b.shape:
        return {"error": f"shapes {a.shape} and {b.shape}"}
    delta = np.abs(a - b)
    scale = float(np.abs(b).max())
    return {
        "max_abs": number(delta.max()),
        "mean_abs": number(delta.mean()),
        "relative_to_largest": number(delta.max() / scale if scale else 0.0),
        "equal_values": float((a == b).mean()),
    }


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def used_memory(device: str) -> int | None:
    """MiB in use on the GPU by anyone, or None where that can't be read."""
    facts = query_gpu("memory.used") if device == "gpu" else None
    return None if facts is None else int(facts[0])


def query_gpu(*fields: str) -> list[str] | None:
    """What nvidia-smi says of the first GPU, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (
        [part.strip() for part in done.stdout.split(",")]
        if done.returncode == 0 and done.stdout.strip()
        else None
    )


def table(benchmark: Benchmark) -> str:
    """The results for people."""
    heads = ("encode s", "decode s", "on GPU", "on GPU", "peak MiB", "peak MiB", "grown MiB", "grown MiB")
    lines = [f"{'':<18}{'preset':>7}{'size':>6}{'mode':>8}" + "".join(f"{head:>11}" for head in heads)]
    for case in benchmark.cases:
        times = [case["seconds"].get(key) for key in ("encode", "decode", "encode_on_gpu", "decode_on_gpu")]
        memory = [
            case[key][direction]
            for key in ("peak_allocated_mib", "device_memory_growth_mib")
            for direction in DIRECTIONS
        ]
        texts = ["-" if value is None else f"{value:.4f}" for value in times]
        texts += ["-" if value is None else f"{value:,.0f}" for value in memory]
        columns = "".join(f"{text:>11}" for text in texts)
        lines.append(f"{case['variant']:<18}{case['preset']:>7}{case['size']:>6}{case['mode']:>8}{columns}")
    for found in benchmark.parity:
        value = found.get("max_abs")
        text = found.get("error") or (
            "not finite" if value is None else f"{value:.2e}, {found['equal_values']:.1%} of the values equal"
        )
        what = (
            f"{found['variant']} {found['preset']} {found['size']} {found['mode']} {found['direction']}"
            f" against {found['against']}"
        )
        lines.append(f"parity: {what}: {text}")
    for found in benchmark.streams:
        lines.append(
            f"streams: {found['variant']} {found['preset']} {found['size']}: up to {found['largest_batch']}"
            f" in a batch, {found['best_frames_per_second']:.1f} frames/s,"
            f" {found['real_time_streams_at_24_fps']} in real time at 24 frames/s"
        )
    lines += [f"skipped: {name}: {reason}" for name, reason in benchmark.skipped.items()]
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["S", "L"])
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[256, 512, 768], help="height and width, multiples of 8"
    )
    parser.add_argument(
        "--chunks", nargs="+", type=int, default=[4, 8, 16], help="frames per step, multiples of 4"
    )
    parser.add_argument("--frames", type=int, default=33, help="1 + 4 n")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=VARIANTS,
        metavar="VARIANT",
        help=", ".join(VARIANTS),
    )
    parser.add_argument(
        "--bundles",
        type=Path,
        help="folder of bundles PRESET-PRECISION with engines; missing ones are made in it",
    )
    parser.add_argument("--runs", type=int, default=MINIMUM_RUNS, help=f"at least {MINIMUM_RUNS}")
    parser.add_argument(
        "--budget", type=float, default=580, help="seconds for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, help="result file (default: benchmarks/results/gpu.json; none for --smoke)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="toy size on the CPU: tests the program, measures nothing"
    )
    options = parser.parse_args(arguments)
    if options.smoke:
        options.presets, options.sizes, options.chunks, options.frames = ["tiny"], [16], [4], 5
        options.variants = [variant for variant in options.variants if variant in SMOKE_VARIANTS]
    elif options.json is None:
        options.json = Path(__file__).parent / "results" / "gpu.json"
    if options.frames < 1 or options.frames % 4 != 1:
        parser.error(f"--frames is {options.frames}; expected 1 + 4 n")
    for name, values, multiple in (("sizes", options.sizes, 8), ("chunks", options.chunks, 4)):
        if any(value < multiple or value % multiple for value in values):
            parser.error(f"--{name} is {values}; expected multiples of {multiple}")
    if options.runs < MINIMUM_RUNS:
        parser.error(f"--runs is {options.runs}; expected at least {MINIMUM_RUNS}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    fields = ("name", "driver_version", "memory.total")
    gpu = query_gpu(*fields)
    if gpu is None and not options.smoke:
        print(
            "no NVIDIA GPU here (nvidia-smi finds none); --smoke tries the program on the CPU",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, Path(folder))
        benchmark.run()
    result = {
        "smoke": options.smoke,
        "note": (
            "toy sizes on a CPU, to test the program; these numbers mean nothing"
            if options.smoke
            else "random weights"
        ),
        "machine": {
            "gpu": None if options.smoke or gpu is None else dict(zip(fields, gpu, strict=True)),
            "cpu": processor_name(),
            "python": platform.python_version(),
        },
        "job": {
            "frames": options.frames,
            "sizes": options.sizes,
            "chunks": options.chunks,
            "runs": options.runs,
            "budget_seconds": options.budget,
        },
        "seconds": time.monotonic() - benchmark.clock.began,
        "backends": benchmark.backends,
        "cases": benchmark.cases,
        "parity": benchmark.parity,
        "streams": benchmark.streams,
        "skipped": benchmark.skipped,
    }
    print(table(benchmark))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps(rounded(result), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
    if not benchmark.cases:
        print("nothing was measured", file=sys.stderr)
        return 1
    return 0


def rounded(value: Any) -> Any:
    """Four digits of every number: more would be noise."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
