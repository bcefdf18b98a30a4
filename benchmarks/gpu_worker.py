"""One way of running the model, in a process of its own that `gpu.py` drives: JSON requests on
standard input, answers on standard output.

A process per way keeps libraries that bring their own CUDA apart, and a crash or a poisoned GPU
context away from the others.
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
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DIRECT = "direct"
OUT_OF_MEMORY = "out of memory"
RATIO = 4  # frames per latent, of all presets
# TensorRT engines are built for a largest batch; attention over 768x768 in larger ones exceeds
# 2**31 values
ENGINE_ROWS = 4


class Unavailable(Exception):
    """This way of running is not there, and why."""


class Engine(Protocol):
    """One backend at one precision, with one preset's weights."""

    def describe(self) -> dict[str, Any]: ...

    def open(self, frames: int, size: int, mode: str) -> None:
        """Prepares a clip of `frames` frames of size x size, `direct` or in chunks of so many
        frames.
        """

    def run(self, direction: str) -> tuple[float | None, float, FloatArray]:
        """Seconds with data on the GPU (None where that can't be had), seconds from and to host
        memory, and the output, batch first.
        """

    def peak(self) -> int | None:
        """Most bytes allocated in the last run with data on the GPU, if the backend knows."""

    def open_rows(self, rows: int, frames: int, size: int) -> None:
        """Prepares steps of `frames` frames for `rows` streams at once."""

    def run_rows(self) -> float:
        """Seconds of an encode step and a decode step of all rows, from and to host memory."""

    def close(self) -> None:
        """Releases what `open` or `open_rows` took."""


def video_of(batch: int, frames: int, size: int) -> FloatArray:
    """Always the same (B, T, 3, H, W) in [-1, 1]."""
    return (np.random.default_rng(0).random((batch, frames, 3, size, size), np.float32) * 2 - 1).astype(
        np.float32
    )


def latents_of(batch: int, count: int, channels: int, size: int) -> FloatArray:
    """Always the same (B, t, D, h, w)."""
    return np.random.default_rng(1).standard_normal(
        (batch, count, channels, size // 8, size // 8), np.float32
    )


class TorchEngine:
    """The PyTorch model, eager."""

    def __init__(self, preset: str, precision: str, tf32: bool, device: str) -> None:
        import torch

        from wfvae import WFVAE, WFVAEConfig

        self._torch = torch
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        if tf32 and device != "gpu":
            raise Unavailable("TF32 is for GPUs")
        if device == "gpu" and not torch.cuda.is_available():
            raise Unavailable(f"PyTorch {torch.__version__} sees no GPU")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        # The fixed choice by heuristics, as for the other backends: a search would be redone for
        # each shape.
        torch.backends.cudnn.benchmark = False
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        model = WFVAE.random(WFVAEConfig.preset(preset), 0).requires_grad_(False)  # type: ignore[arg-type]
        self._model = model.to(device=self._device, dtype=self._dtype)
        self._inputs: dict[str, Any] = {}
        self._host: dict[str, Any] = {}
        self._chunk: int | None = None
        self._states: dict[str, Any] = {}
        self._peak: int | None = None

    def describe(self) -> dict[str, Any]:
        torch = self._torch
        found = {"torch": torch.__version__, "parameters": sum(p.numel() for p in self._model.parameters())}
        if self._device.type == "cuda":
            found |= {
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "gpu": torch.cuda.get_device_name(),
            }
        return found

    def open(self, frames: int, size: int, mode: str) -> None:
        config = self._model.config
        count = 1 + (frames - 1) // config.temporal_compression
        self._chunk = None if mode == DIRECT else int(mode)
        self._prepare(video_of(1, frames, size), latents_of(1, count, config.latent_dim, size))

    def _prepare(self, video: FloatArray, latents: FloatArray) -> None:
        for name, array in (("encode", video), ("decode", latents)):
            self._host[name] = self._torch.from_numpy(array).movedim(2, 1).contiguous()
            self._inputs[name] = self._host[name].to(self._device, self._dtype)

    def _compute(self, direction: str, x: Any) -> Any:
        model, ratio = self._model, self._model.config.temporal_compression
        if self._chunk is None:
            return model.encode(x).latent_dist.mean if direction == "encode" else model.decode(x).sample
        if direction == "encode":
            moments = self._torch.cat(list(model.stream_encode(x.split(self._chunk, dim=2))), dim=2)
            return moments[:, : model.config.latent_dim]
        return self._torch.cat(list(model.stream_decode(x.split(self._chunk // ratio, dim=2))), dim=2)

    def run(self, direction: str) -> tuple[float | None, float, FloatArray]:
        with self._torch.inference_mode():
            if self._device.type == "cuda":
                self._torch.cuda.reset_peak_memory_stats()
            resident = self._timed(lambda: self._compute(direction, self._inputs[direction]))[0]
            if self._device.type == "cuda":
                self._peak = int(self._torch.cuda.max_memory_allocated())
            seconds, output = self._timed(
                lambda: (
                    self._compute(direction, self._host[direction].to(self._device, self._dtype))
                    .float()
                    .cpu()
                )
            )
        array: FloatArray = output.movedim(1, 2).numpy()
        return resident, seconds, array

    def _timed(self, job: Callable[[], Any]) -> tuple[float, Any]:
        self._synchronize()
        began = time.perf_counter()
        result = job()
        self._synchronize()
        return time.perf_counter() - began, result

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def peak(self) -> int | None:
        return self._peak

    def open_rows(self, rows: int, frames: int, size: int) -> None:
        config = self._model.config
        self._prepare(
            video_of(rows, frames, size),
            latents_of(rows, frames // config.temporal_compression, config.latent_dim, size),
        )
        self._flags = self._torch.zeros(rows, dtype=self._torch.bool, device=self._device)
        self._states = {d: self._model.initial_state(d, rows, size, size) for d in ("encoder", "decoder")}

    def run_rows(self) -> float:
        def job() -> None:
            for direction, name in (("encoder", "encode"), ("decoder", "decode")):
                x = self._host[name].to(self._device, self._dtype)
                step = self._model.encoder_step if direction == "encoder" else self._model.decoder_step
                result, self._states[direction] = step(x, self._states[direction], self._flags)
                result.float().cpu()

        with self._torch.inference_mode():
            return self._timed(job)[0]

    def close(self) -> None:
        self._inputs.clear()
        self._host.clear()
        self._states.clear()
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


class BundleEngine:
    """An exported bundle in `wfvae.runtime`. Steps take and give arrays in host memory; the state
    stays on the device.
    """

    def __init__(
        self, preset: str, precision: str, tf32: bool, device: str, backend: str, job: argparse.Namespace
    ) -> None:
        if tf32 and device != "gpu":
            raise Unavailable("TF32 is for GPUs")
        self._backend, self._device, self._tf32 = backend, device, tf32
        if backend == "tensorrt":
            self._require_tensorrt(device)
        else:
            self._require_onnxruntime(device)
        self._path: Path = job.folder / f"{preset}-{precision}"
        if not self._path.exists():
            self._export(preset, precision)
        if backend == "tensorrt":
            self._build(job)
        self._bundle: Any = self._open()
        # A provider that can't be set up may show only here.
        self._bundle.step_session("encoder")
        session = getattr(self._bundle.step_session("encoder"), "_session", None)
        if (
            backend == "onnxruntime"
            and device == "gpu"
            and session is not None
            and session.get_providers()[0] != "CUDAExecutionProvider"
        ):
            raise Unavailable(
                f"ONNX Runtime could not set up CUDA and fell back to {', '.join(session.get_providers())}"
            )

    def _export(self, preset: str, precision: str) -> None:
        from wfvae import WFVAE, WFVAEConfig
        from wfvae.errors import BundleError
        from wfvae.export.bundle import ExportOptions, export_bundle

        model = WFVAE.random(WFVAEConfig.preset(preset), 0)  # type: ignore[arg-type]
        try:
            export_bundle(model, self._path, ExportOptions(precision=precision, direct=True))  # type: ignore[arg-type]
        except BundleError:
            # In a folder that several variants share, another one may have been first.
            if not (self._path / "manifest.json").exists():
                raise

    @staticmethod
    def _require_onnxruntime(device: str) -> None:
        import onnxruntime as ort

        if device == "gpu":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise Unavailable(
                    f"ONNX Runtime {ort.__version__} has no CUDA provider; install onnxruntime-gpu"
                )
            ort.preload_dlls()

    @staticmethod
    def _require_tensorrt(device: str) -> None:
        if device != "gpu":
            raise Unavailable("TensorRT is for GPUs")
        try:
            import tensorrt  # noqa: F401
        except ImportError as error:
            raise Unavailable(f"TensorRT is not installed ({error})") from error
        from wfvae.cli.main import COMMANDS
        from wfvae.runtime.backends.registry import BACKENDS

        if "tensorrt" not in BACKENDS or "build" not in COMMANDS:
            raise Unavailable("this version of wfvae has no TensorRT backend")

    def _build(self, job: argparse.Namespace) -> None:
        from wfvae.cli.main import main
        from wfvae.spec.manifest import Manifest

        if Manifest.read(self._path).engines:  # built before, in a folder given by --bundles
            return
        side = f"{min(job.sizes)}:{sorted(job.sizes)[len(job.sizes) // 2]}:{max(job.sizes)}"
        command = [
            "build",
            str(self._path),
            "--height",
            side,
            "--width",
            side,
            "--batch",
            f"1:1:{ENGINE_ROWS}",
        ]
        command += [
            "--chunk",
            str(max(job.chunks) // RATIO),
            "--whole-clip",
            str(1 + (job.frames - 1) // RATIO),
        ]
        try:
            code = main(command)
        except SystemExit as error:
            raise Unavailable(
                f"'wfvae {' '.join(command[:1] + command[2:])}' is not understood by this version"
            ) from error
        if code:
            raise Unavailable(f"'wfvae build' ended with code {code}")

    def _open(self) -> Any:
        from wfvae.runtime import open_bundle

        provider = "cuda" if self._device == "gpu" else "cpu"
        return open_bundle(self._path, self._backend, provider=provider, tf32=self._tf32, verify=False)

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = self._bundle.backend.describe()
        return found

    def open(self, frames: int, size: int, mode: str) -> None:
        # Anew for each case: ONNX Runtime's arena only grows, and would hide a smaller case's need
        # behind a larger one's.
        self._bundle = self._open()
        encoder, decoder = (self._bundle.manifest.graphs[d] for d in ("encoder", "decoder"))
        self._ratio, self._drop, self._frames = encoder.stream.ratio, decoder.stream.drop, frames
        self._chunk = None if mode == DIRECT else int(mode) // self._ratio
        self._video = video_of(1, frames, size)
        self._latents = latents_of(1, 1 + (frames - 1) // self._ratio, int(decoder.inputs[0].shape[2]), size)
        lead = np.repeat(self._video[:, :1], self._ratio - 1, axis=1)
        self._led = np.concatenate([lead, self._video], axis=1)
        self._states: dict[str, Any] = {}

    def run(self, direction: str) -> tuple[float | None, float, FloatArray]:
        key = direction.replace("code", "coder")
        if self._chunk is None:
            session = self._bundle.direct_session(key)
            x = self._video if direction == "encode" else self._latents
            began = time.perf_counter()
            output: FloatArray = session.run(x)
            return None, time.perf_counter() - began, output
        session = self._bundle.step_session(key)
        if key not in self._states:
            self._states[key] = session.new_state(1, *self._video.shape[3:])
        began = time.perf_counter()
        output = self._stream(session, self._states[key], direction)
        return None, time.perf_counter() - began, output

    def _stream(self, session: Any, state: Any, direction: str) -> FloatArray:
        assert self._chunk is not None
        x = self._led if direction == "encode" else self._latents
        step = self._chunk * (self._ratio if direction == "encode" else 1)
        no, yes = np.array([False]), np.array([True])
        parts = [
            session.step(state, x[:, k : k + step], yes if k == 0 else no, no)
            for k in range(0, x.shape[1], step)
        ]
        if direction == "encode":
            return np.concatenate(parts, axis=1)
        if session.graph.has_end:
            parts.append(session.step(state, np.zeros_like(x[:, :1]), no, yes))
        return np.concatenate(parts, axis=1)[:, self._drop : self._drop + self._frames]

    def peak(self) -> int | None:
        return None

    def open_rows(self, rows: int, frames: int, size: int) -> None:
        self._bundle = self._open()
        self._ratio = self._bundle.ratio
        channels = int(self._bundle.manifest.graphs["decoder"].inputs[0].shape[2])
        self._video, self._latents = (
            video_of(rows, frames, size),
            latents_of(rows, frames // self._ratio, channels, size),
        )
        self._flags = np.zeros(rows, bool)
        self._states = {
            key: self._bundle.step_session(key).new_state(rows, size, size) for key in ("encoder", "decoder")
        }

    def run_rows(self) -> float:
        began = time.perf_counter()
        for key, x in (("encoder", self._video), ("decoder", self._latents)):
            self._bundle.step_session(key).step(self._states[key], x, self._flags, self._flags)
        return time.perf_counter() - began

    def close(self) -> None:
        self._states = {}
        if self._bundle is not None:
            self._bundle.close()
        self._bundle = None  # with it goes what its backend holds, such as scratch memory
        gc.collect()


def make(job: argparse.Namespace) -> Engine:
    """`BACKEND-PRECISION`, where the precision `tf32` is fp32 with products rounded to TF32."""
    backend, precision = job.variant.split("-")
    tf32, precision = precision == "tf32", "fp32" if precision == "tf32" else precision
    if backend == "torch":
        return TorchEngine(job.preset, precision, tf32, job.device)
    return BundleEngine(job.preset, precision, tf32, job.device, backend, job)


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Does what is asked for."""
    what = request.pop("do")
    if what == "open":
        engine.open(**request)
    elif what == "open_rows":
        engine.open_rows(**request)
    elif what == "run":
        keep = request.pop("keep", None)
        resident, seconds, output = engine.run(**request)
        if keep:
            np.save(keep, output)
        return {"resident": resident, "seconds": seconds, "peak": engine.peak()}
    elif what == "run_rows":
        return {"seconds": engine.run_rows(), "peak": engine.peak()}
    elif what == "close":
        engine.close()
    return {}


def failure(error: BaseException) -> dict[str, str]:
    """One line; what is out of memory is called so, whatever the library says."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if (
        isinstance(error, MemoryError)
        or "out of memory" in text.lower()
        or "failed to allocate" in text.lower()
    ):
        return {"error": OUT_OF_MEMORY, "detail": text}
    return {"error": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variant")
    parser.add_argument("preset")
    parser.add_argument("device", choices=("gpu", "cpu"))
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
    except Unavailable as error:
        reply({"unavailable": str(error)})
        return
    except Exception as error:
        traceback.print_exc()
        reply({"unavailable": failure(error)["error"]})
        return
    for line in sys.stdin:
        try:
            reply(answer(engine, json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            reply(failure(error))


if __name__ == "__main__":
    main()
