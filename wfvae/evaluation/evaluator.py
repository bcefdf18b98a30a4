"""Scores a set of videos one after the other; memory does not grow with their length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wfvae.errors import InputError, MediaError
from wfvae.evaluation.lpips_choice import LPIPSChoice
from wfvae.evaluation.protocol import PAPER_FRAMES, Protocol
from wfvae.evaluation.scores import PSNR_LIMIT, Evaluation, SetScore, Skipped, VideoScore
from wfvae.evaluation.sources import Source
from wfvae.evaluation.video_features import ClipCollector, VideoFeatures
from wfvae.metrics.frames import FrameScores, score_frames

Progress = Callable[[int, int | None], None]


class Evaluator:
    """Scores the videos of a source. `result` returns what has been scored so far.

    Args:
        lpips: from `choose_lpips`.
        network: features for FVD; None leaves FVD out.

    Example:
        >>> from fractions import Fraction
        >>> from pathlib import Path
        >>> from wfvae.evaluation.lpips_choice import choose_lpips
        >>> from wfvae.evaluation.sources import FileSource
        >>> from wfvae.evaluation.video_files import match_videos
        >>> from wfvae.runtime.media.video_info import OutputVideo
        >>> from wfvae.runtime.media.video_writer import open_video_writer
        >>> lossless = OutputVideo(16, 16, Fraction(25), codec="ffv1", pixel_format="bgr0")
        >>> for name, level in (("real.mkv", 100), ("made.mkv", 105)):
        ...     with open_video_writer(name, lossless) as writer:
        ...         writer.write(np.full((3, 16, 16, 3), level, np.uint8))
        >>> source = FileSource(match_videos(Path("real.mkv"), Path("made.mkv")))
        >>> evaluator = Evaluator(source, Protocol(None, None), choose_lpips("none", "alex"))
        >>> round(evaluator.run().videos[0].psnr, 2)
        34.15
    """

    def __init__(
        self, source: Source, protocol: Protocol, lpips: LPIPSChoice, network: VideoFeatures | None = None
    ) -> None:
        self._source, self._protocol, self._lpips = source, protocol, lpips
        self._clip_frames = protocol.frames or PAPER_FRAMES
        self._clips = None if network is None else ClipCollector(network, self._clip_frames)
        self._videos: list[VideoScore] = []
        self._skipped: list[Skipped] = []

    def run(self, progress: Progress = lambda done, total: None) -> Evaluation:
        """Scores every video; skips those that are unreadable, too short, or do not fit.

        Args:
            progress: called with frames done and frames in all, None if unknown.

        Raises:
            InputError: no video could be scored.
        """
        names, done = self._source.names, 0
        total = None if self._protocol.frames is None else self._protocol.frames * len(names)
        for name in names:
            totals, scored = _Totals(name), False
            try:
                for real, reconstruction in self._source.frames(name, self._protocol):
                    totals.add(real.shape[1:3], score_frames(real, reconstruction, self._lpips.distance))
                    if self._clips is not None:
                        self._clips.add(real, reconstruction)
                    done += len(real)
                    progress(done, total)
                self._videos.append(totals.video())
                scored = True
            except (MediaError, InputError) as error:
                self._skipped.append(Skipped(name, str(error)))
            finally:
                if self._clips is not None:
                    self._clips.end_video(scored=scored)
        if not self._videos:
            raise InputError(
                f"none of {len(names)} videos could be scored; the first: {self._skipped[0].reason}"
            )
        return self.result(complete=True)

    def result(self, *, complete: bool) -> Evaluation:
        """Returns what has been scored so far."""
        videos, skipped = tuple(self._videos), tuple(self._skipped)
        return Evaluation(self._protocol, videos, skipped, self._lpips, self._fvd(), complete)

    def _fvd(self) -> SetScore:
        frames = self._clip_frames
        if self._clips is None:
            return SetScore(None, 0, frames, None, "needs a TorchScript file of I3D, see --i3d")
        clips = self._clips.clips
        if clips < 2:
            reason = f"{clips} clips of {frames} frames have no covariance; at least 2 are needed"
            return SetScore(None, clips, frames, None, reason)
        features = len(self._clips.real.mean)
        try:
            return SetScore(self._clips.distance(), clips, frames, features)
        except ValueError as error:  # numpy's LinAlgError is one; the other scores stay valid
            reason = f"the distance of the features cannot be computed: {error}"
            return SetScore(None, clips, frames, features, reason)


class _Totals:
    """Sums over the frames of a video."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._size = (0, 0)
        self._frames = self._identical = 0
        self._psnr = self._psnr_limited = self._ssim = 0.0
        self._lpips: float | None = None

    def add(self, size: Sequence[int], scores: FrameScores) -> None:
        finite = np.isfinite(scores.psnr)
        self._size = (int(size[0]), int(size[1]))
        self._frames += len(finite)
        self._identical += int((~finite).sum())
        self._psnr += float(scores.psnr[finite].sum())
        self._psnr_limited += float(np.minimum(scores.psnr, PSNR_LIMIT).sum())
        self._ssim += float(scores.ssim.sum())
        if scores.lpips is not None:
            self._lpips = (self._lpips or 0.0) + float(scores.lpips.sum())

    def video(self) -> VideoScore:
        different = self._frames - self._identical
        return VideoScore(
            self._name,
            self._frames,
            *self._size,
            identical_frames=self._identical,
            psnr=self._psnr / different if different else None,
            psnr_limited=self._psnr_limited / self._frames,
            ssim=self._ssim / self._frames,
            lpips=None if self._lpips is None else self._lpips / self._frames,
        )
