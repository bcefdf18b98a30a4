"""A bitmap font for labels in pictures: printable ASCII in cells of 5 x 8 dots.

A cell has capitals in rows 0 to 6 and one row of descenders. Text advances by 6 columns and 10
rows. The glyphs are drawn in `font.txt`, in bands of nine lines: the characters of the band, then
its eight rows of dots, cells separated by a space, `#` for ink.
"""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

GLYPH_WIDTH = 5
GLYPH_HEIGHT = 8
ADVANCE = GLYPH_WIDTH + 1
LINE_HEIGHT = GLYPH_HEIGHT + 2

Mask = npt.NDArray[np.uint8]


@cache
def _glyphs() -> dict[str, Mask]:
    """Every glyph as a (GLYPH_HEIGHT, GLYPH_WIDTH) mask of 0 and 1."""
    lines = Path(__file__).with_name("font.txt").read_text(encoding="utf-8").splitlines()
    glyphs: dict[str, Mask] = {}
    for first in range(0, len(lines), GLYPH_HEIGHT + 1):
        characters, *rows = lines[first : first + GLYPH_HEIGHT + 1]
        ink = np.array([[dot == "#" for dot in row] for row in rows], dtype=np.uint8)
        for column, character in enumerate(characters):
            glyphs[character] = ink[:, column * ADVANCE : column * ADVANCE + GLYPH_WIDTH]
    return glyphs


def text_size(text: str, scale: int = 1) -> tuple[int, int]:
    """The (height, width) in pixels of the mask that `text_mask` returns."""
    lines = text.split("\n")
    longest = max(len(line) for line in lines)
    return (LINE_HEIGHT * (len(lines) - 1) + GLYPH_HEIGHT) * scale, max(longest * ADVANCE - 1, 0) * scale


def text_mask(text: str, scale: int = 1) -> Mask:
    """Draws text as a uint8 mask of shape `text_size(text, scale)`, 1 where there is ink.

    Args:
        text: printable ASCII; a line feed starts a new line; any other character is drawn as "?".
        scale: pixels per dot, >= 1.
    """
    glyphs = _glyphs()
    mask = np.zeros(text_size(text), dtype=np.uint8)
    for row, line in enumerate(text.split("\n")):
        for column, character in enumerate(line):
            top, left = row * LINE_HEIGHT, column * ADVANCE
            glyph = glyphs.get(character, glyphs["?"])
            mask[top : top + GLYPH_HEIGHT, left : left + GLYPH_WIDTH] = glyph
    return mask.repeat(scale, axis=0).repeat(scale, axis=1)


def draw_text(
    image: npt.NDArray[np.uint8], text: str, top: int, left: int, colour: tuple[int, int, int], scale: int = 1
) -> None:
    """Draws text into a picture, in place; what is beyond its right or lower border is cut off.

    Args:
        image: uint8 (..., H, W, 3); every picture of a batch gets the same label.
        text, scale: as for `text_mask`.
        top, left: pixel position of the text's upper left corner, >= 0.
    """
    mask = text_mask(text, scale)
    height, width = image.shape[-3:-1]
    mask = mask[: max(height - top, 0), : max(width - left, 0)]
    window = image[..., top : top + mask.shape[0], left : left + mask.shape[1], :]
    window[..., mask.astype(bool), :] = np.array(colour, dtype=np.uint8)
