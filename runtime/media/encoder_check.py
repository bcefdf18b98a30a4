"""Trying an encoder before hours of work: whether it starts, and whether its video can be read."""

import io
from dataclasses import replace

import av
import numpy as np

from wfvae.errors import WFVAEError
from wfvae.runtime.media.encoder_plan import EncoderPlan, not_held
from wfvae.runtime.media.failures import Failure, reason
from wfvae.runtime.media.output_container import OutputContainer
from wfvae.runtime.media.video_info import OutputVideo

_TRIED_FRAMES = 3
"""Some encoders number the packets of a single frame in a way that muxers refuse."""


def checked_plan(video: OutputVideo, muxer: str) -> EncoderPlan:
    """Returns the plan of an output. An encoder that was asked for is tried in it.

    Raises:
        MediaError: settings that contradict each other, or an encoder that cannot carry them out
            here, or writes what this FFmpeg cannot read.
    """
    plan = EncoderPlan.of(video, muxer)
    if video.codec is not None:
        _require_readable(_tried(replace(video, audio_from=None), muxer, plan), muxer, plan)
    return plan


def _tried(video: OutputVideo, muxer: str, plan: EncoderPlan) -> io.BytesIO:
    """Encodes frames of noise, which fill what a demuxer needs to recognise, into memory."""
    shape = (_TRIED_FRAMES, video.height, video.width, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    target = io.BytesIO()
    try:
        output = OutputContainer(target, muxer, video, plan, movflags="")
    except WFVAEError:  # of the encoder
        raise
    except Failure as error:
        raise not_held(muxer, plan.codec, f" ({reason(error)})") from error
    try:
        for frame in frames:
            output.write(frame)
        output.finish()
    except Failure as error:
        output.abort()
        raise plan.refused(video, error) from error
    return target


def _require_readable(target: io.BytesIO, muxer: str, plan: EncoderPlan) -> None:
    target.seek(0)
    try:
        with av.open(target, "r") as container:
            next(container.decode(video=0))
    except (*Failure, StopIteration, IndexError) as error:
        raise not_held(muxer, plan.codec, " that this FFmpeg can read") from error
