"""A real Triton server as a process: the one in the wheel `nvidia-pytriton`, which
`make tritonserver` unpacks. It has the Python backend and no other.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".tools" / "tritonserver" / "pytriton" / "tritonserver"
PROGRAM = HOME / "bin" / "tritonserver"
STUB = HOME / "backends" / "python" / "triton_python_backend_stub"
SITES = (str(ROOT), sysconfig.get_path("purelib"))
"""Folders of packages for the server's Python: this checkout first, then the environment."""
PATIENCE = 240.0
_ATTEMPTS = 3
_LIBC = ctypes.CDLL(None)
_SIGNAL_AT_PARENTS_DEATH = 1


def free_port() -> int:
    """Returns a port that no process uses at this moment."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    """Returns that of the server. Its stub links Python's library, which an interpreter may have in
    a folder of its own.
    """
    folders = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, folders))}


@cache
def missing() -> str | None:
    """Returns why no server can run here, or None."""
    version = "{}.{}".format(*sys.version_info)
    if not PROGRAM.exists():
        return "there is no Triton server in .tools; fetch one with: make tritonserver"
    if not STUB.exists():
        return f"the server's Python backend is not made for Python {version}"
    for program in (PROGRAM, STUB):
        done = subprocess.run([program, "--help"], env=environment(), capture_output=True, text=True)
        if "error while loading" in done.stderr or "version `GLIBC" in done.stderr:
            return f"{program.name} does not start: {done.stderr.strip().splitlines()[0]}"
    return None


class TritonServer:
    """A running server, from `__enter__` on, until the `with` block is left.

    Its log is beside the repository.
    """

    def __init__(self, repository: Path, exit_timeout: int = 30) -> None:
        self.repository, self.exit_timeout = repository, exit_timeout
        self._log = repository.with_name(f"{repository.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Address for gRPC."""
        return f"localhost:{self._port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def client(self) -> Any:
        """Returns a gRPC client."""
        import tritonclient.grpc as grpc

        return grpc.InferenceServerClient(self.url)

    def __enter__(self) -> Self:
        for attempt in range(1, _ATTEMPTS + 1):
            self._start()
            if self._becomes_ready():
                return self
            self.stop()
            # Another process may have taken the port in between.
            assert "already in use" in self.log and attempt < _ATTEMPTS, self.log[-4000:]
        raise AssertionError("unreachable")

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Stops the server as a container's end does, and returns its exit code."""
        process = self.process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(self.exit_timeout + PATIENCE)
        finally:
            with suppress(ProcessLookupError):  # the processes of its backend, if any is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
            for region in Path("/dev/shm").glob(f"{self._regions}*"):
                region.unlink(missing_ok=True)

    @property
    def _regions(self) -> str:
        return f"wfvae-triton-{os.getpid()}-{self._port}-"

    def _start(self) -> None:
        self._port = free_port()
        options = {"model-repository": self.repository, "backend-directory": HOME / "backends"}
        options |= {"grpc-address": "localhost", "grpc-port": self._port}
        options |= {"allow-http": "false", "allow-metrics": "false", "exit-timeout-secs": self.exit_timeout}
        options |= {"backend-config": f"python,shm-region-prefix-name={self._regions}"}
        command = [str(PROGRAM), *(f"--{key}={value}" for key, value in options.items())]
        with self._log.open("wb") as log:
            # A group of its own, and an end with this process, so that none is left behind.
            self._process = subprocess.Popen(
                command,
                env=environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: _LIBC.prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM),
            )

    def _becomes_ready(self) -> bool:
        from tritonclient.utils import InferenceServerException

        end = time.monotonic() + PATIENCE
        with self.client() as client:
            while self.process.poll() is None and time.monotonic() < end:
                try:
                    if client.is_server_ready(client_timeout=5):
                        return True
                except InferenceServerException:
                    pass
                time.sleep(0.02)
        return False
