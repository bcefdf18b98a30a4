"""From settings to sources of clips."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wfvae.errors import ConfigError
from wfvae.train.config import TrainingConfig
from wfvae.train.data import ClipSource, Crops, FixedCrops, ProceduralClips, Strides, VideoFolder

Indexing = Callable[[int, int], None]
"""Is given (files probed, files in all)."""


def require_outside(config: TrainingConfig, run: Path) -> None:
    """Raises `ConfigError` if a run's directory lies in a folder of videos."""
    training = config.data.folder if config.data.kind == "folder" else ""
    for key, folder in {"data.folder": training, "validation.folder": config.validation.folder}.items():
        if folder and run.resolve().is_relative_to(Path(folder).resolve()):
            raise ConfigError(
                f"the run's directory '{run}' lies in {key}, '{folder}', where nothing is written; choose an"
                f" --out outside {key}"
            )


def training_source(
    config: TrainingConfig, run: Path, indexing: Indexing = lambda *_: None, *, retry_bad: bool = True
) -> ClipSource:
    """Returns the clips to train on.

    With `retry_bad` files that could not be used before are tried again. Of several processes only
    the first does, before the others: all must see the same files.

    Raises:
        DataError: the folder cannot be used.
    """
    data, seed = config.data, config.run.seed
    size, strides = (data.height, data.width), _strides(config, data.stills)
    if data.kind == "procedural":
        shown: dict[str, Any] = {"scenes": data.scenes, "max_noise": data.noise}
        return ProceduralClips(seed, data.clips, data.frames, size, strides, **shown)
    index: dict[str, Any] = {"index_path": run / "index.json", "progress": indexing, "retry_bad": retry_bad}
    return VideoFolder(data.folder, data.frames, size, strides, **index)


def training_crops(config: TrainingConfig) -> Crops | None:
    """Returns the windows that are cut out of the clips to train on."""
    data = config.data
    return Crops(data.crop_height, data.crop_width, data.crops_per_clip) if data.crop_height else None


def has_validation(config: TrainingConfig) -> bool:
    """Whether there are clips to validate on: folder data needs a folder of its own for that."""
    return bool(config.validation.folder) or config.data.kind == "procedural"


def validation_source(
    config: TrainingConfig, run: Path, indexing: Indexing = lambda *_: None
) -> ClipSource | None:
    """Returns clips that training never sees; None for folder data without a validation folder."""
    if not has_validation(config):
        return None
    data, validation = config.data, config.validation
    frames, strides = validation.frames, _strides(config, 0.0)
    size = (validation.height or data.height, validation.width or data.width)
    source: ClipSource
    if validation.folder:
        _require_apart(data.folder, validation.folder)
        index = run / "validation-index.json"
        source = VideoFolder(validation.folder, frames, size, strides, index_path=index, progress=indexing)
    else:
        held_out: dict[str, Any] = {"split": "held-out", "max_noise": data.noise}
        source = ProceduralClips(0, validation.clips, frames, size, strides, **held_out)
    if not validation.crop_height:
        return source
    return FixedCrops(source, Crops(validation.crop_height, validation.crop_width))


def _strides(config: TrainingConfig, stills: float) -> Strides:
    data = config.data
    return Strides(data.stride, data.min_stride or data.stride, stills)


def _require_apart(training: str, validation: str) -> None:
    """Raises `ConfigError` if one folder lies in the other."""
    one, other = Path(training).resolve(), Path(validation).resolve()
    if training and (one.is_relative_to(other) or other.is_relative_to(one)):
        raise ConfigError(
            f"validation.folder is '{validation}' and data.folder is '{training}', so videos would be in"
            " both; keep them in folders apart"
        )
