"""CUDA graphs of a stream's steady step, captured once per direction of the state's swap.

A graph holds addresses, so the two directions need one each, and each needs an execution context
that nothing else uses. A step that cannot be captured runs without graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

from wfvae.errors import WFVAEError
from wfvae.runtime.backends.nvidia.device import ignoring_device_errors
from wfvae.runtime.backends.nvidia.tensorrt_engine import Binding, LoadedEngine, Runner


@dataclass
class _Entry:
    """One direction of the swap, on one profile."""

    runner: Runner
    binding: Binding
    scratch: tuple[int, int]
    """Address and size. A graph is valid for this binding and this scratch memory only."""
    graph: int | None = None


class GraphCache:
    """The captured graphs of one state. Use it with the device's lock held."""

    def __init__(self, engine: LoadedEngine) -> None:
        self._engine = engine
        self._entries: dict[tuple[int, int], _Entry] = {}
        self.fallback: str | None = None
        """Why graphs are no longer used; None while they are."""

    def run(self, parity: int, profile: int, binding: Binding) -> bool:
        """Enqueues a run: plain at first, captured the second time, launched from then on.

        Args:
            parity: which of the two state buffers is read.
            profile: one for a single number of latents, so that a profile has at most two graphs.
            binding: where inputs and outputs are.

        Returns False if graphs cannot be used; the caller then runs without one.
        """
        if self.fallback is not None:
            return False
        device, key = self._engine.device, (profile, parity)
        entry = self._entries.get(key)
        if entry is not None and (entry.binding, entry.scratch) != (binding, device.scratch.place):
            self._drop(key)
            entry = None
        if entry is None:
            # The first run after a change of shape does work that must not be captured.
            runner = self._engine.new_runner(profile)
            runner.enqueue(binding)
            self._entries[key] = _Entry(runner, binding, device.scratch.place)
            return True
        if entry.graph is None:
            try:
                entry.graph = self._capture(entry.runner)
            except WFVAEError as error:
                self.fallback = str(error)
                self.release()
                return False
        device.cuda.launch(entry.graph, device.compute)
        return True

    def release(self) -> None:
        """Destroys all graphs. No launch may be under way."""
        for key in list(self._entries):
            self._drop(key)

    def _capture(self, runner: Runner) -> int:
        cuda, stream = self._engine.device.cuda, self._engine.device.compute
        cuda.begin_capture(stream)
        try:
            runner.enqueue_again()
        except BaseException:
            with ignoring_device_errors():
                cuda.destroy_graph(cuda.end_capture(stream))
            raise
        return cuda.end_capture(stream)

    def _drop(self, key: tuple[int, int]) -> None:
        device, graph = self._engine.device, self._entries.pop(key).graph
        if graph is not None:
            with ignoring_device_errors():  # a launch may still be under way
                device.cuda.synchronize(device.compute)
            with ignoring_device_errors():
                device.cuda.destroy_graph(graph)
