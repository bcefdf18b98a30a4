"""The forms of convolution that an export may choose: a file here and a line in `FORMS` each."""

from wfvae.export.forms import minimal_filtering, subpixel
from wfvae.export.forms.form import Choice, Convolution, Form

FORMS: dict[str, tuple[Choice, ...]] = {"minimal": (minimal_filtering.choose, subpixel.choose), "plain": ()}
"""For each value of `ExportOptions.convolutions`, the forms in order of preference."""


def choose_form(convolutions: str, convolution: Convolution) -> Form | None:
    """Returns the first form that fits, or None: as the network does it, tap by tap."""
    forms = (choose(convolution) for choose in FORMS[convolutions])
    return next((form for form in forms if form is not None), None)
