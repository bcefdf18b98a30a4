"""Animated WebP, which this FFmpeg may not decode, distinguished from damage."""

from pathlib import Path

import av

ANIMATED_WEBP = (
    f"is an animated WebP, which this FFmpeg ({av.ffmpeg_version_info}) cannot decode; convert it to"
    " MP4, GIF or APNG first"
)
_HEAD_BYTES, _FLAGS, _ANIMATION = 21, 20, 0x02
"""Of the RIFF header and the chunk VP8X, whose first byte is flags."""


def is_animated_webp(path: Path) -> bool:
    """Whether the header of a file is that of an animated WebP."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    is_webp = (head[:4], head[8:16]) == (b"RIFF", b"WEBPVP8X") and len(head) == _HEAD_BYTES
    return is_webp and bool(head[_FLAGS] & _ANIMATION)
