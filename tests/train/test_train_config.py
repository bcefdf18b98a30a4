"""Training configurations: ready ones, files, overrides and refusals."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import FieldInfo, fields

from fixtures.program import Program
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
    assert listed == ready_configs() and len(listed) == 9 + 3 + 1
    for name in listed:
        ready(name)


def test_help_names_ready_configs(program: Program) -> None:
    named = set(re.findall(r"wfvae train (\S+) --(?:out|set)", program("train", "--help").out))
    assert len(named) > 2 and named <= set(ready_configs())


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
    folders = ("data.folder=videos", "validation.folder=held-out")
    complaint = program.refused("train", "S-stage2", "--set", *folders)
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


TEXTS = {"2024": "2024", "true": "true", '"a b"': "a b", "'x'": "x", " x y ": "x y", '"': '"', "": ""}


@pytest.mark.parametrize(("text", "read"), TEXTS.items())
def test_text_needs_no_quotes_whatever_it_looks_like(text: str, read: str) -> None:
    assert TrainingConfig.load("tiny-quick", [f"run.initial={text}"]).run.initial == read


@pytest.mark.parametrize(
    "words",
    [
        ("tiny-quick", "--set", "run.seed=3", "optimizer.batch=2"),
        ("--set", "run.seed=3", "--set", "optimizer.batch=2", "tiny-quick"),
    ],
)
def test_set_takes_several_keys_in_any_place(program: Program, words: tuple[str, ...]) -> None:
    shown = program.done("train", *words, "--show")
    overrides = ["run.seed=3", "optimizer.batch=2"]
    assert TrainingConfig.from_dict(shown) == TrainingConfig.load("tiny-quick", overrides)


@pytest.mark.parametrize("words", [(), ("--set", "run.seed=3")])
def test_command_without_a_configuration_is_refused(program: Program, words: tuple[str, ...]) -> None:
    assert "no configuration was given" in program.refused("train", *words)


def test_ablations_reach_the_architecture() -> None:
    sizes = ("base_channels", "encoder_energy_flow_hidden_size", "decoder_energy_flow_hidden_size")
    overrides = ["model.norm_type=groupnorm", "model.energy_flow_l2=false", "loss.wavelet_weight=0"]
    config = TrainingConfig.load("tiny-quick", [*overrides, *(f"model.{size}=32" for size in sizes)])
    architecture = config.model.architecture()
    assert (architecture.norm_type, architecture.energy_flow_l2) == ("groupnorm", False)
    assert (architecture.energy_flow_l3, config.loss.wavelet_weight) == (True, 0.0)


OUT_OF_RANGE = """
data.frames=0 data.height=100 data.height=80000000000000000000 data.crop_height=256 data.min_stride=-1
data.kind=files data.kind=2024 data.scenes=titles data.scenes=[] data.stills=1.5 data.workers=5000
validation.height=12 loss.frame_weights=2 loss.adversarial=1 optimizer.learning_rate=nan
optimizer.learning_rate=inf optimizer.ema_decay=1.0 optimizer.betas=[0.9] optimizer.final_rate=5
run.steps=1.5 run.steps=true run.seed=-1 run.threads=100000 model.preset=XL model.temporal_compression=2
model.base_channels=0
"""


@pytest.mark.parametrize("override", OUT_OF_RANGE.split())
def test_value_out_of_range_is_refused_with_what_is_expected(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^tiny-quick: {key} is .*; expected (an?|one|true) "):
        TrainingConfig.load("tiny-quick", [override])


WRONG_SETTINGS = {
    "optimiser.batch=4": "unknown key optimiser; did you mean optimizer?",
    "optimizer.learnig_rate=1": "learnig_rate; did you mean optimizer.learning_rate?",
    "run.learning_rate=1": "known are: steps, seed, precision, activation_checkpointing, threads, initial,",
    "data.frames=10": "data.frames is 10; a clip has 1 + 4 n frames, for example 9 or 13",
    "data.crop_width=0": "only one of data.crop_height and data.crop_width is set; give both, or none",
    "validation.crop_height=512": "validation.crop_height is 512; expected a multiple of 8 up to 128, or 0",
    "data.folder=videos": 'but data.kind is "procedural", which reads no videos; also set data.kind=folder',
    'data.scenes=["mixed", "sea"]': "data.scenes[1] is 'sea'; expected one of 'clouds', 'landscape'",
    "data.min_stride=2": "data.min_stride is 2; expected 0 (always 1) or an integer in 1..1",
    "data.folder.x=3": "unknown key data.folder.x",
    "data=3": "is not of the form section.key=value",
    "nonsense": "is not of the form section.key=value",
    "loss.frame_weights=[1, 1, 1]": "[1.0, 1.0, 1.0]; expected 4 numbers, one for each frame of a latent",
    "loss.frame_weights=[1, 1, 0, 1]": "loss.frame_weights[2] is 0; expected a number > 0",
    "loss.frame_weights=[1, 1, 1e300, 1]": "loss.frame_weights[2] is 1e+300; expected a number <= 1e+18",
    "loss.frame_weights=[1, 1, nan, 1]": "loss.frame_weights[2] is nan; expected a number > 0",
    "model.norm_type=groupnorm": "base_channels is 16; norm_type 'groupnorm' needs",
    "data.crop_height=0 data.crop_width=0 data.crops_per_clip=4": "is 4 without a size of crops",
}


@pytest.mark.parametrize("override", WRONG_SETTINGS)
def test_wrong_setting_is_refused_in_one_line(program: Program, override: str) -> None:
    overrides = override.split() if "crops_per_clip" in override else [override]
    assert WRONG_SETTINGS[override] in program.refused("train", "tiny-quick", "--set", *overrides)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[run]\nsteps = \n", "cannot read the training configuration"),
        (b"\xff\xfe", "cannot read the training configuration"),
        (b"run = 3\n", "run is 3; expected a section of keys"),
        (None, "neither a file nor a ready configuration"),
    ],
)
def test_wrong_file_is_refused(program: Program, tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    assert problem in program.refused("train", path)


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
