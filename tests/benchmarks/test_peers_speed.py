"""Measurements of other autoencoders: files are resumed, and limits are reasons."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OPTIONS = "--only sd-vae svd --frames 9 17 --sizes 32 --runs 1 --threads 1 --memory-gb 3 --json"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers_speed")


class Runs:
    """Stands for processes; the one after `until` is interrupted."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.names: list[str] = []

    def __call__(self, function: str, job: dict[str, Any], threads: int, patience: float) -> dict[str, Any]:
        if len(self.names) == self.until:
            raise KeyboardInterrupt
        self.names.append(f"{job['peer']} {job['frames']}")
        if self.names[-1] == "svd 9":
            raise importlib.import_module("harness.processes").NotMeasured("died: std::bad_alloc")
        part = {"seconds": 2.0 * job["frames"], "cpu_seconds": 1.0, "peak_mb": 100.0 + len(self.names)}
        run = {"loaded_mb": 50.0, "load_average": 1.0, "encode": part, "decode": part}
        about = {"parameters": 1, "latent_channels": 4, "compression": [1, 8, 8]}
        return {"about": about, "frames_taken": job["frames"], "run": run}


def test_interrupted_measurement_resumes_with_what_is_missing(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    arguments = [*OPTIONS.split(), str(path)]
    first, second = Runs(until=3), Runs(until=9)
    monkeypatch.setattr(command, "run_isolated", first)
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    assert first.names == ["sd-vae 9", "svd 9", "sd-vae 17"]
    monkeypatch.setattr(command, "run_isolated", second)
    assert command.main([*arguments, "--resume"]) == 0
    assert second.names == ["svd 17"]
    sd_vae, svd = json.loads(path.read_text())["rows"]
    peaks = [clip["runs"][0]["decode"]["peak_mb"] for clip in sd_vae["clips"]]
    assert peaks == [101.0, 103.0]
    assert [clip.get("not_measured") for clip in svd["clips"]] == ["more than 3 GB", None]
    text = capsys.readouterr().out
    assert "not measured: more than 3 GB | 2,000 / 2,000 |" in text

    assert command.main([*arguments, "--resume", "--memory-gb", "4"]) == 0  # another limit: once more
    assert second.names == ["svd 17", "svd 9"]
    assert command.main([*arguments, "--resume", "--mode", "blocks"]) == 2
    message = "result.json cannot be resumed: it has mode direct, now it is blocks; use another file"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("features", "name", "target"),
    [([], "wfvae-S/openvino-bf16", "auto"), (["amx_bf16"], "wfvae-S/openvino-bf16-amx", "openvino")],
)
def test_bundle_for_openvino_in_bf16_is_exported_for_amx_where_there_is_amx(
    command: Any, features: list[str], name: str, target: str
) -> None:
    options = command.parse_arguments(["--only", "wfvae-S/openvino-*"])
    options.machine["cpu_features"] = features
    [(job, row)] = command.contenders(options)
    assert (row["name"], job["target"]) == (name, target)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of data")
def test_allocation_above_the_limit_fails_with_recognised_words(command: Any) -> None:
    memory: Any = importlib.import_module("harness.memory")
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from harness.memory import limit_memory;"
        "import numpy; limit_memory(1); numpy.ones(1_000_000); numpy.ones(200_000_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert memory.is_out_of_memory(done.stderr.splitlines()[-1]) and "1.49 GiB" in done.stderr
    torch = "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    assert memory.is_out_of_memory(torch) and not memory.is_out_of_memory("KeyError: 'memory'")
