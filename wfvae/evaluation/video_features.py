"""Features or classes of clips, from a network that the user brings as a TorchScript file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wfvae.errors import CheckpointError, InputError
from wfvae.evaluation.protocol import Frame, square

Features = npt.NDArray[np.float64]
FEATURE_SIZE = 224
"""Side of the frames that I3D was trained on."""
_SWITCHES = ("rescale", "resize", "return_features")
"""Arguments of the commonly used I3D file: it gets frames of its own size and range, and returns
features or classes."""


class VideoFeatures:
    """A TorchScript network from clips (B, 3, T, 224, 224) in [-1, 1] to features (B, d).

    Arguments named `rescale`, `resize` and `return_features`, as the commonly used I3D file has
    them, are passed where its forward method has them; `output` decides on the last one.
    """

    def __init__(self, path: Path, output: Literal["features", "classes"] = "features") -> None:
        import torch

        if not path.is_file():
            expected = "expected a TorchScript file of a video feature network, such as I3D"
            raise CheckpointError(f"{path} does not exist; {expected}")
        try:
            with warnings.catch_warnings():
                # TorchScript is deprecated, and the format in which such networks are shared.
                warnings.simplefilter("ignore", DeprecationWarning)
                load: Any = torch.jit.load
                self._network = load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            problem = f"{path} cannot be loaded as TorchScript: {str(error).splitlines()[0]}"
            raise CheckpointError(f"{problem}; give a file made by torch.jit.save") from error
        self._path = path
        names = {argument.name for argument in self._network.forward.schema.arguments}
        values = (False, False, output == "features")
        self._switches = {name: value for name, value in zip(_SWITCHES, values, strict=True) if name in names}

    def of(self, frames: Sequence[Frame]) -> Features:
        """Computes the features (1, d) of one clip of frames (H, W, 3) uint8, prepared by `square`.

        Raises `InputError` if the network fails on it or returns no finite features of that shape.
        """
        import torch

        squares = np.stack([square(frame, FEATURE_SIZE) for frame in frames])
        clip = torch.from_numpy(squares).permute(3, 0, 1, 2)[None].float()
        try:
            with torch.inference_mode():
                features = self._network(clip / 127.5 - 1, **self._switches)
        except (RuntimeError, torch.jit.Error) as error:  # jit.Error: raised by the network itself
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            size = f"{len(frames)} frames of {FEATURE_SIZE}x{FEATURE_SIZE}"
            raise InputError(f"{self._path} fails on a clip of {size}: {reason}") from error
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        if len(shape) != 2 or shape[0] != 1:
            raise InputError(f"{self._path} returned {shape} for one clip; expected a tensor (1, d)")
        result: Features = features.double().numpy()
        if not np.isfinite(result).all():
            problem = f"{self._path} returned NaN or infinite features for a clip of {len(frames)} frames"
            raise InputError(f"{problem}; it does not fit this video")
        return result
