"""Checkpoints of a run: written whole or not at all, the newest few kept.

RUN/checkpoints/step-00001000/
    checkpoint/             config.json + diffusion_pytorch_model.safetensors: the averaged weights, in the published format
    training.safetensors    model, average, discriminator, optimisers (`TrainingState.tensors`)
    training.json           step, training configuration, versions
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wfvae import __version__
from wfvae.errors import CheckpointError, ConfigError, TrainingError
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_MODEL, newest_of_run
from wfvae.train.config import TrainingConfig
from wfvae.train.state import TrainingState

_STATE, _FACTS = "training.safetensors", "training.json"
_FORMAT = 1
_LEFTOVER = re.compile(r"step-\d+\.tmp")


def write_checkpoint(
    run: Path,
    state: TrainingState,
    config: TrainingConfig,
    data: str = "",
    processes: int = 1,
    *,
    keep_all: bool = False,
) -> Path:
    """Writes a checkpoint under a temporary name, syncs it, renames it, and removes what is older
    than the newest `config.run.keep`.

    Args:
        run: the directory of the run.
        state: what is written.
        config: of the run.
        data: the fingerprint of the clips, if they have one.
        processes: how many train together.
        keep_all: remove nothing.

    Raises:
        TrainingError: the disk refuses; older checkpoints stay.
    """
    final = run / RUN_CHECKPOINTS / f"step-{state.step:08d}"
    if final.exists():
        return final
    temporary = final.with_name(final.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        state.average.save_pretrained(temporary / RUN_MODEL)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
        save_file(tensors, temporary / _STATE)
        (temporary / _STATE).chmod(0o644)  # safetensors makes files for the owner's eyes only
        facts = _facts(state, config) | {"data": data, "processes": processes}
        (temporary / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        os.replace(temporary, final)
        _sync(final.parent)
    except (OSError, SafetensorError, CheckpointError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = newest_of_run(run)
        reason = (
            error.__cause__ if isinstance(error, CheckpointError) and error.__cause__ else error
        )  # which says the same around it
        raise TrainingError(
            f"cannot write the checkpoint of step {state.step} into {run}: {reason}; "
            + (
                f"{kept.name} is whole: make room and go on with --resume"
                if kept
                else "there is none before it: make room and begin again"
            )
        ) from error
    if not keep_all:
        _prune(run, config.run.keep)
    return final


def read_checkpoint(checkpoint: Path, state: TrainingState) -> None:
    """Fills `state` from a checkpoint of the same configuration. Raises `CheckpointError` if it is
    damaged or does not fit.
    """
    facts = _read_facts(checkpoint)
    try:
        tensors = load_file(checkpoint / _STATE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {checkpoint / _STATE}: {error}; remove {checkpoint} to resume from the one before"
        ) from error
    state.load(tensors, checkpoint)
    state.step = int(facts["step"])


def check_same_run(checkpoint: Path, config: TrainingConfig, steering: Collection[str] = ()) -> list[str]:
    """What was changed to steer a run, `section.key is VALUE and was VALUE` each: keys of
    `STEERING` that are in `steering`.

    Raises `ConfigError` if a checkpoint was made with other settings that would change what the
    resumed run computes.
    """
    allowed = STEERING.intersection(steering)
    before = TrainingConfig.from_dict(_read_facts(checkpoint)["config"])
    changed = [key for key in config.differences(before) if key not in _FREE | allowed]
    if changed:
        ways = "resume with the same configuration, or start a new run from it with run.initial"
        if STEERING.issuperset(changed):
            before_values = ", ".join(f"{key}={_of(before, key)}" for key in changed)
            ways += f"; it was {before_values}, and changes if you say so with --set on this call"
        raise ConfigError(
            f"the run was made with another {', '.join(changed)}, so it cannot be resumed exactly; {ways}"
        )
    return [
        f"{key} is {_of(config, key)} and was {_of(before, key)}"
        for key in config.differences(before)
        if key in allowed
    ]


def config_of(checkpoint: Path) -> TrainingConfig:
    """The settings that a checkpoint was made with. Raises `CheckpointError` or `ConfigError` if
    they cannot be read.
    """
    return TrainingConfig.from_dict(_read_facts(checkpoint)["config"])


def data_of(checkpoint: Path) -> str:
    """The fingerprint of the clips that a checkpoint was trained on; empty if there is none."""
    return str(_read_facts(checkpoint).get("data", ""))


def processes_of(checkpoint: Path) -> int | None:
    """How many processes made a checkpoint; None if it does not say, as those of earlier versions."""
    count = _read_facts(checkpoint).get("processes")
    return count if isinstance(count, int) else None


def unfinished(run: Path) -> tuple[int, int] | None:
    """The newest step of a training run and the last one it was to make, if it has not come to
    that; None for anything else.
    """
    newest = newest_of_run(run)
    if newest is None:
        return None
    try:
        facts = _read_facts(newest)
        steps = TrainingConfig.from_dict(facts["config"]).run.steps
    except (CheckpointError, ConfigError):
        return None  # its weights may be whole, and only they are of use to another run
    return (int(facts["step"]), steps) if facts["step"] < steps else None


_FREE = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "data": "folder workers bad_files",
        "loss": "perceptual_frames",
        "run": "steps threads activation_checkpointing checkpoint_every keep log_every tensorboard initial",
        "validation": "every clips folder frames height width crop_height crop_width pictures",
    }.items()
    for key in keys.split()
)
"""Keys that a resumed run may change. (Whether `data.folder` holds the videos of before is told by
their fingerprint; `run.steps` moves the end of a cosine, unless `optimizer.schedule_steps` holds
it.)"""
STEERING = frozenset({"optimizer.learning_rate", "optimizer.clip_norm"})
"""Keys that may be changed knowingly, to lead a run past a place where it diverged; that they were
is told.
"""


def _of(config: TrainingConfig, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _facts(state: TrainingState, config: TrainingConfig) -> dict[str, Any]:
    versions = {"wfvae": __version__, "torch": torch.__version__}
    return {"format": _FORMAT, "step": state.step, "config": config.to_dict(), "versions": versions}


def _read_facts(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / _FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (
            facts["format"] != _FORMAT
            or not isinstance(facts["step"], int)
            or not isinstance(facts["config"], dict)
        ):
            raise ValueError("expected format 1 with step and config")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; remove {checkpoint} to resume from the one before"
        ) from error
    return facts


def _prune(run: Path, keep: int) -> None:
    folder = run / RUN_CHECKPOINTS
    steps = sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name))
    for path in [*steps[:-keep], *(path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name))]:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
