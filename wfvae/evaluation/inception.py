"""The Inception Score of generated videos (Salimans et al. 2016; for videos Saito et al. 2017)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError

SPLITS = 10
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class InceptionScore:
    """1 (all videos look alike, or none is of a clear class) to the number of classes."""

    mean: float
    """Over the splits."""
    deviation: float
    """Standard deviation over the splits, with n in the denominator."""
    splits: int


def inception_score(probabilities: npt.ArrayLike, splits: int = SPLITS) -> InceptionScore:
    """Computes exp(mean of KL(p(y|x) || p(y))) in consecutive splits, where p(y) is a split's mean.

    Args:
        probabilities: (n, classes), a classifier's p(y|x) of each video.
        splits: at most n; they differ in size by at most one.

    Raises:
        InputError: rows are no probabilities, or are fewer than the splits.
    """
    from scipy.special import rel_entr

    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or not 1 <= splits <= len(rows):
        problem = f"probabilities have shape {rows.shape} for {splits} splits"
        raise InputError(f"{problem}; expected (n, classes) with n of at least the number of splits")
    # Negated, so that NaN is refused, too.
    if not (rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() <= _SUM_TOLERANCE):
        problem = "rows are no probabilities: expected values of at least 0 whose sum is 1"
        raise InputError(f"{problem}; apply a softmax to logits first")
    parts = np.array_split(rows, splits)
    scores = [np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)
