"""Child processes with a connection, which end with their parent.

A fork server imports modules once, and then forks each child in milliseconds, where the start of a
Python process with the same modules takes 0.3 s. It differs from that of `multiprocessing`, which
exists once per process and imports the parent's main module in each child.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from wfvae.errors import ResourceError
from wfvae.runtime.closing import Closing

START_LIMIT = 120.0
"""Seconds that a process may take to start, on a busy machine."""
_EXIT_SECONDS = 1.0
"""How long a child whose connection has ended may take to exit by itself."""
_KILL_SECONDS = 5.0
"""How long a killed child may take to exit; one that waits for a lost network drive may not."""
_MESSAGE_BYTES = 65536

Serve = Callable[[Connection], None]
"""What a child does: a function of a module, with the child's side of the connection."""


class ChildEnded(Exception):
    """The child has ended; the message says how."""


class ForkServer(Closing):
    """A process with a single thread that has imported a module, and forks children.

    Several threads may use it. Where it was killed, the next child starts another one.
    """

    def __init__(self, module: str) -> None:
        """Starts to import `module`, and does not wait for it."""
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control = self._start()

    @classmethod
    def forked(cls) -> ForkServer:
        """Forks this process, which must have a single thread."""
        server = cls.__new__(cls)
        server._module, server._lock, server._process = __name__, threading.Lock(), None
        server._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # It ends when this process does, since that closes the only other side of its socket.
        if not os.fork():
            _run(_serve_forks, theirs.fileno())
        theirs.close()
        return server

    def fork(self, serve: Serve, descriptor: int) -> int:
        """Returns the process id of a new child, which gets a copy of the descriptor.

        Raises `ResourceError`.
        """
        with self._lock:
            for last in (False, True):
                try:
                    answer = self._ask(("fork", serve), [descriptor])
                    break
                except ChildEnded as error:
                    if last:
                        raise ResourceError(f"the process that starts others {error}") from error
                    self.close()
                    self._control = self._start()
        if isinstance(answer, OSError):
            raise ResourceError(f"no process can be started ({answer}); end other programs") from answer
        process_id: int = answer
        return process_id

    def end(self, process_id: int, patience: float = 0.0) -> int | None:
        """Kills a child that does not exit within `patience` seconds.

        Returns its exit code, or minus the number of the signal that ended it, if that is known.
        """
        with self._lock:
            try:
                code: int | None = self._ask(("end", process_id, patience))
                return code
            except ChildEnded:
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
                return None

    def close(self) -> None:
        """Ends the server, not its children. Closing twice is allowed."""
        self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, self._module, str(theirs.fileno())]
        # One thread of BLAS: a process with several threads is not safe to fork.
        paths = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
        try:
            # A session of its own: Ctrl-C reaches the parent, which closes its children.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, start_new_session=True
            )
        except OSError as error:
            ours.close()
            raise ResourceError(f"no process can be started ({error}); end other programs") from error
        finally:
            theirs.close()
        ours.settimeout(START_LIMIT)
        return ours

    def _ask(self, request: tuple[Any, ...], descriptors: Sequence[int] = ()) -> Any:
        try:
            socket.send_fds(self._control, [pickle.dumps(request)], descriptors)
            answer = self._control.recv(_MESSAGE_BYTES)
        except OSError as error:
            raise ChildEnded(f"does not answer: {error}") from error
        if not answer:
            raise ChildEnded("has ended")
        return pickle.loads(answer)


class ChildProcess(Closing):
    """A forked process that runs `serve` with its side of the connection until that ends."""

    def __init__(self, server: ForkServer, serve: Serve) -> None:
        self._server, self._code = server, None
        self._is_open = True
        ours, theirs = socket.socketpair()
        try:
            self.process_id = server.fork(serve, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.connection: Connection = Connection(ours.detach())
        """Sends and receives pickled objects."""

    def send(self, message: Any) -> None:
        """Sends an object. Raises `ChildEnded`."""
        try:
            self.connection.send(message)
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """Waits for an object. Raises `ChildEnded`."""
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def close(self) -> None:
        """Kills the process. Closing twice is allowed."""
        self._close()

    def _close(self, patience: float = 0.0) -> int | None:
        self.connection.close()
        if not self._is_open:
            return None
        self._is_open = False
        return self._server.end(self.process_id, patience)

    def _ended(self) -> ChildEnded:
        code = self._close(_EXIT_SECONDS)
        if code is None:
            return ChildEnded("killed")
        return ChildEnded(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")


def name_process(name: str) -> None:
    """Sets the name that `top` and `ps` show, of at most 15 characters."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _serve_forks(connection: Connection) -> None:
    """Forks and ends children as a `ForkServer` asks, until it closes."""
    name_process("wfvae-fork")
    gc.freeze()  # collections do not write to pages that children share
    with connection, socket.socket(fileno=os.dup(connection.fileno())) as control:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 1)
            if not message:
                return
            kind, *arguments = pickle.loads(message)
            answer: Any
            if kind == "fork":
                answer = _fork(arguments[0], descriptors[0])
                os.close(descriptors[0])
            else:
                answer = _end(*arguments)
            control.send(pickle.dumps(answer))


def _fork(serve: Serve, descriptor: int) -> int | OSError:
    try:
        process_id = os.fork()
    except OSError as error:
        return error
    if not process_id:
        _run(serve, descriptor)
    return process_id


def _run(serve: Serve, descriptor: int) -> NoReturn:
    """Runs `serve` in a process that was just forked, and exits."""
    code = 1
    try:
        # What is inherited would keep connections of other processes open. Its objects stay
        # referenced by the callers of this function, so that none closes a descriptor once more.
        inherited = {int(name) for name in os.listdir("/proc/self/fd")}
        for other in inherited - {0, 1, 2, descriptor}:
            with suppress(OSError):
                os.close(other)
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has closed
            serve(Connection(descriptor))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _end(process_id: int, patience: float) -> int | None:
    """Waits for a child, and kills it after `patience` seconds. Returns its exit code."""
    for seconds, kills in ((patience, False), (_KILL_SECONDS, True)):
        if kills:
            os.kill(process_id, signal.SIGKILL)
        deadline = time.monotonic() + seconds
        delay = 0.0005
        while True:
            try:
                found, status = os.waitpid(process_id, os.WNOHANG)
            except ChildProcessError:  # of a server before this one, which was killed
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
                return None
            if found:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= deadline:
                break
            time.sleep(delay)
            delay = min(2 * delay, 0.05)
    return None


if __name__ == "__main__":
    import_module(sys.argv[1])
    _serve_forks(Connection(int(sys.argv[2])))
