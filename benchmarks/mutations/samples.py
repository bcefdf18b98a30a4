"""One sound file or folder of every format, small enough to be mutated thousands of times."""

import contextlib
import csv
import json
import shutil
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet

from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.runtime import decode_video, encode_video, open_bundle
from wfvae.runtime.dataset.conversion import pack_latents
from wfvae.runtime.dataset.job import encode_dataset
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.spec.tuning import Setting, TunedChunk, Tuning
from wfvae.train.config import TrainingConfig
from wfvae.train.processes import World
from wfvae.train.run import train
from wfvae.video.synthetic.clips import ProceduralClip

HEIGHT, WIDTH, FRAMES, LONG_FRAMES = 16, 24, 9, 65
VIDEOS = ("mp4", "mkv", "webm", "avi", "gif", "ts")
WIDTHS = {
    "base_channels": 8,
    "encoder_energy_flow_hidden_size": 8,
    "decoder_energy_flow_hidden_size": 8,
    "encoder_num_resblocks": 1,
    "decoder_num_resblocks": 1,
}


def make_samples(folder: Path) -> None:
    """Writes checkpoints, a bundle, latents, snapshots, videos, images, a training run, data sets,
    lists of videos, and unfinished jobs.
    """
    model = WFVAE.random(WFVAEConfig(**WIDTHS))
    model.save_pretrained(folder / "checkpoint")
    export_bundle(model, folder / "bundle", ExportOptions(direct=True))
    frames = ProceduralClip(1, HEIGHT, WIDTH, FRAMES).frames(0, FRAMES)
    for ending in VIDEOS:
        write_video(folder / f"in.{ending}", frames)
    write_video(f"{folder}/images/", frames[:3])
    with open_bundle(folder / "bundle", provider="cpu", threads=1) as bundle:
        for ending in ("npy", "safetensors", "zarr"):
            encode_video(bundle, folder / "in.mkv", folder / f"z.{ending}")
        setting = Setting.here(bundle.backend.describe())
        tuned = TunedChunk("encoder", HEIGHT, WIDTH, setting, 2, {2: 0.1, 4: 0.2})
        (folder / "tuned").mkdir()
        Tuning.store(folder / "tuned", bundle.manifest.identity, tuned)
        latents = bundle.encode(frames)
        for direction, data in (("encoder", frames[:6]), ("decoder", latents[:2])):
            with getattr(bundle, direction)(height=HEIGHT, width=WIDTH) as stream:
                stream.push(data)
                stream.save(folder / f"{direction}.snapshot")
    config = TrainingConfig.from_dict(training_settings())
    (folder / "config.toml").write_text(config.to_toml())
    train(config, folder / "run", World(0, 1, torch.device("cpu")))
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"ema_state_dict": weights, "step": 1}, folder / "model.ckpt")
    make_lists(folder)
    make_data_sets(folder)
    make_interrupted(folder)


def make_lists(folder: Path) -> None:
    """Writes a shard and tables that name videos."""
    rows = [{"path": "in.mkv", "caption": f"video {number}", "score": number} for number in range(3)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with (folder / "list.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "list.parquet")
    (folder / "about.json").write_text(json.dumps(rows[0]))
    with tarfile.open(folder / "videos.tar", "w") as archive:
        for name, source in (
            ("a.json", "about.json"),
            ("a.mkv", "in.mkv"),
            ("b.txt", "list.csv"),
            ("b.mp4", "in.mp4"),
        ):
            archive.add(folder / source, name)


def make_data_sets(folder: Path) -> None:
    """Writes a finished data set of latents, and one whose encoding is interrupted."""
    pack_latents(
        [folder / f"z.{ending}" for ending in ("npy", "zarr", "safetensors")], folder / "shards", shard_size=2
    )
    videos = folder / "videos"
    videos.mkdir()
    for ending in ("mkv", "mp4", "webm"):
        shutil.copy(folder / f"in.{ending}", videos)

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "encode" and done > FRAMES:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        execution = {"provider": "cpu", "threads": 1}
        encode_dataset(
            folder / "bundle",
            str(videos),
            folder / "unfinished",
            rows=1,
            shard_size=1,
            execution=execution,
            progress=stop,
        )


def make_interrupted(folder: Path) -> None:
    """Writes latents of more frames, and the interrupted decoding of them."""
    frames = ProceduralClip(2, HEIGHT, WIDTH, LONG_FRAMES).frames(0, LONG_FRAMES)
    write_video(folder / "long.mkv", frames)
    (folder / "interrupted").mkdir()
    with open_bundle(folder / "bundle", provider="cpu", threads=1) as bundle:
        encode_video(bundle, folder / "long.mkv", folder / "long.npy")

        def stop(done: int, total: int | None) -> None:
            if done > LONG_FRAMES // 2:
                raise InterruptedError

        output = folder / "interrupted/out.mkv"
        with contextlib.suppress(InterruptedError):
            decode_video(
                bundle, folder / "long.npy", output, segment_frames=8, checkpoint_seconds=0.0, progress=stop
            )


def write_video(path: Path | str, frames: Any) -> None:
    """Writes frames to whatever the name asks for."""
    with open_video_writer(path, OutputVideo(WIDTH, HEIGHT, Fraction(25))) as writer:
        writer.write(np.asarray(frames))


def training_settings() -> dict[str, Any]:
    """Returns the settings of a run of one step."""
    return {
        "model": {"preset": "tiny", "latent_dim": 4, **WIDTHS},
        "data": {"kind": "procedural", "frames": 5, "height": 16, "width": 16, "clips": 2, "workers": 0},
        "loss": {"perceptual": "none", "discriminator_channels": 8, "discriminator_layers": 1},
        "optimizer": {"batch": 1},
        "run": {"steps": 1, "precision": "fp32", "threads": 1},
        "validation": {"every": 1, "clips": 1, "frames": 5, "pictures": 0},
    }
