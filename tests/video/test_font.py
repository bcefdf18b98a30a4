"""The font of the procedural clips and of labels."""

import numpy as np

from wfvae.video.synthetic.font import draw_text, text_mask, text_size


def test_font_draws_every_printable_character_differently() -> None:
    drawn = {text_mask(chr(code)).tobytes() for code in range(32, 127)}
    assert len(drawn) == 95
    assert np.array_equal(text_mask("é"), text_mask("?"))


def test_text_is_cut_at_the_borders() -> None:
    assert text_mask("Ab\nc", 2).shape == text_size("Ab\nc", 2) == (36, 22)
    picture = np.zeros((2, 10, 10, 3), dtype=np.uint8)
    for top, left in ((4, 3), (50, 0), (0, 50)):
        draw_text(picture, "HH", top, left, (9, 8, 7))
    inked = (picture == (9, 8, 7)).all(axis=(0, 3))
    assert np.array_equal(inked[4:, 3:], text_mask("HH")[:6, :7])
    assert not picture[:, :4].any() and not picture[:, :, :3].any()
