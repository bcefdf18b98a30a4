"""The Inception Score, against values computed by hand, and where classes come from."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from wfvae.errors import InputError
from wfvae.evaluation.inception import inception_score
from wfvae.evaluation.video_features import VideoFeatures

pytest.importorskip("scipy.special")


def test_score_of_two_videos_is_that_computed_by_hand() -> None:
    # p(y) = (0.5, 0.5); both divergences are 0.75 ln 1.5 + 0.25 ln 0.5.
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    found = inception_score([[0.75, 0.25], [0.25, 0.75]], splits=1)
    assert (found.mean, found.deviation, found.splits) == (pytest.approx(expected, rel=1e-12), 0.0, 1)


def test_score_of_clear_and_even_classes_is_their_number() -> None:
    assert inception_score(np.eye(5)[[0, 1, 2, 3, 4] * 3], splits=3).mean == pytest.approx(5)


def test_score_of_equal_videos_is_one() -> None:
    assert inception_score([[0.2, 0.3, 0.5]] * 4, splits=2).mean == pytest.approx(1)


def test_splits_are_scored_apart_and_averaged() -> None:
    # The first two videos have one class each: 2. The others are alike: 1.
    found = inception_score([[1, 0], [0, 1], [0, 1], [0, 1]], splits=2)
    assert (found.mean, found.deviation) == (pytest.approx(1.5), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("rows", "splits", "message"),
    [
        ([[0.5, 0.5]], 2, r"shape \(1, 2\) for 2 splits"),
        ([0.5, 0.5], 1, r"shape \(2,\)"),
        ([[3.0, -2.0]], 1, "softmax"),
        ([[math.nan, 1.0]], 1, "softmax"),
    ],
)
def test_what_is_no_probabilities_is_refused(rows: list[object], splits: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inception_score(rows, splits)


class Switched(torch.nn.Module):
    """Two features or three classes of a clip."""

    def forward(self, x: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        return torch.zeros(len(x), 2 if return_features else 3)


def test_network_with_a_switch_returns_features_or_classes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Switched()).save(str(tmp_path / "net.pt"))
    clip = [np.zeros((8, 8, 3), np.uint8)] * 2
    assert VideoFeatures(tmp_path / "net.pt").of(clip).shape == (1, 2)
    assert VideoFeatures(tmp_path / "net.pt", "classes").of(clip).shape == (1, 3)
