"""What a training run leaves behind, and how a stage begins from another."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import load_file

from fixtures.program import Program
from fixtures.training import (
    CPU,
    WITH_DISCRIMINATOR,
    folder_settings,
    make_videos,
    newest_step,
    small,
    state_of,
    steps_kept,
    write_config,
)
from wfvae.errors import CheckpointError, ConfigError
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.train.config import TrainingConfig
from wfvae.train.data import ProceduralClips, Strides, VideoFolder
from wfvae.train.discriminator import PatchDiscriminator3D
from wfvae.train.record import read_metrics
from wfvae.train.run import Watcher, train
from wfvae.train.sources import training_source, validation_source
from wfvae.train.state import learning_rate


def test_run_leaves_checkpoints_record_scores_and_pictures(finished_run: Path) -> None:
    assert steps_kept(finished_run) == [3, 4, 6]  # the newest three, of every second step and validations
    assert TrainingConfig.load(finished_run / "config.toml") == small(**WITH_DISCRIMINATOR)
    lines = read_metrics(finished_run, "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["adversarial_weight"] > 0 and line["discriminator"] >= 0 for line in lines)
    assert sum(line["discriminator"] for line in lines) > 0
    for line in lines:
        adversarial = line["adversarial_weight"] * line["adversarial"]
        parts = line["reconstruction"] + 1e-6 * line["kl"] + 0.1 * line["wavelet"] + adversarial
        assert line["total"] == pytest.approx(parts, rel=1e-4)
        assert 0 < line["compute"] <= 1
    scores = read_metrics(finished_run, "validation")
    assert [line["step"] for line in scores] == [3, 6]
    assert all(0 < line["psnr_db"] < 50 and -1 <= line["ssim"] <= 1 for line in scores)
    with Image.open(finished_run / "validation" / "step-00000006" / "clip-0.png") as picture:
        assert picture.size == (5 * 32, 3 * 32)
        pixels = np.asarray(picture)
    # The first row is the clip itself; the third is grey where nothing differs.
    assert pixels[:32].std() > 10
    assert pixels[64:].std() > 5


def test_run_moves_every_weight_and_moment(finished_run: Path) -> None:
    first, last = (state_of(finished_run, step) for step in (3, 6))
    for prefix in ("model", "average", "discriminator", "optimizer", "discriminator_optimizer"):
        names = [n for n in first if n.startswith(f"{prefix}.") and n.endswith(("weight", "exp_avg"))]
        names = [name for name in names if "wavelet" not in name]
        moved = [name for name in names if not torch.equal(first[name], last[name])]
        assert len(moved) > 0.9 * len(names) > 0, prefix


def test_average_is_exponential_moving_average_of_model(tmp_path: Path) -> None:
    train(small(run__checkpoint_every=1, run__keep=10, run__steps=3), tmp_path, CPU)
    states = [state_of(tmp_path, step) for step in (1, 2, 3)]
    for before, after in itertools.pairwise(states):
        for name in [n for n in after if n.startswith("average.") and n.endswith(".bias")]:
            current = after["model." + name.removeprefix("average.")].double()
            expected = 0.9 * before[name].double() + 0.1 * current
            assert torch.allclose(after[name].double(), expected, atol=1e-7)


def test_exported_run_has_averaged_weights_of_newest_checkpoint(
    finished_run: Path, tmp_path: Path, program: Program
) -> None:
    assert program.done("export", finished_run, tmp_path / "bundle")["parameters"] > 0
    model, state = WFVAE.from_pretrained(finished_run), state_of(finished_run)
    assert all(torch.equal(tensor, state[f"average.{name}"]) for name, tensor in model.state_dict().items())
    inspected = program.done("inspect", finished_run)
    assert (inspected["kind"], inspected["tensors"]) == ("training run", len(model.state_dict()))
    assert Path(inspected["checkpoint"]) == finished_run / "checkpoints" / "step-00000006" / "checkpoint"
    older = WFVAE.from_pretrained(finished_run / "checkpoints" / "step-00000003")
    assert not torch.equal(older.decoder.conv_out.weight, model.decoder.conv_out.weight)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert "has no checkpoint yet" in program.refused("export", tmp_path / "empty", tmp_path / "none")
    assert "has no checkpoint yet" in program.refused("inspect", tmp_path / "empty")


def test_folder_of_videos_trains_and_bad_files_are_reported_once(tmp_path: Path, program: Program) -> None:
    videos = make_videos(tmp_path / "videos", "0.mp4", "1.mp4", frames=12)
    (videos / "broken.mp4").write_text("no video", encoding="utf-8")
    settings = folder_settings(videos, run__steps=3)
    config = write_config(settings, tmp_path / "small.toml")
    outcome = program("train", config, "--out", tmp_path / "run", "--json")
    assert (outcome.code, outcome.report["bad_files"], outcome.report["validation"]) == (0, 1, None)
    assert outcome.err.count("broken.mp4") == 1
    assert (tmp_path / "run" / "index.json").is_file()
    probed: list[tuple[int, int]] = []
    source = training_source(settings, tmp_path / "third", lambda *counts: probed.append(counts))
    assert (probed, len(source)) == ([(1, 3), (2, 3), (3, 3)], 2)
    outcome = program("train", config, "--out", tmp_path / "other", "--set", "data.bad_files=0")
    assert outcome.code == 2
    first, skipped, complaint = outcome.err.splitlines()
    assert first == "wfvae train: validation.folder is not set, so nothing is validated"
    assert "skipped 'broken.mp4'" in skipped and "more than the limit of 0" in complaint


def test_strides_of_settings_reach_training_and_validation(tmp_path: Path) -> None:
    folders = {"data__kind": "folder"}
    for name in ("data", "validation"):
        folders[f"{name}__folder"] = str(make_videos(tmp_path / name, "a.mp4", frames=30))
    for options in ({}, folders):
        config = small(data__stride=3, data__min_stride=2, data__stills=0.25, **options)
        sources = training_source(config, tmp_path), validation_source(config, tmp_path)
        for source, stills in zip(sources, (0.25, 0.0), strict=True):
            assert isinstance(source, ProceduralClips | VideoFolder)
            assert source.strides == Strides(3, 2, stills)


def test_learning_rate_follows_its_schedule() -> None:
    shape = ["optimizer.learning_rate=1.0", "optimizer.warmup_steps=10", "optimizer.final_rate=0.2"]
    settings = TrainingConfig.load("tiny-quick", shape).optimizer
    rates = [learning_rate(settings, step, 110) for step in (0, 4, 9, 10, 60, 110, 500)]
    # A linear warm-up, then a half cosine whose middle lies half way between 1 and 0.2.
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.6, 0.2, 0.2])
    # schedule_steps fixes the shape for a run of another length.
    fixed = TrainingConfig.load("tiny-quick", [*shape, "optimizer.schedule_steps=110"]).optimizer
    assert [learning_rate(fixed, step, 60) for step in (10, 60)] == pytest.approx([1.0, 0.6])
    constant = TrainingConfig.load("S-stage1", ["data.folder=x"]).optimizer
    assert {learning_rate(constant, step, 800_000) for step in (0, 400_000, 799_999)} == {1e-5}


def test_stage_starts_from_averaged_weights_of_the_one_before(finished_run: Path, tmp_path: Path) -> None:
    # With a learning rate of zero and no decay the weights stay those of the run it starts from.
    frozen = {"optimizer__learning_rate": 0.0, "optimizer__weight_decay": 0.0, "run__steps": 1}
    train(small(**frozen, run__initial=str(finished_run)), tmp_path / "next", CPU)
    state, before = state_of(tmp_path / "next"), state_of(finished_run)
    averages = [name for name in before if name.startswith("average.")]
    assert len(averages) > 50
    for name in averages:
        assert torch.equal(state["model." + name.removeprefix("average.")], before[name])
    with pytest.raises(ConfigError, match="another architecture; it differs in latent_dim"):
        train(small(run__initial=str(finished_run), model__latent_dim=8), tmp_path / "other", CPU)


def test_discriminator_and_optimisers_of_a_stage_start_anew(finished_run: Path, tmp_path: Path) -> None:
    # The first step leaves the discriminator alone, so that its checkpoint shows how it began.
    settings = {"run__seed": 5, "run__steps": 2, "run__checkpoint_every": 1, "validation__every": 0}
    starts = {"loss__adversarial_start": 1, "run__initial": str(finished_run)}
    train(small(**WITH_DISCRIMINATOR, **settings, **starts), tmp_path, CPU)
    before, first, second = state_of(finished_run), state_of(tmp_path, 1), state_of(tmp_path, 2)
    fresh = PatchDiscriminator3D(base=8, layers=3, seed=5).state_dict()
    assert {n for n in first if n.startswith("discriminator.")} == {f"discriminator.{n}" for n in fresh}
    for name, tensor in fresh.items():
        assert torch.equal(first[f"discriminator.{name}"], tensor), name
        assert not torch.equal(before[f"discriminator.{name}"], tensor), name
    assert not [name for name in first if name.startswith("discriminator_optimizer.")]
    for state, optimizer in ((first, "optimizer"), (second, "discriminator_optimizer")):
        names = [n for n in before if n.startswith(f"{optimizer}.") and n.endswith(".step")]
        assert len(names) > 5
        for name in names:
            assert (float(before[name]), float(state[name])) == (6.0, 1.0)
            # Of one gradient g: 0.1 g and 0.001 g^2.
            mean, square = (state[name.removesuffix("step") + key] for key in ("exp_avg", "exp_avg_sq"))
            assert torch.allclose(mean.square(), 10 * square, rtol=1e-4, atol=1e-30), name


def test_scale_and_shift_of_initial_model_stay_through_a_run(tmp_path: Path, reference_dir: Path) -> None:
    # The published 16-channel model lists four values; another may list one for each channel.
    released = WFVAEConfig.from_json(reference_dir / "released-L-16ch" / "config.json")
    assert len(released.scale) == 4
    per_channel = tuple(1.0 + k / 8 for k in range(16)), tuple(k / 4 for k in range(16))
    settings = {"model__latent_dim": 16, "run__checkpoint_every": 1, "validation__every": 0}
    settings["optimizer__learning_rate"] = 0.0
    wanted = small(**settings).model.architecture()
    for name, (scale, shift) in {"released": (released.scale, released.shift), "each": per_channel}.items():
        first, run = tmp_path / name, tmp_path / f"{name}-run"
        WFVAE.random(replace(wanted, scale=scale, shift=shift, dropout=0.0), 7).save_pretrained(first)
        settings["run__initial"] = str(first)
        train(small(**settings, run__steps=1), run, CPU)
        state, given = state_of(run), load_file(first / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(state[f"model.{path}"], tensor) for path, tensor in given.items())
        train(small(**settings, run__steps=2), run, CPU, resume=True)
        assert newest_step(run) == 2
        for step in (1, 2):
            made = WFVAE.from_pretrained(run / "checkpoints" / f"step-{step:08d}").config
            assert (made.scale, made.shift, made.dropout) == (scale, shift, 0.1)


def test_initial_run_that_has_not_ended_is_reported(tmp_path: Path) -> None:
    begun, lines = tmp_path / "begun", list[str]()
    settings = {"run__checkpoint_every": 1, "validation__every": 0}
    stopping = Watcher(stopping=lambda: (begun / "checkpoints" / "step-00000001").is_dir())
    train(small(**settings, run__steps=4), begun, CPU, watcher=stopping)
    for name, initial in (("again", begun), ("third", tmp_path / "again")):
        config = small(**settings, run__steps=1, run__initial=str(initial))
        train(config, tmp_path / name, CPU, watcher=Watcher(notice=lines.append))
    assert lines == [f"run.initial {begun} has not ended: this run starts from its step 1 of 4"]


def test_missing_stage_before_raises(tmp_path: Path) -> None:
    expected = (
        r"run\.initial, what this run starts from: .*nowhere.*; train the stage before first, or name .*"
    )
    with pytest.raises(CheckpointError, match=expected + r" --set run\.initial=RUN"):
        train(small(run__initial=str(tmp_path / "nowhere")), tmp_path / "run", CPU)
