"""Progress of a TensorRT build, and how to stop one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from wfvae.spec.tensorrt_api import TensorRT

Progress = Callable[[str, int, int], None]
"""Called with a description, the number of finished steps and the number of all steps."""


class BuildProgress:
    """Reports a build's phases: the steps of the outermost one and the name of the innermost one.

    TensorRT may call from any thread.
    """

    def __init__(self, label: str, report: Progress) -> None:
        self._label, self._report = label, report
        self._phases: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self.cancelled = False
        """Whether TensorRT is asked to stop at the next step."""

    def update(self, phase: str, done: int, total: int | None = None) -> None:
        """Sets the finished steps of a phase. `total` opens it, inside of the open phases."""
        with self._lock:
            if total is None and phase not in self._phases:
                return
            self._phases[phase] = (done, self._phases[phase][1] if total is None else total)
            names = list(self._phases)
            inner = f", {names[-1]}" if len(names) > 1 else ""
            # A display that fails is no reason to stop a build.
            with contextlib.suppress(Exception):
                self._report(f"{self._label}: {names[0]}{inner}", *self._phases[names[0]])

    def finish(self, phase: str) -> None:
        """Ends a phase, possibly before its last step."""
        with self._lock:
            self._phases.pop(phase, None)


def make_monitor(trt: TensorRT, progress: BuildProgress) -> Any:
    """Returns a progress monitor of TensorRT that passes its calls to `progress`."""

    class Monitor(trt.interface("IProgressMonitor")):  # type: ignore[misc]  # no types
        def __init__(self) -> None:
            super().__init__()  # which TensorRT's classes demand

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.update(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.update(phase_name, step + 1)
            return not progress.cancelled

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


@contextlib.contextmanager
def cancelling(progress: BuildProgress) -> Iterator[None]:
    """Lets SIGINT and SIGTERM cancel the build, and raises `KeyboardInterrupt` at the end.

    A `KeyboardInterrupt` raised at once would have to pass through TensorRT's own frames.
    """

    def stop(number: int, frame: Any) -> None:
        progress.cancelled = True

    former = {}
    with contextlib.suppress(ValueError):  # not the main thread: no signal arrives here
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if progress.cancelled:
        raise KeyboardInterrupt
