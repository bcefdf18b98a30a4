"""Workers on this machine: one in this process, or several in processes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue

from wfvae.errors import ResourceError, WFVAEError
from wfvae.runtime.closing import Closing
from wfvae.runtime.dataset.batching import Progress
from wfvae.runtime.dataset.children import ChildEnded, ChildProcess, ForkServer, name_process
from wfvae.runtime.dataset.plan import Part, Probe
from wfvae.runtime.dataset.shards import PartRecord
from wfvae.runtime.dataset.videos import Video
from wfvae.runtime.dataset.worker import Prober, WorkerSetup

ATTEMPTS = 3
"""How often a part is tried whose worker was killed."""


class LocalEngine(Closing):
    """Runs a number of workers."""

    def __init__(self, setup: WorkerSetup, workers: int) -> None:
        self._setup, self._workers = setup, workers
        self._forks = ForkServer(__name__)

    def close(self) -> None:
        """Ends the process that starts others."""
        self._forks.close()

    def probe(self, videos: Sequence[Video]) -> Iterator[Probe]:
        """Yields the facts of each video, in order."""
        count = max(1, min(self._workers, len(videos)))
        with ExitStack() as stack:
            idle: SimpleQueue[Prober] = SimpleQueue()
            for _ in range(count):
                prober = Prober(self._forks, self._setup.options, self._setup.time_limit)
                idle.put(stack.enter_context(prober))

            def probe(video: Video) -> Probe:
                prober = idle.get()
                try:
                    return prober.probe(video)
                finally:
                    idle.put(prober)

            threads = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="wfvae-probe"))
            yield from threads.map(probe, videos)

    def encode(self, parts: Iterable[Part], progress: Progress) -> Iterator[PartRecord]:
        """Yields the record of each part as it is finished, in any order."""
        if self._workers > 1:
            yield from self._encode_in_children(parts, progress)
            return
        with self._setup.open(self._forks) as worker:
            for part in parts:
                yield worker.encode(part, progress)

    def _encode_in_children(self, parts: Iterable[Part], progress: Progress) -> Iterator[PartRecord]:
        waiting = iter([(part, 1) for part in parts])
        again: list[tuple[Part, int]] = []
        busy: dict[Connection, tuple[ChildProcess, Part, int]] = {}
        with ExitStack() as stack:

            def assign(child: ChildProcess | None) -> None:
                """Gives a worker the next part, if there is one."""
                part, attempt = again.pop() if again else next(waiting, (None, 0))
                if part is None:
                    return
                if child is None:
                    child = stack.enter_context(ChildProcess(self._forks, serve))
                    child.send(self._setup)
                child.send(part)
                busy[child.connection] = (child, part, attempt)

            for _ in range(self._workers):
                assign(None)
            while busy:
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    child, part, attempt = busy.pop(ready)
                    try:
                        message = child.receive()
                    except ChildEnded as error:
                        if attempt == ATTEMPTS:
                            problem = f"the worker of part {part.number} ended {attempt} times ({error})"
                            advice = "use fewer --workers or --rows if memory is short"
                            raise ResourceError(f"{problem}; {advice}") from error
                        again.append((part, attempt + 1))
                        assign(None)
                        continue
                    if isinstance(message, int):
                        progress(message)
                        busy[ready] = (child, part, attempt)
                    elif isinstance(message, PartRecord):
                        assign(child)
                        yield message
                    else:
                        raise message


def serve(connection: Connection) -> None:
    """Encodes the parts that the parent sends, until it closes."""
    name_process("wfvae-worker")
    with ForkServer.forked() as forks:
        setup: WorkerSetup = connection.recv()
        try:
            with setup.open(forks) as worker:
                while True:
                    connection.send(worker.encode(connection.recv(), connection.send))
        except (WFVAEError, MemoryError) as error:
            connection.send(error)
