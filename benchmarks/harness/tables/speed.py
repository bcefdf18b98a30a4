"""Tables of speed: engines, streams, forms of convolution, roofs."""

from __future__ import annotations

from collections.abc import Sequence

from harness.tables.format import (
    FORMS,
    JOBS,
    Result,
    Row,
    machine_line,
    markdown_table,
    number,
    percent,
    table,
    times,
    unique,
)


@table("speed", "speed-cpu", "speed-cpu-avx2")
def speed(result: Result, older: Result | None = None) -> str:
    """The README's: how many times as fast as the published form each engine is."""
    clips = unique((row["frames"], row["size"]) for row in result["rows"] if row["speed_by_reference"])
    header = ["", *(f"{size}x{size}, {job}" for _, size in clips for job in JOBS.values())]
    lines = []
    for facts in (result, older):
        for engine in list(FORMS)[1:] if facts else ():
            cells = [
                times(_direct(facts["rows"], engine, direction, *clip).get("speed_by_reference"))
                for clip in clips
                for direction in JOBS
            ]
            if set(cells) != {"–"}:
                label = FORMS[engine] + ("" if facts is result else ", CPU without AVX-512")
                lines.append([label, *cells])
    runs = f"preset {result['preset']}, {clips[0][0]} frames, medians of {result['rows'][0]['turns']} turns"
    return markdown_table(header, lines) + machine_line(result, runs)


def _direct(rows: Sequence[Row], engine: str, direction: str, frames: int, size: int) -> Row:
    """Returns the row of a whole clip; empty if there is none."""
    wanted = (engine, direction, frames, size, None)
    keys = ("engine", "direction", "frames", "size", "frames_per_push")
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), {})


def _clip(frames: int, size: int, direction: str) -> str:
    return f"{frames} frames, {size}x{size}, {JOBS[direction]}"


@table("seconds", "speed-cpu")
def seconds(result: Result) -> str:
    """Seconds of whole clips."""
    rows = result["rows"]
    clips = unique((row["frames"], row["size"], row["direction"]) for row in rows)
    engines = [engine for engine in FORMS if any(row["engine"] == engine for row in rows)]
    lines = [
        [
            _clip(frames, size, direction),
            *(number(_direct(rows, engine, direction, frames, size).get("seconds")) for engine in engines),
        ]
        for frames, size, direction in clips
    ]
    return markdown_table(["seconds", *(FORMS[engine] for engine in engines)], lines) + machine_line(result)


@table("streams", "speed-cpu")
def streams(result: Result) -> str:
    """Time of a stream by that of the whole clip on the same engine."""
    rows = [row for row in result["rows"] if row["frames_per_push"]]
    columns = unique((row["engine"], row["frames_per_push"]) for row in rows)
    clips = unique((row["frames"], row["size"], row["direction"]) for row in rows)
    lines = []
    for clip in clips:
        found = {
            (row["engine"], row["frames_per_push"]): row["time_by_direct"]
            for row in rows
            if (row["frames"], row["size"], row["direction"]) == clip
        }
        lines.append([_clip(*clip), *(times(found.get(column)) for column in columns)])
    header = [f"{FORMS[engine]}, {push} frames per push" for engine, push in columns]
    return markdown_table(["stream / whole clip", *header], lines)


@table("forms", "forms-cpu")
def forms(result: Result) -> str:
    """Speed of each form of a layer by the network's own."""
    rows = result["rows"]
    engines = unique(row["engine"] for row in rows)
    lines = []
    for layer, shape, form in unique((row["layer"], tuple(row["shape"][1:]), row["form"]) for row in rows):
        found = {
            row["engine"]: row["speed_by_networks_form"]
            for row in rows
            if (row["layer"], tuple(row["shape"][1:]), row["form"]) == (layer, shape, form)
        }
        if set(found.values()) != {1.0}:
            place = "x".join(map(str, shape))
            lines.append([layer, place, form, *(times(found.get(engine)) for engine in engines)])
    header = ["layer", "input (T, C, H, W)", "form", *(FORMS[engine] for engine in engines)]
    return markdown_table(header, lines, texts=3) + machine_line(result)


@table("roofline", "roofline-cpu")
def roofline(result: Result) -> str:
    """Rates of whole graphs, and what they reach of their engine's roof."""
    header = ["", "GFLOP", "GFLOP/s", "of the best convolution"]
    lines = [
        [
            f"{FORMS[row['engine']]}, {JOBS[row['what']]}",
            number(row["flop"] / 1e9),
            number(row["gflop_per_second"]),
            percent(row["of_best_convolution"]),
        ]
        for row in result["rows"]
        if row["kind"] == "graph"
    ]
    job = result["job"]
    clip = f"preset {job['preset']}, {job['frames']} frames of {job['size']}x{job['size']}"
    return markdown_table(header, lines) + machine_line(result, clip)
