"""One optimiser step: losses, gradients and updates of the autoencoder and of its discriminator
(paper, section 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wfvae.errors import InputError, TrainingError
from wfvae.model.distribution import DiagonalGaussian
from wfvae.model.vae import WFVAE, DecoderOutput, EncoderOutput
from wfvae.spec.frames import SPATIAL_RATIO, latent_frames
from wfvae.train.config import OptimizerSettings, TrainingConfig
from wfvae.train.data import to_model_range
from wfvae.train.losses import (
    LossTerms,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
    kl_loss,
    reconstruction_loss,
    total_loss,
    wavelet_loss,
)
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.state import TrainingState
from wfvae.train.world import World

_SEED_RANGE = 1 << 63


class NotFiniteError(TrainingError):
    """A step that came upon values that are NaN or infinite, and changed nothing. All processes
    raise it at the same step.

    Attributes:
        elsewhere: whether it is known that they are not of this process's clips.
    """

    def __init__(self, message: str, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


class Autoencoding(nn.Module):
    """Encode, sample with given noise, decode: one module call, which is what
    DistributedDataParallel wraps.
    """

    def __init__(self, model: WFVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, noise: Tensor) -> tuple[EncoderOutput, DecoderOutput]:
        """`video` (B, 3, T, H, W) in [-1, 1], `noise` standard normal (B, D, t, H/8, W/8)."""
        encoded = self.model.encode(video)
        posterior = encoded.latent_dist
        return encoded, self.model.decode(posterior.mean + posterior.std * noise.to(posterior.mean.dtype))


class Trainer:
    """Makes steps. Holds what never changes during a run, its precision chosen, and `updating`; the
    rest is in the `TrainingState`.
    """

    def __init__(
        self, config: TrainingConfig, state: TrainingState, world: World, perceptual: PerceptualLoss | None
    ) -> None:
        assert config.run.precision != "auto"
        self.config, self.state, self.world = config, state, world
        self.updating = False
        """Whether a step has begun to change the state: if it raised then, the state is between two
        steps.
        """
        self._perceptual = perceptual
        self._autoencoding: nn.Module = Autoencoding(state.model)
        if config.run.activation_checkpointing:
            _recompute_blocks(state.model)
        self._judge: nn.Module | None = state.discriminator
        if world.size > 1:
            self._autoencoding = _distributed(self._autoencoding, world)
            if state.discriminator is not None:
                self._judge = _distributed(state.discriminator, world)

    def step(self, parts: Sequence[Tensor]) -> dict[str, float]:
        """Makes one optimiser step and counts it.

        Args:
            parts: this process's share of the batch, uint8 (b, 3, T, H, W) each, on any device.

        Returns:
            The loss terms, unweighted and averaged over all processes, the learning rate and the
            norms of the gradients.

        Raises:
            NotFiniteError: the latents, a loss or a gradient are NaN or infinite.
            RuntimeError, MemoryError: torch cannot go on, for want of memory or of another process.

        The state is that after the previous step, whatever was raised, unless `updating`.
        """
        # The norms' running statistics change before it is known whether the step is good.
        buffers = (
            []
            if self.state.discriminator is None
            else [(buffer, buffer.clone()) for buffer in self.state.discriminator.buffers()]
        )
        try:
            return self._step(parts)
        except Exception:
            for buffer, before in buffers:
                buffer.copy_(before)
            raise

    def _step(self, parts: Sequence[Tensor]) -> dict[str, float]:
        state, settings = self.state, self.config.optimizer
        rate = learning_rate(settings, state.step, self.config.run.steps)
        self._seed()
        state.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        pairs: list[tuple[Tensor, Tensor]] = []
        rows = 0
        for number, part in enumerate(parts):
            video = to_model_range(part.to(self.world.device, non_blocking=True))
            last = number == len(parts) - 1
            with self._unsynchronised(self._autoencoding, not last):
                losses, reconstruction = self._autoencoder_losses(video, rows)
                torch.autograd.backward(losses.total / len(parts))
            rows += video.shape[0]
            for name, value in losses.named().items():
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
        # Nothing has changed so far: a step that went wrong leaves no trace in a checkpoint.
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

    @property
    def _frames_at_once(self) -> int | None:
        """That pass through LPIPS: with recomputation as many as a latent stands for, unless the
        settings say how many.
        """
        recomputed = (
            self.state.model.config.temporal_compression if self.config.run.activation_checkpointing else None
        )
        return self.config.loss.perceptual_frames or recomputed

    def _autoencoder_losses(self, video: Tensor, first_row: int) -> tuple[LossTerms, Tensor]:
        loss, model, judge = self.config.loss, self.state.model, self.state.discriminator
        encoded, decoded = self._forward(video, self._noise(video, first_row))
        perceptual = None
        if self._perceptual is not None:
            with self._precision():
                perceptual = self._perceptual(video, decoded.sample, self._frames_at_once)
        frame_weights = self._frame_weights(video.shape[2])
        reconstruction = reconstruction_loss(
            video,
            decoded.sample,
            kind=loss.reconstruction,
            perceptual=perceptual,
            perceptual_weight=loss.perceptual_weight,
            frame_weights=frame_weights,
        )
        adversarial: Tensor | None = None
        weight: Tensor | float = 0.0
        if judge is not None and self._adversarial:
            judge.requires_grad_(False)
            with self._judging_precision():
                adversarial = generator_loss(judge(decoded.sample.float()))
            judge.requires_grad_(True)
            weight = adaptive_weight(
                reconstruction,
                adversarial,
                model.decoder.conv_out.weight,
                factor=loss.adversarial_weight,
            )
        terms = total_loss(
            reconstruction=reconstruction,
            kl=kl_loss(_wide(encoded.latent_dist)),
            wavelet=wavelet_loss(encoded, decoded),
            kl_weight=loss.kl_weight,
            wavelet_weight=loss.wavelet_weight,
            adversarial=adversarial,
            adversarial_weight=weight,
            perceptual=perceptual,
        )
        return terms, decoded.sample

    def _discriminator_gradients(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Fills the discriminator's gradients; its loss over all processes, and the norm of its
        gradient.
        """
        optimizer, judge = self.state.discriminator_optimizer, self._judge
        assert optimizer is not None and judge is not None
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        for number, (real, fake) in enumerate(pairs):
            with self._unsynchronised(judge, number < len(pairs) - 1), self._judging_precision():
                # Two calls: its batch norms must not tell real from fake by seeing both at once.
                loss = hinge_discriminator_loss(judge(real), judge(fake.float())) / len(pairs)
            torch.autograd.backward(loss)
            total += loss.detach()
        norm = nn.utils.get_total_norm(
            [parameter.grad for parameter in judge.parameters() if parameter.grad is not None]
        )
        return {"discriminator": float(self.world.mean(total)), "discriminator_gradient_norm": float(norm)}

    def _forward(self, video: Tensor, noise: Tensor) -> tuple[EncoderOutput, DecoderOutput]:
        outputs: tuple[EncoderOutput, DecoderOutput] | None = None
        found = "latents are NaN or infinite"
        try:
            with self._precision():
                outputs = self._autoencoding(video, noise)
        except InputError as error:
            found = str(
                error
                # the decoder takes no latents that are NaN or infinite, so that such a step does not
                # come to its losses
            )
        # All at the same place: in the backward pass the others would wait for this process.
        if self.world.any(outputs is None) or outputs is None:
            raise NotFiniteError(
                f"step {self.state.step + 1}: in the autoencoder, {found}", elsewhere=outputs is not None
            )
        return outputs

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=self.config.run.precision == "bf16"
        )

    def _judging_precision(self) -> AbstractContextManager[object]:
        """The discriminator's: fp32 on a CPU, where gradients of small 3-D convolutions in bf16
        came out as NaN (torch 2.13).
        """
        return self._precision() if self.world.device.type != "cpu" else torch.autocast("cpu", enabled=False)

    def _frame_weights(self, frames: int) -> Tensor | None:
        """Of a clip's first frame, 1, and then those of the settings latent by latent, with a mean
        of 1.
        """
        if not self.config.loss.frame_weights:
            return None
        of_a_latent = torch.tensor(self.config.loss.frame_weights, device=self.world.device)
        latents = (frames - 1) // len(of_a_latent)
        return torch.cat([of_a_latent.new_ones(1), (of_a_latent / of_a_latent.mean()).repeat(latents)])

    def _noise(self, video: Tensor, first_row: int) -> Tensor:
        """Noise of the posterior samples. It depends on seed, step and the clip's place in the
        whole batch, not on the processes.
        """
        architecture, (batch, _, frames, height, width) = self.state.model.config, video.shape
        latents = latent_frames(frames, architecture.temporal_compression)
        shape = (architecture.latent_dim, latents, height // SPATIAL_RATIO, width // SPATIAL_RATIO)
        share = self.config.optimizer.batch // self.world.size
        rows = []
        for row in range(batch):
            place = self.world.rank * share + first_row + row
            generator = torch.Generator().manual_seed(_mix(self.config.run.seed, self.state.step, 1 + place))
            rows.append(torch.randn(shape, generator=generator))
        return torch.stack(rows).to(video.device)

    def _seed(self) -> None:
        """Dropout draws from torch's own generator: seeding it at each step makes a step a function
        of the state alone.
        """
        torch.manual_seed(_mix(self.config.run.seed, self.state.step, -1 - self.world.rank))

    def _require_finite(self, values: dict[str, float], own: dict[str, Tensor]) -> None:
        """`values` are of all processes, `own` those terms of them that this process has a part of
        its own in.
        """
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            elsewhere = bool(bad.keys() & own.keys()) and all(
                math.isfinite(float(term)) for term in own.values()
            )
            raise NotFiniteError(
                f"step {self.state.step + 1}:"
                f" {', '.join(f'{name} is {value}' for name, value in bad.items())}",
                elsewhere,
            )

    def _unsynchronised(self, module: nn.Module, without: bool) -> AbstractContextManager[object]:
        """Gradients are exchanged in the last part of a step only."""
        return module.no_sync() if without and isinstance(module, DistributedDataParallel) else nullcontext()


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """The rate of step number `step` (from 0) of `steps`."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    steps = settings.schedule_steps or steps
    progress = min((step - settings.warmup_steps) / max(steps - settings.warmup_steps, 1), 1.0)
    return settings.learning_rate * (
        settings.final_rate + (1.0 - settings.final_rate) * 0.5 * (1.0 + math.cos(math.pi * progress))
    )


def _apply(optimizer: torch.optim.AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _wide(distribution: DiagonalGaussian) -> DiagonalGaussian:
    return DiagonalGaussian(distribution.moments.float())


def _mix(seed: int, step: int, salt: int) -> int:
    """A seed for each seed, step and salt (a multiplicative hash, so that neighbours get unlike
    ones).
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + salt * 0x165667B19E3779F9) & (
        (1 << 64) - 1
    )
    mixed ^= mixed >> 29
    return mixed * 0xBF58476D1CE4E5B9 % _SEED_RANGE


def _distributed(module: nn.Module, world: World) -> DistributedDataParallel:
    if world.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    # Buffers are running statistics that training does not read; sending them around would break
    # calls made before one backward pass.
    known = signature(DistributedDataParallel.__init__).parameters
    unsent: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    return DistributedDataParallel(
        module, device_ids=[world.device] if world.device.type == "cuda" else None, **unsent
    )


def _recompute_blocks(model: WFVAE) -> None:
    """Blocks keep their input only and are computed again in the backward pass. So are norms with
    their SiLU within a block that is computed again, where memory is scarcest, and before the last
    convolutions, which are in no block. Convolutions outside of blocks keep their inputs."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    from wfvae.model.blocks import (
        Downsample2D,
        Downsample3D,
        FrameAttention,
        Norm,
        Res2D,
        Res3D,
        Upsample2D,
        Upsample3D,
    )

    for module in model.modules():
        if isinstance(module, Norm):
            module.recomputed = True
    blocks = Downsample2D | Downsample3D | FrameAttention | Res2D | Res3D | Upsample2D | Upsample3D
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, blocks))
