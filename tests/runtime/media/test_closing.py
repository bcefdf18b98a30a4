"""Closing a video while another thread works on a frame of it: after that frame, or not at all."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.videos import FPS, moving, save
from wfvae.errors import MediaError
from wfvae.runtime.media.container_source import ContainerSource
from wfvae.runtime.media.output_container import OutputFile
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer

VIDEO = OutputVideo(64, 48, FPS)


def open_case(case: str, folder: Path) -> tuple[Callable[[], object], Callable[[], None]]:
    """Returns work on the frames of a video, and what ends it."""
    if case == "reader":
        reader = open_video(save(folder / "in.mp4", moving(3)))
        return lambda: list(reader), reader.close
    writer = open_video_writer(folder / "out.mp4", VIDEO)
    return lambda: writer.write(moving(3)), writer.abort


def run_until_closed(work: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        with pytest.raises(MediaError, match=r"(is|was) closed"):
            work()

    worker = threading.Thread(target=run)
    worker.start()
    return worker


@pytest.mark.parametrize("case", ["reader", "writer"])
def test_close_inside_frame_waits_for_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, close = open_case(case, tmp_path)
    inside, release, order = threading.Event(), threading.Event(), []
    owner: Any = ContainerSource if case == "reader" else OutputFile
    frame, end = ("_convert", "close") if case == "reader" else ("encode", "abort")
    handle, finish = getattr(owner, frame), getattr(owner, end)

    def slowly(self: Any, *arguments: Any) -> Any:
        inside.set()
        assert release.wait(10)
        order.append("frame")
        return handle(self, *arguments)

    def recorded(self: Any) -> None:
        order.append("closed")
        finish(self)

    monkeypatch.setattr(owner, frame, slowly)
    monkeypatch.setattr(owner, end, recorded)
    worker, closer = run_until_closed(work), threading.Thread(target=close)
    assert inside.wait(10)
    closer.start()
    closer.join(0.05)
    release.set()
    for thread in (closer, worker):
        thread.join(10)
        assert not thread.is_alive()
    close()
    assert order == ["frame", "closed"]
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(MediaError, match="closed"):
        work()
