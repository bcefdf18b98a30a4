"""Files through a bundle: video to latents, latents to video, video to video. Reading, inference
and writing overlap.

Encode and decode can be interrupted at any moment, even by SIGKILL, and resumed to the same bits:
finished parts lie on disk in whole pieces (appended latents, complete video segments), with a
snapshot of the stream beside them.
"""

from wfvae.runtime.jobs.decode import SEGMENT_FRAMES, decode_video
from wfvae.runtime.jobs.encode import encode_video
from wfvae.runtime.jobs.reconstruct import reconstruct_video
from wfvae.runtime.jobs.report import Progress, Report

__all__ = ["SEGMENT_FRAMES", "Progress", "Report", "decode_video", "encode_video", "reconstruct_video"]
