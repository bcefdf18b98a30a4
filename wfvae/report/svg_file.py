"""Plots and pictures one below the other as a file of its own, readable in light and dark and by
plain SVG viewers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from wfvae.errors import InputError, ResourceError

MARGIN = 16
_TITLE, _LINE, _GAP = 38, 19, 16
_LINE_CHARACTERS = 7.0
"""Pixels that a character of a note takes, at most on average: notes are broken into lines by this."""

_STYLE = """
.paper{fill:#fff}
text{fill:#1b1f27;font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.title{font-size:17px;font-weight:650}.panel{font-size:14px;font-weight:600}
.tick,.axis,.note{fill:#5b6472}.value{font-size:11px}.callout{fill:#b4562b;font-weight:600}
.grid{stroke:#dfe3e9;stroke-width:1}.line{fill:none;stroke:#1f6fb2;stroke-width:1.8;stroke-linejoin:round}
.band{fill:#1f6fb2;opacity:.2}.dot{fill:#1f6fb2}.mean{stroke:#b4562b;stroke-width:1.4;stroke-dasharray:6 4}
.bar{fill:#1f6fb2}.bar.second{fill:revert-layer;stroke:#b4562b}.hatch-ground{fill:#fff}.hatch-line{fill:#b4562b}
@media (prefers-color-scheme:dark){.paper{fill:#1a1f26}text{fill:#e7eaef}.tick,.axis,.note{fill:#9aa5b4}.callout{fill:#f0a277}
.grid{stroke:#2d343f}.line{stroke:#66b2f2}.band,.dot,.bar{fill:#66b2f2}.mean{stroke:#f0a277}
.bar.second{fill:revert-layer;stroke:#f0a277}.hatch-ground{fill:#1a1f26}.hatch-line{fill:#f0a277}}
"""


@dataclass(frozen=True)
class Panel:
    """A drawing with its heading."""

    heading: str
    svg: str
    """An `<svg>` element with a viewBox from 0 0, as the functions of `svg_plots` give."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the viewBox."""
        found = re.match(r'<svg\b[^>]*\bviewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)
        if found is None:
            raise InputError(f"the panel '{self.heading}' is no SVG element with a viewBox from 0 0")
        return float(found[1]), float(found[2])


def svg_file(title: str, notes: Sequence[str], panels: Sequence[Panel]) -> str:
    """A complete SVG file: title, notes, and the panels below, each as wide as its viewBox."""
    width = max((panel.size[0] for panel in panels), default=600.0) + 2 * MARGIN
    y = float(MARGIN + _TITLE)
    parts = [f'<text class="title" x="{MARGIN}" y="{MARGIN + 16}">{escape(title)}</text>']
    for line in (
        line for note in notes for line in _wrapped(note, int((width - 2 * MARGIN) / _LINE_CHARACTERS))
    ):
        parts.append(f'<text class="note" x="{MARGIN}" y="{y:.0f}">{escape(line)}</text>')
        y += _LINE
    for panel in panels:
        panel_width, panel_height = panel.size
        y += _GAP
        parts.append(f'<text class="panel" x="{MARGIN}" y="{y + 6:.0f}">{escape(panel.heading)}</text>')
        y += _GAP
        place = f'<svg x="{MARGIN}" y="{y:.0f}" width="{panel_width:g}" height="{panel_height:g}"'
        parts.append(panel.svg.replace("<svg", place, 1))
        y += panel_height
    height = y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
        f' height="{height:g}" role="img" aria-label="{escape(title)}"><style>{_STYLE}</style><rect'
        f' class="paper" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


def picture(image_uri: str, width: int, height: int, label: str) -> str:
    """A raster picture, given as a data URI, as an SVG element of this size; pixels stay sharp when
    it is enlarged.
    """
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"'
        f' xmlns="http://www.w3.org/2000/svg"><image href="{image_uri}" width="{width}" height="{height}"'
        ' style="image-rendering:pixelated"/></svg>'
    )


def write_svg(path: Path, content: str) -> None:
    """Writes a file under a temporary name and renames it. Raises `ResourceError` where that fails."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}; choose another place") from error


def _wrapped(text: str, characters: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= characters:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
