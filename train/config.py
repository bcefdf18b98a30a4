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
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from msgspec import structs

from wfvae.errors import ConfigError
from wfvae.spec.bounded import parse_toml, read_toml
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
        for problem in _contradictions(self):
            raise ConfigError(problem)

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
        return {
            name: {key: value for key, value in section.items() if value is not None}
            for name, section in super().to_dict().items()
        }

    def to_toml(self) -> str:
        """Returns the configuration as a TOML file, every key written out."""
        lines: list[str] = []
        for name, section in self.to_dict().items():
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items()), ""]
        return "\n".join(lines)

    def differences(self, other: TrainingConfig) -> list[str]:
        """Returns the keys `section.key` whose values differ."""
        theirs = other.to_dict()
        return [
            f"{name}.{key}"
            for name, section in super().to_dict().items()
            for key, value in section.items()
            if value != theirs[name].get(key)
        ]


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
    def unreadable(problem: str) -> ConfigError:
        return ConfigError(f"cannot read the training configuration {source}: {problem}")

    path = Path(source)
    if path.is_file():
        return read_toml(path, unreadable)
    if str(source) in ready_configs():
        return parse_toml((_configs() / f"{source}.toml").read_text(encoding="utf-8"), unreadable)
    ready = ", ".join(ready_configs())
    raise ConfigError(f"{source} is neither a file nor a ready configuration; those are: {ready}")


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = (part.strip() for part in override.partition("="))
    section, dot, name = key.partition(".")
    if not equals or not dot or not name:
        form = "section.key=value, such as optimizer.batch=4"
        raise ConfigError(f"--set {override!r} is not of the form {form}")
    value: object = text
    try:
        override.encode()
    except UnicodeEncodeError as error:
        problem = f"{key} is {value!r}, which is not UTF-8 and cannot be written into the run's config.toml"
        raise ConfigError(f"{problem}; use another name") from error
    if not _is_text(section, name) or text[:1] in {'"', "'"}:
        with contextlib.suppress(ConfigError):
            value = parse_toml(f"value = {text}", ConfigError)["value"]
    part = data.setdefault(section, {})
    if not isinstance(part, dict):
        raise ConfigError(f"--set {override!r}: {section} is not a section")
    part[name] = value


def _is_text(section: str, name: str) -> bool:
    """Whether a key's values are text whatever they look like, such as a folder named 2024."""
    sections = {field.name: field.type for field in structs.fields(TrainingConfig)}
    keys = structs.fields(sections[section]) if section in sections else ()
    return any(field.name == name and field.type is str for field in keys)


def _contradictions(config: TrainingConfig) -> Iterator[str]:
    """Yields what is wrong where values contradict each other."""
    data, shown = config.data, config.validation
    ratio = config.model.architecture().temporal_compression
    for key, frames in (("data.frames", data.frames), ("validation.frames", shown.frames)):
        if (frames - 1) % ratio:
            below = 1 + (frames - 1) // ratio * ratio
            examples = f"for example {below} or {below + ratio}"
            yield f"{key} is {frames}; a clip has 1 + {ratio} n frames, {examples}"
    yield from _crop_problems("data", data, data.height, data.width)
    yield from _crop_problems("validation", shown, shown.height or data.height, shown.width or data.width)
    if data.crops_per_clip > 1 and not data.crop_height:
        crops = f"data.crops_per_clip is {data.crops_per_clip} without a size of crops"
        yield f"{crops}; give data.crop_height and data.crop_width"
    weights = list(config.loss.frame_weights)
    if weights and len(weights) != ratio:
        yield f"loss.frame_weights is {weights}; expected {ratio} numbers, one for each frame of a latent"
    if data.min_stride > data.stride:
        expected = f"0 (always {data.stride}) or an integer in 1..{data.stride}"
        yield f"data.min_stride is {data.min_stride}; expected {expected}"
    if data.kind != "folder" and data.folder:
        reads = f'data.folder is {data.folder!r}, but data.kind is "{data.kind}", which reads no videos'
        yield f"{reads}; also set data.kind=folder, or leave data.folder out"
    if data.kind == "folder" and not data.folder:
        advice = "give the directory of your videos: --set data.folder=DIR"
        yield f'data.folder is not set; {advice} (or data.kind="procedural")'


def _crop_problems(
    name: str, section: DataSettings | ValidationSettings, height: int, width: int
) -> Iterator[str]:
    crop_height, crop_width = section.crop_height, section.crop_width
    for side, limit, crop in (("height", height, crop_height), ("width", width, crop_width)):
        if crop > limit:
            expected = f"a multiple of {SPATIAL_RATIO} up to {limit}, or 0"
            yield f"{name}.crop_{side} is {crop}; expected {expected}"
    if bool(crop_height) != bool(crop_width):
        yield f"only one of {name}.crop_height and {name}.crop_width is set; give both, or none"
