"""The forms that an export may choose. A new one is a file in this folder and an entry here."""

from __future__ import annotations

from wfvae.export.forms import minimal_filtering, subpixel
from wfvae.export.forms.form import Choice, Convolution, Form

FORMS: dict[str, tuple[Choice, ...]] = {
    "minimal": (minimal_filtering.choose, subpixel.choose),
    "plain": (),
}
"""For each value of `ExportOptions.convolutions`, the forms in order of preference.

A convolution that none of them fits is computed as the network does it, tap by tap.
"""


def choose_form(convolutions: str, convolution: Convolution) -> Form | None:
    """Returns the first form that fits, or None."""
    for choose in FORMS[convolutions]:
        if (form := choose(convolution)) is not None:
            return form
    return None
