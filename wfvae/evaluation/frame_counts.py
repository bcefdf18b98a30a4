"""How many frames a video has: cheaply, as its container has it, and truly, by decoding."""

from __future__ import annotations

from pathlib import Path

from wfvae.runtime.media.container_input import packet_count
from wfvae.runtime.media.video_reader import open_video


def announced_frames(path: Path, stated: int | None) -> int:
    """The number that the container states (`stated`), else the number of its packets, which are
    read and not decoded.

    It may be wrong: packets may hold frames that are not shown, or a container may leave out what
    it counts. Raises `MediaError` if the file is damaged.
    """
    return packet_count(path) if stated is None else stated


def decoded_frames(path: Path) -> int:
    """The true number, by decoding all. Raises `MediaError` if the video is damaged."""
    with open_video(path) as reader:
        return sum(1 for _ in reader)
