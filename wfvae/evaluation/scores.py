"""Scores of one set of reconstructions, and the paired differences of two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wfvae.errors import InputError
from wfvae.evaluation.lpips_choice import LPIPSChoice
from wfvae.evaluation.protocol import Protocol

CONFIDENCE = 0.95
METHOD = (
    "mean over videos; 95 % interval by Student's t with n - 1 degrees of freedom, videos taken as"
    " independent"
)
PSNR_LIMIT = 10 * math.log10(12 * 255**2)
"""dB (58.92): the PSNR of rounding to 8 bits alone, whose error has a variance of 1/12 of a level
squared. Above it, PSNR measures how values were rounded; a frame counts for no more where two
reconstructions are compared."""
ROUNDING = 1e-6
"""Scores of equal frames differ by less: sums depend on how many frames were scored at once, and
LPIPS is computed in float32."""


@dataclass(frozen=True)
class Metric:
    """A score per video, or of the whole set (FVD)."""

    key: str
    title: str
    higher_is_better: bool
    digits: int

    @property
    def heading(self) -> str:
        """Its name with the direction of better."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


PSNR, SSIM = Metric("psnr", "PSNR", True, 2), Metric("ssim", "SSIM", True, 4)
LPIPS = Metric("lpips", "LPIPS", False, 4)
METRICS = (PSNR, SSIM, LPIPS)
"""The scores per video."""
FVD = Metric("fvd", "FVD", False, 2)


@dataclass(frozen=True)
class Mean:
    """The mean of finite values and its two-sided 95 % interval."""

    value: float
    low: float | None
    """None for a single value, which has no interval."""
    high: float | None
    count: int


def mean_interval(values: Sequence[float]) -> Mean:
    """Computes the mean of finite values, at least one, and its interval by Student's t.

    >>> mean_interval([30.0, 32.0, 34.0])
    Mean(value=32.0, low=27.03..., high=36.96..., count=3)
    """
    if not values or not all(map(math.isfinite, values)):
        raise InputError(f"the mean of {len(values)} values is undefined; expected at least one, all finite")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, None, None, 1)
    from scipy import stats

    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * stats.sem(values))
    return Mean(mean, mean - reach, mean + reach, count)


@dataclass(frozen=True)
class VideoScore:
    """The scores of one video: means over its frames."""

    name: str
    frames: int
    height: int
    width: int
    identical_frames: int
    """Frames with the bits of their original, whose PSNR is infinite: not in the mean PSNR."""
    psnr: float | None
    """dB, over the frames that are not identical; None where every frame is."""
    psnr_limited: float
    """dB, over all frames, each limited to PSNR_LIMIT."""
    ssim: float
    lpips: float | None

    def get(self, metric: Metric) -> float | None:
        """Returns the score of a metric of METRICS."""
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
    """False after an interruption: these are the videos that were scored until then."""

    def mean(self, metric: Metric) -> Mean | None:
        """Returns the mean over videos; None if no video has a finite score."""
        values = self.values(metric)
        return mean_interval(values) if values else None

    def values(self, metric: Metric) -> list[float]:
        """Returns the finite scores of the videos."""
        return [value for video in self.videos if (value := video.get(metric)) is not None]

    def worst(self, metric: Metric, count: int) -> list[VideoScore]:
        """Returns the `count` worst videos, worst first."""
        scored = [video for video in self.videos if video.get(metric) is not None]
        scored.sort(key=lambda video: video.get(metric) or 0.0, reverse=not metric.higher_is_better)
        return scored[:count]


@dataclass(frozen=True)
class PairedDifference:
    """A metric of one set of reconstructions minus that of another, video by video."""

    metric: Metric
    by_video: dict[str, float]
    """By name, in the order of the first set; without the videos that are left out."""
    mean: Mean | None
    """None where there is nothing to compare."""
    left_out: int
    """Videos for which one of the two has no score."""

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        if self.mean is None or self.mean.low is None or self.mean.high is None:
            return False
        return not self.mean.low <= 0 <= self.mean.high

    def regressions(self) -> list[tuple[str, float]]:
        """Returns the videos in which the second is worse by more than rounding, worst first."""
        better = 1 if self.metric.higher_is_better else -1
        worse = [(name, value) for name, value in self.by_video.items() if better * value < -ROUNDING]
        return sorted(worse, key=lambda one: better * one[1])


def compare(first: Evaluation, second: Evaluation) -> list[PairedDifference]:
    """Subtracts the first from the second, over the videos that both have.

    For PSNR, the means over all frames are subtracted, each frame limited to PSNR_LIMIT. Means
    without the identical frames, which have no finite PSNR, would be over different frames, and a
    reconstruction that is perfect except for its hardest frame would be the worse one. With the
    limit, if every frame of one is at least as good as that of the other, its mean is not lower.
    Raises `InputError` if no video was scored in both.
    """
    others = {video.name: video for video in second.videos}
    pairs = [(video, others[video.name]) for video in first.videos if video.name in others]
    if not pairs:
        problem = "no video was scored in both sets of reconstructions"
        raise InputError(f"{problem}; give two reconstructions of the same videos")
    found = []
    for metric in METRICS:
        differences: dict[str, float] = {}
        key = "psnr_limited" if metric is PSNR else metric.key
        for a, b in pairs:
            before, after = getattr(a, key), getattr(b, key)
            if before is not None and after is not None:
                differences[a.name] = after - before
        mean = mean_interval(list(differences.values())) if differences else None
        found.append(PairedDifference(metric, differences, mean, len(pairs) - len(differences)))
    return found
