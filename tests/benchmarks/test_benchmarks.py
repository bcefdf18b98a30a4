"""`benchmarks/`: what is counted and how it is measured, and its commands, run as people run them,
at toy size.

Not `gpu.py`, which is in `test_gpu_benchmark.py`, and `blockwise.py`, in `test_blockwise.py`.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import runpy
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from fixtures.program import clip, save
from wfvae.errors import MissingExtraError
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.spec.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

# Scripts import their neighbours by bare names, as Python lets a script do.
sys.path.insert(0, str(BENCHMARKS))
try:
    import ablation
    import bundle_engines
    import charts
    import flicker
    import forms
    import isolated
    import onnx_work
    import overhead
    import peers_speed
    import peers_worker
    import process_memory
    import record
    import roofline
    import runtime_speed
    import scale
    import stage_clocks
    import tiny_model
    import turns
finally:
    sys.path.remove(str(BENCHMARKS))

HAS_OPENVINO = find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not HAS_OPENVINO, reason="openvino is not installed")
ENGINES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


# Operations of a graph ----------------------------------------------------------------------------


def model_of(nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, Any]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "hand-made", values, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("node", "inputs", "weights", "flop"),
    [
        # 2 images, 5 of 4x4 each, from 3 channels by 3x3: 2 * (2*5*4*4) * (3*9)
        (
            ("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            {"x": [2, 3, 8, 8]},
            {"w": zeros(5, 3, 3, 3)},
            8640,
        ),
        # Each output sees 4 / 2 channels: 2 * (1*6*8*8) * (2*1)
        (("Conv", {"group": 2}), {"x": [1, 4, 8, 8]}, {"w": zeros(6, 2, 1, 1)}, 1536),
        # In time, too: 2 * (1*4*3*8*8) * (2*3*3*3)
        (("Conv", {"pads": [0, 1, 1, 0, 1, 1]}), {"x": [1, 2, 5, 8, 8]}, {"w": zeros(4, 2, 3, 3, 3)}, 82944),
        # Every input sample goes to 7 channels by 2x2: 2 * (1*3*4*4) * (7*4)
        (("ConvTranspose", {"strides": [2, 2]}), {"x": [1, 3, 4, 4]}, {"w": zeros(3, 7, 2, 2)}, 2688),
        # Three products of 4x5 by 5x6: 2 * 3*4*6 * 5
        (("MatMul", {}), {"x": [3, 4, 5], "w": [3, 5, 6]}, {}, 720),
        # 4x5, transposed, by 4x6: 2 * 5*6 * 4
        (("Gemm", {"transA": 1}), {"x": [4, 5]}, {"w": zeros(4, 6)}, 240),
        (("Add", {}), {"x": [3, 4], "w": [3, 4]}, {}, 0),
    ],
    ids=["conv", "grouped", "3-D", "transposed", "matmul", "gemm", "add"],
)
def test_operations_worked_out_by_hand(
    node: tuple[str, Any], inputs: dict[str, Any], weights: dict[str, Any], flop: int
) -> None:
    name, attributes = node
    work = onnx_work.count_work(
        model_of([helper.make_node(name, ["x", "w"], ["y"], **attributes)], inputs, weights), {}
    )
    assert work.flop == flop and work.operators[name].nodes == 1


def test_shapes_that_follow_from_sizes_and_bytes() -> None:
    """Frames of two symbols, halved in a Reshape that is computed in the graph: x (n, 4, s) -> (n,
    2, 2 s) -> MatMul (2 s, 3) -> Relu.
    """
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "two", "three"], ["s"]),
        helper.make_node("Mul", ["s", "two"], ["doubled"]),
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "two", "doubled"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["folded"]),
        helper.make_node("MatMul", ["folded", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["y"]),
    ]
    weights = {"two": np.array([2], np.int64), "three": np.array([3], np.int64), "w": zeros(10, 3)}
    model = model_of(nodes, {"x": ["n", 4, "s"]}, weights)
    work = onnx_work.count_work(model, {"n": 7, "s": 5})
    assert work.flop == 2 * (7 * 2 * 3) * 10
    # MatMul reads 7x2x10 and 10x3 and writes 7x2x3; Relu reads and writes 7x2x3; the Reshape moves
    # nothing. 4 bytes each.
    assert work.bytes == 4 * (140 + 30 + 42) + 4 * (42 + 42)
    with pytest.raises(ValueError, match="'s'"):
        onnx_work.count_work(model, {"n": 7})


def test_exported_graphs_count_as_pytorch_counts(
    small_model: Callable[..., Any], exported: Callable[..., Path]
) -> None:
    """Its counter sees convolutions; attention is one operator there, which it does not: two
    products of 6 positions, 3 times.
    """
    model, bundle = small_model(), exported("small", convolutions="plain")
    frames, height, width = 9, 16, 24
    channels = {"encoder": 4 * 8, "decoder": 4 * 8}
    jobs = {
        "encoder": lambda: model.encode(torch.zeros(1, 3, frames, height, width)),
        "decoder": lambda: model.decode(torch.zeros(1, model.config.latent_dim, 3, height // 8, width // 8)),
    }
    for name, job in jobs.items():
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            job()
        work = onnx_work.count_file(
            bundle / f"{name}.direct.onnx", onnx_work.direct_sizes(4, frames, height, width)
        )
        assert work.operators["Conv"].flop == counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
        assert work.operators["MatMul"].flop == 2 * (2 * 3 * 6 * 6 * channels[name])
        assert work.flop == work.operators["Conv"].flop + work.operators["MatMul"].flop
        assert sum(one.flop * one.count for one in work.convolutions) == work.operators["Conv"].flop


def test_a_step_of_twice_the_latents_is_twice_the_work(exported: Callable[..., Path]) -> None:
    for name in ("encoder", "decoder"):
        one, two = (
            onnx_work.count_file(exported("small") / f"{name}.onnx", onnx_work.step_sizes(4, n, 16, 16)).flop
            for n in (2, 4)
        )
        assert two == 2 * one


# Processes and memory -----------------------------------------------------------------------------

ALLOCATES = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np
from isolated import answer
from process_memory import peak_mb, resident_mb, restart_peak

def work(job):
    before = peak_mb()
    held = np.ones(job["bytes"], np.uint8)
    during = peak_mb()
    del held
    apart = restart_peak()
    print("a library says something")
    return {{"before": before, "during": during, "after": peak_mb(), "apart": apart, "resident": resident_mb()}}

answer(work)
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text.format(folder=str(BENCHMARKS)))
    return path


def test_a_peak_is_seen_and_begins_anew(tmp_path: Path) -> None:
    ballast = np.ones(300_000_000, np.uint8)  # of this process: the other's peak must not hold it
    found = isolated.run_isolated(script(tmp_path / "allocates.py", ALLOCATES), {"bytes": 200_000_000}, 1)
    assert len(ballast) and found["before"] < 150
    assert 195 < found["during"] - found["before"] < 215
    if found["apart"]:
        assert abs(found["after"] - found["before"]) < 20 and abs(found["resident"] - found["after"]) < 20


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise NotMeasured('there is none')", "^there is none$"),
        ("raise RuntimeError('two' + chr(10) + 'lines')", "^RuntimeError: two lines$"),
        ("import os; os._exit(9)", "code 9"),
        ("raise SystemExit('gone')", "code 1: gone"),
    ],
)
def test_what_fails_elsewhere_is_a_reason_here(tmp_path: Path, body: str, reason: str) -> None:
    text = (
        "import sys\nsys.path.insert(0, {folder!r})\nfrom isolated import NotMeasured, answer\ndef"
        " work(job):\n    " + body + "\nanswer(work)"
    )
    with pytest.raises(isolated.NotMeasured, match=reason):
        isolated.run_isolated(script(tmp_path / "fails.py", text), {}, 1)


def test_a_job_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "PATIENCE", 0.2)
    with pytest.raises(isolated.NotMeasured, match=r"no result after"):
        isolated.run_isolated(script(tmp_path / "hangs.py", "import time\ntime.sleep(60)"), {}, 1)


FRAGMENTS = """
import sys
sys.path.insert(0, {folder!r})
import ctypes
from isolated import answer
from process_memory import resident_mb, trim_heap

def work(job):
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    blocks = [libc.malloc(100_000) for _ in range(1001)]  # small enough to be of the heap
    for block in blocks:
        ctypes.memset(block, 1, 100_000)
    for block in blocks[:-1]:  # the last one stays and holds up the heap's end
        libc.free(block)
    before = resident_mb()
    return {{"before": before, "trimmed": trim_heap(), "after": resident_mb()}}

answer(work)
"""


def test_what_is_freed_is_not_resident_once_the_heap_is_trimmed(tmp_path: Path) -> None:
    found = isolated.run_isolated(script(tmp_path / "fragments.py", FRAGMENTS), {}, 1)
    if found["trimmed"] and found["before"] is not None:
        assert 95 < found["before"] - found["after"] < 110
    else:
        assert not platform.libc_ver()[0].startswith("glibc")


def test_peak_of_this_process() -> None:
    resident = process_memory.resident_mb()
    assert resident is None or 0 < resident <= process_memory.peak_mb()


# Predictions --------------------------------------------------------------------------------------


def graph_of(*scratch: Any) -> Any:
    latents = SimpleNamespace(name="latents", shape=("batch", "latents", 4, "height/8", "width/8"))
    return SimpleNamespace(
        stream=SimpleNamespace(ratio=4), scratch=scratch, weights_bytes=1000, inputs=(latents,), outputs=()
    )


def test_memory_of_a_clip_in_one_piece() -> None:
    graph = graph_of(((10, "groups", "height/8", "width/8"),), ((7,), (300, "latents")))
    # 9 frames of 16x16: 2 groups, 3 latents of 2x2. Activations: max(10*2*2*2, 7 + 300*3). Video
    # 9*3*256 and latents 3*4*4, 4 bytes each.
    assert scale.stated_bytes(graph, 9, 16) == 1000 + 907 + 4 * (9 * 3 * 256 + 3 * 4 * 4)


def test_memory_fitted_to_a_measurement() -> None:
    graph = graph_of(((10**6, "latents"),))
    stated = scale.stated_bytes(graph, 9, 8)  # 3 MB of activations, 1 kB of weights, and the arrays
    grown = 2 * (stated - 1000) / 1e6
    row = {"frames": 9, "size": 8, "loaded_mb": 50.0, "grown_mb": grown}
    memory = scale.MemoryModel.fitted(graph, row)
    assert memory is not None and memory.base == 50e6 and memory.factor == pytest.approx(2)
    assert memory.peak(graph, 9, 8) == pytest.approx((50 + grown) * 1e6)
    assert scale.MemoryModel.stated(graph).peak(graph, 9, 8) == stated
    assert scale.MemoryModel.fitted(graph, {**row, "grown_mb": -1.0}) is None
    assert scale.MemoryModel.fitted(graph, {**row, "loaded_mb": None, "grown_mb": None}) is None


def test_growth_is_of_one_process() -> None:
    """Three processes that hold 100, 300 and 200 MB grow by 10, 30 and 50: by 30, whatever the
    median peak (250) and the first one say.
    """
    job = scale.Job(
        "length", {"preset": "tiny", "direction": "encoder", "way": "direct", "frames": 5, "size": 16}
    )
    for loaded, peak in ((100.0, 110.0), (300.0, 330.0), (200.0, 250.0)):
        job.runs.append({"seconds": 1.0, "peak_mb": peak, "loaded_mb": loaded})
    row = job.summary()
    assert (row["grown_mb"], row["loaded_mb"], row["peak_mb"]) == (30.0, 200.0, 250.0)
    assert (row["all_peak_mb"], row["all_loaded_mb"]) == ([110.0, 330.0, 250.0], [100.0, 300.0, 200.0])
    job.runs[1]["loaded_mb"] = None
    assert (job.summary()["grown_mb"], job.summary()["loaded_mb"]) == (None, None)


@given(limit=st.integers(0, 10**9), size=st.sampled_from([8, 64, 256]), factor=st.floats(0.5, 4))
def test_the_longest_clip_fits_and_a_longer_one_does_not(limit: int, size: int, factor: float) -> None:
    memory = scale.MemoryModel(5e5, factor)
    graph = graph_of(((40, "groups", "height/8", "width/8"), (99,)))
    longest = scale.longest_clip(graph, size, limit, memory)
    assert longest == 0 or (longest % 4 == 1 and memory.peak(graph, longest, size) <= limit)
    assert memory.peak(graph, longest + 4 if longest else 1, size) > limit


def test_stated_memory_of_a_real_bundle_grows_with_the_clip(exported: Callable[..., Path]) -> None:
    graphs = Manifest.read(exported("small")).graphs
    for name in ("encoder.direct", "decoder.direct"):
        short, long = (scale.stated_bytes(graphs[name], frames, 32) for frames in (33, 65))
        assert graphs[name].weights_bytes < short < long < 2 * short


# Stages -------------------------------------------------------------------------------------------


def test_stages_add_up_and_threads_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        def outer(self) -> None:
            time.sleep(0.02)
            self.inner()

        def inner(self) -> None:
            time.sleep(0.05)

    stages = (("outer", "work", ((Owner, "outer"),)), ("inner", "work", ((Owner, "inner"),)))
    monkeypatch.setattr(stage_clocks, "STAGES", stages)
    original = Owner.inner
    with stage_clocks.stage_clocks() as clocks:
        begin = time.perf_counter()
        Owner().outer()
        wall = time.perf_counter() - begin
        thread = threading.Thread(target=Owner().inner)
        thread.start()
        thread.join()
    assert Owner.inner is original
    assert sum(clocks.driving.values()) == pytest.approx(wall, rel=0.05)
    assert (
        clocks.driving["inner"] >= 0.05
        and clocks.driving["outer"] >= 0.02
        and set(clocks.background) == {"inner"}
    )


def test_shares_of_a_job() -> None:
    """10 s: 6 in the engine, 1 converting, 2 waiting for the writer, 1 unknown; the writer's thread
    works for 3.
    """
    clocks = stage_clocks.Clocks(
        {"engine": 6.0, "postprocess": 1.0, "waiting for the writer": 2.0}, {"video encode": 3.0}
    )
    found = overhead.summary("decode", [(10.0, clocks)] * 3)
    assert found["outside_engine"] == pytest.approx(0.4) and sum(
        found["share_of_wall"].values()
    ) == pytest.approx(1)
    assert found["share_of_wall"]["other"] == pytest.approx(0.1) and found["background_by_wall"] == {
        "video encode": 0.3
    }
    # Without overlap nobody waits: 1 + 1 + 3 around 6.
    assert found["serial_outside_engine"] == pytest.approx(5 / 11)


# Charts and tables --------------------------------------------------------------------------------


def test_a_chart_holds_its_points() -> None:
    points = [(1.0, 5.0), (10.0, 50.0), (1000.0, 0.5)]
    chart = charts.Chart(
        "a < b",
        "x",
        "y",
        [charts.Series("one", points), charts.Series("two", [], line=False)],
        log_x=True,
        log_y=True,
    )
    root = ElementTree.fromstring(charts.draw([chart, chart]))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 6
    for circle in circles:
        assert (
            0 <= float(circle.get("cx", "nan")) <= charts.WIDTH
            and 0 <= float(circle.get("cy", "nan")) <= charts.HEIGHT
        )
    x = [float(circle.get("cx", "nan")) for circle in circles]
    assert (x[2] - x[1]) == pytest.approx(2 * (x[1] - x[0]), abs=0.2)  # two decades and one
    rows = [float(circle.get("cy", "nan")) for circle in circles[:3]]
    assert rows[1] < rows[0] < rows[2]


def test_labels_of_neighbours_do_not_overlap() -> None:
    series = [
        charts.Series(f"model {k}", [(10.0 + k / 100, 10.0)], (6.0,), (f"model {k}",), line=False)
        for k in range(12)
    ]
    root = ElementTree.fromstring(
        charts.draw(
            [
                charts.Chart(
                    "", "x", "y", [*series, charts.Series("far", [(1.0, 1.0), (99.0, 99.0)])], True, True
                )
            ]
        )
    )
    places = [
        (float(e.get("x", "0")), float(e.get("y", "0")))
        for e in root.iter()
        if e.tag.endswith("text") and "model" in (e.text or "")
    ]
    labels = places[:12]  # the legend follows
    assert all(
        abs(a[1] - b[1]) >= 10 or abs(a[0] - b[0]) >= 40 for i, a in enumerate(labels) for b in labels[:i]
    )


def test_a_table() -> None:
    assert record.markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | --: |\n| x | 1 |\n"


def test_a_machine_says_what_decides_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """avx512 is no feature that is asked for, and neither is half a name one."""
    monkeypatch.setattr(record, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(
        "model name\t: X\nflags\t\t: fpu amx_bf16 avx avx2 avx512fp16\nbugs\t: avx512f\n"
    )
    facts = record.machine(3, "numpy", "no such package")
    assert facts["cpu_features"] == ["avx2", "amx_bf16"] and facts["threads"] == 3
    assert 0.1 < facts["memory_gb"] < 1e5 and facts["numpy"] == np.__version__
    text = record.machine_line({**facts, "cpu": "X", "memory_gb": 25.27})
    assert (
        text.startswith(f"X (avx2 amx_bf16), {facts['cores']} cores, 25.3 GB, 3 threads; python ")
        and "memory" not in text
    )
    (tmp_path / "cpuinfo").unlink()
    facts = record.machine(3)
    assert facts["cpu_features"] == [] and f"{facts['cpu']}, {facts['cores']} cores" in record.machine_line(
        facts
    )


# The commands -------------------------------------------------------------------------------------


def run(command: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(BENCHMARKS / command), *map(str, arguments)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code, done.stderr
    return done


def results(path: Path) -> Any:
    """The JSON, after a look at what stands beside it."""
    ElementTree.parse(path.with_suffix(".svg"))
    text = path.with_suffix(".md").read_text()
    found = json.loads(path.read_text())
    assert text.startswith("# ") and f"({path.stem}.svg)" in text and found["machine"]["cpu"] in text
    assert found["load_average_before"] >= 0
    return found


@pytest.mark.slow
def test_peers(tmp_path: Path) -> None:
    names = ["wfvae-tiny/torch", "wfvae-tiny/onnxruntime", "wfvae-tiny/openvino", "cv-vae"]
    small = ["--reduced", "--sizes", "32", "--frames", "9", "--runs", "1", "--threads", "1"]
    run("peers_speed.py", *small, "--latent-channels", 8, "--only", *names, "--json", tmp_path / "peers.json")
    found = results(tmp_path / "peers.json")
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == names and found["job"]["reduced"] is True and found["job"]["latent_channels"] == 8
    assert "--checkout" in rows["cv-vae"]["not_measured"]
    parameters = set()
    for name in names[: 3 if HAS_OPENVINO else 2]:
        row = rows[name]
        (case,) = row["sizes"]
        parameters.add(row["parameters"])
        assert row["runs"] == 1 and (case["size"], case["frames"]) == (32, 9)
        assert (row["latent_channels"], row["compression"]) == (8, [4, 8, 8])
        for direction in ("encode", "decode"):
            part = case[direction]
            assert part["all_seconds"] == [part["seconds"]]
            assert part["ms_per_frame"] == pytest.approx(part["seconds"] / 9e-3, rel=1e-3)
            assert part["peak_mb"] > 20 and part["gflop_per_second"] == pytest.approx(
                part["gflop"] / part["seconds"], rel=1e-2
            )
    assert len(parameters) == 1
    assert HAS_OPENVINO or "openvino" in rows["wfvae-tiny/openvino"]["not_measured"]
    text = (tmp_path / "peers.md").read_text()
    assert (
        "not measured: its code is in no library" in text
        and "mean nothing" in text
        and peers_speed.GFLOP_NOTE in text
    )
    assert "| WF-VAE-tiny PyTorch | 8 | 4x8x8 |" in text


@pytest.mark.slow
def test_peers_of_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    small = ["--reduced", "--sizes", "32", "--frames", "9", "--runs", "1", "--threads", "1"]
    for mode, names in (("direct", ["allegro", "ltx"]), ("blocks", ["ltx"])):
        run("peers_speed.py", *small, "--only", *names, "--mode", mode, "--json", tmp_path / f"{mode}.json")
        rows = {row["name"]: row for row in results(tmp_path / f"{mode}.json")["rows"]}
        if mode == "direct":
            assert rows["allegro"]["sizes"][0]["frames"] == 8 and rows["ltx"]["sizes"][0]["frames"] == 9
        assert all(
            row["sizes"][0]["decode"]["gflop"] > 0 and row["sizes"][0]["encode"]["peak_mb"] > 20
            for row in rows.values()
        )


def test_medians_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four turns, of which models that have used their time get two, or three where two differ (by
    1.25 they do not); one fails in its second turn and keeps the first."""
    seconds = {
        "sd-vae": iter([4.0, 5.0]),
        "svd": iter([4.0, 5.1, 4.2]),
        "wan": iter([1.0]),
        "ltx": iter([0.1, 0.3, 0.2, 0.3]),
    }

    def measured(script: Path, job: dict[str, Any], threads: int) -> dict[str, Any]:
        if (one := next(seconds[job["contender"]], None)) is None:
            raise isolated.NotMeasured("no memory")
        part = {"seconds": one, "peak_mb": 100.0}
        cases = [{"size": 64, "frames": 17, "encode": part, "decode": {"seconds": 0.1, "peak_mb": 200.0}}]
        gflop = {"gflop": {"64": {"encode": 10.0, "decode": 20.0}}} if job["count"] else {}
        latents = {"latent_channels": 4, "compression": [1, 8, 8]}
        return {"parameters": 5, **latents, "loaded_mb": 50.0, "peaks_apart": True, "cases": cases, **gflop}

    monkeypatch.setattr(peers_speed, "run_isolated", measured)
    options = peers_speed.parse_arguments(
        ["--only", *seconds, "--runs", "4", "--seconds", "3", "--sizes", "64"]
    )
    found = {one.name: one.summary() for one in peers_speed.run(options, Path("folder"))}
    (case,) = found["sd-vae"]["sizes"]
    assert (
        found["sd-vae"]["runs"] == 2
        and case["encode"]["all_seconds"] == [4.0, 5.0]
        and case["encode"]["seconds"] == 4.5
    )
    assert case["encode"]["gflop_per_second"] == pytest.approx(10 / 4.5) and case["decode"]["peak_mb"] == 200
    (case,) = found["svd"]["sizes"]
    assert found["svd"]["runs"] == 3 and case["encode"]["seconds"] == 4.2
    assert found["wan"]["runs"] == 1 and found["wan"]["sizes"][0]["encode"]["seconds"] == 1.0
    assert found["ltx"]["runs"] == 4
    assert "| SD-VAE | 4 | 1x8x8 | 0.0 |" in peers_speed.table(list(found.values()), 64)


def test_our_presets_are_compared_at_sixteen_channels_unless_asked_otherwise() -> None:
    for words, channels in (([], 16), (["--latent-channels", "4"], 4)):
        options = peers_speed.parse_arguments(["--only", "wfvae-*", *words])
        assert {one.job["latent_channels"] for one in peers_speed.contenders(options, Path("folder"))} == {
            channels
        }
    assert peers_worker.ours({"preset": "tiny", "latent_channels": 8}).config.latent_dim == 8
    assert peers_worker.ours({"preset": "tiny"}).config.latent_dim == 16


def test_a_shape_is_not_timed_the_first_time_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size: a first pass that takes 9 s is not counted, the second of 2 s is."""
    clock, passes = [0.0], []

    def job(direction: str, frames: int, size: int) -> Callable[[], None]:
        def work() -> None:
            clock[0] += 2.0 if (direction, frames, size) in passes else 9.0
            passes.append((direction, frames, size))

        return work

    codec = SimpleNamespace(parameters=5, channels=4, compression=(4, 8, 8), frames=lambda wanted: wanted - 1)
    codec.encode, codec.decode = (
        lambda frames, size, name=name: job(name, frames, size) for name in peers_speed.DIRECTIONS
    )
    monkeypatch.setattr(peers_worker, "make", lambda job: codec)
    monkeypatch.setattr(peers_worker.time, "perf_counter", lambda: clock[0])
    found = peers_worker.measure({"sizes": [64, 32], "frames": 18, "count": False})
    assert [case[name]["seconds"] for case in found["cases"] for name in peers_speed.DIRECTIONS] == [2.0] * 4
    assert passes == [
        (name, 17, size) for size in (32, 64) for name in peers_speed.DIRECTIONS for _ in range(2)
    ]
    assert (found["latent_channels"], found["compression"]) == (4, (4, 8, 8))


def test_the_drawing_of_peers() -> None:
    """As in the paper: bubbles whose area is parameters, by time and memory (Fig. 1), and lines
    over the frame's size (Fig. 4).
    """

    def row(name: str, parameters: float, cost: float) -> dict[str, Any]:
        part = {"ms_per_frame": cost, "peak_mb": 100 * cost, "gflop": 10 * cost}
        sizes = [
            {"size": size, "frames": 17, **dict.fromkeys(peers_speed.DIRECTIONS, part)} for size in (64, 128)
        ]
        return {"name": name, "title": name, "parameters": parameters, "sizes": sizes}

    rows = [
        row("wfvae-S/torch", 4e6, 1.0),
        row("wan", 16e6, 3.0),
        {"name": "ltx", "title": "ltx", "not_measured": "no memory"},
    ]
    root = ElementTree.fromstring(peers_speed.figure(rows, [64, 128]))
    radii: dict[str, set[float]] = {}
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        radii.setdefault(circle[0].text or "", set()).add(float(circle.get("r", "nan")))
    plain = 3.5
    assert {name: found - {plain} for name, found in radii.items()} == {
        "wfvae-S/torch": {11.0},
        "wan": {22.0},
    }
    charts_of = [chart for chart in root if chart.tag.endswith("g")]
    lines = [
        [e.get("points", "").split() for e in chart.iter() if e.tag.endswith("polyline")]
        for chart in charts_of
    ]
    assert [[len(points) for points in chart] for chart in lines] == [[], [], *[[2, 2]] * 4]
    assert peers_speed.figure(rows[2:], [64]) is None
    one_size = ElementTree.fromstring(peers_speed.figure(rows, [128]))
    assert sum(e.tag.endswith("polyline") for e in one_size.iter()) == 0


def test_peers_that_nobody_knows(tmp_path: Path) -> None:
    assert "no model is called nothing" in run("peers_speed.py", "--only", "nothing", code=2).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sizes", "40"],
        ["--frames", "5"],
        ["--latent-channels", "0"],
        ["--checkout", "wan=a"],
        ["--checkout", "who=a,b"],
        ["--mode", "x"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_of_peers(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        peers_speed.parse_arguments(arguments)


def test_checkouts_by_name() -> None:
    options = peers_speed.parse_arguments(["--checkout", "od-vae=code,weights", "cv-vae=a,b,m:f"])
    jobs = {one.name: one.job for one in peers_speed.contenders(options, Path("folder"))}
    assert (jobs["od-vae"]["checkout"], jobs["od-vae"]["weights"], jobs["od-vae"]["entry"]) == (
        "code",
        "weights",
        None,
    )
    assert jobs["cv-vae"]["entry"] == "m:f" and "checkout" not in jobs["open-sora"]


@pytest.mark.slow
def test_scale(tmp_path: Path) -> None:
    sizes = [
        "--lengths",
        "tiny=5,9",
        "--direct-length",
        "5",
        "--size",
        "16",
        "--sizes",
        "16",
        "--predicted-sizes",
        "64",
        "--frames",
        "5",
    ]
    small = ["--preset", "tiny", *sizes, "--rows", "2", "--runs", "1", "--threads", "1", "--limit", "1"]
    run("scale.py", "--only", "length", "streams", *small, "--json", tmp_path / "scale.json")
    found = results(tmp_path / "scale.json")
    assert set(found["sections"]) == {"length", "streams"}
    lengths = {(row["direction"], row["way"], row["frames"]): row for row in found["sections"]["length"]}
    ways = {("stream", 5), ("stream", 9), ("direct", 5)}
    assert set(lengths) == {
        (direction, way, frames) for direction in ("encoder", "decoder") for way, frames in ways
    }
    assert {row["rows"] for row in found["sections"]["streams"]} == {2}
    for row in (*lengths.values(), *found["sections"]["streams"]):
        frames = row["frames"] * row.get("rows", 1)
        assert (
            row["measured"]
            and row["ms_per_frame"] == pytest.approx(row["seconds"] / frames * 1e3, rel=1e-2)
            and row["peak_mb"] > 20
        )
    assert {(one["direction"], one["size"]) for one in found["crossovers"]} == {
        (d, s) for d in ("encoder", "decoder") for s in (16, 64)
    }
    for one in found["crossovers"]:
        assert one["measured"] is False and one["anchor_frames"] == 5
        assert 0 < one["longest_by_graph"] < scale.LONGEST
        if (
            one["measured_by_stated"] is not None
        ):  # so short a clip may need no more than the process has already
            assert 0 < one["longest_by_measurement"] < scale.LONGEST


@needs_openvino
@pytest.mark.slow
def test_scale_on_openvino(tmp_path: Path) -> None:
    small = [
        "--only",
        "length",
        "--lengths",
        "tiny=5",
        "--direct-length",
        "5",
        "--size",
        "16",
        "--predicted-sizes",
        "64",
        "--runs",
        "1",
    ]
    run("scale.py", *small, "--threads", "1", "--engine", "openvino", "--json", tmp_path / "scale.json")
    found = results(tmp_path / "scale.json")
    rows = {(row["direction"], row["way"]): row for row in found["sections"]["length"]}
    assert set(rows) == {
        (direction, way) for direction in ("encoder", "decoder") for way in ("stream", "direct")
    }
    assert found["engine"] == "openvino"
    assert all(
        row["measured"] and row["ms_per_frame"] > 0 and row["all_peak_mb"] == [row["peak_mb"]]
        for row in rows.values()
    )


def test_jobs_of_scale() -> None:
    options = scale.parse_arguments(["--only", "size", "--sizes", "16", "24", "--preset", "tiny"])
    jobs = scale.plan_jobs(options, {"tiny": Path("folder")})
    assert {(j.request["size"], j.request["way"], j.request["direction"]) for j in jobs} == {
        (size, way, direction)
        for size in (16, 24)
        for way in ("stream", "direct")
        for direction in ("encoder", "decoder")
    }
    usual = scale.parse_arguments([])
    jobs = scale.plan_jobs(usual, dict.fromkeys(("S", "tiny"), Path("folder")))
    assert max(job.frames for job in jobs) == 5001 <= usual.long  # none is a single run
    for words in (["--lengths", "S=32"], ["--lengths", "X=33"], ["--sizes", "12"], ["--frames", "8"]):
        with pytest.raises(SystemExit):
            scale.parse_arguments(words)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_roofline(tmp_path: Path, engine: str) -> None:
    small = [
        "--preset",
        "tiny",
        "--size",
        "16",
        "--frames",
        "5",
        "--chunk",
        "1",
        "--convolutions",
        "2",
        "--runs",
        "1",
        "--threads",
        "1",
    ]
    small += ["--gemm-side", "128", "--seconds", "0.01"]
    run("roofline.py", *small, "--engines", engine, "--json", tmp_path / "roofline.json")
    found = results(tmp_path / "roofline.json")
    graphs = {row["what"]: row for row in found["rows"] if row["kind"] == "graph"}
    assert set(graphs) == {"encoder", "encoder.direct", "decoder", "decoder.direct"}
    assert {row["engine"] for row in found["rows"]} == {engine, "torch"} and found["not_measured"] == {}
    roofs = found["roofs"][engine]
    assert math.isclose(
        roofs["convolution"]["gflop_per_second"],
        max(r["gflop_per_second"] for r in found["rows"] if r["kind"] == "convolution"),
    )
    for key, row in graphs.items():
        operators = found["operators"][key]
        assert (
            row["flop"] == sum(one["flop"] for one in operators.values())
            and operators["Conv"]["flop"] > 0.9 * row["flop"]
        )
        assert row["of_gemm"] == pytest.approx(
            row["gflop_per_second"] / roofs["gemm"]["gflop_per_second"], rel=1e-2
        )
    assert found["roofs"]["gb_per_second"] > 0


@pytest.mark.slow
def test_forms(tmp_path: Path) -> None:
    quick = ["--engines", "onnxruntime", "--runs", 1, "--seconds", 0.01, "--threads", 1]
    run("forms.py", "--layers", "attention", "norm", *quick, "--json", tmp_path / "f.json")
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["machine"]["onnxruntime"] and found["runs"] == 1
    own, other = [row for row in found["rows"] if row["layer"] == "attention"]
    assert (own["speed_by_networks_form"], own["lowest_and_highest_speed"], own["largest_difference"]) == (
        1.0,
        [1.0, 1.0],
        0.0,
    )
    assert other["milliseconds"] > 0 and other["shapes"] == [[1, 5, 512, 16, 16]]
    assert "| attention | 5x512x16x16 | one projection | onnxruntime |" in (tmp_path / "f.md").read_text()


@pytest.mark.slow
def test_model_in_both_forms(tmp_path: Path) -> None:
    run(
        "model.py",
        "--preset",
        "tiny",
        "--size",
        32,
        "--frames",
        5,
        "--threads",
        1,
        "--json",
        tmp_path / "m.json",
    )
    found = json.loads((tmp_path / "m.json").read_text())
    assert (
        found["job"] == {"preset": "tiny", "frames": 5, "height": 32, "width": 32, "dtype": "float32"}
        and found["runs"] == 5
    )
    for speed in found["speed"].values():
        assert speed["gflop"] > 0.1 and speed["largest_difference"] < 1e-4
        assert speed["wfvae_gflop_per_second"] == pytest.approx(
            speed["gflop"] / speed["wfvae_seconds"], rel=1e-2
        )
    assert all(value["largest_difference"] < 1e-4 for value in found["fp32_stream_against_clip"].values())
    assert (
        found["decode_peak_mb"]["wfvae"] > 100 and found["decode_peak_mb"]["published_code_elsewhere"] is None
    )


@pytest.mark.slow
def test_a_training_step_and_a_run(tmp_path: Path) -> None:
    """The second command keeps what the first one measured."""
    # Ten times the clip that a measured process warms up with: what that leaves behind does not
    # hide what the step holds.
    small = (
        "--preset",
        "tiny",
        "--frames",
        9,
        "--size",
        160,
        "--steps",
        2,
        "--threads",
        1,
        "--json",
        tmp_path / "t.json",
    )
    for section in ("memory", "time"):
        run("training.py", "--only", section, *small)
    found = json.loads((tmp_path / "t.json").read_text())
    memory = found["memory"]
    plain, checkpointing = memory["plain"], memory["checkpointing"]
    for told in (plain, checkpointing):
        assert told["peak_mb"] > told["activations_mb"] > 0 and told["seconds"] > 0
    assert (
        checkpointing["activations_mb"] < 0.8 * plain["activations_mb"]
        and checkpointing["peak_mb"] < plain["peak_mb"]
    )
    assert checkpointing["peak_mb_ratio"] == pytest.approx(
        checkpointing["peak_mb"] / plain["peak_mb"], rel=1e-2
    )
    check_shares(found["time"])
    assert "videos" not in found["time"] and found["time"]["workers"] == 1
    said = run("training.py", "--only", "memory", "--recipe", *small).stdout
    found = json.loads((tmp_path / "t.json").read_text())
    whole = found["memory_recipe"]
    assert found["memory"] == memory and "LPIPS and discriminator, plain: peak" in said
    assert whole["plain"]["activations_mb"] > plain["activations_mb"]
    assert whole["checkpointing"]["activations_mb"] < 0.8 * whole["plain"]["activations_mb"]


def check_shares(shares: dict[str, Any]) -> None:
    """Each is a median of three runs, so that they need not add up; of so few steps, a busy moment
    is a large share.
    """
    found = [shares[name] for name in ("data_wait", "compute", "validation", "bookkeeping")]
    assert all(0 <= share <= 1 for share in found) and 0.6 < sum(found) < 1.2


@pytest.mark.slow
def test_a_run_on_videos_has_a_section_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for seed in range(4):
        save(tmp_path / "videos" / f"{seed}.mp4", clip(25, 64, 64, seed=seed))
    write = ("--steps", 1, "--threads", 1, "--json", tmp_path / "t.json")
    (tmp_path / "t.json").write_text(json.dumps({"time": {"config": "kept"}}))
    said = run("training.py", "--only", "time", "--folder", tmp_path / "videos", *write).stdout
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["time"] == {"config": "kept"} and (
        found["time_folder"]["videos"],
        found["time_folder"]["workers"],
    ) == (4, 2)
    check_shares(found["time_folder"])
    assert str(tmp_path) not in json.dumps(found) and "clips of 4 videos: " in said
    for folder in ((), ("--folder", tmp_path / "videos")):
        said = run("training.py", "--only", "loading", "--batches", 1, *folder, *write).stdout
    loading = json.loads((tmp_path / "t.json").read_text())
    for section in ("loading", "loading_folder"):
        assert loading[section]["frames_per_second"] > 1 and 0 < loading[section]["processors_used"] < 20
        assert f"{section}, 2 workers, clips of 25 frames of 256x256: " in said
    assert (loading["loading_folder"]["videos"], "videos" in loading["loading"]) == (4, False)
    assert "expected a directory" in run("training.py", "--folder", tmp_path / "none", code=2).stderr


@pytest.mark.slow
def test_ablation(tmp_path: Path) -> None:
    run("ablation.py", "--steps", 2, "--clips", 1, "--out", tmp_path / "new")
    found = json.loads((tmp_path / "new" / "ablation.json").read_text())
    assert [row["seed"] for row in found["rows"]] == [0, 0, 0] and (found["steps"], found["clips"]) == (2, 1)
    with_loss, without_loss, without_paths = found["rows"]
    assert with_loss["parameters"] == without_loss["parameters"] > without_paths["parameters"]
    assert with_loss["wavelet_term"] > 0 and without_paths["wavelet_term"] == 0
    assert f"| {without_paths['variant']} | 0 |" in (tmp_path / "new" / "ablation.md").read_text()


@pytest.mark.slow
def test_figures_of_the_model_that_ships(tmp_path: Path) -> None:
    """On two clips and a short stream; the bars are for the committed figures, not for these."""
    said = run("tiny_model.py", "--clips", 2, "--frames", 41, "--out", tmp_path).stdout
    found = json.loads((tmp_path / "tiny-model.json").read_text())
    assert found["model"]["parameters"] <= 3_000_000 and found["model"]["weights_bytes"] <= 6_000_000
    assert all(
        20 < scores["psnr_db"] < 60 and 0.5 < scores["ssim"] < 1 for scores in found["held_out"].values()
    )
    still, *moving = (found["passing_titles"][str(speed)] for speed in range(5))
    assert all(
        0 < still["change_along_motion_levels"] < fast["change_along_motion_levels"] < 30 for fast in moving
    )
    places = range(4)
    for place, scores in zip(places, found["cuts"], strict=True):
        assert (
            scores["place_in_latent"] == place
            and 20 < min(scores["psnr_db_behind"]) < scores["psnr_db_later"] < 60
        )
    stream = found["stream"]
    assert (
        stream["frames"] == 41
        and stream["psnr_db"] > stream["psnr_db_lowest"] > 15
        and len(stream["psnr_db_by_place_in_latent"]) == 4
    )
    [shot] = stream["shots"]
    assert (
        shot["frames"] == [0, 40]
        and shot["psnr_db_by_place_in_latent"] == stream["psnr_db_by_place_in_latent"]
    )
    assert "stream of 41 frames" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiny-model.json",
        "tiny-model-stream.png",
        "tiny-model-stream.svg",
        "tiny-model-consecutive.png",
    }


def test_coarse_errors_are_means_over_areas() -> None:
    """One pixel of an area, or a pattern in it, counts 64 times less than the area, or nothing."""
    video = np.zeros((1, 16, 24, 3), np.float32)
    video[0, :8, :8, 0] = 2.0
    video[0, 15, 23, 1] = 64.0
    video[0, :8, 8:16:2, 2], video[0, :8, 9:16:2, 2] = 1.0, -1.0
    means = tiny_model.area_means(video)
    assert means.shape == (1, 2, 3, 3)
    assert (means[0, 0, 0, 0], means[0, 1, 2, 1], np.abs(means).sum()) == (2.0, 1.0, 3.0)
    changes = np.arange(8.0)
    found = tiny_model.by_place(np.zeros(9), changes, 10 * changes, 4, 0, 9)
    assert found["coarse_error_change_by_place_in_latent"] == [
        10 * change for change in found["error_change_by_place_in_latent"]
    ]
    assert found["error_change_by_place_in_latent"] == [2.0, 3.0, 4.0, 5.0]


def panned(count: int, speed: int) -> tuple[np.ndarray[Any, Any], Callable[[Any, Any], Any]]:
    """Noise that passes by whole pixels to the left, and its flow, by the number of the frame,
    which its first pixel holds.
    """
    picture = np.random.default_rng(0).integers(0, 256, (24, 32 + count * speed, 3)).astype(np.uint8)
    video = np.stack([picture[:, at * speed : at * speed + 32] for at in range(count)])

    def flow(first: Any, second: Any) -> Any:
        at, other = (
            next(number for number, frame in enumerate(video) if np.array_equal(frame, given))
            for given in (first, second)
        )
        return np.broadcast_to(np.float32([speed * (at - other), 0]), (24, 32, 2))

    return video, flow


def test_an_error_that_moves_along_is_steady_and_one_that_comes_and_goes_is_not() -> None:
    video, flow = panned(13, 2)
    moved = flicker.motion(video, 6, flow)
    attached = np.random.default_rng(1).normal(0, 20, (24, 32 + 26, 3)).astype(np.float32)
    error = np.stack([attached[:, 2 * at : 2 * at + 32] for at in range(13)])
    for reach in (2, 6):
        steady, share = flicker.steady_error(video, error, reach, moved)
        assert steady == pytest.approx(error, abs=1e-3)
        # Of a pixel that is in the picture all the time nothing is missing; at the sides what came
        # from beyond them, or goes there.
        assert (
            (share[:, :, 2 * reach : 32 - 2 * reach] == 1).all()
            and 0 < share[0, 0, 0] < 1
            and 0 < share[-1, 0, -1] < 1
        )
    # A period of a latent, or half of one, is gone from the mean; frames at the ends of a shot have
    # no whole period around them.
    for pattern in ([1, -1, 1, -1], [1, 1, -1, -1], [1, 0, -1, 0]):
        signs = np.float32(pattern * 4)[:13, None, None, None]
        for reach, width in ((2, 4), (6, 12)):
            inside = flicker.steady_error(video, signs * error, reach, moved)[0][
                reach : 13 - reach, :, width : 32 - width
            ]
            assert inside.size and np.abs(inside).max() < 1e-3


def test_nothing_is_averaged_where_the_original_is_another() -> None:
    video, flow = panned(5, 2)
    error = np.random.default_rng(1).normal(0, 20, video.shape).astype(np.float32)

    def still(first: Any, second: Any) -> Any:
        return np.zeros((24, 32, 2), np.float32)

    wrong, share = flicker.steady_error(video, error, 2, flicker.motion(video, 2, still))
    kept = (wrong == error).all(axis=-1)
    assert kept.mean() > 0.9  # by chance noise is alike here and there
    assert share[2][kept[2]] == pytest.approx(1 / 4) and share[0][kept[0]] == pytest.approx(
        1 / 2.5
    )  # the frame by itself
    right, _ = flicker.steady_error(video, error, 2, flicker.motion(video, 2, flow))
    assert (right != error).any(axis=-1)[:, :, 8:-8].all()


def test_motion_beyond_the_edge_is_unknown() -> None:
    picture = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    moved = flicker.warped(picture, np.broadcast_to(np.float32([1, 0]), (2, 4, 2)))
    assert moved[:, :3] == pytest.approx(picture[:, 1:]) and np.isinf(moved[:, 3]).all()
    half = flicker.warped(picture, np.broadcast_to(np.float32([0.5, 0.5]), (2, 4, 2)))
    assert half[0, 0] == pytest.approx(picture[:, :2].mean(axis=(0, 1)))


def test_flicker_counts_by_itself_in_shots_and_quarters() -> None:
    """Beside a judge that takes the mean distance from ten."""
    still = np.full((60, 16, 32, 3), 100, np.uint8)
    steady, blinking = still + np.uint8(8), still.copy()
    blinking[::2, :8, 16:] += 8

    def judge(video: Any, reference: Any, spans: Any) -> list[float]:
        assert len(video) == len(reference) == 60  # what went before a span is seen
        return [10 - float(np.abs(video - reference)[start:stop].mean()) for start, stop in spans]

    def flow(first: Any, second: Any) -> Any:
        return np.zeros((16, 32, 2), np.float32)

    shots = [(0, 36), (36, 60)]
    motions = [flicker.motion(still[start:stop], 6, flow) for start, stop in shots]
    found = flicker.judged(still, {"steady": steady, "blinking": blinking}, shots, motions, judge)
    assert found["steady"]["all_differences"]["shots"] == [2.0, 2.0]
    for kind in ("one_latent", "three_latents"):
        told = found["steady"][kind]
        assert (told["shots"], told["worst_quarter"], told["quarters_seen"]) == ([10.0, 10.0], 10.0, 0)
        told = found["blinking"][kind]
        places = [
            (quarter["frames"], quarter["rows"], quarter["columns"])
            for quarter in told["lowest_quarters"][:3]
        ]
        assert sorted(places) == [(frames, [0, 7], [16, 31]) for frames in ([0, 23], [24, 47], [36, 59])]
        assert (told["quarters"], told["quarters_seen"]) == (12, 3)  # one of the four, at each time
        assert 5.5 < told["worst_quarter"] < 6.5 and all(8.9 < jod < 9.1 for jod in told["shots"])
    for video in ("steady", "blinking"):  # where all stands still, nothing is missing
        told = found[video]["three_latents"]
        assert told["missing_share"] == [0.0, 0.0]
        assert told["at_most"] == {
            key: value for key, value in told.items() if key not in ("missing_share", "at_most")
        }
    assert "at_most" not in found["blinking"]["one_latent"]
    without = flicker.without_parts(still, blinking, shots, motions, judge)
    assert (
        without["luma"] == [10.0, 10.0] and without["colour"] == found["blinking"]["three_latents"]["shots"]
    )  # it blinks in grey
    assert all(
        low < high < 10 for low, high in zip(without["finer"], without["coarser"], strict=True)
    )  # of 8x16 pixels, so coarse
    text = flicker.table({"shots": [[0, 35], [36, 59]], "jod": found, "stream_without": without})
    assert "| stream, flicker, 13 frames, without luma | 10.00 | 10.00 |  |  |" in text
    assert (
        "| blinking, flicker, 5 frames | 9.0" in text
        and "| 3 of 12 |" in text
        and "| steady, all differences | 2.00 | 2.00 |  |  |" in text
    )


@given(st.lists(st.integers(1, 80), min_size=1, max_size=6))
def test_groups_of_frames_leave_none_out_and_begin_with_shots(lengths: list[int]) -> None:
    starts = np.cumsum([0, *lengths])
    shots = list(pairwise(starts.tolist()))
    found, end = flicker.groups(shots), int(starts[-1])
    assert {at for start, stop in found for at in range(start, stop)} == set(range(end))
    assert {stop - start for start, stop in found} == {min(flicker.GROUP, end)}
    assert len(set(found)) == len(found)
    begun = {start for start, _ in found}
    assert all(start in begun for start, _ in shots if start + flicker.GROUP <= end)


def test_what_went_before_a_cut_is_seen_but_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of vision is given the whole video; what it has of a span's frames is pooled, a
    single frame not as a still picture.
    """
    asked = []

    class Metric:
        device = torch.device("cpu")

        def __init__(self, display_name: str, quiet: bool) -> None:
            assert (display_name, quiet) == (flicker.DISPLAY, True)

        def predict(
            self, video: Any, reference: Any, dim_order: str, frames_per_second: int
        ) -> tuple[float, dict[str, Any]]:
            asked.append((video.shape, reference.shape, dim_order, frames_per_second))
            by_frame = (video - reference).abs().mean(dim=(1, 2, 3)).numpy()
            return 0.0, {"Q_per_ch": np.tile(by_frame[None, None, :, None], (1, 4, 1, 7))}

        def do_pooling_and_jods(self, of_frames: Any) -> Any:
            assert of_frames.shape[2] > 1
            return 10 - of_frames.mean()

    monkeypatch.setattr(flicker, "make_torchvision_importable", lambda *args: None)
    monkeypatch.setitem(sys.modules, "pycvvdp", SimpleNamespace(cvvdp=Metric))
    video = np.zeros((9, 4, 6, 3), np.float32)
    video[3] = 255.0
    jods = flicker.color_video_vdp()(video, np.zeros_like(video), [(0, 3), (3, 4), (2, 6)])
    assert jods == pytest.approx([10.0, 9.0, 9.75])
    assert asked == [((9, 4, 6, 3), (9, 4, 6, 3), "FHWC", flicker.RATE)]


def test_flicker_that_has_no_motion_counts_at_most() -> None:
    """Noise in which nothing is found again: what blinks there passes for steady, and is told as
    what there is at most.
    """
    noise = np.random.default_rng(0).integers(0, 216, (30, 16, 32, 3)).astype(np.uint8)
    blinking = noise.copy()
    blinking[::2] += 40

    def judge(video: Any, reference: Any, spans: Any) -> list[float]:
        return [10 - float(np.abs(video - reference)[start:stop].mean()) / 10 for start, stop in spans]

    def flow(first: Any, second: Any) -> Any:
        return np.zeros((16, 32, 2), np.float32)

    found = flicker.judged(noise, {"blinking": blinking}, [(0, 30)], [flicker.motion(noise, 6, flow)], judge)[
        "blinking"
    ]["three_latents"]
    assert found["worst_quarter"] > 9.9 and found["quarters_seen"] == 0
    assert found["at_most"]["worst_quarter"] < 8.5 and found["at_most"]["quarters_seen"] == found["quarters"]
    assert 0.75 < found["missing_share"][0] < 0.95
    text = flicker.table({"shots": [[0, 29]], "jod": {"stream": {"three_latents": found}}})
    assert (
        f"| stream, flicker, 13 frames, at most | {found['at_most']['shots'][0]:.2f} |"
        f" {found['at_most']['worst_quarter']:.2f} |" in text
    )


def test_an_error_turned_over_is_as_large_and_never_steady() -> None:
    original = np.full((6, 4, 4, 3), 100, np.uint8)
    found = flicker.turned_over(original, original + np.uint8(7))
    assert (found[::2] == 107).all() and (found[1::2] == 93).all()
    assert (
        flicker.turned_over(np.zeros_like(original), np.zeros_like(original) + np.uint8(7))[1::2] == 0
    ).all()


def test_parts_of_flicker_add_up_and_are_told_by_their_scale() -> None:
    rows = np.arange(64, dtype=np.float32)
    for wavelength, name in ((3, "finer"), (14, "between"), (64, "coarser")):
        wave = np.broadcast_to(
            np.sin(2 * np.pi * rows / wavelength)[None, :, None, None], (2, 64, 64, 3)
        ).astype(np.float32)
        found = flicker.parts(wave)
        assert found["finer"] + found["between"] + found["coarser"] == pytest.approx(wave, abs=1e-6)
        assert (
            found["luma"] + found["colour"] == pytest.approx(wave, abs=1e-6)
            and np.abs(found["colour"]).max() < 1e-6
        )
        assert (
            max(("finer", "between", "coarser"), key=lambda part: float(np.square(found[part]).sum())) == name
        )


def test_a_softened_original_has_the_error_of_the_stream() -> None:
    original = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    stream = original.copy()
    stream[:3] = np.clip(original[:3].astype(int) + 12, 0, 255)
    stream[3:] = np.clip(original[3:].astype(int) - 30, 0, 255)
    soft = flicker.softened(original, stream, [(0, 3), (3, 6)])
    for shot in (slice(0, 3), slice(3, 6)):
        wanted, made = (
            np.square(video[shot].astype(np.float32) - original[shot]).mean() for video in (stream, soft)
        )
        assert made == pytest.approx(wanted, rel=0.05)


def test_what_flicker_needs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, made, told in (
        ("cv2", flicker.optical_flow, "pip install opencv-python-headless"),
        ("pycvvdp", flicker.color_video_vdp, "pip install cvvdp"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SystemExit, match=told):
            made()
    for other in (["--checkpoint", "runs/other"], ["--seed", "8"]):
        with pytest.raises(SystemExit):
            flicker.parse_arguments(other)
    assert flicker.parse_arguments([]).out == BENCHMARKS / "results" / "flicker.json"


def test_the_model_that_ships_is_made_from_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    config = WFVAEConfig.preset("tiny").with_changes(base_channels=8)
    run_folder = tmp_path / "run"
    WFVAE.random(config).save_pretrained(run_folder)
    tiny_model.ship(run_folder)
    assert sorted(path.name for path in (tmp_path / "shipped").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    zeros = WFVAE.from_pretrained(run_folder)
    for parameter in zeros.parameters():
        torch.nn.init.zeros_(parameter)
    zeros.save_pretrained(tmp_path / "zeros")
    tiny_model.ship(run_folder, str(tmp_path / "zeros"))
    whole, half = (
        dict(WFVAE.from_pretrained(folder).named_parameters())
        for folder in (run_folder, tmp_path / "shipped")
    )
    assert all(torch.equal(half[name], (whole[name] / 2).half().float()) for name in whole)


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        (tiny_model, ["--frames", "24", "--out", "x"], "expected at least 25"),
        (tiny_model, ["--frames", "41"], "name a folder with --out"),
        (tiny_model, ["--clips", "1"], "expected at least 2"),
        (tiny_model, ["--mean-with", "tiny"], "name runs with --ship"),
        (ablation, ["--clips", "1"], "name a folder with --out"),
    ],
    ids=["few frames", "another stream", "few clips", "nothing to ship", "other clips"],
)
def test_toys_do_not_replace_committed_results(
    script: Any, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.parse_arguments(arguments)
    assert complaint in capsys.readouterr().err
    assert script.parse_arguments([]).out == BENCHMARKS / "results"
    assert script.parse_arguments(["--clips", "48", "--out", "x"]).out == Path("x")


class Pulsing:
    """In the place of a model: one that gives back its video, every second frame brighter by so
    many levels of 255.
    """

    def __init__(self, levels: float) -> None:
        self._levels = levels

    def encode(self, video: torch.Tensor) -> SimpleNamespace:
        video = video.clamp(-0.9, 0.9)
        video[:, :, ::2] += self._levels / 127.5
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=video))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


def test_titles_that_pass_change_by_what_the_model_adds() -> None:
    found = tiny_model.passing_titles(Pulsing(3.0))  # type: ignore[arg-type]
    assert list(found) == ["0", "1", "2", "3", "4"]
    for speed, scores in found.items():
        assert scores["change_along_motion_levels"] == pytest.approx(3.0, abs=1e-3), speed


class Lingering:
    """In the place of a model: one that shows a share of the frame before in every frame."""

    config = SimpleNamespace(temporal_compression=4)

    def __init__(self, share: float) -> None:
        self._share = share

    def encode(self, video: torch.Tensor) -> SimpleNamespace:
        before = torch.cat([video[:, :, :1], video[:, :, :-1]], dim=2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=video + self._share * (before - video)))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


def test_what_lingers_behind_a_cut_is_told_wherever_it_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_model, "CUT_SEEDS", range(200, 202))
    strong, faint = (tiny_model.cuts(Lingering(share)) for share in (0.1, 0.05))  # type: ignore[arg-type]
    assert [scores["place_in_latent"] for scores in strong] == [0, 1, 2, 3]
    for scores, fainter in zip(strong, faint, strict=True):
        first, *others = scores["psnr_db_behind"]
        assert len(others) == tiny_model.BEHIND - 1
        assert first < min(*others, scores["psnr_db_before"], scores["psnr_db_later"]) - 5
        for found, other in (
            (first, fainter["psnr_db_behind"][0]),
            (scores["psnr_db_later"], fainter["psnr_db_later"]),
        ):
            assert other - found == pytest.approx(20 * math.log10(2), abs=0.01)  # half the error


def test_where_nothing_holds_there_is_no_mean() -> None:
    told = tiny_model.levels("still", np.array([1.0, 3.0], np.float32))
    assert told == {"still_change_levels": 2.0, "still_change_levels_99th_percentile": pytest.approx(2.98)}
    none = {**tiny_model.levels("still", zeros(0)), **tiny_model.levels("afar", zeros(0))}
    assert none == {
        f"{where}_change_levels{end}": None for where in ("still", "afar") for end in ("", "_99th_percentile")
    }
    stream = {
        "frames": 25,
        "psnr_db": 30.0,
        "error_change_levels": 1.0,
        "error_change_at_seams_over_within_steps": {},
    }
    stream |= {"still_share": 0.0, "afar_share": 0.0, **none}
    result = {"held_out": {}, "psnr_db_after_frames": {}, "passing_titles": {}, "cuts": [], "stream": stream}
    assert "far from all that moves: 0% of the pixels" in tiny_model.summary(result).splitlines()


@pytest.mark.slow
def test_speed_memory_and_quality_of_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two commands that fill one file; another size and preset get sections of their own. Here,
    so that turns need not rest.
    """
    monkeypatch.setattr(turns, "_REST", 0.0)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    video = save(tmp_path / "clip.mp4", clip(9, 64, 64))
    small = (
        "--preset",
        "tiny",
        "--size",
        32,
        "--lengths",
        5,
        65,
        "--memory-frames",
        25,
        5,
        "--memory-runs",
        1,
    )
    codes = []
    for words in (
        ("--only", "speed", "memory", *small),
        ("--only", "quality", "--checkpoint", ROOT / "wfvae" / "weights" / "tiny", "--videos", video),
    ):
        arguments = [*words, "--threads", 1, "--json", tmp_path / "r.json"]
        monkeypatch.setattr(sys, "argv", ["runtime.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(BENCHMARKS / "runtime.py"), run_name="__main__")
        codes.append(end.value.code)
    found = json.loads((tmp_path / "r.json").read_text())
    assert list(found) == ["speed tiny 32x32 5+65 frames", "memory 5+25 frames", "quality of videos"]
    speeds, long = (
        found["speed tiny 32x32 5+65 frames"]["clips"][:2],
        found["speed tiny 32x32 5+65 frames"]["clips"][2:],
    )
    assert [(one["direction"], one["frames"]) for one in (*speeds, *long)] == [
        (d, n) for n in (5, 65) for d in ("encoder", "decoder")
    ]
    for one in (*speeds, *long):
        ways = one["forms"]
        assert one["runs"] == 5 and all(way["seconds"] > 0 for way in ways.values())
        assert ("openvino fp32" in ways) == ("openvino fp32, stream of 16 frames" in ways) == HAS_OPENVINO
        streamed = [name for name, way in ways.items() if way["time_by_direct"] is not None]
        assert streamed == [name for name in ways if "stream" in name]
    assert all(way["speed_by_reference"] for one in speeds for way in one["forms"].values())
    assert (
        all(one["forms"]["reference"]["speed_by_reference"] == 1.0 for one in speeds)
        and "reference" not in long[0]["forms"]
    )
    # Two latents; a stream has as many steps when it encodes, and one more, that drains it, when it
    # decodes.
    assert [(one["stream_work"], one["stream_work_in_pairs"]) for one in speeds] == [(1.333, 1.0), (2.0, 1.5)]
    jobs = found["memory 5+25 frames"]["jobs"]
    assert [job["direction"] for job in jobs] == ["encode", "decode"]
    for job in jobs:
        assert list(job["peak_mb"]) == ["5", "25"] and min(job["peak_mb"].values()) > 50
        assert job["ratio"] == pytest.approx(job["peak_mb"]["25"] / job["peak_mb"]["5"], rel=1e-2)
    quality = found["quality of videos"]
    assert all(20 < one["psnr_db"]["onnxruntime fp32"] < 60 for one in quality["clips"])
    losses = quality["largest_loss_db"]
    assert set(losses) <= {"openvino fp32", "openvino bf16"} and ("openvino fp32" in losses) == HAS_OPENVINO
    # The exit code of the second is about that; small and easy clips may well miss the bar.
    assert codes == [0, any(loss > quality["bar_db"] for loss in losses.values())]


def test_streams_without_start_and_end() -> None:
    """Of each backend by its own direct inference: 10 s more for 10 s more on ONNX Runtime, 6 for 5
    on the other one.
    """

    def clip_of(frames: int, seconds: dict[str, float]) -> runtime_speed.ClipSpeed:
        forms = {
            name: runtime_speed.FormSpeed(9.0, one, None, 1.0 if "stream" in name else None, None)
            for name, one in seconds.items()
        }
        return runtime_speed.ClipSpeed("encoder", frames, 5, forms, 1.0, 1.0)

    own, other = runtime_speed.stream_name(4), runtime_speed.stream_name(4, "openvino fp32")
    assert (own, other) == ("stream of 16 frames", "openvino fp32, stream of 16 frames")
    short = clip_of(
        17, {"onnxruntime": 4.0, "stream of 4 frames": 6.0, own: 5.0, "openvino fp32": 2.0, other: 3.0}
    )
    long = clip_of(65, {"onnxruntime": 14.0, own: 15.0, "openvino fp32": 7.0, other: 9.0})
    assert runtime_speed.steady_ratios([long, short]) == {"encoder": {own: 1.0, other: pytest.approx(1.2)}}
    assert runtime_speed.steady_ratios([short]) == {}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["speed", "memory", "quality"]),
        (
            ["--threads", "1", "--runs", "7", "--memory-runs", "1", "--lengths", "65", "17"],
            ["speed", "memory", "quality"],
        ),
        (["--size", "256", "--lengths", "17"], ["speed 256x256 17 frames", "memory", "quality 256x256"]),
        (["--preset", "M", "--memory-preset", "S"], ["speed M", "memory S", "quality"]),
        (["--memory-frames", "2000", "9", "9"], ["speed", "memory 9+2000 frames", "quality"]),
        (["--videos", "a.mp4", "--size", "64"], ["speed 64x64", "memory", "quality of videos"]),
    ],
    ids=lambda words: " ".join(words) or "defaults",
)
def test_what_is_measured_otherwise_is_a_section_of_its_own(
    arguments: list[str], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    runtime = runpy.run_path(str(BENCHMARKS / "runtime.py"))
    options = runtime["parse_arguments"](arguments)
    assert [runtime["section_name"](name, options) for name in ("speed", "memory", "quality")] == names
    with pytest.raises(SystemExit):
        runtime["parse_arguments"](["--memory-frames", "9", "9"])


SMALL_LAYERS: dict[str, Callable[[], Any]] = {
    "pairs": lambda: forms.in_pairs(4, 3, 5, 6),
    "rows": lambda: forms.one_by_one(3, 3, 5, 6),
    "doubling": lambda: forms.doubling(2, 4, 6),
    "nearest": lambda: forms.nearest(3, 4, 6),
    "attention": lambda: forms.attention(2, 8, 4),
    "norm": lambda: forms.norm(2, 8, 4),
    "history": lambda: forms.history(3, 4, 6),
}


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino-fp32", marks=needs_openvino)])
@pytest.mark.parametrize("name", forms.layers())
def test_all_forms_of_a_layer_give_the_same(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared is computed in fp32 by that engine; `measure` refuses what differs."""
    monkeypatch.setattr(turns, "_REST", 0.0)
    layer = SMALL_LAYERS[name]()
    if engine not in layer.engines:
        pytest.skip(f"{layer.name} is not measured on {engine}")
    rows = list(forms.measure(layer, engine, 1, 1, 0.0))
    assert [row["form"] for row in rows] == list(layer.forms) and len(rows) >= 2
    assert all(0 <= row["largest_difference"] < 1e-5 for row in rows)


def test_forms_that_differ_are_refused() -> None:
    right, wrong = (forms.Form(lambda x, factor=factor: x * factor) for factor in (2.0, 2.001))
    layer = forms.Layer("product", ((1, 1, 2, 4, 4),), {"right": right, "wrong": wrong})
    with pytest.raises(AssertionError, match=r"product, wrong: 5\.0e-04"):
        list(forms.measure(layer, "onnxruntime", 1, 1, 0.0))


@pytest.mark.parametrize("installed", [False, True], ids=["no openvino", "no bf16"])
def test_an_engine_that_is_not_there_is_left_out(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> Any:
            return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else "some CPU"

    def absent() -> Core:
        raise MissingExtraError("the backend openvino", "openvino", "openvino")

    monkeypatch.setattr("wfvae.runtime.backends.openvino.open_core", Core if installed else absent)
    monkeypatch.setattr(turns, "_REST", 0.0)
    monkeypatch.setattr(forms, "layers", lambda: {"doubling": lambda: [SMALL_LAYERS["doubling"]()]})
    engines = ["onnxruntime", "openvino-bf16"]
    quick = ["--engines", *engines, "--runs", "1", "--seconds", "0", "--threads", "1"]
    forms.main([*quick, "--json", str(tmp_path / "f.json")])
    found = json.loads((tmp_path / "f.json").read_text())
    assert {row["engine"] for row in found["rows"]} == {"onnxruntime"}
    reason = found["not_measured"]["openvino-bf16"]
    assert ("does not compute in bf16" if installed else "wfvae[openvino]") in reason
    assert f"openvino-bf16: not measured: {reason}" in capsys.readouterr().err
    assert f"openvino-bf16: not measured: {reason}" in (tmp_path / "f.md").read_text()
    for engine, there in (("onnxruntime", True), ("openvino-fp32", installed), ("openvino", installed)):
        with contextlib.nullcontext() if there else pytest.raises(isolated.NotMeasured):
            bundle_engines.require_engine(engine)


def test_a_graph_above_its_roofs_is_marked() -> None:
    """Roofs of 100 and 120: 110 beats one of them and is no wonder, 130 beats both."""
    measured = {"seconds": 1.0, "bytes": 10, "gb_per_second": 1.0}
    kinds = {
        ("gemm", "x"): 100.0,
        ("convolution", "y"): 120.0,
        ("graph", "encoder"): 110.0,
        ("graph", "decoder"): 130.0,
    }
    rows = [
        {
            "engine": "onnxruntime",
            "kind": kind,
            "what": what,
            "flop": 10,
            "gflop_per_second": rate,
            **measured,
        }
        for (kind, what), rate in kinds.items()
    ]
    rows += [
        {"engine": "torch", "kind": kind, "what": "z", "flop": 10, "gflop_per_second": 50.0, **measured}
        for kind in ("gemm", "copy")
    ]
    roofs = roofline.add_shares(rows)
    assert [row["above_roofs"] for row in rows if row["kind"] == "graph"] == [False, True]
    text = roofline.tables(rows, roofs, {}, {})
    assert (
        "| onnxruntime encoder |" in text
        and f"| onnxruntime decoder {roofline.ABOVE} |" in text
        and "too low to be a roof" in text
    )
    text = roofline.tables(rows[:3] + rows[4:], roofs, {}, {})
    assert roofline.ABOVE not in text and "too low" not in text


def test_one_session_at_a_time_and_a_median_of_warm_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of 9 (not counted), 2, 4 and 3 seconds, until 8 s have passed: the median is 3."""
    clock, opened = [0.0], []
    durations = iter([9.0, 2.0, 4.0, 3.0, 100.0])

    @contextlib.contextmanager
    def opener() -> Iterator[Callable[[], None]]:
        opened.append(True)
        yield lambda: clock.__setitem__(0, clock[0] + next(durations))
        opened.append(False)

    monkeypatch.setattr(roofline.time, "perf_counter", lambda: clock[0])
    measure = roofline.measurement(opener, 8.0)
    assert opened == [] and measure() == 3.0 and opened == [True, False]
    assert next(durations) == 100.0


def test_single_convolutions_compute_what_they_are_named_after() -> None:
    convolution = onnx_work.Convolution(
        (1, 3, 8, 8), (4, 3, 3, 3), (("pads", (1, 1, 1, 1)), ("strides", (2, 2))), 0, 0, 1
    )
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in (convolution.x, convolution.weight))
    (found,) = roofline.compile_model(roofline.convolution_model(convolution, weight), "onnxruntime", 1)(
        {"x": x}
    )
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), stride=2, padding=1
    ).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_single_operators_are_set_up_as_graphs_are(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the runtime sets in an engine is what a roof is measured with."""
    import onnxruntime as ort

    from wfvae.runtime.backends import onnxruntime as onnxruntime_backend

    plain = ort.SessionOptions()
    names = [name for name in dir(plain) if not name.startswith("_") and not callable(getattr(plain, name))]
    given = []
    original = ort.InferenceSession

    def session(model: Any, options: Any, **settings: Any) -> Any:
        given.append({name: getattr(options, name) for name in names})
        return original(model, options, **settings)

    monkeypatch.setattr(ort, "InferenceSession", session)
    assert onnxruntime_backend.ort is ort
    with bundle_engines.open_on("onnxruntime", exported("small"), 1) as bundle:
        bundle.direct_session("encoder")
    roofline.compile_model(roofline.gemm_model(8), "onnxruntime", 1)
    of_runtime, of_roof = given
    assert of_runtime == of_roof != {name: getattr(plain, name) for name in names}


def test_single_operators_are_set_up_as_graphs_are_in_openvino(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    given = []
    original = ov.Core.compile_model

    def compile_model(core: Any, model: Any, device: str, settings: dict[str, Any]) -> Any:
        given.append((device, settings))
        return original(core, model, device, settings)

    monkeypatch.setattr(ov.Core, "compile_model", compile_model)
    with bundle_engines.open_on("openvino", exported("small"), 1) as bundle:
        bundle.direct_session("encoder")
    roofline.compile_model(roofline.gemm_model(8), "openvino", 1)
    assert given[0] == given[1] and given[0][1]["INFERENCE_NUM_THREADS"] == 1


def test_overhead(tmp_path: Path) -> None:
    small = ["--preset", "tiny", "--size", "32", "--frames", "9", "--runs", "1", "--threads", "1"]
    run("overhead.py", *small, "--json", tmp_path / "overhead.json")
    found = {result["job"]: result for result in results(tmp_path / "overhead.json")["jobs"]}
    assert list(found) == ["encode", "decode", "reconstruct"]
    for result in found.values():
        shares = result["share_of_wall"]
        assert sum(shares.values()) == pytest.approx(1, abs=2e-3) and shares["other"] >= 0
        assert result["outside_engine"] == pytest.approx(1 - shares["engine"], abs=1e-3)
    beside = {name: set(result["background_by_wall"]) for name, result in found.items()}
    reading, writing = {"video decode", "colour conversion in"}, {"colour conversion out", "video encode"}
    assert (
        reading <= beside["encode"] and "latents write" in beside["encode"] and not writing & beside["encode"]
    )
    assert (
        "latents read" in beside["decode"] and writing <= beside["decode"] and not reading & beside["decode"]
    )
    assert reading | writing <= beside["reconstruct"]
