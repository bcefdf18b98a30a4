"""`benchmarks/gpu.py` on a CPU: its numbers are for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_smoke_measures_cpu_variants_and_names_the_others(tmp_path: Path) -> None:
    command = [*COMMAND, "--smoke", "--json", str(tmp_path / "smoke.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "smoke.json").read_text())
    assert result["smoke"] is True and result["machine"]["gpu"] is None
    ran = {"torch-fp32", "onnxruntime-fp32"}
    cases = {(case["variant"], case["mode"]) for case in result["cases"]}
    assert cases == {(variant, mode) for variant in ran for mode in ("direct", "4")}
    assert all(len(case["seconds"]) >= 2 and case["runs"] >= 5 for case in result["cases"])
    tensorrt = "TensorRT is for GPUs"
    assert result["skipped"] == {"torch-tf32 tiny": "TF32 is for GPUs", "tensorrt-fp32 tiny": tensorrt}
    assert len(result["parity"]) == 10 and all(found["max_abs"] < 1e-4 for found in result["parity"])
    assert {found["variant"]: found["largest_batch"] for found in result["streams"]} == dict.fromkeys(ran, 2)
    assert done.stdout.count("skipped: ") == 2 and "parity: " in done.stdout
    # The code that GPUs run in the first minute, on the CPU.
    first = done.stdout.splitlines()[:2]
    assert [line.partition(": works; ")[0].split(" CPU")[0] for line in first] == ["ONNX Runtime"] * 2
    assert all("encoder 0.0e+00, decoder 0.0e+00; " in line and " frames/s" in line for line in first)
    assert {tuple(facts["errors"].values()) for facts in result["first_minute"].values()} == {(0.0, 0.0)}


def test_missing_gpu_is_one_line_and_one_for_each_engine() -> None:
    environment = {**ENVIRONMENT, "PATH": "", "CUDA_VISIBLE_DEVICES": ""}  # without nvidia-smi, too
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2 and "no NVIDIA GPU here" in done.stderr and "--smoke" in done.stderr
    engines = ("TensorRT", "TensorRT-RTX", "ONNX Runtime CUDA", "TensorRT plug-in")
    lines = done.stdout.splitlines()
    assert [line.partition(": does not work here: ")[0] for line in lines] == list(engines)
    assert all(len(line.partition(": does not work here: ")[2]) > 10 for line in lines)
