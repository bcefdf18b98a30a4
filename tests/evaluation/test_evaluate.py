"""Scores of reconstructions: each metric against a second library or worked values, and the command
from video files to results.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
if missing := [name for name in ("skimage", "scipy", "lpips") if find_spec(name) is None]:
    pytest.skip(f"needs the extra eval: {missing[0]} is not installed", allow_module_level=True)

from fixtures.program import Program, clip, load, save  # noqa: E402
from wfvae.errors import InputError  # noqa: E402
from wfvae.evaluation.evaluation import (  # noqa: E402
    LPIPS,
    PSNR,
    SSIM,
    Evaluation,
    Evaluator,
    PairedDifference,
    SetScore,
    VideoScore,
    compare,
)
from wfvae.evaluation.frechet import FeatureMoments, frechet_distance  # noqa: E402
from wfvae.evaluation.interval import mean_interval  # noqa: E402
from wfvae.evaluation.lpips_choice import LPIPSChoice  # noqa: E402
from wfvae.evaluation.protocol import Protocol, open_prepared, resized, square  # noqa: E402
from wfvae.evaluation.results import Labelled, to_json, to_markdown  # noqa: E402
from wfvae.evaluation.sources import reconstruct  # noqa: E402
from wfvae.evaluation.video_files import find_videos, match_videos  # noqa: E402
from wfvae.metrics import frames as frame_metrics  # noqa: E402
from wfvae.metrics.frames import score_frames  # noqa: E402
from wfvae.metrics.torchvision_operators import make_torchvision_importable  # noqa: E402
from wfvae.runtime import Bundle  # noqa: E402
from wfvae.runtime.media.sinks import PNGFolder  # noqa: E402

LOSSLESS = {"codec": "ffv1", "pixel_format": "bgr0"}


def damaged(frames: np.ndarray, amount: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-amount, amount + 1, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


# Frame metrics ------------------------------------------------------------------------------------


def test_psnr_of_worked_values() -> None:
    real = np.full((3, 16, 16, 3), 100, dtype=np.uint8)
    other = real.copy()
    other[0] += 5  # mean square 25
    other[1, 3, 4, 1] += 16  # 256 over 768 values
    scores = score_frames(real, other)
    assert scores.psnr[:2] == pytest.approx(
        [20 * math.log10(255 / 5), 10 * math.log10(255**2 * 768 / 256)], abs=1e-9
    )
    assert scores.psnr[2] == math.inf
    assert scores.ssim[2] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("amount", [1, 12, 90])
def test_psnr_and_ssim_agree_with_torchmetrics(amount: int) -> None:
    if find_spec("torchvision") is not None:
        make_torchvision_importable("the test", "eval")
    metrics = pytest.importorskip("torchmetrics.functional.image")
    real = clip(2, 24, 36)
    other = damaged(real, amount)
    scores = score_frames(real, other)
    tensors = [torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255 for frames in (other, real)]
    psnr = metrics.peak_signal_noise_ratio(*tensors, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert scores.psnr == pytest.approx(psnr.numpy(), abs=1e-5)
    # Its mean counts windows that reach beyond the frame; the map allows to leave them out.
    _, similarity = metrics.structural_similarity_index_measure(
        *tensors, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    assert scores.ssim == pytest.approx(similarity[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3)).numpy(), abs=1e-9)


def test_frames_are_scored_alone_and_in_order() -> None:
    real = clip(20, 24, 24)
    other = damaged(real, 20)
    together = score_frames(real, other)
    alone = [score_frames(real[k : k + 1], other[k : k + 1]) for k in range(20)]
    assert together.psnr.tolist() == [one.psnr[0] for one in alone]
    assert together.ssim == pytest.approx([one.ssim[0] for one in alone], abs=1e-6)


def test_lpips_agrees_with_the_package_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    make_torchvision_importable("the test", "eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about how lpips calls it
        import lpips

        torch.manual_seed(5)
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    real = clip(5, 40, 48)
    other = damaged(real, 60)
    monkeypatch.setattr(frame_metrics, "_BATCH_PIXELS", 2 * 40 * 48)  # 2, 2 and 1 frames
    found = score_frames(real, other, lambda a, b: network(a, b)).lpips
    with torch.no_grad():
        pairs = [
            [lpips.im2tensor(frame) for frame in pair] for pair in zip(real, other, strict=True)
        ]  # the package's own [-1, 1]
        expected = [float(network(*pair)) for pair in pairs]
        narrow = [float(network(*((tensor + 1) / 2 for tensor in pair))) for pair in pairs]
    assert not np.isclose(expected, narrow, rtol=0.05).any(), "the frames must tell [-1, 1] from [0, 1]"
    assert len({round(value, 4) for value in expected}) == 5
    assert found == pytest.approx(expected, rel=1e-4)
    assert score_frames(real, real, lambda a, b: network(a, b)).lpips == pytest.approx(np.zeros(5), abs=1e-7)


def test_wrong_frames_are_refused() -> None:
    frames = clip(2, 24, 24)
    with pytest.raises(InputError, match="same"):
        score_frames(frames, frames[:1])
    with pytest.raises(InputError, match="11x11"):
        score_frames(frames[:, :10], frames[:, :10])


# Intervals ----------------------------------------------------------------------------------------


def test_interval_of_worked_values() -> None:
    # t(0.975, 4) = 2.776445 in every table.
    values = [2.0, 4.0, 4.0, 5.0, 10.0]
    found = mean_interval(values)
    reach = 2.776445 * statistics.stdev(values) / math.sqrt(5)
    assert (found.value, found.count) == (5.0, 5)
    assert (found.low, found.high) == (pytest.approx(5 - reach, abs=1e-5), pytest.approx(5 + reach, abs=1e-5))
    assert mean_interval([3.0]).low is None
    for wrong in ([], [1.0, math.inf]):
        with pytest.raises(InputError):
            mean_interval(wrong)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    dice = np.random.default_rng(1)
    found = [mean_interval(dice.normal(7.0, 2.0, 6).tolist()) for _ in range(1500)]
    covered = sum(one.low <= 7.0 <= one.high for one in found if one.low is not None and one.high is not None)
    assert abs(covered / 1500 - 0.95) < 0.025  # more than four standard deviations


# Fréchet distance ---------------------------------------------------------------------------------


def moments(features: np.ndarray, pieces: int = 1) -> FeatureMoments:
    found = FeatureMoments()
    for piece in np.array_split(features, pieces):
        found.add(piece)
    return found


def test_frechet_distance_of_commuting_gaussians_has_a_closed_form() -> None:
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    base = np.array(
        [[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]
    )  # orthogonal columns, mean 0
    first, second = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.0])
    shift = np.array([0.5, -1.0, 2.0])
    deviation = math.sqrt(4 / 3)  # of a column, with n - 1
    expected = (shift**2).sum() + ((first - second) ** 2).sum() * deviation**2
    assert frechet_distance(moments(base * first), moments(base * second + shift)) == pytest.approx(
        expected, rel=1e-9
    )


def test_frechet_distance_agrees_with_the_root_of_the_product() -> None:
    from scipy.linalg import sqrtm

    dice = np.random.default_rng(3)
    a = dice.normal(size=(60, 8)) @ dice.normal(size=(8, 8))
    b = dice.normal(size=(50, 8)) @ dice.normal(size=(8, 8)) + 0.3
    one, two = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(
        frechet_distance(moments(b), moments(a)), rel=1e-9
    )


def test_frechet_distance_with_fewer_vectors_than_features() -> None:
    features = np.random.default_rng(4).normal(size=(3, 20)) + 100.0
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(moments(features), moments(features + 2.0)) == pytest.approx(20 * 4.0, rel=1e-6)


@given(st.integers(1, 9), st.integers(0, 100), st.sampled_from([0.0, 1e4]))
def test_moments_do_not_depend_on_batches(pieces: int, seed: int, offset: float) -> None:
    features = np.random.default_rng(seed).normal(size=(12, 4)) + offset
    found = moments(features, pieces)
    assert found.mean == pytest.approx(features.mean(0), abs=1e-8)
    assert found.covariance == pytest.approx(np.cov(features.T), abs=1e-8)


def test_moments_refuse_what_is_no_feature() -> None:
    found = moments(np.zeros((1, 3)))
    with pytest.raises(InputError, match="at least 2"):
        _ = found.covariance
    for wrong in (np.zeros((2, 4)), np.zeros(3), np.full((1, 3), np.nan)):
        with pytest.raises(InputError):
            found.add(wrong)


# Protocol -----------------------------------------------------------------------------------------


@given(st.integers(11, 90), st.integers(11, 90), st.integers(8, 64))
def test_square_is_square_and_centred(height: int, width: int, side: int) -> None:
    ramp = (
        np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3))
        .round()
        .astype(np.uint8)
    )
    found = square(np.ascontiguousarray(ramp), side)
    assert found.shape == (side, side, 3)
    # A ramp keeps its middle value only if the crop is centred; a pixel of the small side is up to
    # `step` levels wide.
    step = 255 / (width - 1) * max(1.0, min(height, width) / side)
    assert abs(float(found[..., 0].mean()) - 127.5) <= step + 1


def test_square_crops_without_resampling_where_the_short_side_fits() -> None:
    frame = clip(1, 32, 48)[0]
    assert np.array_equal(square(frame, 32), frame[:, 8:40])
    assert square(frame[:, :32], 32).base is frame or np.array_equal(square(frame[:, :32], 32), frame[:, :32])


def test_resizing_agrees_with_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    frame = clip(1, 60, 90)[0]
    expected = np.asarray(image.fromarray(frame).resize((45, 30), image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resized(frame, 30, 45) - expected).max() <= 1


def test_windows(tmp_path: Path) -> None:
    frames = clip(12, 16, 16)
    path = save(tmp_path / "v.mkv", frames, **LOSSLESS)

    def window(protocol: Protocol) -> np.ndarray:
        with open_prepared(path, protocol) as prepared:
            return np.stack(list(prepared.frames))

    assert np.array_equal(window(Protocol(5, None)), frames[:5])
    assert np.array_equal(window(Protocol(5, None, "centre")), frames[3:8])
    assert np.array_equal(window(Protocol(None, None)), frames)
    for kind in ("first", "centre"):
        with pytest.raises(InputError, match="has 12 frames, and 13 are scored"):
            window(Protocol(13, None, kind))  # type: ignore[arg-type]


# Files --------------------------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_videos_are_matched_by_their_path_without_suffix(tmp_path: Path) -> None:
    real, other = tmp_path / "real", tmp_path / "other"
    touch(
        real / "a" / "2.mp4",
        real / "a" / "10.mp4",
        real / "b.x.mov",
        real / "images" / "1.png",
        real / "notes.txt",
        real / ".c.mp4",
    )
    touch(other / "a" / "2.mkv", other / "a" / "10.MKV", other / "b.x.mp4", other / "images.mp4")
    assert list(find_videos(real)) == ["a/2", "a/10", "b.x", "images"]
    pairs = match_videos(real, other)
    assert [(pair.name, pair.reconstruction.name) for pair in pairs] == [
        ("a/2", "2.mkv"),
        ("a/10", "10.MKV"),
        ("b.x", "b.x.mp4"),
        ("images", "images.mp4"),
    ]
    touch(other / "more.mp4")
    with pytest.raises(InputError, match="first 'more'"):
        match_videos(real, other)
    assert match_videos(real, other, only_matched=True) == pairs
    touch(real / "b.x.mkv")
    with pytest.raises(InputError, match="same name"):
        match_videos(real, other)


def test_two_files_are_a_pair_whatever_their_names(tmp_path: Path) -> None:
    touch(tmp_path / "x.mp4", tmp_path / "y.mkv")
    [pair] = match_videos(tmp_path / "x.mp4", tmp_path / "y.mkv")
    assert pair.name == "x"
    with pytest.raises(InputError, match="does not exist"):
        match_videos(tmp_path / "x.mp4", tmp_path / "z.mkv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no videos"):
        find_videos(tmp_path / "empty")


# Comparison ---------------------------------------------------------------------------------------


ROUNDING = 20 * math.log10(
    255 * math.sqrt(12)
)  # dB: errors spread evenly over one level have a deviation of 1 / sqrt(12)


def evaluation(scores: dict[str, float | None]) -> Evaluation:
    videos = tuple(
        VideoScore(
            name, 5, 16, 16, 5 if psnr is None else 0, psnr, ROUNDING if psnr is None else psnr, 0.5, None
        )
        for name, psnr in scores.items()
    )
    return Evaluation(
        Protocol(), videos, (), LPIPSChoice("none", None, "-"), SetScore(None, 0, 33, None, "-"), True
    )


def test_paired_differences_are_of_the_same_video() -> None:
    first = evaluation({"a": 30.0, "b": 20.0, "c": 40.0, "d": None, "only": 1.0})
    second = evaluation({"d": 30.0, "c": 42.0, "b": 23.0, "a": 31.0})
    psnr, ssim, lpips = compare(first, second)
    assert psnr.mean is not None
    assert (psnr.mean.value, psnr.mean.count, psnr.left_out) == (
        pytest.approx((1 + 3 + 2 + 30 - ROUNDING) / 4),
        4,
        0,
    )
    assert not psnr.significant
    assert ssim.mean is not None
    assert (ssim.mean.value, ssim.significant) == (0.0, False)
    assert lpips.mean is None
    with pytest.raises(InputError, match="both"):
        compare(first, evaluation({"z": 1.0}))


def with_lpips(scores: dict[str, tuple[float, float | None]]) -> Evaluation:
    """Of PSNR and LPIPS."""
    found = evaluation({name: psnr for name, (psnr, _) in scores.items()})
    videos = tuple(replace(video, lpips=scores[video.name][1]) for video in found.videos)
    return replace(found, videos=videos, lpips=LPIPSChoice("made by hand", None))


def test_the_worst_are_the_lowest_of_psnr_and_the_highest_of_lpips() -> None:
    """The two disagree on every video, and one has no LPIPS; a distance of 0 is the best there is."""
    found = with_lpips(
        {"a": (20.0, 0.1), "b": (30.0, 0.3), "c": (40.0, 0.4), "d": (25.0, 0.0), "e": (10.0, None)}
    )
    assert [video.name for video in found.worst(PSNR, 3)] == ["e", "a", "d"]
    assert [video.name for video in found.worst(LPIPS, 3)] == ["c", "b", "a"]
    assert [video.name for video in found.worst(LPIPS, 9)] == ["c", "b", "a", "d"]
    entry = Labelled("ours", found)
    assert to_json([entry], [], 2)["reconstructions"][0]["worst"]["lpips"] == ["c", "b"]
    assert "Worst LPIPS: c (0.4000), b (0.3000)\n" in to_markdown([entry], [], 2)


def verdicts(differences: list[PairedDifference]) -> list[str]:
    """The last column of the comparison, by metric: PSNR, SSIM, LPIPS."""
    entries = [Labelled(name, evaluation({"a": 30.0})) for name in ("one", "other")]
    lines = to_markdown(entries, differences, 0).splitlines()
    return [
        next(line for line in lines if line.startswith(f"| {title} |")).split(" | ")[-1].strip(" |")
        for title in METRIC_TITLES
    ]


METRIC_TITLES = [metric.title for metric in (PSNR, SSIM, LPIPS)]


def test_the_verdict_says_better_for_higher_psnr_and_for_lower_lpips() -> None:
    low = with_lpips({"a": (20.0, 0.1), "b": (30.0, 0.3), "c": (40.0, 0.4)})
    high = with_lpips({"a": (21.0, 0.2), "b": (31.1, 0.41), "c": (41.2, 0.5)})
    even = with_lpips({"a": (21.0, 0.2), "b": (29.0, 0.2), "c": (40.0, 0.4)})
    assert verdicts(compare(low, high)) == ["better", "no difference shown", "worse"]
    assert verdicts(compare(high, low)) == ["worse", "no difference shown", "better"]
    assert verdicts(compare(low, even)) == ["no difference shown"] * 3


def test_differences_are_listed_by_video_and_the_worst_regressions_by_name() -> None:
    """A video that lacks a score in either is null; what got better, or stayed but for rounding, is
    no regression.
    """
    first = with_lpips(
        {"a": (20.0, 0.1), "b_1": (30.0, 0.3), "c": (40.0, 0.4), "d": (25.0, 0.2), "only": (1.0, 0.9)}
    )
    second = with_lpips({"d": (25.0, 0.5), "c": (39.0, None), "b_1": (27.0, 0.2), "a": (22.0, 0.1 + 5e-7)})
    entries = [Labelled("one", first), Labelled("other", second)]
    differences = compare(first, second)
    data = to_json(entries, differences, 1)["difference"]
    assert data["videos"] == [
        {"name": "a", "psnr": 2.0, "ssim": 0.0, "lpips": pytest.approx(5e-7)},
        {"name": "b_1", "psnr": -3.0, "ssim": 0.0, "lpips": pytest.approx(-0.1)},
        {"name": "c", "psnr": -1.0, "ssim": 0.0, "lpips": None},
        {"name": "d", "psnr": 0.0, "ssim": 0.0, "lpips": pytest.approx(0.3)},
    ]
    assert data["regressions"] == {"psnr": ["b_1"], "ssim": [], "lpips": ["d"]}
    assert to_json(entries, differences, 5)["difference"]["regressions"] == {
        "psnr": ["b_1", "c"],
        "ssim": [],
        "lpips": ["d"],
    }
    markdown = to_markdown(entries, differences, 5)
    assert "- the second is worse by PSNR in 2 of 4 videos: b\\_1 (-3), c (-1)\n" in markdown
    assert "- the second is worse by SSIM in 0 of 4 videos\n" in markdown
    assert "- the second is worse by LPIPS in 1 of 3 videos: d (+0.3)\n" in markdown
    assert "- the second is worse by PSNR in 2 of 4 videos: b\\_1 (-3)\n" in to_markdown(
        entries, differences, 1
    )


def test_the_difference_of_a_metric_that_was_not_measured_is_null_and_has_no_regressions() -> None:
    sets = [evaluation({"a": psnr}) for psnr in (30.0, 29.0)]
    entries = [Labelled("one", sets[0]), Labelled("other", sets[1])]
    data = to_json(entries, compare(*sets), 5)["difference"]
    assert data["videos"] == [{"name": "a", "psnr": -1.0, "ssim": 0.0, "lpips": None}]
    assert data["regressions"] == {"psnr": ["a"], "ssim": []}
    assert "worse by LPIPS" not in to_markdown(entries, compare(*sets), 5)


def test_there_is_no_verdict_on_one_video_nor_without_a_score() -> None:
    alone = [with_lpips({"a": (psnr, None)}) for psnr in (20.0, 30.0)]
    assert verdicts(compare(*alone)) == ["", "", ""]


@dataclass(frozen=True)
class Errors:
    """A source of one video whose reconstruction is off by a number of levels in each frame."""

    levels: list[int]
    names = ["video"]  # noqa: RUF012

    def frames(self, name: str, protocol: Protocol) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        real = np.zeros((len(self.levels), 11, 11, 3), np.uint8)
        yield real, real + np.array(self.levels, np.uint8)[:, None, None, None]


def scored(levels: list[int]) -> Evaluation:
    return Evaluator(Errors(levels), Protocol(None, None), LPIPSChoice("none", None, "-"), None).run(
        lambda done, total: None
    )


def psnr_difference(first: list[int], second: list[int]) -> float:
    mean = compare(scored(first), scored(second))[0].mean
    assert mean is not None
    return mean.value


def test_perfect_frames_on_one_side_only_do_not_turn_the_verdict() -> None:
    """Of the frames with a finite PSNR alone the second would be 5 dB and more better, though it is
    worse in all frames but one.
    """
    first, second = [0] * 32 + [8], [4] * 33
    one, other = 20 * math.log10(255 / 8), 20 * math.log10(255 / 4)
    assert scored(first).videos[0].psnr == pytest.approx(one)
    assert psnr_difference(first, second) == pytest.approx(other - (32 * ROUNDING + one) / 33)
    assert psnr_difference([0, 0], [4, 4]) == pytest.approx(other - ROUNDING), (
        "a video that is perfect as a whole counts as well"
    )
    assert psnr_difference([0, 8], [0, 4]) == pytest.approx((other - one) / 2), (
        "no difference where both are perfect"
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_what_is_better_in_every_frame_is_better(frames: list[tuple[int, int]]) -> None:
    better, worse = [a for a, _ in frames], [a + more for a, more in frames]
    difference = psnr_difference(worse, better)
    assert difference >= 0
    assert (difference > 0) == (better != worse)
    assert psnr_difference(better, worse) == -difference


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "real"
    (folder / "sub").mkdir(parents=True)
    for index, name in enumerate(("a", "sub/b", "c")):
        save(folder / f"{name}.mp4", clip(9, 48, 64, seed=index))
    return folder


@pytest.fixture(scope="module")
def poor(real: Path) -> Path:
    """The videos encoded again, badly."""
    return encoded_again(real, "poor", crf=45)


@pytest.fixture(scope="module")
def better(real: Path) -> Path:
    return encoded_again(real, "better", crf=30)


def encoded_again(real: Path, name: str, **options: Any) -> Path:
    for path in real.rglob("*.mp4"):
        target = real.with_name(name) / path.relative_to(real).with_suffix(".mkv")
        target.parent.mkdir(parents=True, exist_ok=True)
        save(target, load(path)[0], **options)
    return real.with_name(name)


def feature_network(path: Path, switches: bool = False) -> Path:
    """A tiny network of video features as TorchScript: means over time and space of differences
    that the test can work out.
    """

    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3, 4))[:, :2] + x.shape[2]

    class Switches(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
        ) -> torch.Tensor:
            features = x.mean(dim=(2, 3, 4))[:, :2] + x.shape[2]
            if rescale or resize or not return_features or x.shape[3] != 224:
                features = features[:, :1] * 0
            return features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Switches() if switches else Plain()).save(str(path))
    return path


def test_folders_end_to_end(program: Program, real: Path, poor: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "evaluate",
        real,
        poor,
        "--frames",
        9,
        "--size",
        48,
        "--lpips-weights",
        "random",
        "--worst",
        1,
        "--out",
        out,
    ]
    report = program.done(*arguments, "--i3d", feature_network(tmp_path / "net.pt"))
    assert report == json.loads((out / "evaluation.json").read_text())
    [entry] = report["reconstructions"]
    psnr: dict[str, float] = {}
    for path in real.rglob("*.mp4"):
        name = str(path.relative_to(real).with_suffix(""))
        before, after = load(path)[0][:, :, 8:56], load(poor / f"{name}.mkv")[0][:, :, 8:56]
        errors = ((before.astype(float) - after) ** 2).mean(axis=(1, 2, 3))
        psnr[name] = float(np.mean(10 * np.log10(255**2 / errors)))
    assert {video["name"]: video["psnr"] for video in entry["videos"]} == pytest.approx(psnr, abs=1e-9)
    found = entry["metrics"]["psnr"]
    expected = mean_interval(list(psnr.values()))
    assert (found["mean"], *found["interval"], found["videos"]) == pytest.approx(
        (expected.value, expected.low, expected.high, 3), abs=1e-4
    )
    assert entry["worst"]["psnr"] == [min(psnr, key=lambda name: psnr[name])]
    assert entry["metrics"]["lpips"]["mean"] > 0
    assert "random" in entry["metrics"]["lpips"]["network"]
    features = [
        [square_features(path, 9) for path in sorted(folder.rglob("*.m*"))] for folder in (real, poor)
    ]
    a, b = (np.array(one)[:, :2] for one in features)
    assert entry["metrics"]["fvd"]["value"] == pytest.approx(
        frechet_distance(moments(a), moments(b)), abs=1e-6
    )
    assert (entry["metrics"]["fvd"]["clips"], entry["metrics"]["fvd"]["features"]) == (3, 2)
    markdown = (out / "evaluation.md").read_text()
    assert "| Channel | Model | TCPR | PSNR ↑ | SSIM ↑ | LPIPS ↓ | FVD ↓ |" in markdown
    assert f"{expected.value:.2f} ± " in markdown


def test_by_default_the_protocol_is_the_papers(program: Program, tmp_path: Path) -> None:
    """33 frames of 256x256 from the beginning, of videos that are longer, and smaller or larger,
    upright or not.
    """
    real, other = tmp_path / "real", tmp_path / "other"
    expected = {}
    for index, (name, size) in enumerate({"small": (60, 88), "tall": (300, 272)}.items()):
        before = clip(40, *size, seed=index)
        after = damaged(before, 25)
        after[33:] = 0  # whatever takes another window is far off
        for folder, frames in ((real, before), (other, after)):
            folder.mkdir(exist_ok=True)
            save(folder / f"{name}.mkv", frames, **LOSSLESS)
        pairs = [(papers_square(a), papers_square(b)) for a, b in zip(before[:33], after[:33], strict=True)]
        expected[name] = np.mean([10 * math.log10(255**2 / np.mean((a - b) ** 2)) for a, b in pairs])
    out = tmp_path / "out"
    [entry] = program.done("evaluate", real, other, "--lpips-weights", "none", "--out", out)[
        "reconstructions"
    ]
    assert entry["protocol"] == {"frames": 33, "size": 256, "window": "first"}
    assert {
        video["name"]: (video["frames"], video["height"], video["width"]) for video in entry["videos"]
    } == {
        "small": (33, 256, 256),
        "tall": (33, 256, 256),
    }
    # Pillow rounds after each of its two passes.
    assert {video["name"]: video["psnr"] for video in entry["videos"]} == pytest.approx(expected, abs=0.1)
    assert all(0 < video["ssim"] < 1 for video in entry["videos"])
    assert (
        "2 videos; 33 frames, first window, 256x256 (short side resized, centre crop)"
        in (out / "evaluation.md").read_text()
    )


def papers_square(frame: np.ndarray) -> np.ndarray:
    """A frame with its short side resized to 256 and cropped around the centre, by Pillow."""
    image = pytest.importorskip("PIL.Image")
    height, width = (256 * length // min(frame.shape[:2]) for length in frame.shape[:2])
    made = np.asarray(image.fromarray(frame).resize((width, height), image.Resampling.BILINEAR)).astype(float)
    top, left = (height - 256) // 2, (width - 256) // 2
    return made[top : top + 256, left : left + 256]


def square_features(path: Path, frames: int) -> np.ndarray:
    """What `feature_network` gives for a video, without it."""
    video = np.stack([square(square(frame, 48), 224) for frame in load(path)[0][:frames]])
    result: np.ndarray = (video / 127.5 - 1).mean(axis=(0, 1, 2)) + frames
    return result


def test_the_common_i3d_file_is_asked_for_features_at_its_own_size(
    program: Program, real: Path, poor: Path, tmp_path: Path
) -> None:
    results = []
    for switches in (False, True):
        network = feature_network(tmp_path / f"{switches}.pt", switches)
        report = program.done(
            "evaluate", real, poor, "--frames", 4, "--size", 32, "--lpips-weights", "none", "--i3d", network
        )
        results.append(report["reconstructions"][0]["metrics"]["fvd"])
    assert results[0] == results[1]
    assert results[0]["features"] == 2


def test_whole_videos_give_several_clips_at_their_own_size(program: Program, tmp_path: Path) -> None:
    for name in ("real", "other"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "long.mkv", damaged(clip(70, 16, 24), 0 if name == "real" else 30), **LOSSLESS)
    network = feature_network(tmp_path / "n.pt")
    report = program.done(
        "evaluate",
        tmp_path / "real",
        tmp_path / "other",
        "--whole",
        "--lpips-weights",
        "none",
        "--i3d",
        network,
    )
    [entry] = report["reconstructions"]
    [video] = entry["videos"]
    assert (video["frames"], video["height"], video["width"]) == (70, 16, 24)
    assert (entry["metrics"]["fvd"]["clips"], entry["metrics"]["fvd"]["frames_per_clip"]) == (2, 33)
    assert entry["metrics"]["psnr"]["interval"] is None, "one video has no interval"


def test_a_bundle_is_scored_as_its_lossless_reconstructions(
    program: Program, exported: Callable[..., Path], real: Path, tmp_path: Path
) -> None:
    bundle = exported("4x8x8-trilinear")
    protocol = ["--frames", 7, "--size", 32, "--window", "centre", "--lpips-weights", "none", "--threads", 1]
    report = program.done("evaluate", "--bundle", bundle, "--data", real, "--chunk", 1, *protocol)
    [entry] = report["reconstructions"]
    assert (entry["label"], entry["compression"], entry["latent_channels"]) == (
        "4x8x8-trilinear",
        [4, 8, 8],
        4,
    )
    for folder in ("prepared", "made"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    for name in find_videos(real):
        with open_prepared(real / f"{name}.mp4", Protocol(7, 32, "centre")) as prepared:
            save(tmp_path / "prepared" / f"{name}.mkv", np.stack(list(prepared.frames)), **LOSSLESS)
        made = tmp_path / "made" / f"{name}.mkv"
        save(made, bundle_frames(bundle, tmp_path / "prepared" / f"{name}.mkv"), **LOSSLESS)
    files = program.done("evaluate", real, tmp_path / "made", *protocol)["reconstructions"][0]
    assert same_scores(files["videos"], entry["videos"])
    whole = program.done(
        "evaluate", tmp_path / "prepared", tmp_path / "made", "--whole", "--lpips-weights", "none"
    )["reconstructions"][0]
    assert same_scores(whole["videos"], entry["videos"])


def same_scores(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Equal but for rounding: frames are scored in pieces of other lengths."""
    keys = ("psnr", "psnr_limited", "ssim")
    return all(
        {**a, **dict.fromkeys(keys)} == {**b, **dict.fromkeys(keys)}
        and [a[k] for k in keys] == pytest.approx([b[k] for k in keys], rel=1e-12)
        for a, b in zip(one, other, strict=True)
    )


def bundle_frames(bundle: Path, video: Path) -> np.ndarray:
    from wfvae.runtime import open_bundle

    frames = load(video)[0]
    with open_bundle(bundle, threads=1) as opened:
        result: np.ndarray = opened.decode(opened.encode(frames), frames=len(frames))
    return result


def test_reconstruction_holds_few_frames_however_long_the_video(opened: Callable[..., Bundle]) -> None:
    bundle = opened("4x8x8-trilinear")
    frame, read, given, most = clip(1, 16, 16)[0], 0, 0, 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(90):
            read += 1
            yield frame

    for before, after in reconstruct(bundle, endless(), 16, 16, 1):
        assert before.shape == after.shape
        given += len(before)
        most = max(most, read - given)
    assert (read, given) == (90, 90)
    assert most <= 8


def test_comparison_end_to_end(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path
) -> None:
    arguments = ["--frames", 9, "--size", 48, "--lpips-weights", "none"]
    report = program.done("evaluate", real, poor, "--compare", better, *arguments, "--out", tmp_path)
    first, second = report["reconstructions"]
    difference = report["difference"]
    assert difference["of"] == "better - poor"
    both = itertools.pairwise(
        [{video["name"]: video["psnr"] for video in entry["videos"]} for entry in (first, second)]
    )
    [(one, two)] = both
    expected = mean_interval([two[name] - one[name] for name in one])
    assert difference["psnr"]["mean"] == pytest.approx(expected.value)
    assert difference["psnr"]["interval"] == pytest.approx([expected.low, expected.high])
    assert expected.value > 0
    assert "## better minus poor, video by video" in (tmp_path / "evaluation.md").read_text()
    text = program("evaluate", real, poor, "--compare", better, *arguments).out
    assert f"{expected.value:+.2f} ± " in text
    assert "the second is worse by PSNR in 0 of 3 videos\n" in text


def test_tables_say_what_was_told_of_reconstructions_in_files(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path
) -> None:
    told = ["--name", "ours", "--channels", 8, "--compression", "4x8x8"]
    told += ["--compare-name", "theirs", "--compare-channels", 16, "--compare-compression", "8X16x16"]
    arguments = [
        "evaluate",
        real,
        poor,
        "--compare",
        better,
        "--frames",
        2,
        "--size",
        16,
        "--lpips-weights",
        "none",
        "--out",
        tmp_path,
    ]
    report = program.done(*arguments, *told)
    facts = [
        (entry["label"], entry["latent_channels"], entry["compression"])
        for entry in report["reconstructions"]
    ]
    assert facts == [("ours", 8, [4, 8, 8]), ("theirs", 16, [8, 16, 16])]
    assert report["difference"]["of"] == "theirs - ours"
    rows = [
        line.split(" | ")
        for line in (tmp_path / "evaluation.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert [row[:3] for row in rows[2:4]] == [
        ["| 8", "ours", "256 (4×8×8)"],
        ["| 16", "theirs", "2048 (8×16×16)"],
    ]
    report = program.done(*arguments)
    facts = [
        (entry["label"], entry["latent_channels"], entry["compression"])
        for entry in report["reconstructions"]
    ]
    assert facts == [("poor", None, None), ("better", None, None)]


def test_a_bundle_is_compared_with_another_and_with_files(
    program: Program, exported: Callable[..., Path], real: Path, poor: Path
) -> None:
    bundles = exported("4x8x8-trilinear"), exported("small")
    protocol = ["--frames", 5, "--size", 32, "--lpips-weights", "none", "--threads", 1]
    report = program.done(
        "evaluate",
        "--bundle",
        bundles[0],
        "--data",
        real,
        *protocol,
        "--compare-bundle",
        bundles[1],
        "--chunk",
        1,
    )
    assert report["difference"]["of"] == "small - 4x8x8-trilinear"
    alone = program.done("evaluate", "--bundle", bundles[1], "--data", real, *protocol)["reconstructions"][0]
    first, second = report["reconstructions"]
    assert same_scores(second["videos"], alone["videos"])
    assert (second["latent_channels"], second["compression"]) == (alone["latent_channels"], [4, 8, 8])
    differences = [
        after["psnr"] - before["psnr"]
        for before, after in zip(first["videos"], second["videos"], strict=True)
    ]
    assert [video["psnr"] for video in report["difference"]["videos"]] == pytest.approx(differences)
    report = program.done(
        "evaluate",
        real,
        poor,
        *protocol,
        "--compare-bundle",
        bundles[1],
        "--compare-name",
        "it",
        "--chunk",
        1,
    )
    assert [entry["label"] for entry in report["reconstructions"]] == ["poor", "it"]
    assert same_scores(report["reconstructions"][1]["videos"], alone["videos"])


OPENVINO_BF16 = ["--backend", "openvino", "--precision-hint", "bf16"]


@pytest.mark.parametrize(
    ("options", "opened", "label"),
    [
        (
            ["--backend", "openvino", "--compare-precision-hint", "bf16"],
            [("openvino", None), ("openvino", "bf16")],
            "{} (bf16)",
        ),
        (["--compare-backend", "openvino"], [("auto", None), ("openvino", None)], "{} (openvino)"),
        (
            [*OPENVINO_BF16, "--compare-backend", "onnxruntime"],
            [("openvino", "bf16"), ("onnxruntime", None)],
            "{} (onnxruntime)",
        ),
        (OPENVINO_BF16, [("openvino", "bf16"), ("openvino", "bf16")], "{}"),
        (
            ["--compare-backend", "openvino", "--compare-name", "fast"],
            [("auto", None), ("openvino", None)],
            "fast",
        ),
    ],
)
def test_a_bundle_is_compared_with_itself_run_otherwise(
    program: Program,
    exported: Callable[..., Path],
    real: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    opened: list[tuple[str, str | None]],
    label: str,
) -> None:
    """Which backend and hint each set is opened with; what those compute is for their own tests."""
    from wfvae.runtime import bundle as module

    seen, providers = [], []
    open_bundle = module.open_bundle

    def noting(
        path: Path, backend: str, *, precision_hint: str | None, provider: str, **others: Any
    ) -> Bundle:
        seen.append((backend, precision_hint))
        providers.append(provider)
        return open_bundle(path, **others)

    monkeypatch.setattr(module, "open_bundle", noting)
    bundle = exported("4x8x8-trilinear")
    arguments = [
        "--frames",
        1,
        "--size",
        16,
        "--lpips-weights",
        "none",
        "--threads",
        1,
        "--provider",
        "cpu",
        *options,
    ]
    report = program.done(
        "evaluate", "--bundle", bundle, "--data", real, "--compare-bundle", bundle, *arguments
    )
    assert providers == ["auto" if "--compare-backend" in options else "cpu", "cpu"]
    assert seen == [opened[1], opened[0]], "the second is opened before the first"
    assert [entry["label"] for entry in report["reconstructions"]] == [bundle.name, label.format(bundle.name)]
    assert [video["psnr"] for video in report["difference"]["videos"]] == [0.0] * 3


def test_a_second_bundle_that_cannot_be_opened_is_told_before_anything_is_scored(
    program: Program,
    exported: Callable[..., Path],
    real: Path,
    poor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wfvae.evaluation import evaluation as module

    monkeypatch.setattr(module, "score_frames", lambda *arguments: pytest.fail("it began to score"))
    arguments = ["evaluate", real, poor, "--frames", 9, "--lpips-weights", "none", "--compare-bundle"]
    assert "nowhere" in program.refused(*arguments, tmp_path / "nowhere")
    assert "'steam'" in program.refused(*arguments, exported("4x8x8-trilinear"), "--compare-backend", "steam")


def test_the_comparison_says_where_frames_were_identical(program: Program, tmp_path: Path) -> None:
    real = clip(4, 16, 16)
    for name, frames in {
        "real": real,
        "spotty": np.concatenate([real[:3], damaged(real[3:], 60)]),
        "even": damaged(real, 30),
    }.items():
        (tmp_path / name).mkdir()
        save(tmp_path / name / "v.mkv", frames, **LOSSLESS)
    arguments = [
        "evaluate",
        tmp_path / "real",
        tmp_path / "spotty",
        "--compare",
        tmp_path / "even",
        "--whole",
        "--lpips-weights",
        "none",
    ]
    report = program.done(*arguments, "--out", tmp_path / "out")
    spotty, even = (entry["videos"][0] for entry in report["reconstructions"])
    assert spotty["psnr"] < even["psnr"] == even["psnr_limited"]
    assert spotty["psnr_limited"] == pytest.approx((3 * ROUNDING + spotty["psnr"]) / 4)
    found = report["difference"]["psnr"]
    assert (found["mean"], found["frame_limit"]) == pytest.approx(
        (even["psnr"] - spotty["psnr_limited"], ROUNDING)
    )
    assert found["mean"] < 0
    assert "as identical ones are, counts as 58.9 dB" in program(*arguments).out
    assert "as identical ones are, counts as 58.9 dB" in (tmp_path / "out" / "evaluation.md").read_text()


def test_fvd_of_other_videos_is_not_subtracted(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path
) -> None:
    arguments = [
        "--frames",
        4,
        "--size",
        32,
        "--lpips-weights",
        "none",
        "--i3d",
        feature_network(tmp_path / "net.pt"),
    ]
    report = program.done("evaluate", real, poor, "--compare", better, *arguments)
    first, second = (entry["metrics"]["fvd"]["value"] for entry in report["reconstructions"])
    assert report["difference"]["fvd"] == {"value": pytest.approx(second - first)}
    fewer = Path(shutil.copytree(better, tmp_path / "fewer"))
    (fewer / "c.mkv").unlink()
    report = program.done("evaluate", real, poor, "--compare", fewer, "--matched", *arguments)
    assert all(entry["metrics"]["fvd"]["value"] is not None for entry in report["reconstructions"])
    assert report["difference"]["psnr"]["videos"] == 2
    assert report["difference"]["fvd"]["value"] is None
    assert "1 were scored in only one of the two, first 'c'" in report["difference"]["fvd"]["not measured"]


def test_identical_frames_are_counted_and_never_averaged(
    program: Program, real: Path, tmp_path: Path
) -> None:
    shutil.copytree(real, tmp_path / "same")
    arguments = ["--frames", 9, "--size", 48, "--lpips-weights", "none"]
    outcome = program("evaluate", real, tmp_path / "same", *arguments)
    assert outcome.code == 0
    assert "27 of 27 frames are identical" in outcome.out
    assert "∞" in outcome.out
    frames = load(real / "a.mp4")[0]
    frames[3] = damaged(frames[3], 40)
    (tmp_path / "same" / "a.mp4").unlink()
    save(tmp_path / "same" / "a.mkv", frames, **LOSSLESS)
    entry = program.done("evaluate", real, tmp_path / "same", *arguments)["reconstructions"][0]
    video = next(video for video in entry["videos"] if video["name"] == "a")
    crop = [one[3, :, 8:56].astype(float) for one in (load(real / "a.mp4")[0], frames)]
    alone = 10 * math.log10(255**2 / np.mean((crop[0] - crop[1]) ** 2))
    assert (video["identical_frames"], video["psnr"]) == (8, pytest.approx(alone))
    found = entry["metrics"]["psnr"]
    assert (found["mean"], found["videos"], found["identical_frames"], found["identical_videos"]) == (
        pytest.approx(alone),
        1,
        26,
        2,
    )


def test_what_cannot_be_scored_is_skipped_and_said(
    program: Program, real: Path, poor: Path, tmp_path: Path
) -> None:
    shutil.copytree(poor, tmp_path / "mixed")
    (tmp_path / "mixed" / "a.mkv").write_bytes(b"no video")
    save(tmp_path / "mixed" / "c.mkv", clip(9, 40, 40))
    arguments = ["--frames", 9, "--size", 48, "--lpips-weights", "none"]
    outcome = program("evaluate", real, tmp_path / "mixed", *arguments, "--json")
    assert outcome.code == 1
    entry = outcome.report["reconstructions"][0]
    assert [video["name"] for video in entry["videos"]] == ["sub/b"]
    reasons = {one["name"]: one["reason"] for one in entry["skipped"]}
    assert "mixed/a.mkv" in reasons["a"]
    assert "40x40" in reasons["c"]
    assert "none of 3 videos could be scored" in program.refused("evaluate", real, poor, "--frames", 10)
    short = tmp_path / "short"
    shutil.copytree(poor, short)
    save(short / "a.mkv", load(poor / "a.mkv")[0][:8])
    entry = program("evaluate", real, short, "--whole", "--lpips-weights", "none", "--json").report[
        "reconstructions"
    ][0]
    assert "one ends after 8" in entry["skipped"][0]["reason"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", ""])
@pytest.mark.parametrize("window", ["first", "centre"])
def test_a_reconstruction_of_other_length_is_not_scored_in_silence(
    program: Program, tmp_path: Path, suffix: str, window: str
) -> None:
    """Though the frames of the window are all there."""
    frames = clip(12, 16, 16)
    real, other = tmp_path / "real", tmp_path / "other"
    counts = {"cut": 9, "longer": 13, "prepared": 5, "whole": 12}
    for name, count in counts.items():
        for folder in (real, other):
            folder.mkdir(exist_ok=True)
        save(real / f"{name}.mp4", frames)
        made = damaged(np.concatenate([frames, frames])[:count], 20)
        save_as(other / name, suffix, made)
    arguments = [
        "evaluate",
        real,
        other,
        "--frames",
        5,
        "--size",
        16,
        "--window",
        window,
        "--lpips-weights",
        "none",
        "--json",
    ]
    outcome = program(*arguments)
    assert (outcome.code, outcome.err) == (1, "")
    [entry] = outcome.report["reconstructions"]
    assert [video["name"] for video in entry["videos"]] == ["prepared", "whole"]
    reasons = {one["name"]: one["reason"] for one in entry["skipped"]}
    assert set(reasons) == {"cut", "longer"}
    assert all(f"has 12 frames and '{other / name}" in reason for name, reason in reasons.items())
    assert "' 9;" in reasons["cut"] and "' 13;" in reasons["longer"]


def save_as(path: Path, suffix: str, frames: np.ndarray) -> None:
    """A video file, or for no suffix a folder of images."""
    if suffix:
        save(path.with_name(f"{path.name}.{suffix}"), frames)
        return
    folder = PNGFolder(path, "%d.png", frames.shape[2], frames.shape[1], overwrite=False)
    for frame in frames:
        folder.write(frame)


def test_a_wrong_statement_of_the_number_of_frames_is_no_difference(
    program: Program, real: Path, poor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file that was cut without encoding it again: what the container counts and does not
    show.
    """
    from wfvae.evaluation import protocol as module
    from wfvae.runtime.media.video_reader import VideoReader

    class Overstating(VideoReader):
        @property
        def info(self) -> Any:
            found = super().info
            return replace(found, frames=12) if self._name.endswith(".mp4") else found

    monkeypatch.setattr(
        module, "open_video", lambda path: Overstating(path, str(path), None, None, keep_damaged=False)
    )
    report = program.done("evaluate", real, poor, "--frames", 4, "--size", 32, "--lpips-weights", "none")
    assert report["reconstructions"][0]["metrics"]["psnr"]["videos"] == 3


def test_clips_of_a_video_that_is_skipped_do_not_count(program: Program, tmp_path: Path) -> None:
    for name in ("real", "other"):
        (tmp_path / name).mkdir()
        for index in range(3):
            count = 34 if (name, index) == ("other", 1) else 35
            save(
                tmp_path / name / f"{index}.mkv",
                damaged(clip(count, 16, 16, seed=index), 3 if name == "real" else 9),
                **LOSSLESS,
            )
    arguments = ["--whole", "--lpips-weights", "none", "--i3d", feature_network(tmp_path / "n.pt"), "--json"]
    outcome = program("evaluate", tmp_path / "real", tmp_path / "other", *arguments)
    assert (outcome.code, outcome.report["reconstructions"][0]["metrics"]["fvd"]["clips"]) == (1, 2)


class Unfit(torch.nn.Module):
    """A feature network that fails, in one of several ways, for clips brighter than all others."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = x.mean(dim=(2, 3, 4))[:, :2]
        if bool(x.mean() > 0.9):
            if self.way == "raises":
                raise ValueError("much too bright")
            if self.way == "reads beyond":
                features = x.select(1, 99).mean(dim=(2, 3))
            if self.way == "gives NaN":
                features = features * float("nan")
            if self.way == "gives less":
                features = features[:, :1]
            if self.way == "gives no batch":
                features = features[0]
        return features


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("raises", "much too bright"),
        ("reads beyond", "out of range"),
        ("gives NaN", "NaN or infinite features"),
        ("gives less", "different lengths, 1 and 2"),
        ("gives no batch", "expected a tensor (1, d)"),
    ],
)
@pytest.mark.parametrize("bright", [0, 1])
def test_a_video_that_the_feature_network_fails_on_is_skipped_and_the_others_are_scored(
    program: Program, tmp_path: Path, way: str, says: str, bright: int
) -> None:
    """The network fails on the reconstruction only, so that the original's features are there
    already.
    """
    for name in ("real", "other"):
        (tmp_path / name).mkdir()
        for index in range(4):
            frames = damaged(clip(3, 16, 16, seed=index), 3 if name == "real" else 9)
            save(
                tmp_path / name / f"{index}.mkv",
                np.full_like(frames, 255) if (name, index) == ("other", bright) else frames,
                **LOSSLESS,
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Unfit(way)).save(str(tmp_path / "net.pt"))
    arguments = [
        "--frames",
        3,
        "--size",
        16,
        "--lpips-weights",
        "none",
        "--i3d",
        tmp_path / "net.pt",
        "--json",
    ]
    outcome = program("evaluate", tmp_path / "real", tmp_path / "other", *arguments)
    assert (outcome.code, outcome.err) == (1, "")
    [entry] = outcome.report["reconstructions"]
    assert [video["name"] for video in entry["videos"]] == [
        str(index) for index in range(4) if index != bright
    ]
    [skipped] = entry["skipped"]
    assert (skipped["name"], says in skipped["reason"]) == (str(bright), True), skipped
    assert (entry["metrics"]["fvd"]["clips"], entry["metrics"]["fvd"]["features"]) == (3, 2)
    assert entry["metrics"]["fvd"]["value"] > 0


def test_scores_stand_where_the_distance_of_features_cannot_be_computed(
    program: Program, real: Path, poor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.evaluation import video_features

    def unlucky(*moments: object) -> float:
        raise np.linalg.LinAlgError("eigenvalues did not converge")

    monkeypatch.setattr(video_features, "frechet_distance", unlucky)
    arguments = [
        "--frames",
        4,
        "--size",
        32,
        "--lpips-weights",
        "none",
        "--i3d",
        feature_network(tmp_path / "net.pt"),
    ]
    metrics = program.done("evaluate", real, poor, *arguments)["reconstructions"][0]["metrics"]
    assert (metrics["fvd"]["value"], metrics["psnr"]["videos"]) == (None, 3)
    assert "did not converge" in metrics["fvd"]["not measured"]


def test_backbone_that_cannot_be_had_is_not_measured_and_the_rest_is(
    program: Program, real: Path, poor: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    report = program.done("evaluate", real, poor, "--frames", 9, "--size", 48)
    metrics = report["reconstructions"][0]["metrics"]
    assert metrics["psnr"]["mean"] > 10
    assert metrics["lpips"]["mean"] is None
    assert "no network here" in metrics["lpips"]["not measured"]
    assert "--i3d" in metrics["fvd"]["not measured"]


def test_interrupted_work_is_kept(
    program: Program, real: Path, poor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.evaluation import evaluation as module

    counted = 0

    def interrupting(*arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted > 3:  # two pieces of the first video, then into the second
            raise KeyboardInterrupt
        return score_frames(*arguments)

    monkeypatch.setattr(module, "score_frames", interrupting)
    arguments = ["--frames", 9, "--size", 48, "--lpips-weights", "none", "--out", tmp_path]
    outcome = program("evaluate", real, poor, *arguments)
    assert outcome.code == 130
    assert "interrupted: not all videos were scored" in outcome.out
    [entry] = json.loads((tmp_path / "evaluation.json").read_text())["reconstructions"]
    assert (entry["complete"], len(entry["videos"])) == (False, 1)
    assert "interrupted" in (tmp_path / "evaluation.md").read_text()


def test_the_first_set_is_written_before_the_second_and_outlives_an_interruption(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.evaluation import evaluation as module

    written: list[Any] = []
    counted = 0

    def interrupting(*arguments: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted > 3 * 2:  # three videos in two pieces each
            written.append(json.loads((tmp_path / "evaluation.json").read_text()))
            raise KeyboardInterrupt
        return score_frames(*arguments)

    monkeypatch.setattr(module, "score_frames", interrupting)
    arguments = [
        "--compare",
        better,
        "--frames",
        9,
        "--size",
        48,
        "--lpips-weights",
        "none",
        "--out",
        tmp_path,
    ]
    outcome = program("evaluate", real, poor, *arguments, "--json")
    assert outcome.code == 130
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert [stored] == written == [outcome.report]
    [entry] = stored["reconstructions"]
    assert (entry["label"], entry["complete"], len(entry["videos"])) == ("poor", True, 3)
    assert "difference" not in stored


def with_only(folder: Path, target: Path, names: set[str]) -> Path:
    """A copy in which only these videos can be read."""
    shutil.copytree(folder, target)
    for path in target.rglob("*.mkv"):
        if path.stem not in names:
            path.write_bytes(b"no video")
    return target


@pytest.mark.parametrize(
    ("first", "second", "says", "labels"),
    [
        ({"a", "b", "c"}, set(), "none of 3 videos could be scored", ["first"]),
        ({"a", "b"}, {"c"}, "no video was scored in both", ["first", "second"]),
        (set(), {"a"}, "none of 3 videos could be scored", None),
    ],
)
def test_what_was_scored_outlives_a_comparison_that_fails(
    program: Program,
    real: Path,
    poor: Path,
    tmp_path: Path,
    first: set[str],
    second: set[str],
    says: str,
    labels: list[str] | None,
) -> None:
    folders = with_only(poor, tmp_path / "first", first), with_only(poor, tmp_path / "second", second)
    out = tmp_path / "out"
    arguments = ["--frames", 9, "--size", 48, "--lpips-weights", "none", "--out", out, "--json"]
    outcome = program("evaluate", real, folders[0], "--compare", folders[1], *arguments)
    assert outcome.code == 2
    assert says in outcome.err and len(outcome.err.splitlines()) == 1
    if labels is None:
        assert outcome.out == "" and list(out.iterdir()) == []
        return
    assert outcome.report == json.loads((out / "evaluation.json").read_text())
    assert [entry["label"] for entry in outcome.report["reconstructions"]] == labels
    assert all(entry["complete"] for entry in outcome.report["reconstructions"])
    assert "difference" not in outcome.report


@pytest.mark.parametrize("place", ["is a file", "below a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_scored(
    program: Program, real: Path, poor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from wfvae.evaluation import evaluation as module

    def read_only(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "score_frames", lambda *arguments: pytest.fail("it began to score"))
    (tmp_path / "file").touch()
    out = tmp_path / {"is a file": "file", "below a file": "file/out", "read-only": "out"}[place]
    if place == "read-only":
        monkeypatch.setattr(Path, "touch", read_only)
    line = program.refused("evaluate", real, poor, "--frames", 9, "--lpips-weights", "none", "--out", out)
    assert f"cannot write the evaluation to {out}: " in line and "--out" in line


def test_scores_that_cannot_be_written_are_shown(
    program: Program, real: Path, poor: Path, better: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    arguments = ["--frames", 9, "--size", 48, "--lpips-weights", "none", "--out", tmp_path, "--json"]
    outcome = program("evaluate", real, poor, "--compare", better, *arguments)
    assert outcome.code == 2
    assert "No space left on device" in outcome.err and len(outcome.err.splitlines()) == 1
    assert outcome.report["difference"]["psnr"]["videos"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "REAL and RECON"),
        (["REAL"], "REAL and RECON"),
        (["REAL", "POOR", "--bundle", "b", "--data", "d"], "either"),
        (["--bundle", "b"], "--data"),
        (["REAL", "POOR", "--whole", "--frames", "3"], "--whole"),
        (["REAL", "POOR", "--chunk", "3"], "--chunk"),
        (["REAL", "nowhere"], "nowhere does not exist"),
        (["REAL", "POOR", "--i3d", "nowhere.pt"], "nowhere.pt does not exist"),
        (["REAL", "POOR", "--i3d", "REAL/a.mp4"], "TorchScript"),
        (["REAL", "POOR", "--lpips-weights", "nowhere.pth"], "nowhere.pth"),
        (["REAL", "POOR", "--lpips-weights", "REAL/a.mp4"], "a.mp4"),
        (["REAL", "POOR", "--channels", "0"], "--channels"),
        *(
            (["REAL", "POOR", "--compression", wrong], f"'{wrong}' is not a compression")
            for wrong in ("8x8", "4x8x8x8", "4x0x8", "4*8*8", "")
        ),
        (["REAL", "POOR", "--compare", "POOR", "--compare-compression", "256"], "'256' is not a compression"),
        (["--bundle", "b", "--data", "d", "--channels", "8"], "--channels was given for the bundle b"),
        (
            ["--bundle", "b", "--data", "d", "--compression", "4x8x8"],
            "--compression was given for the bundle b",
        ),
        (
            ["REAL", "POOR", "--compare-bundle", "b", "--compare-channels", "8"],
            "--compare-channels was given for the bundle b",
        ),
        (["REAL", "POOR", "--compare-name", "x"], "--compare-name is for a second set"),
        (["REAL", "POOR", "--compare-channels", "8"], "--compare-channels is for a second set"),
        (["REAL", "POOR", "--compare-compression", "4x8x8"], "--compare-compression is for a second set"),
        (["REAL", "POOR", "--compare", "POOR", "--compare-bundle", "b"], "one of the two"),
        (
            ["REAL", "POOR", "--compare", "POOR", "--compare-backend", "openvino"],
            "--compare-backend is for --compare-bundle",
        ),
        (
            ["REAL", "POOR", "--compare-precision-hint", "bf16"],
            "--compare-precision-hint is for --compare-bundle",
        ),
    ],
)
def test_wrong_use_is_one_line(
    program: Program, real: Path, poor: Path, arguments: list[str], says: str
) -> None:
    given = [argument.replace("REAL", str(real)).replace("POOR", str(poor)) for argument in arguments]
    assert says in program.refused("evaluate", *given)


@pytest.mark.parametrize("missing", ["skimage.metrics", "scipy"])
def test_without_the_extra_one_line_names_it(
    program: Program, real: Path, poor: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    line = program.refused("evaluate", real, poor)
    assert "pip install 'wfvae[eval]'" in line
    assert missing in line


def test_without_torch_one_line_names_the_extra(real: Path, poor: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from wfvae.cli import main as cli; sys.exit(cli.main(['evaluate',"
        " *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(real), str(poor)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "torch" in done.stderr
    assert "pip install 'wfvae[eval]'" in done.stderr
