"""Everything that a training step changes, as one object that is saved and restored exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX

from wfvae.errors import CheckpointError
from wfvae.model.vae import WFVAE
from wfvae.train.config import TrainingConfig
from wfvae.train.discriminator import PatchDiscriminator3D
from wfvae.train.settings import OptimizerSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """Model, moving average, discriminator, their optimisers, and the number of steps made."""

    model: WFVAE
    average: WFVAE
    """Exponential moving average of `model`'s weights, in eval mode."""
    optimizer: torch.optim.AdamW
    discriminator: PatchDiscriminator3D | None
    """None in a run without adversarial loss."""
    discriminator_optimizer: torch.optim.AdamW | None
    step: int = 0
    """Optimiser steps made."""

    @classmethod
    def fresh(
        cls, config: TrainingConfig, device: torch.device, initial: WFVAE | None = None
    ) -> TrainingState:
        """Returns the state before the first step; without `initial`, with random weights."""
        model = initial or WFVAE.random(config.model.architecture(), config.run.seed)
        model = model.to(device).train()
        average = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer, loss = _optimizer(model, config.optimizer), config.loss
        if not loss.adversarial:
            return cls(model, average, optimizer, None, None)
        discriminator = PatchDiscriminator3D(
            base=loss.discriminator_channels, layers=loss.discriminator_layers, seed=config.run.seed
        )
        discriminator = discriminator.to(device).train()
        return cls(model, average, optimizer, discriminator, _optimizer(discriminator, config.optimizer))

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average <- decay * average + (1 - decay) * model, for every weight."""
        averaged: list[Tensor] = list(self.average.parameters())
        current: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1.0 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors by name: `model.*`, `average.*`, `optimizer.*`, ..."""
        found: dict[str, Tensor] = {}
        for prefix, module in self._modules():
            found.update({f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()})
        for prefix, module, optimizer in self._optimizers():
            for name, parameter in _named(module):
                for key, value in optimizer.state.get(parameter, {}).items():
                    found[f"{prefix}.{name}.{key}"] = torch.as_tensor(value)
        return found

    def load(self, tensors: Mapping[str, Tensor], source: object) -> None:
        """Restores what `tensors` returned.

        Raises:
            CheckpointError: tensors of `source` are missing, left over or misshaped.
        """
        rest = dict(tensors)
        for prefix, module in self._modules():
            part = _take(rest, prefix)
            try:
                module.load_state_dict(part, strict=True)
            except RuntimeError as error:
                raise _does_not_fit(source, " ".join(str(error).split())) from error
        for prefix, module, optimizer in self._optimizers():
            _fill(optimizer, module, _take(rest, prefix), source)
        _require_empty(rest, source)

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield "model", self.model
        yield "average", self.average
        if self.discriminator is not None:
            yield "discriminator", self.discriminator

    def _optimizers(self) -> Iterator[tuple[str, nn.Module, torch.optim.AdamW]]:
        yield "optimizer", self.model, self.optimizer
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            yield "discriminator_optimizer", self.discriminator, self.discriminator_optimizer


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Returns the rate of a step (from 0): a linear warm-up, then constant or a cosine."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    steps = settings.schedule_steps or steps
    progress = min((step - settings.warmup_steps) / max(steps - settings.warmup_steps, 1), 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.learning_rate * (settings.final_rate + (1.0 - settings.final_rate) * cosine)


def _optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        module.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields parameters by the names of the state dict, without the wrappers of recomputation."""
    for name, parameter in module.named_parameters():
        yield name.replace(_CHECKPOINT_PREFIX, ""), parameter


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(f"{prefix}.")]
    return {name.removeprefix(f"{prefix}."): tensors.pop(name) for name in names}


def _fill(
    optimizer: torch.optim.AdamW, module: nn.Module, tensors: Mapping[str, Tensor], source: object
) -> None:
    """Restores AdamW's counters, and its moments in the layout of their weights."""
    rest = dict(tensors)
    for name, parameter in _named(module):
        if f"{name}.step" not in rest:
            continue  # no step has used it yet
        state = {"step": rest.pop(f"{name}.step")}
        for key in _MOMENTS:
            moment = rest.pop(f"{name}.{key}", None)
            if moment is None or moment.shape != parameter.shape:
                raise _does_not_fit(source, f"{name}.{key} is missing or of another shape")
            kept = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state[key] = kept.copy_(moment).detach()
        optimizer.state[parameter] = state
    _require_empty(rest, source)


def _require_empty(rest: Mapping[str, Tensor], source: object) -> None:
    if rest:
        raise _does_not_fit(source, f"it also holds {', '.join(sorted(rest)[:4])}")


def _does_not_fit(source: object, reason: str) -> CheckpointError:
    return CheckpointError(f"{source} does not fit this configuration: {reason}")
