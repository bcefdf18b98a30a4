"""Tables of encoding data sets."""

from harness.tables.format import Result, markdown_table, table

_LOOP = "loop"


@table("datasets", "datasets-cpu")
def datasets(result: Result) -> str:
    """Throughput of the engines of `encode-dataset` against a loop over videos."""
    job, rows = result["job"], result["rows"]
    loop = next(row["frames_per_second"] for row in rows if row["job"] == _LOOP)
    cells = []
    for row in rows:
        engine, _, workers = row["job"].partition(", ")
        name = "a loop of `encode_video`" if engine == _LOOP else f"`--engine {engine} --workers {workers}`"
        outside = f"{row['outside_engine']:.0%}" if "outside_engine" in row else "–"
        speed = row["frames_per_second"]
        cells.append((name, f"{speed:.1f}", f"{speed / loop:.2f} x", outside))
    start = result["ray_start_seconds"]
    ray = f" Ray's own start takes {start:.1f} s more." if start else ""
    size = f"{job['videos']} videos of about {job['frames']} frames {job['size']}x{job['size']}"
    header = ("", "frames/s", "relative", "outside the engine")
    cpu, runs = result["machine"]["cpu"], rows[0]["runs"]
    caption = f"Tiny model, {size}, one thread per worker; {cpu}, medians of {runs}."
    return f"{markdown_table(header, cells)}\n\n{caption}{ray}"


@table("datasets-memory", "datasets-cpu")
def datasets_memory(result: Result) -> str:
    """Memory of a long run."""
    memory = result["memory"]
    cells = [
        (
            f"{memory['videos']:,}",
            f"{memory['after_a_tenth_mb']:.0f} MB",
            f"{memory['peak_mb']:.0f} MB",
            f"{memory['videos_per_second']:.1f}",
        )
    ]
    header = ("short videos (5 frames 64x64)", "peak of the first tenth", "peak", "videos/s")
    return markdown_table(header, cells, texts=0)
