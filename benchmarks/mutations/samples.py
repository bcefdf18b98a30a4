"""One sound file or folder of every format, small enough to be mutated thousands of times."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.runtime import encode_video, open_bundle
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.train.config import TrainingConfig
from wfvae.train.processes import World
from wfvae.train.run import train
from wfvae.video.synthetic.clips import ProceduralClip

HEIGHT, WIDTH, FRAMES = 16, 24, 9
VIDEOS = ("mp4", "mkv", "webm", "avi", "gif", "ts")
WIDTHS = {
    "base_channels": 8,
    "encoder_energy_flow_hidden_size": 8,
    "decoder_energy_flow_hidden_size": 8,
    "encoder_num_resblocks": 1,
    "decoder_num_resblocks": 1,
}


def make_samples(folder: Path) -> None:
    """Writes a checkpoint, a bundle, latents, snapshots, videos, images and a training run."""
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
        latents = bundle.encode(frames)
        for direction, data in (("encoder", frames[:6]), ("decoder", latents[:2])):
            with getattr(bundle, direction)(height=HEIGHT, width=WIDTH) as stream:
                stream.push(data)
                stream.save(folder / f"{direction}.snapshot")
    config = TrainingConfig.from_dict(training_settings())
    (folder / "config.toml").write_text(config.to_toml())
    import torch

    train(config, folder / "run", World(0, 1, torch.device("cpu")))


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
