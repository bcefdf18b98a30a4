"""Progress of a TensorRT build, and the way to stop one. Nothing in here has ever run on a GPU."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many steps of it are."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


class BuildProgress:
    """Follows the phases of a build: the outermost one's steps, and the name of the innermost one.
    TensorRT may call from any thread.
    """

    def __init__(self, label: str, report: Progress) -> None:
        self._label, self._report = label, report
        self._phases: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether the build was asked to stop."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Asks TensorRT to stop at the next step."""
        self._cancelled.set()

    def start(self, phase: str, steps: int) -> None:
        """A phase begins, inside of those that are open."""
        with self._lock:
            self._phases[phase] = (0, steps)
            self._show()

    def advance(self, phase: str, step: int) -> bool:
        """Step number `step` of a phase is done. Returns whether to go on."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase] = (step + 1, self._phases[phase][1])
            self._show()
        return not self.cancelled

    def finish(self, phase: str) -> None:
        """A phase ends, possibly before its last step."""
        with self._lock:
            self._phases.pop(phase, None)

    def _show(self) -> None:
        if self._phases:
            names = list(self._phases)
            done, total = self._phases[names[0]]
            inner = f", {names[-1]}" if len(names) > 1 else ""
            self._report(f"{self._label}: {names[0]}{inner}", done, total)


def make_monitor(trt: Any, progress: BuildProgress) -> Any:
    """TensorRT's view of `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of a module without types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        # An exception must not pass through TensorRT's frames; a display that fails is no reason to
        # stop a build.
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with contextlib.suppress(Exception):
                progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with contextlib.suppress(Exception):
                progress.advance(phase_name, step)
            return not progress.cancelled

        def phase_finish(self, phase_name: str) -> None:
            with contextlib.suppress(Exception):
                progress.finish(phase_name)

    return Monitor()


@contextlib.contextmanager
def cancelling(progress: BuildProgress) -> Iterator[None]:
    """Turns Ctrl-C and a polite kill into `progress.cancel()`, and raises `KeyboardInterrupt` when
    TensorRT has stopped.

    A `KeyboardInterrupt` raised at once would have to pass through TensorRT's own frames.
    """

    def stop(number: int, frame: Any) -> None:
        progress.cancel()

    former = {}
    with contextlib.suppress(ValueError):  # not in the main thread, where no signal arrives anyway
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if progress.cancelled:
        raise KeyboardInterrupt
