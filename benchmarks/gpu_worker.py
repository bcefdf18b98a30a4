"""One backend at one precision, in a process of its own that `gpu.py` drives.

JSON requests arrive on standard input, answers go to standard output. A process each keeps
libraries that bring their own CUDA apart, and a crash or a broken GPU context away from the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DIRECT, STEPS = "direct", "steps"
OUT_OF_MEMORY = "out of memory"
GRAPHS = {"encode": "encoder", "decode": "decoder"}
RATIO = 4  # frames per latent, of all presets
# TensorRT engines are built for a largest batch; attention over 768x768 in larger ones exceeds
# 2**31 values.
ENGINE_ROWS = 4


class Unavailable(Exception):
    """Why this backend cannot be measured here."""


def inputs(rows: int, frames: int, size: int, mode: str, channels: int) -> dict[str, FloatArray]:
    """Returns video (B, T, 3, H, W) in [-1, 1] and latents (B, t, D, h, w), always the same."""
    video = np.random.default_rng(0).random((rows, frames, 3, size, size), np.float32) * 2 - 1
    latents = frames // RATIO if mode == STEPS else 1 + (frames - 1) // RATIO
    shape = (rows, latents, channels, size // 8, size // 8)
    return {"encode": video, "decode": np.random.default_rng(1).standard_normal(shape, np.float32)}


class TorchEngine:
    """The PyTorch model, eager."""

    def __init__(self, preset: str, precision: str, tf32: bool, device: str) -> None:
        import torch

        from wfvae import WFVAE, WFVAEConfig

        self._torch, self._device = torch, torch.device("cuda" if device == "gpu" else "cpu")
        if device == "gpu" and not torch.cuda.is_available():
            raise Unavailable(f"PyTorch {torch.__version__} sees no GPU")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        # Heuristics, as for the other backends: a search would be repeated for each shape.
        torch.backends.cudnn.benchmark = False
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        model = WFVAE.random(WFVAEConfig.preset(preset), 0).requires_grad_(False)  # type: ignore[arg-type]
        self._model = model.to(device=self._device, dtype=self._dtype)
        self._inputs: dict[str, Any] = {}
        self._host: dict[str, Any] = {}
        self._states: dict[str, Any] = {}
        self._chunk: int | None = None
        self.peak: int | None = None
        """Most bytes allocated in the last run with data on the GPU, if known."""

    def describe(self) -> dict[str, Any]:
        torch = self._torch
        found = {"torch": torch.__version__, "parameters": sum(p.numel() for p in self._model.parameters())}
        if self._device.type == "cuda":
            found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            found |= {"gpu": torch.cuda.get_device_name()}
        return found

    def open(self, rows: int, frames: int, size: int, mode: str) -> None:
        """Prepares clips of size x size: `direct`, in chunks of N frames, or single `steps`."""
        self._chunk = int(mode) if mode.isdigit() else None
        arrays = inputs(rows, frames, size, mode, self._model.config.latent_dim)
        for name, array in arrays.items():
            self._host[name] = self._torch.from_numpy(array).movedim(2, 1).contiguous()
            self._inputs[name] = self._host[name].to(self._device, self._dtype)
        self._flags = self._torch.zeros(rows, dtype=self._torch.bool, device=self._device)
        if mode == STEPS:
            self._states = {g: self._model.initial_state(g, rows, size, size) for g in GRAPHS.values()}

    def _compute(self, direction: str, x: Any) -> Any:
        model = self._model
        if self._chunk is None:
            return model.encode(x).latent_dist.mean if direction == "encode" else model.decode(x).sample
        if direction == "encode":
            moments = self._torch.cat(list(model.stream_encode(x.split(self._chunk, dim=2))), dim=2)
            return moments[:, : model.config.latent_dim]
        return self._torch.cat(list(model.stream_decode(x.split(self._chunk // RATIO, dim=2))), dim=2)

    def run(self, direction: str) -> tuple[float | None, float, FloatArray]:
        """Returns seconds with data on the GPU or None, seconds with host copies, and output."""
        cuda = self._torch.cuda if self._device.type == "cuda" else None

        def from_host() -> Any:
            x = self._host[direction].to(self._device, self._dtype)
            return self._compute(direction, x).float().cpu()

        with self._torch.inference_mode():
            if cuda:
                cuda.reset_peak_memory_stats()
            resident = self._timed(lambda: self._compute(direction, self._inputs[direction]))[0]
            if cuda:
                self.peak = int(cuda.max_memory_allocated())
            seconds, output = self._timed(from_host)
        array: FloatArray = output.movedim(1, 2).numpy()
        return resident, seconds, array

    def run_steps(self) -> float:
        """Returns the seconds of an encode and a decode step, from and to host memory."""

        def job() -> None:
            for name, graph in GRAPHS.items():
                x = self._host[name].to(self._device, self._dtype)
                step = self._model.encoder_step if graph == "encoder" else self._model.decoder_step
                result, self._states[graph] = step(x, self._states[graph], self._flags)
                result.float().cpu()

        with self._torch.inference_mode():
            return self._timed(job)[0]

    def _timed(self, job: Callable[[], Any]) -> tuple[float, Any]:
        self._synchronize()
        began = time.perf_counter()
        result = job()
        self._synchronize()
        return time.perf_counter() - began, result

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def close(self) -> None:
        for held in (self._inputs, self._host, self._states):
            held.clear()
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


class BundleEngine:
    """An exported bundle in `wfvae.runtime`. Steps take and return arrays in host memory."""

    def __init__(
        self, preset: str, precision: str, tf32: bool, device: str, backend: str, job: argparse.Namespace
    ) -> None:
        self._options = {"provider": "cuda" if device == "gpu" else "cpu", "tf32": tf32, "verify": False}
        self._backend, self._path = backend, job.folder / f"{preset}-{precision}"
        self._states: dict[str, Any] = {}
        self.peak: int | None = None
        if backend == "tensorrt":
            require_tensorrt(device)
        elif device == "gpu":
            require_cuda_provider()
        if not self._path.exists():
            export(preset, precision, self._path)
        if backend == "tensorrt":
            build(self._path, job)
        self._bundle: Any = self._open()
        # A provider that cannot be set up may only show here.
        session = getattr(self._bundle.step_session("encoder"), "_session", None)
        if backend == "onnxruntime" and device == "gpu" and session is not None:
            providers = session.get_providers()
            if providers[0] != "CUDAExecutionProvider":
                raise Unavailable(f"ONNX Runtime could not set up CUDA, and uses {', '.join(providers)}")

    def _open(self) -> Any:
        from wfvae.runtime import open_bundle

        return open_bundle(self._path, self._backend, **self._options)

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = self._bundle.backend.describe()
        return found

    def open(self, rows: int, frames: int, size: int, mode: str) -> None:
        # Opened again for each case: ONNX Runtime's arena only grows, and would hide the need of a
        # smaller case behind a larger one's.
        self._bundle = self._open()
        self._chunk = int(mode) // RATIO if mode.isdigit() else None
        channels = int(self._bundle.manifest.graphs["decoder"].inputs[0].shape[2])
        self._inputs, self._flags = inputs(rows, frames, size, mode, channels), np.zeros(rows, bool)
        if mode != DIRECT:
            sessions = {graph: self._bundle.step_session(graph) for graph in GRAPHS.values()}
            self._states = {graph: s.new_state(rows, size, size) for graph, s in sessions.items()}

    def run(self, direction: str) -> tuple[float | None, float, FloatArray]:
        graph, x = GRAPHS[direction], self._inputs[direction]
        if self._chunk is None:
            session = self._bundle.direct_session(graph)
            began = time.perf_counter()
            output: FloatArray = session.run(x)
            return None, time.perf_counter() - began, output
        if direction == "encode":
            x = np.concatenate([x[:, :1].repeat(RATIO - 1, axis=1), x], axis=1)
        began = time.perf_counter()
        output = self._stream(graph, x, self._chunk * (RATIO if direction == "encode" else 1))
        return None, time.perf_counter() - began, output

    def _stream(self, graph: str, x: FloatArray, step: int) -> FloatArray:
        session, state = self._bundle.step_session(graph), self._states[graph]
        no, yes = np.array([False]), np.array([True])
        parts = [
            session.step(state, x[:, k : k + step], no if k else yes, no) for k in range(0, x.shape[1], step)
        ]
        if session.graph.has_end:
            parts.append(session.step(state, np.zeros_like(x[:, :1]), no, yes))
        output: FloatArray = np.concatenate(parts, axis=1)
        if graph == "encoder":
            return output
        drop = session.graph.drop_frames
        return output[:, drop : drop + self._inputs["encode"].shape[1]]

    def run_steps(self) -> float:
        began = time.perf_counter()
        for name, graph in GRAPHS.items():
            session = self._bundle.step_session(graph)
            session.step(self._states[graph], self._inputs[name], self._flags, self._flags)
        return time.perf_counter() - began

    def close(self) -> None:
        self._states = {}
        if self._bundle is not None:
            self._bundle.close()
        self._bundle = None  # releases what its backend holds, such as scratch memory
        gc.collect()


def require_cuda_provider() -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise Unavailable(f"ONNX Runtime {ort.__version__} has no CUDA provider; install onnxruntime-gpu")
    ort.preload_dlls()


def require_tensorrt(device: str) -> None:
    from wfvae.errors import WFVAEError
    from wfvae.spec.tensorrt import TensorRT

    if device != "gpu":
        raise Unavailable("TensorRT is for GPUs")
    try:
        TensorRT.load()
    except WFVAEError as error:
        raise Unavailable(str(error)) from error


def export(preset: str, precision: str, path: Path) -> None:
    from wfvae import WFVAE, WFVAEConfig
    from wfvae.errors import BundleError
    from wfvae.export.bundle import ExportOptions, export_bundle

    model = WFVAE.random(WFVAEConfig.preset(preset), 0)  # type: ignore[arg-type]
    try:
        export_bundle(model, path, ExportOptions(precision=precision, direct=True))  # type: ignore[arg-type]
    except BundleError:
        # In a folder that several variants share, another one may have been first.
        if not (path / "manifest.json").exists():
            raise


def build(path: Path, job: argparse.Namespace) -> None:
    """Builds engines for all sizes of the job, unless the bundle has some."""
    from wfvae.cli.main import main
    from wfvae.spec.manifest import Manifest

    if Manifest.read(path).engines:
        return
    sizes = sorted(job.sizes)
    side = f"{sizes[0]}:{sizes[len(sizes) // 2]}:{sizes[-1]}"
    command = ["build", str(path), "--height", side, "--width", side, "--batch", f"1:1:{ENGINE_ROWS}"]
    command += ["--chunk", str(max(job.chunks) // RATIO), "--whole-clip", str(1 + (job.frames - 1) // RATIO)]
    if code := main(command):
        raise Unavailable(f"'wfvae build' ended with code {code}")


Engine = TorchEngine | BundleEngine


def make(job: argparse.Namespace) -> Engine:
    """Makes BACKEND-PRECISION, where `tf32` is fp32 with products rounded to TF32."""
    backend, precision = job.variant.split("-")
    tf32, precision = precision == "tf32", "fp32" if precision == "tf32" else precision
    if tf32 and job.device != "gpu":
        raise Unavailable("TF32 is for GPUs")
    if backend == "torch":
        return TorchEngine(job.preset, precision, tf32, job.device)
    return BundleEngine(job.preset, precision, tf32, job.device, backend, job)


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Does one request."""
    what = request.pop("do")
    if what == "run":
        keep = request.pop("keep", None)
        resident, seconds, output = engine.run(**request)
        if keep:
            np.save(keep, output)
        return {"resident": resident, "seconds": seconds, "peak": engine.peak}
    if what == "run_steps":
        return {"seconds": engine.run_steps()}
    {"open": engine.open, "close": engine.close}[what](**request)
    return {}


def reason_of(error: BaseException) -> str:
    """Returns one line, the same for every library that is out of memory."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    signs = ("out of memory", "failed to allocate", "memoryerror")
    return OUT_OF_MEMORY if any(sign in text.lower() for sign in signs) else text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("variant", "preset", "device"):
        parser.add_argument(name)
    parser.add_argument("folder", type=Path, help="bundles PRESET-PRECISION, made where they are missing")
    parser.add_argument("--frames", type=int, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--chunks", type=int, nargs="+", required=True)
    options = parser.parse_args()
    # Libraries print; the protocol gets a descriptor that they do not know.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        engine = make(options)
        reply({"ready": engine.describe()})
    except Exception as error:
        traceback.print_exc()
        reply({"error": str(error) if isinstance(error, Unavailable) else reason_of(error)})
        return
    for line in sys.stdin:
        try:
            reply(answer(engine, json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            reply({"error": reason_of(error)})


if __name__ == "__main__":
    main()
