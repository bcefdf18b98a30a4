"""Checkpoints of a run: written whole or not at all, the newest few kept.

RUN/checkpoints/step-00001000/
    checkpoint/             config.json and weights of the moving average, in the published format
    training.safetensors    model, average, discriminator, optimisers (`TrainingState.tensors`)
    training.json           step, training configuration, versions, hashes of all files
"""

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from wfvae import __version__
from wfvae.errors import CheckpointError, ConfigError, ResourceError, TrainingError
from wfvae.files import discard, replacing
from wfvae.model.checkpoint import read_tensors
from wfvae.spec.bounded import read_json
from wfvae.spec.manifest import file_sha256, json_sha256
from wfvae.spec.records import read_as
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_MODEL, newest_of_run
from wfvae.train.config import TrainingConfig
from wfvae.train.settings import Count, Positive
from wfvae.train.state import TrainingState

_STATE, _FACTS = "training.safetensors", "training.json"


class Facts(msgspec.Struct):
    """What `training.json` holds."""

    format: Literal[1]
    step: Count
    config: dict[str, Any]
    versions: dict[str, str] = {}
    data: str = ""
    """Fingerprint of the clips, if they have one."""
    processes: Positive | None = None
    """How many processes trained together; None in checkpoints of earlier versions."""
    files: dict[str, str] | None = None
    """SHA-256 of each other file, by its path; None in checkpoints of earlier versions."""
    sha256: str = ""
    """Of all of the above as JSON, if `files` is set."""

    def training_config(self) -> TrainingConfig:
        """Returns the settings of the run. Raises `ConfigError` if they cannot be read."""
        return TrainingConfig.from_dict(self.config)


def write_checkpoint(
    run: Path,
    state: TrainingState,
    config: TrainingConfig,
    data: str = "",
    processes: int = 1,
    *,
    keep_all: bool = False,
) -> Path:
    """Writes a checkpoint atomically, and removes all but the newest `config.run.keep`.

    `data` and `processes` are those of `Facts`; `keep_all` removes nothing.

    Raises:
        TrainingError: the disk refuses; older checkpoints stay.
    """
    final = run / RUN_CHECKPOINTS / f"step-{state.step:08d}"
    if final.exists():
        return final
    versions = {"wfvae": __version__, "torch": str(torch.__version__)}
    facts = Facts(1, state.step, config.to_dict(), versions, data, processes)
    try:
        with replacing(final) as temporary:
            temporary.mkdir()
            state.average.save_pretrained(temporary / RUN_MODEL)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
            save_file(tensors, temporary / _STATE)
            (temporary / _STATE).chmod(0o644)  # safetensors makes files that only their owner can read
            write_facts(temporary, facts)
    except (ResourceError, SafetensorError, CheckpointError) as error:
        newest = newest_of_run(run)
        advice = f"{newest.name} is whole: make room and go on with --resume" if newest else ""
        raise TrainingError(
            f"cannot write the checkpoint of step {state.step} into {run}: {error.__cause__ or error};"
            f" {advice or 'there is none before it: make room and begin again'}"
        ) from error
    if not keep_all:
        _prune(final.parent, config.run.keep)
    return final


def read_checkpoint(checkpoint: Path, state: TrainingState) -> None:
    """Fills `state` from a checkpoint. Raises `CheckpointError` if it is damaged or differs."""
    facts = read_facts(checkpoint)
    for name, expected in (facts.files or {}).items():
        try:
            found = file_sha256(checkpoint / name)
        except OSError as error:
            raise _unreadable(checkpoint, name, error.strerror or str(error)) from error
        if found != expected:
            raise _unreadable(checkpoint, name, "it was changed after it was written (its SHA-256 differs)")
    try:
        tensors = read_tensors(checkpoint / _STATE)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove {checkpoint} to resume from the one before") from error
    state.load(tensors, checkpoint)
    state.step = facts.step


def read_facts(checkpoint: Path) -> Facts:
    """Reads `training.json`. Raises `CheckpointError` if it is damaged."""

    def unreadable(problem: str) -> CheckpointError:
        return _unreadable(checkpoint, _FACTS, problem)

    facts = read_as(Facts, read_json(checkpoint / _FACTS, unreadable), unreadable)
    if facts.files is not None and facts.sha256 != _digest(facts):
        raise unreadable("it was changed after it was written (its SHA-256 differs)")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in facts.files or {}):
        raise unreadable("it names files outside of the checkpoint")
    return facts


def write_facts(checkpoint: Path, facts: Facts) -> None:
    """Writes `training.json` with the hashes of all other files of the checkpoint."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != _FACTS)
    facts.files = {path.relative_to(checkpoint).as_posix(): file_sha256(path) for path in files}
    facts.sha256 = _digest(facts)
    (checkpoint / _FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")


def _digest(facts: Facts) -> str:
    content: dict[str, Any] = msgspec.to_builtins(facts)
    return json_sha256({key: value for key, value in content.items() if key != "sha256"})


def unfinished(run: Path) -> tuple[int, int] | None:
    """Returns the newest step and `run.steps` of a run that has not ended; else None."""
    newest = newest_of_run(run)
    if newest is None:
        return None
    try:
        facts = read_facts(newest)
        steps = facts.training_config().run.steps
    except (CheckpointError, ConfigError):
        return None  # its weights may be whole, and another run needs only those
    return (facts.step, steps) if facts.step < steps else None


def _prune(folder: Path, keep: int) -> None:
    steps = sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name))
    for path in steps[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*"):  # of processes that were killed: only this one may write here
        discard(path)


def _unreadable(checkpoint: Path, name: str, error: object) -> CheckpointError:
    return CheckpointError(
        f"cannot read {checkpoint / name}: {error}; remove {checkpoint} to resume from the one before"
    )
