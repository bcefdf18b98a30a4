"""How many clients does one Triton server take, how fast, and does it stay right under kills?

    python benchmarks/triton_load.py --json benchmarks/results/triton-load-cpu.json
    python benchmarks/triton_load.py --clients 2 --seconds 2 --size 32

A repository of the platform python is served on the CPU (`make tritonserver` fetches the server),
encoder and decoder with half of the threads each. Every client is a process that uses the
documented client and waits for each answer; it encodes a clip, decodes its latents, and goes on
with another one. Every second one more client is started, and the one before it is killed in the
middle of what it does. All answers are compared with the bits of the runtime; code 1 if one
differs or a request fails. Frames per second are those both encoded and decoded: half of the sum
over the two directions. Latency is that of requests, from sending to the answer.
"""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from harness.engines import DIRECTIONS, exported, open_on
from harness.processes import NotMeasured
from harness.record import CommandLine, finish, positive
from harness.triton_clients import Answer, Client, Failure, new_context
from harness.triton_server import SITES, TritonServer, missing

from wfvae.runtime import Bundle
from wfvae.video.synthetic.clips import ProceduralClip

CLIPS = 4
PERCENTILES = (50, 95, 99)
KILL_EVERY = 1.0
WARM_UP = 3.0
LEAST_ANSWERS = 20
"""Of each direction, at least, and as many as there are clients."""
PATIENCE = 600.0
SPARE_SLOTS = 512
"""For killed clients: the server drops their streams when they have been idle."""


def store_clips(bundle: Bundle, options: Any, path: Path) -> float:
    """Writes clips with their latents and reconstructions. Returns the frames per second of the
    runtime in this process, one clip after the other.
    """
    lengths = [options.frames + 3 * index for index in range(CLIPS)]  # not only 1 + 4 n
    videos = [
        ProceduralClip(index, options.size, options.size, length).frames(0, length)
        for index, length in enumerate(lengths)
    ]
    arrays = {}
    for index, video in enumerate(videos):
        latents, frames = reconstruct(bundle, video)
        arrays |= {f"video{index}": video, f"latents{index}": latents, f"frames{index}": frames}
    np.savez(path, **arrays)
    begin, turns = time.perf_counter(), 0
    while time.perf_counter() < begin + options.seconds / 3:
        for video in videos:
            reconstruct(bundle, video)
        turns += 1
    return turns * sum(lengths) / (time.perf_counter() - begin)


def reconstruct(bundle: Bundle, video: Any) -> tuple[Any, Any]:
    """Returns the latents and the frames."""
    count, height, width, _ = video.shape
    latents = bundle.encode(video)
    return latents, bundle.decode(latents, frames=count, height=height, width=width)


class Memory(threading.Thread):
    """Samples the memory of a server with the processes of its backend."""

    def __init__(self, server: TritonServer) -> None:
        super().__init__(daemon=True)
        self._server, self._ended = psutil.Process(server.process.pid), threading.Event()
        self.peak_mb = 0.0

    def run(self) -> None:
        while not self._ended.wait(0.5):
            processes = [self._server, *self._server.children(recursive=True)]
            # Proportional: pages that processes share count once.
            total = sum(process.memory_full_info().pss for process in processes)
            self.peak_mb = max(self.peak_mb, total / 1e6)

    def end(self) -> float:
        self._ended.set()
        self.join()
        return self.peak_mb


class Load:
    """Clients of one server: steady ones, and one that is killed and replaced every second."""

    def __init__(self, server: TritonServer, clips: Path, latents: int, clients: int) -> None:
        self._server, self._arguments = server, (new_context(), server.url, clips, latents)
        self._started = 0
        self._steady = [self._start() for _ in range(clients)]
        self._victim: Client | None = None
        self._answers: list[list[Answer]] = [[] for _ in range(clients)]
        """Of each steady client."""
        self._failures: list[str] = []
        self._next_kill = 0.0
        self._checked = self._wrong = self._killed = 0
        """Answers of all clients, those with other bits, and clients."""

    def measure(self, seconds: float) -> dict[str, Any]:
        """Returns the row of these clients. Raises `NotMeasured` if one gets no answer."""
        memory = Memory(self._server)
        memory.start()
        try:
            self._run_until(time.monotonic() + WARM_UP, kills=False)
            patience = time.monotonic() + PATIENCE
            while not all(self._answers):
                if time.monotonic() > patience or self._failures:
                    raise NotMeasured((self._failures or ["a client gets no answer"])[0])
                self._run_until(time.monotonic() + 0.1, kills=False)
            begin = end = time.monotonic()
            least = max(LEAST_ANSWERS, len(self._steady))
            while end < begin + seconds or any(
                len(found) < least for found in self._between(begin, end).values()
            ):
                if end > begin + PATIENCE or self._failures:
                    break
                self._run_until(end + 0.1, kills=True)
                end = time.monotonic()
            self._stop()
        finally:
            peak_mb = memory.end()
            for client in self._all():
                client.kill()
        counted = self._between(begin, end)
        return {
            "clients": len(self._steady),
            "seconds": end - begin,
            "frames_per_second": sum(a.frames for found in counted.values() for a in found)
            / 2
            / (end - begin),
            "latency_seconds": {
                direction: [float(np.percentile([a.seconds for a in found], share)) for share in PERCENTILES]
                for direction, found in counted.items()
                if found
            },
            "peak_mb": peak_mb,
            "killed": self._killed,
            "checked_answers": self._checked,
            "wrong_answers": self._wrong,
            "failures": self._failures,
        }

    def _between(self, begin: float, end: float) -> dict[str, list[Answer]]:
        """Returns the answers to steady clients in a span of time, by direction."""
        found: dict[str, list[Answer]] = {direction: [] for direction in DIRECTIONS.values()}
        for answer in (answer for answers in self._answers for answer in answers):
            if begin < answer.time <= end:
                found[answer.direction].append(answer)
        return found

    def _start(self) -> Client:
        self._started += 1
        return Client(*self._arguments, seed=self._started)

    def _all(self) -> list[Client]:
        return [*self._steady, *([self._victim] if self._victim else [])]

    def _run_until(self, end: float, kills: bool) -> None:
        """Collects answers, and every second kills a client and starts another one."""
        while time.monotonic() < end:
            if kills and time.monotonic() >= self._next_kill:
                self._replace_victim()
                self._next_kill = time.monotonic() + KILL_EVERY
            self._collect()
            time.sleep(0.02)

    def _replace_victim(self) -> None:
        self._collect()
        if self._victim is not None:
            self._victim.kill()
            self._killed += 1
        self._victim = self._start()

    def _collect(self) -> None:
        for index, client in enumerate(self._all()):
            for item in client.answers():
                if isinstance(item, Failure):
                    self._failures.append(item.text)
                    continue
                self._checked += 1
                self._wrong += not item.right
                if index < len(self._steady):
                    self._answers[index].append(item)

    def _stop(self) -> None:
        """Lets all clients end their streams."""
        for client in self._all():
            client.stop()
        patience = time.monotonic() + PATIENCE
        while any(client.process.is_alive() for client in self._all()) and time.monotonic() < patience:
            self._collect()
            time.sleep(0.02)
        self._collect()


def parse_arguments(arguments: Sequence[str] | None) -> Any:
    parser = CommandLine(__doc__, "triton-load-cpu.json", size=128, frames=17, seconds=30.0)
    add = parser.add_argument
    add("--clients", type=positive, nargs="+", default=[1, 8, 32, 128], help="at once, one case each")
    add("--latents", type=positive, default=1, help="latents per request")
    add("--max-batch", type=positive, default=8, help="streams that share a step")
    add("--idle", type=positive, default=300, help="seconds, more than a request takes")
    add("--backend", choices=("onnxruntime", "openvino"), default="onnxruntime", help="of the runtime")
    return parser.parse_args(arguments)


def measure(options: Any, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """Returns a row per number of clients, and the frames per second without a server."""
    # Not above: the clients' processes import this module, too.
    from wfvae import WFVAE
    from wfvae.export.triton.config import TritonOptions
    from wfvae.export.triton.repository import write_repository

    clips, repository = folder / "clips.npz", folder / "repository"
    serving = TritonOptions(
        platform="python",
        gpu=False,
        backend=options.backend,
        threads=max(options.threads // 2, 1),
        max_batch=options.max_batch,
        max_sequences=max(options.max_batch, *options.clients) + SPARE_SLOTS,
        idle_seconds=options.idle,
        site_packages=SITES,
    )
    with exported(WFVAE.from_pretrained("tiny")) as (path, _):
        with open_on(options.backend, path, options.threads) as bundle:
            alone = store_clips(bundle, options, clips)
        write_repository(path, repository, serving)
    rows = []
    # The server would wait for the streams of killed clients, which nobody ends.
    with TritonServer(repository, exit_timeout=1) as server:
        for clients in options.clients:
            rows.append(Load(server, clips, options.latents, clients).measure(options.seconds))
            print(f"{clients} clients: done", file=sys.stderr)
    return rows, alone


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    try:
        with TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
            rows, alone = measure(options, Path(folder))
    except NotMeasured as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    job = {**options.job, "latents": options.latents, "max_batch": options.max_batch}
    job |= {"backend": options.backend, "percentiles": PERCENTILES, "server": "Triton 24.10"}
    finish(options, "triton-load", job=job, frames_per_second_in_process=alone, rows=rows)
    return int(any(row["wrong_answers"] or row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
