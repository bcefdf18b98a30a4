"""Tables of speed: engines, streams, forms of convolution, a server under load."""

import textwrap

from harness.tables.format import (
    FORMS,
    JOBS,
    Result,
    Row,
    machine_line,
    markdown_table,
    number,
    pivot_table,
    table,
    times,
)


@table("speed", "speed-cpu", "speed-cpu-avx2")
def speed(result: Result, older: Result | None = None) -> str:
    """The README's: how many times as fast as the published form each engine is."""
    cells = []
    for facts, suffix in ((result, ""), (older, ", CPU without AVX-512")):
        for row in facts["rows"] if facts else ():
            if row["speed_by_reference"] and not row["frames_per_push"] and row["engine"] != "reference":
                clip = f"{row['size']}x{row['size']}, {JOBS[row['direction']]}"
                cells.append(([FORMS[row["engine"]] + suffix], clip, times(row["speed_by_reference"])))
    first = result["rows"][0]
    runs = f"preset {result['preset']}, {first['frames']} frames, medians of {first['turns']} turns"
    return pivot_table([""], cells) + machine_line(result, runs)


def _clip(row: Row) -> list[str]:
    return [f"{row['frames']} frames, {row['size']}x{row['size']}, {JOBS[row['direction']]}"]


@table("seconds", "speed-cpu")
def seconds(result: Result) -> str:
    """Seconds of whole clips."""
    rows = [row for row in result["rows"] if not row["frames_per_push"]]
    cells = ((_clip(row), FORMS[row["engine"]], number(row["seconds"])) for row in rows)
    return pivot_table(["seconds"], cells) + machine_line(result)


@table("streams", "speed-cpu")
def streams(result: Result) -> str:
    """Time of a stream by that of the whole clip on the same engine."""
    cells = (
        (_clip(row), f"{FORMS[row['engine']]}, {_push(row)}", times(row["time_by_direct"]))
        for row in result["rows"]
        if row["frames_per_push"]
    )
    return pivot_table(["stream / whole clip"], cells)


def _push(row: Row) -> str:
    whole = row["frames_per_push"] == row["frames"]
    return "in one call" if whole else f"{row['frames_per_push']} frames per push"


@table("forms", "forms-cpu")
def forms(result: Result) -> str:
    """Speed of each form of a layer by the network's own."""
    cells = []
    for row in result["rows"]:
        if row["speed_by_networks_form"] != 1:
            place = "x".join(map(str, row["shape"][1:]))
            text = times(row["speed_by_networks_form"])
            cells.append(([row["layer"], place, row["form"]], FORMS[row["engine"]], text))
    return pivot_table(["layer", "input (T, C, H, W)", "form"], cells) + machine_line(result)


CAPTION_WIDTH = 100
"""Columns of a long caption's lines in a document."""


@table("triton-load", "triton-load-cpu")
def triton_load(result: Result) -> str:
    """Clients of one Triton server: speed, latency, memory, and whether all results were right."""
    job, lines = result["job"], []
    for row in result["rows"]:
        latencies = [
            " / ".join(number(1000 * seconds) for seconds in row["latency_seconds"].get(direction, ())) or "–"
            for direction in JOBS
        ]
        wrong = row["wrong_answers"] + len(row["failures"])
        counts = [f"{row['killed']}", f"{row['checked_answers']:,}", f"{wrong}"]
        cells = [number(row["frames_per_second"]), *latencies, f"{row['peak_mb']:,.0f} MB", *counts]
        lines.append([str(row["clients"]), *cells])
    shares = " / ".join(map(str, job["percentiles"]))
    columns = [
        "clients",
        "frames/s",
        f"ms per encode request, {shares} %",
        f"ms per decode request, {shares} %",
    ]
    columns += ["memory", "killed", "answers checked", "wrong or failed"]
    clip = f"preset tiny, {job['size']}x{job['size']}, {job['latents']} latents per request"
    alone = f"in one process without a server {number(result['frames_per_second_in_process'])} frames/s"
    load = f"load average before {number(result['machine']['load_average'])}"
    caption = textwrap.fill(
        machine_line(result, job["server"], clip, f"{job['seconds']:g} s or more each", alone, load).strip(),
        CAPTION_WIDTH,
    )
    return markdown_table(columns, lines, texts=0) + f"\n{caption}\n"
