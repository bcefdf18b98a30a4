"""What a training step costs: memory with and without activation checkpointing, and where the time
of a run goes.

    python benchmarks/training.py --frames 25 --size 256 --json benchmarks/results/training-cpu.json     the clips of the paper's stage I
    python benchmarks/training.py --only memory --recipe --frames 25 --size 256 --json FILE              with LPIPS and the discriminator
    python benchmarks/training.py --only memory --frames 25 --size 256 --device cuda                     never run so far
    python benchmarks/training.py --only time loading --folder videos/ --json FILE                       data from video files

Memory: one step of preset S (L1, KL and wavelet losses, AdamW, moving average), in a fresh process
each, after a step on a small clip. LPIPS (with random weights) and the discriminator (which is not
recomputed) take part with `--recipe` only, in a section of its own. On a CPU the process's peak in
fp32, on a GPU that of PyTorch's allocator in bf16 autocast. Time: a run of the tiny model's first
stage (in fp32 where the CPU has no bf16), its own account of what it waited for; with `--folder` on
clips of videos, which as many workers read as a run has by default. Loading: how fast two workers
make batches of the paper's stage I (8 clips of 25 frames of 256x256) when nothing else runs and
none waits for a model: what a GPU could be fed with. Sections of a folder are called `time_folder`
and `loading_folder`. A result file keeps those that are not measured again, and each says on what
machine it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from isolated import NotMeasured, answer, run_isolated
from process_memory import peak_mb, resident_mb, restart_peak
from record import load_average, machine, write_json

from wfvae.train.config import DataSettings, TrainingConfig
from wfvae.train.data import BatchStream
from wfvae.train.loop import train
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.sources import training_source
from wfvae.train.state import TrainingState
from wfvae.train.step import Trainer
from wfvae.train.world import World

SECTIONS = ("memory", "time", "loading")
WAYS = {"plain": False, "checkpointing": True}
"""Whether a step recomputes activations, by the names of the results."""
SHARES = ("data_wait", "compute", "validation", "bookkeeping")
"""Of a run's time."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--preset", default="S")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument(
        "--recipe", action="store_true", help="LPIPS and the discriminator take part in the memory section"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="videos for the sections of time and loading (default: procedural clips)",
    )
    parser.add_argument(
        "--steps", type=int, default=100, help="steps of the timed run (default: %(default)s)"
    )
    parser.add_argument(
        "--batches", type=int, default=12, help="batches whose loading is timed (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="of the memory section (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if args.folder is not None and not args.folder.is_dir():
        parser.error(f"--folder is {args.folder}; expected a directory of videos")
    result: dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        result = json.loads(args.json.read_text(encoding="utf-8"))
        assert "machine" not in result, (
            f"{args.json} is of an earlier version, which told one machine for all sections"
        )
    about = {"machine": machine(args.threads, "wfvae", "torch"), "load_average": load_average()}
    if "memory" in args.only:
        result["memory_recipe" if args.recipe else "memory"] = {**about, **memory(args)}
    if "time" in args.only:
        result["time" if args.folder is None else "time_folder"] = {
            **about,
            **shares(args.steps, args.threads, args.folder),
        }
    if "loading" in args.only:
        result["loading" if args.folder is None else "loading_folder"] = {
            **about,
            **loading(args.batches, args.folder),
        }
    if args.json is not None:
        write_json(args.json, result)
    print(summary(result))


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peaks of a step, without and with what lowers them."""
    job = {"preset": args.preset, "frames": args.frames, "size": args.size, "device": args.device}
    found: dict[str, Any] = {**job, "batch": 1}
    for name, recompute in WAYS.items():
        try:
            details = {"recompute": recompute, "recipe": args.recipe, "threads": args.threads}
            found[name] = run_isolated(Path(__file__), {**job, **details}, args.threads)
        except NotMeasured as reason:
            found[name] = {"not_measured": str(reason)}
    if all("peak_mb" in found[name] for name in WAYS):
        for key in ("peak_mb", "activations_mb", "seconds"):
            found["checkpointing"][f"{key}_ratio"] = found["checkpointing"][key] / found["plain"][key]
    return found


def step(job: dict[str, Any]) -> dict[str, Any]:
    """Two steps in this process; the second is measured, when the optimiser's moments are there."""
    torch.set_num_threads(job["threads"])
    settings = [
        f"model.preset={job['preset']}",
        "data.kind=procedural",
        f"data.frames={job['frames']}",
        f"data.height={job['size']}",
        f"data.width={job['size']}",
        f"loss.perceptual={'random' if job['recipe'] else 'none'}",
        f"loss.adversarial={str(job['recipe']).lower()}",
        "optimizer.batch=1",
        f"run.precision={'fp32' if job['device'] == 'cpu' else 'bf16'}",
        f"run.activation_checkpointing={str(job['recompute']).lower()}",
    ]
    config = TrainingConfig.load("S-stage1", settings)
    device = torch.device(job["device"])
    perceptual = PerceptualLoss("random").to(device) if job["recipe"] else None
    trainer = Trainer(config, TrainingState.fresh(config, device), World(0, 1, device), perceptual)
    small = torch.randint(0, 256, (1, 3, 1 + 4, 64, 64), dtype=torch.uint8)
    trainer.step([small])
    clip = torch.randint(0, 256, (1, 3, job["frames"], job["size"], job["size"]), dtype=torch.uint8)
    if device.type == "cuda":
        return step_on_gpu(trainer, clip)
    restart_peak()
    before = resident_mb() or 0.0
    began = time.perf_counter()
    trainer.step([clip])
    seconds = time.perf_counter() - began
    return {"peak_mb": peak_mb(), "activations_mb": peak_mb() - before, "seconds": seconds}


def step_on_gpu(trainer: Trainer, clip: torch.Tensor) -> dict[str, Any]:
    """Peak of PyTorch's allocator in the first step with this clip, and the median time of five
    more. Never run so far.
    """
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 1e6
    trainer.step([clip])
    peak = torch.cuda.max_memory_allocated() / 1e6
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        trainer.step([clip])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {
        "peak_mb": peak,
        "activations_mb": peak - before,
        "seconds": statistics.median(seconds),
        "gpu": torch.cuda.get_device_name(),
    }


def shares(steps: int, threads: int, videos: Path | None) -> dict[str, Any]:
    """A run's own account of its time, in three runs, on procedural clips or on those of videos.
    Indexing these is not part of it.
    """
    torch.set_num_threads(threads)
    settings = [
        f"run.steps={steps}",
        "run.precision=auto",
        "optimizer.schedule_steps=0",
        f"run.checkpoint_every={steps}",
        "validation.every=0",
        "validation.clips=1",
    ]
    if videos is not None:
        settings += [
            "data.kind=folder",
            f"data.folder={json.dumps(str(videos))}",
            f"data.workers={DataSettings().workers}",
        ]
    config = TrainingConfig.load("tiny-quick", settings)
    about: dict[str, Any] = {"config": "tiny-quick", "steps": steps, "workers": config.data.workers}
    runs = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            result = train(config, Path(folder), World(0, 1, torch.device("cpu")))
            if videos is not None:
                about["videos"] = len(training_source(config, Path(folder)))
        runs.append(result.shares)
    return {**about, **{name: statistics.median(run[name] for run in runs) for name in runs[0]}}


def loading(batches: int, videos: Path | None) -> dict[str, Any]:
    """Frames per second of two workers, once both have made a batch, and how much of a processor
    they used together.
    """
    source = "data.kind=procedural" if videos is None else f"data.folder={json.dumps(str(videos))}"
    config = TrainingConfig.load("S-stage1", [source])
    data, batch, workers = config.data, config.optimizer.batch, DataSettings().workers
    with tempfile.TemporaryDirectory() as folder:
        clips = training_source(config, Path(folder))
        with BatchStream(clips, batch, config.run.seed, workers=workers, prefetch=1) as stream:
            for _ in range(2 * workers):
                next(stream)
            used, began = processor_seconds(), time.perf_counter()
            for _ in range(batches):
                next(stream)
            seconds, used = time.perf_counter() - began, processor_seconds() - used
    return {
        "batch": batch,
        "frames": data.frames,
        "size": [data.height, data.width],
        "workers": workers,
        "batches": batches,
        **({} if videos is None else {"videos": len(clips)}),
        "frames_per_second": batches * batch * data.frames / seconds,
        "processors_used": used / seconds,
    }


def processor_seconds() -> float:
    """Of this process and those that it started."""
    here = psutil.Process()
    return float(sum(sum(process.cpu_times()[:2]) for process in (here, *here.children(recursive=True))))


def summary(result: dict[str, Any]) -> str:
    """For people."""
    lines = []
    for section, recipe in (("memory", ""), ("memory_recipe", ", LPIPS and discriminator")):
        if section not in result:
            continue
        found = result[section]
        for name in WAYS:
            told = found[name]
            text = (
                told.get("not_measured")
                or f"peak {told['peak_mb']:,.0f} MB, of which the step {told['activations_mb']:,.0f} MB, {told['seconds']:.1f} s"
            )
            lines.append(
                f"{found['preset']}, {found['frames']} frames of {found['size']}x{found['size']}{recipe},"
                f" {name}: {text}"
            )
            if "peak_mb_ratio" in told:
                lines.append(
                    f"{name} by plain: peak {told['peak_mb_ratio']:.2f}, time {told['seconds_ratio']:.2f}"
                )
    for section in ("time", "time_folder"):
        if section in result:
            told = result[section]
            parts = ", ".join(f"{name} {told[name]:.1%}" for name in SHARES if name in told)
            clips = f", clips of {told['videos']} videos" if "videos" in told else ""
            lines.append(f"{told['config']}{clips}: {parts}")
    for section in ("loading", "loading_folder"):
        if section in result:
            told = result[section]
            clips = f"{told['frames']} frames of {told['size'][0]}x{told['size'][1]}"
            speed = (
                f"{told['frames_per_second']:.1f} frames a second, {told['processors_used']:.2f} processors"
                " used"
            )
            lines.append(f"{section}, {told['workers']} workers, clips of {clips}: {speed}")
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        answer(step)
    else:
        main()
