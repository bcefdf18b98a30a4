"""Features of clips for FVD, from a feature network that the user brings as a TorchScript file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wfvae.errors import CheckpointError, InputError
from wfvae.evaluation.frechet import FeatureMoments, frechet_distance
from wfvae.evaluation.protocol import Frame, square

Features = npt.NDArray[np.float64]
FEATURE_SIZE = 224
"""Side of the frames that I3D was trained on."""
_SWITCHES = {"rescale": False, "resize": False, "return_features": True}
"""Arguments of the commonly used I3D file: it gets frames of its own size and range, and returns
features, not classes."""


class VideoFeatures:
    """A TorchScript network from clips (B, 3, T, 224, 224) in [-1, 1] to features (B, d).

    Arguments named `rescale`, `resize` and `return_features`, as the commonly used I3D file has
    them, are passed where its forward method has them.

    Raises:
        CheckpointError: the file is missing or no TorchScript.
    """

    def __init__(self, path: Path) -> None:
        import torch

        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; expected a TorchScript file of a video feature network, such as I3D"
            )
        try:
            with warnings.catch_warnings():
                # TorchScript is deprecated, and the format in which such networks are shared.
                warnings.simplefilter("ignore", DeprecationWarning)
                load: Any = torch.jit.load
                self._network = load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be loaded as TorchScript: {str(error).splitlines()[0]}; give a file made by"
                " torch.jit.save"
            ) from error
        self._path = path
        names = {argument.name for argument in self._network.forward.schema.arguments}
        self._switches = {name: value for name, value in _SWITCHES.items() if name in names}

    def of(self, frames: Sequence[Frame]) -> Features:
        """Computes the features (1, d) of one clip of frames (H, W, 3) uint8, prepared by `square`.

        Raises:
            InputError: the network fails on this clip, or returns another shape, or values that are
                not finite.
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
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 1:
            raise InputError(f"{self._path} returned {shape} for one clip; expected a tensor (1, d)")
        result: Features = features.double().numpy()
        if not np.isfinite(result).all():
            raise InputError(
                f"{self._path} returned NaN or infinite features for a clip of {len(frames)} frames; it does"
                " not fit this video"
            )
        return result


class ClipCollector:
    """Collects clips of equal length of videos and their reconstructions, as moments of features.

    A video gives as many consecutive clips as fit; the rest of its frames is not counted.
    """

    def __init__(self, network: VideoFeatures, frames: int) -> None:
        self._network, self._frames = network, frames
        self.real, self.reconstruction = FeatureMoments(), FeatureMoments()
        self._waiting: list[tuple[Frame, Frame]] = []
        self._features: list[tuple[Features, Features]] = []

    def add(self, real: npt.NDArray[np.uint8], reconstruction: npt.NDArray[np.uint8]) -> None:
        """Adds frames (T, H, W, 3) of both.

        Raises:
            InputError: the network fails, or returns features of another length than before.
        """
        for pair in zip(real, reconstruction, strict=True):
            self._waiting.append(pair)
            if len(self._waiting) == self._frames:
                originals, results = zip(*self._waiting, strict=True)
                features = self._network.of(originals), self._network.of(results)
                self._require_one_length(*features)
                self._features.append(features)
                self._waiting = []

    def end_video(self, *, scored: bool) -> None:
        """Counts the clips of the video that ends here, or, if it was not `scored`, drops them."""
        if scored:
            for real, reconstruction in self._features:
                self.real.add(real)
                self.reconstruction.add(reconstruction)
        self._waiting, self._features = [], []

    def _require_one_length(self, *features: Features) -> None:
        """Checked clip by clip, so that no video is counted in part."""
        seen = [*(pair[0] for pair in self._features[:1]), *features]
        lengths = {one.shape[1] for one in seen} | ({len(self.real.mean)} if self.real.count else set())
        if len(lengths) > 1:
            raise InputError(
                "the feature network returned features of different lengths,"
                f" {' and '.join(map(str, sorted(lengths)))}; expected one length"
            )

    @property
    def clips(self) -> int:
        """Clips counted."""
        return self.real.count

    def distance(self) -> float:
        """Computes FVD of the clips counted. Raises `InputError` for fewer than 2."""
        return frechet_distance(self.real, self.reconstruction)
