"""Training configurations: ready ones, files, overrides and refusals."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import FieldInfo, fields

from fixtures.program import Program
from wfvae.cli.main import main
from wfvae.cli.train import _default_directory
from wfvae.errors import ConfigError
from wfvae.model.config import Preset, WFVAEConfig
from wfvae.train.config import TrainingConfig, ready_configs
from wfvae.train.settings import DataSettings

FOLDER = ["data.folder=videos"]


@pytest.mark.parametrize(("name", "preset"), [("S", "S"), ("M", "M"), ("L", "L"), ("tiny-paper", "tiny")])
@pytest.mark.parametrize(
    ("stage", "frames", "stride", "lpips", "steps"),
    [(1, 25, 1, 1.0, 800_000), (2, 49, 2, 1.0, 200_000), (3, 49, 2, 0.1, 200_000)],
)
def test_stages_are_those_of_the_paper(
    name: str, preset: Preset, stage: int, frames: int, stride: int, lpips: float, steps: int
) -> None:
    config = TrainingConfig.load(f"{name}-stage{stage}", FOLDER)
    data, loss, optimizer = config.data, config.loss, config.optimizer
    assert config.model.architecture() == WFVAEConfig.preset(preset)
    assert (data.frames, data.stride, data.height, data.width) == (frames, stride, 256, 256)
    assert (loss.reconstruction, loss.perceptual, loss.perceptual_weight) == ("l1", "vgg", lpips)
    assert (loss.kl_weight, loss.wavelet_weight) == (1e-6, 0.1)
    assert (loss.adversarial, loss.adversarial_weight) == (True, 0.5)
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-5, (0.9, 0.999), 1e-4)
    assert (optimizer.batch, optimizer.ema_decay, optimizer.schedule) == (8, 0.999, "constant")
    assert (config.run.steps, config.run.precision) == (steps, "auto" if preset == "tiny" else "bf16")


def ready(name: str) -> TrainingConfig:
    """A ready configuration, with a folder if it wants one."""
    try:
        return TrainingConfig.load(name)
    except ConfigError:
        return TrainingConfig.load(name, FOLDER)


def test_ready_configs_load_and_are_listed(program: Program) -> None:
    listed = program.done("train", "--list")
    assert listed == ready_configs()
    assert len(listed) == 9 + 3 + 1
    assert listed[-1] == "tiny-quick"
    for name in ready_configs():
        ready(name)


def test_help_names_ready_configs(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    named = set(re.findall(r"wfvae train (\S+) --(?:out|set)", capsys.readouterr().out))
    assert len(named) > 2
    assert named <= set(ready_configs())


def test_stage_starts_from_the_one_before() -> None:
    for name in ready_configs():
        preset, _, stage = name.partition("-stage")
        if not stage:
            assert name == "tiny-quick" and not ready(name).run.initial
            continue
        expected = "" if stage == "1" else f"./runs/{preset}-stage{int(stage) - 1}"
        assert ready(name).run.initial == expected
        # With the same seed a stage on the same videos would see the crops of the one before again,
        # in the same order.
        assert ready(name).run.seed == int(stage) - 1


def test_stage_without_the_one_before_is_refused(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    complaint = program.refused(
        "train", "S-stage2", "--set", "data.folder=videos", "validation.folder=held-out"
    )
    assert "./runs/S-stage1 does not exist; expected a checkpoint directory" in complaint


def test_configuration_of_a_run_resumes_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "checkpoints").mkdir(parents=True)
    assert _default_directory(Path("here/config.toml")) == Path("here")
    assert _default_directory(Path("other/config.toml")) == Path("runs/config")
    assert _default_directory(Path("S-stage1")) == Path("runs/S-stage1")


def test_missing_folder_is_named(program: Program) -> None:
    assert "--set data.folder=DIR" in program.refused("train", "S-stage1")


def test_toml_and_dict_of_a_config_read_back_equal(tmp_path: Path) -> None:
    changes = {
        "model.latent_dim": ("8", 8),
        "data.scenes": ('["mixed", "titles"]', ("mixed", "titles")),
        "loss.frame_weights": ("[2, 1, 1, 1]", (2.0, 1.0, 1.0, 1.0)),
        "optimizer.betas": ("[0.5, 0.9]", (0.5, 0.9)),
        "run.initial": ("some dir", "some dir"),
    }
    config = TrainingConfig.load("tiny-quick", [f"{key}={text}" for key, (text, _) in changes.items()])
    (tmp_path / "again.toml").write_text(config.to_toml(), encoding="utf-8")
    assert TrainingConfig.load(tmp_path / "again.toml") == config
    assert TrainingConfig.from_dict(config.to_dict()) == config
    for key, (_, value) in changes.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value
    assert config.differences(TrainingConfig.load("tiny-quick")) == list(changes)


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_reads_back_from_toml(text: str) -> None:
    for folder in (text, f'{text}\x7f\U0001f3ac\r\n"\\u0041'):
        config = TrainingConfig(data=DataSettings(folder=folder or "."))
        assert TrainingConfig.from_dict(tomllib.loads(config.to_toml())) == config


def test_text_that_is_not_utf8_is_refused() -> None:
    # What the command line makes of a name whose bytes are not UTF-8.
    problem = r"data.folder is 'v\\udcff', which is not UTF-8 .*; use another name$"
    with pytest.raises(ConfigError, match=problem):
        TrainingConfig.load("tiny-quick", ["data.folder=v\udcff"])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2024", "2024"),
        ("true", "true"),
        ('"a b"', "a b"),
        ("'x'", "x"),
        (" x y ", "x y"),
        ('"', '"'),
        ("", ""),
    ],
)
def test_text_needs_no_quotes_whatever_it_looks_like(text: str, read: str) -> None:
    assert TrainingConfig.load("tiny-quick", [f"run.initial={text}"]).run.initial == read


def test_set_takes_several_keys_in_any_place(program: Program) -> None:
    for words in (
        ("tiny-quick", "--set", "run.seed=3", "optimizer.batch=2"),
        ("--set", "run.seed=3", "--set", "optimizer.batch=2", "tiny-quick"),
    ):
        shown = program.done("train", *words, "--show")
        assert (shown["run"]["seed"], shown["optimizer"]["batch"]) == (3, 2)
    assert "no configuration was given" in program.refused("train", "--set", "run.seed=3")


def test_ablations_reach_the_architecture() -> None:
    sizes = ("base_channels", "encoder_energy_flow_hidden_size", "decoder_energy_flow_hidden_size")
    overrides = ["model.norm_type=groupnorm", "model.energy_flow_l2=false", "loss.wavelet_weight=0"]
    config = TrainingConfig.load("tiny-quick", [*overrides, *(f"model.{size}=32" for size in sizes)])
    architecture = config.model.architecture()
    assert (architecture.norm_type, architecture.energy_flow_l2) == ("groupnorm", False)
    assert (architecture.energy_flow_l3, config.loss.wavelet_weight) == (True, 0.0)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimiser.batch=4", "unknown key optimiser; did you mean optimizer?"),
        (
            "optimizer.learnig_rate=1",
            "unknown key optimizer.learnig_rate; did you mean optimizer.learning_rate?",
        ),
        (
            "run.learning_rate=1",
            "known are: steps, seed, precision, activation_checkpointing, threads, initial,",
        ),
        ("data.frames=10", "a clip has 1 + 4 n frames, for example 9 or 13"),
        ("data.frames=0", "data.frames is 0; expected an integer >= 1"),
        ("data.height=100", "data.height is 100; expected an integer >= 8"),
        ("data.height=80000000000000000000", "data.height is 80000000000000000000; expected an integer"),
        ("data.crop_height=256", "data.crop_height is 256"),
        ("data.crop_width=0", "only one of"),
        (
            "validation.crop_height=512",
            "validation.crop_height is 512; expected a multiple of 8 up to 128, or 0",
        ),
        ("validation.height=12", "validation.height is 12"),
        (
            "data.folder=videos",
            "data.folder is 'videos', but data.kind is \"procedural\", which reads no videos; also set"
            " data.kind=folder",
        ),
        ("data.kind=files", "data.kind is 'files'; expected one of 'folder', 'procedural'"),
        ("data.kind=2024", "data.kind is 2024; expected one of 'folder', 'procedural'"),
        ('data.scenes=["mixed", "sea"]', "data.scenes[1] is 'sea'; expected one of 'clouds', 'landscape'"),
        ("data.scenes=titles", "data.scenes is 'titles'; expected a list of length >= 1"),
        ("data.scenes=[]", "data.scenes is []; expected a list of length >= 1"),
        ("data.min_stride=2", "data.min_stride is 2; expected 0 (always 1) or an integer in 1..1"),
        ("data.min_stride=-1", "data.min_stride is -1; expected an integer >= 0"),
        ("data.stills=1.5", "data.stills is 1.5; expected a number >= 0 and <= 1"),
        ("data.workers=5000", "data.workers is 5000; expected an integer >= 0 and <= 512"),
        ("data.folder.x=3", "data.folder.x"),
        ("data=3", "section.key=value"),
        ("nonsense", "section.key=value"),
        ("loss.frame_weights=2", "loss.frame_weights is 2; expected a list"),
        (
            "loss.frame_weights=[1, 1, 1]",
            "[1.0, 1.0, 1.0]; expected 4 numbers, one for each frame of a latent",
        ),
        ("loss.frame_weights=[1, 1, 0, 1]", "loss.frame_weights[2] is 0; expected a number > 0 and <= 1e+18"),
        ("loss.frame_weights=[1, 1, 1e300, 1]", "loss.frame_weights[2] is 1e+300; expected a number > 0"),
        ("loss.frame_weights=[1, 1, nan, 1]", "loss.frame_weights[2] is nan; expected a number > 0"),
        ("loss.adversarial=1", "loss.adversarial is 1; expected true or false"),
        (
            "optimizer.learning_rate=nan",
            "optimizer.learning_rate is nan; expected a number >= 0 and <= 1e+18",
        ),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate is inf; expected a number"),
        ("optimizer.ema_decay=1.0", "optimizer.ema_decay is 1.0; expected a number >= 0 and < 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9]; expected a list of 2 values"),
        ("optimizer.final_rate=5", "optimizer.final_rate is 5; expected a number >= 0 and <= 1"),
        ("run.steps=1.5", "run.steps is 1.5; expected an integer"),
        ("run.steps=true", "run.steps is True; expected an integer"),
        ("run.seed=-1", "run.seed is -1; expected an integer >= 0"),
        ("run.threads=100000", "run.threads is 100000; expected an integer >= 0 and <= 1024"),
        ("model.preset=XL", "model.preset is 'XL'; expected one of 'L', 'M', 'S', 'tiny'"),
        ("model.temporal_compression=2", "model.temporal_compression is 2; expected one of 4, 8"),
        ("model.base_channels=0", "model.base_channels is 0; expected an integer >= 1"),
        ("model.norm_type=groupnorm", "divisible by 32"),
    ],
)
def test_wrong_setting_is_refused_in_one_line(program: Program, override: str, problem: str) -> None:
    assert problem in program.refused("train", "tiny-quick", "--set", override)


def test_several_crops_without_a_size_are_refused(program: Program) -> None:
    overrides = ["data.crop_height=0", "data.crop_width=0", "data.crops_per_clip=4"]
    problem = program.refused(
        "train", "tiny-quick", *(word for override in overrides for word in ("--set", override))
    )
    assert "data.crops_per_clip is 4 without a size of crops" in problem


def test_wrong_files_are_refused(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[run]\nsteps = \n", encoding="utf-8")
    assert "cannot read the training configuration" in program.refused("train", path)
    path.write_bytes(b"\xff\xfe")
    assert "cannot read the training configuration" in program.refused("train", path)
    path.write_text("run = 3\n", encoding="utf-8")
    assert "run is 3; expected a section of keys" in program.refused("train", path)
    assert "neither a file nor a ready configuration" in program.refused("train", "S-stage4")
    assert "no configuration was given" in program.refused("train")


def test_show_prints_every_key(program: Program) -> None:
    shown = program.done("train", "tiny-quick", "--show", "--set", "run.seed=7")
    assert shown["run"]["seed"] == 7
    assert TrainingConfig.from_dict(shown) == TrainingConfig.load("tiny-quick", ["run.seed=7"])


def test_values_set_in_python_are_checked() -> None:
    config = TrainingConfig.load("tiny-quick")
    assert config.with_changes(optimizer={"betas": [0, 0.5]}).optimizer.betas == (0.0, 0.5)
    with pytest.raises(ConfigError, match=r"run\.steps is 0; expected an integer >= 1"):
        config.with_changes(run={"steps": 0})
    with pytest.raises(ConfigError, match="run is 5; expected a section"):
        TrainingConfig.from_dict({"run": 5})


@pytest.mark.parametrize("section", fields(TrainingConfig), ids=lambda section: section.name)
def test_document_lists_every_key_with_its_default(section: FieldInfo) -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    part = text.partition(f"### [{section.name}]")[2].partition("\n### ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", part, re.MULTILINE))
    defaults = {key.name: key.default for key in fields(section.type)}
    assert rows == {
        name: "the preset's" if default is None else json.dumps(default) for name, default in defaults.items()
    }
