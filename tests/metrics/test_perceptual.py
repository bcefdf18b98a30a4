"""LPIPS against the `lpips` package, with weights from a seed, a file or a download."""

import importlib
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fixtures.program import run_python
from wfvae.errors import CheckpointError, MissingExtraError, ResourceError
from wfvae.metrics.perceptual import DOWNLOADS, Backbone, load_lpips
from wfvae.metrics.torchvision_operators import make_torchvision_importable
from wfvae.train.perceptual import PerceptualLoss

Weights = dict[str, Tensor]

pytestmark = pytest.mark.skipif(
    find_spec("lpips") is None, reason="needs the extra train or eval (lpips is not installed)"
)


@pytest.fixture(scope="module")
def perceptual() -> PerceptualLoss:
    """With a random backbone, shared: only a move to another device or dtype can change it."""
    return PerceptualLoss("random")


def clips(batch: int = 2, frames: int = 3, side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(batch, 3, frames, side, side, generator=generator) * 2 - 1
    strength = torch.linspace(0.05, 0.6, batch * frames).view(batch, 1, frames, 1, 1)
    noise = torch.randn(video.shape, generator=generator) * strength
    return video, (video + noise).clamp(-1, 1)


def images() -> tuple[Tensor, Tensor]:
    """Three images and their reconstructions, (3, 3, H, W)."""
    video, reconstruction = clips(batch=1, side=64)
    return video[0].movedim(1, 0), reconstruction[0].movedim(1, 0)


@pytest.fixture(scope="module")
def weights() -> dict[Backbone, Weights]:
    """Random state dicts as torchvision has them, without their classifiers."""
    make_torchvision_importable("this test", "train")
    from torchvision import models

    found: dict[Backbone, Weights] = {}
    for net, make in (("alex", models.alexnet), ("vgg", models.vgg16)):
        with torch.device("meta"):
            features = make().features
        layers = features.to_empty(device="cpu").state_dict(prefix="features.")
        for weight in layers.values():
            weight.normal_(0.0, (2.0 / weight[0].numel()) ** 0.5 if weight.ndim == 4 else 0.1)
        found[net] = layers
    return found


@pytest.mark.parametrize(("net", "suffix"), [("alex", ".pth"), ("vgg", ".safetensors")])
def test_weights_of_a_file_give_the_distances_of_the_package(
    net: Backbone, suffix: str, weights: dict[Backbone, Weights], tmp_path: Path
) -> None:
    file = tmp_path / f"weights{suffix}"
    content = {**weights[net], "classifier.6.bias": torch.zeros(1000)}
    save_file(content, file) if suffix == ".safetensors" else torch.save(content, file)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torchvision, about how lpips calls it
        import lpips

        reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        for name, parameter in reference.net.named_parameters():
            parameter.copy_(weights[net][f"features.{name.partition('.')[2]}"])
        expected = reference(*images())
    network = load_lpips(file, net)
    assert float(expected.min()) > 1e-4
    torch.testing.assert_close(network(*images()), expected, rtol=0, atol=0)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    if net == "vgg":
        values = PerceptualLoss(file)(*clips(batch=1, side=64))
        torch.testing.assert_close(values, expected.flatten(), rtol=0, atol=0)


def test_groups_of_frames_give_the_same_values_and_gradients(perceptual: PerceptualLoss) -> None:
    video, reconstruction = clips(side=16)
    reconstruction.requires_grad_()
    results = []
    for frames_at_once in (None, 4, 1):
        values = perceptual(video, reconstruction, frames_at_once)
        total = (values * torch.arange(1.0, 7.0)).sum()
        results.append((values.detach(), torch.autograd.grad(total, reconstruction)[0]))
    for values, gradient in results[1:]:
        torch.testing.assert_close(values, results[0][0], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=1e-4 * float(gradient.abs().max()))


def test_features_that_are_all_zero_give_finite_gradients() -> None:
    """LPIPS divides features by their length, whose derivative at 0 is infinite."""
    perceptual = PerceptualLoss("random")
    for parameter in perceptual._network[0].get_submodule("net").parameters():
        parameter.zero_()
    video, reconstruction = clips(batch=1, frames=1)
    reconstruction.requires_grad_()
    [gradient] = torch.autograd.grad(perceptual(video, reconstruction).sum(), reconstruction)
    assert gradient.isfinite().all()


def test_network_is_no_part_of_a_model_that_holds_it(perceptual: PerceptualLoss) -> None:
    holder = nn.Module()
    holder.perceptual, holder.layer = perceptual, nn.Linear(2, 2)
    (network,) = perceptual._network
    holder.train().requires_grad_(True)
    assert list(holder.state_dict()) == ["layer.weight", "layer.bias"]
    assert len(list(holder.parameters())) == 2
    assert not any(module.training for module in network.modules())
    video, reconstruction = clips(batch=1, frames=1)
    perceptual(video, reconstruction.requires_grad_()).sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_values_under_bf16_autocast_are_fp32_and_near(perceptual: PerceptualLoss) -> None:
    video, reconstruction = clips(batch=1)
    with torch.autocast("cpu", torch.bfloat16):
        values = perceptual(video, reconstruction)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, perceptual(video, reconstruction), rtol=0.1, atol=0)


def test_weights_are_downloaded_once_and_a_failed_download_names_the_alternative(
    weights: dict[Backbone, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    fetched = []

    def refuse(*arguments: Any, **options: Any) -> None:
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    file = re.escape(str(tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"))
    expected = f"{file}.*Name or service not known.*name a local .pth or .safetensors file instead of 'vgg'$"
    with pytest.raises(CheckpointError, match=expected):
        PerceptualLoss("vgg")

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        fetched.append((url, Path(path), hash_prefix, progress))
        torch.save(weights["alex"], path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        network = load_lpips("alex", "alex")
        bias = weights["alex"]["features.10.bias"]
        assert torch.equal(network.get_parameter("net.slice5.10.bias"), bias)
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert fetched == [(DOWNLOADS["alex"], path, "7be5be79", False)]


def test_wrong_files_are_named_in_one_line(weights: dict[Backbone, Weights], tmp_path: Path) -> None:
    name = "features.3.weight"
    missing = {n: t for n, t in weights["alex"].items() if n != name}
    damaged = weights["alex"][name].clone()
    damaged[5, 4, 3, 2] = float("nan")
    misshaped = torch.zeros(192, 64, 3, 3)
    files: dict[str, tuple[Any, str]] = {
        "nowhere.pth": (None, "there is no file .*nowhere.pth .* expected 'alex'.*'random'.* or a .pth or"),
        "missing.pth": (missing, "not hold torchvision's AlexNet weights: features.3.weight is missing$"),
        "misshaped.pth": ({**missing, name: misshaped}, r"is \(192, 64, 3, 3\), expected \(192, 64, 5, 5\)"),
        "nan.pth": ({**missing, name: damaged}, "features.3.weight holds NaN or infinite values"),
        "other.pth": ({"conv.weight": damaged}, "features.0.weight is missing and 9 more problems"),
        "pickled.pth": (nn.Linear(2, 2), "pickled objects are refused.*other objects than tensors"),
        "list.pth": ([1, 2], "list.pth .*is no state dict"),
        "text.safetensors": ("no", "cannot read .*text.safetensors: its header"),
    }
    for file, (content, message) in files.items():
        if content is not None:
            torch.save(content, tmp_path / file)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_lpips(tmp_path / file, "alex")
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_lpips_loads_silently_where_torchvisions_operators_do_not() -> None:
    """In a fresh process: this one imported torchvision long ago."""
    code = """
import warnings, torch
warnings.simplefilter("error")
from wfvae.metrics import torchvision_operators as it
from wfvae.metrics.perceptual import load_lpips
def refuse(self, path):
    raise OSError("libcudart.so: cannot open shared object file")
type(torch.ops).load_library = refuse
network = load_lpips("random", "alex")
assert it._declare_missing_operators.cache_info().currsize == 1
assert network(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)).item() > 0
"""
    assert run_python(code) == ""


def test_missing_or_broken_torchvision_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"LPIPS needs the package 'torchvision'.*wfvae\[train\]"):
            make_torchvision_importable("LPIPS", "train")
        patch.setattr("wfvae.metrics.perceptual.find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"LPIPS needs the package 'lpips'.*wfvae\[eval\]"):
            load_lpips("random", "alex", extra="eval")
    (tmp_path / "torchvision").mkdir()
    broken = "raise RuntimeError('operator torchvision::other\\ndoes not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    expected = r"cannot be imported beside torch .*: operator torchvision::other does not exist; install"
    with pytest.raises(ResourceError, match=expected):
        make_torchvision_importable("LPIPS", "train")
