"""Closing a video while another thread reads or writes a frame of it: after that frame, or not at
all.
"""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import wfvae.runtime.media.video_reader as video_reader
from fixtures.program import clip, save
from wfvae.errors import MediaError
from wfvae.runtime.media.locks import acquired as turn_to_close
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo, RawVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer

VIDEO = OutputVideo(48, 32, Fraction(25))


class Stage:
    """One thread inside a frame until it is let go, and the order of what happens."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self._inside, self._leave = threading.Event(), threading.Event()

    def frame(self) -> None:
        """What the thread is inside of."""
        self._inside.set()
        assert self._leave.wait(10)
        self.order.append("frame")

    def noted(self, name: str, close: Callable[[], object]) -> Callable[[], None]:
        """`close`, noted."""

        def noting() -> None:
            self.order.append(name)
            close()

        return noting

    def play(self, work: Callable[[], object], close: Callable[[], None]) -> None:
        """Closes while another thread is inside of a frame of its work, and lets that go on only
        then.
        """
        worker, closer = (threading.Thread(target=target) for target in (work, close))
        worker.start()
        self.entered()
        closer.start()
        time.sleep(0.05)
        self._leave.set()
        for thread in (closer, worker):
            thread.join(10)
            assert not thread.is_alive()

    def entered(self) -> None:
        """Waits until the thread is inside."""
        assert self._inside.wait(10)

    def leave(self) -> None:
        """Lets the thread go on."""
        self._leave.set()


def swallowed(work: Callable[[], object]) -> Callable[[], None]:
    def quiet() -> None:
        with pytest.raises(MediaError, match=r"(is|was) closed"):
            work()

    return quiet


def test_a_reader_closes_after_the_frame_that_is_being_read(tmp_path: Path) -> None:
    stage, reader = Stage(), open_video(save(tmp_path / "in.mp4", clip(3)))
    source: Any = reader._source

    def frames() -> Iterator[Any]:
        for item in source:
            stage.frame()
            yield item

    reader._frames = frames()
    source.close = stage.noted("closed", source.close)
    stage.play(swallowed(lambda: list(reader)), reader.close)
    assert stage.order == ["frame", "closed"]
    reader.close()
    assert stage.order == ["frame", "closed"]


def test_a_silent_pipe_is_left_to_the_thread_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_reader, "PIPE_CLOSE_SECONDS", 0.01)
    stage, reader = Stage(), open_video(io.BytesIO(bytes(clip(3))), raw=RawVideo(48, 32, Fraction(25)))
    source: Any = reader._source

    def frames() -> Iterator[Any]:
        stage.frame()
        yield from source

    reader._frames = frames()
    source.close = stage.noted("closed", source.close)
    thread = threading.Thread(target=swallowed(lambda: list(reader)))
    thread.start()
    stage.entered()
    monkeypatch.setattr(video_reader, "CLOSE_SECONDS", math.nan)  # would raise
    reader.close()
    stage.leave()
    thread.join(10)
    assert not thread.is_alive()
    assert stage.order == ["frame"]


@pytest.mark.parametrize("segmented", [False, True])
def test_a_writer_is_given_up_after_the_frame_that_is_being_written(segmented: bool, tmp_path: Path) -> None:
    stage, path = Stage(), tmp_path / "out.mp4"
    writer: Any
    if segmented:
        writer = SegmentedVideoWriter(path, VIDEO, segment_frames=100)
        writer.write(clip(1))
        sink, stop = writer._current, writer.close
    else:
        writer = open_video_writer(path, VIDEO)
        sink, stop = writer._sink, writer.abort
    write = sink.write

    def slowly(*arguments: Any) -> None:
        stage.frame()
        write(*arguments)

    sink.write, sink.abort = slowly, stage.noted("closed", sink.abort)
    stage.play(swallowed(lambda: writer.write(clip(3))), stop)
    assert stage.order == ["frame", "closed"]
    assert not path.exists()
    with pytest.raises(MediaError, match="is closed"):
        writer.write(clip(1))


def test_a_lock_that_nobody_holds_is_taken_and_given_back() -> None:
    lock = threading.Lock()
    with turn_to_close(lock) as safe:
        assert safe and lock.locked()
    assert not lock.locked()
    with lock, turn_to_close(lock, 0.01) as safe:
        assert not safe
