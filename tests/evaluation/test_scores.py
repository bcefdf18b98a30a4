"""Intervals, paired comparisons, and their results as JSON and Markdown."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy")
pytest.importorskip("skimage")

from wfvae.errors import InputError
from wfvae.evaluation.evaluator import Evaluator
from wfvae.evaluation.lpips_choice import LPIPSChoice
from wfvae.evaluation.protocol import Protocol
from wfvae.evaluation.results import Labelled, to_json
from wfvae.evaluation.scores import PSNR_LIMIT, Evaluation, SetScore, VideoScore, compare, mean_interval
from wfvae.evaluation.tables import to_markdown


def test_interval_of_worked_values() -> None:
    # t(0.975, 4) = 2.776445 in every table.
    values = [2.0, 4.0, 4.0, 5.0, 10.0]
    found = mean_interval(values)
    reach = 2.776445 * statistics.stdev(values) / math.sqrt(5)
    assert (found.value, found.count) == (5.0, 5)
    assert (found.low, found.high) == (pytest.approx(5 - reach, abs=1e-5), pytest.approx(5 + reach, abs=1e-5))
    assert mean_interval([3.0]).low is None
    assert mean_interval([3.0, 3.0]).low == 3.0
    for wrong in ([], [1.0, math.inf]):
        with pytest.raises(InputError):
            mean_interval(wrong)


def evaluation(scores: dict[str, float | tuple[float | None, float | None] | None]) -> Evaluation:
    """An evaluation with these PSNRs, or pairs of PSNR and LPIPS; a PSNR of None is infinite."""
    videos = []
    for name, score in scores.items():
        psnr, lpips = score if isinstance(score, tuple) else (score, None)
        limited, identical = (PSNR_LIMIT, 5) if psnr is None else (psnr, 0)
        videos.append(VideoScore(name, 5, 16, 16, identical, psnr, limited, 0.5, lpips))
    choice = LPIPSChoice("made by hand", None)
    return Evaluation(Protocol(), tuple(videos), (), choice, SetScore(None, 0, 33, None, "-"), True)


def test_differences_are_of_the_same_video() -> None:
    first = evaluation({"a": 30.0, "b": 20.0, "c": 40.0, "d": None, "only": 1.0})
    second = evaluation({"d": 30.0, "c": 42.0, "b": 23.0, "a": 31.0})
    psnr, ssim, lpips = compare(first, second)
    assert psnr.mean is not None and ssim.mean is not None
    assert (psnr.mean.count, psnr.left_out, psnr.significant) == (4, 0, False)
    assert psnr.mean.value == pytest.approx((1 + 3 + 2 + 30 - PSNR_LIMIT) / 4)
    assert (ssim.mean.value, ssim.significant) == (0.0, False)
    assert lpips.mean is None
    with pytest.raises(InputError, match="both"):
        compare(first, evaluation({"z": 1.0}))


def test_regressions_are_named_worst_first_without_rounding() -> None:
    first = evaluation(
        {"a": (20.0, 0.1), "b_1": (30.0, 0.3), "c": (40.0, 0.4), "d": (25.0, 0.2), "only": (1.0, 0.9)}
    )
    second = evaluation({"d": (25.0, 0.5), "c": (39.0, None), "b_1": (27.0, 0.2), "a": (22.0, 0.1 + 5e-7)})
    entries = [Labelled("one", first), Labelled("other", second)]
    differences = compare(first, second)
    result = to_json(entries, differences, 1)
    assert result["reconstructions"][0]["worst"] == {"psnr": ["only"], "ssim": ["a"], "lpips": ["only"]}
    data = result["difference"]
    assert data["videos"] == [
        {"name": "a", "psnr": 2.0, "ssim": 0.0, "lpips": pytest.approx(5e-7)},
        {"name": "b_1", "psnr": -3.0, "ssim": 0.0, "lpips": pytest.approx(-0.1)},
        {"name": "c", "psnr": -1.0, "ssim": 0.0, "lpips": None},
        {"name": "d", "psnr": 0.0, "ssim": 0.0, "lpips": pytest.approx(0.3)},
    ]
    assert data["regressions"] == {"psnr": ["b_1"], "ssim": [], "lpips": ["d"]}
    markdown = to_markdown(entries, differences, 5)
    assert "- the second is worse by PSNR in 2 of 4 videos: b\\_1 (-3), c (-1)\n" in markdown
    assert "- the second is worse by SSIM in 0 of 4 videos\n" in markdown
    assert "- the second is worse by LPIPS in 1 of 3 videos: d (+0.3)\n" in markdown


def scored(levels: list[int]) -> Evaluation:
    """Scores a video whose reconstruction is off by these levels in each frame."""
    real = np.zeros((len(levels), 11, 11, 3), np.uint8)
    pieces = real, real + np.array(levels, np.uint8)[:, None, None, None]
    videos = {"video": lambda protocol: iter([pieces])}
    return Evaluator(videos, Protocol(None, None), LPIPSChoice("none", None, "-")).run()


def psnr_difference(first: list[int], second: list[int]) -> float:
    mean = compare(scored(first), scored(second))[0].mean
    assert mean is not None
    return mean.value


def test_perfect_frames_on_one_side_do_not_reverse_the_verdict() -> None:
    """By finite PSNRs alone the second would be 5 dB better, yet it is worse in 32 of 33 frames."""
    first, second = [0] * 32 + [8], [4] * 33
    one, other = 20 * math.log10(255 / 8), 20 * math.log10(255 / 4)
    assert scored(first).videos[0].psnr == pytest.approx(one)
    assert psnr_difference(first, second) == pytest.approx(other - (32 * PSNR_LIMIT + one) / 33)
    assert psnr_difference([0, 0], [4, 4]) == pytest.approx(other - PSNR_LIMIT)
    assert psnr_difference([0, 8], [0, 4]) == pytest.approx((other - one) / 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_reconstruction_that_is_better_in_every_frame_is_better(frames: list[tuple[int, int]]) -> None:
    better, worse = [a for a, _ in frames], [a + more for a, more in frames]
    difference = psnr_difference(worse, better)
    assert difference >= 0
    assert (difference > 0) == (better != worse)
    assert psnr_difference(better, worse) == -difference


def test_verdict_is_better_for_higher_psnr_and_for_lower_lpips() -> None:
    low = evaluation({"a": (20.0, 0.1), "b": (30.0, 0.3), "c": (40.0, 0.4)})
    high = evaluation({"a": (21.0, 0.2), "b": (31.1, 0.41), "c": (41.2, 0.5)})
    entries = [Labelled("one", low), Labelled("other", high)]
    rows = to_markdown(entries, compare(low, high), 0).splitlines()
    verdicts = [row.split(" | ")[-1].strip(" |") for row in rows if row.startswith(("| PSNR", "| LPIPS"))]
    assert verdicts == ["better", "worse"]
