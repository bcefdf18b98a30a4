"""The largest picture that FFmpeg may decode here: a file of a few bytes may claim any size."""

from wfvae.machine import available_memory

PIXEL_BYTES = 32
"""What a decoder's pictures, and one picture in RGB, take for each pixel of a frame."""
_ALWAYS_ALLOWED = 2**21
_MOST_PIXELS = 2**31 - 1
"""FFmpeg's own limit."""


def most_pixels() -> int:
    """Returns how many pixels a frame may have, by the memory that the machine has available."""
    available = available_memory()
    allowed = _MOST_PIXELS if available is None else available // PIXEL_BYTES
    return max(_ALWAYS_ALLOWED, min(allowed, _MOST_PIXELS))


def size_options() -> dict[str, str]:
    """Returns options for a container and its decoders which refuse larger frames unallocated."""
    return {"max_pixels": str(most_pixels())}
