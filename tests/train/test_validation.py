"""Validation of a run: which weights and clips are scored, and what happens when that fails."""

import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fixtures.program import clip, save
from fixtures.training import (
    CPU,
    WITH_DISCRIMINATOR,
    folder_settings,
    make_videos,
    newest_step,
    small,
    state_of,
)
from wfvae.errors import ConfigError, MissingExtraError, TrainingError
from wfvae.model.vae import WFVAE
from wfvae.train.config import TrainingConfig
from wfvae.train.data import ProceduralClips, held_out
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.record import read_metrics
from wfvae.train.run import Watcher, train
from wfvae.train.sources import validation_source
from wfvae.train.validation import NotFiniteScoresError, Scores, validate


def scores_of(
    model: WFVAE, config: TrainingConfig, run: Path, perceptual: PerceptualLoss | None = None
) -> Scores:
    """What a validation of that run gives for a model."""
    source = validation_source(config, run)
    assert source is not None
    return validate(model, held_out(source, config.validation.clips), perceptual)


def test_averaged_weights_are_validated(finished_run: Path) -> None:
    for line in read_metrics(finished_run, "validation"):
        step = int(line["step"])
        state = state_of(finished_run, step)
        model = WFVAE.from_pretrained(finished_run / "checkpoints" / f"step-{step:08d}")
        scores = {}
        for prefix in ("average", "model"):
            model.load_state_dict({name: state[f"{prefix}.{name}"] for name in model.state_dict()})
            scores[prefix] = scores_of(model, small(**WITH_DISCRIMINATOR), finished_run)
        assert line["psnr_db"] == pytest.approx(scores["average"].psnr_db, rel=1e-4)
        assert line["ssim"] == pytest.approx(scores["average"].ssim, rel=1e-4)
        assert abs(line["psnr_db"] - scores["model"].psnr_db) > 1e-2, "otherwise it could be either"


@pytest.mark.parametrize(("part", "found"), [("encoder", "latents"), ("decoder", "reconstructions")])
def test_values_that_are_not_finite_have_no_scores(part: str, found: str) -> None:
    model = WFVAE.random(small().model.architecture(), 0).eval()
    with torch.no_grad():
        next(getattr(model, part).conv_out.parameters()).fill_(math.nan)
    source = ProceduralClips(0, 1, 5, (32, 32), split="held-out")
    with pytest.raises(NotFiniteScoresError, match=f"{found} are NaN or infinite"):
        validate(model, held_out(source, 1))


def test_failed_validation_costs_no_step_and_is_not_repeated(tmp_path: Path) -> None:
    config = small(run__checkpoint_every=100)
    (tmp_path / "validation").write_text("in the way of the pictures", encoding="utf-8")
    for step in (3, 6):
        with pytest.raises(TrainingError, match=rf"cannot write .*step-0000000{step}.clip-0\.png"):
            train(config, tmp_path, CPU, resume=True)
        assert newest_step(tmp_path) == step
    (tmp_path / "validation").unlink()  # the last one is made up for, once
    scores = [train(config, tmp_path, CPU, resume=True).scores for _ in range(2)]
    [line] = read_metrics(tmp_path, "validation")
    for found in scores:
        assert found is not None and found.lpips is None
        assert found.psnr_db == pytest.approx(line["psnr_db"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__height": 8}, r"are 8x32 pixels, and SSIM needs at least 11x11; set .* at least 16"),
        ({"validation__crop_height": 16, "validation__crop_width": 8}, "are 16x8 pixels"),
        (
            {"validation__width": 8, "loss__perceptual": "random"},
            "are 32x8 pixels, and LPIPS needs at least 16x16",
        ),
    ],
)
def test_clips_too_small_to_be_scored_are_refused_at_the_start(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"clips to validate on {message}"):
        train(small(**changes), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("missing", "package"), [("skimage.metrics", "skimage.metrics"), ("PIL", "pillow")])
def test_missing_packages_of_the_validation_are_named_at_the_start(
    missing: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    expected = rf"needs the package '{package}', which is not installed; run: pip install 'wfvae\[train\]'"
    with pytest.raises(MissingExtraError, match=expected):
        train(small(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_bad_held_out_files_are_reported_once_and_the_rest_is_scored(tmp_path: Path) -> None:
    videos, others = make_videos(tmp_path / "videos", "a.mp4"), make_videos(tmp_path / "others", "a.mp4")
    save(others / "b.mp4", clip(6, seed=2))
    (others / "broken.mp4").write_text("no video", encoding="utf-8")
    size = {"validation__height": 32, "validation__width": 48}
    size |= {"validation__crop_height": 16, "validation__crop_width": 24}
    counts = {"validation__every": 1, "validation__clips": 9, "validation__pictures": 9}
    config = folder_settings(videos, validation__folder=str(others), **size, **counts)
    lines: list[str] = []

    def spoil(*_: object) -> None:
        (others / "a.mp4").write_bytes(b"no video")

    run = tmp_path / "run"
    result = train(config, run, CPU, watcher=Watcher(spoil, lines.append))
    assert (result.finished, result.bad_files) == (True, 0)
    starts = [line.partition("': ")[0] for line in lines]
    assert starts == ["validation: skipped 'broken.mp4", "validation: skipped 'a.mp4"]
    assert [line["step"] for line in read_metrics(run, "validation")] == [1, 2]
    [picture] = (run / "validation" / "step-00000002").iterdir()
    with Image.open(picture) as opened:
        assert opened.size == (5 * 24, 3 * 16)


@pytest.mark.slow
def test_lpips_of_seed_or_file_is_part_of_loss_and_scores(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from wfvae.metrics.perceptual import load_lpips

    # LPIPS numbers VGG16's layers as torchvision does, within slices of its own.
    backbone = load_lpips("random", "vgg", seed=1).get_submodule("net").state_dict()
    file = tmp_path / "vgg16.safetensors"
    save_file({f"features.{name.partition('.')[2]}": tensor for name, tensor in backbone.items()}, file)
    train(small(run__steps=1), tmp_path / "without", CPU)
    [without] = read_metrics(tmp_path / "without", "train")
    assert "lpips" not in without
    found = {}
    for weights in ("random", str(file)):
        run = tmp_path / Path(weights).stem
        settings = {"loss__perceptual": weights, "loss__perceptual_frames": 3, "run__steps": 1}
        config = small(**settings, validation__clips=1)
        scores = train(config, run, CPU).scores
        assert scores is not None
        [line] = read_metrics(run, "train")
        expected = without["reconstruction"] + 3 * 32 * 32 * line["lpips"]
        assert line["lpips"] > 0 and line["reconstruction"] == pytest.approx(expected, rel=1e-4)
        found[weights] = scores.lpips
    own = scores_of(WFVAE.from_pretrained(run), config, run, PerceptualLoss("random", seed=1))
    assert found[str(file)] == own.lpips != found["random"]
