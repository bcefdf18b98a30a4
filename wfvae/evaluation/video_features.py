"""Features of clips for FVD, from a feature network that the user brings as a TorchScript file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wfvae.errors import CheckpointError, InputError
from wfvae.evaluation.frechet import FeatureMoments, frechet_distance
from wfvae.evaluation.protocol import square

if TYPE_CHECKING:
    import torch

Frame = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float64]
FEATURE_SIZE = 224
"""Side of the frames that I3D was trained on."""

_SWITCHES = {"rescale": False, "resize": False, "return_features": True}
"""Arguments of the I3D file that is in common use: it is given frames of its own size and range,
and asked for features, not classes.
"""


class VideoFeatures:
    """A TorchScript network from clips (B, 3, T, 224, 224) in [-1, 1] to features (B, d).

    Arguments named `rescale`, `resize` and `return_features`, as the commonly used I3D file has
    them, are given where its forward method has them.
    """

    def __init__(self, path: Path, side: int = FEATURE_SIZE) -> None:
        """Loads the network on the CPU. Raises `CheckpointError` if the file is missing or no
        TorchScript.
        """
        import torch

        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; expected a TorchScript file of a video feature network, such as I3D"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # the format that feature networks for FVD are shared in
                self._network: Any = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be loaded as TorchScript: {str(error).splitlines()[0]}; give a file made by"
                " torch.jit.save"
            ) from error
        self._path, self._side = path, side
        names = {argument.name for argument in self._network.forward.schema.arguments}
        self._switches = {name: value for name, value in _SWITCHES.items() if name in names}

    def of(self, frames: Sequence[Frame]) -> Features:
        """Features (1, d) of one clip of frames (H, W, 3) uint8; the short side is resized to 224
        and the centre cropped.

        Raises:
            InputError: the network fails on this clip, or gives another shape, or values that are
                not finite.
        """
        import torch

        clip = (
            torch.from_numpy(np.stack([square(frame, self._side) for frame in frames]))
            .permute(3, 0, 1, 2)[None]
            .float()
        )
        try:
            with torch.inference_mode():
                features: torch.Tensor = self._network(clip / 127.5 - 1, **self._switches)
        except (
            RuntimeError,
            torch.jit.Error,
        ) as error:  # the second is what the network itself raises, and no RuntimeError
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise InputError(
                f"{self._path} fails on a clip of {len(frames)} frames of {self._side}x{self._side}: {reason}"
            ) from error
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 1:
            given = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(f"{self._path} gives {given} for one clip; expected a tensor (1, d)")
        result: Features = features.double().numpy()
        if not np.isfinite(result).all():
            raise InputError(
                f"{self._path} gives NaN or infinite features for a clip of {len(frames)} frames; it does not"
                " fit this video"
            )
        return result


class ClipCollector:
    """Gathers clips of equal length of a video and its reconstruction, and the moments of their
    features.

    A video gives as many clips as fit, one after the other; what is left at its end is not counted.
    """

    def __init__(self, network: VideoFeatures, frames: int) -> None:
        self._network, self._frames = network, frames
        self.real, self.reconstruction = FeatureMoments(), FeatureMoments()
        self._waiting: list[tuple[Frame, Frame]] = []
        self._features: list[tuple[Features, Features]] = []

    def add(self, real: npt.NDArray[np.uint8], reconstruction: npt.NDArray[np.uint8]) -> None:
        """Takes frames (T, H, W, 3) of both.

        Raises:
            InputError: the network fails on one of the two, or gives other than the (1, d) finite
                features of the clips before. Nothing of this clip is counted then.
        """
        for pair in zip(real, reconstruction, strict=True):
            self._waiting.append(pair)
            if len(self._waiting) == self._frames:
                originals, results = zip(*self._waiting, strict=True)
                features = self._network.of(originals), self._network.of(results)
                self._require_one_width(*features)
                self._features.append(features)
                self._waiting = []

    def end_video(self, *, scored: bool) -> None:
        """Counts the clips of the video that ends here, or, if it was not `scored`, forgets them."""
        if scored:
            for real, reconstruction in self._features:
                self.real.add(real)
                self.reconstruction.add(reconstruction)
        self._waiting, self._features = [], []

    def _require_one_width(self, *features: Features) -> None:
        """What does not fit must not be found out when half of a video is counted."""
        seen = [*(pair[0] for pair in self._features[:1]), *features]
        widths = {one.shape[1] for one in seen} | ({len(self.real.mean)} if self.real.count else set())
        if len(widths) > 1:
            raise InputError(
                "the feature network gives features of different lengths,"
                f" {' and '.join(map(str, sorted(widths)))}; expected one length"
            )

    @property
    def clips(self) -> int:
        """Clips counted."""
        return self.real.count

    def distance(self) -> float:
        """FVD of the clips counted. Raises `InputError` for fewer than 2."""
        return frechet_distance(self.real, self.reconstruction)
