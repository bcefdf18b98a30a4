"""Copying audio streams from one file into another, packet by packet, without re-encoding.

Copying is exact. Where the container cannot hold the source's audio codec the copy is refused
before any work is done; nothing is transcoded behind the user's back.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from av.stream import Discard

from wfvae.errors import MediaError
from wfvae.runtime.media.container_source import open_container, start_of
from wfvae.runtime.media.media_failures import Failure, describe


class AudioCopy:
    """All audio streams of `source`, added to `container` as streams of their own. A source without
    audio copies nothing.

    Times count from the start of the source's earliest stream, as a reader's frame times do, so
    both stay in step.
    """

    def __init__(self, source: Path, container: Any, end: Fraction | None = None) -> None:
        self._name, self._container, self._end = str(source), container, end
        self._input = open_container(source, str(source))
        try:
            self._origin = start_of(self._input)
            self._outputs = {stream.index: self._add(stream) for stream in self._input.streams.audio}
        except BaseException:
            self._input.close()
            raise
        for stream in self._input.streams:
            if stream.index not in self._outputs:
                stream.discard = Discard.all
        self._packets = self._input.demux(*self._input.streams.audio) if self._outputs else iter(())
        self._held: Any = self._following()

    def advance(self, until: Fraction | None) -> None:
        """Mux the packets that begin before `until` seconds, all if None. Muxing in step with the
        video keeps memory constant.
        """
        while self._held is not None and (until is None or self._begin(self._held) < until):
            packet = self._held
            self._held = self._following()
            self._shift(packet)
            self._container.mux_one(packet)

    def close(self) -> None:
        """Release the source."""
        self._input.close()

    def _add(self, stream: Any) -> Any:
        try:
            added = self._container.add_stream_from_template(stream, opaque=True)
        except Failure as error:
            muxer, codec = (
                self._container.format.name,
                stream.codec_context.name if stream.codec_context else "unknown",
            )
            raise MediaError(
                f"a {muxer} file cannot hold the {codec} audio of '{self._name}'; write to .mkv, which holds"
                " any, or leave the audio out (--no-audio)"
            ) from error
        added.metadata.update(stream.metadata)  # language and title
        return added

    def _following(self) -> Any:
        """The next packet to copy, None at the end. Packets without data (the demuxer's flush) and
        those past `end` are passed over.
        """
        try:
            for packet in self._packets:
                if packet.size and (self._end is None or self._begin(packet) < self._end):
                    return packet
        except Failure as error:
            raise describe(error, f"reading the audio of '{self._name}'") from error
        return None

    def _begin(self, packet: Any) -> Fraction:
        stamp = packet.pts if packet.pts is not None else packet.dts
        return (stamp or 0) * Fraction(packet.time_base) - self._origin

    def _shift(self, packet: Any) -> None:
        offset = round(self._origin / Fraction(packet.time_base))
        packet.stream = self._outputs[packet.stream.index]
        if packet.pts is not None:
            packet.pts -= offset
        if packet.dts is not None:
            packet.dts -= offset
