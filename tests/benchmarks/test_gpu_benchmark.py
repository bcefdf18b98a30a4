"""`benchmarks/gpu.py`: the program's logic, on a CPU. Its numbers are for a GPU, and none was
measured so far.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


gpu, worker_program = load("gpu"), load("gpu_worker")


@pytest.mark.slow
def test_the_whole_program_at_toy_size(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--json", str(tmp_path / "smoke.json")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "smoke.json").read_text())
    assert result["smoke"] is True and "mean nothing" in result["note"] and result["machine"]["gpu"] is None
    ran = {"torch-fp32", "onnxruntime-fp32"}
    assert {(case["variant"], case["mode"]) for case in result["cases"]} == {
        (variant, mode) for variant in ran for mode in ("direct", "4")
    }
    for case in result["cases"]:
        assert case["runs"] >= 5 and all(case["seconds"][direction] > 0 for direction in ("encode", "decode"))
        assert ("encode_on_gpu" in case["seconds"]) == (case["variant"] == "torch-fp32")
    assert result["skipped"] == {
        "torch-tf32 tiny": "TF32 is for GPUs",
        "tensorrt-fp32 tiny": "TensorRT is for GPUs",
    }
    parity = {(p["variant"], p["mode"], p["direction"], p["against"]): p for p in result["parity"]}
    assert len(parity) == 10 and all(found["max_abs"] < 1e-4 for found in parity.values())
    for direction in ("encode", "decode"):
        assert parity["onnxruntime-fp32", "4", direction, "own_direct"]["equal_values"] == 1
    assert {found["variant"]: found["largest_batch"] for found in result["streams"]} == dict.fromkeys(ran, 2)
    assert done.stdout.count("skipped: ") == 2 and "parity: " in done.stdout


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "query_gpu", lambda *fields: None)
    assert gpu.main([]) == 2 and "--smoke" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--frames", "32"], ["--sizes", "100"], ["--chunks", "6"], ["--runs", "4"], ["--variants", "other"]],
    ids=lambda a: a[0],
)
def test_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parse_arguments(arguments)


class StandIn:
    """A worker on a GPU of 100 MiB. `needs` MiB are taken while a case is open."""

    used = 0
    log: ClassVar[list[str]] = []

    def __init__(
        self, variant: str, needs: int = 10, seconds: float = 0.01, fails: str | None = None
    ) -> None:
        self.variant, self.alive, self._needs, self._seconds, self._fails, self._open = (
            variant,
            True,
            needs,
            seconds,
            fails,
            False,
        )

    def ask(self, timeout: float, do: str, **request: Any) -> dict[str, Any]:
        StandIn.log.append(f"{self.variant} {do}")
        if do == "open":
            if StandIn.used + self._needs > 100:
                raise gpu.Failed(gpu.OUT_OF_MEMORY)
            StandIn.used += self._needs
            self._open = True
        elif do == "close" and self._open:
            StandIn.used -= self._needs
            self._open = False
        elif do == "run" and self._fails:
            raise gpu.Failed(self._fails)
        return {"seconds": self._seconds, "resident": None, "peak": None}

    def stop(self) -> None:
        self.alive = False


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    StandIn.used, StandIn.log = 0, []
    facts = {"memory.total": lambda: 100, "memory.used": lambda: StandIn.used}
    monkeypatch.setattr(gpu, "query_gpu", lambda *fields: [str(facts[field]()) for field in fields])
    return gpu.Benchmark(gpu.parse_arguments(["--presets", "S", "--sizes", "256", "512"]), tmp_path)


def run(benchmark: Any, workers: list[StandIn], seconds: float = 60) -> dict[str, int]:
    """Runs one case, and returns the wave of each variant that was measured."""
    benchmark._run_case(gpu.Case("S", 512, "direct"), workers, gpu.time.monotonic() + seconds)
    assert StandIn.used == 0
    return {case["variant"]: case["wave"] for case in benchmark.cases}


def test_variants_take_turns(benchmark: Any) -> None:
    assert run(benchmark, [StandIn("a"), StandIn("b")]) == {"a": 1, "b": 1} and benchmark.skipped == {}
    turns = [line for line in StandIn.log if line.endswith(" run")][8:]
    assert turns == ["a run", "a run", "b run", "b run"] * 5
    assert benchmark.cases[0]["seconds"] == {"encode": 0.01, "decode": 0.01}
    assert benchmark.cases[1]["device_memory_growth_mib"] == {"encode": 10, "decode": 0}


def test_what_does_not_fit_beside_others_runs_in_a_wave_of_its_own(benchmark: Any) -> None:
    waves = run(benchmark, [StandIn("a", 40), StandIn("b", 30), StandIn("c", 90), StandIn("d", 10)])
    assert waves == {"a": 1, "b": 1, "c": 2, "d": 3} and benchmark.skipped == {}


def test_what_fails_is_named_and_the_others_go_on(benchmark: Any) -> None:
    assert run(benchmark, [StandIn("big", 101), StandIn("bad", fails="no kernel"), StandIn("good")]) == {
        "good": 1
    }
    assert benchmark.skipped == {"big S 512 direct": gpu.OUT_OF_MEMORY, "bad S 512 direct": "no kernel"}


def test_what_takes_too_long_is_named(benchmark: Any) -> None:
    assert run(benchmark, [StandIn("slow", seconds=5), StandIn("quick")], seconds=20) == {"quick": 1}
    assert "would take 50 s, more than half" in benchmark.skipped["slow S 512 direct"]
    assert (
        run(benchmark, [StandIn("late")], seconds=-1) == {"quick": 1}
        and benchmark.skipped["late S 512 direct"] == "time is up"
    )


def test_what_is_not_ready_in_half_of_the_time_is_left_out(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Starting(StandIn):
        def __init__(self, variant: str, *arguments: Any) -> None:
            super().__init__(variant)

        def wait_ready(self, timeout: float) -> dict[str, Any]:
            waits.append(timeout)
            if self.variant.startswith("tensorrt"):
                raise gpu.Failed(gpu.TIME_IS_UP)
            return {"name": self.variant}

    monkeypatch.setattr(gpu, "Worker", Starting)
    ready = benchmark._start("S", None, gpu.time.monotonic() + 100)
    assert [worker.variant for worker in ready] == [v for v in gpu.VARIANTS if not v.startswith("tensorrt")]
    assert 49 < waits[0] <= 50 and waits == sorted(waits, reverse=True)  # one deadline for all
    assert (
        "not ready after 50 s" in benchmark.skipped["tensorrt-fp32 S"]
        and "--bundles" in benchmark.skipped["tensorrt-fp32 S"]
    )


def test_rows_grow_until_something_ends_it(benchmark: Any) -> None:
    class Rows(StandIn):
        def ask(self, timeout: float, do: str, **request: Any) -> dict[str, Any]:
            if do == "open_rows":
                if request["rows"] > 8:
                    raise gpu.Failed(gpu.OUT_OF_MEMORY)
                self._seconds = 0.1 * max(request["rows"], 4)
            return {"seconds": self._seconds, "peak": None}

    benchmark._run_streams(Rows("a"), "S", gpu.time.monotonic() + 60)
    [found] = benchmark.streams
    assert (
        found["largest_batch"],
        found["best_frames_per_second"],
        found["real_time_streams_at_24_fps"],
    ) == (8, pytest.approx(80), 3)
    assert benchmark.skipped == {"streams of a S 512, 16 rows": gpu.OUT_OF_MEMORY}


def test_differences(tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / f"{name}.npy" for name in "abcd")
    np.save(a, np.float32([1, 2, 4]))
    np.save(b, np.float32([1, 2, 3]))
    np.save(c, np.float32([1, np.nan, 3]))
    np.save(d, np.float32([1]))
    found = gpu.difference(b, a)
    assert (found["max_abs"], found["relative_to_largest"], found["equal_values"]) == (
        1,
        0.25,
        pytest.approx(2 / 3),
    )
    assert gpu.difference(c, a)["max_abs"] is None and "shapes" in gpu.difference(d, a)["error"]


def test_a_worker_that_dies_or_hangs_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(program: str) -> Any:
        monkeypatch.setattr(gpu.sys, "executable", "sh")
        script = tmp_path / "gpu_worker.py"
        script.write_text(program)
        monkeypatch.setattr(gpu, "__file__", str(tmp_path / "gpu.py"))
        return gpu.Worker("a", "S", "gpu", tmp_path, gpu.parse_arguments(["--json", "unused"]), None)

    dead = started("exit 7")
    with pytest.raises(gpu.Failed, match="has ended, code 7"):
        dead.wait_ready(30)
    hanging = started("exec sleep 60")
    with pytest.raises(gpu.Failed, match="time is up"):
        hanging.wait_ready(0.1)
    assert not hanging.alive
    for worker in (dead, hanging):
        worker.close_pipes()


def test_engines_are_built_for_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of `wfvae build`; and a command that does not know it is named, not a crash."""
    asked: list[list[str]] = []
    answers: list[Any] = [0, 1, SystemExit(2)]

    def main(command: list[str]) -> int:
        asked.append(command)
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return int(answer)

    monkeypatch.setattr("wfvae.cli.main.main", main)
    monkeypatch.setattr("wfvae.spec.manifest.Manifest.read", lambda path: type("Built", (), {"engines": ()}))
    engine = worker_program.BundleEngine.__new__(worker_program.BundleEngine)
    engine._path = tmp_path
    job = gpu.parse_arguments(["--json", "unused"])
    engine._build(job)
    span = "256:512:768"
    assert asked == [
        [
            "build",
            str(tmp_path),
            "--height",
            span,
            "--width",
            span,
            "--batch",
            "1:1:4",
            "--chunk",
            "4",
            "--whole-clip",
            "9",
        ]
    ]
    for message in ("code 1", "not understood"):
        with pytest.raises(worker_program.Unavailable, match=message):
            engine._build(job)


def test_failures_are_one_line() -> None:
    assert (
        worker_program.failure(RuntimeError("CUDA out of memory. Tried to\n allocate"))["error"]
        == "out of memory"
    )
    assert worker_program.failure(MemoryError())["error"] == "out of memory"
    assert worker_program.failure(ValueError("a\n b"))["error"] == "ValueError: a b"
