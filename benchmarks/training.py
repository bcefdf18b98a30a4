"""What does a training step cost in memory and time, and how fast are clips loaded?

python benchmarks/training.py --json benchmarks/results/training-cpu.json     40 minutes on two cores
python benchmarks/training.py --only loading --folder videos/
python benchmarks/training.py --only memory --device cuda                     has not been run

memory     one step of preset S on a clip of the paper's stage I, with and without activation
           checkpointing, with and without LPIPS (random weights) and the discriminator; each in
           a fresh process, after a step on a small clip. On a CPU the peak of the process in
           fp32, on a GPU that of PyTorch's allocator in bf16
time       where the time of a run of tiny-quick goes, by its own account
loading    how fast two workers make batches of the paper's stage I when no model waits for them
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import psutil
import torch
from harness import tables
from harness.memory import peak_mb, resident_mb, restart_peak
from harness.processes import NotMeasured, run_isolated
from harness.record import command_line, finish, machine
from harness.turns import timed

from wfvae.model.config import Preset
from wfvae.train.config import TrainingConfig
from wfvae.train.data import BatchStream
from wfvae.train.loop import train
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.settings import DataSettings
from wfvae.train.sources import training_source
from wfvae.train.state import TrainingState
from wfvae.train.step import Trainer
from wfvae.train.world import World

Row = dict[str, Any]


def memory(options: argparse.Namespace) -> list[Row]:
    """Returns a row per setting of losses and checkpointing."""
    rows = []
    for all_losses in (False, True):
        for checkpointing in (False, True):
            job = {key: getattr(options, key) for key in ("preset", "frames", "size", "device", "threads")}
            job |= {"all_losses": all_losses, "checkpointing": checkpointing}
            try:
                rows.append(job | run_isolated("training:step", job, options.threads))
            except NotMeasured as reason:
                rows.append(job | {"not_measured": str(reason)})
    return rows


def step(job: Row) -> Row:
    """Makes two steps in this process and measures the second, when the optimiser's moments exist."""
    torch.set_num_threads(job["threads"])
    settings = [
        f"model.preset={job['preset']}",
        "data.kind=procedural",
        f"data.frames={job['frames']}",
        f"data.height={job['size']}",
        f"data.width={job['size']}",
        f"loss.perceptual={'random' if job['all_losses'] else 'none'}",
        f"loss.adversarial={str(job['all_losses']).lower()}",
        "optimizer.batch=1",
        f"run.precision={'fp32' if job['device'] == 'cpu' else 'bf16'}",
        f"run.activation_checkpointing={str(job['checkpointing']).lower()}",
    ]
    config, device = TrainingConfig.load("S-stage1", settings), torch.device(job["device"])
    perceptual = PerceptualLoss("random").to(device) if job["all_losses"] else None
    trainer = Trainer(config, TrainingState.fresh(config, device), World(0, 1, device), perceptual)
    small, clip = (
        torch.randint(0, 256, (1, 3, frames, size, size), dtype=torch.uint8)
        for frames, size in ((5, 64), (job["frames"], job["size"]))
    )
    trainer.step([small])
    if device.type == "cuda":
        return measure_on_gpu(partial(trainer.step, [clip]))
    restart_peak()
    before = resident_mb() or 0.0
    seconds = timed(partial(trainer.step, [clip]))
    return {"peak_mb": peak_mb(), "step_mb": peak_mb() - before, "seconds": seconds}


def measure_on_gpu(work: Callable[[], Any]) -> Row:
    """Measures the allocator's peak in the first call and the median time of five more."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    peak = torch.cuda.max_memory_allocated()

    def synchronised() -> None:
        work()
        torch.cuda.synchronize()

    seconds = statistics.median(timed(synchronised) for _ in range(5))
    return {"peak_mb": peak / 1e6, "step_mb": (peak - before) / 1e6, "seconds": seconds}


def data_name(videos: Path | None) -> str:
    return "procedural clips" if videos is None else "videos"


def data_settings(videos: Path | None) -> list[str]:
    """Returns the settings that select procedural clips or a folder of videos."""
    if videos is None:
        return ["data.kind=procedural"]
    return ["data.kind=folder", f"data.folder={json.dumps(str(videos))}"]


def time_of_a_run(options: argparse.Namespace, videos: Path | None) -> Row:
    """Returns the median shares of three runs. Indexing videos is not part of them."""
    torch.set_num_threads(options.threads)
    workers = DataSettings().workers
    settings = [
        f"run.steps={options.steps}",
        f"run.checkpoint_every={options.steps}",
        "validation.clips=1",
        f"data.workers={workers}",
        *data_settings(videos),
    ]
    config = TrainingConfig.load("tiny-quick", settings)
    shares = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            shares.append(train(config, Path(folder), World(0, 1, torch.device("cpu"))).shares)
    medians = {name: statistics.median(run[name] for run in shares) for name in shares[0]}
    return {
        "data": data_name(videos),
        "config": "tiny-quick",
        "steps": options.steps,
        "workers": workers,
        **medians,
    }


def loading(options: argparse.Namespace, videos: Path | None) -> Row:
    """Returns the frames per second of two workers, and how many processors they used together."""
    config = TrainingConfig.load("S-stage1", data_settings(videos))
    data, batch, workers = config.data, config.optimizer.batch, DataSettings().workers
    with tempfile.TemporaryDirectory() as folder:
        clips = training_source(config, Path(folder))
        with BatchStream(clips, batch, config.run.seed, workers=workers, prefetch=1) as stream:
            for _ in range(2 * workers):  # both have made a batch
                next(stream)
            used, began = processor_seconds(), time.perf_counter()
            for _ in range(options.batches):
                next(stream)
            seconds, used = time.perf_counter() - began, processor_seconds() - used
    return {
        "data": data_name(videos),
        "batch": batch,
        "frames": data.frames,
        "size": [data.height, data.width],
        "workers": workers,
        "frames_per_second": options.batches * batch * data.frames / seconds,
        "processors_used": used / seconds,
    }


def processor_seconds() -> float:
    """Of this process and those that it started."""
    here = psutil.Process()
    return float(sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True))))


SECTIONS: dict[str, Callable[[argparse.Namespace, Path | None], Row]] = {
    "time": time_of_a_run,
    "loading": loading,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__, "training-cpu.json")
    parser.add_argument("--only", nargs="+", choices=("memory", *SECTIONS), default=("memory", *SECTIONS))
    parser.add_argument("--preset", choices=get_args(Preset), default="S", help="of memory")
    parser.add_argument("--frames", type=int, default=25, help="of memory (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="of memory (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of memory")
    parser.add_argument("--folder", type=Path, help="time and loading on these videos, too")
    parser.add_argument("--steps", type=int, default=100, help="of time (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=12, help="of loading (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder is {options.folder}; expected a directory of videos")
    result: dict[str, Any] = {"machine": machine(options.threads, "wfvae", "torch")}
    if "memory" in options.only:
        result["memory"] = memory(options)
    for name, measure in SECTIONS.items():
        if name in options.only:
            result[name] = [
                measure(options, videos) for videos in (None, *[options.folder] * bool(options.folder))
            ]
    finish(result, options.json, tables.training)
    return 0


if __name__ == "__main__":
    sys.exit(main())
