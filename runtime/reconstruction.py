"""An encoder and a decoder in series: video in, its reconstruction out."""

import numpy as np
import numpy.typing as npt

from wfvae.runtime.bundle import Bundle
from wfvae.runtime.closing import Closing
from wfvae.runtime.exclusive import Exclusive, exclusive, new_user
from wfvae.runtime.feed import Queue, host_copy

Frames = npt.NDArray[np.uint8]


class ReconstructionStream(Exclusive, Closing):
    """Streams frames (T, H, W, 3) uint8 through a bundle. A context manager, for one thread at a
    time.

    `chunk` is the latents per step of both directions; None takes each one's default.
    """

    def __init__(self, bundle: Bundle, height: int, width: int, chunk: int | None = None) -> None:
        self.user = new_user()
        self.chunk = chunk or bundle.default_chunk("encoder", height=height, width=width)
        """Latents per step of the encoder."""
        self.encoder = bundle.encoder(height=height, width=width, chunk=self.chunk)
        self.decoder = bundle.decoder(height=height, width=width, chunk=chunk)
        # Frames whose reconstruction is not ready: a bounded number, the delay of the two streams.
        self._waiting = Queue()

    def close(self) -> None:
        """Releases the state of both streams."""
        self.encoder.close()
        self.decoder.close()

    @property
    def engine_seconds(self) -> float:
        """Seconds spent in the backend so far."""
        return self.encoder.engine_seconds + self.decoder.engine_seconds

    @exclusive
    def push(self, frames: Frames) -> tuple[Frames, Frames]:
        """Takes frames, and returns those whose reconstruction became ready, with it."""
        self._waiting.add(frames)
        latents = self.encoder.push(frames)[:, : self.decoder.channels]  # of moments, the means
        return self._paired(self.decoder.push(latents))

    @exclusive
    def finish(self) -> tuple[Frames, Frames]:
        """Ends the video, and returns the rest of it with its reconstruction."""
        # Queued and not decoded yet: the last latent may hold more frames than the video has.
        self.decoder.queue(self.encoder.finish()[:, : self.decoder.channels])
        return self._paired(self.decoder.finish(self.encoder.frames_seen))

    def _paired(self, part: Frames) -> tuple[Frames, Frames]:
        if not len(part):
            return part, part
        frames: Frames = host_copy(self._waiting.first(len(part)), None)
        self._waiting.remove(len(part))
        return frames, part
