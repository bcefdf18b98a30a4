"""A built-in bitmap font for labels in pictures: printable ASCII, cells of 5 x 8 dots, no font file
and no imaging library.

A cell has the cap height in rows 0..6 and one row of descender (row 7). Text advances by 6 columns
and 10 rows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError

GLYPH_WIDTH = 5
GLYPH_HEIGHT = 8
ADVANCE = GLYPH_WIDTH + 1
LINE_HEIGHT = GLYPH_HEIGHT + 2

Mask = npt.NDArray[np.uint8]

# One band per 8 rows; each line holds one row of every glyph in the band, cells separated by a
# space, '#' = ink. Kept as a drawing so that a wrong dot is seen by eye. The first line of a band
# names its glyphs.
_BANDS = (
    (
        "ABCDEFGHIJKLM",
        """
.###. ####. .###. ####. ##### ##### .###. #...# .###. ..### #...# #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. ...#. #..#. #.... ##.##
#...# #...# #.... #...# #.... #.... #.... #...# ..#.. ...#. #.#.. #.... #.#.#
##### ####. #.... #...# ####. ####. #.### ##### ..#.. ...#. ##... #.... #.#.#
#...# #...# #.... #...# #.... #.... #...# #...# ..#.. ...#. #.#.. #.... #...#
#...# #...# #...# #...# #.... #.... #...# #...# ..#.. #..#. #..#. #.... #...#
#...# ####. .###. ####. ##### #.... .###. #...# .###. .##.. #...# ##### #...#
..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....
""",
    ),
    (
        "NOPQRSTUVWXYZ",
        """
#...# .###. ####. .###. ####. .#### ##### #...# #...# #...# #...# #...# #####
##..# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# #...# #...# ....#
#.#.# #...# #...# #...# #...# #.... ..#.. #...# #...# #...# .#.#. .#.#. ...#.
#..## #...# ####. #...# ####. .###. ..#.. #...# #...# #.#.# ..#.. ..#.. ..#..
#...# #...# #.... #.#.# #.#.. ....# ..#.. #...# #...# #.#.# .#.#. ..#.. .#...
#...# #...# #.... #..#. #..#. ....# ..#.. #...# .#.#. ##.## #...# ..#.. #....
#...# .###. #.... .##.# #...# ####. ..#.. .###. ..#.. #...# #...# ..#.. #####
..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....
""",
    ),
    (
        "abcdefghijklm",
        """
..... #.... ..... ....# ..... ..##. ..... #.... ..#.. ...#. #.... .##.. .....
..... #.... ..... ....# ..... .#... ..... #.... ..... ..... #.... ..#.. .....
.###. ####. .###. .#### .###. ####. .#### ####. .##.. ..##. #..#. ..#.. ##.#.
....# #...# #.... #...# #...# .#... #...# #...# ..#.. ...#. #.#.. ..#.. #.#.#
.#### #...# #.... #...# ##### .#... #...# #...# ..#.. ...#. ##... ..#.. #.#.#
#...# #...# #...# #...# #.... .#... .#### #...# ..#.. ...#. #.#.. ..#.. #.#.#
.#### ####. .###. .#### .###. .#... ....# #...# .###. ...#. #..#. .###. #.#.#
..... ..... ..... ..... ..... ..... .###. ..... ..... .##.. ..... ..... .....
""",
    ),
    (
        "nopqrstuvwxyz",
        """
..... ..... ..... ..... ..... ..... .#... ..... ..... ..... ..... ..... .....
..... ..... ..... ..... ..... ..... .#... ..... ..... ..... ..... ..... .....
####. .###. ####. .#### #.##. .#### ####. #...# #...# #...# #...# #...# #####
#...# #...# #...# #...# ##..# #.... .#... #...# #...# #...# .#.#. #...# ...#.
#...# #...# #...# #...# #.... .###. .#... #...# #...# #.#.# ..#.. #...# ..#..
#...# #...# ####. .#### #.... ....# .#... #..## .#.#. #.#.# .#.#. .#### .#...
#...# .###. #.... ....# #.... ####. ..##. .##.# ..#.. .#.#. #...# ....# #####
..... ..... #.... ....# ..... ..... ..... ..... ..... ..... ..... .###. .....
""",
    ),
    (
        "0123456789+-=",
        """
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###. ..... ..... .....
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...# ..#.. ..... .....
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...# ..#.. ..... #####
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .#### ##### ##### .....
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....# ..#.. ..... #####
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#. ..#.. ..... .....
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##.. ..... ..... .....
..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .....
""",
    ),
    (
        " !\"#$%&'()*,.",
        """
..... ..#.. .#.#. .#.#. ..#.. ##..# .##.. ..#.. ...#. .#... ..... ..... .....
..... ..#.. .#.#. .#.#. .#### ##..# #..#. ..#.. ..#.. ..#.. ..#.. ..... .....
..... ..#.. .#.#. ##### #.#.. ...#. #.#.. ..#.. .#... ...#. #.#.# ..... .....
..... ..#.. ..... .#.#. .###. ..#.. .#... ..... .#... ...#. .###. ..... .....
..... ..#.. ..... ##### ..#.# .#... #.#.# ..... .#... ...#. #.#.# ..... .....
..... ..... ..... .#.#. ####. #..## #..#. ..... ..#.. ..#.. ..#.. .##.. .##..
..... ..#.. ..... .#.#. ..#.. #..## .##.# ..... ...#. .#... ..... ..#.. .##..
..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... .#... .....
""",
    ),
    (
        "/:;<>?@[\\]^_`",
        """
....# ..... ..... ...#. .#... .###. .###. .###. #.... .###. ..#.. ..... .#...
....# .##.. .##.. ..#.. ..#.. #...# #...# .#... #.... ...#. .#.#. ..... ..#..
...#. .##.. .##.. .#... ...#. ....# #.### .#... .#... ...#. #...# ..... .....
..#.. ..... ..... #.... ....# ...#. #.#.# .#... ..#.. ...#. ..... ..... .....
.#... ..... .##.. .#... ...#. ..#.. #.### .#... ...#. ...#. ..... ..... .....
#.... .##.. ..#.. ..#.. ..#.. ..... #.... .#... ....# ...#. ..... ..... .....
#.... .##.. .#... ...#. .#... ..#.. .###. .###. ....# .###. ..... ..... .....
..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ..... ##### .....
""",
    ),
    (
        "{|}~",
        """
...## ..#.. ##... .....
..#.. ..#.. ..#.. .....
..#.. ..#.. ..#.. .#..#
.#... ..#.. ...#. #.#.#
..#.. ..#.. ..#.. #..#.
..#.. ..#.. ..#.. .....
...## ..#.. ##... .....
..... ..... ..... .....
""",
    ),
)


@lru_cache(maxsize=1)
def _glyphs() -> dict[str, Mask]:
    """Every glyph as a (GLYPH_HEIGHT, GLYPH_WIDTH) uint8 array of 0 and 1, keyed by its character."""
    glyphs: dict[str, Mask] = {}
    for characters, drawing in _BANDS:
        rows = [line.split(" ") for line in drawing.strip().splitlines()]
        for column, character in enumerate(characters):
            glyphs[character] = np.array(
                [[dot == "#" for dot in row[column]] for row in rows], dtype=np.uint8
            )
    return glyphs


def text_size(text: str, scale: int = 1) -> tuple[int, int]:
    """The (height, width) in pixels that `text_mask` gives for this text."""
    lines = text.split("\n")
    longest = max(len(line) for line in lines)
    return (LINE_HEIGHT * (len(lines) - 1) + GLYPH_HEIGHT) * scale, max(longest * ADVANCE - 1, 0) * scale


def text_mask(text: str, scale: int = 1) -> Mask:
    """Draw text as a mask.

    Args:
        text: printable ASCII; a line feed starts a new line; any other character is drawn as "?".
        scale: pixels per dot, >= 1.

    Returns:
        (height, width) uint8, 1 where there is ink and 0 elsewhere; the size is `text_size(text,
        scale)`.

    Raises:
        InputError: scale < 1.
    """
    if scale < 1:
        raise InputError(f"scale is {scale}; expected the pixels per dot of the font, 1 or more")
    glyphs = _glyphs()
    height, width = text_size(text)
    mask = np.zeros((height, width), dtype=np.uint8)
    for row, line in enumerate(text.split("\n")):
        for column, character in enumerate(line):
            glyph = glyphs.get(character, glyphs["?"])
            top, left = row * LINE_HEIGHT, column * ADVANCE
            mask[top : top + GLYPH_HEIGHT, left : left + GLYPH_WIDTH] = glyph
    return mask.repeat(scale, axis=0).repeat(scale, axis=1)


def draw_text(
    image: npt.NDArray[np.uint8], text: str, top: int, left: int, colour: tuple[int, int, int], scale: int = 1
) -> None:
    """Draw text into a picture, in place; what falls outside the picture is cut off.

    Args:
        image: (H, W, 3) uint8 or any batch of it, (..., H, W, 3): the same label goes on every
            picture.
        text, scale: as for `text_mask`.
        top, left: pixel position of the text's upper left corner, may be negative.
        colour: red, green, blue, each 0..255.

    Raises:
        InputError: image is not (..., H, W, 3) uint8, or scale < 1.
    """
    if image.ndim < 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"image is {image.dtype} of shape {image.shape}; expected uint8 of shape (..., H, W, 3)"
        )
    mask = text_mask(text, scale)
    height, width = image.shape[-3:-1]
    first_row, first_column = max(0, -top), max(0, -left)
    mask = mask[first_row : max(first_row, height - top), first_column : max(first_column, width - left)]
    top, left = max(top, 0), max(left, 0)
    window = image[..., top : top + mask.shape[0], left : left + mask.shape[1], :]
    window[..., mask.astype(bool), :] = np.array(colour, dtype=np.uint8)
