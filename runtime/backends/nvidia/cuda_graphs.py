"""CUDA graphs of a stream's steady step: the run is captured once per direction of the state's
swap, and launched from then on.

A graph holds addresses, so the two directions need one each; and it needs an execution context of
its own, which nothing else touches. What cannot be captured is run as if there were no graphs.
Nothing here has ever run on a GPU.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from wfvae.errors import ResourceError, WFVAEError
from wfvae.runtime.backends.nvidia.cuda import DeviceError
from wfvae.runtime.backends.nvidia.tensorrt_engine import Binding, LoadedEngine, Runner


@dataclass
class _Entry:
    """One direction of the swap, on one profile."""

    runner: Runner
    binding: Binding
    scratch: tuple[int, int]
    """Address and size. Like the binding, the graph holds it for good."""
    graph: int | None = None


class GraphCache:
    """The captured graphs of one state. Use it with the device's lock held."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine
        self._entries: dict[tuple[int, int], _Entry] = {}
        self.fallback: str | None = None
        """Why graphs are not used any more, if they are not."""

    def run(self, parity: int, profile: int, binding: Binding) -> bool:
        """Gives a run to the compute stream: plainly at first, captured the second time, launched
        from then on.

        Args:
            parity: which of the two state buffers is read.
            profile: one that takes a single number of latents, so that there are no more graphs
                than two per profile.

        Returns whether it did; if not, the caller runs without a graph.
        """
        if self.fallback is not None:
            return False
        key, scratch = (profile, parity), self._engine.device.scratch
        entry = self._entries.get(key)
        if entry is not None and (entry.binding, entry.scratch) != (binding, scratch.place):
            self._drop(key)
            entry = None
        if entry is None:
            # The first run after a change of shape does work that must not be captured.
            runner = self._engine.new_runner(profile)
            runner.bind(binding)
            runner.enqueue()
            self._entries[key] = _Entry(runner, binding, scratch.place)
            return True
        if entry.graph is None and not self._capture(entry):
            return False
        assert entry.graph is not None
        self._engine.device.cuda.launch(entry.graph, self._engine.device.compute)
        return True

    def release(self) -> None:
        """Removes all graphs. No launch may be under way."""
        for key in list(self._entries):
            self._drop(key)

    def _capture(self, entry: _Entry) -> bool:
        cuda, stream = self._engine.device.cuda, self._engine.device.compute
        try:
            cuda.begin_capture(stream)
            try:
                entry.runner.enqueue()
            except BaseException:
                with contextlib.suppress(DeviceError, ResourceError):
                    cuda.destroy_graph(cuda.end_capture(stream))
                raise
            entry.graph = cuda.end_capture(stream)
        except WFVAEError as error:
            self.fallback = str(error)
            self.release()
            return False
        return True

    def _drop(self, key: tuple[int, int]) -> None:
        entry = self._entries.pop(key)
        if entry.graph is not None:
            # A launch may still be under way.
            with contextlib.suppress(DeviceError, ResourceError):
                self._engine.device.cuda.synchronize(self._engine.device.compute)
            with contextlib.suppress(DeviceError, ResourceError):
                self._engine.device.cuda.destroy_graph(entry.graph)
