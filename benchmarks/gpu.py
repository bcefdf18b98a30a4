"""How fast is each backend and precision on this GPU, with how much memory, and do they agree?

    python benchmarks/gpu.py                    ten minutes; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --first-minute     only which engines work here, and how fast
    python benchmarks/gpu.py --presets S --sizes 512 --budget 120
    python benchmarks/gpu.py --smoke            toy size on a CPU: tests the program only

It first prints a line for each of TensorRT, TensorRT-RTX, ONNX Runtime's CUDA provider and its
plug-in for TensorRT-RTX, in less than two minutes: error and speed, or why it does not work here.
Exit codes: 0 done, 1 nothing could be measured, 2 no GPU or wrong use.

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

import argparse
import contextlib
import itertools
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_first_minute import first_minute
from gpu_worker import DIRECT, OUT_OF_MEMORY, STEPS, Clips, Job, Run, serve
from harness.processes import NotMeasured
from harness.record import RESULTS, finish, machine, side, whole_clip
from harness.tables.format import markdown_table

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
MEBIBYTE = 1 << 20
REAL_TIME = 24.0  # frames per second


class Worker:
    """A process that runs one variant. See `gpu_worker.py`."""

    def __init__(self, job: Job, log: Path) -> None:
        self.variant = job.variant
        # A new interpreter each: a fork would share libraries and their CUDA.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(job, theirs, log), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, timeout: float, method: str, *arguments: Any, keep: Path | None = None) -> Any:
        """Calls a method of the engine, and writes a run's output to `keep`.

        Raises `NotMeasured` with the worker's reason, or if it has ended.
        """
        with contextlib.suppress(OSError):  # `receive` finds the end
            self._pipe.send((method, arguments, keep))
        return self.receive(timeout)

    def receive(self, timeout: float) -> Any:
        """Waits for the result of a call or, at first, for what the worker runs on."""
        if not self._pipe.poll(max(timeout, 0)):
            self.stop()
            raise NotMeasured(TIME_IS_UP)
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise NotMeasured(f"the process has ended, code {self._process.exitcode}") from None
        if isinstance(answer, NotMeasured):
            raise answer
        return answer

    def close(self) -> None:
        """Releases the open case, or ends a process that cannot."""
        if self.alive:
            try:
                self.ask(30, "close")
            except NotMeasured:
                self.stop()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        """Ends the process, which releases its memory on the GPU."""
        self._process.kill()
        self._process.join()


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
        self.options, self._folder, self._gpu = options, folder, not options.smoke
        self.began = self._end = time.monotonic()
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
        options, finish_at = self.options, self.began + self.options.budget - SPARE
        for number, preset in enumerate(options.presets):
            share = (finish_at - time.monotonic()) / (len(options.presets) - number)
            self._end = time.monotonic() + share
            workers = [self._start(variant, preset) for variant in options.variants]
            try:
                workers = self._wait_ready(workers, preset)
                modes = (DIRECT, *map(str, options.chunks))
                for size, mode in itertools.product(sorted(options.sizes), modes):
                    self._run_case(Case(preset, size, mode), [worker for worker in workers if worker.alive])
                for worker in workers:
                    if worker.alive:
                        self._run_streams(worker, preset)
            finally:
                for worker in workers:
                    worker.stop()

    def _start(self, variant: str, preset: str) -> Worker:
        options = self.options
        folder = options.bundles or self._folder / variant  # one each, since all export at once
        job = Job(variant, preset, self._gpu, folder, options.frames, options.sizes, options.chunks)
        return Worker(job, self._folder / f"{preset}.log")

    def _wait_ready(self, workers: list[Worker], preset: str) -> list[Worker]:
        """Returns those that are ready, engines built, before half of the time is over."""
        half, ready = self.left / 2, []
        deadline = time.monotonic() + half
        late = f"not ready after {half:.0f} s; raise --budget, or build engines before (--bundles)"
        for worker in workers:
            name = f"{worker.variant} {preset}"
            try:
                self.backends[name] = worker.receive(deadline - time.monotonic())
                ready.append(worker)
            except NotMeasured as reason:
                self.skipped[name] = late if str(reason) == TIME_IS_UP else str(reason)
                worker.stop()
        return ready

    def _run_case(self, case: Case, workers: list[Worker]) -> None:
        """Runs a case in as few waves as memory allows. The variants of a wave take turns."""
        waiting, wave = list(workers), 0
        while waiting:
            wave += 1
            results: dict[Worker, dict[str, Any]] = {}
            while waiting:
                worker = waiting.pop(0)
                try:
                    results[worker] = self._open(worker, case)
                except NotMeasured as reason:
                    worker.close()
                    if str(reason) == OUT_OF_MEMORY and results:
                        waiting.insert(0, worker)  # alone in the next wave
                        break
                    self.skipped[case.name(worker.variant)] = str(reason)
            opened = list(results)
            timings = self._take_turns(case, opened)
            for worker in opened:
                self._compare(case, worker.variant)
                worker.close()
            for worker, seconds in timings.items():
                facts = {"variant": worker.variant, **asdict(case), "wave": wave, **results[worker]}
                facts["seconds"] = {name: statistics.median(values) for name, values in seconds.items()}
                facts["slowest_by_fastest"] = {name: max(v) / min(v) for name, v in seconds.items()}
                self.cases.append({**facts, "runs": self.options.runs})

    def _open(self, worker: Worker, case: Case) -> dict[str, Any]:
        """Opens the case and runs each direction twice: the first run may choose algorithms."""
        self._require_time()
        result: dict[str, Any] = {"device_memory_growth_mib": {}, "peak_allocated_mib": {}}
        before, needed = used_memory(self._gpu), 0.0
        worker.ask(self.left, "open", Clips(1, self.options.frames, case.size, case.mode))
        for direction in DIRECTIONS:
            kept = case.size == min(self.options.sizes)
            output = self._output(case, worker.variant, direction) if kept else None
            worker.ask(self.left, "run", direction, keep=output)
            second: Run = worker.ask(self.left, "run", direction)
            needed += self.options.runs * (second.seconds + (second.resident or 0))
            after = used_memory(self._gpu)
            growth = None if after is None or before is None else after - before
            result["device_memory_growth_mib"][direction] = growth
            result["peak_allocated_mib"][direction] = None if second.peak is None else second.peak / MEBIBYTE
            before = after
        self._require_time(needed, "half", 2)
        return result

    def _take_turns(self, case: Case, opened: list[Worker]) -> dict[Worker, dict[str, list[float]]]:
        """Returns the seconds of each direction, of the workers that did all runs."""
        timings: dict[Worker, dict[str, list[float]]] = {worker: {} for worker in opened}
        for _, worker in itertools.product(range(self.options.runs), opened):
            if worker not in timings:
                continue
            seconds = timings[worker]
            try:
                for direction in DIRECTIONS:
                    run: Run = worker.ask(self.left + SPARE / 2, "run", direction)
                    seconds.setdefault(direction, []).append(run.seconds)
                    if run.resident is not None:
                        seconds.setdefault(f"{direction}_on_gpu", []).append(run.resident)
            except NotMeasured as reason:
                self.skipped[case.name(worker.variant)] = str(reason)
                del timings[worker]
                worker.close()
        return timings

    def _compare(self, case: Case, variant: str) -> None:
        """Compares with PyTorch in fp32 on the whole clip, and streams with direct inference."""
        direct = Case(case.preset, case.size, DIRECT)
        others = (("reference", REFERENCE), ("own_direct", variant))
        for direction, (against, other) in itertools.product(DIRECTIONS, others):
            output, path = self._output(case, variant, direction), self._output(direct, other, direction)
            if output.exists() and path.exists() and path != output:
                facts = {"variant": variant, **asdict(case), "direction": direction, "against": against}
                self.parity.append({**facts, **difference(output, path)})

    def _run_streams(self, worker: Worker, preset: str) -> None:
        """Runs more and more rows in one batch, until memory or time ends."""
        size = 512 if 512 in self.options.sizes else min(self.options.sizes)
        found: list[dict[str, Any]] = []
        for rows in ROWS[:2] if self.options.smoke else ROWS:
            try:
                seconds = self._time_rows(worker, rows, size)
                speed = rows * ROW_FRAMES / seconds
                row = {"rows": rows, "seconds": seconds, "frames_per_second": speed}
                found.append({**row, "device_used_mib": used_memory(self._gpu)})
            except NotMeasured as reason:
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
        self._require_time()
        worker.ask(self.left, "open", Clips(rows, ROW_FRAMES, size, STEPS))
        worker.ask(self.left, "run_steps")
        runs = self.options.runs
        self._require_time(runs * worker.ask(self.left, "run_steps"), "a quarter", 4)
        return statistics.median(worker.ask(self.left, "run_steps") for _ in range(runs))

    def _require_time(self, needed: float = 0.0, share: str = "", parts: int = 1) -> None:
        """Raises `NotMeasured` unless work of `needed` seconds fits into this share of the time."""
        left = self.left
        if left <= 0:
            raise NotMeasured(TIME_IS_UP)
        if needed > left / parts:
            raise NotMeasured(f"would take {needed:.0f} s, more than {share} of the {left:.0f} s left")

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


def used_memory(gpu: bool) -> int | None:
    """Returns the MiB in use on the GPU by any process, or None where they cannot be read."""
    facts = query_gpu("memory.used") if gpu else None
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
    names = ("variant", "preset", "size", "mode")
    memory = ("peak_allocated_mib", "device_memory_growth_mib")
    heads = [
        f"{direction} {what}"
        for what in ("s", "s on GPU", "peak MiB", "grown MiB")
        for direction in DIRECTIONS
    ]
    rows = []
    for case in result["cases"]:
        times = [case["seconds"].get(f"{d}{where}") for where in ("", "_on_gpu") for d in DIRECTIONS]
        texts = ["-" if value is None else f"{value:.4f}" for value in times]
        sizes = [case[key][direction] for key in memory for direction in DIRECTIONS]
        texts += ["-" if value is None else f"{value:,.0f}" for value in sizes]
        rows.append([*(str(case[name]) for name in names), *texts])
    lines = [markdown_table([*names, *heads], rows, len(names))]
    for found in result["parity"]:
        what = " ".join(str(found[key]) for key in ("variant", "preset", "size", "mode", "direction"))
        values = "" if "error" in found else f"{found['max_abs']:.2e}, {found['equal_values']:.1%} equal"
        lines.append(f"parity: {what} against {found['against']}: {found.get('error', values)}")
    for found in result["streams"]:
        what, speed = f"{found['variant']} {found['preset']} {found['size']}", found["best_frames_per_second"]
        lines.append(
            f"streams: {what}: up to {found['largest_batch']} in a batch, {speed:.1f} frames/s,"
            f" {found['real_time_streams_at_24_fps']} in real time at 24 frames/s"
        )
    lines += [f"skipped: {name}: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--presets", nargs="+", default=["S", "L"])
    add("--sizes", nargs="+", type=side, default=[256, 512, 768], help="height and width")
    add("--chunks", nargs="+", type=int, default=[4, 8, 16], help="frames, multiples of 4")
    add("--frames", type=whole_clip, default=33, help="1 + 4 n")
    add("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    add("--bundles", type=Path, help="folder of bundles PRESET-PRECISION; missing ones are made")
    add("--runs", type=int, default=MINIMUM_RUNS, help=f"at least {MINIMUM_RUNS}")
    add("--budget", type=float, default=580, help="seconds in all (default: %(default)s)")
    add("--json", type=Path, help="result file (default: results/gpu.json; none for --smoke)")
    add("--first-minute", action="store_true", help="only which engines work here")
    add("--smoke", action="store_true", help="toy size on the CPU: tests the program")
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
    if options.smoke:
        # Nothing is measured, and threads of several processes would wait for each other.
        os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        engines = first_minute(Path(folder), options.smoke)
    if gpu is None and not options.smoke:
        text = "no NVIDIA GPU here (nvidia-smi finds none); --smoke tests the program on a CPU"
        print(text, file=sys.stderr)
        return 2
    if options.first_minute:
        return 0 if any("reason" not in facts for facts in engines.values()) else 1
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, Path(folder))
        benchmark.run()
    smoke = "toy sizes on a CPU, to test the program; these numbers mean nothing"
    options.machine = {"gpu": gpu and dict(zip(fields, gpu, strict=True)), **machine(1)}
    about = {"smoke": options.smoke, "note": smoke if options.smoke else "random weights"}
    about["job"] = {key: getattr(options, key) for key in ("frames", "sizes", "chunks", "runs", "budget")}
    about["first_minute"] = engines
    about["seconds"] = time.monotonic() - benchmark.began
    collected = ("backends", "cases", "parity", "streams", "skipped")
    print(table(finish(options, **about, **{key: getattr(benchmark, key) for key in collected})))
    if not benchmark.cases:
        print("nothing was measured", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
