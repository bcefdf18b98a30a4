"""Training data: sources of clips, and the stream of batches made from them."""

from wfvae.train.data.bad_clips import BadClipLedger
from wfvae.train.data.batch import Batch, to_model_range
from wfvae.train.data.batch_stream import BatchStream
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource, ShortClip, printable
from wfvae.train.data.crops import Crops, FixedCrops
from wfvae.train.data.held_out import held_out
from wfvae.train.data.procedural_clips import ProceduralClips
from wfvae.train.data.video_folder import VideoFolder

__all__ = [
    "BadClip",
    "BadClipLedger",
    "Batch",
    "BatchStream",
    "Clip",
    "ClipSource",
    "Crops",
    "FixedCrops",
    "ProceduralClips",
    "ShortClip",
    "VideoFolder",
    "held_out",
    "printable",
    "to_model_range",
]
