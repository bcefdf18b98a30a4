"""Tables of encoding data sets."""

from harness.tables.format import Result, markdown_table, table

_TITLES = {"loop": "a loop over `encode_video`, in one process", "processes": "`wfvae encode` for each video"}


@table("datasets", "datasets-cpu")
def datasets(result: Result) -> str:
    """Throughput of the engines of `encode-dataset` against a loop over videos."""
    job, rows = result["job"], result["rows"]
    cells = []
    for row in rows:
        engine, _, workers = row["job"].partition(", ")
        outside = f"{row['outside_engine']:.0%}" if "outside_engine" in row else "–"
        scaling = f"{row['scaling']:.2f} x" if "scaling" in row else "–"
        start = f"{row['one_video_seconds']:.1f} s" if "one_video_seconds" in row else "–"
        cells.append(
            (
                _TITLES.get(engine, f"`--engine {engine} --workers {workers}`"),
                f"{row['frames_per_second']:.0f}",
                f"{row['relative']:.2f} x",
                scaling,
                outside,
                start,
            )
        )
    start = result["ray_start_seconds"]
    ray = f" Ray's own start takes {start:.1f} s more." if start else ""
    size = f"{job['videos']} videos of about {job['frames']} frames {job['size']}x{job['size']}"
    header = ("", "frames/s", "to the loop", "2 workers to 1", "outside the engine", "a job of one video")
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


@table("real-files", "real-files")
def real_files(result: Result) -> str:
    """What became of the files of a mixed folder."""
    cells = [(row["kind"], str(row["files"]), str(row["failed"])) for row in result["rows"]]
    files, failed = (sum(row[name] for row in result["rows"]) for name in ("files", "failed"))
    cells.append(("all", str(files), str(failed)))
    engines = "; ".join(
        f"`--engine {name}`: {engine['files']} files accounted for, {len(engine['differing'])} unlike"
        f" `wfvae encode`, {engine['seconds']:.0f} s"
        for name, engine in result["engines"].items()
    )
    return f"{markdown_table(('kind of file', 'files', 'unreadable'), cells)}\n\n{engines}."
