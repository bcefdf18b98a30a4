"""Versions of driver, CUDA and cuDNN, over stand-in libraries that are compiled here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wfvae.runtime.backends import onnxruntime
from wfvae.runtime.backends.base import BackendOptions
from wfvae.runtime.backends.nvidia import driver

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "libnvidia-ml.so.1": """
static int is_open = 0;
int nvmlInit_v2(void) { is_open = 1; return 0; }
int nvmlShutdown(void) { is_open = 0; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    return is_open ? snprintf(text, size, "580.65.06") * 0 : 1;
}
""",
    "libcuda.so.1": """
static int ready = 0;
int cuInit(unsigned flags) { ready = 1; return flags; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return !ready || index > 1; }
int cuDeviceGetName(char *text, int size, int device) {
    return snprintf(text, size, "GPU of handle %d", device) * 0;
}
""",
    "libcudart.so.13": "int cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }",
    # Installed, and never loaded.
    "libcudart.so.12": "int cudaRuntimeGetVersion(int *version) { *version = 12090; return 0; }",
    "libcudnn.so.9": "size_t cudnnGetVersion(void) { return 91301; }",
}
ASK = """
import ctypes, json, sys
from wfvae.runtime.backends.nvidia import driver
before = [driver.cuda_version(), driver.cudnn_version()]
for path in sys.argv[1:]:
    ctypes.CDLL(path)
names = [driver.gpu_name(index) for index in (0, 1, 2)]
print(json.dumps([before, driver.driver_version(), names, driver.cuda_version(), driver.cudnn_version()]))
"""


def test_versions_are_those_of_loaded_libraries(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("stand-in libraries need a C compiler on Linux")
    for name, code in SOURCES.items():
        source = tmp_path / "source.c"
        source.write_text(f"#include <stdio.h>\n{code}")
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", tmp_path / name]
        subprocess.run([compiler, *options, source], check=True)
    # As ONNX Runtime's packages do: loaded from a folder that the loader does not know.
    elsewhere = tmp_path / "site-packages"
    elsewhere.mkdir()
    loaded = [(tmp_path / name).rename(elsewhere / name) for name in ("libcudart.so.13", "libcudnn.so.9")]
    command = [sys.executable, "-c", ASK, *map(str, loaded)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    gpus = ["GPU of handle 40", "GPU of handle 41", None]
    assert json.loads(done.stdout) == [[None, None], "580.65.06", gpus, "13.2", "9.13.1"]


def test_missing_libraries_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_library", lambda name, loaded=False: None)
    assert (driver.driver_version(), driver.gpu_name(0)) == (driver.cuda_version(), driver.cudnn_version())
    assert driver.driver_version() is None


def test_onnxruntime_cuda_provider_describes_its_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnxruntime, "choose_provider", lambda wanted, device_id: "CUDAExecutionProvider")
    found = {"gpu_name": "NVIDIA X", "driver_version": "1.2", "cuda_version": "13.0", "cudnn_version": None}
    for name, value in found.items():
        monkeypatch.setattr(driver, name, lambda *index, value=value: value)
    options = BackendOptions(device_id=1)
    described = onnxruntime.OnnxRuntimeBackend(tmp_path, options).describe()
    wanted = {"device": "cuda:1", "gpu": "NVIDIA X", "driver": "1.2", "cuda": "13.0", "tf32": "false"}
    assert wanted.items() <= described.items() and "cudnn" not in described
