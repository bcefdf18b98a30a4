"""`wfvae encode-dataset`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from wfvae.cli import arguments
from wfvae.cli.output import mebibytes, progress_bar, show

if TYPE_CHECKING:
    from wfvae.runtime.dataset.report import DatasetReport

SUMMARY = "a data set of videos to shards of latents, on one machine or a Ray cluster"
DESCRIPTION = """\
Encodes a folder, a list or shards of videos to WebDataset shards of latents.

  wfvae encode-dataset bundle/ videos/ latents/ --workers 2
  wfvae encode-dataset bundle/ 'videos/*.mp4' latents/ --frames 17 --size 256x256 --fps 24
  wfvae encode-dataset bundle/ list.csv latents/ --path-column file      other columns are carried along
  wfvae encode-dataset bundle/ 's3://films/*.tar' s3://latents/ --engine ray --address auto --workers 64

The same command continues an unfinished run; finished shards stay as they are. Videos that cannot be
encoded are listed in failures.jsonl, and the exit code is then 1."""
_SHOWN_FAILURES = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_bundle_arguments(parser, chunk=False)
    text = "folder, glob, .csv, .jsonl or .parquet table, or .tar shards; a path or a URL"
    parser.add_argument("source", metavar="SOURCE", help=text)
    parser.add_argument("out", metavar="OUT", help="folder of the shards; a path or a URL")
    add = arguments.option_adder(parser.add_argument_group("samples"))
    add("--frames", arguments.parse_positive, "cut windows of N frames (default: whole videos)", "N")
    add("--stride", arguments.parse_positive, "take every N-th frame", "N", 1)
    add("--fps", arguments.parse_rate, "frame rate to resample to (default: the videos')", "RATE")
    add("--size", arguments.parse_size, "scale to this size (default: the videos')", "HxW")
    add(
        "--crop", ("centre", "none"), "cut to --size's aspect, or stretch (default: centre)", default="centre"
    )
    add("--windows", _parse_windows, "windows of a video: all, first, or a number (default: all)", "N", "all")
    add("--output", ("mean", "moments"), "what to store (default: mean)", default="mean")
    add("--dtype", ("fp32", "fp16"), "type of the stored latents (default: fp32)", default="fp32")
    add("--preview", None, "store each sample's first frame as JPEG")
    add("--path-column", str, "column of a table that holds the paths (default: path)", "NAME", "path")
    work = parser.add_argument_group("work")
    add = arguments.option_adder(work)
    add("--engine", ("local", "ray"), "what runs the workers (default: local)", default="local")
    add("--address", str, "address of the Ray cluster, such as auto (default: one is started)", "HOST:PORT")
    add("--workers", arguments.parse_positive, "workers, each with a session (default: 1)", "N", 1)
    add("--rows", arguments.parse_positive, "videos that a worker encodes at once (default: 4)", "N", 4)
    arguments.add_shard_size_argument(work, "256M, less for small data sets")
    add("--limit-failures", arguments.parse_index, "stop when more videos than this have failed", "N")
    text = "a video fails that gives no frame for this long (default: 60)"
    add("--time-limit", arguments.parse_seconds, text, "SECONDS", 60.0)
    arguments.add_json_argument(parser)


def _parse_windows(text: str) -> str | int:
    return text if text in ("all", "first") else arguments.parse_positive(text)


def run(args: argparse.Namespace) -> int:
    """Encodes, and prints the report."""
    from wfvae.runtime.dataset.job import encode_dataset
    from wfvae.runtime.dataset.options import ClipOptions

    options = ClipOptions(
        frames=args.frames,
        stride=args.stride,
        fps=None if args.fps is None else str(args.fps),
        size=args.size,
        crop=args.crop,
        windows=args.windows,
        output=args.output,
        dtype=args.dtype,
        preview=args.preview,
    )
    with progress_bar("encode") as bar:
        report = encode_dataset(
            args.bundle,
            args.source,
            args.out,
            options,
            engine=args.engine,
            workers=args.workers,
            rows=args.rows,
            shard_size=args.shard_size,
            address=args.address,
            limit_failures=args.limit_failures,
            time_limit=args.time_limit,
            path_column=args.path_column,
            execution=arguments.execution_options(args),
            progress=lambda stage, done, total: bar(done, total, stage),
        )
    show(args, report.to_dict(), _describe(report))
    return 1 if report.failures or not report.complete else 0


def _describe(report: DatasetReport) -> str:
    lines = [
        f"{report.destination}: {report.samples} samples of {report.videos} videos in {report.shards} shards,"
        f" {mebibytes(report.bytes)}; {report.frames} frames; {report.frames_per_second:.1f} frames/s"
    ]
    if report.failures:
        lines.append(f"{len(report.failures)} failed (all in failures.jsonl):")
        lines += [f"  {failure.source}: {failure.reason}" for failure in report.failures[:_SHOWN_FAILURES]]
    if not report.complete:
        lines.append("stopped: more videos failed than --limit-failures allows; the same command goes on")
    return "\n".join(lines)
