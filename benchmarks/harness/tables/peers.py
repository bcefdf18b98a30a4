"""Tables of other autoencoders."""

import statistics
from collections.abc import Iterable

from harness.tables.format import (
    Result,
    Row,
    machine_line,
    markdown_table,
    missing,
    number,
    small,
    table,
    unique,
)

Clip = tuple[int, int]
"""Frames, and height and width."""
DIRECTIONS = ("encode", "decode")


def measured_clips(result: Result) -> list[Clip]:
    """Returns the clips of a result, short and small ones first."""
    found = (clip for row in result["rows"] for clip in row["clips"] if clip["runs"])
    return sorted(unique((clip["frames"], clip["size"]) for clip in found))


def measured(row: Row, clip: Clip, direction: str, key: str) -> float | str | None:
    """Returns the median of a row's runs, the reason why there is none, or None if it was not run.

    `key` is "peak_mb", or "ms" for milliseconds per frame.
    """
    found = next((case for case in row["clips"] if (case["frames"], case["size"]) == clip), None)
    if found is None:
        return None
    parts = [run[direction] for run in found["runs"]]
    done = [part for part in parts if "not_measured" not in part]
    if not done:
        reason: str | None = (parts or [found])[0].get("not_measured")
        return reason
    if key == "ms":
        return statistics.median(part["seconds"] for part in done) / found["frames_taken"] * 1e3
    return float(statistics.median(part[key] for part in done))


def _cell(row: Row, clip: Clip, key: str) -> str:
    """Returns encode and decode, or once why both have no number."""
    found = [measured(row, clip, direction, key) for direction in DIRECTIONS]
    write = number if key == "ms" else "{:,.0f}".format
    words = [
        f"not measured: {value}" if isinstance(value, str) else "–" if value is None else write(value)
        for value in found
    ]
    return words[0] if found[0] == found[1] and not isinstance(found[0], float) else " / ".join(words)


def _name(row: Row) -> str:
    return row["title"] + (f", {row['version']}" if "version" in row else "")


def _clip_names(clips: Iterable[Clip]) -> list[str]:
    return [f"{frames} frames, {size}x{size}" for frames, size in clips]


def _caption(result: Result, unit: str) -> str:
    """Returns what the numbers are, how often they were measured, and which clips are shorter."""
    cases = [(row, case) for row in result["rows"] for case in row["clips"] if case["runs"]]
    counts = unique(sorted(len(case["runs"]) for _, case in cases))
    loads = [run["load_average"] for _, case in cases for run in case["runs"]]
    words = [f"{result['job']['mode']}, encode / decode, {unit}"]
    words.append("one run" if counts == [1] else f"medians of {' or '.join(map(str, counts))} runs")
    load = f"load {' to '.join(unique([f'{min(loads):.1f}', f'{max(loads):.1f}']))}"
    alone = max(loads) <= 2 * result["machine"]["cores"]
    words.append(load if alone else f"{load} by other programs: times are too long")
    shorter: dict[str, list[int]] = {}
    for row, case in cases:
        if case["frames_taken"] != case["frames"]:
            shorter.setdefault(row["title"], []).append(case["frames_taken"])
    for title, taken in shorter.items():
        words.append(f"{title}: {' and '.join(map(str, unique(taken)))} frames")
    return machine_line(result, *words)


@table("peers", "peers-cpu")
def peers(result: Result) -> str:
    """Time per frame of every clip."""
    clips = measured_clips(result)
    header = ["", "weights", "latent channels", "compression", "parameters, M", *_clip_names(clips)]
    lines = []
    for row in result["rows"]:
        if "not_measured" in row:
            lines.append([_name(row), *missing(row, len(header) - 1)])
            continue
        facts = [_name(row), row.get("weights", "random"), str(row.get("latent_channels", "–"))]
        facts.append("x".join(map(str, row.get("compression", ("–",)))))
        facts.append(number(row["parameters"] / 1e6 if "parameters" in row else None))
        lines.append([*facts, *(_cell(row, clip, "ms") for clip in clips)])
    return markdown_table(header, lines, texts=2) + _caption(result, "ms per frame")


@table("peers-memory", "peers-cpu")
def peers_memory(result: Result) -> str:
    """Peak memory of every clip."""
    clips = measured_clips(result)
    lines = []
    for row in result["rows"]:
        if "not_measured" not in row:
            lines.append([_name(row), *(_cell(row, clip, "peak_mb") for clip in clips)])
    return markdown_table(["", *_clip_names(clips)], lines) + _caption(result, "peak in MB")


@table("engines-memory", "peers-cpu")
def engines_memory(result: Result) -> str:
    """Peak memory of preset S on each engine."""
    rows = [row for row in result["rows"] if row["name"].startswith("wfvae-S/")]
    clips = measured_clips(result)
    names = [row["title"].removeprefix("WF-VAE-S ") for row in rows]
    lines = [
        [name, *(_cell(row, clip, "peak_mb") for row in rows)]
        for name, clip in zip(_clip_names(clips), clips, strict=True)
    ]
    return markdown_table(["", *names], lines) + machine_line(result, "encode / decode, peak in MB")


@table("blockwise", "blockwise")
def blockwise(result: Result) -> str:
    """Each method against its own direct inference."""
    header = ["method", "blocks", "weights", "PSNR to direct", "largest difference", "relative error"]
    lines = []
    for row in result["rows"]:
        name = f"{row['model']}, {row['mode']}"
        if "not_measured" in row:
            lines.append([name, *missing(row, len(header) - 1)])
            continue
        if row["equal_bits"]:
            cells = ["equal bits", "0", "0"]
        else:
            distance = f"{number(row['psnr_to_direct_db'])} dB"
            cells = [distance, small(row["max_abs"]), f"{number(100 * row['relative_error'])} %"]
        lines.append([name, row["blocks"], row["weights"], *cells])
    job = result["job"]
    text = f"\n{result['source'][0].upper()}{result['source'][1:]}; {job['frames']} frames of"
    text += f" {job['size']}x{job['size']}; peers' tiles divided by {job['tile_scale']}.\n"
    return markdown_table(header, lines, texts=3) + text
