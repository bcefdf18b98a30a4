"""Writing in segments: an interrupted run resumes and gives the bytes of an uninterrupted one."""

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.videos import FPS, Frames, Times, distance, like, load, moving, one_line, save
from wfvae.errors import MediaError, ResourceError
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo

VIDEO = OutputVideo(64, 48, FPS)


def write_segments(
    path: Path, frames: Frames, times: Times = None, stop: int | None = None, piece: int = 5, **options: Any
) -> int:
    """Resumes up to frame `stop` (None: finishes). Returns the frame that this run began at."""
    end = len(frames) if stop is None else stop
    with SegmentedVideoWriter(path, like(frames, **options), segment_frames=8, resume=True) as writer:
        begin = writer.frames_done
        for start in range(begin, end, piece):
            part = slice(start, min(start + piece, end))
            writer.write(frames[part], None if times is None else times[part])
        if stop is None:
            writer.finish()
    return begin


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ending=st.sampled_from([".mp4", ".mkv", ".webm", ".mov"]),
    count=st.integers(1, 40),
    stops=st.lists(st.integers(0, 39), max_size=3),
    piece=st.integers(1, 11),
    variable=st.booleans(),
)
def test_interrupted_run_gives_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, ending: str, count: int, stops: list[int], piece: int, variable: bool
) -> None:
    frames, tick = moving(count, 32, 48), Fraction(1, 90000)
    steps = np.random.default_rng(count).integers(900, 9000, count)
    times = [int(ticks) * tick for ticks in np.cumsum(steps) - steps[0]] if variable else None
    options = {"time_base": tick} if variable else {}
    folder = Path(mkdtemp(dir=tmp_path))
    whole, parts = folder / f"whole{ending}", folder / f"parts{ending}"
    write_segments(whole, frames, times, **options)
    done = 0
    for stop in (min(stop, count) for stop in sorted(stops)):
        assert write_segments(parts, frames, times, stop, piece, **options) == done
        done = max(done, stop // 8 * 8)
    assert write_segments(parts, frames, times, None, piece, **options) == done
    assert parts.read_bytes() == whole.read_bytes()
    read, got, _ = load(parts)
    assert distance(read, frames) < 8
    expected = times or [index / FPS for index in range(count)]
    error = 0 if ending in (".mp4", ".mov") else Fraction(1, 1000)
    assert all(abs(a - b) <= error for a, b in zip(got, expected, strict=True))
    assert sorted(os.listdir(folder)) == [parts.name, whole.name]


def test_one_segment_gives_the_bytes_of_the_plain_writer(tmp_path: Path) -> None:
    with SegmentedVideoWriter(tmp_path / "parts.mp4", VIDEO, segment_frames=100) as writer:
        writer.write(moving(14))
        writer.finish()
    assert save(tmp_path / "plain.mp4", moving(14)).read_bytes() == (tmp_path / "parts.mp4").read_bytes()


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("fps", {"video": OutputVideo(64, 48, Fraction(30000, 1001))}),
        ("options", {"video": OutputVideo(64, 48, FPS, crf=30)}),
        ("size", {"video": OutputVideo(32, 48, FPS)}),
        ("segment_frames", {"segment_frames": 5}),
        ("source was a, and is b", {"origin": {"source": "b"}}),
        ("backend was not set, and is x", {"origin": {"source": "a", "backend": "x"}}),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path, says: str, options: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"destination": tmp_path / "v.mp4", "video": VIDEO, "segment_frames": 4}
    settings["origin"] = {"source": "a"}
    with SegmentedVideoWriter(**settings) as writer:
        writer.write(moving(9))
        assert writer.frames_done == 8
    with pytest.raises(MediaError, match=says) as excinfo:
        SegmentedVideoWriter(**settings | options, resume=True)
    one_line(excinfo)
    with SegmentedVideoWriter(**settings | options, resume=False) as writer:
        assert writer.frames_done == 0


def swap(folder: Path, one: str, other: str) -> None:
    spare = folder.with_name("spare")
    for old, new in ((folder / one, spare), (folder / other, folder / one), (spare, folder / other)):
        old.rename(new)


def swap_whole(folder: Path) -> None:
    for ending in ("nut", "json"):
        swap(folder, f"segment-000000.{ending}", f"segment-000001.{ending}")


def change_frames(folder: Path) -> None:
    path = folder / "segment-000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"frames": 3}))


def change_byte(folder: Path) -> None:
    path = folder / "segment-000001.nut"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def take_from_another_video(folder: Path) -> None:
    other = folder.with_name("other.mp4")
    with SegmentedVideoWriter(other, VIDEO, segment_frames=4, origin={"source": "b"}) as writer:
        writer.write(moving(9)[::-1])
    for ending in ("nut", "json"):
        (writer.folder / f"segment-000000.{ending}").rename(folder / f"segment-000000.{ending}")


@pytest.mark.parametrize(
    "change",
    [
        swap_whole,
        lambda folder: swap(folder, "segment-000000.nut", "segment-000001.nut"),
        change_frames,
        change_byte,
        take_from_another_video,
        lambda folder: (folder / "segment-000001.nut").unlink(),
        lambda folder: (folder / "segment-000001.json").write_text("{"),
        lambda folder: (folder / "plan.json").write_text("[]"),
    ],
)
def test_changed_segments_are_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "v.mp4"
    with SegmentedVideoWriter(path, VIDEO, segment_frames=4) as writer:
        writer.write(moving(12))
    change(writer.folder)
    with pytest.raises(MediaError, match=r"was changed after it was written.*start over") as excinfo:
        SegmentedVideoWriter(path, VIDEO, segment_frames=4, resume=True)
    one_line(excinfo)


def test_segment_changed_before_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with SegmentedVideoWriter(path, VIDEO, segment_frames=4) as writer:
        writer.write(moving(12))
        change_byte(writer.folder)
        with pytest.raises(MediaError, match=r"segment-000001.*was changed"):
            writer.finish()
    assert not path.exists()


def test_foreign_files_in_the_working_directory_are_kept(tmp_path: Path) -> None:
    """Also through a link of its name."""
    path, folder, foreign = tmp_path / "v.mp4", tmp_path / "v.mp4.partial", tmp_path / "foreign"
    with SegmentedVideoWriter(path, VIDEO, segment_frames=4) as writer:
        writer.write(moving(5))
    folder.rename(foreign)
    (foreign / "thesis.txt").touch()
    before = sorted(os.listdir(foreign))
    folder.symlink_to(foreign)
    for resume in (False, True):
        with pytest.raises(ResourceError, match=r"v\.mp4\.partial' is a link"):
            SegmentedVideoWriter(path, VIDEO, segment_frames=4, resume=resume)
    folder.unlink()
    foreign.rename(folder)
    for resume in (False, True):
        with pytest.raises(ResourceError, match=r"did not make \('thesis\.txt'\)"):
            SegmentedVideoWriter(path, VIDEO, segment_frames=4, resume=resume)
    assert sorted(os.listdir(folder)) == before and os.listdir(tmp_path) == [folder.name]


def test_destinations_that_cannot_be_resumed_are_refused(tmp_path: Path) -> None:
    for name in ("-", str(tmp_path), str(tmp_path / "v.gif")):
        with pytest.raises(MediaError, match=r"give a name ending in \.mp4"):
            SegmentedVideoWriter(name, VIDEO, segment_frames=4)
    with pytest.raises(MediaError, match="at least 1"):
        SegmentedVideoWriter(tmp_path / "v.mp4", VIDEO, segment_frames=0)
    (tmp_path / "v.mp4.partial").mkdir()
    (tmp_path / "v.mp4.partial" / "thesis.txt").write_text("x")
    with pytest.raises(ResourceError, match=r"thesis\.txt"):
        SegmentedVideoWriter(tmp_path / "v.mp4", VIDEO, segment_frames=4)
    refused = pytest.raises(MediaError, match="no frames")
    with refused, SegmentedVideoWriter(tmp_path / "w.mp4", VIDEO, segment_frames=4) as writer:
        writer.finish()
