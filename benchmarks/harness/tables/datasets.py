"""Tables of encoding data sets."""

import math
import textwrap

from harness.tables.format import FORMS, Result, markdown_table, table
from wfvae.model.config import WFVAEConfig
from wfvae.spec.frames import SPATIAL_RATIO

NODES = (1, 10, 100, 1000)
WORKERS_PER_NODE = 16
"""Of two threads, as the speeds are measured: a node of 32 cores."""
VIDEOS, SECONDS, RATE = 1_000_000, 10, 24
CAPTION_WIDTH = 100
MEGABYTES_PER_VIDEO = 6.25
"""5 Mbit/s."""
TEMPORAL_RATIO = 4
LARGEST_SHARD = 256
PARTS_PER_WORKER = 8
"""So that a worker that ends early waits for at most an eighth of the work of another."""
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
    caption = f"Preset {job['preset']}, {size}, one thread per worker; {cpu}, medians of {runs}."
    return f"{markdown_table(header, cells)}\n\n{textwrap.fill(caption + ray, CAPTION_WIDTH)}"


@table("datasets-memory", "datasets-cpu")
def datasets_memory(result: Result) -> str:
    """Memory of a long run."""
    memory = result["memory"]
    cells = [
        (
            f"{memory['videos']:,}, preset {memory['preset']}",
            f"{memory['after_a_tenth_mb']:.0f} MB",
            f"{memory['peak_mb']:.0f} MB",
            f"{memory['videos_per_second']:.1f}",
        )
    ]
    header = ("short videos (5 frames 64x64)", "peak of the first tenth", "peak", "videos/s")
    return markdown_table(header, cells, texts=0)


@table("machines", "speed-cpu")
def machines(result: Result) -> str:
    """What a million videos need on nodes of CPUs: time, shards, and the object store's load."""
    [row] = [
        row
        for row in result["rows"]
        if (row["engine"], row["direction"], row["size"], row["frames_per_push"])
        == ("onnxruntime", "encoder", 256, None)
    ]
    speed = row["frames"] / row["seconds"]
    frames = VIDEOS * SECONDS * RATE
    channels, side = WFVAEConfig.preset(result["preset"]).latent_dim, row["size"] // SPATIAL_RATIO
    mebibytes_per_frame = 2 * channels * side * side / TEMPORAL_RATIO / 2**20
    cells = []
    for nodes in NODES:
        workers = nodes * WORKERS_PER_NODE
        wanted = frames * mebibytes_per_frame / (workers * PARTS_PER_WORKER)
        shard = min(LARGEST_SHARD, 2 ** math.floor(math.log2(wanted)))
        shards = math.ceil(frames * mebibytes_per_frame / shard)
        last = shard / mebibytes_per_frame / speed
        seconds = frames / (speed * workers) + last
        cells.append(
            (
                f"{nodes:,}",
                f"{workers:,}",
                f"`{shard}M`",
                f"{shards:,}",
                _duration(seconds),
                _duration(last),
                f"{VIDEOS * MEGABYTES_PER_VIDEO / seconds:,.0f} MB/s",
                f"{frames * mebibytes_per_frame * 2**20 / 1e6 / seconds:,.1f} MB/s",
            )
        )
    header = ("nodes", "workers", "`--shard-size`", "shards", "time", "of it, one part", "read", "written")
    size = f"{row['size']}x{row['size']}"
    caption = (
        f"Preset {result['preset']}, {size}, fp16: {speed:.1f} frames/s per worker of two threads"
        f" ({FORMS[row['engine']]}, {result['machine']['cpu']})."
    )
    return f"{markdown_table(header, cells, texts=0)}\n\n{caption}"


def _duration(seconds: float) -> str:
    """Formats a time in its largest fitting unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


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
    table_text = markdown_table(("kind of file", "files", "unreadable"), cells)
    return f"{table_text}\n\n{textwrap.fill(engines + '.', CAPTION_WIDTH)}"
