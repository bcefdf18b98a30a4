"""Child processes with a connection, which end with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from wfvae.errors import ResourceError
from wfvae.runtime.closing import Closing

START_LIMIT = 120.0
"""Seconds that a process may take to start, on a busy machine."""


class ChildEnded(Exception):
    """The child has ended; the message says how."""


class ChildProcess(Closing):
    """A Python process that runs a module with the number of a connection as its last argument.

    The child ends when its side of the connection reports the end. Not `multiprocessing.Process`,
    which imports the parent's main module and may not have children of its own.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", module, *arguments, str(theirs.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
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
        self.connection: Connection = Connection(ours.detach())
        """Sends and receives pickled objects."""
        try:
            if not self.connection.poll(START_LIMIT):
                raise ResourceError(f"{module} did not start within {START_LIMIT:g} seconds")
            self.receive()
        except BaseException as error:
            self.close()
            if isinstance(error, ChildEnded):
                raise ResourceError(f"{module} ended at its start: {error}") from error
            raise

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

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

    def receive_into(self, buffer: memoryview) -> None:
        """Waits for bytes that fill `buffer`. Raises `ChildEnded`."""
        try:
            self.connection.recv_bytes_into(buffer)
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def close(self) -> None:
        """Kills the process. Closing twice is allowed."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def _ended(self) -> ChildEnded:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.poll()
        self.close()
        if code is not None and code < 0:
            return ChildEnded(f"signal {signal.Signals(-code).name}")
        return ChildEnded(f"exit code {code}")


def connect_to_parent() -> Connection:
    """Returns the child's side of the connection, and announces that the child is ready."""
    connection = Connection(int(sys.argv[-1]))
    connection.send("ready")
    return connection
