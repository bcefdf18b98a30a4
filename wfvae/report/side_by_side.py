"""Frames of the demo's video: input, reconstruction and amplified difference side by side."""

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.video.synthetic.font import GLYPH_HEIGHT, draw_text

Frames = npt.NDArray[np.uint8]

GAP = 4
"""Pixels between the pictures."""
GAIN = 8
"""Amplification of the differences shown."""
DIFFERENCE_ZERO = 128
"""Grey level of the difference picture where input and reconstruction are equal."""
BACKGROUND = (24, 26, 31)
LABEL_COLOUR = (226, 228, 233)
_LABELS = ("Input", "Reconstruction", f"Difference x{GAIN}")
"""They fit pictures 90 pixels wide, and are cut off on smaller ones."""


def difference(reference: Frames, reconstruction: Frames) -> Frames:
    """Returns 128 + GAIN * (reconstruction - reference), clipped to 0..255, of uint8 arrays."""
    if reference.dtype != np.uint8 or reconstruction.dtype != np.uint8:
        raise InputError(f"frames are {reference.dtype} and {reconstruction.dtype}; expected uint8 for both")
    if reference.shape != reconstruction.shape:
        shapes = f"reference has shape {reference.shape} and reconstruction {reconstruction.shape}"
        raise InputError(f"{shapes}; expected the same shape")
    signed = reconstruction.astype(np.int32) - reference
    amplified: Frames = np.clip(signed * GAIN + DIFFERENCE_ZERO, 0, 255).astype(np.uint8)
    return amplified


def side_by_side(reference: Frames, reconstruction: Frames) -> Frames:
    """Composes frames (T, H, W, 3) uint8 as input | reconstruction | difference under their labels.

    The result has the size `side_by_side_size(H, W)`; pictures keep their pixels.
    """
    apart = difference(reference, reconstruction)
    count, height, width, _ = reference.shape
    sheet = np.full((count, *side_by_side_size(height, width), 3), BACKGROUND, dtype=np.uint8)
    scale, strip = _label_scale(width), _strip_height(width)
    pictures = (reference, reconstruction, apart)
    for index, (picture, words) in enumerate(zip(pictures, _LABELS, strict=True)):
        left = index * (width + GAP)
        sheet[:, strip : strip + height, left : left + width] = picture
        label = sheet[:, :strip, left : left + width]
        draw_text(label, words, 2 * scale, 2 * scale, LABEL_COLOUR, scale)
    return sheet


def side_by_side_size(height: int, width: int) -> tuple[int, int]:
    """Returns the size of `side_by_side` for frames of this size; both even, as codecs need it."""
    tall, wide = _strip_height(width) + height, 3 * width + 2 * GAP
    return tall + tall % 2, wide + wide % 2


def _label_scale(width: int) -> int:
    """Returns the pixels per dot of the labels: a letter takes at most a twentieth of the width."""
    return max(1, width // 160)


def _strip_height(width: int) -> int:
    return (GLYPH_HEIGHT + 4) * _label_scale(width)
