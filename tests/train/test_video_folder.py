"""Clips of a folder of videos: which frames come back, in which shape, and what bad files do."""

import os
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.video_folders import SIZE, OpenFolder
from fixtures.videos import B_FRAMES, numbers, write_numbered
from wfvae.errors import DataError
from wfvae.train.data import BadClip, BatchStream, Strides, VideoFolder
from wfvae.train.data.frame_pixels import PixelReader, cover_size
from wfvae.train.data.video_file import VideoFacts, frames_after_seek, frames_from, opened_video, probe


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


def clip_of(folder: VideoFolder, seed: int = 0, index: int = 0) -> Any:
    return folder.clip(index, np.random.default_rng(seed))


def index_of(folder: VideoFolder, name: str) -> int:
    return [folder.name(index) for index in range(len(folder))].index(name)


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
def test_clip_holds_exactly_the_frames_from_its_start(
    videos: Path, open_folder: OpenFolder, name: str
) -> None:
    write_numbered(videos / name, COUNT, **VIDEOS[name])
    for stride in (1, 2, 3):
        folder = open_folder(4, stride=stride)
        span = 3 * stride + 1
        for start in (0, 1, 11, 12, 13, 14, 23, 24, 31, COUNT - span):
            assert numbers(clip_at(folder, start)) == list(range(start, start + span, stride))
        with pytest.raises(OutOfRangeError):
            clip_at(folder, COUNT - span + 1)


def test_frames_of_varying_duration_are_counted_not_timed(videos: Path, open_folder: OpenFolder) -> None:
    ticks = [40 * number + (15 if number % 3 == 1 else 0) for number in range(COUNT)]
    write_numbered(videos / "v.mp4", COUNT, ticks=ticks)
    folder = open_folder(5, stride=2)
    for start in (0, 7, 20, COUNT - 9):
        found = numbers(clip_at(folder, start))
        assert np.diff(found).tolist() == [2, 2, 2, 2]
        assert abs(found[0] - start) <= 1  # the start is chosen by time


def test_video_whose_frames_become_scarce_is_read_to_its_end(videos: Path, open_folder: OpenFolder) -> None:
    # 40 frames of 10 ms, then 32 of a second: their mean rate puts the last third elsewhere.
    ticks = [10 * number for number in range(40)] + [400 + 1000 * number for number in range(32)]
    write_numbered(videos / "v.mp4", 72, ticks=ticks)
    for count, stride in ((40, 1), (9, 5), (2, 1)):
        folder = open_folder(count, stride=stride)
        for start in range(72 - (count - 1) * stride):
            found = numbers(clip_at(folder, start))
            assert np.diff(found).tolist() == [stride] * (count - 1), start
    assert found[-1] >= 70


def test_file_without_time_stamps_is_counted_from_its_start(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "v.h264", 30)
    reader, facts = PixelReader("h264", SIZE), VideoFacts(30, Fraction(24), SIZE, None, "h264")
    pictures = [reader.read(frame) for frame in islice(frames_from(path, facts, 17), 3)]
    assert numbers(np.stack(pictures)) == [17, 18, 19]


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
    assert decoded == [36, 37, 38, 39, 40, 41]  # key frames are 0, 12, 24, 36 and 48


def test_random_starts_and_strides_reach_both_ends(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "v.mp4", 12)
    folder = open_folder(3, strides=Strides(5, 4))
    found = {tuple(numbers(clip_of(folder, seed))) for seed in range(80)}
    assert found == {(s, s + stride, s + 2 * stride) for stride in (4, 5) for s in range(12 - 2 * stride)}
    assert np.array_equal(clip_of(folder, 1), clip_of(folder, 1))


def test_still_may_be_any_frame(videos: Path, open_folder: OpenFolder) -> None:
    write_numbered(videos / "v.mp4", 8)
    folder = open_folder(3, strides=Strides(2, 2, stills=1.0))
    found = [numbers(clip_of(folder, seed)) for seed in range(80)]
    assert all(len(set(shown)) == 1 and len(shown) == 3 for shown in found)
    assert {shown[0] for shown in found} == set(range(8))
    half = open_folder(3, strides=Strides(2, 2, stills=0.5))
    distinct = [len(set(numbers(clip_of(half, seed)))) for seed in range(40)]
    assert set(distinct) == {1, 3} and 8 <= distinct.count(1) <= 32


SIDES, WANTED = st.integers(1, 3000), st.integers(1, 600)


@given(height=SIDES, width=SIDES, wanted=st.tuples(WANTED, WANTED))
def test_resizing_covers_the_size_with_the_aspect_kept(
    height: int, width: int, wanted: tuple[int, int]
) -> None:
    resized = cover_size(height, width, wanted)
    assert resized[0] >= wanted[0] and resized[1] >= wanted[1]
    assert resized[0] == wanted[0] or resized[1] == wanted[1]
    scale = max(wanted[0] / height, wanted[1] / width)
    assert abs(resized[0] - height * scale) <= 0.5 + 1e-9 or resized[0] == wanted[0]
    assert abs(resized[1] - width * scale) <= 0.5 + 1e-9 or resized[1] == wanted[1]


def striped(height: int, width: int) -> Any:
    """The place of each pixel, x and y, from 0 to 1 over the whole picture."""
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
    [((96, 160), (48, 48)), ((160, 96), (48, 48)), ((60, 60), (90, 60)), ((40, 80), (64, 32)), (SIZE, SIZE)],
)
def test_short_side_is_resized_and_the_centre_is_kept(
    videos: Path, open_folder: OpenFolder, stored: tuple[int, int], wanted: tuple[int, int]
) -> None:
    x, y = striped(*stored)
    picture = np.stack([40 + 160 * x, 40 + 160 * y, np.full_like(x, 100)], -1).astype(np.uint8)
    write_stored(videos / "v.mp4", picture)
    clip = clip_of(open_folder(1, wanted))
    assert (clip.shape, clip.dtype) == ((1, *wanted, 3), np.uint8)
    scale = max(wanted[0] / stored[0], wanted[1] / stored[1])
    # Places of the clip's pixels in the whole picture, 0..1.
    rows, columns = (
        (np.arange(side) + 0.5 - side / 2) / (scale * whole) + 0.5
        for side, whole in zip(wanted, stored, strict=True)
    )
    inner = slice(3, -3)  # at the borders of the picture the filter repeats pixels
    assert np.abs(clip[0, inner, inner, 0] - (40 + 160 * columns)[None, inner]).max() < 5
    assert np.abs(clip[0, inner, inner, 1] - (40 + 160 * rows)[inner, None]).max() < 5


def test_fine_detail_does_not_alias_when_it_shrinks(videos: Path, open_folder: OpenFolder) -> None:
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write_stored(videos / "v.mp4", np.repeat(board[..., None], 3, -1))
    # A filter that did not widen would pick black or white pixels.
    assert clip_of(open_folder(1, (32, 32))).std() < 4


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_undone(videos: Path, open_folder: OpenFolder, clockwise: int) -> None:
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:32, :16], upright[:32, 16:], upright[32:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = np.rot90(upright, clockwise // 90)  # counter-clockwise; the player turns back
    write_stored(videos / "v.mp4", stored, rotation=-clockwise)
    whole = clip_of(open_folder(1, (64, 32)))[0].astype(int)
    assert np.abs(whole - upright).mean() < 3
    middle = clip_of(open_folder(1, (16, 16)))[0].astype(int)  # rows 8..23 of 32x16
    assert np.abs(middle[2:6, 2:6] - (250, 0, 0)).max() < 12
    assert np.abs(middle[10:14, 2:6] - (0, 0, 250)).max() < 12


def test_colours_are_read_by_their_tags(videos: Path, open_folder: OpenFolder) -> None:
    """Y = 81, Cb = 90, Cr = 240 is pure red by BT.601 and another red by BT.709."""

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
        return clip_of(folder, index=index_of(folder, name))[0, 16, 16].astype(int)

    y, cb, cr = (81 - 16) * 255 / 219, (90 - 128) * 255 / 224, (240 - 128) * 255 / 224
    bt601 = np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)
    bt709 = np.clip([y + 1.5748 * cr, y - 0.187324 * cb - 0.468124 * cr, y + 1.8556 * cb], 0, 255)
    full = np.clip([81 + 1.402 * 112, 81 + 0.344136 * 38 - 0.714136 * 112, 81 - 1.772 * 38], 0, 255)
    assert np.abs(shown("untagged.mp4") - bt601).max() <= 2
    assert np.abs(shown("601.mp4", colorspace=6) - bt601).max() <= 2
    assert np.abs(shown("709.mp4", colorspace=1) - bt709).max() <= 2
    assert np.abs(shown("full.mp4", colorspace=6, color_range=2) - full).max() <= 2


def test_bad_files_are_left_out_each_with_its_reason(videos: Path, open_folder: OpenFolder) -> None:
    good = write_numbered(videos / "good.mp4", 20).read_bytes()
    (videos / "text.mp4").write_text("this is no video\n" * 40)
    (videos / "empty.mp4").touch()
    (videos / "headless.mp4").write_bytes(good[: len(good) // 2])  # an MP4 has its index at its end
    (videos / "notes.txt").write_text("not read")
    (videos / ".hidden.mp4").write_text("not read")
    (videos / "nowhere.mp4").symlink_to(videos / "missing.mp4")
    write_numbered(videos / "short.mp4", 4)
    with av.open(str(videos / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    folder = open_folder(3, stride=2)
    assert [folder.name(index) for index in range(len(folder))] == ["good.mp4"]
    reasons = {bad.name.removesuffix(".mp4"): bad.reason for bad in folder.unusable}
    assert set(reasons) == {"text", "empty", "headless", "nowhere", "short", "sound"}
    assert reasons["empty"] == "the file is empty (0 bytes)"
    assert reasons["short"] == "it has 4 frames, too few for 3 with a stride of 2 (expected 5 or more)"
    assert reasons["sound"] == "it has no video stream"
    assert "no such file" in reasons["nowhere"].lower()
    assert all(reason and "\n" not in reason for reason in reasons.values())


def test_names_that_are_not_utf8_are_used_and_printed_escaped(
    videos: Path, open_folder: OpenFolder, tmp_path: Path
) -> None:
    good, bad = (videos / os.fsdecode(name) for name in (b"v\xff.mp4", b"w\xff.mp4"))
    try:
        bad.write_text("no video")
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    write_numbered(tmp_path / "v.mp4", 8).rename(good)
    folders = [open_folder(), open_folder()]  # the second time from the index
    for folder in folders:
        assert os.fsencode(folder.name(0)) == b"v\xff.mp4"
        assert str(folder.unusable[0]).startswith(r"'w\udcff.mp4': ")
    assert folders[0].fingerprint == folders[1].fingerprint
    assert numbers(clip_at(folders[1], 2)) == [2, 3, 4, 5, 6]
    with BatchStream(folders[1], 1, 0, workers=1) as batches:
        assert next(batches).names == (folders[1].name(0),)


@pytest.mark.parametrize(
    ("name", "options"), [("cut.mkv", {}), ("cut.mp4", {"muxing": {"movflags": "faststart"}})]
)
def test_file_cut_short_gives_its_good_part(
    videos: Path, open_folder: OpenFolder, name: str, options: dict[str, Any]
) -> None:
    path = write_numbered(videos / name, 60, options={**B_FRAMES, "crf": "1"}, **options)
    os.truncate(path, path.stat().st_size * 3 // 4)
    folder = open_folder(2)
    assert numbers(clip_at(folder, 3)) == [3, 4]
    if options:  # its header promises the rest
        with pytest.raises(BadClip, match=r"^'cut.mp4': .*(cut short|damaged|nvalid data)") as caught:
            clip_at(folder, 58)
        assert "\n" not in str(caught.value)


def test_file_cut_between_two_frames_is_bad_where_frames_are_missing(
    videos: Path, open_folder: OpenFolder
) -> None:
    """Nothing looks damaged, and clips from before the cut would come too often."""
    options = {**B_FRAMES, "bf": "0", "g": "10"}
    path = write_numbered(videos / "v.mp4", 60, options=options, muxing={"movflags": "faststart"})
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


def test_folder_without_usable_videos_raises_one_line(
    videos: Path, open_folder: OpenFolder, tmp_path: Path
) -> None:
    expected = r"^no videos below '.*videos'; expected files ending in \.avi, .*\.mp4.*\.y4m$"
    with pytest.raises(DataError, match=expected):
        open_folder()
    (videos / "text.mp4").write_text("no video")
    write_numbered(videos / "short.mp4", 2)
    expected = r"^none of the 2 video files below '.*' can be used; the first is 'short.mp4': it has 2 frames"
    with pytest.raises(DataError, match=expected):
        open_folder()
    for root, expected in ((tmp_path / "none", "no such folder"), (videos / "text.mp4", "is not a folder")):
        with pytest.raises(DataError, match=expected):
            VideoFolder(root, 1, SIZE, index_path=tmp_path / "i.json")
