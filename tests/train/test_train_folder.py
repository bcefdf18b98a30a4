"""A folder of videos as training data: which frames come back, in which shape, and what happens to
files that are no good.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.numbered_videos import B_FRAMES, FIRST_LEVEL, LEVELS_PER_FRAME, numbers, write_numbered
from wfvae.errors import DataError, ResourceError
from wfvae.train.data import BadClip, BadClipLedger, BatchStream, VideoFolder
from wfvae.train.data.frame_pixels import PixelReader, cover_size
from wfvae.train.data.video_container import opened_video, refused
from wfvae.train.data.video_frames import frames_after_seek, frames_from
from wfvae.train.data.video_probe import VideoFacts, probe

SIZE = (32, 48)
OpenFolder = Callable[..., VideoFolder]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


@pytest.fixture
def open_folder(videos: Path, tmp_path: Path) -> OpenFolder:
    def opened(frames: int = 5, size: tuple[int, int] = SIZE, stride: int = 1, **options: Any) -> VideoFolder:
        return VideoFolder(
            videos, frames, size, stride, index_path=tmp_path / "run" / "index.json", **options
        )

    return opened


class OutOfRangeError(Exception):
    """A clip was to begin too late."""


class Start:
    """A generator that makes every clip begin at one frame."""

    def __init__(self, start: int) -> None:
        self._start = start

    def integers(self, high: int) -> int:
        if not 0 <= self._start < high:
            raise OutOfRangeError
        return self._start


def clip_at(folder: VideoFolder, start: int, index: int = 0) -> Any:
    return folder.clip(index, Start(start))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ which frames come back

VIDEOS: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {},
    "b-frames.mkv": {},
    "b-frames.ts": {},
    "b-frames.avi": {},
    "fragmented.mp4": {"muxing": {"movflags": "frag_keyframe+empty_moov"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2", "b": "9M"}},
    "open-gop.mp4": {"options": {**B_FRAMES, "x264-params": "b-adapt=0:scenecut=0:open-gop=1"}},
    "one-key-frame.mov": {"options": {**B_FRAMES, "g": "600"}},
    "all-key-frames.mp4": {"options": {"crf": "4", "g": "1"}, "rate": Fraction(30000, 1001)},
    "gop.avi": {"codec": "mpeg4", "options": {"g": "12", "b": "9M"}},
    "av1.mp4": {
        "codec": "libsvtav1",
        "options": {"g": "12", "crf": "8", "preset": "12", "svtav1-params": "lp=1"},
    },
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "options": {"g": "12", "crf": "4", "b:v": "0", "deadline": "realtime", "cpu-used": "8"},
    },
}
COUNT = 53


@pytest.mark.parametrize("name", VIDEOS)
def test_exactly_the_asked_frames_come_back(videos: Path, open_folder: OpenFolder, name: str) -> None:
    write_numbered(videos / name, COUNT, **VIDEOS[name])
    for stride in (1, 2, 3):
        folder = open_folder(4, stride=stride)
        span = 3 * stride + 1
        for start in (0, 1, 11, 12, 13, 14, 23, 24, 31, COUNT - span):
            assert numbers(clip_at(folder, start)) == list(range(start, start + span, stride)), (
                stride,
                start,
            )
        with pytest.raises(OutOfRangeError):
            clip_at(folder, COUNT - span + 1)


def test_only_the_frames_of_a_clip_are_converted(
    videos: Path, open_folder: OpenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.train.data import frame_pixels

    write_numbered(videos / "v.mp4", COUNT)
    folder = open_folder(4, stride=3)
    converted: list[float] = []

    class Watched:
        """swscale, which all conversions go through."""

        def __init__(self) -> None:
            self._real = av.video.reformatter.VideoReformatter()

        def reformat(self, frame: Any, **options: Any) -> Any:
            converted.append(round(frame.time * 24))
            return self._real.reformat(frame, **options)

    monkeypatch.setattr(frame_pixels, "VideoReformatter", Watched)
    for start in (0, 11, 17, COUNT - 10):
        converted.clear()
        wanted = [start, start + 3, start + 6, start + 9]
        assert numbers(clip_at(folder, start)) == wanted
        assert converted == wanted


def test_frames_of_varying_duration_are_counted_not_timed(videos: Path, open_folder: OpenFolder) -> None:
    ticks = [40 * number + (15 if number % 3 == 1 else 0) for number in range(COUNT)]
    write_numbered(videos / "v.mp4", COUNT, ticks=ticks)
    folder = open_folder(5, stride=2)
    for start in (0, 7, 20, COUNT - 9):
        found = numbers(clip_at(folder, start))
        assert np.diff(found).tolist() == [2, 2, 2, 2]
        assert abs(found[0] - start) <= 1  # the start is chosen by time


def test_a_video_whose_frames_become_scarce_is_read_to_its_end(videos: Path, open_folder: OpenFolder) -> None:
    # 40 frames of 10 ms, then 32 of a second: by their mean rate the last third would be another
    # place of the file.
    ticks = [10 * number for number in range(40)] + [400 + 1000 * number for number in range(32)]
    write_numbered(videos / "v.mp4", 72, ticks=ticks)
    for count, stride in ((40, 1), (9, 5), (2, 1)):
        folder = open_folder(count, stride=stride)
        for start in range(72 - folder.span + 1):
            found = numbers(clip_at(folder, start))
            assert np.diff(found).tolist() == [stride] * (count - 1), start
    assert found[-1] >= 70


def test_a_file_without_time_stamps_is_counted_from_its_start(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "v.h264", 30)
    reader = PixelReader("h264", SIZE)
    facts = VideoFacts(30, Fraction(24), SIZE, None, "h264")
    assert numbers(np.stack([reader.read(frame) for frame in islice(frames_from(path, facts, 17), 3)])) == [
        17,
        18,
        19,
    ]


def test_decoding_starts_at_the_key_frame_before_and_ends_with_the_last_frame(videos: Path) -> None:
    path = write_numbered(videos / "v.mp4", COUNT, options={**B_FRAMES, "bf": "0"})
    facts = probe(path, "v.mp4")
    decoded = []
    with opened_video(path) as (container, stream):

        class Watched:
            seek = container.seek

            def demux(self, stream: Any) -> Any:
                for packet in container.demux(stream):
                    decoded.append(packet.pts * facts.fps * Fraction(stream.time_base))
                    yield packet

        frames = frames_after_seek(Watched(), stream, facts, 40)
        assert frames is not None
        assert len(list(islice(frames, 2))) == 2
    assert decoded == [36, 37, 38, 39, 40, 41]  # key frames stand at 0, 12, 24, 36 and 48


def test_the_crop_in_time_is_random_and_reaches_both_ends(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "v.mp4", 8)
    folder = open_folder(5, stride=1)
    starts = {numbers(folder.clip(0, np.random.default_rng(seed)))[0] for seed in range(40)}
    assert starts == {0, 1, 2, 3}
    assert np.array_equal(folder.clip(0, np.random.default_rng(1)), folder.clip(0, np.random.default_rng(1)))


def test_each_clip_draws_its_stride_and_reaches_both_ends_with_it(
    videos: Path, open_folder: OpenFolder
) -> None:
    write_numbered(videos / "v.mp4", 12)
    folder = open_folder(3, stride=5, min_stride=4)
    found = {tuple(numbers(folder.clip(0, np.random.default_rng(seed)))) for seed in range(80)}
    assert found == {
        (start, start + stride, start + 2 * stride) for stride in (4, 5) for start in range(12 - 2 * stride)
    }


def test_a_still_may_be_any_frame(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "v.mp4", 8)
    folder = open_folder(3, stride=2, stills=1.0)
    found = [numbers(folder.clip(0, np.random.default_rng(seed))) for seed in range(80)]
    assert all(len(set(shown)) == 1 and len(shown) == 3 for shown in found)
    assert {shown[0] for shown in found} == set(range(8))
    half = [
        len(set(numbers(open_folder(3, stride=2, stills=0.5).clip(0, np.random.default_rng(seed)))))
        for seed in range(40)
    ]
    assert set(half) == {1, 3} and 8 <= half.count(1) <= 32


# ------------------------------------------------------------------------------------------------ in which shape


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    wanted=st.tuples(st.integers(1, 600), st.integers(1, 600)),
)
def test_resizing_covers_the_size_with_the_aspect_kept(
    height: int, width: int, wanted: tuple[int, int]
) -> None:
    resized = cover_size(height, width, wanted)
    assert resized[0] >= wanted[0]
    assert resized[1] >= wanted[1]
    assert resized[0] == wanted[0] or resized[1] == wanted[1]
    scale = max(wanted[0] / height, wanted[1] / width)
    assert abs(resized[0] - height * scale) <= 0.5 + 1e-9 or resized[0] == wanted[0]
    assert abs(resized[1] - width * scale) <= 0.5 + 1e-9 or resized[1] == wanted[1]


def striped(height: int, width: int) -> Any:
    """A picture whose red grows with x and whose green grows with y, from 0 to 1 over the whole of
    it.
    """
    y, x = np.mgrid[:height, :width].astype(np.float64) + 0.5
    return x / width, y / height


def write_stored(path: Path, picture: Any, rotation: int | None = None) -> Path:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
        format="yuv444p"
    )
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv444p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for pts in range(2):
            frame.pts, frame.time_base = pts, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((96, 160), (48, 48)),
        ((160, 96), (48, 48)),
        ((60, 60), (90, 60)),
        ((40, 80), (64, 32)),
        ((32, 48), (32, 48)),
    ],
)
def test_the_short_side_is_resized_and_the_centre_is_kept(
    videos: Path, open_folder: OpenFolder, stored: tuple[int, int], wanted: tuple[int, int]
) -> None:
    x, y = striped(*stored)
    write_stored(
        videos / "v.mp4", np.stack([40 + 160 * x, 40 + 160 * y, np.full_like(x, 100)], -1).astype(np.uint8)
    )
    clip = open_folder(1, wanted).clip(0, np.random.default_rng(0))
    assert clip.shape == (1, *wanted, 3)
    assert clip.dtype == np.uint8
    scale = max(wanted[0] / stored[0], wanted[1] / stored[1])
    rows = (np.arange(wanted[0]) + 0.5 - wanted[0] / 2) / (
        scale * stored[0]
    ) + 0.5  # a pixel's place in the whole picture, 0..1
    columns = (np.arange(wanted[1]) + 0.5 - wanted[1] / 2) / (scale * stored[1]) + 0.5
    inner = slice(3, -3)  # at the borders of the picture the filter repeats pixels
    assert np.abs(clip[0, inner, inner, 0] - (40 + 160 * columns)[None, inner]).max() < 5
    assert np.abs(clip[0, inner, inner, 1] - (40 + 160 * rows)[inner, None]).max() < 5


def test_fine_detail_does_not_alias_when_it_shrinks(videos: Path, open_folder: OpenFolder) -> None:
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write_stored(videos / "v.mp4", np.repeat(board[..., None], 3, -1))
    clip = open_folder(1, (32, 32)).clip(0, np.random.default_rng(0))
    assert clip.std() < 4  # a filter that did not widen would pick black or white pixels


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_undone(videos: Path, open_folder: OpenFolder, clockwise: int) -> None:
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:32, :16], upright[:32, 16:], upright[32:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = np.rot90(upright, clockwise // 90)  # rot90 turns counter-clockwise, the player turns back
    write_stored(videos / "v.mp4", stored, rotation=-clockwise)
    whole = open_folder(1, (64, 32)).clip(0, np.random.default_rng(0))[0]
    assert np.abs(whole.astype(int) - upright).mean() < 3
    middle = open_folder(1, (16, 16)).clip(0, np.random.default_rng(0))[
        0
    ]  # 32x16 after resizing, rows 8..23 of it
    assert np.abs(middle[2:6, 2:6].astype(int) - (250, 0, 0)).max() < 12
    assert np.abs(middle[10:14, 2:6].astype(int) - (0, 0, 250)).max() < 12


def test_colours_are_read_by_their_tags(videos: Path, open_folder: OpenFolder) -> None:
    """Y = 81, Cb = 90, Cr = 240 in limited range is pure red by BT.601 and another red by BT.709."""

    def shown(name: str, **tags: int) -> Any:
        with av.open(str(videos / name), "w") as container:
            stream: Any = container.add_stream("libx264", rate=24, options={"crf": "0"})
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for tag, value in tags.items():
                setattr(stream.codec_context, tag, value)
            frame = av.VideoFrame(32, 32, "yuv420p")
            for plane, value in zip(frame.planes, (81, 90, 240), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts, frame.time_base = 0, Fraction(1, 24)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        folder = open_folder(1, (32, 32))
        [index] = [index for index in range(len(folder)) if folder.name(index) == name]
        return folder.clip(index, np.random.default_rng(0))[0, 16, 16].astype(int)

    y, cb, cr = (81 - 16) * 255 / 219, (90 - 128) * 255 / 224, (240 - 128) * 255 / 224
    bt601 = np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)
    bt709 = np.clip([y + 1.5748 * cr, y - 0.187324 * cb - 0.468124 * cr, y + 1.8556 * cb], 0, 255)
    assert np.abs(shown("untagged.mp4") - bt601).max() <= 2
    assert np.abs(shown("601.mp4", colorspace=6) - bt601).max() <= 2
    assert np.abs(shown("709.mp4", colorspace=1) - bt709).max() <= 2
    full = np.clip([81 + 1.402 * 112, 81 + 0.344136 * 38 - 0.714136 * 112, 81 - 1.772 * 38], 0, 255)
    assert np.abs(shown("full.mp4", colorspace=6, color_range=2) - full).max() <= 2


# ------------------------------------------------------------------------------------------------ files that are no good


def test_bad_files_are_left_out_each_with_its_reason(videos: Path, open_folder: OpenFolder) -> None:
    good = write_numbered(videos / "good.mp4", 20)
    (videos / "text.mp4").write_text("this is no video\n" * 40)
    (videos / "empty.mp4").touch()
    (videos / "headless.mp4").write_bytes(
        good.read_bytes()[: good.stat().st_size // 2]
    )  # the index of an MP4 stands at its end
    (videos / "notes.txt").write_text("not looked at")
    (videos / ".hidden.mp4").write_text("not looked at")
    (videos / "nowhere.mp4").symlink_to(videos / "missing.mp4")
    write_numbered(videos / "short.mp4", 4)
    folder = open_folder(3, stride=2)
    assert [folder.name(index) for index in range(len(folder))] == ["good.mp4"]
    reasons = {bad.name: bad.reason for bad in folder.unusable}
    assert set(reasons) == {"text.mp4", "empty.mp4", "headless.mp4", "nowhere.mp4", "short.mp4"}
    assert reasons["empty.mp4"] == "the file is empty (0 bytes)"
    assert reasons["short.mp4"] == "it has 4 frames, too few for 3 with a stride of 2 (expected 5 or more)"
    assert "no such file" in reasons["nowhere.mp4"].lower()
    assert all(reason and "\n" not in reason for reason in reasons.values())


def test_a_video_without_pictures_is_left_out(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "good.mp4", 6)
    with av.open(str(videos / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    [bad] = open_folder().unusable
    assert (bad.name, bad.reason) == ("sound.mp4", "it has no video stream")


def test_names_that_are_not_utf8_are_used_and_told_escaped(
    videos: Path, open_folder: OpenFolder, tmp_path: Path
) -> None:
    named = {name: videos / os.fsdecode(name) for name in (b"v\xff.mp4", b"w\xff.mp4")}
    try:
        named[b"w\xff.mp4"].write_text("no video")
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    write_numbered(tmp_path / "v.mp4", 8).rename(named[b"v\xff.mp4"])
    fingerprints = set()
    for _ in range(2):  # the second time from the index
        folder = open_folder()
        assert os.fsencode(folder.name(0)) == b"v\xff.mp4"
        assert str(folder.unusable[0]).startswith(r"'w\udcff.mp4': ")
        fingerprints.add(folder.fingerprint)
    assert len(fingerprints) == 1
    assert numbers(clip_at(folder, 2)) == [2, 3, 4, 5, 6]
    with BatchStream(folder, 1, 0, workers=1) as batches:
        assert next(batches).names == (folder.name(0),)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_left_out(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "good.mp4", 6)
    write_numbered(videos / "locked.mp4", 6).chmod(0)
    [bad] = open_folder().unusable
    assert bad.name == "locked.mp4"
    assert "ermission" in bad.reason


def test_a_file_cut_short_gives_its_good_part_and_is_told_otherwise(
    videos: Path, open_folder: OpenFolder
) -> None:
    whole = write_numbered(videos / "cut.mkv", 60, options={**B_FRAMES, "crf": "1"})
    os.truncate(whole, whole.stat().st_size * 3 // 4)
    folder = open_folder(2)
    assert numbers(clip_at(folder, 3)) == [3, 4]

    faststart = videos / "front.mp4"
    write_numbered(faststart, 60, muxing={"movflags": "faststart"})
    os.truncate(faststart, faststart.stat().st_size * 3 // 4)
    folder = open_folder(2)
    [index] = [index for index in range(len(folder)) if folder.name(index) == "front.mp4"]
    assert numbers(clip_at(folder, 3, index)) == [3, 4]
    with pytest.raises(BadClip, match=r"^'front.mp4': .*(cut short|damaged|nvalid data)") as told:
        clip_at(folder, 58, index)
    assert "\n" not in str(told.value)


def test_a_file_cut_between_two_frames_is_told_where_frames_are_missing(
    videos: Path, open_folder: OpenFolder
) -> None:
    """Nothing there reads like damage: the file just ends. Clips from before the cut would come too
    often, and nobody would know.
    """
    path = write_numbered(
        videos / "v.mp4", 60, options={**B_FRAMES, "bf": "0", "g": "10"}, muxing={"movflags": "faststart"}
    )
    with av.open(str(path)) as container:
        packet = next(islice(container.demux(video=0), 39, None))
        os.truncate(path, packet.pos + packet.size)
    folder = open_folder(20)
    assert numbers(clip_at(folder, 20)) == list(range(20, 40))
    for start in (38, 40):
        with pytest.raises(
            BadClip, match=r"^'v.mp4': it ends before 90% of the time that its header promises"
        ):
            clip_at(folder, start)


def test_a_file_that_vanishes_or_breaks_later_is_skipped_counted_and_told_once(
    videos: Path, open_folder: OpenFolder
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_numbered(videos / name, 8)
    folder = open_folder()
    (videos / "b.mp4").unlink()
    lines: list[str] = []
    with BatchStream(folder, 3, 0, ledger=BadClipLedger(report=lines.append)) as batches:
        for _ in range(4):
            batch = next(batches)
            assert batch.frames.shape == (3, 3, 5, *SIZE)
            assert set(batch.names) <= {"a.mp4", "c.mp4"}
    assert len(lines) == 1
    assert lines[0].startswith("skipped 'b.mp4': ")
    (videos / "a.mp4").unlink()
    (videos / "c.mp4").write_text("no longer a video")
    with (
        BatchStream(folder, 1, 0) as batches,
        pytest.raises(DataError, match="of 3 clips none of them can be used"),
    ):
        next(batches)


def test_files_left_out_count_against_the_limit(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "good.mp4", 8)
    for number in range(3):
        (videos / f"bad{number}.mp4").write_text("no video")
    folder = open_folder()
    lines: list[str] = []
    with BatchStream(folder, 1, 0, ledger=BadClipLedger(3, lines.append)) as batches:
        next(batches)
    assert [line.split("'")[1] for line in lines] == ["bad0.mp4", "bad1.mp4", "bad2.mp4"]
    with pytest.raises(
        DataError, match=r"3 files cannot be used, more than the limit of 2; the last is 'bad2\.mp4'"
    ):
        BatchStream(folder, 1, 0, ledger=BadClipLedger(2))


def test_a_folder_that_gives_nothing_is_one_clear_line(
    videos: Path, open_folder: OpenFolder, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"^no videos below '.*videos'; expected files ending in \.avi, .*\.mp4.*\.y4m$"
    ):
        open_folder()
    (videos / "text.mp4").write_text("no video")
    write_numbered(videos / "short.mp4", 2)
    with pytest.raises(
        DataError,
        match=r"^none of the 2 video files below '.*' can be used; the first is 'short.mp4': it has 2 frames",
    ):
        open_folder()
    with pytest.raises(DataError, match="no such folder of videos"):
        VideoFolder(tmp_path / "missing", 1, SIZE, index_path=tmp_path / "i.json")
    with pytest.raises(DataError, match="is not a folder"):
        VideoFolder(videos / "text.mp4", 1, SIZE, index_path=tmp_path / "i.json")


# ------------------------------------------------------------------------------------------------ the index


def test_the_index_is_kept_used_and_brought_up_to_date(
    videos: Path, open_folder: OpenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.train.data import video_index

    looked_at: list[str] = []
    real = video_index.probe

    def watched(path: Path, name: str) -> Any:
        looked_at.append(name)
        return real(path, name)

    monkeypatch.setattr(video_index, "probe", watched)
    (videos / "deep" / "er").mkdir(parents=True)
    write_numbered(videos / "deep" / "er" / "b.mkv", 9)
    write_numbered(videos / "a.MP4", 8)
    (videos / "c.mp4").write_text("no video")
    seen: list[tuple[int, int]] = []
    first = open_folder(progress=lambda done, total: seen.append((done, total)))
    assert sorted(looked_at) == ["a.MP4", "c.mp4", "deep/er/b.mkv"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    index = json.loads((tmp_path / "run" / "index.json").read_text())
    assert [(file["path"], file.get("frames")) for file in index["files"]] == [
        ("a.MP4", 8),
        ("c.mp4", None),
        ("deep/er/b.mkv", 9),
    ]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["index.json"]
    assert sorted(path.name for path in videos.iterdir()) == ["a.MP4", "c.mp4", "deep"]

    looked_at.clear()
    again = open_folder()
    assert looked_at == ["c.mp4"]  # what was bad may be good now
    assert (
        [again.name(index) for index in range(2)]
        == [first.name(index) for index in range(2)]
        == ["a.MP4", "deep/er/b.mkv"]
    )
    assert np.array_equal(first.clip(1, np.random.default_rng(0)), again.clip(1, np.random.default_rng(0)))
    assert str(again.unusable[0]) == str(first.unusable[0])

    looked_at.clear()
    write_numbered(videos / "c.mp4", 7)
    (videos / "a.MP4").unlink()
    write_numbered(videos / "d.mp4", 6)
    changed = open_folder()
    assert sorted(looked_at) == ["c.mp4", "d.mp4"]
    assert [changed.name(index) for index in range(len(changed))] == ["c.mp4", "d.mp4", "deep/er/b.mkv"]

    looked_at.clear()
    (tmp_path / "run" / "index.json").write_text('{"format": "wfvae video index", "ver')
    open_folder()
    assert sorted(looked_at) == ["c.mp4", "d.mp4", "deep/er/b.mkv"]


def test_a_file_that_was_bad_for_the_moment_is_taken_up_at_the_next_start(
    videos: Path, open_folder: OpenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.train.data import video_index

    for name in ("a.mp4", "b.mp4"):
        write_numbered(videos / name, 8)
    real, looked_at = video_index.probe, list[str]()

    def fails(path: Path, name: str) -> Any:
        looked_at.append(name)
        if name == "b.mp4":
            raise BadClip(name, "Input/output error")
        return real(path, name)

    monkeypatch.setattr(video_index, "probe", fails)
    [bad] = open_folder().unusable
    assert str(bad) == "'b.mp4': Input/output error"
    index = tmp_path / "run" / "index.json"
    written = index.stat().st_mtime_ns
    open_folder()
    assert sorted(looked_at) == ["a.mp4", "b.mp4", "b.mp4"]
    assert index.stat().st_mtime_ns == written  # found as before: there is nothing to write
    monkeypatch.setattr(video_index, "probe", real)
    # Other processes of a run take what the first one found, or they would train on other files.
    assert [len(open_folder(retry_bad=False)), len(open_folder()), len(open_folder(retry_bad=False))] == [
        1,
        2,
        2,
    ]


def test_the_index_is_saved_by_time_and_when_interrupted_and_a_scan_goes_on_where_it_was(
    videos: Path, open_folder: OpenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.train.data import video_index

    names = [f"{number}.mp4" for number in range(8)]
    for name in names:
        write_numbered(videos / name, 5)
    real, real_save = video_index.probe, video_index._save
    seconds, looked_at, saved = [0.0], list[str](), list[int]()

    def watched_probe(path: Path, name: str) -> Any:
        looked_at.append(name)
        return real(path, name)

    def watched(index_path: Path, root: Path, files: Any) -> None:
        saved.append(len(files))
        seconds[0] += 100.0  # writing does not count
        real_save(index_path, root, files)

    def ten_seconds(done: int, total: int) -> None:
        seconds[0] += 10.0
        if done == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(video_index, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(video_index, "probe", watched_probe)
    monkeypatch.setattr(video_index, "_save", watched)
    with pytest.raises(KeyboardInterrupt):
        open_folder(progress=ten_seconds)
    assert saved == [4, 6]
    looked_at.clear()
    assert [name for name, _ in open_folder()._videos] == names
    assert len(looked_at) == 2  # the six that were done first were noted
    assert saved == [4, 6, 8]


def test_a_full_disk_does_not_hide_an_interruption(
    videos: Path, open_folder: OpenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.train.data import video_index

    def full(*_: object) -> None:
        raise ResourceError("cannot write the index")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    write_numbered(videos / "a.mp4", 5)
    monkeypatch.setattr(video_index, "_save", full)
    with pytest.raises(KeyboardInterrupt):
        open_folder(progress=interrupt)


def test_files_are_looked_at_together_and_listed_in_order(
    videos: Path, open_folder: OpenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.train.data import video_index

    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_numbered(videos / name, 5)
    (videos / "d.mp4").write_text("no video")
    (videos / "e.mp4").write_text("no video")
    real, last_is_done = video_index.probe, threading.Event()

    def last_first(path: Path, name: str) -> Any:
        if name == "a.mp4":
            assert last_is_done.wait(20), "one after another"
        try:
            return real(path, name)
        finally:
            if name == "e.mp4":
                last_is_done.set()

    monkeypatch.setattr(video_index, "probe", last_first)
    seen: list[tuple[int, int]] = []
    folder = open_folder(progress=lambda *counts: seen.append(counts))
    assert seen == [(number, 5) for number in range(1, 6)]
    assert [folder.name(index) for index in range(3)] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [bad.name for bad in folder.unusable] == ["d.mp4", "e.mp4"]
    index = json.loads((tmp_path / "run" / "index.json").read_text())
    assert [file["path"] for file in index["files"]] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]


def test_the_index_does_not_go_into_the_data(videos: Path, tmp_path: Path) -> None:
    write_numbered(videos / "a.mp4", 8)
    (tmp_path / "link").symlink_to(videos)
    for place in (videos / "index.json", videos / "x" / "index.json", tmp_path / "link" / "index.json"):
        with pytest.raises(DataError, match="would lie in the data folder"):
            VideoFolder(videos, 1, SIZE, index_path=place)
    assert sorted(path.name for path in videos.iterdir()) == ["a.mp4"]


def test_links_in_a_circle_end(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "a.mp4", 8)
    (videos / "below").mkdir()
    (videos / "below" / "up").symlink_to(videos)
    folder = open_folder()
    assert [folder.name(index) for index in range(len(folder))] == ["a.mp4"]


def test_workers_read_a_folder_like_one_process(videos: Path, open_folder: OpenFolder) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_numbered(videos / name, 20)
    folder = open_folder(3, stride=2)
    with BatchStream(folder, 2, 5) as alone, BatchStream(folder, 2, 5, workers=2) as helped:
        for _ in range(4):
            one, other = next(alone), next(helped)
            assert one.names == other.names
            assert one.frames.equal(other.frames)
            assert all(
                np.diff(numbers(clip.permute(1, 2, 3, 0).numpy())).tolist() == [2, 2] for clip in one.frames
            )


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_levels_of_numbered_frames_are_apart(data: st.DataObject) -> None:
    """What the other tests lean on: neighbouring numbers cannot be taken for each other."""
    number = data.draw(st.integers(0, 71))
    level = FIRST_LEVEL + LEVELS_PER_FRAME * number
    assert numbers(np.full((1, 2, 2, 3), level, np.uint8)) == [number]


def test_a_full_memory_is_not_the_fault_of_a_video() -> None:
    with pytest.raises(MemoryError), refused("good.mp4"):
        raise MemoryError
    with pytest.raises(BadClip, match=r"good\.mp4"), refused("good.mp4"):
        raise OSError(5, "Input/output error")
