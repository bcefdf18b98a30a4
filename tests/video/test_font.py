"""The font of the procedural clips and of labels."""

from __future__ import annotations

import numpy as np

from wfvae.video.synthetic.font import GLYPH_HEIGHT, draw_text, text_mask, text_size


def test_font_draws_every_printable_character_differently() -> None:
    drawn = {text_mask(chr(code)).tobytes() for code in range(32, 127)}
    assert len(drawn) == 95
    assert np.array_equal(text_mask("é"), text_mask("?"))


def test_text_is_cut_at_the_borders() -> None:
    assert text_mask("Ab\nc", 2).shape == text_size("Ab\nc", 2) == (36, 22)
    picture = np.zeros((2, 10, 10, 3), dtype=np.uint8)
    draw_text(picture, "HH", -2, -3, (9, 8, 7))
    assert (picture.reshape(-1, 3).max(axis=0) == (9, 8, 7)).all()
    assert not picture[:, GLYPH_HEIGHT - 2 :].any()
    before = picture.copy()
    for top, left in ((-50, 0), (0, -50), (50, 0), (0, 50)):
        draw_text(picture, "H", top, left, (1, 1, 1))
    assert np.array_equal(picture, before)
