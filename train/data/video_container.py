"""Opening a video file for training, and the reasons why one cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.stream import Discard, Disposition

from wfvae.train.data.clip_source import BadClip

_FAILURES = (av.FFmpegError, OSError, ValueError, RuntimeError)
"""Includes FFmpeg's lack of memory, for broken files that claim to be huge; not Python's."""

_CHARACTER_ART = frozenset({"tty", "bin", "xbin", "adf", "idf"})
"""Demuxers that turn any text or binary file into a "video" of characters."""


class UnusableError(Exception):
    """Why a file cannot be used, in a few words; `refused` adds the name of the file."""


@contextmanager
def refused(name: str) -> Iterator[None]:
    """Turns complaints of FFmpeg and the operating system into `BadClip` of this name."""
    try:
        yield
    except BadClip:
        raise
    except UnusableError as error:
        raise BadClip(name, str(error)) from error
    except _FAILURES as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadClip(name, " ".join(str(text).split())) from error


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yields the container and its first video stream that is no cover art, decoding in one thread.

    Only local files may be reached from inside it: playlists that name addresses are refused.
    """
    if path.stat().st_size == 0:
        raise UnusableError("the file is empty (0 bytes)")
    options = {"protocol_whitelist": "file,crypto,data"}
    with av.open(f"file:{path}", "r", options=options, metadata_errors="replace") as container:
        if container.format.name in _CHARACTER_ART:
            raise UnusableError("this is a text or binary file, not a video")
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos:
            raise UnusableError("it has no video stream")
        stream: Any = videos[0]
        if stream.codec_context is None:
            raise UnusableError("its video codec cannot be decoded by this FFmpeg")
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        # The workers keep the cores busy.
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream
