"""The Fréchet distance between two sets of features, each taken as a normal distribution."""

import numpy as np
import numpy.typing as npt

from wfvae.errors import InputError

Array = npt.NDArray[np.float64]


class FeatureMoments:
    """Accumulates mean and covariance of feature vectors in float64, one batch at a time."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        """(d,)"""
        self._scatter: Array = np.zeros((0, 0))

    def add(self, features: npt.ArrayLike) -> None:
        """Adds features (n, d), n >= 1, equal d in all calls. Raises `InputError` for others."""
        batch = np.asarray(features, dtype=np.float64)
        if batch.ndim != 2 or not len(batch) or (self.count and batch.shape[1] != len(self.mean)):
            expected = len(self.mean) or "d"
            raise InputError(f"features have shape {batch.shape}; expected (n, {expected}), n >= 1")
        if not np.isfinite(batch).all():
            problem = "features hold NaN or infinite values"
            raise InputError(f"{problem}; the feature network does not fit these videos")
        if not self.count:
            self.mean, self._scatter = np.zeros(batch.shape[1]), np.zeros((batch.shape[1],) * 2)
        # Merged about the common mean: raw second moments would lose the covariance of features far
        # from zero.
        mean, total = batch.mean(axis=0), self.count + len(batch)
        centred, shift = batch - mean, mean - self.mean
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Array:
        """(d, d), with n - 1 in the denominator. Raises `InputError` for fewer than 2 vectors."""
        if self.count < 2:
            raise InputError(f"{self.count} feature vectors have no covariance; expected at least 2")
        return self._scatter / (self.count - 1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Computes |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least 0.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2),
    which is symmetric: this holds for singular covariances too (fewer vectors than features), for
    which `scipy.linalg.sqrtm` of the product is badly conditioned.
    """
    from scipy.linalg import eigh

    values, vectors = eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    product = root @ b.covariance @ root
    overlap = np.sqrt(np.clip(eigh((product + product.T) / 2, eigvals_only=True), 0.0, None)).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return max(float(((a.mean - b.mean) ** 2).sum() + traces - 2 * overlap), 0.0)
