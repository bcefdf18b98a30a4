"""Training configuration: a TOML file as typed, validated, immutable objects. No torch.

    [model]
    preset = "S"
    [data]
    folder = "videos/"

Every field has a default, which is the paper's value where the paper gives one (arXiv 2411.17459,
Tables 6 and 7); ready files for the stages of each preset lie in `train/configs`. Unknown keys are
refused, with the nearest known one.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from wfvae.errors import ConfigError
from wfvae.model.config import Preset, WFVAEConfig
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.train.strides import strides_complaint
from wfvae.video.synthetic.clips import SceneName


@dataclass(frozen=True)
class ModelSettings:
    """The architecture: a preset, and what differs from it (the ablations of Tables 3 and 4 and
    Fig. 7). None keeps the preset's value.
    """

    preset: Preset = "S"
    """`S`, `M`, `L` (Table 3) or `tiny`."""
    base_channels: int | None = None
    """C of the paper. S 128, M 160, L 192."""
    latent_dim: int | None = None
    """Latent channels; the paper compares 4, 8, 16 and 32."""
    temporal_compression: Literal[4, 8] | None = None
    """Video frames per latent."""
    encoder_num_resblocks: int | None = None
    """Residual blocks per encoder level."""
    decoder_num_resblocks: int | None = None
    """Residual blocks per decoder level."""
    encoder_energy_flow_hidden_size: int | None = None
    """C_flow of the encoder's inflow paths."""
    decoder_energy_flow_hidden_size: int | None = None
    """C_flow of the decoder's outflow paths."""
    connect_res_layer_num: int | None = None
    """Residual blocks in each outflow path."""
    use_attention: bool | None = None
    """Per-frame attention in the middle."""
    norm_type: Literal["layernorm", "groupnorm"] | None = None
    """`groupnorm` is an ablation only: such a model cannot be streamed or exported."""
    t_interpolation: Literal["nearest", "trilinear"] | None = None
    """Time upsampling in the decoder."""
    dropout: float | None = None
    """Dropout in the residual blocks."""
    energy_flow_l2: bool | None = None
    """The W(2) energy path (Table 4)."""
    energy_flow_l3: bool | None = None
    """The W(3) energy path (Table 4)."""

    def architecture(self) -> WFVAEConfig:
        """The model configuration. Raises `ConfigError` where values contradict each other."""
        changes = {
            name: value for name, value in asdict(self).items() if name != "preset" and value is not None
        }
        return WFVAEConfig.preset(self.preset, **changes)


@dataclass(frozen=True)
class DataSettings:
    """Where clips come from and how they are cut."""

    kind: Literal["folder", "procedural"] = "folder"
    """`folder`: videos below `folder`; `procedural`: painted on demand, without any files."""
    folder: str = ""
    """Directory of videos, searched recursively. For `kind = "folder"`."""
    frames: int = 25
    """Frames per clip, 1 + r n. The paper: 25 in stage I, 49 in stages II and III. Shorter clips
    make models that are bad at long ones.
    """
    height: int = 256
    """Pixels, a multiple of 8."""
    width: int = 256
    """Pixels, a multiple of 8."""
    crop_height: int = 0
    """Height of a random window that is cut out of each clip after resizing; 0 keeps the whole.
    With `crop_width`.
    """
    crop_width: int = 0
    """Width of that window."""
    crops_per_clip: int = 1
    """Windows that are cut out of each clip, spread over a few batches. More save reading (by each
    worker for itself), but vary less.
    """
    stride: int = 1
    """Every stride-th frame of a video, in training and in validation. 2 halves the frame rate, as
    stage II does.
    """
    min_stride: int = 0
    """Each clip draws its stride from this to `stride`, so that things move at more speeds; 0:
    always `stride`. Validation clips, too.
    """
    stills: float = 0.0
    """Share of the training clips that show one frame all the time, so that what stands still does
    not flicker.
    """
    workers: int = 2
    """Processes that read and cut clips, per training process; 0 reads in the training process."""
    bad_files: int = 100
    """How many unusable videos are skipped (and reported once each) before training stops."""
    clips: int = 1000
    """Clips per epoch of procedural data. Every epoch has new ones."""
    noise: float = 0.0
    """Standard deviation of procedural film grain, in levels of 255, at most; each clip draws its
    own.
    """
    scenes: tuple[SceneName, ...] = ("mixed",)
    """What procedural clips show; each draws one of the list, so a name given twice comes twice as
    often. `mixed` changes with each shot; it is what validation shows, whatever is trained on."""


@dataclass(frozen=True)
class LossSettings:
    """Weights of the total loss (eq. 6) and its parts. Reductions are in `wfvae.train.losses`."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance of pixels (ablation: L2)."""
    frame_weights: tuple[float, ...] = ()
    """Weights of a latent's frames, in order, in the reconstruction loss (pixels and LPIPS), scaled
    to a mean of 1; empty: all alike. A clip's first frame has 1. Not the paper's. More for frames
    that come out worse, so that quality does not pulse."""
    perceptual: str = "vgg"
    """LPIPS backbone: `vgg` (downloaded by torchvision), a local file of its weights, `random` (for
    tests), or `none`.
    """
    perceptual_weight: float = 1.0
    """Weight of LPIPS. The paper: 1.0 in stages I and II, 0.1 in stage III."""
    perceptual_frames: int = 0
    """Frames that pass through LPIPS at once, whose features are computed again in the backward
    pass. Fewer need less memory; 0 takes all, or with `run.activation_checkpointing` as many as a
    latent stands for."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence."""
    wavelet_weight: float = 0.1
    """lambda_WL, weight of the wavelet loss (eq. 5); 0 turns it off (Fig. 7)."""
    adversarial: bool = True
    """Train against a 3-D PatchGAN discriminator."""
    discriminator_channels: int = 64
    """Channels of the discriminator's first layer; they double up to eight times as many."""
    discriminator_layers: int = 4
    """Strided layers of the discriminator."""
    adversarial_weight: float = 0.5
    """Factor of the adaptive weight (eq. 7)."""
    adversarial_start: int = 0
    """Optimiser step from which the discriminator counts."""


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, for the model and for the discriminator alike."""

    learning_rate: float = 1e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moments."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    batch: int = 8
    """Clips per step over all processes."""
    accumulate: int = 1
    """Parts that each process splits its share of a batch into, to save memory."""
    clip_norm: float = 0.0
    """Largest norm of the model's gradient; 0 does not clip."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine down to `final_rate` of the peak."""
    warmup_steps: int = 0
    """Steps of linear increase at the beginning."""
    schedule_steps: int = 0
    """Steps after which the cosine has come down; 0 takes `run.steps`."""
    final_rate: float = 0.01
    """Share of the peak rate at the end of the cosine."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is what is validated and
    exported.
    """


@dataclass(frozen=True)
class RunSettings:
    """Length, precision and bookkeeping of a run."""

    steps: int = 800_000
    """Optimiser steps. The paper: 800k, 200k and 200k."""
    seed: int = 0
    """Fixes initial weights, data order, crops, posterior samples and dropout. A stage on the
    videos of the one before wants another.
    """
    precision: Literal["fp32", "bf16", "auto"] = "bf16"
    """`bf16` computes under autocast; weights and optimiser stay fp32. `auto` is bf16 where the
    device has instructions for it, else fp32, and is recorded as what it was. A CPU without them
    took eight times as long in bf16 as in fp32."""
    activation_checkpointing: bool = False
    """Recompute activations of the model and of LPIPS in the backward pass: less than half the
    memory (preset S), up to a quarter more time."""
    threads: int = 0
    """CPU threads of the model, per process; 0 shares all cores among the processes of a machine."""
    initial: str = ""
    """Checkpoint or run directory whose weights a new run starts from. The discriminator starts
    anew, as at each stage of the paper.
    """
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `tensorboard`)."""


@dataclass(frozen=True)
class ValidationSettings:
    """Reconstruction quality of the averaged weights on clips that training does not see."""

    every: int = 5000
    """Steps between validations; 0 only validates at the end."""
    clips: int = 16
    """Clips that are scored."""
    folder: str = ""
    """Directory of videos held out. Procedural data needs none; without one, folder data is not
    validated.
    """
    frames: int = 17
    """Frames per clip, 1 + r n."""
    height: int = 0
    """Pixels, a multiple of 8; 0 is that of the data."""
    width: int = 0
    """Pixels, a multiple of 8; 0 is that of the data."""
    crop_height: int = 0
    """Height of a window cut out of each clip, always the same one; 0 keeps the whole. With
    `crop_width`.
    """
    crop_width: int = 0
    """Width of that window."""
    pictures: int = 4
    """Clips that are also saved as pictures: original, reconstruction, difference."""


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of one stage. `[section] key` of the TOML file is `config.section.key`."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)

    def __post_init__(self) -> None:
        _Checks(self).run()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """From nested plain values. Raises `ConfigError` for unknown keys, wrong types and values
        out of range.
        """
        config: TrainingConfig = _read(cls, data, "")
        return config

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
        """Reads a TOML file, or a ready configuration by its name.

        Args:
            source: path of a file, or one of `ready_configs()`.
            overrides: `section.key=value`, the value as in TOML; a bare word counts as text.

        Raises:
            ConfigError: naming the file or override, the key and what was expected.
        """
        data = _parse(source)
        for override in overrides:
            _override(data, override)
        try:
            return cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, without the keys that are None. `from_dict` reads them back to an
        equal object.
        """
        sections = {
            name: {key: value for key, value in section.items() if value is not None}
            for name, section in asdict(self).items()
        }
        result: dict[str, Any] = json.loads(json.dumps(sections))
        return result

    def to_toml(self) -> str:
        """The configuration as a TOML file, every key written out."""
        lines: list[str] = []
        for name, section in self.to_dict().items():
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items()), ""]
        return "\n".join(lines)

    def differences(self, other: TrainingConfig) -> list[str]:
        """The keys `section.key` whose values differ."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name}.{key}"
            for name, section in mine.items()
            for key in section
            if section[key] != theirs[name][key]
        ]


def ready_configs() -> list[str]:
    """Names of the configurations that ship with the package, stages in their order."""
    names = [
        entry.name.removesuffix(".toml") for entry in _configs().iterdir() if entry.name.endswith(".toml")
    ]
    return sorted(
        names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )


def _toml(value: object) -> str:
    """JSON is TOML but for two things: surrogate pairs, which only JSON's own escapes bring about,
    and DEL, which JSON leaves as it is.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _configs() -> Any:
    return resources.files("wfvae.train") / "configs"


def _parse(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    try:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
        elif str(source) in ready_configs():
            text = (_configs() / f"{source}.toml").read_text(encoding="utf-8")
        else:
            raise ConfigError(
                f"{source} is neither a file nor a ready configuration; those are:"
                f" {', '.join(ready_configs())}"
            )
        return tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the training configuration {source}: {error}") from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not name:
        raise ConfigError(
            f"--set {override!r} is not of the form section.key=value, such as optimizer.batch=4"
        )
    value: object = text.strip()
    if not _is_text(section, name) or text.strip()[:1] in {'"', "'"}:
        with contextlib.suppress(tomllib.TOMLDecodeError):
            value = tomllib.loads(f"value = {text}")["value"]
    part = data.setdefault(section, {})
    if not isinstance(part, dict):
        raise ConfigError(f"--set {override!r}: {section} is not a section")
    part[name] = value


def _is_text(section: str, name: str) -> bool:
    """Whether a key's values are text whatever they look like, such as a folder named 2024."""
    sections = get_type_hints(TrainingConfig)
    return section in sections and get_type_hints(sections[section]).get(name) is str


def _read(kind: type[Any], data: object, where: str) -> Any:
    """Builds a dataclass from plain values."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where.rstrip('.')} is {data!r}; expected a section of keys")
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; known are: {', '.join(known)}"
            raise ConfigError(f"unknown key {where}{key}{hint}")
    return kind(**{key: _value(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _value(hint: Any, value: object, where: str) -> Any:
    """Checks a plain value against a type hint, and converts what TOML writes differently."""
    if isinstance(hint, type) and is_dataclass(hint):
        return _read(hint, value, f"{where}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        [hint] = [a for a in arguments if a is not type(None)]
        return _value(hint, value, where)
    if origin is Literal:
        if value not in arguments or type(value) not in {type(a) for a in arguments}:
            raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        given = value if isinstance(value, (list, tuple)) else None
        kinds = arguments[:1] * len(given or ()) if arguments[-1] is ... else arguments
        if given is None or len(given) != len(kinds):
            raise ConfigError(
                f"{where} is {value!r}; expected a list of"
                f" {'' if arguments[-1] is ... else f'{len(kinds)} '}values"
            )
        return tuple(_value(kind, v, where) for kind, v in zip(kinds, given, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}; expected {_KINDS[hint]}")
    if isinstance(value, str) and not _is_utf8(value):
        raise ConfigError(
            f"{where} is {value!r}, which is not UTF-8 and cannot be written into the run's config.toml; use"
            " another name"
        )
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


_AT_LEAST_ONE = """
    data.frames data.height data.width data.stride data.clips data.crops_per_clip optimizer.batch optimizer.accumulate run.steps
    run.checkpoint_every run.keep run.log_every validation.frames validation.clips loss.discriminator_channels loss.discriminator_layers"""
_AT_LEAST_ZERO = """
    data.workers data.bad_files data.noise loss.perceptual_weight loss.perceptual_frames loss.kl_weight loss.wavelet_weight
    loss.adversarial_weight loss.adversarial_start optimizer.learning_rate optimizer.weight_decay optimizer.clip_norm
    optimizer.warmup_steps optimizer.schedule_steps optimizer.final_rate run.seed run.threads validation.height validation.width
    validation.every validation.pictures"""


_AT_MOST = {"data.workers": 512, "run.threads": 1024, "optimizer.final_rate": 1}
"""A share, and more processes and threads than a machine can start, which end a run in ways that
tell nothing.
"""
_LARGEST = 1e18
"""Of the others, and of lists of weights: what is computed from them fits 64-bit integers and fp32."""


class _Checks:
    """Ranges, and what several values must agree on."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config

    def run(self) -> None:
        config = self._config
        ratio = config.model.architecture().temporal_compression
        self._clip_length("data.frames", config.data.frames, ratio)
        self._clip_length("validation.frames", config.validation.frames, ratio)
        self._pictures(
            "data", config.data.height, config.data.width, config.data.crop_height, config.data.crop_width
        )
        shown = config.validation
        height, width = shown.height or config.data.height, shown.width or config.data.width
        self._pictures("validation", height, width, shown.crop_height, shown.crop_width)
        for key in _AT_LEAST_ONE.split():
            self._within_bounds(key, 1)
        if config.data.crops_per_clip > 1 and not config.data.crop_height:
            raise ConfigError(
                f"data.crops_per_clip is {config.data.crops_per_clip} without a size of crops; give"
                " data.crop_height and data.crop_width"
            )
        for key in _AT_LEAST_ZERO.split():
            self._within_bounds(key, 0)
        for key, value in (
            ("optimizer.ema_decay", config.optimizer.ema_decay),
            *(("optimizer.betas", b) for b in config.optimizer.betas),
        ):
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"{key} is {value}; expected 0 <= value < 1")
        weights = config.loss.frame_weights
        if weights and (len(weights) != ratio or not all(0.0 < weight <= _LARGEST for weight in weights)):
            raise ConfigError(
                f"loss.frame_weights is {list(weights)}; expected {ratio} positive numbers up to"
                f" {_LARGEST:g}, one for each frame of a latent"
            )
        if wrong := strides_complaint(config.data.stride, config.data.min_stride, config.data.stills):
            raise ConfigError(f"data.{wrong}")
        if not config.data.scenes:
            raise ConfigError(f"data.scenes is []; expected one or more of {', '.join(get_args(SceneName))}")
        if config.data.kind != "folder" and config.data.folder:
            raise ConfigError(
                f'data.folder is {config.data.folder!r}, but data.kind is "{config.data.kind}", which reads'
                " no videos; also set data.kind=folder, or leave data.folder out"
            )
        if config.data.kind == "folder" and not config.data.folder:
            raise ConfigError(
                "data.folder is not set; give the directory of your videos: --set data.folder=DIR (or"
                ' data.kind="procedural")'
            )

    @staticmethod
    def _pictures(section: str, height: int, width: int, crop_height: int, crop_width: int) -> None:
        for name, value, crop in (("height", height, crop_height), ("width", width, crop_width)):
            if value < SPATIAL_RATIO or value % SPATIAL_RATIO:
                raise ConfigError(
                    f"{section}.{name} is {value}; expected a positive multiple of {SPATIAL_RATIO}"
                )
            if not 0 <= crop <= value or crop % SPATIAL_RATIO:
                raise ConfigError(
                    f"{section}.crop_{name} is {crop}; expected a multiple of {SPATIAL_RATIO} up to {value},"
                    " or 0"
                )
        if bool(crop_height) != bool(crop_width):
            raise ConfigError(
                f"only one of {section}.crop_height and {section}.crop_width is set; give both, or none"
            )

    def _within_bounds(self, key: str, low: float) -> None:
        section, name = key.split(".")
        value = getattr(getattr(self._config, section), name)
        if not value >= low or value == float("inf"):
            raise ConfigError(f"{key} is {value}; expected a finite number of at least {low:g}")
        if value > (high := _AT_MOST.get(key, _LARGEST)):
            raise ConfigError(f"{key} is {value}; expected at most {high:g}")

    @staticmethod
    def _clip_length(key: str, frames: int, ratio: int) -> None:
        if frames < 1 or (frames - 1) % ratio:
            below = 1 + max(frames - 1, 0) // ratio * ratio
            raise ConfigError(
                f"{key} is {frames}; a clip has 1 + {ratio} n frames, for example {below} or {below + ratio}"
            )
