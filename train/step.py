"""One optimiser step of the autoencoder and of its discriminator (paper, section 3.4)."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from wfvae.errors import InputError, TrainingError
from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.vae import DecoderOutput, EncoderOutput
from wfvae.spec.frames import SPATIAL_RATIO, latent_frames
from wfvae.train.config import TrainingConfig
from wfvae.train.data import to_model_range
from wfvae.train.losses import (
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
    kl_loss,
    reconstruction_loss,
    total_loss,
    wavelet_loss,
)
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.processes import World
from wfvae.train.state import TrainingState, learning_rate
from wfvae.train.wrapping import Autoencoding, distributed, exchanging, recompute_blocks

_MASK = (1 << 64) - 1
_SEED_RANGE = 1 << 63


class NotFiniteError(TrainingError):
    """A step met values that are NaN or infinite, and changed nothing. All processes raise it.

    Attributes:
        elsewhere: whether the clips of another process are known to be the cause.
    """

    def __init__(self, message: str, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


class Trainer:
    """Makes steps. Holds what does not change during a run; the rest is in the `TrainingState`.

    Attributes:
        updating: whether a step has begun to change the state: if it raised then, the state is
            between two steps.
    """

    def __init__(
        self, config: TrainingConfig, state: TrainingState, world: World, perceptual: PerceptualLoss | None
    ) -> None:
        assert config.run.precision != "auto"
        self.config, self.state, self.world = config, state, world
        self.updating = False
        self._perceptual = perceptual
        if config.run.activation_checkpointing:
            recompute_blocks(state.model)
        self._autoencoding = distributed(Autoencoding(state.model), world)
        self._judge = None if state.discriminator is None else distributed(state.discriminator, world)

    def step(self, parts: Sequence[Tensor]) -> dict[str, float]:
        """Makes one optimiser step and counts it.

        The state is that after the previous step if this raises, unless `updating`.

        Args:
            parts: this process's share of the batch, uint8 (b, 3, T, H, W) each, on any device.

        Returns:
            The loss terms, unweighted and averaged over all processes, the learning rate and the
            norms of the gradients.

        Raises:
            NotFiniteError: the latents, a loss or a gradient are NaN or infinite.
            RuntimeError, MemoryError: torch lacks memory, or another process has ended.
        """
        # The norms' running statistics change before it is known whether the step is good.
        discriminator = self.state.discriminator
        buffers = [] if discriminator is None else [(b, b.clone()) for b in discriminator.buffers()]
        try:
            return self._step(parts)
        except Exception:
            for buffer, before in buffers:
                buffer.copy_(before)
            raise

    def _step(self, parts: Sequence[Tensor]) -> dict[str, float]:
        state, settings = self.state, self.config.optimizer
        rate = learning_rate(settings, state.step, self.config.run.steps)
        _seed_dropout(self.config.run.seed, state.step, self.world.rank)
        state.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        rows = 0
        for number, part in enumerate(parts, 1):
            video = to_model_range(part.to(self.world.device, non_blocking=True))
            with exchanging(self._autoencoding, now=number == len(parts)):
                total, named, reconstruction = self._autoencoder_losses(video, rows)
                torch.autograd.backward(total / len(parts))
            rows += video.shape[0]
            for name, value in named.items():
                terms[name] = terms.get(name, torch.zeros_like(value)) + value / len(parts)
            if self._adversarial:
                pairs.append((video, reconstruction.detach()))
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip_norm or math.inf)
        result = {name: float(self.world.mean(value)) for name, value in terms.items()}
        result["gradient_norm"] = float(norm)
        self._require_finite(result, terms)
        if pairs:
            result |= self._discriminator_gradients(pairs)
            self._require_finite(result, {})
        # Nothing has changed so far: a step that failed leaves no trace in a checkpoint.
        self.updating = True
        _apply(state.optimizer, rate)
        if pairs and state.discriminator_optimizer is not None:
            _apply(state.discriminator_optimizer, rate)
        state.step += 1
        state.update_average(settings.ema_decay)
        self.updating = False
        return {**result, "learning_rate": rate}

    @property
    def _adversarial(self) -> bool:
        return self.state.discriminator is not None and self.state.step >= self.config.loss.adversarial_start

    def _autoencoder_losses(self, video: Tensor, first_row: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Returns the loss, its terms and the reconstruction."""
        loss, judge = self.config.loss, self.state.discriminator
        encoded, decoded = self._forward(video, self._noise(video, first_row))
        perceptual = None
        if self._perceptual is not None:
            with self._precision():
                perceptual = self._perceptual(video, decoded.sample, self._frames_at_once)
        reconstruction = reconstruction_loss(
            video,
            decoded.sample,
            kind=loss.reconstruction,
            perceptual=perceptual,
            perceptual_weight=loss.perceptual_weight,
            frame_weights=self._frame_weights(video.shape[2]),
        )
        adversarial: Tensor | None = None
        weight: Tensor | float = 0.0
        if judge is not None and self._adversarial:
            judge.requires_grad_(False)
            with self._judging_precision():
                adversarial = generator_loss(judge(decoded.sample.float()))
            judge.requires_grad_(True)
            last_layer = self.state.model.decoder.conv_out.weight
            weight = adaptive_weight(reconstruction, adversarial, last_layer, loss.adversarial_weight)
        total, terms = total_loss(
            reconstruction=reconstruction,
            kl=kl_loss(DiagonalGaussian(encoded.latent_dist.moments.float())),
            wavelet=wavelet_loss(encoded, decoded),
            kl_weight=loss.kl_weight,
            wavelet_weight=loss.wavelet_weight,
            adversarial=adversarial,
            adversarial_weight=weight,
            perceptual=perceptual,
        )
        return total, terms, decoded.sample

    def _forward(self, video: Tensor, noise: Tensor) -> tuple[EncoderOutput, DecoderOutput]:
        outputs: tuple[EncoderOutput, DecoderOutput] | None = None
        found = "latents are NaN or infinite"
        try:
            with self._precision():
                outputs = self._autoencoding(video, noise)
        except InputError as error:  # the decoder refuses latents that are not finite
            found = str(error)
        # All processes raise here: in the backward pass the others would wait for this one.
        if self.world.any(outputs is None) or outputs is None:
            message = f"step {self.state.step + 1}: in the autoencoder, {found}"
            raise NotFiniteError(message, elsewhere=outputs is not None)
        return outputs

    def _discriminator_gradients(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Fills the discriminator's gradients, and returns its loss and their norm."""
        optimizer, judge = self.state.discriminator_optimizer, self._judge
        assert optimizer is not None and judge is not None
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        for number, (real, fake) in enumerate(pairs, 1):
            with exchanging(judge, now=number == len(pairs)), self._judging_precision():
                # Two calls: in one, its batch norms could tell real from fake.
                loss = hinge_discriminator_loss(judge(real), judge(fake.float())) / len(pairs)
            torch.autograd.backward(loss)
            total += loss.detach()
        gradients = [parameter.grad for parameter in judge.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        return {"discriminator": float(self.world.mean(total)), "discriminator_gradient_norm": float(norm)}

    def _precision(self) -> AbstractContextManager[object]:
        in_bf16 = self.config.run.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=in_bf16)

    def _judging_precision(self) -> AbstractContextManager[object]:
        # On a CPU, gradients of small 3-D convolutions in bf16 are NaN (torch 2.13).
        return self._precision() if self.world.device.type != "cpu" else torch.autocast("cpu", enabled=False)

    @property
    def _frames_at_once(self) -> int | None:
        """Frames that pass through LPIPS at once; None for all."""
        recomputed = self.config.run.activation_checkpointing
        of_a_latent = self.state.model.config.temporal_compression
        return self.config.loss.perceptual_frames or (of_a_latent if recomputed else None)

    def _frame_weights(self, frames: int) -> Tensor | None:
        """Returns 1 for the first frame, then the configured weights, scaled to a mean of 1."""
        if not self.config.loss.frame_weights:
            return None
        of_a_latent = torch.tensor(self.config.loss.frame_weights, device=self.world.device)
        latents = (frames - 1) // len(of_a_latent)
        return torch.cat([of_a_latent.new_ones(1), (of_a_latent / of_a_latent.mean()).repeat(latents)])

    def _noise(self, video: Tensor, first_row: int) -> Tensor:
        architecture, (batch, _, frames, height, width) = self.state.model.config, video.shape
        latents = latent_frames(frames, architecture.temporal_compression)
        size = (latents, height // SPATIAL_RATIO, width // SPATIAL_RATIO)
        share = self.config.optimizer.batch // self.world.size
        place = self.world.rank * share + first_row
        shape = (batch, architecture.latent_dim, *size)
        return _posterior_noise(shape, self.config.run.seed, self.state.step, place).to(video.device)

    def _require_finite(self, values: dict[str, float], own: dict[str, Tensor]) -> None:
        """Raises for values that are not finite; `own` are this process's parts of them."""
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            is_own_finite = all(math.isfinite(float(term)) for term in own.values())
            listed = ", ".join(f"{name} is {value}" for name, value in bad.items())
            elsewhere = bool(bad.keys() & own.keys()) and is_own_finite
            raise NotFiniteError(f"step {self.state.step + 1}: {listed}", elsewhere)


def _apply(optimizer: torch.optim.AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seeds torch's own generator, from which dropout draws."""
    torch.manual_seed(_mix(seed, step, -1 - rank))


def _posterior_noise(shape: tuple[int, ...], seed: int, step: int, first_place: int) -> Tensor:
    """Returns standard normal noise (B, D, t, h, w) for the posterior samples of B clips.

    It depends on a clip's place in the whole batch, `first_place` and those after it, not on how
    the batch is divided among processes.
    """
    rows = []
    for place in range(first_place, first_place + shape[0]):
        generator = torch.Generator().manual_seed(_mix(seed, step, 1 + place))
        rows.append(torch.randn(shape[1:], generator=generator))
    return torch.stack(rows)


def _mix(seed: int, step: int, salt: int) -> int:
    """Hashes seed, step and salt to a seed; neighbours get unlike ones."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + salt * 0x165667B19E3779F9) & _MASK
    mixed ^= mixed >> 29
    return mixed * 0xBF58476D1CE4E5B9 % _SEED_RANGE
