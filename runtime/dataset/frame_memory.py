"""Memory that a decoder process writes frames to, and its parent reads them from."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from wfvae.runtime.closing import Closing

SLOTS = 2
"""Stacks of frames that the memory holds: one is read while the next one is decoded."""

Picture = npt.NDArray[np.uint8]


class FrameMemory(Closing):
    """A nameless file in memory that two processes map. It grows to the largest stacks."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Makes a file, or maps that of the other process."""
        self.descriptor = os.memfd_create("wfvae-frames") if descriptor is None else descriptor
        self._map: mmap.mmap | None = None
        self._size = 0

    def close(self) -> None:
        """Releases the memory when no view of it is left. Call it once."""
        self._map = None
        os.close(self.descriptor)

    def reserve(self, size: int) -> None:
        """Makes the file at least `size` bytes large. Raises `OSError`."""
        if size > self._size:
            os.ftruncate(self.descriptor, size)
            self._size = size

    def view(self, offset: int, shape: tuple[int, ...]) -> Picture:
        """Returns bytes of the file as an array."""
        if self._map is None or len(self._map) < offset + math.prod(shape):
            self._map = mmap.mmap(self.descriptor, 0)
        return np.ndarray(shape, np.uint8, self._map, offset)


@dataclass(frozen=True)
class Stack:
    """Announces frames in the memory."""

    offset: int
    shape: tuple[int, ...]


class StackSender:
    """Sends the frames of one video, through slots that the receiver frees by any message."""

    def __init__(self, connection: Connection, memory: FrameMemory, shape: tuple[int, int, int]) -> None:
        """`shape` is the largest of a stack: frames, height and width."""
        self._connection, self._memory = connection, memory
        self._shape = (*shape, 3)
        memory.reserve(SLOTS * math.prod(self._shape))
        self._sent = self._freed = 0

    def send(self, pictures: Iterable[Picture]) -> int:
        """Sends pictures (H, W, 3) as one stack. Returns their number; none is no stack."""
        if self._sent - self._freed == SLOTS:
            self._wait()
        offset = self._sent % SLOTS * math.prod(self._shape)
        stack = self._memory.view(offset, self._shape)
        count = 0
        for picture in pictures:
            stack[count] = picture
            count += 1
        if count:
            self._connection.send(Stack(offset, (count, *self._shape[1:])))
            self._sent += 1
        return count

    def finish(self) -> None:
        """Waits until all slots are free."""
        while self._freed < self._sent:
            self._wait()

    def _wait(self) -> None:
        self._connection.recv()
        self._freed += 1
