"""Which of a container's streams is its video."""

from typing import Any

from av.stream import Disposition

_NO_MOVING_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails


def video_streams(container: Any) -> list[Any]:
    """Returns the video streams of an open container, without cover art and thumbnails."""
    return [s for s in container.streams.video if not s.disposition & _NO_MOVING_PICTURES]


def default_stream(streams: list[Any]) -> Any:
    """Returns the first stream that the file marks as its default, else the first."""
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])
