"""Scores a set of videos one after the other, a few frames at a time."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from wfvae.errors import InputError, MediaError
from wfvae.evaluation.frechet import FeatureMoments, frechet_distance
from wfvae.evaluation.lpips_choice import LPIPSChoice
from wfvae.evaluation.protocol import PAPER_FRAMES, Frame, Protocol
from wfvae.evaluation.scores import PSNR_LIMIT, Evaluation, SetScore, Skipped, VideoScore
from wfvae.evaluation.sources import Pieces, Videos
from wfvae.evaluation.video_features import Features, VideoFeatures
from wfvae.metrics.frames import FrameScores, score_frames

Progress = Callable[[int, int | None], None]


class Evaluator:
    """Scores videos. `result` returns what has been scored so far.

    `lpips` comes from `choose_lpips`; without a `network` of features there is no FVD.
    """

    def __init__(
        self, videos: Videos, protocol: Protocol, lpips: LPIPSChoice, network: VideoFeatures | None = None
    ) -> None:
        self._videos, self._protocol, self._lpips, self._network = videos, protocol, lpips, network
        self._clip_frames = protocol.frames or PAPER_FRAMES
        self._real, self._made = FeatureMoments(), FeatureMoments()
        self._scored: list[VideoScore] = []
        self._skipped: list[Skipped] = []

    def run(self, progress: Progress = lambda done, total: None) -> Evaluation:
        """Scores every video; skips those that are unreadable, too short, or do not fit.

        Calls `progress` with frames done and frames in all, None if unknown. Raises `InputError` if
        no video could be scored.
        """
        done, count = 0, len(self._videos)
        total = None if self._protocol.frames is None else self._protocol.frames * count
        for name, open_video in self._videos.items():
            try:
                for frames in self._score(name, open_video(self._protocol)):
                    done += frames
                    progress(done, total)
            except (MediaError, InputError) as error:
                self._skipped.append(Skipped(name, str(error)))
        if not self._scored:
            raise InputError(f"none of {count} videos could be scored; the first: {self._skipped[0].reason}")
        return self.result(complete=True)

    def _score(self, name: str, pieces: Pieces) -> Iterator[int]:
        """Scores a video, which counts once all of it could be scored. Yields frames done."""
        scores: list[FrameScores] = []
        waiting: list[tuple[Frame, Frame]] = []
        features: list[tuple[Features, Features]] = []
        size = (0, 0)
        for real, reconstruction in pieces:
            scores.append(score_frames(real, reconstruction, self._lpips.distance))
            size = real.shape[1], real.shape[2]
            if self._network is not None:
                waiting += zip(real, reconstruction, strict=True)
                while len(waiting) >= self._clip_frames:
                    originals, results = zip(*waiting[: self._clip_frames], strict=True)
                    features.append((self._network.of(originals), self._network.of(results)))
                    del waiting[: self._clip_frames]
            yield len(real)
        lengths = {one.shape[1] for pair in features for one in pair}
        lengths |= {len(self._real.mean)} if self._real.count else set()
        if len(lengths) > 1:
            found = " and ".join(map(str, sorted(lengths)))
            problem = f"the feature network returned features of different lengths, {found}"
            raise InputError(f"{problem}; expected one length")
        for original, result in features:
            self._real.add(original)
            self._made.add(result)
        self._scored.append(_video_score(name, size, scores))

    def result(self, *, complete: bool) -> Evaluation:
        """Returns what has been scored so far."""
        videos, skipped = tuple(self._scored), tuple(self._skipped)
        return Evaluation(self._protocol, videos, skipped, self._lpips, self._fvd(), complete)

    def _fvd(self) -> SetScore:
        frames, clips = self._clip_frames, self._real.count
        if self._network is None:
            return SetScore(None, 0, frames, None, "needs a TorchScript file of I3D, see --i3d")
        if clips < 2:
            reason = f"{clips} clips of {frames} frames have no covariance; at least 2 are needed"
            return SetScore(None, clips, frames, None, reason)
        features = len(self._real.mean)
        try:
            return SetScore(frechet_distance(self._real, self._made), clips, frames, features)
        except ValueError as error:  # numpy's LinAlgError is one; the other scores stay valid
            reason = f"the distance of the features cannot be computed: {error}"
            return SetScore(None, clips, frames, features, reason)


def use_threads(count: int) -> None:
    """Limits the CPU threads of LPIPS and FVD in this process."""
    import torch

    torch.set_num_threads(count)


def _video_score(name: str, size: tuple[int, int], pieces: Sequence[FrameScores]) -> VideoScore:
    psnr = np.concatenate([piece.psnr for piece in pieces])
    finite = psnr[np.isfinite(psnr)]
    lpips = [piece.lpips for piece in pieces if piece.lpips is not None]
    return VideoScore(
        name,
        len(psnr),
        *size,
        identical_frames=len(psnr) - len(finite),
        psnr=float(finite.mean()) if len(finite) else None,
        psnr_limited=float(np.minimum(psnr, PSNR_LIMIT).mean()),
        ssim=float(np.concatenate([piece.ssim for piece in pieces]).mean()),
        lpips=float(np.concatenate(lpips).mean()) if lpips else None,
    )
