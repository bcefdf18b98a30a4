"""Training configuration: a TOML file as typed, validated, immutable objects. No torch.

    [model]
    preset = "S"
    [data]
    folder = "videos/"

`wfvae.train.settings` lists all keys and their defaults; `train/configs` holds files for the stages
of each preset. Unknown keys are an error.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from msgspec import structs

from wfvae.errors import ConfigError
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.records import Record, check_fields, read_as
from wfvae.train.settings import (
    DataSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    ValidationSettings,
)
from wfvae.train.strides import strides_complaint


class TrainingConfig(Record, frozen=True):
    """All settings of one stage. `[section] key` of the TOML file is `config.section.key`.

    Raises `ConfigError` on construction for values out of range and values that contradict each
    other.

    Example:
        >>> config = TrainingConfig.load("tiny-quick", ["run.steps=5"])
        >>> config.run.steps, config.with_changes(run={"seed": 3}).run.seed
        (5, 3)
    """

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    run: RunSettings = RunSettings()
    validation: ValidationSettings = ValidationSettings()

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            check_fields(getattr(self, name), ConfigError, section=name)
        _check_agreement(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingConfig:
        """Reads nested plain values. Raises `ConfigError`."""
        return read_as(cls, data, ConfigError)

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

    def with_changes(self, **sections: Mapping[str, Any]) -> TrainingConfig:
        """Returns a copy with some keys of some sections replaced, validated anew."""
        changed = {name: structs.replace(getattr(self, name), **keys) for name, keys in sections.items()}
        return structs.replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """Returns nested plain values, without the keys that are None."""
        sections = super().to_dict()
        for name, section in sections.items():
            sections[name] = {key: value for key, value in section.items() if value is not None}
        return sections

    def to_toml(self) -> str:
        """Returns the configuration as a TOML file, every key written out."""
        lines: list[str] = []
        for name, section in self.to_dict().items():
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items()), ""]
        return "\n".join(lines)

    def differences(self, other: TrainingConfig) -> list[str]:
        """Returns the keys `section.key` whose values differ."""
        found = []
        for name in self.__struct_fields__:
            mine, theirs = structs.asdict(getattr(self, name)), structs.asdict(getattr(other, name))
            found += [f"{name}.{key}" for key, value in mine.items() if value != theirs[key]]
        return found


def ready_configs() -> list[str]:
    """Returns the names of the configurations that ship with the package."""
    names = (entry.name for entry in _configs().iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _toml(value: object) -> str:
    """Writes a value as JSON, which is TOML except for DEL, which JSON leaves as it is."""
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
            ready = ", ".join(ready_configs())
            raise ConfigError(f"{source} is neither a file nor a ready configuration; those are: {ready}")
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
    try:
        override.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{key} is {value!r}, which is not UTF-8 and cannot be written into the run's config.toml;"
            " use another name"
        ) from error
    if not _is_text(section, name) or text.strip()[:1] in {'"', "'"}:
        with contextlib.suppress(tomllib.TOMLDecodeError):
            value = tomllib.loads(f"value = {text}")["value"]
    part = data.setdefault(section, {})
    if not isinstance(part, dict):
        raise ConfigError(f"--set {override!r}: {section} is not a section")
    part[name] = value


def _is_text(section: str, name: str) -> bool:
    """Whether a key's values are text whatever they look like, such as a folder named 2024."""
    sections = {field.name: field.type for field in structs.fields(TrainingConfig)}
    keys = structs.fields(sections[section]) if section in sections else ()
    return any(field.name == name and field.type is str for field in keys)


def _check_agreement(config: TrainingConfig) -> None:
    """Raises `ConfigError` where values contradict each other."""
    data, shown = config.data, config.validation
    ratio = config.model.architecture().temporal_compression
    _check_clip_length("data.frames", data.frames, ratio)
    _check_clip_length("validation.frames", shown.frames, ratio)
    _check_crop("data", data.height, data.width, data.crop_height, data.crop_width)
    height, width = shown.height or data.height, shown.width or data.width
    _check_crop("validation", height, width, shown.crop_height, shown.crop_width)
    if data.crops_per_clip > 1 and not data.crop_height:
        raise ConfigError(
            f"data.crops_per_clip is {data.crops_per_clip} without a size of crops; give data.crop_height"
            " and data.crop_width"
        )
    weights = config.loss.frame_weights
    if weights and len(weights) != ratio:
        raise ConfigError(
            f"loss.frame_weights is {list(weights)}; expected {ratio} numbers, one for each frame of a latent"
        )
    if wrong := strides_complaint(data.stride, data.min_stride, data.stills):
        raise ConfigError(f"data.{wrong}")
    if data.kind != "folder" and data.folder:
        raise ConfigError(
            f'data.folder is {data.folder!r}, but data.kind is "{data.kind}", which reads no videos; also set'
            " data.kind=folder, or leave data.folder out"
        )
    if data.kind == "folder" and not data.folder:
        raise ConfigError(
            "data.folder is not set; give the directory of your videos: --set data.folder=DIR (or"
            ' data.kind="procedural")'
        )


def _check_crop(section: str, height: int, width: int, crop_height: int, crop_width: int) -> None:
    for name, value, crop in (("height", height, crop_height), ("width", width, crop_width)):
        if crop > value:
            raise ConfigError(
                f"{section}.crop_{name} is {crop}; expected a multiple of {SPATIAL_RATIO} up to {value}, or 0"
            )
    if bool(crop_height) != bool(crop_width):
        raise ConfigError(
            f"only one of {section}.crop_height and {section}.crop_width is set; give both, or none"
        )


def _check_clip_length(key: str, frames: int, ratio: int) -> None:
    if (frames - 1) % ratio:
        below = 1 + (frames - 1) // ratio * ratio
        raise ConfigError(
            f"{key} is {frames}; a clip has 1 + {ratio} n frames, for example {below} or {below + ratio}"
        )
