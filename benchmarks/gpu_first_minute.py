"""Which of NVIDIA's engines work here: each one's answer in a line, before `gpu.py`'s long part.

Each engine has a process of its own. One that loads and finds a GPU encodes and decodes two steps
of the packaged tiny model, is compared with ONNX Runtime on the CPU, and timed.
"""

import importlib
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from harness.processes import PATIENCE, NotMeasured, reason_of, run_isolated
from harness.turns import timed

TENSORRT, RTX, CUDA, PLUG_IN = "TensorRT", "TensorRT-RTX", "ONNX Runtime CUDA", "TensorRT plug-in"
ENGINES = (TENSORRT, RTX, CUDA, PLUG_IN)
CPU, CPU_SESSION = "ONNX Runtime CPU", "ONNX Runtime CPU, session alone"
SMOKE_ENGINES = (CPU, CPU_SESSION)
"""They test the code of the others on a CPU: that of backends, and that of the plug-in."""
SECONDS = 110.0
"""For everything. What is not ready in its share of it is reported as such."""
BOUND = 1e-4
"""Largest error of a correct engine in fp32, of the largest value."""
SIZE, LATENTS, RUNS = 256, 4, 10
_PLUG_IN_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
_DIRECTIONS = ("encoder", "decoder")


def first_minute(folder: Path, smoke: bool = False) -> dict[str, dict[str, Any]]:
    """Prints a line for each engine as soon as it is known. Returns what was found, by engine."""
    began, engines = time.monotonic(), SMOKE_ENGINES if smoke else ENGINES
    found: dict[str, dict[str, Any]] = {}

    def report(engine: str, facts: dict[str, Any]) -> None:
        found[engine] = facts
        print(line(engine, facts, side), flush=True)

    side, time_limit = (16, PATIENCE) if smoke else (SIZE, SECONDS)
    with ThreadPoolExecutor(len(engines)) as pool:
        loaded = list(pool.map(lambda engine: ask("probe", {"engine": engine}, time_limit / 4), engines))
    waiting = []
    for engine, facts in zip(engines, loaded, strict=True):
        if "reason" in facts:
            report(engine, facts)
        else:
            waiting.append(engine)
    job = {"bundle": str(folder / "tiny"), "reference": str(folder / "reference.npz"), "side": side}
    prepared = ask("prepare", job, time_limit / 3) if waiting else {}
    for number, engine in enumerate(waiting):
        share = (time_limit - (time.monotonic() - began)) / (len(waiting) - number)
        facts = prepared or ask("measure", {**job, "engine": engine, "own": str(folder / str(number))}, share)
        report(engine, facts)
    return found


def ask(function: str, job: dict[str, Any], patience: float) -> dict[str, Any]:
    """Runs a function of this module in a process of its own. Returns its result or a `reason`."""
    try:
        return run_isolated(f"gpu_first_minute:{function}", job, 1, patience)
    except NotMeasured as reason:
        return {"reason": str(reason)}


def line(engine: str, facts: dict[str, Any], side: int) -> str:
    """Returns an engine's line."""
    if "reason" in facts:
        return f"{engine}: does not work here: {facts['reason']}"
    errors = ", ".join(f"{name} {error:.1e}" for name, error in facts["errors"].items())
    right = all(error <= BOUND for error in facts["errors"].values())
    verdict = "works" if right else f"runs, but its results are wrong (bound {BOUND:.0e})"
    return (
        f"{engine} {facts['version']}: {verdict}; error against the CPU: {errors};"
        f" {facts['frames_per_second']:.1f} frames/s encoded and decoded (tiny, fp32, {side}x{side});"
        f" ready after {facts['ready_seconds']:.0f} s"
    )


# What follows runs in the engines' processes.


def probe(job: dict[str, Any]) -> dict[str, Any]:
    """Loads the engine and looks for a GPU, without the model."""
    from wfvae.errors import WFVAEError
    from wfvae.runtime.backends.nvidia.cuda import Cuda
    from wfvae.runtime.backends.onnxruntime import choose_provider
    from wfvae.spec.tensorrt_api import RTX as RTX_FLAVOUR
    from wfvae.spec.tensorrt_api import TensorRT

    engine = job["engine"]
    try:
        if engine == TENSORRT:
            TensorRT.load()
            Cuda(0)
        elif engine == RTX:
            TensorRT.load(RTX_FLAVOUR)
            Cuda(0)
        elif engine == CUDA:
            with redirect_stdout(None):
                choose_provider("cuda", 0)
        elif engine == PLUG_IN:
            plug_in_devices()
    except WFVAEError as error:
        raise NotMeasured(reason_of(error)) from error
    return {}


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Exports the model, and stores two steps of each direction with their results on the CPU."""
    from wfvae import WFVAE
    from wfvae.export.bundle import export_bundle
    from wfvae.runtime import open_bundle

    export_bundle(WFVAE.from_pretrained("tiny"), job["bundle"])
    bundle = open_bundle(job["bundle"], provider="cpu", verify=False)
    dice, arrays = np.random.default_rng(0), {}
    for direction in _DIRECTIONS:
        graph = bundle.manifest.graphs[direction]
        channels, ratio = int(graph.inputs[0].shape[2]), graph.stream.ratio
        inner = job["side"] if direction == "encoder" else job["side"] // 8
        count = LATENTS * (ratio if direction == "encoder" else 1)
        x = dice.random((2, 1, count, channels, inner, inner), np.float32) * 2 - 1
        step = BackendSteps(bundle, direction, job["side"])
        arrays[f"{direction} in"] = x
        arrays[f"{direction} out"] = np.stack([step(x[0], True), step(x[1], False)])
    np.savez(job["reference"], **arrays)
    return {}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Compares an engine's steps with those on the CPU, and times them."""
    began, engine = time.monotonic(), job["engine"]
    steps, version = open_engine(engine, Path(job["bundle"]), Path(job["own"]), job["side"])
    arrays = np.load(job["reference"])
    errors, inputs = {}, {}
    for direction in _DIRECTIONS:
        x, expected = arrays[f"{direction} in"], arrays[f"{direction} out"]
        found = np.stack([steps[direction](x[0], True), steps[direction](x[1], False)])
        scale = max(1.0, float(np.abs(expected).max()))
        errors[direction] = float(np.abs(found.astype(np.float64) - expected).max()) / scale
        inputs[direction] = x[1]
        if not np.isfinite(found).all():
            raise NotMeasured(f"the {direction}'s results are not finite")
    ready = time.monotonic() - began

    def both() -> None:
        for direction in _DIRECTIONS:
            steps[direction](inputs[direction], False)

    both()
    seconds = statistics.median(timed(both) for _ in range(RUNS))
    frames = inputs["encoder"].shape[1]
    facts = {"version": version, "errors": errors, "frames_per_second": frames / seconds}
    return {**facts, "ready_seconds": ready}


def open_engine(
    engine: str, bundle: Path, own: Path, side: int
) -> tuple[dict[str, Callable[[Any, bool], Any]], str]:
    """Returns a function for each direction's steps, and the engine's version."""
    from wfvae.runtime import open_bundle
    from wfvae.spec.manifest import Manifest

    if engine in (PLUG_IN, CPU_SESSION):
        import onnxruntime

        graphs, devices = Manifest.read(bundle).graphs, None if engine == CPU_SESSION else plug_in_devices()
        return (
            {name: SessionSteps(bundle, graphs[name], devices, side) for name in _DIRECTIONS},
            f"in ONNX Runtime {onnxruntime.__version__}",
        )
    if engine in (TENSORRT, RTX):
        shutil.copytree(bundle, own)  # with engines of this flavour only
        build(own, side, "rtx" if engine == RTX else "tensorrt")
        opened = open_bundle(own, "tensorrt")
    else:
        opened = open_bundle(bundle, provider="cuda" if engine == CUDA else "cpu", verify=False)
    steps = {name: BackendSteps(opened, name, side) for name in _DIRECTIONS}
    return steps, opened.backend.describe()["version"]


class BackendSteps:
    """Steps of one stream in a backend of `wfvae.runtime`."""

    def __init__(self, bundle: Any, direction: str, side: int) -> None:
        self._session = bundle.step_session(direction)
        self._state = self._session.new_state(1, side, side)

    def __call__(self, x: Any, start: bool) -> Any:
        return self._session.step(self._state, x, np.array([start]), np.array([False]))


class SessionSteps:
    """Steps of one stream in an ONNX Runtime session, on a plug-in's devices or on the CPU."""

    def __init__(self, bundle: Path, graph: Any, devices: Any, side: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if devices is not None:
            options.add_provider_for_devices(devices, {})
        self._graph = graph
        self._session = onnxruntime.InferenceSession(str(bundle / graph.file), options)
        self._state = {
            spec.input: np.full(spec.resolve(1, side, side), spec.initial_value, spec.dtype)
            for spec in graph.states
        }

    def __call__(self, x: Any, start: bool) -> Any:
        graph = self._graph
        feeds = {graph.inputs[0].name: x, "start": np.array([start]), **self._state}
        if graph.has_end:
            feeds["end"] = np.array([False])
        names = [graph.outputs[0].name, *(spec.output for spec in graph.states)]
        result, *state = self._session.run(names, feeds)
        self._state = dict(zip((spec.input for spec in graph.states), state, strict=True))
        return result


def build(bundle: Path, side: int, flavour: str) -> None:
    """Builds engines for this size only, quickly."""
    from wfvae.cli.main import main

    command = ["build", str(bundle), "--size", f"{side}x{side}", "--chunk", str(LATENTS)]
    if code := main([*command, "--optimization-level", "1", "--flavour", flavour]):
        raise NotMeasured(f"'wfvae build' ended with code {code}")


def plug_in_devices() -> Any:
    """Returns the GPUs of ONNX Runtime's plug-in for TensorRT-RTX."""
    import onnxruntime

    package = require_module(_PLUG_IN_PACKAGE, "onnxruntime-ep-nv-tensorrt-rtx-cu13")
    try:
        onnxruntime.register_execution_provider_library(PLUG_IN, package.get_library_path())
        name = package.get_ep_name()
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        text = str(error).rpartition("with error:")[2].strip()
        raise NotMeasured(f"its library does not load: {text}") from error
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise NotMeasured(f"{name} finds no GPU that it supports")
    return devices


def require_module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NotMeasured(f"it is not installed (pip install {package})") from error
    except (ImportError, OSError) as error:
        raise NotMeasured(f"{package} does not load: {reason_of(error)}") from error
