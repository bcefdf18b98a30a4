"""What the benchmark reads from the builder's list of layers, and that state costs no more."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from wfvae.spec.manifest import Manifest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LAYERS = [
    ("__myl_CastResh_myl0_0", "kgen", "frames", "a"),
    ("encoder.a/Conv_0_U9_myl0_1", "correlation", "a", "b"),
    ("__myl_SlicConc_myl0_2", "kgen", "state.x", "c"),
    ("__myl_AddCast_myl0_3", "kgen", "c", "next_state.x"),
    ("wait_4", "wait", "c", "c"),
]
LINE = "Name: {}, LayerType: {}, Inputs: [ {{ Name: {} }}], Constants: [], Outputs: [ {{ Name: {} }}]\n"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rtx_engines")


def test_layers_of_a_list_are_counted_by_what_they_do(command: Any) -> None:
    found = command.count_layers("".join(LINE.format(*layer) for layer in LAYERS))
    assert found == command.Layers(kernels=4, products=1, casts=2, moves=2, state_kernels=2, state_moves=1)


@pytest.mark.slow
def test_step_graph_has_only_kernels_of_its_state_more_than_the_direct_graph(
    command: Any, exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    path = tmp_path / "result.json"
    assert command.main(["--precisions", "fp16", "--size", "64x96", "--json", str(path)]) == 0
    assert capsys.readouterr().out.startswith("| model |")
    rows = {row["graph"]: row for row in json.loads(path.read_text("utf-8"))["rows"]}
    graphs = Manifest.read(exported("tiny", precision="fp16")).graphs
    for direction in ("encoder", "decoder"):
        step, direct = rows[direction], rows[f"{direction}.direct"]
        assert step["products"] == direct["products"] > 40
        assert direct["state_kernels"] == 0 < step["state_kernels"]
        assert step["kernels"] - direct["kernels"] <= len(graphs[direction].states)
        assert step["state_moves"] <= 2
