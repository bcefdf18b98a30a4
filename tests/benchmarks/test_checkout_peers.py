"""Peers from checkouts, with stand-ins shaped like the code of CV-VAE, OD-VAE and Open-Sora."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wfvae.errors import CheckpointError, InputError

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# The networks average blocks of 8x8 pixels and repeat them, so that results are known; `seen` has
# the shapes that they were given.
POOLING = """
import torch
import torch.nn.functional as F

seen = []

def shrink(x):  # (B, C, 1 + 4 n, H, W) -> (B, C, 1 + n, H/8, W/8)
    seen.append(tuple(x.shape[2:]))
    x = F.avg_pool3d(x, (1, 8, 8))
    return torch.cat([x[:, :, :1], F.avg_pool3d(x[:, :, 1:], (4, 1, 1))], 2) if x.shape[2] > 1 else x

def grow(z):
    seen.append(tuple(z.shape[2:]))
    x = torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(4, 2)], 2)
    return x.repeat_interleave(8, 3).repeat_interleave(8, 4)[:, :3]

class Posterior:
    def __init__(self, mean):
        self.mean = mean
    def mode(self):
        return self.mean
    def sample(self):
        raise AssertionError("the benchmark takes means")
"""

CV_VAE = {
    "models/__init__.py": "",
    "models/vae_models.py": POOLING
    + """
try:
    import xformers
    import xformers.ops
    XFORMERS_IS_AVAILABLE = True
except ImportError:
    XFORMERS_IS_AVAILABLE = False

def attend(x):
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    out = xformers.ops.memory_efficient_attention(tokens, tokens, tokens, attn_bias=None, op=None)
    assert out.shape == tokens.shape and xformers.__version__
    return x
""",
    "models/modeling_vae.py": """
from types import SimpleNamespace
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from .vae_models import Posterior, attend, grow, shrink

class CVVAEModel(ModelMixin, ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self, z_channels=4, en_de_n_frames_a_time=16, tile_spatial_size=64):
        super().__init__()
        self.encode_n_frames_a_time = en_de_n_frames_a_time
        self.decode_n_frames_a_time = en_de_n_frames_a_time // 4
        self.pixel_tile_size, self.latent_tile_size = tile_spatial_size, tile_spatial_size // 8
        self.weight = torch.nn.Parameter(torch.rand(z_channels, 3))

    def _parts(self, x, stride, network):
        if stride is None:
            return network(x)
        starts = range(0, max(x.shape[2] - 1, 1), stride)
        parts = [network(x[:, :, start : start + stride + 1]) for start in starts]
        return torch.cat([parts[0], *[part[:, :, 1:] for part in parts[1:]]], 2)

    def encode(self, x, return_dict=True):
        assert (self.pixel_tile_size is None) == (self.encode_n_frames_a_time is None)
        z = self._parts(attend(x), self.encode_n_frames_a_time, shrink)
        z = torch.einsum("dc,bcthw->bdthw", self.weight, z)
        return SimpleNamespace(latent_dist=Posterior(z))

    def decode(self, z, num_frames=None, return_dict=True):
        return SimpleNamespace(sample=self._parts(z, self.decode_n_frames_a_time, grow))

class CVVAESD3Model(CVVAEModel):
    @register_to_config
    def __init__(self, z_channels=16, en_de_n_frames_a_time=16, tile_spatial_size=64):
        super().__init__(z_channels, en_de_n_frames_a_time, tile_spatial_size)
""",
}
OD_VAE = {
    "opensora/__init__.py": "",
    "opensora/models/__init__.py": "",
    "opensora/models/causalvideovae/__init__.py": "",
    "opensora/models/causalvideovae/model/__init__.py": POOLING
    + """
import cv2
import deepspeed
import pytorch_lightning as pl
from decord import VideoReader, cpu
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from pytorchvideo.transforms import ShortSideScale
from torchvision.io import read_video

class Progress(pl.callbacks.Callback):
    pass

class CausalVAEModel(ModelMixin, ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self, hidden_size=128):
        super().__init__()
        self.tile_sample_min_size, self.tile_latent_min_size = 256, 32
        self.tile_sample_min_size_t, self.tile_latent_min_size_t = 33, 16
        self.use_tiling = False
        self.weight = torch.nn.Parameter(torch.rand(hidden_size))

    def enable_tiling(self, use_tiling=True):
        self.use_tiling = use_tiling

    def disable_tiling(self):
        self.enable_tiling(False)

    def encode(self, x):
        return Posterior(shrink(torch.cat([x, x[:, :1]], 1)) + self.use_tiling)

    def decode(self, z):
        return grow(z) + self.use_tiling
""",
}
OPEN_SORA = {
    "opensora/__init__.py": "",
    "opensora/models/__init__.py": "raise ImportError('no module named apex')\n",
    "opensora/models/vae/__init__.py": "from .vae import OpenSoraVAE_V1_2\n",
    "opensora/models/vae/vae.py": POOLING
    + """
from colossalai.booster import Booster
from diffusers.models import AutoencoderKL

class Spatial(torch.nn.Module):
    def __init__(self, micro_batch_size):
        super().__init__()
        self.module = AutoencoderKL.from_pretrained("somebody/image-autoencoder", subfolder="vae")
        self.micro_batch_size = micro_batch_size

    def decode(self, x):
        frames = x[0].transpose(0, 1) / 0.18215
        groups = frames.split(self.micro_batch_size or len(frames))
        return torch.cat([self.module.decode(group).sample for group in groups]).transpose(0, 1)[None]

class Temporal(torch.nn.Module):
    def encode(self, x):
        seen.append(tuple(x.shape[2:]))
        lead = x[:, :, :1].expand(-1, -1, -x.shape[2] % 4, -1, -1)
        return Posterior(F.avg_pool3d(torch.cat([lead, x], 2), (4, 1, 1)))

    def decode(self, z, num_frames):
        seen.append((num_frames, *z.shape[2:]))
        return z.repeat_interleave(4, 2)[:, :, -num_frames % 4 :]

class Pipeline(torch.nn.Module):
    def __init__(self, micro_batch_size, micro_frame_size):
        super().__init__()
        self.spatial_vae, self.temporal_vae = Spatial(micro_batch_size), Temporal()
        self.micro_frame_size, self.micro_z_frame_size = micro_frame_size, -(-micro_frame_size // 4)
        self.register_buffer("scale", torch.full((1, 4, 1, 1, 1), 3.0))
        self.register_buffer("shift", torch.full((1, 4, 1, 1, 1), 0.5))

    def get_latent_size(self, size):
        whole, rest = divmod(size[0], self.micro_frame_size or size[0])
        return [whole * -(-(self.micro_frame_size or size[0]) // 4) + -(-rest // 4), None, None]

    def decode(self, z, num_frames=None):
        z = z * self.scale + self.shift
        parts = []
        for part in z.split(self.micro_z_frame_size if self.micro_frame_size else z.shape[2], 2):
            count = min(self.micro_frame_size or num_frames, num_frames)
            parts.append(self.temporal_vae.decode(part, num_frames=count))
            num_frames -= count
        return self.spatial_vae.decode(torch.cat(parts, 2))

def OpenSoraVAE_V1_2(micro_batch_size=4, micro_frame_size=17, from_pretrained=None, local_files_only=False):
    assert from_pretrained is None
    return Pipeline(micro_batch_size, micro_frame_size)
""",
}


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package `peers`; what a checkout's code loads is removed after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("peers")
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "opensora")]:
        del sys.modules[name]


@pytest.fixture
def checkout(tmp_path: Path, peers: Any) -> Callable[..., Any]:
    def write(files: dict[str, str], folder: str = "code", weights: object = "random") -> Any:
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return peers.Checkout(str(tmp_path / folder), str(weights))

    return write


def video(frames: int, side: int = 16) -> Tensor:
    return torch.rand(1, 3, frames, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seen(module: str) -> list[tuple[int, ...]]:
    """What the networks were given since the last call."""
    found: list[tuple[int, ...]] = sys.modules[module].seen
    taken = list(found)
    found.clear()
    return taken


@pytest.mark.parametrize(("name", "channels"), [("cv-vae", 4), ("cv-vae-sd3", 16)])
def test_cv_vae_runs_whole_clips_and_groups_of_16_frames(
    peers: Any, checkout: Any, name: str, channels: int
) -> None:
    given = checkout(CV_VAE)
    model = peers.CHECKOUTS[name].build(given)
    x = video(33)
    direct = model.encode(x)
    assert direct.shape == (1, channels, model.latent_frames(33), 2, 2)
    assert model.decode(direct, 33).shape == x.shape
    assert seen("models.vae_models") == [(33, 16, 16), (9, 2, 2)]
    model.use("tiling")
    torch.testing.assert_close(model.encode(x), direct)  # these networks see no other frames
    assert model.decode(direct, 33).shape == x.shape
    groups = [(17, 16, 16), (17, 16, 16), (5, 2, 2), (5, 2, 2)]
    assert seen("models.vae_models") == groups
    model.use(peers.DIRECT)
    model.encode(x)
    assert seen("models.vae_models") == [(33, 16, 16)]
    assert given.label == "random, configuration of the code"


def test_weights_in_their_subfolder_or_a_configuration_are_taken(
    peers: Any, checkout: Any, tmp_path: Path
) -> None:
    peer = peers.CHECKOUTS["cv-vae"]
    model = peer.build(checkout(CV_VAE))
    model.vae.save_pretrained(tmp_path / "weights" / "vae3d")
    given = checkout(CV_VAE, weights=tmp_path / "weights")
    again = peer.build(given, seed=1)
    assert torch.equal(again.vae.weight, model.vae.weight)
    assert given.label == f"given, {tmp_path.name}/weights"
    assert not torch.equal(peer.build(checkout(CV_VAE), seed=1).vae.weight, model.vae.weight)
    (tmp_path / "config.json").write_text('{"z_channels": 8}')
    other = checkout(CV_VAE, weights=f"random:{tmp_path}")
    assert peer.build(other).vae.weight.shape == (8, 3)
    assert other.label == "random, given configuration"


def test_od_vae_runs_without_packages_that_only_training_needs(peers: Any, checkout: Any) -> None:
    given = checkout(OD_VAE)
    peer = peers.CHECKOUTS["od-vae"]
    model = peer.build(given)
    x = video(37, side=32)
    latents = model.encode(x)
    assert latents.shape == (1, 4, model.latent_frames(37), 4, 4)
    assert model.decode(latents, 37).shape == x.shape
    model.use("tiling")
    torch.testing.assert_close(model.encode(x), latents + 1)
    with pytest.raises(InputError, match=r"latents of \(10, 4, 4\) are one tile .* more than 16 x 32 x 32"):
        model.decode(latents, 37)
    with pytest.raises(InputError, match=r"video of \(9, 32, 32\) are one tile .* more than 33 x 256 x 256"):
        model.encode(x[:, :, :9])
    scaled = peer.build(given, tile_scale=16)
    scaled.use("tiling")
    assert scaled.decode(latents, 37).shape == x.shape  # 4x4 latents are now more than a tile
    assert "decord" not in sys.modules and "pytorch_lightning" not in sys.modules


def test_od_vae_has_its_name_with_the_released_configuration_only(peers: Any) -> None:
    peer = peers.CHECKOUTS["od-vae"]
    assert peer.title_of(peers.Checkout("code")) == "Open-Sora-Plan CausalVAE, defaults"
    for weights in ("weights/", "random:config.json"):
        assert peer.title_of(peers.Checkout("code", weights)) == "OD-VAE"


@pytest.fixture
def small_images(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small image autoencoder for Open-Sora."""
    described = peers.PEERS["sd-vae"]
    for key, value in described.reduced.items():
        monkeypatch.setitem(described.published, key, value)


@pytest.mark.usefixtures("small_images")
def test_open_sora_gives_means_for_whole_clips_and_17_frames_each(peers: Any, checkout: Any) -> None:
    model = peers.CHECKOUTS["open-sora"].build(checkout(OPEN_SORA))
    x = video(49)
    direct = model.encode(x)
    assert direct.shape == (1, 4, 13, 2, 2) and model.latent_frames(49) == 13
    with torch.inference_mode():
        means = model.vae.spatial_vae.module.encode(x[0].transpose(0, 1)).latent_dist.mode()
    expected = torch.cat([means[:1]] * 3 + [means]).unflatten(0, (13, 4)).mean(1) * 0.18215
    torch.testing.assert_close(direct[0], expected.transpose(0, 1))
    restored = model.decode(direct, 49)
    assert restored.shape == x.shape
    assert seen("opensora.models.vae.vae") == [(49, 2, 2), (49, 13, 2, 2)]
    with torch.inference_mode():  # the mean is unscaled: `decode` must take back its own scaling
        first = model.vae.spatial_vae.module.decode(direct[0, :, 0][None] / 0.18215).sample
    torch.testing.assert_close(restored[0, :, 0], first[0], rtol=1e-4, atol=1e-4)

    model.use("frame groups")
    blocks = model.encode(x)
    assert blocks.shape[2] == model.latent_frames(49) == 14
    assert model.decode(blocks, 49).shape == x.shape
    groups = [(17, 2, 2), (17, 2, 2), (15, 2, 2)]
    latents = [(17, 5, 2, 2), (17, 5, 2, 2), (15, 4, 2, 2)]
    assert seen("opensora.models.vae.vae") == groups + latents


@pytest.mark.usefixtures("small_images")
def test_open_sora_loads_given_weights_strictly(peers: Any, checkout: Any, tmp_path: Path) -> None:
    peer = peers.CHECKOUTS["open-sora"]
    model = peer.build(checkout(OPEN_SORA))
    state = {name: tensor.contiguous() for name, tensor in model.vae.state_dict().items()}
    (tmp_path / "weights").mkdir()
    save_file(state, tmp_path / "weights" / "model.safetensors")
    given = checkout(OPEN_SORA, weights=tmp_path / "weights")
    again = peer.build(given, seed=1).vae.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    del state["scale"]
    save_file(state, tmp_path / "weights" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be built .*Missing key.*scale.*version v1.2.0"):
        peer.build(given)


def test_two_packages_of_one_name_in_a_process_are_refused(peers: Any, checkout: Any) -> None:
    peers.CHECKOUTS["od-vae"].build(checkout(OD_VAE))
    with pytest.raises(CheckpointError, match=r"opensora of .* is loaded already; run .* process of its own"):
        peers.CHECKOUTS["open-sora"].build(checkout(OPEN_SORA, folder="other"))


def test_benchmark_runs_code_of_a_checkout_in_a_process_of_its_own(
    checkout: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command: Any = importlib.import_module("blockwise")
    monkeypatch.setattr(importlib.import_module("harness.turns"), "REST", 0.0)
    code, path = checkout(CV_VAE).code, tmp_path / "result.json"
    options = f"--only cv-vae --checkout cv-vae={code} --frames 21 --size 32 --threads 1 --json {path}"
    assert command.main(options.split()) == 0
    [row] = json.loads(path.read_text())["rows"]
    assert (row["model"], row["weights"]) == ("CV-VAE", "random, configuration of the code")
    assert row["max_abs"] < 1e-6
    assert "models" not in sys.modules


def test_broken_checkout_is_named(peers: Any, checkout: Any, tmp_path: Path) -> None:
    peer = peers.CHECKOUTS["cv-vae"]
    with pytest.raises(CheckpointError, match=r"nowhere is no directory; expected the code or weights"):
        peer.build(peers.Checkout(str(tmp_path / "nowhere")))
    with pytest.raises(CheckpointError, match=r"cannot be built .*ModuleNotFoundError.*version 375f18a"):
        peer.build(checkout({"models/__init__.py": ""}))
