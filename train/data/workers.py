"""Worker processes of a data loader: how they start and end, and which signals reach them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from wfvae.errors import TrainingError

T = TypeVar("T")

_HELD_BACK = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_PATIENCE = 5.0
"""Seconds that a worker has to end before it is killed."""
_NEWS_SECONDS = 1.0
"""Seconds until the end of a worker is known here."""


def worker_context(preloaded: str) -> BaseContext:
    """Returns a context whose fork server loads the module `preloaded` once for all workers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preloaded])
    # While the server loads torch, it handles no signals: Ctrl-C, which reaches the whole process
    # group, would end it with a traceback.
    with signals_held_back():
        resource_tracker.ensure_running()  # apart: it unblocks some signals, and dies of SIGHUP
    with signals_held_back():
        forkserver.ensure_running()
    return context


def start_workers(loader: DataLoader[T]) -> tuple[Iterator[T], list[BaseProcess]]:
    """Returns the loader's iterator and its worker processes.

    On the main thread the loader installs a SIGCHLD handler that raises wherever the program is
    when a worker dies, even in an optimizer step. It is removed: callers check their workers.
    """
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if on_main else None
    before = set(multiprocessing.active_children())
    with signals_held_back():  # a loader interrupted while it starts leaves workers and a traceback
        batches = iter(loader)
    if on_main:
        signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
    return batches, [child for child in multiprocessing.active_children() if child not in before]


def end_workers(workers: list[BaseProcess]) -> None:
    """Waits for workers to end, and kills those that do not."""
    for worker in workers:
        worker.join(_PATIENCE)
        if worker.is_alive():
            worker.kill()
            worker.join()


def next_batch(batches: Iterator[T], workers: list[BaseProcess], step: int) -> T:
    """Returns the next batch of a loader, which is that of `step`.

    Raises:
        StopIteration: there are no more.
        TrainingError: a worker was lost.
    """
    try:
        return next(batches)
    # RuntimeError is the loader's, whose message names neither the step nor what to do; the others
    # come from opening a batch that a worker sent before it was lost.
    except (RuntimeError, OSError, EOFError):
        running = [worker.sentinel for worker in workers if worker.exitcode is None]
        wait(running, _NEWS_SECONDS)  # the fork server reports its end a little later
        require_alive(workers, step)
        raise


def require_alive(workers: list[BaseProcess], step: int) -> None:
    """Raises `TrainingError` if a worker was lost before this step's batch came.

    One that ended with code 0 has made all of its batches.
    """
    for number, worker in enumerate(workers):
        if worker.exitcode not in (None, 0):
            raise TrainingError(
                f"data worker {number} (process {worker.pid}) {how_it_ended(worker)} before step"
                f" {step}; look for a lack of memory or of space in /dev/shm, then resume the run"
                " from its last checkpoint, with fewer workers if need be"
            )


def how_it_ended(worker: BaseProcess) -> str:
    """Describes the end of a worker, such as "was killed by SIGKILL"."""
    code = worker.exitcode
    if code is None or code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Delays signals that would end this process; processes started inside never see them.

    Those inherit the mask. This process needs handlers as well: another thread may get the signal,
    which Python handles on the main one.
    """
    held: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _HELD_BACK:
                if signal.getsignal(number) is not None:
                    handlers[number] = signal.signal(number, lambda number, frame: held.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for caught in held:
            signal.raise_signal(caught)


def settle_worker(worker: int) -> None:
    """Runs first in a worker: leaves interruptions to the main process, and does not outlive it.

    The main process may want to finish its step and save before it ends the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    # The loader watches a worker's parent, which is the fork server, which waits for its workers.
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)
