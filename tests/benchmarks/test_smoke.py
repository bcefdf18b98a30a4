"""Every benchmark runs at toy size, and its result makes the table that documents use."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
QUICK = {"forms": "--layers doubling --engines onnxruntime --turns 1 --seconds 0"}
SLOW = {
    "bf16_quality": "--sizes 16 --frames 5",
    "blockwise": "--only wfvae svd open-sora --frames 9 --size 32",
    "overhead": "--preset tiny --size 16 --frames 5 --runs 1",
    "ablation": "--steps 1 --clips 1",
    "datasets": "--preset tiny --videos 2 --frames 9 --size 32 --runs 1 --memory-videos 4 --engines local",
    "mutated_files": "--cases 4 --only metrics npy onnx latent-shards tables",
    "memory": "--videos tiny=1,2 --size 16 --runs 1",
    "openvino_parity": "--bundles fp32 --frames 5 --size 16x16",
    "peers_speed": "--only wfvae-tiny/onnxruntime svd open-sora --reduced --sizes 32 --frames 9 --runs 1",
    "real_files": "--frames 5 --windows 1 --engines local",
    "scale": "--lengths tiny=5 --preset tiny --frames 5 --size 16 --rows 2 --runs 1",
    "speed": "--preset tiny --clips 5x16 --turns 1",
    "startup": "--preset tiny --size 16 --runs 1",
    "tiny_model": "--clips 2",
    "training": "--preset tiny --frames 5 --size 64",
}


CASES = [*QUICK.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items())]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_benchmark_at_toy_size_gives_result_with_its_table(
    name: str,
    options: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("harness.turns"), "REST", 0.0)
    command: Any = importlib.import_module(name)
    path = tmp_path / "result.json"
    assert command.main([*options.split(), "--threads", "1", "--json", str(path)]) == 0
    result, text = json.loads(path.read_text(encoding="utf-8")), capsys.readouterr().out
    assert result["machine"]["threads"] == 1
    assert text.startswith("|") and "| --- |" in text
    reasons = re.findall(r"not measured: ([^|]*)", text)
    assert all("local checkout" in reason for reason in reasons)


def test_failed_job_in_fresh_process_gives_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    processes: Any = importlib.import_module("harness.processes")
    with pytest.raises(processes.NotMeasured, match="KeyError: 'engine'"):
        processes.run_isolated("peers_worker:measure", {}, 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("speed", "--clips 6x16", "'6' is not 1 . 4 n frames"),
        ("memory", "--videos tiny=3,x", "'tiny=3,x' is not PRESET=N,N"),
        ("scale", "--lengths huge=5", "'huge=5' is not PRESET=N,N"),
        ("peers_speed", "--checkout od-vae=code,weights,more", r"expected NAME=CODE\[,WEIGHTS\]"),
        ("peers_speed", "--checkout nobody=code", "with a NAME of cv-vae, cv-vae-sd3, od-vae, open-sora"),
        ("generation", "--bundles tiny", "'tiny' is not NAME=DIR"),
        ("generation", "--latents other=folder", "no shards for tiny"),
        ("blockwise", "--weights nobody=folder", "expected NAME=DIR with a NAME of sd-vae"),
    ],
)
def test_wrong_option_is_refused(
    name: str, options: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    command: Any = importlib.import_module(name)
    with pytest.raises(SystemExit, match="2"):
        command.main(options.split())
    assert re.search(message, capsys.readouterr().err)


def test_pieces_of_mutated_files_are_joined_and_never_counted_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    mutated: Any = importlib.import_module("mutated_files")
    whole = {"format": "onnx", "accepted": 1, "seconds": 1.5, "examples": []}
    paths = []
    for first, faults, peak in ((0, 0, 300.0), (10, 2, 200.0)):
        row = {**whole, "first": first, "cases": 10, "refused": 9 - faults, "faults": faults, "peak_mb": peak}
        paths.append(tmp_path / f"{first}.json")
        paths[-1].write_text(json.dumps({"machine": {}, "seed": 1, "results": [row]}))
    [row] = mutated.read_pieces(paths)["results"]
    counts = {key: row[key] for key in ("cases", "refused", "accepted", "faults", "peak_mb", "seconds")}
    expected = {"cases": 20, "refused": 16, "accepted": 2, "faults": 2, "peak_mb": 300.0, "seconds": 3.0}
    assert counts == expected
    with pytest.raises(ValueError, match="case 10 of onnx is in two pieces"):
        mutated.read_pieces([*paths, paths[1]])
