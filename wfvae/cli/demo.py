"""`wfvae demo`."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wfvae.cli.arguments import add_json_argument, parse_positive
from wfvae.cli.output import progress_bar, show
from wfvae.errors import MissingExtraError, ResourceError
from wfvae.machine import processor_count, processor_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wfvae.export.parity import Verification
    from wfvae.runtime.bundle import Bundle
    from wfvae.runtime.jobs import Report

SUMMARY = "the whole job on a generated or given video, with a report"
DESCRIPTION = """\
Makes a 10 s clip (or takes yours), exports the tiny model, streams it through encode and decode, verifies that the stream equals
direct inference, and writes reconstruction.mp4, side_by_side.mp4 and report.html.

The tiny model was trained for more than ten hours on procedural video only (docs/training.md): expect a soft picture of
anything else.

  wfvae demo
  wfvae demo my.mp4 --out demo/"""

CLIP = {"seed": 7, "height": 256, "width": 256, "frames": 250}
FPS = Fraction(25)
VERIFY_FRAMES, VERIFY_SIDE = 29, 128
PICTURES = 3

Frames = npt.NDArray[np.uint8]


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "video", nargs="?", metavar="VIDEO", help="video to use (default: a generated clip of 10 s, 256x256)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        default="tiny",
        help="model to use (default: the trained tiny model of the package)",
    )
    parser.add_argument(
        "--threads", type=parse_positive, metavar="N", help="CPU threads (default: all cores)"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demo, and returns 1 if the verification failed."""
    try:
        import wfvae.export.bundle  # noqa: F401  # tells now, not after the clip has been made, what is not installed
    except ModuleNotFoundError as error:
        raise MissingExtraError("the demo", str(error.name), "export") from error
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot write to {args.out}: {error.strerror}; choose another directory with --out"
        ) from error
    demo = _Demo(args.out, args.threads)
    source = demo.clip(args.video)
    with demo.export(args.checkpoint) as bundle:
        encoded = demo.encode(bundle, source)
        measured = _Measured()
        decoded = demo.decode(bundle, source, measured)
        verification = demo.verify(bundle, source)
        demo.report(bundle, source, args.video, encoded, decoded, measured, verification)
    result = {
        "passed": verification.passed,
        "report": str(args.out / "report.html"),
        "encode": encoded.to_dict(),
        "decode": decoded.to_dict(),
        "verify": verification.to_json(),
        "seconds": demo.seconds,
    }
    verdict = "equal bits in every check" if verification.passed else "A CHECK FAILED"
    text = (
        f"{args.out}/report.html\n"
        f"encode {encoded.frames_per_second:.1f} frames/s, decode {decoded.frames_per_second:.1f} frames/s "
        f"({encoded.height}x{encoded.width}, {processor_count()} cores); stream against direct: {verdict}"
    )
    show(args, result, text)
    return 0 if verification.passed else 1


class _Measured:
    """Quality and statistics, gathered while the video is decoded."""

    def __init__(self) -> None:
        from wfvae.evaluation.subbands import SubbandStatistics

        self.psnr: list[float] = []
        self.pictures: dict[int, tuple[Frames, Frames]] = {}
        self.subbands = (SubbandStatistics(), SubbandStatistics())

    def add(self, reference: Frames, reconstruction: Frames, keep: set[int]) -> None:
        for before, after in zip(reference, reconstruction, strict=True):
            index = len(self.psnr)
            error = float(np.mean((before.astype(np.float32) - after) ** 2))
            self.psnr.append(float("inf") if error == 0 else 10 * float(np.log10(255**2 / error)))
            if index in keep:
                self.pictures[index] = (before.copy(), after.copy())
        for statistics, frames in zip(self.subbands, (reference, reconstruction), strict=True):
            statistics.update(frames)


class _Demo:
    """The demo's stages, each timed."""

    def __init__(self, out: Path, threads: int | None) -> None:
        self.out = out
        self.threads = threads
        self.checkpoint = ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _stage(self, name: str) -> Iterator[Callable[[int, int | None], None]]:
        began = time.perf_counter()
        with progress_bar(name) as progress:
            yield progress
        self.seconds[name] = time.perf_counter() - began

    def clip(self, video: str | None) -> Path:
        """The source video, generated if none is given."""
        if video is not None:
            return Path(video)
        from wfvae.runtime.media.video_info import OutputVideo
        from wfvae.runtime.media.video_writer import open_video_writer
        from wfvae.video.synthetic.clips import ProceduralClip

        path = self.out / "input.mp4"
        clip = ProceduralClip(CLIP["seed"], CLIP["height"], CLIP["width"], CLIP["frames"], fps=int(FPS))
        with (
            self._stage("generate") as progress,
            open_video_writer(path, OutputVideo(CLIP["width"], CLIP["height"], FPS)) as writer,
        ):
            for start in range(0, CLIP["frames"], int(FPS)):
                stop = min(start + int(FPS), CLIP["frames"])
                writer.write(clip.frames(start, stop))
                progress(stop, CLIP["frames"])
        return path

    def export(self, checkpoint: str) -> Bundle:
        """The bundle of the given checkpoint."""
        from wfvae.export.bundle import ExportOptions, export_bundle
        from wfvae.model.vae import WFVAE
        from wfvae.runtime import open_bundle

        self.checkpoint = (
            "tiny (trained, comes with the package)" if checkpoint == "tiny" else Path(checkpoint).name
        )
        with self._stage("export"):
            model = WFVAE.from_pretrained(checkpoint)
            model.save_pretrained(self.out / "checkpoint")
            export_bundle(model, self.out / "bundle", ExportOptions(direct=True), overwrite=True)
        return open_bundle(self.out / "bundle", threads=self.threads)

    def encode(self, bundle: Bundle, source: Path) -> Report:
        """Streams the video to latents."""
        with self._stage("encode") as progress:
            return bundle.encode_video(source, self.out / "latents.zarr", progress=progress)

    def decode(self, bundle: Bundle, source: Path, measured: _Measured) -> Report:
        """Streams the latents to a video, and composes the side-by-side video on the way."""
        from wfvae.report.side_by_side import side_by_side, side_by_side_size
        from wfvae.runtime.media.video_info import OutputVideo
        from wfvae.runtime.media.video_reader import open_video
        from wfvae.runtime.media.video_writer import open_video_writer

        with self._stage("decode") as progress, open_video(source) as reader:
            info = reader.info
            height, width = side_by_side_size(info.height, info.width)
            frames = iter(reader)
            total = info.frames or PICTURES
            keep = {round((k + 0.5) * total / PICTURES) for k in range(PICTURES)}
            with open_video_writer(
                self.out / "side_by_side.mp4", OutputVideo(width, height, info.fps, crf=20)
            ) as writer:

                def compare(part: Frames) -> None:
                    reference = np.stack([next(frames) for _ in part])
                    measured.add(reference, part, keep)
                    writer.write(side_by_side(reference, part))

                return bundle.decode_video(
                    self.out / "latents.zarr",
                    self.out / "reconstruction.mp4",
                    progress=progress,
                    observe=compare,
                )

    def verify(self, bundle: Bundle, source: Path) -> Verification:
        """Proves parity on the beginning of the video."""
        import itertools

        from wfvae.export.parity import verify
        from wfvae.runtime.media.video_reader import open_video

        with self._stage("verify"), open_video(source) as reader:
            frames = np.stack(list(itertools.islice(iter(reader), VERIFY_FRAMES)))[
                :, :VERIFY_SIDE, :VERIFY_SIDE
            ]
            return verify(bundle, frames, against=None, progress=lambda name, done, total: None)

    def report(
        self,
        bundle: Bundle,
        source: Path,
        video: str | None,
        encoded: Report,
        decoded: Report,
        measured: _Measured,
        verification: Verification,
    ) -> None:
        """Writes report.html."""
        from wfvae.report.data import (
            Picture,
            ReportData,
            RunInfo,
            Stage,
            SubbandBar,
            SubbandSeries,
            Throughput,
        )
        from wfvae.report.page import write_report

        manifest = bundle.manifest
        size = (encoded.height, encoded.width)
        states = {
            d: bundle.plan(d, height=size[0], width=size[1]).state_bytes for d in ("encoder", "decoder")
        }
        backend = bundle.backend.describe()
        packages = ("wfvae", "torch", "onnxruntime", "numpy", "av")
        given = video or "input.mp4"
        run = RunInfo(
            model=(
                f"WF-VAE {manifest.model['base_channels']} channels, {manifest.model['latent_dim']} latent"
                f" channels, checkpoint {self.checkpoint}"
            ),
            parameters=manifest.parameters,
            bundle_hash=bundle.identity,
            backend=f"{backend['name']} {backend['version']}, {backend['provider']}",
            versions=(("python", platform.python_version()), *((name, version(name)) for name in packages)),
            cpu=processor_name(),
            threads=self.threads or processor_count(),
            finished=datetime.now(UTC),
            commands=(
                "wfvae export checkpoint bundle --direct",
                f"wfvae encode bundle {Path(given).name} latents.zarr",
                "wfvae decode bundle latents.zarr reconstruction.mp4",
                "wfvae verify bundle",
            ),
            source=Path(given).name if video else f"procedural clip, seed {CLIP['seed']}, encoded as H.264",
            frames=encoded.frames,
            height=size[0],
            width=size[1],
            fps=encoded.fps,
        )
        latents = self.out / "latents.zarr"
        throughput = Throughput(
            encode_fps=encoded.frames_per_second,
            decode_fps=decoded.frames_per_second,
            stages=tuple(Stage(name, seconds) for name, seconds in self.seconds.items()),
            encoder_state_bytes=states["encoder"],
            decoder_state_bytes=states["decoder"],
            raw_video_bytes=encoded.frames * size[0] * size[1] * 3,
            latents_bytes=sum(path.stat().st_size for path in latents.rglob("*") if path.is_file()),
            video_file_bytes=source.stat().st_size if source.is_file() else None,
        )
        series = tuple(
            SubbandSeries(
                label, tuple(SubbandBar(band.name, band.share, band.entropy) for band in statistics.bands())
            )
            for label, statistics in zip(("input", "reconstruction"), measured.subbands, strict=True)
        )
        data = ReportData(
            run=run,
            throughput=throughput,
            parity=verification.checks,
            psnr_per_frame=tuple(measured.psnr),
            subbands=series,
            pictures=tuple(Picture(index, *pair) for index, pair in sorted(measured.pictures.items())),
            video="side_by_side.mp4",
        )
        write_report(self.out / "report.html", data)
