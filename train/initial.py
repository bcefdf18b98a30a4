"""The model that a run starts or resumes with."""

from __future__ import annotations

from pathlib import Path

from wfvae.errors import CheckpointError, ConfigError
from wfvae.model.checkpoint import CONFIG_NAME
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.spec.runs import RUN_MODEL
from wfvae.train.config import TrainingConfig

_NOT_COMPARED = frozenset({"scale", "shift", "dropout"})
"""Keys of a model that do not affect its weights; dropout is a setting of each stage."""


def initial_model(config: TrainingConfig, checkpoint: Path | None) -> WFVAE:
    """Returns the model before its weights are trained, or read from `checkpoint`.

    Scale and shift of the latents are no settings of a run: they are those of `run.initial`, and
    afterwards of the run's checkpoints.

    Args:
        config: of the run.
        checkpoint: of the run, `step-N`, if it is resumed; only the architecture is read here.

    Returns:
        The model of `run.initial` with the run's dropout, or one with random weights from the run's
        seed.

    Raises:
        ConfigError: `run.initial` is of another architecture.
        CheckpointError: a checkpoint is damaged or missing.
    """
    wanted = config.model.architecture()
    if checkpoint is not None:
        return WFVAE.random(_scaled_as(wanted, _config_of(checkpoint)), config.run.seed)
    if not config.run.initial:
        return WFVAE.random(wanted, config.run.seed)
    try:
        initial = WFVAE.from_pretrained(config.run.initial)
    except CheckpointError as error:
        raise CheckpointError(
            f"run.initial, what this run starts from: {error}; train the stage before first, or name a run or"
            " checkpoint by --set run.initial=RUN"
        ) from error
    mine, theirs = wanted.to_dict(), initial.config.to_dict()
    differing = [key for key in sorted({*mine, *theirs} - _NOT_COMPARED) if mine.get(key) != theirs.get(key)]
    if differing:
        raise ConfigError(
            f"run.initial {config.run.initial} is of another architecture; it differs in"
            f" {', '.join(differing)}"
        )
    if initial.config.dropout == wanted.dropout:
        return initial
    model = WFVAE.random(_scaled_as(wanted, initial.config), config.run.seed)
    model.load_state_dict(initial.state_dict())
    return model


def _scaled_as(architecture: WFVAEConfig, other: WFVAEConfig) -> WFVAEConfig:
    return architecture.with_changes(scale=other.scale, shift=other.shift)


def _config_of(checkpoint: Path) -> WFVAEConfig:
    try:
        return WFVAEConfig.from_json(checkpoint / RUN_MODEL / CONFIG_NAME)
    except ConfigError as error:
        raise CheckpointError(f"{error}; remove {checkpoint} to resume from the one before") from error
