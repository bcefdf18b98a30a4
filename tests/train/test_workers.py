"""Worker processes of the stream of batches: how they end, and which signals reach them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from fixtures.clip_sources import DeadlyClips, NumberedClips
from wfvae.errors import TrainingError
from wfvae.train.data import BatchStream
from wfvae.train.data.workers import signals_held_back


@pytest.fixture
def others() -> set[BaseProcess]:
    """Processes that were there before the test."""
    return set(multiprocessing.active_children())


def new_workers(others: set[BaseProcess]) -> list[BaseProcess]:
    return list(set(multiprocessing.active_children()) - others)


def test_closed_stream_leaves_no_worker_and_no_handler(others: set[BaseProcess]) -> None:
    handler = signal.getsignal(signal.SIGCHLD)
    stream = BatchStream(NumberedClips(4), 1, 0, workers=2)
    assert len(new_workers(others)) == 2
    assert signal.getsignal(signal.SIGCHLD) is handler
    next(stream)
    stream.close()
    stream.close()
    assert not new_workers(others)
    with pytest.raises(TrainingError, match="closed before step 1"):
        next(stream)
    with pytest.raises(KeyError), BatchStream(NumberedClips(4), 1, 0, workers=1):
        raise KeyError
    assert not new_workers(others)


def test_lost_worker_raises_between_batches(others: set[BaseProcess]) -> None:
    stream = BatchStream(NumberedClips(4), 1, 0, workers=2)
    with stream:
        kept = [next(stream), next(stream)]
        victim = new_workers(others).pop()
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(10)  # nothing is raised here, in the middle of a step
        expected = rf"^data worker \d \(process {victim.pid}\) was killed by SIGKILL before step 2; [^\n]*$"
        with pytest.raises(TrainingError, match=expected):
            next(stream)
    assert not new_workers(others)
    assert stream.step == 2
    with BatchStream(NumberedClips(4), 1, 0) as alone:
        assert all(batch.frames.equal(next(alone).frames) for batch in kept)


@pytest.mark.slow
def test_worker_lost_while_its_batch_is_awaited_raises_the_same() -> None:
    stream = BatchStream(DeadlyClips(2), 2, 0, workers=1)
    with stream, pytest.raises(TrainingError, match="was killed by SIGKILL before step 0"):
        next(stream)


PROGRAM = """
import multiprocessing, os, signal
from wfvae.train.data import BatchStream, ProceduralClips
if __name__ == "__main__":
    stream = BatchStream(ProceduralClips(0, 4, 1, (16, 16)), 1, 0, workers=2)
    next(stream)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    {end}
"""


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", pytest.param("raise SystemExit", marks=pytest.mark.slow)]
)
def test_workers_end_with_their_main_process(end: str, tmp_path: Path) -> None:
    program = tmp_path / "main.py"  # a file, which workers import again
    program.write_text(PROGRAM.format(end=end))
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as main:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        main.wait(60)
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while left := [pid for pid in workers if is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_workers_leave_interruptions_to_the_main_process(others: set[BaseProcess]) -> None:
    with BatchStream(NumberedClips(4), 1, 0, workers=1) as stream:
        next(stream)
        [worker] = new_workers(others)
        assert worker.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        for _ in range(8):
            next(stream)
        assert worker.is_alive()


def test_signals_are_held_back_while_workers_start() -> None:
    """Whichever thread gets them."""
    noted: list[str] = []
    before = signal.signal(signal.SIGINT, lambda *_: noted.append("handled"))
    try:
        with signals_held_back():
            signal.raise_signal(signal.SIGINT)
            # As if another thread, which does not block it, had got it.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            noted.append("left")
        assert noted[0] == "left" and set(noted[1:]) == {"handled"}
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.raise_signal(signal.SIGINT)
        assert noted[-1] == "handled"
    finally:
        signal.signal(signal.SIGINT, before)
