"""The LPIPS network (Zhang et al. 2018, through the `lpips` package), for training and evaluation.

`lpips` ships its small linear weights; the ImageNet backbone below them (VGG16 or AlexNet of
torchvision) comes from torchvision's download folder, from a file, or, for tests, from a seed.
"""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wfvae.errors import CheckpointError, MissingExtraError
from wfvae.metrics.torchvision_operators import make_torchvision_importable
from wfvae.model.checkpoint import read_tensors
from wfvae.model.torch_files import check_weights, read_torch_file

Backbone = Literal["vgg", "alex"]
DOWNLOADS: dict[Backbone, str] = {
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}
"""torchvision's ImageNet weights; the digits in a name are the start of the file's SHA-256."""
RANDOM = "random"
_TITLES: dict[Backbone, str] = {"vgg": "VGG16", "alex": "AlexNet"}


def load_lpips(
    weights: str | Path, net: Backbone = "vgg", *, seed: int = 0, extra: str = "train"
) -> nn.Module:
    """Returns LPIPS version 0.1, frozen and in eval mode, on the CPU in fp32.

    The module maps two batches of images (N, 3, H, W) in [-1, 1] to distances (N, 1, 1, 1), >= 0.
    VGG needs images of at least 16x16 pixels, AlexNet of 32x32.

    Args:
        weights: of the backbone: "vgg" or "alex" like `net` for torchvision's ImageNet weights,
            downloaded unless they are in its folder (528 MB and 233 MB); "random", drawn from
            `seed`, for tests; or a file with torchvision's state dict, `.pth` or `.safetensors`.
        net: "vgg" for training, as in the paper; "alex" is the usual one for evaluation.
        extra: this package's extra that brings LPIPS for the caller, for the error.

    Raises:
        MissingExtraError: `lpips` or torchvision is not installed.
        CheckpointError: weights that are missing, unreadable or of another network.
        ResourceError: torchvision is installed and cannot be imported.

    Example:
        >>> lpips = load_lpips("random", "alex")
        >>> image = torch.zeros(1, 3, 32, 32)
        >>> lpips(image, image).item()
        0.0
    """
    network = _build(net, extra)
    backbone = network.get_submodule("net")
    if weights == RANDOM:
        _draw_backbone(backbone, seed)
    else:
        _fill_backbone(backbone, _downloaded(net) if weights == net else Path(weights), net)
    return network.eval().requires_grad_(False)


def _build(net: Backbone, extra: str) -> nn.Module:
    """Returns the network with its linear weights; the backbone's are not set."""
    if find_spec("lpips") is None:
        raise MissingExtraError("LPIPS", "lpips", extra)
    make_torchvision_importable("LPIPS", extra)
    with warnings.catch_warnings():  # of torchvision, about how `lpips` asks for networks
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\..*")
        import lpips

        with torch.device("meta"):  # VGG16 has 124 million weights of a classifier, unused here
            network: nn.Module = lpips.LPIPS(
                net=net, version="0.1", pretrained=False, pnet_rand=True, verbose=False
            )
    linear_layers = network.get_submodule("lins").to_empty(device="cpu")
    network.get_submodule("net").to_empty(device="cpu")
    file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    linear = torch.load(file, map_location="cpu", weights_only=True)
    linear_layers.load_state_dict({name.removeprefix("lin"): tensor for name, tensor in linear.items()})
    return network


def _draw_backbone(backbone: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            else:  # keeps the features' scale from layer to layer through the ReLUs
                parameter.normal_(0.0, (2.0 / parameter[0].numel()) ** 0.5, generator=generator)


def _fill_backbone(backbone: nn.Module, path: Path, net: Backbone) -> None:
    weights = _read_state_dict(path, net)
    # LPIPS cuts the network into slices and keeps the layers' numbers: slice2.4.bias is
    # torchvision's features.4.bias.
    sources = {name: f"features.{name.partition('.')[2]}" for name in backbone.state_dict()}
    problems = []
    for name, parameter in backbone.named_parameters():
        given = weights.get(sources[name])
        if given is None:
            problems.append(f"{sources[name]} is missing")
        elif given.shape != parameter.shape:
            problems.append(f"{sources[name]} is {tuple(given.shape)}, expected {tuple(parameter.shape)}")
        elif not torch.isfinite(given).all():
            problems.append(f"{sources[name]} holds NaN or infinite values")
    if problems:
        more = f" and {len(problems) - 1} more problems" if len(problems) > 1 else ""
        expected = f"torchvision's {_TITLES[net]} weights"
        raise CheckpointError(f"{path} does not hold {expected}: {problems[0]}{more}")
    backbone.load_state_dict({name: weights[source].float() for name, source in sources.items()}, strict=True)


def _read_state_dict(path: Path, net: Backbone) -> Mapping[str, Tensor]:
    if not path.is_file():
        names = f"'{net}' (torchvision's weights, downloaded), '{RANDOM}' (for tests)"
        file = f"a .pth or .safetensors file with torchvision's {_TITLES[net]} state dict"
        raise CheckpointError(f"there is no file {path} with LPIPS's backbone; expected {names}, or {file}")
    what = "LPIPS backbone"
    content: Any = read_tensors(path) if path.suffix == ".safetensors" else read_torch_file(path, what)
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        problem = f"{path} does not hold torchvision's {_TITLES[net]} weights"
        raise CheckpointError(f"{problem}: it is no state dict, a mapping of names to tensors")
    check_weights(content, path)
    return content


def _downloaded(net: Backbone) -> Path:
    """Returns the file in torchvision's download folder, downloaded if it is not there."""
    url = DOWNLOADS[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Downloads beside it under another name, checks the SHA-256, then renames.
        prefix = path.stem.rpartition("-")[2]
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
    except Exception as error:  # no network, a refusal, a full disk, a wrong hash
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"there is no {path}, and {url} cannot be downloaded ({reason})"
        advice = f"put the file there, or name a local .pth or .safetensors file instead of '{net}'"
        text = f"LPIPS needs torchvision's {_TITLES[net]} weights: {problem}; {advice}"
        raise CheckpointError(text) from error
    return path
