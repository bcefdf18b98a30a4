"""The endings of video files, by which a folder is searched before any file is opened."""

from __future__ import annotations

_CONTAINERS = "avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf nut ogv ts webm wmv y4m"

VIDEO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())
"""Lower case, with the dot. A file that is named on its own may end in anything."""
