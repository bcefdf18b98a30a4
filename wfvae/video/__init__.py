"""Videos: the endings of their files, how stored pixels are interpreted, and synthetic clips."""

_CONTAINERS = "avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf nut ogv ts webm wmv y4m"

VIDEO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())
"""Endings by which a folder is searched. A file that is named on its own may end in anything."""
