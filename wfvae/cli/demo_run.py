"""The stages of `wfvae demo`: clip, export, encode, decode, verify, report."""

import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wfvae.cli.output import progress_bar
from wfvae.evaluation.subbands import SubbandStatistics
from wfvae.export.bundle import export_bundle
from wfvae.export.parity import Verification, verify
from wfvae.machine import processor_count, processor_name
from wfvae.model.vae import WFVAE
from wfvae.report.data import Picture, ReportData, RunInfo, Throughput
from wfvae.report.page import write_report
from wfvae.report.side_by_side import side_by_side, side_by_side_size
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.jobs import Report, decode_video, encode_video
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip

SEED, SIDE, FRAMES, FPS = 7, 256, 250, 25
VERIFY_FRAMES, VERIFY_SIDE = 29, 128
PICTURES = 3
PACKAGES = ("wfvae", "torch", "onnxruntime", "numpy", "av")

Frames = npt.NDArray[np.uint8]
Stages = dict[str, float]
"""Wall time in seconds by stage."""


@contextmanager
def _timed(stages: Stages, name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar during a stage, and notes its wall time."""
    began = time.perf_counter()
    with progress_bar(name) as progress:
        yield progress
    stages[name] = time.perf_counter() - began


class _Measured:
    """Quality and statistics, collected while the video is decoded."""

    def __init__(self, pictures_at: set[int]) -> None:
        self.psnr: list[float] = []
        self.pictures: list[Picture] = []
        self.subbands = {"input": SubbandStatistics(), "reconstruction": SubbandStatistics()}
        self._pictures_at = pictures_at

    def add(self, reference: Frames, reconstruction: Frames) -> None:
        for before, after in zip(reference, reconstruction, strict=True):
            index = len(self.psnr)
            error = float(np.mean((before.astype(np.float32) - after) ** 2))
            self.psnr.append(10 * math.log10(255**2 / error) if error else math.inf)
            if index in self._pictures_at:
                self.pictures.append(Picture(index, before.copy(), after.copy()))
        self.subbands["input"].update(reference)
        self.subbands["reconstruction"].update(reconstruction)


def run_demo(
    out: Path, video: str | None, checkpoint: str, threads: int | None
) -> tuple[dict[str, Any], str]:
    """Runs all stages and writes their files to `out`. Returns the result as JSON data and text."""
    stages: Stages = {}
    source = Path(video) if video is not None else _generate(out / "input.mp4", stages)
    _export(checkpoint, out, stages)
    with open_bundle(out / "bundle", threads=threads) as bundle:
        with _timed(stages, "encode") as progress:
            encoded = encode_video(bundle, source, out / "latents.zarr", progress=progress)
        decoded, measured = _decode(bundle, source, out, stages)
        verification = _verify(bundle, source, stages)
        run = _describe_run(bundle, video, checkpoint, threads, encoded)
        throughput = _throughput(bundle, source, out, encoded, decoded, stages)
    data = ReportData(
        run=run,
        throughput=throughput,
        parity=verification.checks,
        psnr_per_frame=tuple(measured.psnr),
        subbands={label: one.bands() for label, one in measured.subbands.items()},
        pictures=tuple(measured.pictures),
        video="side_by_side.mp4",
    )
    write_report(out / "report.html", data)
    result = {
        "passed": verification.passed,
        "report": str(out / "report.html"),
        "encode": encoded.to_dict(),
        "decode": decoded.to_dict(),
        "verify": verification.to_json(),
        "seconds": stages,
    }
    verdict = "equal bits in every check" if verification.passed else "A CHECK FAILED"
    speeds = (
        f"encode {encoded.frames_per_second:.1f} frames/s, decode {decoded.frames_per_second:.1f} frames/s"
    )
    where = f"{encoded.height}x{encoded.width}, {processor_count()} cores"
    return result, f"{out}/report.html\n{speeds} ({where}); stream against direct: {verdict}"


def _generate(path: Path, stages: Stages) -> Path:
    clip = ProceduralClip(SEED, SIDE, SIDE, FRAMES, fps=FPS)
    output = OutputVideo(SIDE, SIDE, Fraction(FPS))
    with _timed(stages, "generate") as progress, open_video_writer(path, output) as writer:
        for start in range(0, FRAMES, FPS):
            stop = min(start + FPS, FRAMES)
            writer.write(clip.frames(start, stop))
            progress(stop, FRAMES)
    return path


def _export(checkpoint: str, out: Path, stages: Stages) -> None:
    with _timed(stages, "export"):
        model = WFVAE.from_pretrained(checkpoint)
        model.save_pretrained(out / "checkpoint")
        export_bundle(model, out / "bundle", overwrite=True)


def _decode(bundle: Bundle, source: Path, out: Path, stages: Stages) -> tuple[Report, _Measured]:
    """Decodes the latents, and composes the side-by-side video meanwhile."""
    with _timed(stages, "decode") as progress, open_video(source) as reader:
        info = reader.info
        height, width = side_by_side_size(info.height, info.width)
        frames = iter(reader)
        total = info.frames or PICTURES
        measured = _Measured({round((k + 0.5) * total / PICTURES) for k in range(PICTURES)})
        output = OutputVideo(width, height, info.fps, crf=20)
        with open_video_writer(out / "side_by_side.mp4", output) as writer:

            def compare(part: Frames) -> None:
                reference = np.stack([next(frames) for _ in part])
                measured.add(reference, part)
                writer.write(side_by_side(reference, part))

            latents, video = out / "latents.zarr", out / "reconstruction.mp4"
            return decode_video(bundle, latents, video, progress=progress, observe=compare), measured


def _verify(bundle: Bundle, source: Path, stages: Stages) -> Verification:
    """Verifies the bundle on a corner of the beginning of the video."""
    with _timed(stages, "verify"), open_video(source) as reader:
        frames = np.stack(list(itertools.islice(iter(reader), VERIFY_FRAMES)))
        return verify(bundle, frames[:, :VERIFY_SIDE, :VERIFY_SIDE])


def _describe_run(
    bundle: Bundle, video: str | None, checkpoint: str, threads: int | None, encoded: Report
) -> RunInfo:
    manifest, backend = bundle.manifest, bundle.backend.describe()
    model = "tiny (trained, comes with the package)" if checkpoint == "tiny" else Path(checkpoint).name
    channels = f"{manifest.model['base_channels']} channels, {manifest.model['latent_dim']} latent channels"
    name = Path(video or "input.mp4").name
    return RunInfo(
        model=f"WF-VAE {channels}, checkpoint {model}",
        parameters=manifest.parameters,
        bundle_hash=bundle.identity,
        backend=f"{backend['name']} {backend['version']}, {backend['provider']}",
        versions=(("python", platform.python_version()), *((name, version(name)) for name in PACKAGES)),
        cpu=processor_name(),
        threads=threads or processor_count(),
        finished=datetime.now(UTC),
        commands=(
            "wfvae export checkpoint bundle",
            f"wfvae encode bundle {name} latents.zarr",
            "wfvae decode bundle latents.zarr reconstruction.mp4",
            "wfvae verify bundle",
        ),
        source=name if video else f"procedural clip, seed {SEED}, encoded as H.264",
        frames=encoded.frames,
        height=encoded.height,
        width=encoded.width,
        fps=encoded.fps,
    )


def _throughput(
    bundle: Bundle, source: Path, out: Path, encoded: Report, decoded: Report, stages: Stages
) -> Throughput:
    size = {"height": encoded.height, "width": encoded.width}
    latents = [path for path in (out / "latents.zarr").rglob("*") if path.is_file()]
    return Throughput(
        encode_fps=encoded.frames_per_second,
        decode_fps=decoded.frames_per_second,
        stages=stages,
        encoder_state_bytes=bundle.plan("encoder", **size).state_bytes,
        decoder_state_bytes=bundle.plan("decoder", **size).state_bytes,
        raw_video_bytes=encoded.frames * encoded.height * encoded.width * 3,
        latents_bytes=sum(path.stat().st_size for path in latents),
        video_file_bytes=source.stat().st_size if source.is_file() else None,
    )
