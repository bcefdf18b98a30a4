"""GIF: a palette for every frame, so that nothing but one frame is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.filter import Graph

from wfvae.runtime.media.video_encoder import GIF_TICK
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.video.stored_pixels import RGBArray


class GIFEncoder:
    """Quantises each frame to its own 256 colours and muxes it. Same use as `StreamEncoder`."""

    def __init__(self, container: Any, stream: Any, video: OutputVideo) -> None:
        self._container, self._stream = container, stream
        self._graph = Graph()
        self._source = self._graph.add_buffer(
            width=video.width, height=video.height, format=av.VideoFormat("rgb24"), time_base=GIF_TICK
        )
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
        """Encode one frame (H, W, 3), shown at `tick` hundredths of a second."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = tick, GIF_TICK
        self._source.push(picture)
        self._pull()

    def flush(self) -> None:
        """Encode what the filters still hold."""
        self._source.push(None)
        self._pull()
        self._container.mux(self._stream.encode(None))

    def _pull(self) -> None:
        for picture in self._ready():
            picture.pict_type = 0
            self._container.mux(self._stream.encode(picture))

    def _ready(self) -> Iterator[Any]:
        while True:
            try:
                yield self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
