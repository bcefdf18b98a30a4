"""What is mutated of data sets and of unfinished work, and what then runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np

from mutations import archives, changes
from wfvae.errors import WFVAEError
from wfvae.model.vae import WFVAE
from wfvae.runtime import decode_video, open_bundle
from wfvae.runtime.dataset import decoding, job, stored_plan
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.settings import SETTINGS, Settings, read_record
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.videos import find_videos
from wfvae.runtime.dataset.worker import record_name
from wfvae.train.data.video_index import index_folder
from wfvae.train.latents import LatentShards

Step = list[str] | Callable[[], object]
"""A command line, or a function that may raise `WFVAEError`."""
CPU = ["--provider", "cpu", "--threads", "1"]


def latent_shards(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """Index, list of samples and shards of a data set of latents; sizes and hashes fit, mostly."""
    folder = Path(shutil.copytree(samples / "shards", work / "shards"))
    index = json.loads((folder / "index.json").read_text())
    entry = random.choice(index["shards"])
    match random.randrange(4):
        case 0:
            index = changes.change_json(index, random)
        case 1:
            table = np.load(folder / "samples.npy")
            values = (0, -1, 1, 512, 10**6, 2**31, 2**62, -(2**62))
            table[random.randrange(len(table)), random.randrange(7)] = random.choice(values)
            np.save(folder / "samples.npy", table)
        case 2:
            path = folder / "samples.npy"
            path.write_bytes(changes.change_bytes(path.read_bytes(), random))
        case _:
            path = folder / entry["name"]
            path.write_bytes(archives.change_tar(path.read_bytes(), random))
            entry["bytes"] = path.stat().st_size
            if random.random() < 0.5:
                del index["table_sha256"]
    if isinstance(index, dict) and "table_sha256" in index and random.random() < 0.9:
        index["table_sha256"] = hashlib.sha256((folder / "samples.npy").read_bytes()).hexdigest()
    (folder / "index.json").write_text(changes.as_text(index))
    yield ["unpack", str(folder), f"{work}/out", "--format", "npy"]
    yield lambda: list(islice(LatentShards(folder, 2), 4))
    outside = set(os.listdir(work)) - {"shards", "out"}
    assert not outside, f"files outside of the destination: {outside}"


def video_shards(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A WebDataset shard of videos."""
    path = work / "videos.tar"
    path.write_bytes(archives.change_tar((samples / path.name).read_bytes(), random))
    yield lambda: probe_all(path)


def tables(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A list of videos."""
    path = work / f"list.{random.choice(('csv', 'jsonl', 'parquet'))}"
    shutil.copy(samples / path.name, path)
    os.link(samples / "in.mkv", work / "in.mkv")
    archives.change_table(path, random)
    yield lambda: probe_all(path)


def probe_all(source: Path) -> None:
    """Looks at the first videos of a source, as a decoder's process does."""
    for video in find_videos(str(source))[:4]:
        try:
            decoding._probe(video, True)
        except (WFVAEError, OSError, MemoryError):  # one video has failed
            continue


def training_ckpt(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """A training checkpoint, as `torch.save` writes it."""
    path = work / "model.ckpt"
    shutil.copy(samples / "checkpoint/config.json", work)
    path.write_bytes(archives.change_ckpt((samples / path.name).read_bytes(), random))
    yield ["inspect", str(path)]
    yield lambda: WFVAE.from_pretrained(path)


def dataset_plan(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """Settings, plan and records of an unfinished data set."""
    root = Path(shutil.copytree(samples / "unfinished", work / "unfinished"))
    folder = ShardFolder(str(root))
    path = random.choice([path for path in sorted(root.rglob("*.json*")) if path.stat().st_size])
    lines = path.read_text().splitlines()
    number = random.randrange(len(lines))
    if random.random() < 0.2:
        path.write_bytes(changes.change_bytes(path.read_bytes(), random))
    else:
        lines[number] = changes.as_text(changes.change_json(json.loads(lines[number]), random))
        path.write_text("\n".join(lines))

    def go_on() -> None:
        settings = read_record(folder, SETTINGS, Settings)
        assert isinstance(settings.options, ClipOptions)
        parts, _ = stored_plan.read_plan(folder)
        for part in parts:
            record_name(part.number)
            job.read_finished_part(folder, part)

    yield go_on


def video_index(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """The index of a folder of videos to train on."""
    videos, path = work / "videos", work / "index.json"
    videos.mkdir()
    os.link(samples / "in.mkv", videos / "in.mkv")
    index_folder(videos, path)
    changes.change_json_file(path, random)
    yield lambda: index_folder(videos, path)


def tuning(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """`tuning.json` beside a manifest."""
    bundle = Path(shutil.copytree(samples / "bundle", work / "bundle", copy_function=os.link))
    shutil.copy(samples / "tuned/tuning.json", bundle)
    changes.change_json_file(bundle / "tuning.json", random, "sha256")
    yield ["inspect", str(bundle)]
    yield ["encode", str(bundle), str(samples / "in.mkv"), str(work / "z.npy"), *CPU]


def interrupted(samples: Path, work: Path, random: Random) -> Iterator[Step]:
    """Snapshot and segments of an interrupted `decode`."""
    folder = Path(shutil.copytree(samples / "interrupted", work / "interrupted"))
    path = random.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    content = path.read_bytes()
    if path.suffix == ".resume":
        path.write_bytes(changes.change_snapshot(content, random))
    elif path.suffix == ".json":
        changes.change_json_file(path, random)
    else:
        path.write_bytes(changes.change_bytes(content, random))

    def go_on() -> None:
        with open_bundle(samples / "bundle", provider="cpu", threads=1) as bundle:
            decode_video(bundle, samples / "long.npy", folder / "out.mkv", segment_frames=8, resume=True)

    yield go_on


DATASET_FORMATS: dict[str, Callable[[Path, Path, Random], Iterator[Step]]] = {
    "latent-shards": latent_shards,
    "video-shards": video_shards,
    "tables": tables,
    "training-ckpt": training_ckpt,
    "dataset-plan": dataset_plan,
    "video-index": video_index,
    "tuning": tuning,
    "interrupted": interrupted,
}
