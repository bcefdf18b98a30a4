"""Scoring a set of videos, one after the other, in memory that does not grow with their length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wfvae.errors import InputError, MediaError
from wfvae.evaluation.interval import Mean, mean_interval
from wfvae.evaluation.lpips_choice import LPIPSChoice
from wfvae.evaluation.protocol import PAPER_FRAMES, Protocol
from wfvae.evaluation.sources import Source
from wfvae.evaluation.video_features import ClipCollector, VideoFeatures
from wfvae.metrics.frames import FrameScores, score_frames

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Metric:
    """A score per video."""

    key: str
    title: str
    unit: str
    higher_is_better: bool

    @property
    def heading(self) -> str:
        """Its name with the direction of better."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


PSNR, SSIM, LPIPS = (
    Metric("psnr", "PSNR", "dB", True),
    Metric("ssim", "SSIM", "", True),
    Metric("lpips", "LPIPS", "", False),
)
METRICS = (PSNR, SSIM, LPIPS)
FVD = Metric("fvd", "FVD", "", False)
"""Of the whole set, not of a video."""
PSNR_LIMIT = 10 * math.log10(12 * 255**2)
"""dB (58.92): the PSNR of rounding to 8 bits alone, whose error has a variance of 1/12 of a level
squared. What lies above it tells how values were rounded, not how well they were reconstructed; a
frame is taken to have no more where two reconstructions are compared."""
ROUNDING = 1e-6
"""Equal frames have scores this close: sums depend on how many frames were scored at once, and
LPIPS is computed in float32.
"""


@dataclass(frozen=True)
class VideoScore:
    """The scores of one video: means over its frames."""

    name: str
    frames: int
    height: int
    width: int
    identical_frames: int
    """Frames equal to their original bit by bit, whose PSNR is infinite; they are left out of the
    mean PSNR.
    """
    psnr: float | None
    """dB, over the frames that are not identical; None where every frame is."""
    psnr_limited: float
    """dB, over all frames, each limited to PSNR_LIMIT. Equal to `psnr` where no frame is beyond the
    limit.
    """
    ssim: float
    lpips: float | None

    def get(self, metric: Metric) -> float | None:
        """The score of a metric of METRICS."""
        value: float | None = getattr(self, metric.key)
        return value


@dataclass(frozen=True)
class Skipped:
    """A video that could not be scored."""

    name: str
    reason: str


@dataclass(frozen=True)
class SetScore:
    """FVD, or why there is none."""

    value: float | None
    clips: int
    frames: int
    """Frames per clip."""
    features: int | None
    reason: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """All scores of one set of reconstructions."""

    protocol: Protocol
    videos: tuple[VideoScore, ...]
    skipped: tuple[Skipped, ...]
    lpips: LPIPSChoice
    fvd: SetScore
    complete: bool
    """False where the evaluation was interrupted: these are the videos that were done."""

    def mean(self, metric: Metric) -> Mean | None:
        """The mean over videos, and its interval; None where the metric is not measured, or
        infinite for every video.
        """
        values = self.values(metric)
        return mean_interval(values) if values else None

    def values(self, metric: Metric) -> list[float]:
        """The finite scores of the videos."""
        return [value for video in self.videos if (value := video.get(metric)) is not None]

    def worst(self, metric: Metric, count: int) -> list[VideoScore]:
        """The `count` worst videos, worst first."""
        scored = [video for video in self.videos if video.get(metric) is not None]
        return sorted(
            scored, key=lambda video: video.get(metric) or 0.0, reverse=not metric.higher_is_better
        )[:count]


class Evaluator:
    """Scores the videos of a source one by one; `result` tells at any time what was found so far."""

    def __init__(
        self, source: Source, protocol: Protocol, lpips: LPIPSChoice, network: VideoFeatures | None
    ) -> None:
        self._source, self._protocol, self._lpips = source, protocol, lpips
        self._clips = None if network is None else ClipCollector(network, protocol.frames or PAPER_FRAMES)
        self._videos: list[VideoScore] = []
        self._skipped: list[Skipped] = []

    def run(self, progress: Progress) -> Evaluation:
        """Scores every video. What cannot be read, is too short, or does not fit its reconstruction
        is skipped and said.

        Raises:
            InputError: no video could be scored.
        """
        names, done = self._source.names, 0
        total = None if self._protocol.frames is None else self._protocol.frames * len(names)
        for name in names:
            score, scored = _Totals(name), False
            try:
                for real, reconstruction in self._source.frames(name, self._protocol):
                    score.add(real.shape[1:3], score_frames(real, reconstruction, self._lpips.distance))
                    if self._clips is not None:
                        self._clips.add(real, reconstruction)
                    done += len(real)
                    progress(done, total)
                self._videos.append(score.video())
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
        """What was found so far."""
        return Evaluation(
            self._protocol, tuple(self._videos), tuple(self._skipped), self._lpips, self._fvd(), complete
        )

    def _fvd(self) -> SetScore:
        if self._clips is None:
            return SetScore(
                None,
                0,
                self._protocol.frames or PAPER_FRAMES,
                None,
                "needs a TorchScript file of I3D, see --i3d",
            )
        clips, frames = self._clips.clips, self._protocol.frames or PAPER_FRAMES
        if clips < 2:
            return SetScore(
                None,
                clips,
                frames,
                None,
                f"{clips} clips of {frames} frames have no covariance; at least 2 are needed",
            )
        features = len(self._clips.real.mean)
        try:
            return SetScore(self._clips.distance(), clips, frames, features)
        except ValueError as error:  # numpy's LinAlgError is one; the other scores stand
            return SetScore(
                None, clips, frames, features, f"the distance of the features cannot be computed: {error}"
            )


class _Totals:
    """Sums over the frames of a video."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._size = (0, 0)
        self._frames = self._identical = 0
        self._psnr = self._psnr_limited = self._ssim = self._lpips = 0.0
        self._has_lpips = False

    def add(self, size: Sequence[int], scores: FrameScores) -> None:
        finite = np.isfinite(scores.psnr)
        self._size = (int(size[0]), int(size[1]))
        self._frames += len(finite)
        self._identical += int((~finite).sum())
        self._psnr += float(scores.psnr[finite].sum())
        self._psnr_limited += float(np.minimum(scores.psnr, PSNR_LIMIT).sum())
        self._ssim += float(scores.ssim.sum())
        if scores.lpips is not None:
            self._has_lpips = True
            self._lpips += float(scores.lpips.sum())

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
            lpips=self._lpips / self._frames if self._has_lpips else None,
        )


@dataclass(frozen=True)
class PairedDifference:
    """A metric of one set of reconstructions minus that of another, video by video."""

    metric: Metric
    by_video: dict[str, float]
    """The differences by name, in the order of the first set; without the videos that are left out."""
    mean: Mean | None
    """Mean of the differences; None where there is nothing to compare."""
    left_out: int
    """Videos for which one of the two has no score."""

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return (
            self.mean is not None
            and self.mean.low is not None
            and self.mean.high is not None
            and not self.mean.low <= 0 <= self.mean.high
        )

    def regressions(self) -> list[tuple[str, float]]:
        """The videos in which the second is worse by more than rounding, and the difference; worst
        first.
        """
        better = 1 if self.metric.higher_is_better else -1
        worse = [(name, value) for name, value in self.by_video.items() if better * value < -ROUNDING]
        return sorted(worse, key=lambda one: better * one[1])


def compare(first: Evaluation, second: Evaluation) -> list[PairedDifference]:
    """The second minus the first, over the videos that both have. A metric that one of them did not
    measure has no mean.

    Of PSNR, the means over all frames are subtracted, each frame limited to PSNR_LIMIT. Without the
    frames that are identical to their original, which have no finite PSNR, the two would be means
    over different frames, and a reconstruction that is perfect but for its hardest frame would be
    the worse one. So, where every frame of one is at least as good as that of the other, its mean
    is not lower.

    Raises:
        InputError: no video was scored in both.
    """
    pairs = list(_common(first, second))
    if not pairs:
        raise InputError(
            "no video was scored in both sets of reconstructions; give two reconstructions of the same videos"
        )
    found = []
    for metric in METRICS:
        differences: dict[str, float] = {}
        for a, b in pairs:
            before, after = (
                (a.psnr_limited, b.psnr_limited) if metric is PSNR else (a.get(metric), b.get(metric))
            )
            if before is not None and after is not None:
                differences[a.name] = after - before
        mean = mean_interval(list(differences.values())) if differences else None
        found.append(PairedDifference(metric, differences, mean, len(pairs) - len(differences)))
    return found


def _common(first: Evaluation, second: Evaluation) -> Iterator[tuple[VideoScore, VideoScore]]:
    others = {video.name: video for video in second.videos}
    return ((video, others[video.name]) for video in first.videos if video.name in others)
