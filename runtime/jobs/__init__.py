"""Files through a bundle: video to latents, latents to video, video to video. Reading, inference
and writing overlap.

Encode and decode can be interrupted at any moment, even by SIGKILL, and resumed to the same bits:
what is finished lies on disk in whole pieces (appended latents, complete video segments), and
beside it a snapshot of the stream as it was at such a point.
"""

from wfvae.runtime.jobs.decode import SEGMENT_FRAMES, decode_video
from wfvae.runtime.jobs.encode import encode_video
from wfvae.runtime.jobs.job import CHECKPOINT_SECONDS
from wfvae.runtime.jobs.reconstruct import reconstruct_video
from wfvae.runtime.jobs.report import Progress, Report

__all__ = [
    "CHECKPOINT_SECONDS",
    "SEGMENT_FRAMES",
    "Progress",
    "Report",
    "decode_video",
    "encode_video",
    "reconstruct_video",
]
