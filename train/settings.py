"""The sections of a training configuration: every key with its type, bounds and default.

Defaults are the paper's values where the paper gives one (arXiv 2411.17459, Tables 6 and 7).
"""

from typing import Annotated, Literal

from msgspec import Meta, structs

from wfvae.model.config import Interpolation, NormType, Preset, WFVAEConfig
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.records import Record
from wfvae.video.synthetic.clips import SceneName

LARGEST = 10**18
"""Upper bound of numbers: sums and products of them fit 64-bit integers and float32."""
Positive = Annotated[int, Meta(ge=1, le=LARGEST)]
Count = Annotated[int, Meta(ge=0, le=LARGEST)]
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
Share = Annotated[float, Meta(ge=0, le=1)]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]
Side = Annotated[int, Meta(ge=SPATIAL_RATIO, le=LARGEST, multiple_of=SPATIAL_RATIO)]
OptionalSide = Annotated[int, Meta(ge=0, le=LARGEST, multiple_of=SPATIAL_RATIO)]


class ModelSettings(Record, frozen=True):
    """The architecture: a preset, and what differs from it.

    The other keys are fields of `WFVAEConfig`, which explains them; None keeps the preset's value.
    """

    preset: Preset = "S"
    """`S`, `M`, `L` (Table 3) or `tiny`."""
    base_channels: Positive | None = None
    latent_dim: Positive | None = None
    temporal_compression: Literal[4, 8] | None = None
    encoder_num_resblocks: Count | None = None
    decoder_num_resblocks: Count | None = None
    encoder_energy_flow_hidden_size: Positive | None = None
    decoder_energy_flow_hidden_size: Positive | None = None
    connect_res_layer_num: Count | None = None
    use_attention: bool | None = None
    norm_type: NormType | None = None
    t_interpolation: Interpolation | None = None
    dropout: BelowOne | None = None
    energy_flow_l2: bool | None = None
    energy_flow_l3: bool | None = None

    def architecture(self) -> WFVAEConfig:
        """The model configuration. Raises `ConfigError` where values contradict each other."""
        changes = {name: value for name, value in structs.asdict(self).items() if value is not None}
        return WFVAEConfig.preset(changes.pop("preset"), **changes)


class DataSettings(Record, frozen=True):
    """Where clips come from and how they are cut."""

    kind: Literal["folder", "procedural"] = "folder"
    """`folder`: videos below `folder`; `procedural`: painted on demand, without any files."""
    folder: str = ""
    """Directory of videos, searched recursively. For `kind = "folder"`."""
    frames: Positive = 25
    """Frames per clip, 1 + r n. The paper: 25 in stage I, 49 in stages II and III."""
    height: Side = 256
    """Pixels, a multiple of 8."""
    width: Side = 256
    """Pixels, a multiple of 8."""
    crop_height: OptionalSide = 0
    """Height of a random window cut out of each resized clip; 0 keeps the whole."""
    crop_width: OptionalSide = 0
    """Width of that window."""
    crops_per_clip: Positive = 1
    """Windows cut out of each clip. More save reading, but vary less."""
    stride: Positive = 1
    """Every stride-th frame of a video, in training and validation. Stage II has 2."""
    min_stride: Count = 0
    """Each clip draws its stride from this to `stride`; 0: always `stride`."""
    stills: Share = 0.0
    """Share of training clips that repeat one frame, against flicker of what stands still."""
    workers: Annotated[int, Meta(ge=0, le=512)] = 2
    """Processes that read and cut clips, per training process; 0 reads in the training process."""
    bad_files: Count = 100
    """How many unusable videos are skipped (and reported once each) before training stops."""
    clips: Positive = 1000
    """Clips per epoch of procedural data. Every epoch has new ones."""
    noise: Amount = 0.0
    """Largest standard deviation of procedural film grain, in levels of 255."""
    scenes: Annotated[tuple[SceneName, ...], Meta(min_length=1)] = ("mixed",)
    """What procedural clips show; each draws one, so a name given twice comes twice as often."""


class LossSettings(Record, frozen=True):
    """Weights of the total loss (eq. 6) and its parts. Reductions are in `wfvae.train.losses`."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Distance of pixels (ablation: L2)."""
    frame_weights: tuple[Annotated[float, Meta(gt=0, le=LARGEST)], ...] = ()
    """Weights of a latent's frames in the reconstruction loss, in order; empty: all alike."""
    perceptual: str = "vgg"
    """LPIPS backbone: `vgg` (downloaded), a file of its weights, `random` (tests), `none`."""
    perceptual_weight: Amount = 1.0
    """Weight of LPIPS. The paper: 1.0 in stages I and II, 0.1 in stage III."""
    perceptual_frames: Count = 0
    """Frames that pass through LPIPS at once; fewer need less memory, 0 takes all."""
    kl_weight: Amount = 1e-6
    """Weight of the KL divergence."""
    wavelet_weight: Amount = 0.1
    """lambda_WL, weight of the wavelet loss (eq. 5); 0 turns it off (Fig. 7)."""
    adversarial: bool = True
    """Train against a 3-D PatchGAN discriminator."""
    discriminator_channels: Annotated[int, Meta(ge=1, le=1024)] = 64
    """Channels of the discriminator's first layer; they double up to eight times as many."""
    discriminator_layers: Annotated[int, Meta(ge=1, le=16)] = 4
    """Strided layers of the discriminator."""
    adversarial_weight: Amount = 0.5
    """Factor of the adaptive weight (eq. 7)."""
    adversarial_start: Count = 0
    """Optimiser step from which the discriminator counts."""


class OptimizerSettings(Record, frozen=True):
    """AdamW, for the model and for the discriminator alike."""

    learning_rate: Amount = 1e-5
    """Peak learning rate."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay of the moments."""
    weight_decay: Amount = 1e-4
    """Decoupled weight decay."""
    batch: Positive = 8
    """Clips per step over all processes."""
    accumulate: Positive = 1
    """Parts that each process splits its share of a batch into, to save memory."""
    clip_norm: Amount = 0.0
    """Largest norm of the model's gradient; 0 does not clip."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up; `cosine` falls to `final_rate` of the peak."""
    warmup_steps: Count = 0
    """Steps of linear increase at the beginning."""
    schedule_steps: Count = 0
    """Steps after which the cosine has come down; 0 takes `run.steps`."""
    final_rate: Share = 0.01
    """Share of the peak rate at the end of the cosine."""
    ema_decay: BelowOne = 0.999
    """Decay of the averaged weights, which are validated and exported."""


class RunSettings(Record, frozen=True):
    """Length, precision and bookkeeping of a run."""

    steps: Positive = 800_000
    """Optimiser steps. The paper: 800k, 200k and 200k."""
    seed: Count = 0
    """Fixes initial weights, data order, crops, posterior samples and dropout."""
    precision: Literal["fp32", "bf16", "auto"] = "bf16"
    """`bf16` computes under autocast; `auto` is bf16 where the device has it, else fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: half the memory, more time."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """CPU threads of the model per process; 0 shares all cores among a machine's processes."""
    initial: str = ""
    """Checkpoint or run directory whose weights a new run starts from."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep: Positive = 3
    """Newest checkpoints that are kept."""
    log_every: Positive = 20
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the extra `tensorboard`)."""


class ValidationSettings(Record, frozen=True):
    """Reconstruction quality of the averaged weights on clips that training does not see."""

    every: Count = 5000
    """Steps between validations; 0 only validates at the end."""
    clips: Positive = 16
    """Clips that are scored."""
    folder: str = ""
    """Directory of held-out videos; without one, folder data is not validated."""
    frames: Positive = 17
    """Frames per clip, 1 + r n."""
    height: OptionalSide = 0
    """Pixels, a multiple of 8; 0 is that of the data."""
    width: OptionalSide = 0
    """Pixels, a multiple of 8; 0 is that of the data."""
    crop_height: OptionalSide = 0
    """Height of a fixed window cut out of each clip; 0 keeps the whole."""
    crop_width: OptionalSide = 0
    """Width of that window."""
    pictures: Count = 4
    """Clips that are also saved as pictures: original, reconstruction, difference."""
