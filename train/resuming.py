"""How a run starts or resumes: from which model, with which settings, with which warnings."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from wfvae.errors import CheckpointError, ConfigError
from wfvae.model.checkpoint import CONFIG_NAME
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.spec.runs import RUN_MODEL, newest_of_run
from wfvae.train.checkpoints import Facts, read_facts, unfinished
from wfvae.train.config import TrainingConfig
from wfvae.train.data import ClipSource
from wfvae.train.sources import has_validation

STEERING = frozenset({"optimizer.learning_rate", "optimizer.clip_norm"})
"""Keys that `--set` may change on a resumed run, to lead it past a place where it diverged."""
_FREE_KEYS = {
    "data": "folder workers bad_files",
    "loss": "perceptual_frames",
    "run": "steps threads activation_checkpointing checkpoint_every keep log_every tensorboard initial",
    "validation": "every clips folder frames height width crop_height crop_width pictures",
}
FREE = frozenset(f"{section}.{key}" for section, keys in _FREE_KEYS.items() for key in keys.split())
"""Keys that a resumed run may change. (The videos of `data.folder` are compared by fingerprint;
`run.steps` moves the end of a cosine, unless `optimizer.schedule_steps` fixes it.)"""
_NOT_COMPARED = frozenset({"scale", "shift", "dropout"})
"""Keys of a model that do not affect its weights; dropout is a setting of each stage."""
_OTHERWISE = "the run continues, but not as it would have without the interruption"


def checkpoint_to_resume(directory: Path, resume: bool) -> Path | None:
    """Returns the newest checkpoint of a run, None for a new run. One needs `resume`."""
    newest = newest_of_run(directory)
    if newest is not None and not resume:
        raise ConfigError(
            f"{directory} holds a training run up to {newest.name}; go on with --resume, or choose another"
            " --out"
        )
    return newest


def initial_model(config: TrainingConfig, checkpoint: Path | None) -> WFVAE:
    """Returns the model of `run.initial` with the run's dropout, else one with random weights.

    Of a `checkpoint`, `step-N` of a resumed run, only the architecture is read here. Scale and
    shift of the latents are no settings of a run: they are those of `run.initial`, and afterwards
    of the run's checkpoints.

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


def choose_precision(config: TrainingConfig, checkpoint: Path | None, slow_bf16: bool) -> TrainingConfig:
    """Replaces precision "auto" by what the run had, or a new one's by what is fast everywhere."""
    if config.run.precision != "auto":
        return config
    fast: Literal["fp32", "bf16"] = "fp32" if slow_bf16 else "bf16"
    chosen = fast if checkpoint is None else read_facts(checkpoint).training_config().run.precision
    return config.with_changes(run={"precision": chosen})


def start_notices(
    config: TrainingConfig, directory: Path, checkpoint: Path | None, resume: bool, steering: Collection[str]
) -> list[str]:
    """Returns a line for each thing that is unusual about the settings of a run that begins.

    Raises:
        ConfigError: the run was made with other settings that would change what it computes.
    """
    lines = []
    if checkpoint is not None:
        before = read_facts(checkpoint).training_config()
        lines = [f"{change}; {_OTHERWISE}" for change in _steered(config, before, steering)]
        if before.run.initial != config.run.initial:
            lines.append(
                f"run.initial is {config.run.initial!r} and was {before.run.initial!r}; only a new run starts"
                " from it, this one resumes"
            )
    elif resume:
        lines = [f"there is no checkpoint in {directory} to go on from; training begins at step 0"]
    initial = config.run.initial
    if checkpoint is None and initial and (steps := unfinished(Path(initial))):
        lines.append(
            f"run.initial {initial} has not ended: this run starts from its step {steps[0]} of {steps[1]}"
        )
    if not has_validation(config):
        lines.append("validation.folder is not set, so nothing is validated")
    return lines


def data_notices(facts: Facts, source: ClipSource, folder: str, processes: int) -> list[str]:
    """Returns a line each if clips or number of processes differ from the checkpoint's."""
    lines = []
    if facts.data and facts.data != source.fingerprint:
        lines.append(f"the videos below {folder} are not those of before; {_OTHERWISE}")
    if facts.processes is not None and facts.processes != processes:
        lines.append(
            f"there were {facts.processes} processes before, and there are {processes}; {_OTHERWISE}"
        )
    return lines


def _steered(config: TrainingConfig, before: TrainingConfig, steering: Collection[str]) -> list[str]:
    """Returns `section.key is VALUE and was VALUE` for each requested change of `STEERING`."""
    allowed = STEERING.intersection(steering)
    differing = config.differences(before)
    changed = [key for key in differing if key not in FREE | allowed]
    if changed:
        advice = "resume with the same configuration, or start a new run from it with run.initial"
        if STEERING.issuperset(changed):
            values = ", ".join(f"{key}={_value(before, key)}" for key in changed)
            advice += f"; it was {values}, and changes if it is given with --set on this call"
        raise ConfigError(
            f"the run was made with another {', '.join(changed)}, so it cannot be resumed exactly; {advice}"
        )
    return [
        f"{key} is {_value(config, key)} and was {_value(before, key)}" for key in differing if key in allowed
    ]


def _value(config: TrainingConfig, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _scaled_as(architecture: WFVAEConfig, other: WFVAEConfig) -> WFVAEConfig:
    return replace(architecture, scale=other.scale, shift=other.shift)


def _config_of(checkpoint: Path) -> WFVAEConfig:
    try:
        return WFVAEConfig.from_json(checkpoint / RUN_MODEL / CONFIG_NAME)
    except ConfigError as error:
        raise CheckpointError(f"{error}; remove {checkpoint} to resume from the one before") from error
