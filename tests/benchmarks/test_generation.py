"""The generation benchmark at its smallest: all stages, continued, and scored."""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wfvae.spec.latent_shards import LatentShardSet

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = "--clips 3 --size 32 --frames 5 --batch 2 --samples 3 --sampling-steps 2 --label scene --guidance 2"


class Brightness(torch.nn.Module):
    """Two features of a clip, also taken as two logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3, 4))[:, :2] * 3 + x.shape[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("generation")


@pytest.mark.slow
def test_continued_benchmark_equals_an_uninterrupted_one_and_is_scored(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Brightness()).save(str(tmp_path / "net.pt"))

    def run(work: str, steps: int, *more: str) -> dict[str, Any]:
        path = tmp_path / "result.json"
        networks = ["--fvd", str(tmp_path / "net.pt"), "--classes", str(tmp_path / "net.pt")]
        options = [*SMALL.split(), *networks, "--threads", "1", "--json", str(path), *more]
        assert command.main([*options, "--work", str(tmp_path / work), "--steps", str(steps)]) == 0
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    first = run("a", 1)["rows"][0]
    continued = run("a", 3)["rows"][0]
    assert continued["loss"]["steps"] == [1, 2, 3]
    assert continued["loss"]["means"][:1] == first["loss"]["means"]

    # Another training, on the same shards.
    places = {"--bundles": "bundle", "--latents": "tiny/latents"}
    given = [text for option, place in places.items() for text in (option, f"tiny={tmp_path / 'a' / place}")]
    straight = run("b", 3, *given, "--real", str(tmp_path / "a" / "videos"))["rows"][0]
    assert straight["loss"] == continued["loss"]
    one, other = (sorted((tmp_path / work / "tiny").glob("samples-3-*/*.mkv")) for work in "ab")
    assert len(one) == 3
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]

    assert continued["classes"] == ["clouds", "leaves", "terrain"]
    latents = np.stack([s.latents for s in LatentShardSet(str(tmp_path / "a" / "tiny" / "latents"))])
    assert continued["latent_deviation"] == pytest.approx(latents.std(axis=(0, 1, 3, 4)), rel=2e-3)
    fvd = continued["fvd"]
    assert fvd["value"] > 0 and (fvd["clips"], fvd["real_clips"], fvd["features"]) == (3, 3, 2)
    assert continued["is"]["clips"] == 3
    for name in ("samples.png", "loss.svg", "tiny/samples.mp4"):
        assert (tmp_path / "a" / name).stat().st_size > 1000

    # A sample that is missing is drawn again; other settings of the training are refused.
    kept = [path.stat().st_mtime_ns for path in one]
    one[1].unlink()
    run("a", 3)
    assert one[1].read_bytes() == other[1].read_bytes()
    again = [path.stat().st_mtime_ns for path in one]
    assert [time == before for time, before in zip(again, kept, strict=True)] == [True, False, True]
    capsys.readouterr()
    assert command.main([*SMALL.split(), "--work", str(tmp_path / "a"), "--learning-rate", "1"]) == 2
    error = capsys.readouterr().err
    assert "with other settings: learning_rate" in error and error.count("\n") == 1
