"""Times that do not rise, clocks that restart, and counts that are wrong."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.odd_videos import (
    avi_with_dropped_frames,
    matroska_with_times,
    renumbered,
    streamed_avi,
    transport_stream,
    without_video_packet,
)
from fixtures.videos import FPS, audio_packets, load, moving, one_line, save
from wfvae.errors import MediaError
from wfvae.runtime.media.timeline import FrameTimes, PacketClock, audio_on_one_clock, on_one_clock
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer

MILLISECOND = Fraction(1, 1000)


@given(st.lists(st.none() | st.integers(0, 60), min_size=1), st.sampled_from([1, 40, 1001]))
def test_frame_times_rise_on_the_tick_whatever_is_stated(stated: list[int | None], ticks: int) -> None:
    times = FrameTimes(Fraction(1001, 24000), ticks * MILLISECOND)
    given_times = [None if one is None else one * ticks * MILLISECOND for one in stated]
    found = [times.next(one) for one in given_times]
    assert all(later > earlier for earlier, later in pairwise(found))
    assert all((time / (ticks * MILLISECOND)).denominator == 1 for time in found)
    assert found[0] == (given_times[0] or 0)


class Packet:
    """What a clock reads of a packet, in ms."""

    time_base = MILLISECOND

    def __init__(self, dts: int | None, kind: str = "video") -> None:
        self.dts, self.pts, self.duration, self.size = dts, dts, 40, 1
        self.stream = SimpleNamespace(index=("video", "audio").index(kind), type=kind)


@pytest.mark.parametrize(
    ("stamps", "restarts", "mended"),
    [
        ([0, 40, 80, 120], True, [0, 40, 80, 120]),
        ([9000, 9040, 0, 40], True, [9000, 9040, 9080, 9120]),
        ([9000, 9040, 0, 40], False, [9000, 9040, 9080, 9120]),
        ([0, 40, 20000, 20040], True, [0, 40, 80, 120]),
        ([0, 40, 20000, 20040], False, [0, 40, 20000, 20040]),  # a pause
        ([800, 840, 0, 920, 960], True, [800, 840, 880, 920, 960]),  # one stray packet
        ([800, None, 0, 800, 0], False, [800, None, 840, 1640, 1680]),
        ([0, 40, 40, 20, 80], True, [0, 40, 40, 20, 80]),  # jitter, which is mended per frame
    ],
)
def test_jumps_of_a_clock_are_closed(
    stamps: list[int | None], restarts: bool, mended: list[int | None]
) -> None:
    packets = on_one_clock([Packet(stamp) for stamp in stamps], PacketClock(restarts=restarts))
    assert [packet.dts for packet in packets] == mended


@pytest.mark.parametrize(
    ("stamps", "mended"),
    [
        ("v0 a0 v40 a30 v80 a60 v120 a90", [0, 30, 60, 90]),
        ("v0 a0 a1 a1 a2 v40", [0, 1, 1, 2]),  # shorter than the tick
        ("v900 a900 v940 a930 v0 a0 v40 a30", [900, 930, 980, 1010]),
        ("v900 a900 v940 a930 a0 a30 v0 v40", [900, 930, 980, 1010]),  # its clock jumps first
        ("v900 a900 v940 a990 v0 a0 a30 v40", [900, 990, 1010]),  # its parts overlap
        ("a900 a930 a0 a30", [900, 930, 970, 1000]),  # the video ends before
    ],
)
def test_audio_is_shifted_as_the_video_is(stamps: str, mended: list[int]) -> None:
    kinds = {"v": "video", "a": "audio"}
    packets = [Packet(int(word[1:]), kinds[word[0]]) for word in stamps.split()]
    found = list(audio_on_one_clock(packets, restarts=True, with_video=True))
    assert [packet.dts for packet in found] == mended


def test_rising_times_are_kept_exactly() -> None:
    times, stated = FrameTimes(1 / FPS, MILLISECOND), [Fraction(n * n, 1000) for n in range(20)]
    assert [times.next(one) for one in stated] == stated


@pytest.mark.parametrize("ending", [".mkv", ".mp4", ".avi", ".gif"])
def test_repeated_and_earlier_times_do_not_stop_writing(tmp_path: Path, ending: str) -> None:
    source = matroska_with_times(tmp_path / "in.mkv", [0, 0, 42, 83, 80, 125, 167])
    frames, times, info = load(source)
    assert len(frames) == 7 and all(later > earlier for earlier, later in pairwise(times))
    assert [times[index] for index in (0, 2, 3, 5, 6)] == [n * MILLISECOND for n in (0, 42, 83, 125, 167)]
    out = tmp_path / f"out{ending}"
    with open_video_writer(out, OutputVideo.like(info)) as writer:
        writer.write(frames, times)
    written = load(out)[0]
    # The two that show for a millisecond do not fit into the ticks of AVI and GIF.
    assert len(written) == (7 if ending in (".mkv", ".mp4") else 5)
    assert bool(writer.notices) == (len(written) < 7)


@pytest.mark.parametrize("joined_by", ["recorder", "cat"])
def test_joined_transport_streams_are_read_to_the_end_in_step(tmp_path: Path, joined_by: str) -> None:
    part = transport_stream(tmp_path / "part.ts")
    source = tmp_path / "in.ts"
    source.write_bytes(renumbered(part + part) if joined_by == "recorder" else part + part)
    with open_video(source) as reader:
        pairs = list(reader.frames_with_times())
        info, notices = reader.info, reader.notices
    times = [time for _, time in pairs]
    assert len(pairs) == 26
    assert {later - earlier for earlier, later in pairwise(times)} == {1 / FPS}
    assert any("clock jumps in 1 place" in text for text in notices)
    assert any("counters break in 1 place" in text for text in notices) == (joined_by == "cat")
    out = tmp_path / "out.mkv"
    with open_video_writer(out, OutputVideo.like(info, audio_from=source)) as writer:
        writer.write(np.stack([frame for frame, _ in pairs]), times)
    sounds = [time for time, _ in audio_packets(out)]
    assert all(later > earlier for earlier, later in pairwise(sounds))
    per_part = len(audio_packets(tmp_path / "part.ts"))
    # The second part's sound is as long after the first's as its frames are: 13 frames.
    missing = 2 * per_part - len(sounds)
    assert 0 <= missing <= 3
    assert abs(sounds[-1] - sounds[per_part - 1] - 13 / FPS) <= 2 * MILLISECOND


def test_lost_transport_packet_is_damage(tmp_path: Path) -> None:
    source = tmp_path / "in.ts"
    data = transport_stream(source, 24)
    for share in (0.3, 0.6, 0.9):
        source.write_bytes(without_video_packet(data, share))
        with pytest.raises(MediaError, match="damaged") as excinfo, open_video(source) as reader:
            list(reader)
        one_line(excinfo)


def test_streamed_avi_is_read_to_its_end(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.avi", moving(9), codec="mjpeg")
    source = streamed_avi(tmp_path / "in.avi", whole)
    frames, times, info = load(source)
    assert np.array_equal(frames, load(whole)[0])
    assert times == [index / FPS for index in range(9)]
    assert (info.frames, info.variable_frame_rate) == (None, False)
    source.write_bytes(source.read_bytes()[:-40])
    with pytest.raises(MediaError, match="damaged"):
        load(source)


def test_dropped_frames_of_avi_are_a_variable_rate(tmp_path: Path) -> None:
    ticks = [0, 5, 10, 15, 16, 25, 50]
    _, times, info = load(avi_with_dropped_frames(tmp_path / "in.avi", ticks))
    assert times == [tick / FPS for tick in ticks]
    assert (info.frames, info.fps, info.variable_frame_rate) == (7, Fraction(3), True)
