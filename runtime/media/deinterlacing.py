"""Separating the two moments that interlaced frames hold, through FFmpeg's filter bwdif."""

from collections.abc import Iterable, Iterator

import av
from av.filter import Graph

_DRAINED = (av.error.BlockingIOError, av.error.EOFError)


def deinterlaced(frames: Iterable[av.VideoFrame], *, all_frames: bool) -> Iterator[av.VideoFrame]:
    """Yields one progressive frame per frame, at its time: that of the field shown first.

    Args:
        frames: of one size.
        all_frames: also those that are not marked as interlaced.
    """
    graph: Graph | None = None
    tick = None
    for frame in frames:
        if graph is None:
            graph, tick = _graph_for(frame, all_frames), frame.time_base
        frame.time_base = tick
        graph.vpush(frame)
        yield from _pulled(graph)
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(graph)


def _graph_for(example: av.VideoFrame, all_frames: bool) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        video_size=f"{example.width}x{example.height}",
        pix_fmt=example.format.name,
        time_base=str(example.time_base),
        colorspace=str(int(example.colorspace)),
        range=str(int(example.color_range)),
    )
    filter_ = graph.add("bwdif", f"mode=send_frame:deint={'all' if all_frames else 'interlaced'}")
    graph.link_nodes(source, filter_, graph.add("buffersink"))
    graph.configure()
    return graph


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except _DRAINED:
            return
