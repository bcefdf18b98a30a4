"""Latte, diffusers' transformer over latents of videos: building, training with resume, sampling.

The network predicts the noise that was added in one of 1,000 steps (betas linear from 1e-4 to
0.02), from normalised latents (B, D, t, h, w). A class is a token that spatial blocks attend to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wfvae.errors import CheckpointError, DataError, InputError
from wfvae.files import replacing
from wfvae.metrics.torchvision_operators import make_torchvision_importable
from wfvae.spec.records import name_differences
from wfvae.train.latents import LatentBatch, LatentLoader, LatentShards

Sampler = Literal["ddim", "ddpm"]
Shape = tuple[int, int, int, int]
"""D, t, h, w."""

PATCH = 2
NOISE_STEPS = 1000
UNLABELLED = 0.1
"""Share of the rows that are trained without their class, for guidance."""
_EPSILON = 1e-6


@dataclass(frozen=True)
class LatteSize:
    """The width is heads x head_channels; a pair is a spatial and a temporal block."""

    heads: int
    head_channels: int
    pairs: int


SIZES = {"tiny": LatteSize(4, 32, 4), "L": LatteSize(16, 64, 12)}
"""L has the depth, width and patches that Latte's authors call L/2."""


@dataclass(frozen=True)
class Survey:
    """What is found out about a data set before training."""

    shape: Shape
    mean: list[float]
    """Per channel, of unscaled latents."""
    deviation: list[float]
    classes: list[str] = field(default_factory=list)
    """Empty: unconditional."""


def survey(dataset: LatentShards, label: str | None) -> Survey:
    """Reads all latents once.

    Args:
        label: the column that holds each video's class.

    Raises:
        DataError: the data set is empty, has latents of several shapes, or lacks the column.
    """
    shape: Shape | None = None
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    classes: set[str] = set()
    for batch in dataset:
        found = tuple(batch.latents.shape[1:])
        if shape is not None and found != shape:
            problem = f"latents have shapes {shape} and {found}"
            raise DataError(f"{problem}; encode them with --frames and --size, so that all are equal")
        shape = found
        values = batch.latents.double()
        count += values.numel() // values.shape[1]
        total = total + values.sum(dim=(0, 2, 3, 4))
        squares = squares + values.square().sum(dim=(0, 2, 3, 4))
        if label is not None:
            classes.update(map(str, batch.column(label)))
    if shape is None:
        raise DataError("the data set has no samples; encode videos of at least the wanted frames")
    if shape[2] % PATCH or shape[3] % PATCH:
        problem = f"latents of {shape[2]}x{shape[3]} do not divide into patches of {PATCH}x{PATCH}"
        raise DataError(f"{problem}; encode with a --size of multiples of {8 * PATCH}")
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=_EPSILON).sqrt()
    return Survey(shape, mean.tolist(), deviation.tolist(), sorted(classes))


class Denoiser(nn.Module):
    """Latte with classes and the normalisation of its latents.

    Args:
        mean, deviation: per channel; the network sees (z - mean) / deviation.
        classes: their number; 0 for an unconditional network.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, size: LatteSize, shape: Shape, mean: Sequence[float], deviation: Sequence[float], classes: int
    ) -> None:
        super().__init__()
        make_torchvision_importable("Latte", "benchmarks")
        from diffusers import LatteTransformer3DModel

        width = size.heads * size.head_channels
        self.shape, self.classes = shape, classes
        self.transformer = LatteTransformer3DModel(
            num_attention_heads=size.heads,
            attention_head_dim=size.head_channels,
            in_channels=shape[0],
            num_layers=size.pairs,
            cross_attention_dim=width if classes else None,
            attention_bias=True,
            sample_size=max(shape[2:]),
            patch_size=PATCH,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=_EPSILON,
            caption_channels=width,
            video_length=shape[1],
        )
        # As DiT and Latte begin: the prediction is zero.
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        self.labels = nn.Embedding(classes + 1, width)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(-1, 1, 1, 1))

    def forward(self, latents: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        """Predicts the noise in normalised latents (B, D, t, h, w).

        Args:
            steps: (B,), 0 to 999.
            labels: (B,), the numbers of classes; `classes` stands for none.
        """
        tokens = self.labels(labels)[:, None]
        predicted: Tensor = self.transformer(
            latents, timestep=steps, encoder_hidden_states=tokens, return_dict=False
        )[0]
        return predicted

    def normalise(self, latents: Tensor) -> Tensor:
        """Unscaled latents to what the network sees."""
        return (latents - self.mean) / self.deviation

    def restore(self, normalised: Tensor) -> Tensor:
        """Returns unscaled latents."""
        return normalised * self.deviation + self.mean


@dataclass(frozen=True)
class Settings:
    """What decides a training. A checkpoint of other settings is not continued."""

    size: str
    batch: int
    learning_rate: float
    average: float
    """Largest decay of the weights' moving average."""
    seed: int
    precision: Literal["fp32", "bf16"]
    label: str | None
    normalise: Literal["bundle", "measured"]


class Training:
    """A training of a denoiser that continues from its checkpoint with the same bits on a CPU.

    Args:
        dataset: yields unscaled latents.
        folder: of the checkpoint; what is there is continued.
        factors: mean and deviation of the bundle's scaling, for `normalise="bundle"`.

    Raises:
        DataError: as `survey`.
        CheckpointError: the checkpoint cannot be read, or is of other settings.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: LatentShards,
        folder: Path,
        factors: tuple[list[float], list[float]],
        device: torch.device,
    ) -> None:
        self.settings, self.step, self.losses = settings, 0, list[float]()
        self.seconds = 0.0
        self._path, self._device = folder / "checkpoint.pt", device
        self._loader = LatentLoader(dataset)
        stored = self._read()
        self.survey = survey(dataset, settings.label) if stored is None else Survey(**stored["survey"])
        if settings.normalise == "measured":
            factors = self.survey.mean, self.survey.deviation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            classes = len(self.survey.classes)
            shape: Any = tuple(self.survey.shape)
            self.model = Denoiser(SIZES[settings.size], shape, *factors, classes).to(device)
        self.average = AveragedModel(self.model, avg_fn=_average(settings.average))
        self._optimizer = torch.optim.AdamW(self.model.parameters(), settings.learning_rate, weight_decay=0)
        self._schedule = noise_schedule("ddpm")
        if stored is not None:
            self.step, self.losses, self.seconds = stored["step"], stored["losses"], stored["seconds"]
            self.model.load_state_dict(stored["model"])
            self.average.load_state_dict(stored["average"])
            self._optimizer.load_state_dict(stored["optimizer"])
            self._loader.load_state_dict(stored["loader"])

    @property
    def parameters(self) -> int:
        """The number of the network's weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def run(
        self,
        steps: int,
        seconds: float | None = None,
        save_every: int = 1000,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Trains until `steps` are done or `seconds` are over, both in all, and saves."""
        began, before, saved = time.monotonic(), self.seconds, self.step
        batches = self._batches()
        while self.step < steps and (seconds is None or self.seconds < seconds):
            self.losses.append(self._train(next(batches)))
            self.step += 1
            self.seconds = before + time.monotonic() - began
            if self.step % save_every == 0:
                self.save()
                saved = self.step
                recent = self.losses[-save_every:]
                progress(f"step {self.step}: loss {sum(recent) / len(recent):.4f}")
        if saved != self.step:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint atomically, over the one before."""
        state = {
            "settings": asdict(self.settings),
            "survey": asdict(self.survey),
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "loader": self._loader.state_dict(),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as temporary:
            torch.save(state, temporary)

    def _read(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        try:
            stored: dict[str, Any] = torch.load(self._path, self._device, weights_only=True)
        except Exception as error:  # of many types, for what torch finds in a damaged file
            problem = f"{self._path} cannot be read: {str(error).splitlines()[0]}"
            raise CheckpointError(f"{problem}; remove it to begin again") from error
        if different := name_differences(stored["settings"], asdict(self.settings)):
            problem = f"{self._path} is of a training with other settings: {', '.join(different)}"
            raise CheckpointError(f"{problem}; use the same, or another --work")
        return stored

    def _batches(self) -> Iterator[LatentBatch]:
        while True:
            yield from self._loader

    def _train(self, batch: LatentBatch) -> float:
        # The state of no generator is kept: what a step draws depends on its number alone.
        dice = generator(self.settings.seed, self.step)
        noise = torch.randn(batch.latents.shape, generator=dice).to(self._device)
        steps = torch.randint(NOISE_STEPS, (len(noise),), generator=dice).to(self._device)
        labels = self._labels(batch, dice).to(self._device)
        autocast = torch.autocast(self._device.type, torch.bfloat16)
        with autocast if self.settings.precision == "bf16" else nullcontext():
            clean = self.model.normalise(batch.latents.to(self._device))
            noisy: Any = self._schedule.add_noise(clean, noise, steps)
            predicted = self.model(noisy, steps, labels)
        loss = nn.functional.mse_loss(predicted.float(), noise)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()

    def _labels(self, batch: LatentBatch, dice: torch.Generator) -> Tensor:
        classes = self.survey.classes
        if self.settings.label is None:
            return torch.zeros(len(batch.latents), dtype=torch.int64)
        numbers = torch.tensor([classes.index(str(name)) for name in batch.column(self.settings.label)])
        dropped = torch.rand(len(numbers), generator=dice) < UNLABELLED
        return torch.where(dropped, len(classes), numbers)


def _average(largest: float) -> Callable[[Tensor, Tensor, Any], Tensor]:
    def update(average: Tensor, current: Tensor, updates: Any) -> Tensor:
        # Grows from 0.1, so that an average of few steps holds little of the initial weights.
        decay = min(largest, (1 + float(updates)) / (10 + float(updates)))
        return torch.lerp(average, current, 1 - decay)

    return update


def generator(*seeds: int) -> torch.Generator:
    """Returns a generator on the CPU for a row of numbers."""
    return torch.Generator().manual_seed(int(np.random.default_rng(seeds).integers(1 << 62)))


def noise_schedule(sampler: Sampler) -> Any:
    """Returns diffusers' scheduler."""
    from diffusers import DDIMScheduler, DDPMScheduler

    kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
    return kind(NOISE_STEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)


@torch.inference_mode()
def sample(
    model: Denoiser,
    numbers: Sequence[int],
    seed: int,
    sampler: Sampler = "ddpm",
    steps: int = 250,
    guidance: float = 1.0,
    device: torch.device | None = None,
) -> Tensor:
    """Draws unscaled latents (B, D, t, h, w).

    The noise of a video depends on the seed and its number alone; its class is the number modulo
    the classes.

    Args:
        numbers: of the videos.
        steps: network evaluations, 1 to 1,000.
        guidance: weight of classifier-free guidance; 1 for none.

    Raises:
        InputError: the latents are not finite.
    """
    device = device or torch.device("cpu")
    scheduler = noise_schedule(sampler)
    scheduler.set_timesteps(steps)
    dice = [generator(seed, 1, number) for number in numbers]
    latents = torch.stack([torch.randn(model.shape, generator=one) for one in dice]).to(device)
    labels = torch.tensor([number % max(model.classes, 1) for number in numbers], device=device)
    none = torch.full_like(labels, model.classes)
    for step in scheduler.timesteps:
        at = step.to(device).expand(len(latents))
        noise = model(latents, at, labels)
        if model.classes and guidance != 1:
            without = model(latents, at, none)
            noise = without + guidance * (noise - without)
        latents = scheduler.step(noise, step, latents, generator=dice).prev_sample
    if not latents.isfinite().all():
        raise InputError("sampled latents are not finite; train with a lower learning rate or in fp32")
    return model.restore(latents).float().cpu()
