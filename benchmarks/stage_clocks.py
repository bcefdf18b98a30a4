"""Where the time of a job goes, by stage and thread: functions of the runtime are watched from
outside while a block runs.

A stage's time is its own: what it calls and what is a stage itself is subtracted. So the stages of
one thread do not overlap, and add up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest.mock import patch

import wfvae.runtime.decoder_feed as decoder_feed
import wfvae.runtime.encoder_feed as encoder_feed
import wfvae.runtime.stream as stream
from wfvae.runtime.backends.onnxruntime import OnnxRuntimeStep
from wfvae.runtime.backends.openvino import OpenVinoStep
from wfvae.runtime.feed import Feed
from wfvae.runtime.latents.base import LatentsReader
from wfvae.runtime.latents.zarr_latents import ZarrWriter
from wfvae.runtime.media.container_source import ContainerSource
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_color import YUVConverter
from wfvae.runtime.media.video_writer import VideoWriter
from wfvae.runtime.prefetch import BackgroundSink, Prefetch

Kind = Literal["work", "waiting"]
ENGINE = "engine"
OTHER = "other"
STAGES: tuple[tuple[str, Kind, tuple[tuple[Any, str], ...]], ...] = (
    ("video decode", "work", ((ContainerSource, "_next"),)),
    ("colour conversion in", "work", ((ContainerSource, "_convert"),)),
    ("latents read", "work", ((LatentsReader, "read"),)),
    ("pixels to network", "work", ((encoder_feed, "to_network"),)),
    ("feed", "work", ((stream, "run_step"), (Feed, "push"))),
    (ENGINE, "work", ((OnnxRuntimeStep, "step"), (OpenVinoStep, "step"))),
    ("postprocess", "work", ((decoder_feed, "to_uint8_frames"),)),
    ("latents write", "work", ((ZarrWriter, "append"), (ZarrWriter, "finish"))),
    ("colour conversion out", "work", ((YUVConverter, "convert"),)),
    (
        "video encode",
        "work",
        (
            (VideoWriter, "write"),
            (VideoWriter, "close"),
            (SegmentedVideoWriter, "write"),
            (SegmentedVideoWriter, "finish"),
        ),
    ),
    ("waiting for the reader", "waiting", ((Prefetch, "__next__"),)),
    ("waiting for the writer", "waiting", ((BackgroundSink, "put"), (BackgroundSink, "close"))),
)
WAITING = tuple(name for name, kind, _ in STAGES if kind == "waiting")


@dataclass
class Clocks:
    """Seconds of each stage: in the thread that drives the engine, and in the threads that read and
    write.
    """

    driving: dict[str, float] = field(default_factory=dict)
    background: dict[str, float] = field(default_factory=dict)


class _Thread(threading.local):
    """Seconds of the stages within the one that runs, outermost first."""

    def __init__(self) -> None:
        self.inner: list[float] = []


@contextmanager
def stage_clocks() -> Iterator[Clocks]:
    """Adds up the seconds of each stage while the block runs. The thread that enters it is the one
    that drives the engine.
    """
    clocks, here, driver, lock = Clocks(), _Thread(), threading.get_ident(), threading.Lock()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            here.inner.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - begin
                own = elapsed - here.inner.pop()
                if here.inner:
                    here.inner[-1] += elapsed
                seconds = clocks.driving if threading.get_ident() == driver else clocks.background
                with lock:
                    seconds[name] = seconds.get(name, 0.0) + own

        return call

    with ExitStack() as stack:
        for name, _, places in STAGES:
            for owner, attribute in places:
                stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield clocks
