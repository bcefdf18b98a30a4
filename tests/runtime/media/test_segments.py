"""Writing in segments: an interrupted run resumes and gives the bytes of an uninterrupted one."""

import json
import os
from fractions import Fraction
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.videos import FPS, Frames, Times, distance, like, load, moving, one_line, save
from wfvae.errors import MediaError
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
        ("origin", {"origin": "another"}),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path, says: str, options: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"destination": tmp_path / "v.mp4", "video": VIDEO, "segment_frames": 4}
    with SegmentedVideoWriter(**settings) as writer:
        writer.write(moving(9))
        assert writer.frames_done == 8
    with pytest.raises(MediaError, match=says) as excinfo:
        SegmentedVideoWriter(**settings | options, resume=True)
    one_line(excinfo)
    with SegmentedVideoWriter(**settings | options, resume=False) as writer:
        assert writer.frames_done == 0


def test_changed_segments_are_encoded_again_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with SegmentedVideoWriter(path, VIDEO, segment_frames=4) as writer:
        writer.write(moving(12))
    description = writer.folder / "segment-000001.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"frames": 3}))
    with SegmentedVideoWriter(path, VIDEO, segment_frames=4, resume=True) as writer:
        assert writer.frames_done == 4
        writer.write(moving(12)[4:])
        segment = writer.folder / "segment-000000.nut"
        segment.write_bytes(segment.read_bytes()[:-200])
        with pytest.raises(MediaError, match="start over") as excinfo:
            writer.finish()
        one_line(excinfo)
    assert not path.exists()


def test_destinations_that_cannot_be_resumed_are_refused(tmp_path: Path) -> None:
    for name in ("-", str(tmp_path), str(tmp_path / "v.gif")):
        with pytest.raises(MediaError, match=r"give a name ending in \.mp4"):
            SegmentedVideoWriter(name, VIDEO, segment_frames=4)
    with pytest.raises(MediaError, match="at least 1"):
        SegmentedVideoWriter(tmp_path / "v.mp4", VIDEO, segment_frames=0)
    (tmp_path / "v.mp4.partial").mkdir()
    (tmp_path / "v.mp4.partial" / "thesis.txt").write_text("x")
    with pytest.raises(MediaError, match=r"thesis\.txt"):
        SegmentedVideoWriter(tmp_path / "v.mp4", VIDEO, segment_frames=4)
    refused = pytest.raises(MediaError, match="no frames")
    with refused, SegmentedVideoWriter(tmp_path / "w.mp4", VIDEO, segment_frames=4) as writer:
        writer.finish()
