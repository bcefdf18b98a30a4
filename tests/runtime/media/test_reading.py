"""Reading videos, images and pipes: colours, orientation, order, damage and refusals."""

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.videos import (
    FPS,
    Frames,
    distance,
    encode_stored,
    flat,
    load,
    moving,
    one_line,
    picture_of,
    plane_image,
    save,
    tone,
)
from wfvae.errors import MediaError
from wfvae.runtime.media.video_info import OutputVideo, RawVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.train.data.clip_source import BadClip
from wfvae.train.data.video_file import probe

LUMA_WEIGHTS = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114), "bt2020nc": (0.2627, 0.0593)}
"""Of red and blue, by matrix."""


def reference_rgb(yuv: Sequence[float], matrix: str, full: bool) -> npt.NDArray[np.float64]:
    kr, kb = LUMA_WEIGHTS[matrix]
    y, u, v = yuv
    luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    if full:
        luma, cb, cr = y / 255, (u - 128) / 255, (v - 128) / 255
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return (np.array([red, green, blue]) * 255).clip(0, 255)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv422p10le", "gray", "gray10le"])
@pytest.mark.parametrize(("matrix", "number"), [("bt709", 1), ("smpte170m", 6), ("bt2020nc", 9)])
@pytest.mark.parametrize("full", [False, True])
def test_tagged_colours_are_converted_by_their_matrix_and_range(
    tmp_path: Path, pixel_format: str, matrix: str, number: int, full: bool
) -> None:
    is_deep = pixel_format.endswith("10le")
    tags = {"colorspace": number, "color_range": 2 if full else 1}
    is_grey = pixel_format.startswith("gray")
    for yuv in [(81, 90, 200), (145, 54, 60), (41, 200, 110), (126, 128, 128)]:
        yuv = (yuv[0], 128, 128) if is_grey else yuv
        values = [value * 4 if is_deep else value for value in yuv]
        picture = plane_image(pixel_format, values[: 1 if is_grey else 3])
        read, _, info = load(encode_stored(tmp_path / "c.mkv", [picture], "ffv1", "matroska", **tags))
        stated = (info.pixel_format, info.color_space, info.color_range)
        assert stated == (pixel_format, matrix, "pc" if full else "tv")
        assert np.abs(read[0, 8, 8] - reference_rgb(yuv, matrix, full)).max() <= (1.01 if is_deep else 0.51)


@pytest.mark.parametrize(
    ("height", "width", "matrix"), [(16, 16, "smpte170m"), (720, 16, "bt709"), (16, 1280, "bt709")]
)
def test_untagged_matrix_follows_the_size(tmp_path: Path, height: int, width: int, matrix: str) -> None:
    picture = plane_image("yuv420p", (145, 54, 60), height, width)
    path = encode_stored(tmp_path / "c.mp4", [picture], "libx264", "mp4", options={"crf": "1"})
    read, _, info = load(path)
    assert info.color_space is None
    assert np.abs(read[0, 8, 8] - reference_rgb((145, 54, 60), matrix, False)).max() <= 3


def test_alpha_is_blended_over_black(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:] = (200, 100, 50, 128)
    rgba[0] = (255, 255, 255, 0)
    rgba[1] = (10, 20, 30, 255)
    encode_stored(tmp_path / "a.png", [av.VideoFrame.from_ndarray(rgba, format="rgba")], "png", "image2")
    read, _, info = load(tmp_path)
    assert info.pixel_format == "rgba"
    assert read[0, :3, 0].tolist() == [[0, 0, 0], [10, 20, 30], [100, 50, 25]]


def test_palette_colours_are_read_exactly(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [12, 34, 56]], np.uint8)
    frames = colours[np.arange(36).reshape(6, 6) % 3][None]
    assert np.array_equal(load(save(tmp_path / "p.gif", frames))[0], frames)


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_mirroring_are_undone(tmp_path: Path, clockwise: int, mirrored: bool) -> None:
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:24, :16], upright[:24, 16:], upright[24:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = np.ascontiguousarray(np.rot90(upright, clockwise // 90))  # counter-clockwise
    picture = picture_of(stored, "yuv444p")
    turn = {"options": {"crf": "1"}, "rotation": (-clockwise, mirrored)}
    read, _, info = load(encode_stored(tmp_path / "r.mp4", [picture], "libx264", "mp4", **turn))
    assert (info.height, info.width) == upright.shape[:2]
    assert mirrored or info.rotation == clockwise
    assert distance(read, (upright[:, ::-1] if mirrored else upright)[None]) < 3


def test_a_frame_of_another_size_raises_after_the_frames_before_it(tmp_path: Path) -> None:
    path, content = tmp_path / "both.h264", b""
    for height, width in ((48, 64), (64, 96)):
        pictures = [picture_of(frame) for frame in moving(5, height, width)]
        content += encode_stored(path, pictures, "libx264", "h264").read_bytes()
    path.write_bytes(content)
    seen = []
    refused = pytest.raises(MediaError, match=r"^frame 5 .* is 96x64, .* 64x48; split.*$")
    with refused, open_video(path) as reader:
        for frame in reader:
            seen.append(frame.shape)
    assert seen == [(48, 64, 3)] * 5


def test_a_file_that_is_no_video_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 500)
    (tmp_path / "art.mp4").write_bytes(b"\x1b[31mansi\x1b[0m\n" * 500)
    (tmp_path / "random.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "zero.mp4").touch()
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    (tmp_path / "empty").mkdir()
    tone(tmp_path / "sound.mka", codec="libopus", muxer="matroska")
    cases = {
        "text.mp4": "cannot read",
        "art.mp4": "video",
        "random.mkv": "cannot read",
        "zero.mp4": "0 bytes",
        "list.m3u8": "video",
        "none.mp4": "no such file",
        "empty": "no images",
        "sound.mka": r"no video stream \(found: audio\)",
    }
    for name, says in cases.items():
        with pytest.raises(MediaError, match=says) as excinfo:
            open_video(tmp_path / name)
        assert name in one_line(excinfo)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.mp4", "ffconcat version 1.0\nfile 'other.mkv'\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mkv\n#EXT-X-ENDLIST\n"),
    ],
)
def test_file_that_names_another_video_does_not_open_it(tmp_path: Path, name: str, text: str) -> None:
    save(tmp_path / "other.mkv", np.zeros((3, 48, 64, 3), np.uint8))
    (tmp_path / name).write_text(text)
    with pytest.raises(MediaError, match="cannot read"):
        open_video(tmp_path / name)
    with pytest.raises(BadClip):
        probe(tmp_path / name, name)


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.9999])
def test_a_cut_video_gives_its_frames_and_then_the_error(tmp_path: Path, ending: str, kept: float) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"c{ending}", frames)
    whole, _, _ = load(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    got: list[Frames] = []
    with pytest.raises(MediaError) as excinfo, open_video(path) as reader:
        got.extend(reader)
    assert 0 < len(got) <= 30
    assert f" {len(got)} " in one_line(excinfo)
    assert np.array_equal(np.stack(got), whole[: len(got)])
    pieces: list[Frames] = []
    with pytest.raises(MediaError), open_video(path) as reader:
        pieces.extend(reader.chunks(4))
    assert np.array_equal(np.concatenate(pieces), np.stack(got))
    with open_video(path, keep_damaged=True) as reader:
        assert len(list(reader)) >= len(got)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".mp4", ".mkv", ".avi"]), st.data())
def test_damaged_file_gives_frames_or_a_media_error(tmp_path: Path, ending: str, data: st.DataObject) -> None:
    path = save(tmp_path / f"d{ending}", moving(4, 16, 16))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        with open_video(path) as reader:
            for frame in reader:
                assert frame.shape == (reader.info.height, reader.info.width, 3)
    except MediaError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("start", [0, 1, 7, 19, 20])
def test_seek_frames_gives_the_frames_from_there_on(tmp_path: Path, start: int) -> None:
    path = save(tmp_path / "s.mp4", moving(20))
    read, times, _ = load(path)
    with open_video(path) as reader:
        next(iter(reader))
        reader.seek_frames(start)
        rest = list(reader.frames_with_times())
    assert [time for _, time in rest] == times[start:]
    assert all(np.array_equal(frame, read[start + index]) for index, (frame, _) in enumerate(rest))


def test_seek_frames_past_the_end_or_in_a_pipe_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "s.mkv", moving(3))
    with open_video(path) as reader, pytest.raises(MediaError, match="only 3 frames"):
        reader.seek_frames(4)
    with open_video(io.BytesIO(path.read_bytes())) as reader, pytest.raises(MediaError, match="pipe"):
        reader.seek_frames(1)


def test_images_are_read_in_natural_order(tmp_path: Path) -> None:
    frames = moving(12, 9, 7)
    for index, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        encode_stored(tmp_path / f"shot {index} 100%d.png", [picture], "png", "image2")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    read, times, info = load(tmp_path, fps=Fraction(10))
    assert np.array_equal(read, frames)
    assert times == [Fraction(index, 10) for index in range(12)]
    assert (info.frames, info.fps, info.kind, info.time_base) == (12, Fraction(10), "images", None)
    with open_video(tmp_path) as reader:
        assert reader.info.fps == 24
        reader.seek_frames(11)
        assert np.array_equal(next(iter(reader)), frames[11])


def test_images_of_every_format_are_read(tmp_path: Path) -> None:
    formats = ["jpg mjpeg yuvj444p", "bmp bmp bgr24", "tiff tiff rgb24", "webp libwebp bgra"]
    colour = (200, 100, 50)
    for ending, codec, pixel_format in map(str.split, formats):
        picture = picture_of(flat(colour)[0], pixel_format)
        extra = {"color_range": 2} if codec == "mjpeg" else {}
        encode_stored(tmp_path / f"{ending}.{ending}", [picture], codec, "image2", **extra)
    read, _, _ = load(tmp_path)
    assert read.shape == (4, 16, 16, 3)
    assert np.abs(read.astype(int) - colour).max() <= 6


def test_images_that_differ_or_are_broken_are_named(tmp_path: Path) -> None:
    save(tmp_path / "%03d.png", moving(3))
    save(tmp_path / "x" / "%03d.png", moving(1, 16, 16))
    os.replace(tmp_path / "x" / "000.png", tmp_path / "002.png")
    says = r"frame 2 \('002.png'.*16x16, .*64x48"
    with pytest.raises(MediaError, match=says), open_video(tmp_path) as reader:
        list(reader)
    (tmp_path / "001.png").write_text("no image")
    with pytest.raises(MediaError, match=r"001.png' \(frame 1\)"), open_video(tmp_path) as reader:
        list(reader)


class Pipe(io.BytesIO):
    """Bytes that come in small pieces and only once."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        return super().read(1000 if size is None or not 0 <= size <= 1000 else size)


@pytest.mark.parametrize("container", [None, "mp4", "webm", "mpegts", "nut", "rawvideo"])
def test_video_passes_through_pipes(container: str | None) -> None:
    frames, pipe = moving(6, 10, 14), io.BytesIO()
    with open_video_writer(pipe, OutputVideo(14, 10, FPS), container=container) as writer:
        writer.write(frames)
    is_raw = container == "rawvideo"
    read, times, info = load(Pipe(pipe.getvalue()), raw=RawVideo(14, 10, FPS) if is_raw else None)
    assert distance(read, frames) < (1 if is_raw else 8)
    assert (len(times), info.kind) == (6, "raw" if is_raw else "pipe")
    if is_raw:
        assert pipe.getvalue() == frames.tobytes() and times[5] == 5 / FPS


def test_a_raw_pipe_that_ends_inside_a_frame_is_refused() -> None:
    content, layout = bytes(moving(6, 10, 14)), RawVideo(14, 10)
    says = r"inside frame 5: 319 of 420 bytes"
    with pytest.raises(MediaError, match=says), open_video(Pipe(content[:-101]), raw=layout) as reader:
        list(reader)
    with pytest.raises(MediaError, match="gave no data"):
        open_video(Pipe(b""), raw=layout)
