"""Copying audio streams from one file into another, packet by packet, without re-encoding.

Where the container cannot hold the source's audio codec, the copy is refused before any work is
done; nothing is transcoded.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from wfvae.errors import MediaError
from wfvae.runtime.media.container_input import discard_all_but, open_container, start_of
from wfvae.runtime.media.failures import Failure, translated


class AudioCopy:
    """All audio streams of `source`, added to `container` as streams of their own.

    Times count from the start of the source's earliest stream, as a reader's frame times do, so
    that both stay in step.
    """

    def __init__(self, source: Path, container: Any) -> None:
        self._name, self._container = str(source), container
        self._input = open_container(source, str(source))
        try:
            self._origin = start_of(self._input)
            self._outputs = {stream.index: self._add(stream) for stream in self._input.streams.audio}
            streams = list(self._input.streams.audio)
            discard_all_but(self._input, streams)
            self._packets = self._input.demux(*streams) if streams else iter(())
            self._pending: Any = self._next()
        except BaseException:
            self._input.close()
            raise

    def copy(self, until: Fraction | None) -> None:
        """Muxes the packets that begin before `until` seconds, all if None.

        In step with the video this takes constant memory.
        """
        while self._pending is not None and (until is None or self._begin(self._pending) < until):
            packet, self._pending = self._pending, self._next()
            self._retarget(packet)
            self._container.mux_one(packet)

    def close(self) -> None:
        """Releases the source."""
        self._input.close()

    def _add(self, stream: Any) -> Any:
        try:
            added = self._container.add_stream_from_template(stream, opaque=True)
        except Failure as error:
            codec = stream.codec_context.name if stream.codec_context else "unknown"
            raise MediaError(
                f"a {self._container.format.name} file cannot hold the {codec} audio of '{self._name}'; write"
                " to .mkv, which holds any, or leave the audio out (--no-audio)"
            ) from error
        added.metadata.update(stream.metadata)  # language and title
        return added

    def _next(self) -> Any:
        """Returns the next packet with data (the demuxer's flush has none), None at the end."""
        with translated(f"reading the audio of '{self._name}'"):
            return next((packet for packet in self._packets if packet.size), None)

    def _begin(self, packet: Any) -> Fraction:
        stamp = packet.pts if packet.pts is not None else packet.dts
        return (stamp or 0) * Fraction(packet.time_base) - self._origin

    def _retarget(self, packet: Any) -> None:
        """Makes a packet one of the output's, with times that count from the start."""
        offset = round(self._origin / Fraction(packet.time_base))
        packet.stream = self._outputs[packet.stream.index]
        if packet.pts is not None:
            packet.pts -= offset
        if packet.dts is not None:
            packet.dts -= offset
