"""Training data: sources of clips, and the stream of batches made from them."""

from wfvae.train.data.batch import Batch, held_out, stack_clips, to_model_range
from wfvae.train.data.batch_stream import BatchStream
from wfvae.train.data.clip_source import (
    BadClip,
    BadClipLedger,
    ClipSource,
    Crops,
    FixedCrops,
    Strides,
    printable,
)
from wfvae.train.data.procedural_clips import ProceduralClips
from wfvae.train.data.video_folder import VideoFolder

__all__ = [
    "BadClip",
    "BadClipLedger",
    "Batch",
    "BatchStream",
    "ClipSource",
    "Crops",
    "FixedCrops",
    "ProceduralClips",
    "Strides",
    "VideoFolder",
    "held_out",
    "printable",
    "stack_clips",
    "to_model_range",
]
