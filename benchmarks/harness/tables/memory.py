"""Tables of memory, overhead and scale."""

from harness.tables.format import (
    FORMS,
    JOBS,
    Result,
    machine_line,
    markdown_table,
    missing,
    number,
    percent,
    pivot_table,
    table,
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


@table("startup", "startup-cpu")
def startup(result: Result) -> str:
    """Opening a bundle and its first decode, beside a warm one, and the peak of memory."""
    lines = []
    for row in result["rows"]:
        if "not_measured" in row:
            lines.append([FORMS[row["engine"]], *missing(row, 5)])
        else:
            seconds = (number(row[key]) for key in ("open_seconds", "first_seconds", "warm_seconds"))
            ratio = f"{row['start_less_1s_by_warm']:.2f} x"
            lines.append([FORMS[row["engine"]], *seconds, ratio, f"{row['peak_mb']:,.0f} MB"])
    columns = [
        "",
        "open, s",
        "first decode, s",
        "warm decode, s",
        "(open + first - 1 s) / warm",
        "peak memory",
    ]
    job = result["job"]
    clip = f"preset {job['preset']}, {job['frames']} frames of {job['size']}x{job['size']}"
    return markdown_table(columns, lines) + machine_line(result, clip, f"medians of {job['runs']} processes")


@table("scale", "scale-cpu")
def scale(result: Result) -> str:
    """Time per frame and memory, streamed and in one piece."""
    rows = [row for section in result["sections"].values() for row in section]
    cells = []
    for name, unit in (("ms_per_frame", "ms per frame"), ("peak_mb", "peak MB")):
        for row in rows:
            way = f"{row.get('rows')} streams in a batch" if row["way"] == "pool" else row["way"]
            texts = [row["preset"], f"{row['frames']:,}", f"{row['size']}x{row['size']}"]
            texts.append(way.replace("1 streams", "1 stream"))
            text = f"not measured: {row['not_measured']}" if "not_measured" in row else number(row[name])
            cells.append((texts, f"{JOBS[row['direction']]}, {unit}", text))
    return pivot_table(["preset", "frames", "size", "way"], cells) + machine_line(result)
