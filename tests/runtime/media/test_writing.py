"""Writing videos: what is written is what is read, in size, count, content and time."""

import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.videos import FPS, audio_packets, distance, flat, like, load, moving, one_line, save, tone
from wfvae.errors import InputError, MediaError, WFVAEError
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_writer import open_video_writer

DRAWN = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VIDEO = OutputVideo(64, 48, FPS)


@DRAWN
@given(
    ending=st.sampled_from([".mp4", ".mkv", ".mov", ".webm", ".avi", ".nut", ".gif"]),
    count=st.integers(1, 9),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    split=st.integers(0, 9),
)
def test_every_container_keeps_size_count_and_content(
    tmp_path: Path, ending: str, count: int, height: int, width: int, split: int
) -> None:
    frames, folder = moving(count, height, width), Path(mkdtemp(dir=tmp_path))
    path = folder / f"clip{ending}"
    with open_video_writer(path, like(frames)) as writer:
        writer.write(frames[:split])
        writer.write(frames[split:])
    read, times, info = load(path)
    assert (read.shape, read.dtype, read.flags.c_contiguous) == (frames.shape, np.uint8, True)
    # Pixels that share a chroma sample may be far off, but each frame is itself and no other.
    assert distance(read, frames) < 20
    apart = np.abs(read[:, None].astype(int) - frames[None]).mean(axis=(2, 3, 4))
    assert apart.argmin(axis=1).tolist() == list(range(count))
    assert (info.width, info.height, info.kind, info.has_audio) == (width, height, "file", False)
    assert times[0] == 0 and all(later > earlier for earlier, later in pairwise(times))
    assert os.listdir(folder) == [path.name]


@pytest.mark.parametrize(("ending", "ms"), [(".mp4", 0), (".mov", 0), (".nut", 0), (".mkv", 1), (".webm", 1)])
@pytest.mark.parametrize("fps", [FPS, Fraction(30000, 1001), Fraction(60)])
def test_a_constant_rate_is_kept(tmp_path: Path, ending: str, ms: int, fps: Fraction) -> None:
    _, times, info = load(save(tmp_path / f"c{ending}", moving(7), fps))
    assert info.fps == fps
    assert not info.variable_frame_rate
    off = max(abs(time - index / fps) for index, time in enumerate(times))
    assert off <= Fraction(ms, 1000)  # Matroska counts in milliseconds


@DRAWN
@given(st.lists(st.integers(90, 90000), min_size=1, max_size=12), st.integers(1, 5))
def test_a_variable_rate_is_carried_over_exactly(tmp_path: Path, steps: list[int], piece: int) -> None:
    times = [Fraction(int(tick), 90000) for tick in np.cumsum([0, *steps])]
    frames = moving(len(times), 16, 16)
    with open_video_writer(tmp_path / "v.mp4", like(frames, time_base=Fraction(1, 90000))) as writer:
        for start in range(0, len(frames), piece):
            writer.write(frames[start : start + piece], times[start : start + piece])
    first, carried, info = load(tmp_path / "v.mp4")
    with open_video_writer(tmp_path / "w.mp4", OutputVideo.like(info)) as writer:
        writer.write(first, carried)
    read, got, _ = load(tmp_path / "w.mp4")
    assert got == times
    assert distance(read, frames) < 8


def test_times_that_do_not_increase_on_the_tick_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"frame 1 at 0\.004000 s.*time_base") as excinfo:
        save(tmp_path / "v.mp4", moving(2), times=[Fraction(0), Fraction(4, 1000)])
    one_line(excinfo)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("space", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("span", ["tv", "pc"])
@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_every_matrix_and_range_keeps_colours(tmp_path: Path, space: str, span: Any, ending: str) -> None:
    primary = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    for colour in [*primary, (180, 90, 40), (13, 128, 200)]:
        path = save(tmp_path / f"c{ending}", flat(colour), color_space=space, color_range=span, crf=1)
        read, _, info = load(path)
        assert (info.color_space, info.color_range) == (space, span)
        assert np.abs(read[0, 8, 8].astype(int) - colour).max() <= 3
        assert OutputVideo.like(info).color_space == space


def test_images_replace_those_of_a_longer_video(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    save(f"{folder}/", moving(6))
    assert sorted(os.listdir(folder))[::5] == ["frame-000000.png", "frame-000005.png"]
    (folder / "thesis.txt").write_text("x")
    (folder / ".frame-000003.png.0123456789abcdef.part").write_text("left by a killed run")
    save(f"{folder}/", moving(4)[::-1])
    assert np.array_equal(load(folder)[0], moving(4)[::-1])
    assert sorted(os.listdir(folder)) == [*(f"frame-00000{i}.png" for i in range(4)), "thesis.txt"]
    with pytest.raises(MediaError, match="already holds"):
        open_video_writer(folder, VIDEO, overwrite=False)


def test_a_failed_write_keeps_the_former_file(tmp_path: Path) -> None:
    path = save(tmp_path / "v.mp4", moving(2))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), open_video_writer(path, VIDEO) as writer:
        writer.write(moving(5))
        raise KeyboardInterrupt
    with pytest.raises(MediaError, match="no frames were written"), open_video_writer(path, VIDEO):
        pass
    with pytest.raises(MediaError, match="already exists"):
        open_video_writer(path, VIDEO, overwrite=False)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["v.mp4"]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("v.xyz", {}, "ending"),
        ("no/v.mp4", {}, "does not exist"),
        ("v.mp4", {"codec": "nonsense"}, "choose one of .*libx264"),
        ("v.webm", {"codec": "libx264"}, "cannot hold libx264"),
        ("v.mp4", {"width": 63, "pixel_format": "yuv420p"}, "does not take 63x48 yuv420p"),
        ("v.mp4", {"pixel_format": "rgb565"}, "does not take 64x48 rgb565"),
        ("v.mp4", {"height": 0}, "at least 1"),
        ("v.mp4", {"color_space": "ycgco"}, "matrix 'ycgco'"),
        ("v.mp4", {"color_range": "mine"}, "unknown colour range"),
        ("v.gif", {"color_primaries": "mine"}, "unknown colour primaries"),
        ("v.gif", {"crf": 3}, "no constant-quality"),
        ("%04d.jpg", {}, "PNG only"),
        ("v.mp4", {"audio_from": Path("none.wav")}, "no such file"),
    ],
)
def test_unfit_settings_are_refused(tmp_path: Path, name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(WFVAEError, match=says) as excinfo:
        open_video_writer(tmp_path / name, OutputVideo(**{"width": 64, "height": 48, "fps": FPS} | options))
    one_line(excinfo)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wrong", [moving(1).astype(np.float32), moving(1)[0], moving(1)[:, :32], [1, 2]])
def test_wrong_arrays_are_refused(tmp_path: Path, wrong: Any) -> None:
    refused = pytest.raises(InputError, match="expected uint8")
    with refused, open_video_writer(tmp_path / "v.mp4", VIDEO) as writer:
        writer.write(wrong)
    with pytest.raises(InputError, match="2 times"):
        save(tmp_path / "v.mp4", moving(3), times=[Fraction(0), Fraction(1)])


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
def test_equal_input_gives_equal_bytes(tmp_path: Path, ending: str) -> None:
    assert len({save(tmp_path / f"{run}{ending}", moving(20)).read_bytes() for run in range(4)}) == 1


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(
    ("codec", "source", "ending"),
    [("aac", "mp4", ".mp4"), ("libopus", "matroska", ".webm"), ("pcm_s16le", "matroska", ".mkv")],
)
def test_audio_packets_survive(tmp_path: Path, codec: str, source: str, ending: str, segmented: bool) -> None:
    frames, path = moving(48), tmp_path / f"out{ending}"
    origin = tone(tmp_path / "source", 2, codec, source, start=Fraction(1, 4), video=frames)
    if segmented:
        with SegmentedVideoWriter(path, like(frames, audio_from=origin), segment_frames=10) as writer:
            writer.write(frames)
            writer.finish()
    else:
        save(path, frames, audio_from=origin)
    before, after = audio_packets(origin), audio_packets(path)
    assert [data for _, data in after] == [data for _, data in before]
    assert all(abs(a - b) <= Fraction(1, 1000) for (a, _), (b, _) in zip(after, before, strict=True))
    read, times, info = load(path)
    assert (info.has_audio, len(read)) == (True, 48)
    assert abs(times[-1] - 47 / FPS) <= Fraction(1, 1000)


def test_audio_stays_in_step_with_video_that_begins_later(tmp_path: Path) -> None:
    """MPEG-TS begins at 1.4 s or so; video and audio both count from the earliest stream."""

    def offset(path: Path) -> Fraction:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.start_time is not None and stream.time_base is not None
            return audio_packets(path)[0][0] - stream.start_time * stream.time_base

    origin = tone(tmp_path / "source.ts", muxer="mpegts", video=moving(48))
    read, times, info = load(origin)
    assert 0 <= times[0] < Fraction(1, 5)
    path = tmp_path / "out.mkv"
    with open_video_writer(path, OutputVideo.like(info, audio_from=origin)) as writer:
        writer.write(read, times)
    assert abs(offset(path) - offset(origin)) <= Fraction(2, 1000)
