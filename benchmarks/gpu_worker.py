"""One backend at one precision, in a process of its own that `gpu.py` drives.

A process each keeps libraries that bring their own CUDA apart, and a crash or a broken GPU context
away from the others.
"""

import gc
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness.processes import NotMeasured, reason_of
from harness.turns import timed

from wfvae.spec.frames import SPATIAL_RATIO

FloatArray = npt.NDArray[np.float32]
DIRECT, STEPS = "direct", "steps"
OUT_OF_MEMORY = "out of memory"
GRAPHS = {"encode": "encoder", "decode": "decoder"}
RATIO = 4  # frames per latent, of all presets
# TensorRT engines are built for a largest batch; attention over 768x768 in larger ones exceeds
# 2**31 values.
ENGINE_ROWS = 4


@dataclass
class Job:
    """What a worker runs, and for which clips."""

    variant: str
    """BACKEND-PRECISION, where `tf32` is fp32 with products rounded to TF32."""
    preset: str
    gpu: bool
    folder: Path
    """Bundles PRESET-PRECISION, made where they are missing."""
    frames: int
    sizes: list[int]
    chunks: list[int]

    def __post_init__(self) -> None:
        self.backend, precision = self.variant.split("-")
        self.tf32 = precision == "tf32"
        self.precision = "fp32" if self.tf32 else precision


@dataclass(frozen=True)
class Clips:
    """Clips of size x size: whole (`direct`), in chunks of N frames, or single `steps`."""

    rows: int
    frames: int
    size: int
    mode: str

    @property
    def chunk(self) -> int | None:
        """Frames per chunk; None for whole clips and single steps."""
        return int(self.mode) if self.mode.isdigit() else None

    def arrays(self, channels: int) -> dict[str, FloatArray]:
        """Returns video (B, T, 3, H, W) in [-1, 1] and latents (B, t, D, h, w), always the same."""
        pixels = (self.rows, self.frames, 3, self.size, self.size)
        latents = self.frames // RATIO if self.mode == STEPS else 1 + (self.frames - 1) // RATIO
        side = self.size // SPATIAL_RATIO
        shape = (self.rows, latents, channels, side, side)
        return {
            "encode": np.random.default_rng(0).random(pixels, np.float32) * 2 - 1,
            "decode": np.random.default_rng(1).standard_normal(shape, np.float32),
        }


@dataclass(frozen=True)
class Run:
    """One run of a clip in one direction."""

    seconds: float
    """With copies from and to the host."""
    output: FloatArray | None
    resident: float | None = None
    """Seconds with data on the GPU, if it can be there."""
    peak: int | None = None
    """Most bytes allocated meanwhile, if known."""


class TorchEngine:
    """The PyTorch model, eager."""

    def __init__(self, job: Job) -> None:
        import torch

        from wfvae import WFVAE, WFVAEConfig

        self._torch, self._device = torch, torch.device("cuda" if job.gpu else "cpu")
        self._synchronize = torch.cuda.synchronize if job.gpu else torch.cpu.synchronize
        if job.gpu and not torch.cuda.is_available():
            raise NotMeasured(f"PyTorch {torch.__version__} sees no GPU")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = job.tf32
        # Heuristics, as for the other backends: a search would be repeated for each shape.
        torch.backends.cudnn.benchmark = False
        types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        self._dtype = types[job.precision]
        config = WFVAEConfig.preset(job.preset)  # type: ignore[arg-type]
        model = WFVAE.random(config, 0).requires_grad_(False)
        self._model = model.to(device=self._device, dtype=self._dtype)
        self._inputs: dict[str, Any] = {}
        self._host: dict[str, Any] = {}
        self._states: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        torch = self._torch
        found = {"torch": torch.__version__, "parameters": sum(p.numel() for p in self._model.parameters())}
        if self._device.type == "cuda":
            found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            found |= {"gpu": torch.cuda.get_device_name()}
        return found

    def open(self, clips: Clips) -> None:
        self._chunk = clips.chunk
        for name, array in clips.arrays(self._model.config.latent_dim).items():
            self._host[name] = self._torch.from_numpy(array).movedim(2, 1).contiguous()
            self._inputs[name] = self._host[name].to(self._device, self._dtype)
        self._flags = self._torch.zeros(clips.rows, dtype=self._torch.bool, device=self._device)
        if clips.mode == STEPS:
            size = clips.rows, clips.size, clips.size
            self._states = {graph: self._model.initial_state(graph, *size) for graph in GRAPHS.values()}

    def run(self, direction: str) -> Run:
        cuda, results = self._torch.cuda if self._device.type == "cuda" else None, []

        def from_host() -> None:
            x = self._host[direction].to(self._device, self._dtype)
            results.append(self._compute(direction, x).float().cpu())

        with self._torch.inference_mode():
            if cuda:
                cuda.reset_peak_memory_stats()
            resident = self._timed(lambda: self._compute(direction, self._inputs[direction]))
            peak = int(cuda.max_memory_allocated()) if cuda else None
            seconds = self._timed(from_host)
        return Run(seconds, results[0].movedim(1, 2).numpy(), resident, peak)

    def run_steps(self) -> float:
        """Returns the seconds of an encode and a decode step, from and to host memory."""

        def steps() -> None:
            for name, graph in GRAPHS.items():
                x = self._host[name].to(self._device, self._dtype)
                step = self._model.encoder_step if graph == "encoder" else self._model.decoder_step
                result, self._states[graph] = step(x, self._states[graph], self._flags)
                result.float().cpu()

        with self._torch.inference_mode():
            return self._timed(steps)

    def close(self) -> None:
        for held in (self._inputs, self._host, self._states):
            held.clear()
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _compute(self, direction: str, x: Any) -> Any:
        model = self._model
        if self._chunk is None:
            return model.encode(x).latent_dist.mean if direction == "encode" else model.decode(x).sample
        if direction == "encode":
            posteriors = model.stream_encode(x.split(self._chunk, dim=2))
            return self._torch.cat([posterior.mean for posterior in posteriors], dim=2)
        return self._torch.cat(list(model.stream_decode(x.split(self._chunk // RATIO, dim=2))), dim=2)

    def _timed(self, work: Callable[[], Any]) -> float:
        def finished() -> None:
            work()
            self._synchronize()

        self._synchronize()
        return timed(finished)


class BundleEngine:
    """An exported bundle in `wfvae.runtime`. Steps take and return arrays in host memory."""

    def __init__(self, job: Job) -> None:
        self._job, self._path = job, job.folder / f"{job.preset}-{job.precision}"
        self._states: dict[str, Any] = {}
        if not self._path.exists():
            export(job, self._path)
        if job.backend == "tensorrt":
            build(job, self._path)
        self._bundle = self._open()
        self._bundle.step_session("encoder")  # what cannot be set up may only show here

    def _open(self) -> Any:
        from wfvae.runtime import open_bundle

        provider = "cuda" if self._job.gpu else "cpu"
        return open_bundle(
            self._path, self._job.backend, provider=provider, tf32=self._job.tf32, verify=False
        )

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = self._bundle.backend.describe()
        return found

    def open(self, clips: Clips) -> None:
        # Opened again for each case: ONNX Runtime's arena only grows, and would hide the need of a
        # smaller case behind a larger one's.
        self._bundle = self._open()
        self._chunk = clips.chunk
        channels = int(self._bundle.manifest.graphs["decoder"].inputs[0].shape[2])
        self._inputs, self._flags = clips.arrays(channels), np.zeros(clips.rows, bool)
        if clips.mode != DIRECT:
            sessions = {graph: self._bundle.step_session(graph) for graph in GRAPHS.values()}
            size = clips.rows, clips.size, clips.size
            self._states = {graph: session.new_state(*size) for graph, session in sessions.items()}

    def run(self, direction: str) -> Run:
        outputs, x = [], self._inputs[direction]
        if self._chunk is None:
            session = self._bundle.direct_session(GRAPHS[direction])
            return Run(timed(lambda: outputs.append(session.run(x))), outputs[0])
        step = self._chunk // RATIO
        if direction == "encode":
            x, step = np.concatenate([x[:, :1].repeat(RATIO - 1, axis=1), x], axis=1), self._chunk
        return Run(timed(lambda: outputs.append(self._stream(GRAPHS[direction], x, step))), outputs[0])

    def _stream(self, graph: str, x: FloatArray, step: int) -> FloatArray:
        session, state = self._bundle.step_session(graph), self._states[graph]
        no, yes = np.array([False]), np.array([True])
        starts = range(0, x.shape[1], step)
        parts = [session.step(state, x[:, k : k + step], no if k else yes, no) for k in starts]
        if session.graph.has_end:
            parts.append(session.step(state, np.zeros_like(x[:, :1]), no, yes))
        output: FloatArray = np.concatenate(parts, axis=1)
        if graph == "encoder":
            return output
        drop = session.graph.drop_frames
        return output[:, drop : drop + self._inputs["encode"].shape[1]]

    def run_steps(self) -> float:
        def steps() -> None:
            for name, graph in GRAPHS.items():
                session = self._bundle.step_session(graph)
                session.step(self._states[graph], self._inputs[name], self._flags, self._flags)

        return timed(steps)

    def close(self) -> None:
        self._states = {}
        if self._bundle is not None:
            self._bundle.close()
        self._bundle = None  # releases what its backend holds, such as scratch memory
        gc.collect()


def export(job: Job, path: Path) -> None:
    from harness.engines import export_random

    from wfvae.errors import BundleError

    try:
        export_random({"preset": job.preset, "precision": job.precision, "bundle": path})
    except BundleError:
        # In a folder that several variants share, another one may have been first.
        if not (path / "manifest.json").exists():
            raise


def build(job: Job, path: Path) -> None:
    """Builds engines for all sizes of the job, unless the bundle has some."""
    from wfvae.cli.main import main
    from wfvae.spec.manifest import Manifest
    from wfvae.spec.tensorrt_api import TensorRT

    TensorRT.load()  # raises where it is missing
    if Manifest.read(path).engines:
        return
    sizes = sorted(job.sizes)
    side = f"{sizes[0]}:{sizes[len(sizes) // 2]}:{sizes[-1]}"
    command = ["build", str(path), "--flavour", "tensorrt", "--height", side, "--width", side]
    command += ["--batch", f"1:1:{ENGINE_ROWS}"]
    command += ["--chunk", str(max(job.chunks) // RATIO), "--whole-clip", str(1 + (job.frames - 1) // RATIO)]
    if code := main(command):
        raise NotMeasured(f"'wfvae build' ended with code {code}")


def serve(job: Job, pipe: Connection, log: Path) -> None:
    """Runs in the worker's process: calls the engine's methods as the pipe asks for them.

    Sends what the engine is, then one result or `NotMeasured` per call; outputs go to files.
    """
    with log.open("ab") as file:  # libraries print
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    engine: TorchEngine | BundleEngine | None = None
    while True:
        try:
            if engine is None:
                if not job.gpu and (job.tf32 or job.backend == "tensorrt"):
                    raise NotMeasured(f"{'TF32' if job.tf32 else 'TensorRT'} is for GPUs")
                engine = TorchEngine(job) if job.backend == "torch" else BundleEngine(job)
                pipe.send(engine.describe())
            method, arguments, keep = pipe.recv()
            result = getattr(engine, method)(*arguments)
            if isinstance(result, Run):
                if keep is not None:
                    np.save(keep, result.output)
                result = replace(result, output=None)
            pipe.send(result)
        except EOFError:
            return
        except Exception as error:
            traceback.print_exc()
            pipe.send(error if isinstance(error, NotMeasured) else NotMeasured(line_of(error)))
            if engine is None:
                return


def line_of(error: BaseException) -> str:
    """Returns one line, the same for every library that is out of memory."""
    text = f"{type(error).__name__}: {reason_of(error)}"
    signs = ("out of memory", "failed to allocate", "memoryerror")
    return OUT_OF_MEMORY if any(sign in text.lower() for sign in signs) else text
