"""An endless stream of batches, made ahead of time by worker processes."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Literal, Self

from torch.utils.data import DataLoader, Dataset

from wfvae.errors import DataError, TrainingError, WFVAEError
from wfvae.train.data.bad_clips import BadClipLedger
from wfvae.train.data.batch import Batch, stack_clips
from wfvae.train.data.clip_source import BadClip, Clip, ClipSource, InspectedSource, printable
from wfvae.train.data.crops import Crops
from wfvae.train.data.sampling import WINDOW, Drawn, NoneUsableError, Place, Sampling, crop_rng, draw

__all__ = ["BatchStream", "StartMethod", "signals_held_back"]

StartMethod = Literal["fork", "forkserver", "spawn"]

_OUT_OF_MEMORY = (
    "out of memory while clips were read; use smaller or shorter clips (data.height, data.width,"
    " data.frames), a smaller optimizer.batch or fewer data.workers"
)
_HELD_BACK = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_PATIENCE = 5.0
"""Seconds that a worker is given to end before it is killed."""


@dataclass(frozen=True)
class _Failure:
    """What a worker hands over instead of a batch. Raised in the worker, it would arrive wrapped in
    a traceback of many lines.
    """

    message: str
    bad: tuple[BadClip, ...]


class _Steps(Dataset[Batch | _Failure]):
    """The batch of any step; a map-style data set, so that the order of steps does not depend on
    the workers.
    """

    def __init__(self, source: ClipSource, sampling: Sampling, max_bad: int, crops: Crops | None) -> None:
        self._source, self._sampling, self._max_bad, self._crops = source, sampling, max_bad, crops
        # The latest clips of which more crops will be taken. Nothing depends on what is in here but
        # the time.
        self._kept: OrderedDict[tuple[int, int], Drawn] = OrderedDict()

    def __getitem__(self, step: int) -> Batch | _Failure:
        bad: list[BadClip] = []
        try:
            return self._make(step, bad)
        except NoneUsableError as error:
            return _Failure(str(error), (*bad, *error.bad))
        except WFVAEError as error:
            return _Failure(str(error), tuple(bad))
        except MemoryError:
            return _Failure(_OUT_OF_MEMORY, tuple(bad))

    def _make(self, step: int, bad: list[BadClip]) -> Batch:
        clips: list[Clip] = []
        names: list[str] = []
        places = self._sampling.places(step)
        for place in places:
            drawn = self._draw(place)
            bad += drawn.bad
            name = self._source.name(drawn.item)
            if clips and drawn.clip.shape != clips[0].shape:
                raise DataError(
                    f"'{printable(name)}' gave a clip of shape {drawn.clip.shape}, '{printable(names[0])}'"
                    f" one of {clips[0].shape}; expected one shape"
                )
            clips.append(drawn.clip)
            names.append(name)
        return Batch(stack_clips(clips), tuple(names), tuple(bad), step, places[0].epoch, places[0].position)

    def _draw(self, place: Place) -> Drawn:
        seed, crops = self._sampling.seed, self._crops
        key = (place.epoch, place.item)
        drawn = self._kept.get(key) or draw(self._source, seed, place.epoch, place.item, self._max_bad)
        if crops is None:
            return drawn
        if crops.per_clip > 1:
            self._kept[key] = drawn
            while len(self._kept) > WINDOW:
                self._kept.popitem(last=False)
        return drawn._replace(clip=crops.cut(drawn.clip, crop_rng(seed, place)))


class BatchStream:
    """An endless iterator of `Batch`; the batch of a step depends on source, seed, batch_size,
    rank, world and step alone.

    So a run resumes exactly with `start_step`, the number of workers is free, and the ranks of a
    step hold row by row the batch that a single rank with `batch_size * world` would see. Bad items
    are replaced (see `sampling.draw`), reported and counted in `ledger`.

    A context manager; leaving it ends the workers.

    Attributes:
        step: the step of the next batch.
        ledger: the account of bad items.
    """

    def __init__(
        self,
        source: ClipSource,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start_step: int = 0,
        *,
        crops: Crops | None = None,
        ledger: BadClipLedger | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
        start_method: StartMethod = "forkserver",
    ) -> None:
        """Start the workers; they begin with the first batches at once.

        Args:
            source: where the clips come from; must be picklable when there are workers.
            batch_size: rows per rank, >= 1.
            seed: any integer >= 0; another one is another order and other crops.
            rank, world: this process's number and the number of processes that train together.
            workers: processes that make batches ahead of time; 0 makes them in this process when
                they are asked for.
            start_step: the step to start with, >= 0.
            crops: random windows that are cut out of the clips; None takes them whole.
            ledger: where bad items go; None for a silent one with the default limit.
            prefetch: batches that each worker makes ahead, >= 1.
            pin_memory: put the frames into page-locked memory, for asynchronous copies to a CUDA
                device.
            start_method: how workers start. "fork" is quicker but unsafe once this process has
                threads.

        Raises:
            DataError: an argument is outside its range, the source is empty, or more items are
                known to be bad than the ledger allows.
        """
        _check(
            batch_size=(batch_size, 1), seed=(seed, 0), rank=(rank, 0), world=(world, 1), workers=(workers, 0)
        )
        _check(start_step=(start_step, 0), prefetch=(prefetch, 1))
        if rank >= world:
            raise DataError(f"rank is {rank} of a world of {world}; expected 0..{world - 1}")
        if len(source) < 1:
            raise DataError("the source of clips is empty; expected at least one clip")
        self.step = start_step
        self.ledger = BadClipLedger() if ledger is None else ledger
        if isinstance(source, InspectedSource):
            self.ledger.note(
                source.unusable, tell=rank == 0
            )  # every rank knows these; what a rank meets later, it alone knows
        sampling = Sampling(
            seed, len(source), batch_size, rank, world, crops.per_clip if crops is not None else 1
        )
        steps = _Steps(
            source, sampling, len(source) if self.ledger.limit is None else self.ledger.limit, crops
        )
        self._workers: list[BaseProcess] = []
        self._at_exit = partial(_close, weakref.ref(self))
        self._batches: Iterator[Batch | _Failure] | None = None
        if workers == 0 and not pin_memory:
            self._batches = map(steps.__getitem__, itertools.count(start_step))
            return
        options: dict[str, Any] = {}
        if workers:
            context = multiprocessing.get_context(start_method)
            if start_method == "forkserver":
                context.set_forkserver_preload([__name__])  # torch is loaded once, not once for each worker
                _start_fork_server()
            options = {
                "multiprocessing_context": context,
                "prefetch_factor": prefetch,
                "worker_init_fn": _settle,
            }
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "This DataLoader will create", UserWarning
            )  # how many workers is the caller's choice
            loader = DataLoader(
                steps,
                batch_size=None,
                sampler=_Counting(start_step),
                num_workers=workers,
                collate_fn=_as_it_is,
                pin_memory=pin_memory,
                **options,
            )
            self._batches, self._workers = _start(loader)
        # The workers ignore the signal by which Python ends processes that are left over at exit;
        # without this it would wait for them.
        atexit.register(self._at_exit)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: too many items are bad, or none can be used.
            TrainingError: a worker was killed, or the stream is closed.
        """
        if self._batches is None:
            raise TrainingError(
                f"the stream of batches was closed before step {self.step}; open a new one with"
                f" start_step={self.step}"
            )
        self._check_alive()
        try:
            made = next(self._batches)
        except RuntimeError:
            self._check_alive()  # the loader's own message names neither the step nor what to do
            raise
        try:
            self.ledger.note(made.bad)
            if isinstance(made, _Failure):
                raise DataError(made.message)
        except DataError:
            self.close()  # this step cannot be had; the next one must not pass for it
            raise
        self.step = made.step + 1
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and wait for it; closing twice is fine."""
        atexit.unregister(self._at_exit)
        self._batches = None  # the loader's iterator asks its workers to end when it goes
        for worker in self._workers:
            worker.join(_PATIENCE)
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._workers = []

    def _check_alive(self) -> None:
        for number, worker in enumerate(self._workers):
            if worker.is_alive():
                continue
            code = worker.exitcode
            how = (
                f"was killed by {_signal_name(-code)}"
                if code is not None and code < 0
                else f"ended with code {code}"
            )
            raise TrainingError(
                f"data worker {number} (process {worker.pid}) {how} before step {self.step}; look for a lack"
                " of memory or of space in /dev/shm, then resume the run from its last checkpoint, with"
                " fewer workers if need be"
            )


class _Counting:
    """The steps from a first one on, without end."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first)


def _start(loader: DataLoader[Batch | _Failure]) -> tuple[Iterator[Batch | _Failure], list[BaseProcess]]:
    """The loader's iterator and its worker processes.

    On the main thread the loader installs a SIGCHLD handler that raises wherever the program
    happens to be, be it in the middle of an optimizer step, when a worker dies. That is undone:
    `BatchStream` looks after its workers itself, between batches.
    """
    on_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if on_main else None
    before = set(multiprocessing.active_children())
    with (
        signals_held_back()
    ):  # a loader that was interrupted in the making would end with a traceback, and leave workers
        batches = iter(loader)
    if on_main:
        signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
    return batches, [child for child in multiprocessing.active_children() if child not in before]


def _start_fork_server() -> None:
    """Starts it so that signals to the whole process group, as Ctrl-C sends one, do not reach it:
    while it loads torch, before it looks after signals itself, it would end with a traceback. It
    ends when this process does."""
    with signals_held_back():
        # apart, as it lets some signals through again; it would not survive SIGHUP
        resource_tracker.ensure_running()
    with signals_held_back():
        forkserver.ensure_running()


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Signals that would end this process wait until the block is left; processes that are started
    in it never see them.

    The mask is what those inherit. It is not enough for this one: another thread may get the
    signal, and Python heeds it on the main one.
    """
    held: list[int] = []
    handlers: dict[int, Any] = {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        if threading.current_thread() is threading.main_thread():
            known = [number for number in _HELD_BACK if signal.getsignal(number) is not None]
            handlers = {
                number: signal.signal(number, lambda number, frame: held.append(number)) for number in known
            }
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in held:
            signal.raise_signal(number)


def _close(stream: weakref.ref[BatchStream]) -> None:
    """Close a stream that is still there when the program ends."""
    left = stream()
    if left is not None:
        left.close()


def _settle(worker: int) -> None:
    """In a worker: leave interruptions to the main process, which may want to finish its step and
    save before it ends the workers; but do not outlive it, whatever it dies of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    """The loader's own watch is for its parent's end, and the parent of a worker is the fork
    server, which waits for its workers.
    """
    main = multiprocessing.parent_process()
    assert main is not None
    main.join()
    os._exit(1)


def _as_it_is(made: Any) -> Any:
    return made


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _check(**arguments: tuple[int, int]) -> None:
    """Raise DataError unless each is an integer of at least its lower bound."""
    for name, (value, low) in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise DataError(f"{name} is {value!r}; expected an integer of at least {low}")
