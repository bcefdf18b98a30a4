"""The Fréchet distance, against the root of the product of covariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfvae.evaluation.frechet import FeatureMoments, frechet_distance

linalg = pytest.importorskip("scipy.linalg")


def moments(features: np.ndarray, pieces: int = 1) -> FeatureMoments:
    found = FeatureMoments()
    for piece in np.array_split(features, pieces):
        found.add(piece)
    return found


def test_distance_agrees_with_the_root_of_the_product() -> None:
    dice = np.random.default_rng(3)
    a = dice.normal(size=(60, 8)) @ dice.normal(size=(8, 8))
    b = dice.normal(size=(50, 8)) @ dice.normal(size=(8, 8)) + 0.3
    one, two = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(expected, rel=1e-6)


def test_distance_with_fewer_vectors_than_features() -> None:
    features = np.random.default_rng(4).normal(size=(3, 20)) + 100.0
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(moments(features), moments(features + 2.0)) == pytest.approx(20 * 4.0, rel=1e-6)


@given(st.integers(1, 9), st.integers(0, 100), st.sampled_from([0.0, 1e4]))
def test_moments_do_not_depend_on_batches(pieces: int, seed: int, offset: float) -> None:
    features = np.random.default_rng(seed).normal(size=(12, 4)) + offset
    found = moments(features, pieces)
    assert found.mean == pytest.approx(features.mean(0), abs=1e-8)
    assert found.covariance == pytest.approx(np.cov(features.T), abs=1e-8)
