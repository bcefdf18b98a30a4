"""The load benchmark: at toy size with a real Triton server, and its check of answers."""

import importlib
import json
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fixtures.triton_server import require

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_load_at_toy_size_gives_result_with_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    require()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    command: Any = importlib.import_module("triton_load")
    monkeypatch.setattr(command, "WARM_UP", 0.0)
    path = tmp_path / "result.json"
    options = "--clients 2 --seconds 3 --size 16 --frames 5 --threads 2"
    assert command.main([*options.split(), "--json", str(path)]) == 0
    [row] = json.loads(path.read_text())["rows"]
    assert row["killed"] >= 1 and row["checked_answers"] > 2 and row["frames_per_second"] > 0
    assert (row["wrong_answers"], row["failures"]) == (0, [])
    assert "| 2 |" in capsys.readouterr().out


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_wrong_answer_is_counted(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    clients: Any = importlib.import_module("harness.triton_clients")
    wanted, encodes = np.arange(9.0), direction == "encoder"
    parts = [wanted[:2], wanted[2:5] + np.array([0, 1, 0]), wanted[5:8]]

    class Stream:
        def __enter__(self) -> "Stream":
            return self

        def __exit__(self, *exception: object) -> None:
            return

        def push(self, data: Any) -> Any:
            return parts

        def finish(self, frames: int | None) -> Any:
            assert frames == (None if encodes else 33)
            return []

    model = SimpleNamespace(
        graph=SimpleNamespace(ratio=4, direction=direction), open=lambda *arguments: Stream()
    )
    ours, theirs = Pipe()
    clients.run_stream(model, None, wanted, (33, 16, 16, 3), 2, [0.5], theirs)
    *answers, failure = [ours.recv() for _ in range(4)]
    assert [answer.right for answer in answers] == [True, False, True]
    assert [answer.frames for answer in answers] == ([5, 12, 12] if encodes else [2, 3, 3])
    assert failure.text == f"{direction}: 8 of 9 came"
