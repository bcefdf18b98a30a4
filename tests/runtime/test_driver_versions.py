"""Versions of driver, CUDA and cuDNN, over stand-in libraries that are compiled here. A test of our
calls: no GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wfvae.runtime.backends.nvidia import driver

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "libnvidia-ml.so.1": (
        """
static int is_open = 0;
int nvmlInit_v2(void) { is_open = 1; return 0; }
int nvmlShutdown(void) { is_open = 0; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { if (!is_open) return 1; snprintf(text, size, "580.65.06"); return 0; }
"""
    ),
    "libcuda.so.1": (
        """
static int ready = 0;
int cuInit(unsigned flags) { ready = 1; return flags; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return !ready || index > 1; }
int cuDeviceGetName(char *text, int size, int device) { snprintf(text, size, "GPU of handle %d", device); return 0; }
"""
    ),
    "libcudart.so.13": "int cudaRuntimeGetVersion(int *version) { *version = 13020; return 0; }",
    "libcudart.so.12": (
        "int cudaRuntimeGetVersion(int *version) { *version = 12090; return 0; }"
    ),  # there, and never loaded
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


def test_libraries_are_asked_for_their_versions(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("stand-in libraries need a C compiler on Linux")
    for name, source in SOURCES.items():
        (tmp_path / "source.c").write_text(f"#include <stdio.h>\n{source}")
        command = [
            compiler,
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{name}",
            "-o",
            tmp_path / name,
            tmp_path / "source.c",
        ]
        subprocess.run(command, check=True)
    # As ONNX Runtime's packages have them: loaded from a folder that the loader does not know.
    elsewhere = tmp_path / "site-packages"
    elsewhere.mkdir()
    loaded = [(tmp_path / name).rename(elsewhere / name) for name in ("libcudart.so.13", "libcudnn.so.9")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *map(str, loaded)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        [None, None],  # what is only installed, but not in use, says nothing
        "580.65.06",
        ["GPU of handle 40", "GPU of handle 41", None],
        "13.2",
        "9.13.1",
    ]


def test_without_the_libraries_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_library", lambda name, loaded=False: None)
    assert [driver.driver_version(), driver.gpu_name(0), driver.cuda_version(), driver.cudnn_version()] == [
        None
    ] * 4


def test_onnxruntimes_cuda_provider_names_what_it_runs_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from wfvae.runtime.backends import onnxruntime as backend

    monkeypatch.setattr(backend, "choose_provider", lambda wanted, device_id: "CUDAExecutionProvider")
    opened = backend.OnnxRuntimeBackend(tmp_path, backend.OnnxRuntimeOptions(device_id=1))
    for name, value in (
        ("gpu_name", "NVIDIA X"),
        ("driver_version", "1.2"),
        ("cuda_version", "13.0"),
        ("cudnn_version", None),
    ):
        monkeypatch.setattr(driver, name, lambda *index, value=value: value)
    described = opened.describe()
    assert {key: described[key] for key in ("device", "gpu", "driver", "cuda", "tf32")} == {
        "device": "cuda:1", "gpu": "NVIDIA X", "driver": "1.2", "cuda": "13.0", "tf32": "false",
    }  # fmt: skip
    assert "cudnn" not in described
