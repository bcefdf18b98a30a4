"""A stream's queue and counters: what its next step takes, and which part of the output is its own.

A feed knows neither backends nor state tensors. One stream and a pool of many use the same feeds.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from wfvae.errors import InputError, StateError, StreamingError
from wfvae.runtime.backends.base import Array, StepSession, StreamState, Tensor
from wfvae.runtime.backends.device_memory import DeviceMemory
from wfvae.runtime.dlpack import DeviceArray

Output = Literal["host", "device"]
"""Where results are: in host memory, or in that of the backend's device."""
Result = Array | DeviceArray
_QUEUED = "waiting"
"""Name of the queued input in snapshots."""
READY = "ready"
"""Name of results in a snapshot that were computed and not returned yet."""


class Feed(ABC):
    """One stream's side of the steps."""

    def __init__(
        self, height: int, width: int, memory: DeviceMemory | None = None, output: Output = "host"
    ) -> None:
        if output not in ("host", "device"):
            raise InputError(f"output is {output!r}; expected host or device")
        self.height, self.width = height, width
        self.memory = memory
        """The backend's device memory, or None if that is the host's."""
        self.on_device = output == "device" and memory is not None
        """Whether results stay in device memory."""
        self.started = False
        """Whether a step has run."""
        self.closed = False
        """Whether the input has ended."""
        self._queue = Queue(memory)

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all results have been returned."""

    @property
    @abstractmethod
    def ready(self) -> int:
        """Latents that the next step can advance by."""

    @property
    def draining(self) -> bool:
        """Whether only a draining step is left, of any length."""
        return False

    @abstractmethod
    def push(self, data: Any) -> None:
        """Queues input. Raises `InputError` if it is wrong; the feed is then unchanged."""

    @abstractmethod
    def close(self, frames: int | None = None) -> None:
        """Ends the input. `frames` is a decoder's true number of video frames."""

    @abstractmethod
    def step_input(self, latents: int) -> Tensor:
        """Returns a step's input, which stays queued until the step has succeeded."""

    @abstractmethod
    def accept_output(self, output: Tensor, drained: bool) -> Result:
        """Removes a step's input from the queue, and returns the user's part of its output."""

    @abstractmethod
    def clip_input(self) -> Array:
        """Returns a direct graph's input, without batch, of a closed stream that ran no step."""

    @abstractmethod
    def clip_result(self, output: Array) -> Result:
        """Returns the stream's whole result from the direct graph's output."""

    @abstractmethod
    def empty(self) -> Result:
        """Returns a result of length 0."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """Returns what `restore` needs besides arrays."""

    def arrays(self) -> dict[str, Array]:
        """Returns the queued input, in host memory."""
        if not self._queue.count:
            return {}
        return {_QUEUED: self._on_host(self._queue.first(self._queue.count))}

    def join(self, results: Sequence[Result]) -> Result:
        """Returns results of this stream in one."""
        if not results:
            return self.empty()
        if self.on_device and self.memory is not None:
            return self.memory.join(results)
        if len(results) == 1:
            return results[0]
        return np.concatenate([result for result in results if not isinstance(result, DeviceArray)])

    def check(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        """Raises `StateError` unless a feed like this one can have these counters and arrays.

        The counters have the names of `counters()`. Nothing is changed.
        """
        taken, returned = self.layouts(counters)
        for name, array in arrays.items():
            like = {_QUEUED: taken, READY: returned}.get(name)
            if like is None or (array.shape[1:], array.dtype) != (like.shape[1:], like.dtype):
                wanted = "" if like is None else f"; expected {like.dtype} (n, *{like.shape[1:]})"
                raise StateError(
                    f"the snapshot holds {array.dtype} {array.shape} as {name}{wanted}; start the stream anew"
                )
        waiting, ready = (len(arrays.get(name, ())) for name in (_QUEUED, READY))
        if not self.possible(counters, waiting, ready):
            raise StateError(
                f"the snapshot's counters {dict(counters)} contradict each other or its {waiting} inputs"
                f" and {ready} results that are pending; start the stream anew"
            )

    @abstractmethod
    def layouts(self, counters: Mapping[str, int]) -> tuple[Array, Array]:
        """Returns empty arrays of input and results, of a feed with these counters."""

    @abstractmethod
    def possible(self, counters: Mapping[str, int], waiting: int, ready: int) -> bool:
        """Whether a feed can be in this state, with so many inputs and results pending."""

    def restore(self, counters: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
        """Restores the feed that returned these `counters` and `arrays`."""
        self.started, self.closed = bool(counters["started"]), bool(counters["closed"])
        self._queue = Queue(self.memory)
        if _QUEUED in arrays:
            self._queue.add(arrays[_QUEUED])

    def _on_host(self, queued: Array | DeviceArray) -> Array:
        """Returns queued input as the user would pass it in host memory."""
        return host_copy(queued, self.memory)

    def _require_open(self) -> None:
        if self.closed:
            raise StreamingError("the stream is finished; open another one for more input")


class Queue:
    """Arrays in order, counted along their first axis."""

    def __init__(self, memory: DeviceMemory | None = None) -> None:
        self.count = 0
        self._memory = memory
        self._parts: list[Array | DeviceArray] = []

    @property
    def on_device(self) -> bool:
        """Whether it holds arrays of the device. It never holds both kinds."""
        return any(isinstance(part, DeviceArray) for part in self._parts)

    def add(self, part: Array | DeviceArray) -> None:
        """Appends a copy of `part`, whose buffer the caller may reuse."""
        if len(part):
            self.add_kept(self.keep(part))

    def keep(self, part: Array | DeviceArray) -> Array | DeviceArray:
        """Returns a copy of `part` for `add_kept`."""
        if isinstance(part, DeviceArray):
            assert self._memory is not None, "device arrays are queued only where there is device memory"
            return self._memory.keep(part)
        return np.array(part)

    def add_kept(self, *parts: Array | DeviceArray) -> None:
        """Appends `parts` themselves, which nobody may change."""
        self._parts += parts
        self.count += sum(map(len, parts))

    def last(self) -> Array | DeviceArray:
        """Returns the last entry, as an array of length 1."""
        return self._parts[-1][-1:]

    def first(self, count: int) -> Array | DeviceArray:
        """Returns the first `count` >= 1 entries, which stay in the queue."""
        found: list[Array | DeviceArray] = []
        for part in self._parts:
            found.append(part[:count])
            count -= len(found[-1])
            if not count:
                break
        if len(found) == 1:
            return found[0]
        if self.on_device and self._memory is not None:
            return self._memory.join(found)
        return np.concatenate([part for part in found if not isinstance(part, DeviceArray)])

    def remove(self, count: int) -> None:
        """Removes the first `count` entries."""
        self.count -= count
        while count:
            part = self._parts[0]
            if len(part) > count:
                self._parts[0] = part[count:]
                return
            del self._parts[0]
            count -= len(part)


def run_step(
    session: StepSession, state: StreamState, feeds: Sequence[Feed], latents: int
) -> tuple[list[Result], float]:
    """Advances each feed's stream, one per row of `state`, by `latents`.

    Returns each stream's part of the output, and the seconds spent in the backend.
    """
    draining = [feed.draining for feed in feeds]
    start = np.array([not feed.started for feed in feeds])
    x = _stack([feed.step_input(latents) for feed in feeds], session.memory)
    on_device = any(feed.on_device for feed in feeds)
    began = time.perf_counter()
    output = session.step(state, x, start, np.array(draining), on_device)
    seconds = time.perf_counter() - began
    results = []
    for number, (feed, drained) in enumerate(zip(feeds, draining, strict=True)):
        row: Tensor = output[number]
        results.append(feed.accept_output(row if feed.on_device else host_copy(row, feed.memory), drained))
    return results, seconds


def host_copy(array: Result, memory: DeviceMemory | None) -> Array:
    """Returns an array of the host as it is, and a copy of one of the device."""
    if not isinstance(array, DeviceArray):
        return array
    assert memory is not None, "only device memory makes device arrays"
    return memory.to_host(array)


def _stack(inputs: Sequence[Tensor], memory: DeviceMemory | None) -> Tensor:
    """Returns the inputs of the rows in one, on the device if one of them is there."""
    on_host = [x for x in inputs if not isinstance(x, DeviceArray)]
    if len(on_host) == len(inputs) or memory is None:
        return np.stack(on_host) if len(on_host) > 1 else on_host[0][None]
    return memory.stack(inputs)
