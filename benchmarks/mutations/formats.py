"""What is mutated in each format, and what then runs: commands, or functions of the library."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from mutations import changes
from mutations.dataset_formats import CPU, DATASET_FORMATS, Step
from mutations.samples import FRAMES, HEIGHT, VIDEOS, WIDTH, training_settings
from wfvae.model.vae import WFVAE
from wfvae.runtime import open_bundle
from wfvae.runtime.media.video_reader import open_video
from wfvae.train.checkpoints import read_checkpoint, read_facts
from wfvae.train.config import TrainingConfig
from wfvae.train.record import Metrics, read_metrics
from wfvae.train.resuming import checkpoint_to_resume
from wfvae.train.state import TrainingState


def bundle_copy(samples: Path, work: Path) -> Path:
    """Returns a bundle whose unchanged files are links."""
    bundle = work / "bundle"
    bundle.mkdir()
    for entry in (samples / "bundle").iterdir():
        if entry.suffix == ".json":
            shutil.copy(entry, bundle)
        else:
            os.link(entry, bundle / entry.name)
    return bundle


def replace(path: Path, content: bytes) -> None:
    """Writes a file anew, so that what shares its content keeps it."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def manifest(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """`manifest.json`, and `tuning.json` beside it."""
    bundle = bundle_copy(samples, work)
    changes.change_json_file(bundle / "manifest.json", random, "identity", ("engines",))
    yield ["inspect", str(bundle)]
    yield from [
        [["plan", str(bundle), "--size", "16x24"]],
        [["encode", str(bundle), str(samples / "in.mkv"), str(work / "z.npy"), *CPU]],
        [["decode", str(bundle), str(samples / "z.npy"), f"{work}/out/", "--any-bundle", *CPU]],
    ][random.randrange(3)]


def latents(ending: str) -> Callable[[Path, Path, Random], Iterator[Step]]:
    """Returns the format of latents with this suffix."""

    def run(samples: Path, work: Path, random: Random) -> Iterator[Step]:
        path = work / f"z.{ending}"
        if ending == "zarr":
            shutil.copytree(samples / path.name, path)
            change_store(path, random)
        else:
            shutil.copy(samples / path.name, path)
            if ending == "npy":
                shutil.copy(samples / "z.npy.json", work)
            if ending == "npy" and random.random() < 0.6:
                changes.change_json_file(work / "z.npy.json", random)
            elif ending == "npy":
                replace(path, changes.change_bytes(path.read_bytes(), random))
            else:
                changes.change_safetensors(path, random, "wfvae")
        yield ["inspect", str(path)]
        yield ["decode", str(samples / "bundle"), str(path), f"{work}/out/", "--any-bundle", *CPU]

    return run


def change_store(path: Path, random: Random) -> None:
    """Changes a store's metadata or a chunk."""
    chunk = path / "latents/c/0/0/0/0"
    match random.randrange(10):
        case 0:
            replace(chunk, changes.change_bytes(chunk.read_bytes(), random))
        case 1:
            chunk.unlink()
            random.choice((lambda: os.mkfifo(chunk), lambda: chunk.symlink_to("/dev/zero"), lambda: None))()
        case 2:
            os.truncate(chunk, 1 << 38)
        case _:
            changes.change_json_file(path / "latents" / "zarr.json", random)


def snapshot(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A stream's snapshot, restored through the library."""
    direction = random.choice(("encoder", "decoder"))
    content = changes.change_snapshot((samples / f"{direction}.snapshot").read_bytes(), random)

    def restore() -> None:
        bundle = open_bundle(samples / "bundle", provider="cpu", threads=1, verify=False)
        with bundle.restore(content) as stream:
            frames = np.zeros((4, stream._feed.height, stream._feed.width, 3), np.uint8)
            stream.push(
                frames if direction == "encoder" else stream._feed.layouts(stream._feed.counters())[0]
            )
            stream.snapshot()

    yield restore


def checkpoint_config(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A checkpoint's `config.json`."""
    folder = shutil.copytree(samples / "checkpoint", work / "checkpoint", copy_function=os.link)
    path = Path(folder) / "config.json"
    replace(path, path.read_bytes())
    changes.change_json_file(path, random)
    yield ["inspect", str(folder)]
    yield lambda: WFVAE.from_pretrained(folder)


def checkpoint_weights(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A checkpoint's weights."""
    folder = shutil.copytree(samples / "checkpoint", work / "checkpoint")
    changes.change_safetensors(Path(folder) / "diffusion_pytorch_model.safetensors", random)
    yield ["inspect", str(folder)]
    yield lambda: WFVAE.from_pretrained(folder)


def toml(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A training configuration; now and then a run begins."""
    path = work / "config.toml"
    path.write_bytes(changes.change_toml((samples / "config.toml").read_text(), random))
    yield ["train", str(path), "--show"]


def training_files(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """`training.json` and `training.safetensors` of a run's checkpoint."""
    run = Path(shutil.copytree(samples / "run", work / "run"))
    [checkpoint] = (run / "checkpoints").iterdir()
    if random.random() < 0.6:
        changes.change_json_file(checkpoint / "training.json", random)
    else:
        changes.change_safetensors(checkpoint / "training.safetensors", random)
    yield ["inspect", str(run)]

    def load() -> None:
        found = checkpoint_to_resume(run, resume=True)
        assert found is not None
        config = TrainingConfig.from_dict(training_settings())
        config.differences(read_facts(found).training_config())
        read_checkpoint(found, TrainingState.fresh(config, torch.device("cpu")))

    yield load


def metrics(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A run's `metrics.jsonl`."""
    path = work / "metrics.jsonl"
    lines = (samples / "run/metrics.jsonl").read_text().splitlines()
    index = random.randrange(len(lines))
    path.write_text(lines[index])
    changes.change_json_file(path, random)
    path.write_bytes(b"\n".join([*(line.encode() for line in lines[:index]), path.read_bytes()]) + b"\n")
    yield lambda: [read_metrics(work, kind) for kind in ("train", "validation")]
    yield lambda: Metrics(work, 1)


def onnx_graph(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A graph, whose hash in the manifest fits."""
    bundle = bundle_copy(samples, work)
    direction = random.choice(("encoder", "decoder"))
    path = bundle / f"{direction}.onnx"
    replace(path, changes.change_onnx(path.read_bytes(), random))
    changes.list_file(bundle, path.name)

    def run() -> None:
        with open_bundle(bundle, provider="cpu", threads=1) as opened:
            if direction == "encoder":
                opened.encode(np.zeros((5, 8, 16, 3), np.uint8))
            else:
                opened.decode(np.zeros((2, 4, 1, 2), np.float32))

    yield run


def images(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """An image of a folder, of any suffix."""
    folder = Path(shutil.copytree(samples / "images", work / "images"))
    path = sorted(folder.iterdir())[random.randrange(3)]
    content = changes.change_bytes(path.read_bytes(), random)
    path.unlink()
    path.with_suffix(random.choice((".png", ".png", ".jpg", ".webp", ".tif", ".bmp"))).write_bytes(content)
    yield ["inspect", str(folder)]
    yield lambda: read_all(folder)


def videos(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A video file."""
    path = work / f"in.{random.choice(VIDEOS)}"
    path.write_bytes(changes.change_bytes((samples / path.name).read_bytes(), random))
    yield ["inspect", str(path)]
    if random.random() < 0.3:
        yield ["encode", str(samples / "bundle"), str(path), str(work / "z.npy"), *CPU]
    else:
        yield lambda: read_all(path, keep_damaged=random.random() < 0.5)


def read_all(path: Path, **options: Any) -> None:
    """Reads a video as far as its first frames go."""
    with open_video(path, **options) as reader:
        for _, _ in zip(range(4 * FRAMES), reader.frames_with_times(), strict=False):
            pass
        assert reader.info.height and HEIGHT and WIDTH


FORMATS: dict[str, Callable[[Path, Path, Random], Iterator[Step]]] = {
    "manifest": manifest,
    "npy": latents("npy"),
    "safetensors": latents("safetensors"),
    "zarr": latents("zarr"),
    "snapshots": snapshot,
    "checkpoint-config": checkpoint_config,
    "checkpoint-weights": checkpoint_weights,
    "toml": toml,
    "training-files": training_files,
    "metrics": metrics,
    "onnx": onnx_graph,
    "images": images,
    "videos": videos,
    **DATASET_FORMATS,
}
