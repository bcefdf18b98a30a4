"""How tables are registered and their cells written."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

Result = Mapping[str, Any]
Row = Mapping[str, Any]
JOBS = {"encoder": "encode", "decoder": "decode"}
FORMS = {
    "reference": "published form",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime fp32",
    "openvino": "OpenVINO fp32",
    "openvino-bf16": "OpenVINO bf16",
}
_DIGITS = 3
_COLUMNS = 100

TABLES: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {}
"""By name: the function, and the result files that it takes."""


def table(name: str, *results: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Registers a function as the table `name` of these result files."""

    def register(function: Callable[..., str]) -> Callable[..., str]:
        TABLES[name] = (function, results)
        return function

    return register


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Returns a Markdown table; the first `texts` columns are text, the others numbers."""
    alignment = ["---"] * texts + ["--:"] * (len(header) - texts)
    lines = ["| " + " | ".join(line) + " |" for line in (header, alignment, *rows)]
    return "\n".join(lines) + "\n"


def pivot_table(header: Sequence[str], cells: Iterable[tuple[Sequence[str], str, str]]) -> str:
    """Arranges (row's texts, column, text); rows and columns are in order of their first cells."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for texts, column, text in cells:
        rows.setdefault(tuple(texts), {})[column] = text
    columns = unique(column for row in rows.values() for column in row)
    lines = [[*texts, *(row.get(column, "–") for column in columns)] for texts, row in rows.items()]
    return markdown_table([*header, *columns], lines, texts=len(header))


def cpu_text(facts: Mapping[str, Any]) -> str:
    """Returns the processor and what its features mean, for captions."""
    if "cpu_features" not in facts:
        return f"{facts['cpu']}, {facts['threads']} threads"
    names = {"avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
    words = [name for feature, name in names.items() if feature in facts["cpu_features"]]
    return f"{facts['cpu']} ({', '.join(words) or 'no AVX-512'}), {facts['threads']} threads"


def machine_line(result: Result, *words: str) -> str:
    """Returns a caption, in lines that are not too long for documents."""
    text = "; ".join([cpu_text(result["machine"]), *words])
    return f"\n{fill(text, _COLUMNS - 1, break_on_hyphens=False)}.\n"


def number(value: float | None) -> str:
    """Formats a number with three digits or as a whole; – for None."""
    if value is None:
        return "–"
    decimals = _DIGITS - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(decimals, 0)}f}"


def times(value: float | None) -> str:
    """Formats a ratio; – for None."""
    return "–" if value is None else f"{value:.2f} x"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def small(value: float | None) -> str:
    """Formats a difference with two digits; – for None."""
    return "–" if value is None else f"{value:.2g}"


def unique(values: Iterable[Any]) -> list[Any]:
    """Returns different values in the order in which they first appear."""
    return list(dict.fromkeys(values))


def missing(row: Row, width: int) -> list[str]:
    """Returns the cells of a row that was not measured."""
    return [f"not measured: {row['not_measured']}", *[""] * (width - 1)]
