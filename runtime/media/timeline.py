"""Times of packets and frames, mended where a file's own do not rise."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from av.format import Flags

LARGEST_STEP_BACK = Fraction(1, 10)
"""Seconds by which decoding times may fall: more is another clock, less is jitter."""
LARGEST_STEP_FORWARD = Fraction(10)
"""The same for a rise, in formats whose clocks restart, such as MPEG-TS."""
MOST_WAITING = 4096
"""Packets of audio that wait for the video's clock to restart, too."""


def clock_restarts(container: Any) -> bool:
    """Whether the clock of a container's format may restart, as that of MPEG-TS may."""
    return bool(container.format.flags & Flags.ts_discont.value)


class PacketClock:
    """Finds jumps in the decoding times of one stream, and closes them.

    Recordings that were joined byte by byte, or whose source restarted, have such jumps.

    Attributes:
        offsets: what to add, in seconds, before the first jump and after each one.
    """

    def __init__(self, *, restarts: bool) -> None:
        self.offsets = [Fraction(0)]
        self._restarts = restarts
        self._last: Fraction | None = None
        self._duration = Fraction(0)
        self._before: Fraction | None = None
        """Time before a jump, as long as it may turn out to be one stray packet."""

    @property
    def epoch(self) -> int:
        """How many jumps there were."""
        return len(self.offsets) - 1

    def follow(self, packet: Any) -> None:
        """Takes the next packet of the stream."""
        if packet.dts is None or not packet.time_base:
            return
        tick = Fraction(packet.time_base)
        time, last, before = packet.dts * tick, self._last, self._before
        self._before = None
        if last is not None:
            step = time - last
            if before is not None and step > LARGEST_STEP_BACK and 0 < time - before <= LARGEST_STEP_FORWARD:
                self.offsets.pop()
            elif step < -LARGEST_STEP_BACK or (self._restarts and step > LARGEST_STEP_FORWARD):
                self.offsets.append(self.offsets[-1] + last + self._duration - time)
                self._before = last
        self._last = time
        self._duration = (packet.duration or 0) * tick or self._duration


def shift(packet: Any, seconds: Fraction) -> None:
    """Adds to both times of a packet."""
    ticks = round(seconds / Fraction(packet.time_base)) if packet.time_base else 0
    if packet.pts is not None:
        packet.pts += ticks
    if packet.dts is not None:
        packet.dts += ticks


def on_one_clock(packets: Iterable[Any], clock: PacketClock) -> Iterator[Any]:
    """Yields the packets of one stream, with jumps of its clock closed."""
    for packet in packets:
        clock.follow(packet)
        shift(packet, clock.offsets[-1])
        yield packet


def audio_on_one_clock(packets: Iterable[Any], *, restarts: bool, with_video: bool) -> Iterator[Any]:
    """Yields the packets of all audio streams, with jumps of the clock closed.

    Packets that overlap after a jump are dropped.

    Args:
        packets: of the audio streams, in the file's order.
        with_video: those of the video stream are among them. Audio is shifted by as much as the
            video at each jump, so that it stays in step with video that `on_one_clock` mended.
    """
    video = PacketClock(restarts=restarts)
    own: dict[int, PacketClock] = {}
    latest: dict[int, int] = {}
    waiting: deque[tuple[Any, int]] = deque()
    longest = MOST_WAITING if with_video else 0

    def ready(*, all_of_them: bool) -> Iterator[Any]:
        while waiting and (all_of_them or waiting[0][1] <= video.epoch or len(waiting) > longest):
            packet, epoch = waiting.popleft()
            index = packet.stream.index
            shift(packet, video.offsets[epoch] if epoch <= video.epoch else own[index].offsets[epoch])
            if packet.dts is not None:
                # Matroska may repeat a short packet's time; after a jump the parts may overlap.
                if packet.dts < latest.get(index, packet.dts - 1) + bool(epoch):
                    continue
                latest[index] = packet.dts
            yield packet

    for packet in packets:
        if not packet.size:
            continue
        if packet.stream.type == "video":
            video.follow(packet)
        else:
            clock = own.setdefault(packet.stream.index, PacketClock(restarts=restarts))
            clock.follow(packet)
            waiting.append((packet, clock.epoch))
        yield from ready(all_of_them=False)
    yield from ready(all_of_them=True)


class FrameTimes:
    """Presentation times of frames, in seconds, which rise strictly and lie on the stream's tick.

    Args:
        step: time between frames where none are stated.
        tick: of the stream; None where it states none.
    """

    def __init__(self, step: Fraction, tick: Fraction | None) -> None:
        self._step, self._tick = step, tick or step
        self._last: Fraction | None = None
        self._regular = Fraction(0)

    def next(self, stated: Fraction | None) -> Fraction:
        """Returns the time of the next frame.

        As stated, if that is later than the frame before. A missing time is a step after it, and a
        repeated one a tick, so that the times of later frames can be kept.
        """
        last = self._last
        if last is None:
            time = self._regular = stated or Fraction(0)
        elif stated is None:
            self._regular += self._step
            on_tick = math.floor(self._regular / self._tick + Fraction(1, 2)) * self._tick
            time = max(on_tick, last + self._tick)
        else:
            time = self._regular = stated if stated > last else last + self._tick
        self._last = time
        return time
