"""What is wrapped around the networks: gradient exchange and recomputation of activations."""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wfvae.model.vae import WFVAE, DecoderOutput, EncoderOutput
from wfvae.train.processes import World


class Autoencoding(nn.Module):
    """Encodes, samples with given noise and decodes in one call, for DistributedDataParallel."""

    def __init__(self, model: WFVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, noise: Tensor) -> tuple[EncoderOutput, DecoderOutput]:
        """`video` (B, 3, T, H, W) in [-1, 1], `noise` standard normal (B, D, t, H/8, W/8)."""
        encoded = self.model.encode(video)
        posterior = encoded.latent_dist
        return encoded, self.model.decode(posterior.mean + posterior.std * noise.to(posterior.mean.dtype))


def distributed(module: nn.Module, world: World) -> nn.Module:
    """Returns the module with its gradients averaged over all processes; itself if there is one."""
    if world.size == 1:
        return module
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    # Buffers are running statistics that training does not read; sending them would break calls
    # made before one backward pass. The option's name depends on the version of torch.
    known = signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {"device_ids": [world.device] if on_gpu else None, name: False}
    return DistributedDataParallel(module, **options)


def exchanging(module: nn.Module, now: bool) -> AbstractContextManager[object]:
    """Exchanges gradients in the backward pass inside only if `now`: in the last part of a step."""
    return module.no_sync() if not now and isinstance(module, DistributedDataParallel) else nullcontext()


def recompute_blocks(model: WFVAE) -> None:
    """Makes blocks keep their input only, and compute the rest again in the backward pass.

    So do norms with their SiLU, within such blocks and before the last convolutions, which are in
    no block. Convolutions outside of blocks keep their inputs.
    """
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    from wfvae.model import blocks

    for module in model.modules():
        if isinstance(module, blocks.Norm):
            module.recomputed = True
    kinds = (
        blocks.Downsample2D,
        blocks.Downsample3D,
        blocks.FrameAttention,
        blocks.Res2D,
        blocks.Res3D,
        blocks.Upsample2D,
        blocks.Upsample3D,
    )
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, kinds))
