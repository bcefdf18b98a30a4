"""Encoding the frames of one video stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph

from wfvae.errors import MediaError
from wfvae.runtime.media.color import YUVConverter
from wfvae.runtime.media.encoder_plan import EncoderPlan
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray


class Clock:
    """Presentation times of successive frames, on the output's tick. The first is at `start`.

    `least` is the least distance of two frames in ticks. What comes sooner is refused, or left out
    if `resample` is set.
    """

    def __init__(
        self, fps: Fraction, tick: Fraction, start: Fraction, *, least: int = 1, resample: bool = False
    ) -> None:
        self._fps, self._tick, self._start = fps, tick, start
        self._least, self._resample = least, resample
        self._next = start
        self._last: int | None = None
        self._count = 0

    def resume(self, count: int, last: int) -> None:
        """Continues after `count` frames, the last of which was shown at tick `last`."""
        self._count, self._last = count, last
        regular = self._start + Fraction(count) / self._fps
        is_regular = last == self._rounded(regular - 1 / self._fps)
        self._next = regular if is_regular else last * self._tick + 1 / self._fps

    @classmethod
    def of(cls, video: OutputVideo, plan: EncoderPlan) -> Clock:
        """Returns the clock of an output."""
        return cls(video.fps, plan.time_base, video.start, least=plan.least_ticks, resample=plan.resamples)

    def advance(self, time: Fraction | None) -> int | None:
        """Returns the next frame's tick, at `time` in seconds or 1 / fps after the previous.

        None for a frame to leave out.
        """
        seconds = self._next if time is None else Fraction(time)
        tick = self._rounded(seconds)
        if self._last is not None and tick < self._last + self._least:
            if self._resample:
                self._next = seconds + 1 / self._fps
                return None
            problem = f"frame {self._count} at {float(seconds):.6f} s does not come after the one before it"
            advice = "give strictly increasing times, and the source's own time_base if its frame rate varies"
            raise MediaError(f"{problem} on a tick of {self._tick} s; {advice}")
        self._last = tick
        self._next = seconds + 1 / self._fps
        self._count += 1
        return tick

    def _rounded(self, seconds: Fraction) -> int:
        """Rounds halves up: times that are a tick apart never fall on the same one."""
        return math.floor(seconds / self._tick + Fraction(1, 2))


class StreamEncoder:
    """Converts RGB frames, encodes them and muxes the packets.

    `encode` takes (H, W, 3), shown at `tick`. Only frames that the encoder looks ahead are held,
    until `flush`.
    """

    def __init__(self, container: Any, stream: Any, video: OutputVideo, plan: EncoderPlan) -> None:
        self._container, self._stream = container, stream
        self._tick = plan.time_base
        self._converter = YUVConverter(
            plan.pixel_format, plan.color_space, plan.color_range, plan.chroma_siting
        )
        self._duration = max(1, round(1 / video.fps / plan.time_base))

    def encode(self, frame: RGBArray, tick: int) -> None:
        picture = self._converter.convert(frame)
        picture.pts, picture.time_base = tick, self._tick
        self._mux(picture)

    def flush(self) -> None:
        self._mux(None)

    def _mux(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            packet.duration = self._duration  # matters for the last frame only
            self._container.mux_one(packet)


class GIFEncoder:
    """Quantises each frame to 256 colours of its own, so that one frame is held, and muxes it."""

    def __init__(self, container: Any, stream: Any, video: OutputVideo, plan: EncoderPlan) -> None:
        self._container, self._stream = container, stream
        self._graph = Graph()
        self._tick = plan.time_base
        rgb = av.VideoFormat("rgb24")
        self._source = self._graph.add_buffer(None, video.width, video.height, rgb, time_base=self._tick)
        split = self._graph.add("split")
        palette = self._graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        quantise = self._graph.add("paletteuse", "new=1:dither=sierra2_4a")
        sink = self._graph.add("buffersink")
        self._source.link_to(split)
        split.link_to(palette, 0, 0)
        split.link_to(quantise, 1, 0)
        palette.link_to(quantise, 0, 1)
        quantise.link_to(sink)
        self._graph.configure()

    def encode(self, frame: RGBArray, tick: int) -> None:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = tick, self._tick
        self._push(picture)

    def flush(self) -> None:
        self._push(None)
        self._container.mux(self._stream.encode(None))

    def _push(self, picture: av.VideoFrame | None) -> None:
        self._source.push(picture)
        for quantised in self._filtered():
            quantised.pict_type = 0
            self._container.mux(self._stream.encode(quantised))

    def _filtered(self) -> Iterator[Any]:
        while True:
            try:
                yield self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
