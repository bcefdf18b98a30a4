"""From settings to sources of clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wfvae.errors import ConfigError
from wfvae.train.config import TrainingConfig
from wfvae.train.data import ClipSource, Crops, FixedCrops, ProceduralClips, VideoFolder


def require_outside(config: TrainingConfig, run: Path) -> None:
    """Raises `ConfigError` if a run's directory lies in a folder of videos: nothing is written
    there.
    """
    folders = {
        "data.folder": config.data.folder if config.data.kind == "folder" else "",
        "validation.folder": config.validation.folder,
    }
    for key, folder in folders.items():
        if folder and run.resolve().is_relative_to(Path(folder).resolve()):
            raise ConfigError(
                f"the run's directory '{run}' lies in {key}, '{folder}', where nothing is written; choose an"
                f" --out outside {key}"
            )


def training_source(
    config: TrainingConfig,
    run: Path,
    indexing: Callable[[int, int], None] | None = None,
    *,
    retry_bad: bool = True,
) -> ClipSource:
    """The clips to train on; `indexing` is given (files looked at, files in all).

    With `retry_bad` files that could not be used before are tried again. Of several processes only
    the first does, before the others: all must see the same files.

    Raises `DataError` naming what is wrong with the folder.
    """
    data, size = config.data, (config.data.height, config.data.width)
    stride, slow = data.stride, data.min_stride
    if data.kind == "procedural":
        return ProceduralClips(
            config.run.seed,
            data.clips,
            data.frames,
            size,
            stride,
            min_stride=slow,
            stills=data.stills,
            scenes=data.scenes,
            max_noise=data.noise,
        )
    return VideoFolder(
        data.folder,
        data.frames,
        size,
        stride,
        min_stride=slow,
        stills=data.stills,
        index_path=run / "index.json",
        progress=indexing,
        retry_bad=retry_bad,
    )


def training_crops(config: TrainingConfig) -> Crops | None:
    """The windows that are cut out of the clips to train on."""
    data = config.data
    return Crops(data.crop_height, data.crop_width, data.crops_per_clip) if data.crop_height else None


def has_validation(config: TrainingConfig) -> bool:
    """Whether there are clips to validate on: folder data needs a folder of its own for that."""
    return bool(config.validation.folder) or config.data.kind == "procedural"


def validation_source(
    config: TrainingConfig, run: Path, indexing: Callable[[int, int], None] | None = None
) -> ClipSource | None:
    """Clips that training never sees; None for folder data without a validation folder. `indexing`
    as for `training_source`.
    """
    if not has_validation(config):
        return None
    data, validation = config.data, config.validation
    stride, slow = data.stride, data.min_stride
    size = (validation.height or data.height, validation.width or data.width)
    source: ClipSource
    if validation.folder:
        _require_apart(data.folder, validation.folder)
        index = run / "validation-index.json"
        source = VideoFolder(
            validation.folder,
            validation.frames,
            size,
            stride,
            min_stride=slow,
            index_path=index,
            progress=indexing,
        )
    else:
        source = ProceduralClips(
            0,
            validation.clips,
            validation.frames,
            size,
            stride,
            min_stride=slow,
            split="held-out",
            max_noise=data.noise,
        )
    return (
        FixedCrops(source, Crops(validation.crop_height, validation.crop_width))
        if validation.crop_height
        else source
    )


def _require_apart(training: str, validation: str) -> None:
    """Raises `ConfigError` if one folder lies in the other: what is trained on proves nothing."""
    if not training:
        return
    one, other = Path(training).resolve(), Path(validation).resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise ConfigError(
            f"validation.folder is '{validation}' and data.folder is '{training}', so videos would be in"
            " both; keep them in folders apart"
        )
