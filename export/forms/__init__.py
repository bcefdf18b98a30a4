"""The forms of convolution that an export may choose: a file here and a line in `FORMS` each, and
the one that each target has by default.
"""

from dataclasses import dataclass

from wfvae.export.forms import minimal_filtering, subpixel, volume
from wfvae.export.forms.form import Choice, Convolution, Form


@dataclass(frozen=True)
class FormSet:
    """The forms of a graph."""

    choices: tuple[Choice, ...] = ()
    """In order of preference. Convolutions that none of them fits are computed tap by tap."""
    volumes: bool = False
    """Whether the graph holds frames as (B, C, T, H, W), which 3-D convolutions take."""

    def choose(self, convolution: Convolution) -> Form | None:
        """Returns the first form that fits, or None: as the network does it, tap by tap."""
        forms = (choose(convolution) for choose in self.choices)
        return next((form for form in forms if form is not None), None)


FORMS: dict[str, FormSet] = {
    "minimal": FormSet((minimal_filtering.choose, subpixel.choose)),
    "plain": FormSet(),
    "volume": FormSet((volume.choose,), volumes=True),
    "mixed": FormSet((volume.choose_narrow,), volumes=True),
}
"""For each value of `ExportOptions.convolutions`."""

TARGETS = {"auto": "minimal", "cpu": "minimal", "openvino": "mixed", "gpu": "plain"}
"""The key of `FORMS` for each value of `ExportOptions.target`, by docs/performance.md. On GPUs
nothing is measured yet; `plain` needs no memory beside the frames.
"""
