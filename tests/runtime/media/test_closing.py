"""Closing a video while another thread works on a frame of it: after that frame, or not at all."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wfvae.runtime.media.video_reader as video_reader
from fixtures.videos import FPS, moving, save
from wfvae.errors import MediaError
from wfvae.runtime.media.locks import acquired
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo, RawVideo
from wfvae.runtime.media.video_reader import VideoReader, open_video
from wfvae.runtime.media.video_writer import open_video_writer

VIDEO = OutputVideo(64, 48, FPS)


class Stage:
    """One thread inside a frame until it is released, and the order of what happens."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.inside, self.release = threading.Event(), threading.Event()

    def frame(self) -> None:
        """What the thread is inside of."""
        self.inside.set()
        assert self.release.wait(10)
        self.order.append("frame")

    def recorded(self, close: Callable[[], object]) -> Callable[[], None]:
        def recording() -> None:
            self.order.append("closed")
            close()

        return recording

    def hold(self, reader: VideoReader) -> None:
        """Makes a reader stop inside each frame, and records when its source is closed."""
        source: Any = reader._source

        def frames() -> Iterator[Any]:
            for item in source:
                self.frame()
                yield item

        reader._frames = frames()
        source.close = self.recorded(source.close)

    def close_inside(self, work: Callable[[], object], close: Callable[[], None]) -> None:
        """Closes while another thread is inside a frame of its work, which then fails."""

        def work_until_closed() -> None:
            with pytest.raises(MediaError, match=r"(is|was) closed"):
                work()

        worker, closer = (threading.Thread(target=target) for target in (work_until_closed, close))
        worker.start()
        assert self.inside.wait(10)
        closer.start()
        closer.join(0.05)
        self.release.set()
        for thread in (closer, worker):
            thread.join(10)
            assert not thread.is_alive()


def test_a_reader_closes_after_the_frame_that_is_read(tmp_path: Path) -> None:
    stage, reader = Stage(), open_video(save(tmp_path / "in.mp4", moving(3)))
    stage.hold(reader)
    stage.close_inside(lambda: list(reader), reader.close)
    assert stage.order == ["frame", "closed"]
    reader.close()
    assert stage.order == ["frame", "closed"]


def test_a_silent_pipe_is_left_to_the_thread_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_reader, "PIPE_CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(video_reader, "CLOSE_SECONDS", math.nan)  # would raise
    stage, reader = Stage(), open_video(io.BytesIO(bytes(moving(3))), raw=RawVideo(64, 48, FPS))
    stage.hold(reader)

    def close() -> None:
        reader.close()
        stage.release.set()

    stage.close_inside(lambda: list(reader), close)
    assert "closed" not in stage.order


@pytest.mark.parametrize("segmented", [False, True])
def test_a_writer_aborts_after_the_frame_that_is_written(segmented: bool, tmp_path: Path) -> None:
    stage, path = Stage(), tmp_path / "out.mp4"
    writer: Any
    if segmented:
        writer = SegmentedVideoWriter(path, VIDEO, segment_frames=100)
        sink, stop = writer._segments, writer.close
    else:
        writer = open_video_writer(path, VIDEO)
        sink, stop = writer._sink, writer.abort
    write = sink.write

    def slowly(*arguments: Any) -> None:
        stage.frame()
        write(*arguments)

    sink.write, sink.abort = slowly, stage.recorded(sink.abort)
    stage.close_inside(lambda: writer.write(moving(3)), stop)
    assert stage.order == ["frame", "closed"]
    assert not path.exists()
    with pytest.raises(MediaError, match="is closed"):
        writer.write(moving(1))


def test_acquired_takes_a_free_lock_and_gives_up_on_a_taken_one() -> None:
    lock = threading.Lock()
    with acquired(lock) as taken:
        assert taken and lock.locked()
    assert not lock.locked()
    with lock, acquired(lock, 0.01) as taken:
        assert not taken
