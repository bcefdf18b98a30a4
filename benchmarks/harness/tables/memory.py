"""Tables of memory, overhead and scale."""

from __future__ import annotations

from harness.tables.format import (
    JOBS,
    Result,
    machine_line,
    markdown_table,
    missing,
    number,
    percent,
    table,
    unique,
)


@table("memory", "memory-cpu")
def memory(result: Result) -> str:
    """Peak memory of the program by the length of the video."""
    lines = [
        [
            f"`wfvae {row['job']}`, preset {row['preset']}, {row['size']}x{row['size']}",
            " / ".join(f"{int(frames):,}" for frames in row["peak_mb"]),
            " / ".join(f"{peak:,.0f} MB" for peak in row["peak_mb"].values()),
            f"{row['ratio']:.2f}",
        ]
        for row in result["rows"]
    ]
    return markdown_table(["", "frames", "peak memory", "ratio"], lines) + machine_line(result)


@table("overhead", "overhead-cpu")
def overhead(result: Result) -> str:
    """Share of a job's time that is spent outside the engine."""
    lines = [
        [row["job"], f"{number(row['seconds'])} s", percent(row["outside_engine"])] for row in result["rows"]
    ]
    job = result["job"]
    clip = f"preset {job['preset']}, {job['frames']} frames of {job['size']}x{job['size']}, H.264"
    return markdown_table(["", "wall time", "outside the engine"], lines) + machine_line(result, clip)


@table("scale", "scale-cpu")
def scale(result: Result) -> str:
    """Time per frame and memory, streamed and in one piece."""
    rows = [row for section in result["sections"].values() for row in section]
    keys = ("preset", "frames", "size", "rows")
    lines = []
    for job in unique(tuple(row.get(key) for key in keys) for row in rows):
        same = [row for row in rows if tuple(row.get(key) for key in keys) == job]
        preset, frames, size, count = job
        for way in unique(row["way"] for row in same):
            found = {row["direction"]: row for row in same if row["way"] == way}
            label = f"{count} streams in a batch" if way == "pool" else way
            line = [preset, f"{frames:,}", f"{size}x{size}", label.replace("1 streams", "1 stream")]
            problems = [row for row in found.values() if "not_measured" in row]
            cells = [number(found[direction]["ms_per_frame"]) for direction in JOBS] if not problems else []
            cells += [f"{found[direction]['peak_mb']:,.0f}" for direction in JOBS] if not problems else []
            lines.append([*line, *(cells or missing(problems[0], 4))])
    units = ("encode, ms per frame", "decode, ms per frame", "encode, peak MB", "decode, peak MB")
    return markdown_table(["preset", "frames", "size", "way", *units], lines, texts=4) + machine_line(result)
