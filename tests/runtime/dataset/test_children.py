"""Fork servers: children end with their parent, and outlive what starts them."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait

import psutil
import pytest

from wfvae.runtime.dataset.children import ChildEnded, ChildProcess, ForkServer


def echo(connection: Connection) -> None:
    """Returns numbers, and exits with the code -n where n is negative."""
    while (number := connection.recv()) >= 0:
        connection.send((number, os.getpid(), threading.active_count()))
    os._exit(-number)


def pass_on(connection: Connection) -> None:
    """Returns what a child of its own returns, of a server that is forked from this process."""
    with ForkServer.forked() as forks, ChildProcess(forks, echo) as child:
        while True:
            child.send(connection.recv())
            connection.send(child.receive())


@pytest.fixture
def forks() -> Iterator[ForkServer]:
    with ForkServer(__name__) as server:
        yield server


def ask(child: ChildProcess, number: int) -> tuple[int, int, int]:
    child.send(number)
    answer: tuple[int, int, int] = child.receive()
    return answer


def ended(process_id: int) -> bool:
    """Whether a process ends soon. It may stay a zombie, since this one is not its parent."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.002)
    return False


def test_children_end_when_closed_and_report_how_they_ended(forks: ForkServer) -> None:
    with ChildProcess(forks, echo) as first, ChildProcess(forks, echo) as second:
        assert ask(first, 7) == (7, first.process_id, 1)
        assert ask(second, 8) == (8, second.process_id, 1)
        first.send(-3)
        with pytest.raises(ChildEnded, match="exit code 3"):
            first.receive()
        os.kill(second.process_id, signal.SIGKILL)
        with pytest.raises(ChildEnded, match="signal SIGKILL"):
            ask(second, 9)
    third = ChildProcess(forks, echo)
    os.kill(third.process_id, signal.SIGSTOP)
    third.close()
    assert not any(psutil.pid_exists(child.process_id) for child in (first, second, third))


def test_killed_fork_server_costs_no_child_and_is_replaced(forks: ForkServer) -> None:
    with ChildProcess(forks, echo) as child:
        server = psutil.Process(child.process_id).ppid()
        os.kill(server, signal.SIGKILL)
        assert ask(child, 1)[0] == 1
        with ChildProcess(forks, echo) as other:
            assert ask(other, 2)[0] == 2
            assert psutil.Process(other.process_id).ppid() not in (server, os.getpid())
    assert ended(child.process_id)


def test_killed_child_ends_its_connection_and_its_own_children(forks: ForkServer) -> None:
    with ChildProcess(forks, pass_on) as child:
        _, below, _ = ask(child, 4)
        server = psutil.Process(below).ppid()
        assert psutil.Process(server).ppid() == child.process_id
        os.kill(server, signal.SIGSTOP)
        os.kill(child.process_id, signal.SIGKILL)
        assert wait([child.connection], 10)  # the stopped server has no copy of the connection
        with pytest.raises(ChildEnded, match="signal SIGKILL"):
            child.receive()
        os.kill(server, signal.SIGCONT)
    assert ended(server) and ended(below)
