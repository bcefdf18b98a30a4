"""Input, reconstruction and amplified difference next to one another, with labels: the frames of
the demo's video.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError
from wfvae.video.synthetic.font import GLYPH_HEIGHT, draw_text, text_size

Frames = npt.NDArray[np.uint8]

GAP = 4
"""Pixels between the pictures."""

BACKGROUND = (24, 26, 31)
LABEL_COLOUR = (226, 228, 233)
DIFFERENCE_ZERO = 128
"""Grey level of the difference picture where input and reconstruction are equal."""

MAX_GAIN = 255


def difference(reference: Frames, reconstruction: Frames, gain: int) -> Frames:
    """The signed difference as a picture: 128 + gain * (reconstruction - reference), clipped to
    0..255.

    Args:
        reference, reconstruction: uint8 of the same shape.
        gain: amplification, 1..255.

    Raises:
        InputError: the shapes or types differ from the above, or the gain is out of range.
    """
    _check(reference, reconstruction)
    if isinstance(gain, bool) or not isinstance(gain, int | np.integer) or not 1 <= gain <= MAX_GAIN:
        raise InputError(
            f"gain is {gain!r}; expected an integer in 1..{MAX_GAIN}, the factor by which differences are"
            " amplified"
        )
    signed = reconstruction.astype(np.int32) - reference
    amplified: Frames = np.clip(signed * int(gain) + DIFFERENCE_ZERO, 0, 255).astype(np.uint8)
    return amplified


def side_by_side(reference: Frames, reconstruction: Frames, gain: int = 8) -> Frames:
    """Compose frames as input | reconstruction | difference under a strip of labels.

    Args:
        reference, reconstruction: (T, H, W, 3) uint8.
        gain: amplification of the difference, see `difference`; the label states it.

    Returns:
        (T, H', W', 3) uint8 with H', W' = `side_by_side_size(H, W)`, both even as video codecs need
        them. The pictures keep their size and their pixels; the strip of labels stands above them.

    Raises:
        InputError: as `difference`, or not (T, H, W, 3).
    """
    _check(reference, reconstruction)
    if reference.ndim != 4 or reference.shape[-1] != 3:
        raise InputError(f"frames have shape {reference.shape}; expected (T, H, W, 3)")
    count, height, width = (int(n) for n in reference.shape[:3])
    sheet = np.empty((count, *side_by_side_size(height, width), 3), dtype=np.uint8)
    sheet[:] = np.array(BACKGROUND, dtype=np.uint8)
    scale, strip = _label_scale(width), _strip_height(width)
    pictures = (reference, reconstruction, difference(reference, reconstruction, gain))
    for index, (picture, words) in enumerate(zip(pictures, _labels(width, scale, gain), strict=True)):
        left = index * (width + GAP)
        sheet[:, strip : strip + height, left : left + width] = picture
        label = sheet[:, :strip, left : left + width]
        draw_text(label, words, 2 * scale, 2 * scale, LABEL_COLOUR, scale)
    return sheet


def side_by_side_size(height: int, width: int) -> tuple[int, int]:
    """Height and width, both even, of what `side_by_side` makes of frames of this size."""
    tall, wide = _strip_height(width) + height, 3 * width + 2 * GAP
    return tall + tall % 2, wide + wide % 2


def _label_scale(width: int) -> int:
    """Pixels per dot of the labels: about a twentieth of the picture's width per letter at most."""
    return max(1, width // 160)


def _strip_height(width: int) -> int:
    """Height of the strip of labels, in pixels."""
    return (GLYPH_HEIGHT + 4) * _label_scale(width)


def _labels(width: int, scale: int, gain: int) -> tuple[str, str, str]:
    """The longest set of labels that fits above pictures of this width; on tiny pictures it is cut
    off.
    """
    sets = (
        ("Input", "Reconstruction", f"Difference x{gain}"),
        ("Input", "Recon.", f"Diff. x{gain}"),
        ("In", "Out", f"x{gain}"),
    )
    for words in sets:
        if max(text_size(word, scale)[1] for word in words) + 4 * scale <= width:
            return words
    return sets[-1]


def _check(reference: Frames, reconstruction: Frames) -> None:
    """Raise InputError unless both are uint8 of one shape."""
    if reference.dtype != np.uint8 or reconstruction.dtype != np.uint8:
        raise InputError(f"frames are {reference.dtype} and {reconstruction.dtype}; expected uint8 for both")
    if reference.shape != reconstruction.shape:
        raise InputError(
            f"reference is {reference.shape} but reconstruction is {reconstruction.shape}; expected the same"
            " shape"
        )
