"""Clients of a Triton server in processes of their own, which use the documented client."""

import importlib.util
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

BENCHMARKS = Path(__file__).parents[1]
CLIENT = Path(__file__).parents[2] / "docs" / "examples" / "triton_stream.py"
PRELOADED = ["tritonclient.grpc", "wfvae.runtime.feeds", "harness.engines", "harness.record"]
PRELOADED += [f"wfvae.runtime.media.{name}" for name in ("video_info", "video_reader", "video_writer")]
"""What the processes that clients are forked from import, once."""


@dataclass(frozen=True)
class Answer:
    """One answered request."""

    time: float
    """When it came, on the system's monotonic clock."""
    direction: str
    seconds: float
    frames: int
    """Video frames that it finished."""
    right: bool
    """Whether its bits are the expected ones."""


@dataclass(frozen=True)
class Failure:
    """A request that failed."""

    text: str


class Client:
    """A process that streams clips for ever, one after the other: all of one is encoded, then
    decoded. `answers` returns what has arrived since the last call.
    """

    def __init__(self, context: Any, url: str, clips: Path, latents: int, seed: int) -> None:
        self._pipe, theirs = context.Pipe()
        arguments = (url, clips, latents, seed, theirs)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self._open = True

    def answers(self) -> Iterator[Answer | Failure]:
        try:
            while self._open and self._pipe.poll():
                yield self._pipe.recv()
        except (EOFError, ConnectionError):
            self._open = False

    def stop(self) -> None:
        """Asks the process to end its stream and to stop."""
        if self._open:
            self._pipe.send(None)

    def kill(self) -> None:
        """Kills the process, whatever it does."""
        self.process.kill()
        self.process.join()


def new_context() -> Any:
    """Returns the context of processes that start quickly: they are forked from one that has
    loaded the libraries, and no gRPC channel.
    """
    # That process has the environment of this one, and not its `sys.path`.
    folders = [str(BENCHMARKS), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def load_client() -> Any:
    """Returns the documented client as a module."""
    spec = importlib.util.spec_from_file_location(CLIENT.stem, CLIENT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[CLIENT.stem] = module
    spec.loader.exec_module(module)
    return module


class Stopped(Exception):
    """The benchmark asks for the end."""


def serve(url: str, clips: Path, latents: int, seed: int, pipe: Connection) -> None:
    """Runs in the process."""
    example = load_client()
    server, chooser = example.Server(url, 600.0), random.Random(seed)
    seconds: list[float] = []
    infer = server.infer

    def timed(*arguments: Any, **settings: Any) -> Any:
        begin = time.monotonic()
        result = infer(*arguments, **settings)
        seconds.append(time.monotonic() - begin)
        return result

    server.infer = timed
    try:
        models = {
            direction: example.Model(server, f"wfvae_{direction}") for direction in ("encoder", "decoder")
        }
        with np.load(clips) as stored:
            loaded = dict(stored)
        while True:
            clip = chooser.randrange(len(loaded) // 3)
            video, *expected = (loaded[f"{name}{clip}"] for name in ("video", "latents", "frames"))
            jobs = [*zip(models.values(), (video, expected[0]), expected, strict=True)]
            # Half of the clients begin with decoding, so that both models have work from the start.
            for model, data, wanted in reversed(jobs) if seed % 2 else jobs:
                run_stream(model, data, wanted, video.shape, latents, seconds, pipe)
    except Stopped:
        pass
    except (example.ServerError, ValueError) as error:
        pipe.send(Failure(str(error)))


def run_stream(
    model: Any,
    data: Any,
    wanted: Any,
    shape: tuple[int, ...],
    latents: int,
    seconds: list[float],
    pipe: Connection,
) -> None:
    """Streams one clip in one direction, and reports and checks each answer."""
    count, height, width, _ = shape
    ratio, direction, position = model.graph.ratio, model.graph.direction, 0
    with model.open(height, width, latents) as stream:
        for step in (stream.push(data), stream.finish(count if direction == "decoder" else None)):
            for part in step:
                right = np.array_equal(part, wanted[position : position + len(part)])
                before, position = position, position + len(part)
                frames = len(part)
                if direction == "encoder":
                    # The first latent is one frame.
                    frames = min(1 + ratio * (position - 1), count) - max(1 + ratio * (before - 1), 0)
                pipe.send(Answer(time.monotonic(), direction, seconds[-1], frames, right))
                if pipe.poll():
                    raise Stopped
    if position != len(wanted):
        pipe.send(Failure(f"{direction}: {position} of {len(wanted)} came"))
