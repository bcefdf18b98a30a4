"""LPIPS: against the `lpips` package itself frame by frame, with weights from a seed, a file or the
download folder.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wfvae.errors import CheckpointError, InputError, MissingExtraError, ResourceError
from wfvae.metrics.perceptual import load_lpips
from wfvae.metrics.torchvision_operators import make_torchvision_importable
from wfvae.train.perceptual import PerceptualLoss

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    find_spec("lpips") is None, reason="needs the extra train or eval (lpips is not installed)"
)


@pytest.fixture(scope="module")
def perceptual() -> PerceptualLoss:
    """With a random backbone. Tests share it: nothing can change it but a move to another device or
    dtype.
    """
    return PerceptualLoss("random")


def clips(batch: int = 2, frames: int = 3, side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(batch, 3, frames, side, side, generator=generator) * 2 - 1
    noise = torch.randn(video.shape, generator=generator) * torch.linspace(0.05, 0.6, batch * frames).view(
        batch, 1, frames, 1, 1
    )
    return video, (video + noise).clamp(-1, 1)


@contextmanager
def own_backbone(weights: dict[str, Tensor], name: str = "alexnet") -> Iterator[None]:
    """While it lasts, torchvision's network of that name is made with these weights, so that
    `lpips` can be called as its documentation shows."""
    make_torchvision_importable("this test", "train")
    from torchvision import models

    original = getattr(models, name)

    def made(pretrained: bool) -> nn.Module:
        assert pretrained
        with torch.device("meta"):
            network: nn.Module = original()
        network.get_submodule("features").load_state_dict(
            {n.removeprefix("features."): t for n, t in weights.items()}, assign=True
        )
        return network

    setattr(models, name, made)
    try:
        yield
    finally:
        setattr(models, name, original)


@pytest.fixture(scope="module")
def alexnet_weights() -> dict[str, Tensor]:
    """A state dict as torchvision's AlexNet has it, its classifier left out."""
    shapes = {
        0: (64, 3, 11, 11),
        3: (192, 64, 5, 5),
        6: (384, 192, 3, 3),
        8: (256, 384, 3, 3),
        10: (256, 256, 3, 3),
    }
    return drawn(shapes)


@pytest.fixture(scope="module")
def vgg_weights() -> dict[str, Tensor]:
    """A state dict as torchvision's VGG16 has it, its classifier left out."""
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # the gaps are ReLUs and poolings
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    return drawn(
        {
            index: (width, given, 3, 3)
            for index, given, width in zip(indices, widths, widths[1:], strict=False)
        }
    )


def drawn(shapes: dict[int, tuple[int, int, int, int]]) -> dict[str, Tensor]:
    """Random convolutions at these places of torchvision's `features`."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for index, shape in shapes.items():
        fan_in = shape[1] * shape[2] * shape[3]
        weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        weights[f"features.{index}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return weights


# Values -------------------------------------------------------------------------------------------


def test_each_frame_is_what_lpips_gives_for_it_alone(perceptual: PerceptualLoss) -> None:
    video, reconstruction = clips()
    values = perceptual(video, reconstruction)
    (network,) = perceptual._network
    assert type(network).__module__ == "lpips.lpips"
    alone = [
        network(video[b : b + 1, :, t], reconstruction[b : b + 1, :, t]).item()
        for b in range(2)
        for t in range(3)
    ]
    assert values.shape == (6,)
    assert min(alone) > 1e-4
    assert len({round(v, 6) for v in alone}) == 6, "otherwise a wrong order of frames would not show"
    torch.testing.assert_close(values, torch.tensor(alone), rtol=1e-5, atol=1e-8)


def test_identical_frames_are_at_no_distance_and_it_is_symmetric(perceptual: PerceptualLoss) -> None:
    video, reconstruction = clips(batch=1)
    reconstruction[:, :, 1] = video[:, :, 1]
    values = perceptual(video, reconstruction)
    assert (values[1].item(), bool(values[0] > 0), bool(values[2] > values[0])) == (0.0, True, True)
    torch.testing.assert_close(values, perceptual(reconstruction, video))


def test_a_file_gives_what_the_package_gives_with_the_same_weights(
    alexnet_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Against `lpips.LPIPS()` made as its documentation shows, linear weights, input scaling and
    all.
    """
    torch.save({**alexnet_weights, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "alexnet.pth")
    save_file(alexnet_weights, tmp_path / "alexnet.safetensors")
    video, reconstruction = clips(batch=1, side=64)
    pair = (video[0].movedim(1, 0), reconstruction[0].movedim(1, 0))
    with own_backbone(alexnet_weights), warnings.catch_warnings():
        import lpips

        expected = lpips.LPIPS(net="alex", verbose=False)(*pair)
    for name in ("alexnet.pth", "alexnet.safetensors"):
        network = load_lpips(tmp_path / name, "alex")
        torch.testing.assert_close(network(*pair), expected, rtol=0, atol=0)
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_a_file_of_vgg16_gives_what_the_package_gives_with_the_same_weights(
    vgg_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """As above, for the network that training uses."""
    save_file({**vgg_weights, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "vgg16.safetensors")
    video, reconstruction = clips(batch=1)
    pair = (video[0].movedim(1, 0), reconstruction[0].movedim(1, 0))
    with own_backbone(vgg_weights, "vgg16"), warnings.catch_warnings():
        import lpips

        expected = lpips.LPIPS(net="vgg", verbose=False)(*pair).detach()
    assert float(expected.min()) > 1e-4
    network = load_lpips(tmp_path / "vgg16.safetensors", "vgg")
    torch.testing.assert_close(network(*pair), expected, rtol=0, atol=0)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    values = PerceptualLoss(tmp_path / "vgg16.safetensors")(video, reconstruction)
    torch.testing.assert_close(values, expected.flatten(), rtol=0, atol=0)


def test_a_distance_worked_out_from_the_definition(
    alexnet_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Zhang et al. 2018, eq. 1, on AlexNet as Krizhevsky 2014 has it; only the linear weights are
    taken from the package.
    """
    from torch.nn.functional import conv2d, max_pool2d

    save_file(alexnet_weights, tmp_path / "alexnet.safetensors")
    video, reconstruction = clips(batch=1, frames=1, side=64)
    network = load_lpips(tmp_path / "alexnet.safetensors", "alex")
    mean, deviation = (
        torch.tensor(values).view(1, 3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )  # ImageNet's
    layers = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}  # stride and padding
    images = torch.cat([video[:, :, 0], reconstruction[:, :, 0]])
    hidden = ((images + 1) / 2 - mean) / deviation
    expected = 0.0
    for number, (index, (stride, padding)) in enumerate(layers.items()):
        if index in (3, 6):
            hidden = max_pool2d(hidden, 3, 2)
        weight, bias = (alexnet_weights[f"features.{index}.{name}"] for name in ("weight", "bias"))
        hidden = conv2d(hidden, weight, bias, stride, padding).clamp(min=0)
        one, other = hidden / hidden.square().sum(1, keepdim=True).sqrt()
        linear = network.get_submodule("lins")[number].model[1].weight.flatten()  # type: ignore[index]
        assert linear.shape == (len(weight),) and bool((linear >= 0).all())
        expected += float(((one - other).square() * linear[:, None, None]).sum(0).mean())
    found = network(video[:, :, 0], reconstruction[:, :, 0])
    assert expected > 1e-4
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_random_weights_are_the_seeds(perceptual: PerceptualLoss) -> None:
    video, reconstruction = clips(batch=1, frames=1)
    before = torch.get_rng_state()
    same, other = PerceptualLoss("random", seed=0), PerceptualLoss("random", seed=1)
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    value = perceptual(video, reconstruction)
    assert torch.equal(same(video, reconstruction), value)
    assert not torch.equal(other(video, reconstruction), value)


# Gradients and memory -----------------------------------------------------------------------------


def test_groups_of_frames_give_the_same_values_and_gradients(perceptual: PerceptualLoss) -> None:
    """Also when the graph is used twice, as the adaptive weight and the backward pass do."""
    video, reconstruction = clips(side=16)
    reconstruction.requires_grad_()
    results = []
    for frames_at_once in (None, 4, 1):
        values = perceptual(video, reconstruction, frames_at_once)
        scale = torch.arange(1.0, 7.0)
        first = torch.autograd.grad((values * scale).sum(), reconstruction, retain_graph=True)[0]
        second = torch.autograd.grad((values * scale).sum(), reconstruction)[0]
        assert torch.equal(first, second)
        results.append((values.detach(), first))
    for values, gradient in results[1:]:
        torch.testing.assert_close(values, results[0][0], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=1e-4 * float(gradient.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(perceptual(video, reconstruction, 2), results[0][0], rtol=1e-5, atol=1e-8)


def test_groups_of_frames_hold_the_features_of_one_group(perceptual: PerceptualLoss) -> None:
    video, reconstruction = clips(batch=1, frames=4)
    reconstruction.requires_grad_()

    def saved_bytes(frames_at_once: int | None) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            perceptual(video, reconstruction, frames_at_once)
        return total

    assert saved_bytes(1) < saved_bytes(None) / 20


def test_gradient_against_finite_differences() -> None:
    perceptual = PerceptualLoss("random").double()
    video, reconstruction = (x.double() for x in clips(batch=1, frames=1, side=16))
    reconstruction.requires_grad_()
    perceptual(video, reconstruction).sum().backward()
    assert reconstruction.grad is not None
    direction = reconstruction.grad / reconstruction.grad.norm()
    with torch.no_grad():
        up, down = (perceptual(video, reconstruction + step * direction).item() for step in (1e-6, -1e-6))
    assert (up - down) / 2e-6 == pytest.approx(reconstruction.grad.norm().item(), rel=1e-4)


def test_features_that_are_all_zero_give_finite_gradients() -> None:
    """LPIPS divides features by their length, whose derivative at 0 is infinite; the ReLU before it
    must stop that.
    """
    network = PerceptualLoss("random")
    for parameter in network._network[0].get_submodule("net").parameters():
        parameter.zero_()
    video, reconstruction = clips(batch=1, frames=1)
    reconstruction.requires_grad_()
    network(video, reconstruction).sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.isfinite().all()


# A frozen guest -----------------------------------------------------------------------------------


def test_the_network_is_no_part_of_a_model_that_holds_it(perceptual: PerceptualLoss) -> None:
    holder = nn.Module()
    holder.perceptual, holder.layer = perceptual, nn.Linear(2, 2)
    (network,) = perceptual._network
    holder.train().requires_grad_(True)
    assert list(holder.state_dict()) == ["layer.weight", "layer.bias"]
    assert len(list(holder.parameters())) == 2
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    video, reconstruction = clips(batch=1, frames=1)
    perceptual(video, reconstruction.requires_grad_()).sum().backward()
    assert all(p.grad is None for p in network.parameters())


def test_the_network_follows_to_another_device_or_dtype() -> None:
    perceptual = PerceptualLoss("random")
    (network,) = perceptual._network
    assert perceptual.to(torch.float64) is perceptual
    assert {t.dtype for t in network.state_dict().values()} == {torch.float64}
    perceptual.to("meta")
    assert {t.device.type for t in network.state_dict().values()} == {"meta"}


def test_under_bf16_autocast_the_values_are_fp32_and_near(perceptual: PerceptualLoss) -> None:
    video, reconstruction = clips(batch=1)
    with torch.autocast("cpu", torch.bfloat16):
        values = perceptual(video, reconstruction)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, perceptual(video, reconstruction), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("video", "reconstruction", "frames_at_once", "message"),
    [
        ((1, 1, 2, 32, 32), None, None, r"video has shape \(1, 1, 2, 32, 32\); expected \(B, 3, T, H, W\)"),
        ((3, 2, 32, 32), None, None, r"expected \(B, 3, T, H, W\)"),
        ((1, 3, 0, 32, 32), None, None, r"expected \(B, 3, T, H, W\)"),
        ((1, 3, 2, 32, 8), None, None, "frames are 32x8 pixels; LPIPS needs at least 16x16"),
        ((1, 3, 2, 32, 32), (1, 3, 1, 32, 32), None, r"reconstruction has shape \(1, 3, 1, 32, 32\)"),
    ],
)
def test_wrong_videos_are_refused(
    perceptual: PerceptualLoss, video: Any, reconstruction: Any, frames_at_once: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        perceptual(torch.zeros(video), torch.zeros(reconstruction or video), frames_at_once)


# Weights that cannot be had -----------------------------------------------------------------------


def test_the_download_folder_is_looked_in_first(
    alexnet_weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    fetched = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        fetched.append((url, hash_prefix, progress))
        torch.save(alexnet_weights, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        network = load_lpips("alex", "alex")
        assert torch.equal(network.get_parameter("net.slice5.10.bias"), alexnet_weights["features.10.bias"])
    assert file.is_file()
    assert fetched == [("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79", False)]


def test_the_names_of_the_downloads_are_torchvisions() -> None:
    make_torchvision_importable("this test", "train")
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    from wfvae.metrics.perceptual import DOWNLOADS

    assert {"vgg": VGG16_Weights.IMAGENET1K_V1.url, "alex": AlexNet_Weights.IMAGENET1K_V1.url} == DOWNLOADS


def test_without_a_network_the_error_names_the_file_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise URLError("Name or service\nnot known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(CheckpointError) as caught:
        PerceptualLoss("vgg")
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth") in message
    assert "Name or service not known" in message
    assert "name a local .pth or .safetensors file instead of 'vgg'" in message
    assert "\n" not in message


def test_wrong_files_are_named_in_one_line(alexnet_weights: dict[str, Tensor], tmp_path: Path) -> None:
    name = "features.3.weight"
    missing = {n: t for n, t in alexnet_weights.items() if n != name}
    damaged = alexnet_weights[name].clone()
    damaged[5, 4, 3, 2] = float("nan")
    torch.save(missing, tmp_path / "missing.pth")
    save_file({**missing, name: torch.zeros(192, 64, 3, 3)}, tmp_path / "misshaped.safetensors")
    save_file({**missing, name: damaged}, tmp_path / "nan.safetensors")
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "empty.pth").write_bytes(b"")
    for file, message in (
        (
            "nowhere.pth",
            "there is no file .*nowhere.pth .* expected 'alex'.*'random'.* or a .pth or .safetensors file",
        ),
        (
            "missing.pth",
            "missing.pth does not hold torchvision's AlexNet weights: features.3.weight is missing$",
        ),
        ("misshaped.safetensors", r"features.3.weight is \(192, 64, 3, 3\), expected \(192, 64, 5, 5\)"),
        ("nan.safetensors", "features.3.weight holds NaN or infinite values"),
        (
            "pickled.pth",
            (
                r"\(pickled objects are refused\): it is no file of torch.save, or holds other objects than"
                r" tensors$"
            ),
        ),
        ("list.pth", "list.pth .*is no state dict"),
        ("text.safetensors", "cannot read .*text.safetensors as weights"),
        ("empty.pth", "cannot read .*empty.pth as weights"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_lpips(tmp_path / file, "alex")
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"features.0.weight is missing and 9 more problems"):
        save_file({"conv.weight": damaged}, tmp_path / "other.safetensors")
        load_lpips(tmp_path / "other.safetensors", "alex")
    with pytest.raises(CheckpointError, match="the LPIPS network is 'squeeze'; expected one of vgg, alex"):
        load_lpips("random", "squeeze")  # type: ignore[arg-type]


# torchvision without its operators ----------------------------------------------------------------


def run(code: str) -> str:
    """Run `code` in a fresh interpreter in which every warning is an error; what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lpips_loads_silently_where_torchvisions_operators_do_not() -> None:
    """Forced, in a fresh process: in this one torchvision has long been imported, as it is."""
    code = """
import torch
from torch import ops
from wfvae.metrics import torchvision_operators as it
from wfvae.metrics.perceptual import load_lpips
def refuse(self, path):
    raise OSError("libcudart.so: cannot open shared object file")
type(ops).load_library = refuse
network = load_lpips("random", "alex")
assert it._declare_missing_operators.cache_info().currsize == 1
assert network(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)).item() > 0
"""
    assert run(code) == ""


def test_a_torchvision_that_works_is_left_alone() -> None:
    """A stand-in package whose compiled part loads: nothing is declared, and it is imported as it
    is.
    """
    code = """
import sys, tempfile, pathlib
import torch
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "torchvision").mkdir()
(folder / "torchvision" / "__init__.py").write_text("here = True")
(folder / "torchvision" / ("_C" + __import__("importlib.machinery").machinery.EXTENSION_SUFFIXES[-1])).write_bytes(b"")
sys.path.insert(0, str(folder))
opened = []
type(torch.ops).load_library = lambda self, path: opened.append(path)
from wfvae.metrics.torchvision_operators import SCHEMAS, _declare_missing_operators, make_torchvision_importable
make_torchvision_importable("this", "train")
assert len(opened) == 1 and opened[0].startswith(str(folder)), opened
assert sys.modules["torchvision"].here and _declare_missing_operators.cache_info().currsize == 0
assert not any(hasattr(torch.ops.torchvision, schema.partition("(")[0]) for schema in SCHEMAS)
make_torchvision_importable("this", "train")
assert len(opened) == 1, "an imported torchvision is not looked at again"
"""
    assert run(code) == ""


def test_no_torchvision_or_a_broken_one_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"LPIPS needs the package 'torchvision'.*wfvae\[train\]"):
            make_torchvision_importable("LPIPS", "train")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::other\\ndoes not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ResourceError,
        match=r"cannot be imported beside torch .*: operator torchvision::other does not exist; install",
    ):
        make_torchvision_importable("LPIPS", "train")


def test_no_lpips_names_the_extra_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wfvae.metrics.perceptual.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"LPIPS needs the package 'lpips'.*wfvae\[eval\]"):
        load_lpips("random", "alex", extra="eval")
