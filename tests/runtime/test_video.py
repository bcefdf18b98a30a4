"""Video in and out, on media made here: what is written is what is read, in content, size, count
and time.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wfvae.errors import InputError, MediaError, ResourceError, WFVAEError
from wfvae.runtime.media.image_folder import natural_key
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.truncation import missing_bytes
from wfvae.runtime.media.video_info import OutputVideo, RawVideo, VideoInfo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer

Array = npt.NDArray[np.uint8]
FPS = Fraction(24)
NTSC = Fraction(30000, 1001)
UNHURRIED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def moving(count: int, height: int = 48, width: int = 64) -> Array:
    """Frames with smooth gradients, whose brightness changes by 11 from frame to frame, so that
    none can be taken for another.
    """
    t, y, x = np.ogrid[:count, :height, :width]
    brightness = (t * 11) % 100
    red = 40 + 60 * x / width + brightness
    green = 60 + 80 * y / height + brightness
    blue = 130 - 40 * (x + y) / (width + height) + brightness
    return np.stack(np.broadcast_arrays(red, green, blue), -1).astype(np.uint8)


def flat(colour: Sequence[int], count: int = 1, height: int = 16, width: int = 16) -> Array:
    return np.broadcast_to(np.array(colour, np.uint8), (count, height, width, 3)).copy()


def save(
    path: Path | str,
    frames: Array,
    fps: Fraction = FPS,
    times: Sequence[Fraction] | None = None,
    **options: Any,
) -> Path:
    with open_video_writer(path, OutputVideo(frames.shape[2], frames.shape[1], fps, **options)) as writer:
        writer.write(frames, times)
    return Path(path)


def load(path: Any, **options: Any) -> tuple[Array, list[Fraction], VideoInfo]:
    with open_video(path, **options) as reader:
        pairs = list(reader.frames_with_times())
        return np.stack([frame for frame, _ in pairs]), [time for _, time in pairs], reader.info


def distance(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean(axis=(1, 2, 3)).max())


def one_line(excinfo: pytest.ExceptionInfo[WFVAEError]) -> str:
    text = str(excinfo.value)
    assert "\n" not in text
    return text


def encode_stored(path: Path, pictures: list[av.VideoFrame], codec: str, muxer: str, **context: Any) -> Path:
    """Encode pictures exactly as they are, tagged with `context`: for what the writer under test
    would not produce.
    """
    with av.open(str(path), "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=24, options=context.pop("options", {}))
        stream.width, stream.height, stream.pix_fmt = (
            pictures[0].width,
            pictures[0].height,
            pictures[0].format.name,
        )
        rotation = context.pop("rotation", None)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for index, picture in enumerate(pictures):
            picture.pts, picture.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def plane_picture(
    pixel_format: str, values: Sequence[int], height: int = 16, width: int = 16
) -> av.VideoFrame:
    """A picture each plane of which holds one value."""
    picture = av.VideoFrame(width, height, pixel_format)
    for plane, value in zip(picture.planes, values, strict=True):
        wide = picture.format.components[0].bits > 8
        count = plane.buffer_size // (2 if wide else 1)
        plane.update(np.full(count, value, np.uint16 if wide else np.uint8).tobytes())
    return picture


# ---------------------------------------------------------------------------------------------- writing, then reading


@UNHURRIED
@given(
    ending=st.sampled_from([".mp4", ".mkv", ".mov", ".webm", ".avi", ".nut", ".gif"]),
    count=st.integers(1, 9),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    split=st.integers(0, 9),
)
def test_size_count_and_content_of_every_container(
    tmp_path: Path, ending: str, count: int, height: int, width: int, split: int
) -> None:
    frames = moving(count, height, width)
    folder = Path(mkdtemp(dir=tmp_path))
    path = folder / f"clip{ending}"
    with open_video_writer(path, OutputVideo(width, height, FPS)) as writer:
        writer.write(frames[:split])
        writer.write(frames[split:])
        assert writer.frames_written == count
    read, times, info = load(path)
    assert read.shape == frames.shape
    assert read.flags.c_contiguous
    assert read.dtype == np.uint8
    assert (
        distance(read, frames) < 20
    )  # two pixels that share one chroma sample may be far from their colours ...
    apart = np.abs(read[:, None].astype(int) - frames[None]).mean(axis=(2, 3, 4))
    assert apart.argmin(axis=1).tolist() == list(range(count))  # ... but each frame is itself and no other
    assert (info.width, info.height, info.kind, info.has_audio) == (width, height, "file", False)
    assert all(later > earlier for earlier, later in pairwise(times))
    assert times[0] == 0
    assert os.listdir(folder) == [path.name]


@pytest.mark.parametrize(
    ("ending", "exact"), [(".mp4", True), (".mov", True), (".nut", True), (".mkv", False), (".webm", False)]
)
@pytest.mark.parametrize("fps", [FPS, NTSC, Fraction(60)])
def test_a_constant_rate_is_kept(tmp_path: Path, ending: str, exact: bool, fps: Fraction) -> None:
    _, times, info = load(save(tmp_path / f"c{ending}", moving(7), fps))
    assert info.fps == fps
    assert not info.variable_frame_rate
    expected = [index / fps for index in range(7)]
    error = max(abs(a - b) for a, b in zip(times, expected, strict=True))
    assert error == 0 if exact else error <= Fraction(1, 1000)  # Matroska counts in milliseconds


@UNHURRIED
@given(st.lists(st.integers(90, 90000), min_size=1, max_size=12), st.integers(1, 5))
def test_a_variable_rate_is_carried_over_exactly(tmp_path: Path, steps: list[int], piece: int) -> None:
    times = [Fraction(int(tick), 90000) for tick in np.cumsum([0, *steps])]
    frames = moving(len(times), 16, 16)
    video = OutputVideo(16, 16, FPS, time_base=Fraction(1, 90000))
    with open_video_writer(tmp_path / "v.mp4", video) as writer:
        for start in range(0, len(frames), piece):
            writer.write(frames[start : start + piece], times[start : start + piece])
    with open_video(tmp_path / "v.mp4") as reader:
        again = OutputVideo.like(reader.info)
        with open_video_writer(tmp_path / "w.mp4", again) as writer:
            for frame, time in reader.frames_with_times():
                writer.write(frame[None], [time])
    read, got, _ = load(tmp_path / "w.mp4")
    assert got == times
    assert distance(read, frames) < 8


def test_a_variable_rate_is_seen_in_the_index(tmp_path: Path) -> None:
    times = [Fraction(tick, 90000) for tick in range(0, 45000, 3000)]
    path = save(
        tmp_path / "v.mp4",
        moving(15, 16, 16),
        times=[*times[:7], *(time + 1 for time in times[7:])],
        time_base=Fraction(1, 90000),
    )
    assert load(path)[2].variable_frame_rate
    assert not load(save(path, moving(15, 16, 16), times=times, time_base=Fraction(1, 90000)))[
        2
    ].variable_frame_rate


def test_times_that_do_not_increase_on_the_tick_are_refused(tmp_path: Path) -> None:
    video = OutputVideo(16, 16, FPS)
    with (
        pytest.raises(MediaError, match=r"frame 1 at 0\.004000 s.*time_base") as excinfo,
        open_video_writer(tmp_path / "v.mp4", video) as writer,
    ):
        writer.write(moving(2, 16, 16), [Fraction(0), Fraction(4, 1000)])
    one_line(excinfo)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("space", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("span", ["tv", "pc"])
@pytest.mark.parametrize("ending", [".mp4", ".webm"])
def test_colours_survive_every_matrix_and_range(tmp_path: Path, space: str, span: Any, ending: str) -> None:
    for colour in [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
        (0, 0, 0),
        (180, 90, 40),
        (13, 128, 200),
    ]:
        path = save(tmp_path / f"c{ending}", flat(colour), color_space=space, color_range=span, crf=1)
        read, _, info = load(path)
        assert (info.color_space, info.color_range) == (space, span)
        assert np.abs(read[0, 8, 8].astype(int) - colour).max() <= 3
        assert OutputVideo.like(info).color_space == space


# ------------------------------------------------------------------------------- reading what other programs have made


def reference_rgb(yuv: Sequence[float], matrix: str, full: bool) -> npt.NDArray[np.float64]:
    kr, kb = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114), "bt2020nc": (0.2627, 0.0593)}[matrix]
    y, u, v = yuv
    luma, cb, cr = (
        (y / 255, (u - 128) / 255, (v - 128) / 255)
        if full
        else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    )
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    rgb: npt.NDArray[np.float64] = np.array([red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue]) * 255
    return rgb.clip(0, 255)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv422p10le"])
@pytest.mark.parametrize(("matrix", "number"), [("bt709", 1), ("smpte170m", 6), ("bt2020nc", 9)])
@pytest.mark.parametrize("full", [False, True])
def test_stored_colours_are_converted_by_their_own_matrix_and_range(
    tmp_path: Path, pixel_format: str, matrix: str, number: int, full: bool
) -> None:
    for yuv in [(81, 90, 200), (145, 54, 60), (41, 200, 110), (126, 128, 128)]:
        stored = [value * 4 for value in yuv] if pixel_format.endswith("10le") else yuv
        picture = plane_picture(pixel_format, stored)
        tags = {"colorspace": number, "color_range": 2 if full else 1}
        path = encode_stored(tmp_path / "c.mkv", [picture], "ffv1", "matroska", **tags)
        read, _, info = load(path)
        assert (info.pixel_format, info.color_space, info.color_range) == (
            pixel_format,
            matrix,
            "pc" if full else "tv",
        )
        assert (
            np.abs(read[0, 8, 8] - reference_rgb(yuv, matrix, full)).max()
            <= 0.51 + (pixel_format == "yuv422p10le") * 0.5
        )


@pytest.mark.parametrize(
    ("height", "width", "matrix"), [(16, 16, "smpte170m"), (720, 16, "bt709"), (16, 1280, "bt709")]
)
def test_untagged_video_is_bt601_below_hd_and_bt709_from_there(
    tmp_path: Path, height: int, width: int, matrix: str
) -> None:
    picture = plane_picture("yuv420p", (145, 54, 60), height, width)
    path = encode_stored(tmp_path / "c.mp4", [picture], "libx264", "mp4", options={"crf": "1"})
    read, _, info = load(path)
    assert info.color_space is None
    assert np.abs(read[0, 8, 8] - reference_rgb((145, 54, 60), matrix, False)).max() <= 3


def test_grey_video_keeps_its_range(tmp_path: Path) -> None:
    for span, expected in ((1, (126 - 16) * 255 / 219), (2, 126)):
        path = encode_stored(
            tmp_path / "g.mkv", [plane_picture("gray", [126])], "ffv1", "matroska", color_range=span
        )
        read, _, info = load(path)
        assert info.pixel_format == "gray"
        assert np.abs(read[0].astype(float) - expected).max() <= 1
    wide = encode_stored(
        tmp_path / "g10.mkv", [plane_picture("gray10le", [504])], "ffv1", "matroska", color_range=1
    )
    assert np.abs(load(wide)[0].astype(float) - (126 - 16) * 255 / 219).max() <= 2


def test_alpha_is_blended_over_black(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:] = (200, 100, 50, 128)
    rgba[0] = (255, 255, 255, 0)
    rgba[1] = (10, 20, 30, 255)
    picture = av.VideoFrame.from_ndarray(rgba, format="rgba")
    (tmp_path / "i").mkdir()
    encode_stored(tmp_path / "i" / "a.png", [picture], "png", "image2")
    read, _, info = load(tmp_path / "i")
    assert info.pixel_format == "rgba"
    assert read[0, 0, 0].tolist() == [0, 0, 0]
    assert read[0, 1, 0].tolist() == [10, 20, 30]
    assert read[0, 2, 0].tolist() == [100, 50, 25]


def test_a_palette_is_resolved(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [12, 34, 56]], np.uint8)
    frames = colours[np.arange(36).reshape(6, 6) % 3][None]
    read, _, _ = load(save(tmp_path / "p.gif", frames))
    assert np.array_equal(read, frames)


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_mirroring_are_undone(tmp_path: Path, clockwise: int, mirrored: bool) -> None:
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:24, :16], upright[:24, 16:], upright[24:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    shown = upright[:, ::-1] if mirrored else upright
    stored = np.ascontiguousarray(
        np.rot90(upright, clockwise // 90)
    )  # rot90 turns counter-clockwise, the player turns back
    picture = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format="yuv444p")
    path = encode_stored(
        tmp_path / "r.mp4", [picture], "libx264", "mp4", options={"crf": "1"}, rotation=(-clockwise, mirrored)
    )
    read, _, info = load(path)
    assert (info.height, info.width) == upright.shape[:2]
    if not mirrored:
        assert info.rotation == clockwise
    assert distance(read, shown[None]) < 3


def test_a_frame_size_that_changes_is_named(tmp_path: Path) -> None:
    parts = []
    for height, width in ((48, 64), (64, 96)):
        pictures = [
            av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            for frame in moving(5, height, width)
        ]
        parts.append(encode_stored(tmp_path / f"{width}.h264", pictures, "libx264", "h264").read_bytes())
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(parts))
    seen = 0
    with (
        pytest.raises(MediaError, match=r"frame 5 .* is 96x64, .* 64x48; split") as excinfo,
        open_video(path) as reader,
    ):
        for frame in reader:
            assert frame.shape == (48, 64, 3)
            seen += 1
    assert seen == 5
    one_line(excinfo)


def test_cover_art_and_audio_are_no_video(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.mka", "libopus", "matroska")
    with pytest.raises(MediaError, match=r"no video stream \(found: audio\)") as excinfo:
        open_video(path)
    one_line(excinfo)


def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 500)
    (tmp_path / "art.mp4").write_bytes(b"\x1b[31mansi\x1b[0m\n" * 500)
    (tmp_path / "random.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "empty").mkdir()
    cases = {
        "text.mp4": "cannot read",
        "art.mp4": "video",
        "random.mkv": "cannot read",
        "zero.mp4": "0 bytes",
        "list.m3u8": "video",
        "none.mp4": "no such file",
        "empty": "no images",
    }
    for name, says in cases.items():
        with pytest.raises(MediaError, match=says) as excinfo:
            open_video(tmp_path / name)
        assert name in one_line(excinfo)


# ---------------------------------------------------------------------------------------------------- damage and resume


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_cut_video_gives_its_frames_and_then_the_error(tmp_path: Path, ending: str, kept: float) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (30, 48, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"c{ending}", frames)
    whole, _, _ = load(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    got: list[Array] = []
    with pytest.raises(MediaError) as excinfo, open_video(path) as reader:
        for frame in reader:
            got.append(frame)
    assert 0 < len(got) < 30
    assert f" {len(got)} " in one_line(excinfo)
    assert np.array_equal(np.stack(got), whole[: len(got)])
    pieces: list[Array] = []
    with pytest.raises(MediaError), open_video(path) as reader:
        pieces.extend(reader.chunks(4))
    assert np.array_equal(
        np.concatenate(pieces), np.stack(got)
    )  # a chunk in the making is given out before the error
    with open_video(path, keep_damaged=True) as reader:
        assert len(list(reader)) >= len(got)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
def test_missing_bytes_are_counted_exactly(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"c{ending}", moving(5))
    assert missing_bytes(path) == 0
    data = path.read_bytes()
    for cut in (1, 100):
        path.write_bytes(data[:-cut])
        assert missing_bytes(path) >= 1


@UNHURRIED
@given(st.sampled_from([".mp4", ".mkv", ".avi"]), st.data())
def test_no_file_however_damaged_ends_in_anything_but_frames_or_a_media_error(
    tmp_path: Path, ending: str, data: st.DataObject
) -> None:
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
def test_going_to_a_frame_is_exact(tmp_path: Path, start: int) -> None:
    path = save(tmp_path / "s.mp4", moving(20))
    read, times, _ = load(path)
    with open_video(path) as reader:
        next(iter(reader))
        reader.seek_frames(start)
        assert reader.position == start
        rest = list(reader.frames_with_times())
    assert [time for _, time in rest] == times[start:]
    assert all(np.array_equal(frame, read[start + index]) for index, (frame, _) in enumerate(rest))


def test_going_past_the_end_or_in_a_pipe_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "s.mkv", moving(3))
    with open_video(path) as reader, pytest.raises(MediaError, match="only 3 frames"):
        reader.seek_frames(4)
    with open_video(io.BytesIO(path.read_bytes())) as reader, pytest.raises(MediaError, match="pipe"):
        reader.seek_frames(1)


# ------------------------------------------------------------------------------------------------------ images and pipes


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
    assert load(tmp_path)[2].fps == 24
    with open_video(tmp_path) as reader:
        reader.seek_frames(11)
        assert np.array_equal(next(iter(reader)), frames[11])


def test_images_of_every_kind_are_read(tmp_path: Path) -> None:
    colour = (200, 100, 50)
    kinds = {
        "a.jpg": ("mjpeg", "yuvj444p"),
        "b.bmp": ("bmp", "bgr24"),
        "c.tiff": ("tiff", "rgb24"),
        "d.webp": ("libwebp", "bgra"),
    }
    for name, (codec, pixel_format) in kinds.items():
        picture = av.VideoFrame.from_ndarray(flat(colour)[0], format="rgb24").reformat(format=pixel_format)
        extra = {"color_range": 2} if codec == "mjpeg" else {}
        encode_stored(tmp_path / name, [picture], codec, "image2", **extra)
    read, _, _ = load(tmp_path)
    assert read.shape == (4, 16, 16, 3)
    assert np.abs(read.astype(int) - colour).max() <= 6


def test_images_that_differ_or_are_broken_are_named(tmp_path: Path) -> None:
    save(tmp_path / "%03d.png", moving(3))
    save(tmp_path / "x" / "%03d.png", moving(1, 16, 16))
    os.replace(tmp_path / "x" / "000.png", tmp_path / "002.png")
    with (
        pytest.raises(MediaError, match=r"frame 2 \('002.png'.*16x16, .*64x48"),
        open_video(tmp_path) as reader,
    ):
        list(reader)
    (tmp_path / "001.png").write_text("no image")
    with pytest.raises(MediaError, match=r"001.png' \(frame 1\)"), open_video(tmp_path) as reader:
        list(reader)


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_natural_order_is_numeric(numbers: list[int]) -> None:
    names = [f"frame{number}.png" for number in numbers]
    assert sorted(names, key=natural_key) == [f"frame{number}.png" for number in sorted(numbers)]


def test_images_are_written_and_an_older_longer_video_does_not_show_through(tmp_path: Path) -> None:
    save(f"{tmp_path}/frames/", moving(6))
    assert sorted(os.listdir(tmp_path / "frames"))[::5] == ["frame-000000.png", "frame-000005.png"]
    (tmp_path / "frames" / "thesis.txt").write_text("x")
    save(f"{tmp_path}/frames/", moving(4)[::-1])
    assert np.array_equal(load(tmp_path / "frames")[0], moving(4)[::-1])
    assert (tmp_path / "frames" / "thesis.txt").exists()
    with pytest.raises(MediaError, match="already holds"):
        open_video_writer(tmp_path / "frames", OutputVideo(64, 48, FPS), overwrite=False)


def test_containers_and_raw_frames_through_pipes(tmp_path: Path) -> None:
    frames = moving(6, 10, 14)
    for container in (None, "mp4", "webm", "mpegts", "nut"):
        pipe = io.BytesIO()
        with open_video_writer(pipe, OutputVideo(14, 10, FPS), container=container) as writer:
            writer.write(frames)
        read, times, info = load(Unseekable(pipe.getvalue()))
        assert distance(read, frames) < 8
        assert (len(times), info.kind) == (6, "pipe")
    pipe = io.BytesIO()
    with open_video_writer(pipe, OutputVideo(14, 10, FPS), container="rawvideo") as writer:
        writer.write(frames)
    assert pipe.getvalue() == frames.tobytes()
    read, times, info = load(Unseekable(pipe.getvalue()), raw=RawVideo(14, 10, NTSC))
    assert np.array_equal(read, frames)
    assert (times[5], info.kind) == (5 / NTSC, "raw")
    with (
        pytest.raises(MediaError, match=r"inside frame 5: 319 of 420 bytes"),
        open_video(Unseekable(pipe.getvalue()[:-101]), raw=RawVideo(14, 10)) as reader,
    ):
        list(reader)
    with pytest.raises(MediaError, match="gave no data"):
        open_video(Unseekable(b""), raw=RawVideo(14, 10))


class Unseekable(io.BytesIO):
    """Bytes that come in small pieces and only once, as from a pipe."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        return super().read(1000 if size is None or not 0 <= size <= 1000 else size)


COPY = """
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.runtime.media.video_info import OutputVideo
import sys
with open_video("-") as reader, open_video_writer("-", OutputVideo.like(reader.info), container=sys.argv[1]) as writer:
    for frame, time in reader.frames_with_times():
        writer.write(frame[None], [time])
assert "torch" not in sys.modules
"""


def test_standard_input_and_output(tmp_path: Path) -> None:
    frames = moving(5)
    source = save(tmp_path / "a.mkv", frames).read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", COPY, "matroska"], input=source, capture_output=True, check=True
    )
    read, _, _ = load(io.BytesIO(done.stdout))
    assert distance(read, frames) < 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("container", ["matroska", "rawvideo"])
def test_a_full_disk_is_one_line(tmp_path: Path, container: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), dtype=np.uint8)
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(ResourceError, match="no space left") as excinfo,
        open_video_writer(full, OutputVideo(64, 48, FPS), container=container) as writer,
    ):
        for _ in range(200):
            writer.write(noise)
    one_line(excinfo)


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = save(tmp_path / "v.mp4", moving(2))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), open_video_writer(path, OutputVideo(64, 48, FPS)) as writer:
        writer.write(moving(5))
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    with (
        pytest.raises(MediaError, match="no frames were written"),
        open_video_writer(path, OutputVideo(64, 48, FPS)),
    ):
        pass
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["v.mp4"]
    with pytest.raises(MediaError, match="already exists"):
        open_video_writer(path, OutputVideo(64, 48, FPS), overwrite=False)


def test_a_disk_that_fills_while_the_file_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(ResourceError, match="no space left"),
        open_video_writer(tmp_path / "v.mp4", OutputVideo(64, 48, FPS)) as writer,
    ):
        writer.write(moving(2))
        monkeypatch.setattr(os, "fsync", fail)
    assert os.listdir(tmp_path) == []


def test_settings_that_do_not_fit_are_refused_before_any_work(tmp_path: Path) -> None:
    good = OutputVideo(64, 48, FPS)
    cases: list[tuple[str, OutputVideo, str]] = [
        ("v.xyz", good, "ending"),
        ("no/v.mp4", good, "does not exist"),
        ("v.mp4", OutputVideo(64, 48, FPS, codec="nonsense"), "choose one of .*libx264"),
        ("v.webm", OutputVideo(64, 48, FPS, codec="libx264"), "cannot hold libx264"),
        ("v.mp4", OutputVideo(63, 48, FPS, pixel_format="yuv420p"), "even sizes"),
        ("v.mp4", OutputVideo(64, 48, FPS, pixel_format="rgb565"), "pixel format"),
        ("v.mp4", OutputVideo(64, 48, FPS, color_space="ycgco"), "matrix 'ycgco'"),
        ("v.mp4", OutputVideo(64, 48, FPS, color_primaries="mine"), "unknown colour primaries"),
        ("v.gif", OutputVideo(64, 48, FPS, crf=3), "no constant-quality"),
        ("%04d.jpg", good, "PNG only"),
        ("v.mp4", OutputVideo(64, 48, FPS, audio_from=tmp_path / "none.wav"), "no such file"),
    ]
    for name, video, says in cases:
        with pytest.raises(WFVAEError, match=says) as excinfo:
            open_video_writer(tmp_path / name, video)
        one_line(excinfo)
    assert os.listdir(tmp_path) == []
    with pytest.raises(MediaError, match="at least 1"):
        OutputVideo(0, 48, FPS)
    with pytest.raises(MediaError, match="unknown output setting"):
        OutputVideo.like(load(save(tmp_path / "v.mkv", moving(1)))[2], colour="red")


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 48, 64, 3), np.float32),
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((1, 64, 48, 3), np.uint8),
        [1, 2],
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, wrong: Any) -> None:
    with (
        pytest.raises(InputError, match="expected uint8"),
        open_video_writer(tmp_path / "v.mp4", OutputVideo(64, 48, FPS)) as writer,
    ):
        writer.write(wrong)
    with (
        pytest.raises(InputError, match="2 times"),
        open_video_writer(tmp_path / "v.mp4", OutputVideo(64, 48, FPS)) as writer,
    ):
        writer.write(moving(3), [Fraction(0), Fraction(1)])


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for ending in (".mp4", ".mkv", ".webm"):
        sums = {
            hashlib.sha256(save(tmp_path / f"{run}{ending}", moving(20)).read_bytes()).hexdigest()
            for run in range(4)
        }
        assert len(sums) == 1


# --------------------------------------------------------------------------------------------------------------- audio


def tone(path: Path, codec: str, muxer: str, seconds: int = 1, start: int = 0, video: bool = False) -> Path:
    """A file with a 440 Hz tone, beginning `start` milliseconds into the file, beside two seconds
    of video if wanted.
    """
    with av.open(str(path), "w", format=muxer) as container:
        picture: Any = container.add_stream("libx264", rate=24) if video else None
        stream: Any = container.add_stream(codec, rate=48000)
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            for index, frame in enumerate(moving(48)):
                shown = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
                shown.pts, shown.time_base = index, Fraction(1, 24)
                container.mux(picture.encode(shown))
            container.mux(picture.encode(None))
        wave = (np.sin(np.arange(48000 * seconds) * 440 * 2 * np.pi / 48000) * 9000).astype(np.int16)
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.codec_context.format, "stereo", 48000, size)
        samples = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
        samples.sample_rate, samples.pts, samples.time_base = 48000, start * 48, Fraction(1, 48000)
        for frame in [*resampler.resample(samples), *resampler.resample(None)]:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def audio_packets(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [
            (packet.pts * Fraction(packet.time_base), bytes(packet))
            for packet in container.demux(stream)
            if packet.size and packet.pts is not None
        ]


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(
    ("codec", "source", "ending"),
    [
        ("aac", "mp4", ".mp4"),
        ("libopus", "matroska", ".webm"),
        ("aac", "mp4", ".mkv"),
        ("pcm_s16le", "matroska", ".mkv"),
    ],
)
def test_audio_packets_are_copied_as_they_are(
    tmp_path: Path, codec: str, source: str, ending: str, segmented: bool
) -> None:
    origin = tone(tmp_path / "source", codec, source, seconds=2, start=250, video=True)
    path = tmp_path / f"out{ending}"
    video = OutputVideo(64, 48, FPS, audio_from=origin)
    if segmented:
        with SegmentedVideoWriter(path, video, segment_frames=10) as parts:
            parts.write(moving(48))
            parts.finish()
    else:
        with open_video_writer(path, video) as writer:
            writer.write(moving(48))
    before, after = audio_packets(origin), audio_packets(path)
    assert [data for _, data in after] == [data for _, data in before]
    assert all(abs(a - b) <= Fraction(1, 1000) for (a, _), (b, _) in zip(after, before, strict=True))
    read, times, info = load(path)
    assert info.has_audio
    assert len(read) == 48
    assert abs(times[-1] - Fraction(47, 24)) <= Fraction(1, 1000)


def test_audio_stays_in_step_with_video_that_begins_later(tmp_path: Path) -> None:
    """MPEG-TS begins at 1.4 s or so; both sides count from the earliest stream."""
    origin = tone(tmp_path / "source.ts", "aac", "mpegts", seconds=1, video=True)
    with open_video(origin) as reader:
        first = next(reader.frames_with_times())[1]
    assert 0 <= first < Fraction(1, 5)
    start = audio_packets(origin)[0][0]
    with av.open(str(origin)) as container:
        stream: Any = container.streams.video[0]
        video_start = stream.start_time * Fraction(stream.time_base)
    read, times, info = load(origin)
    with open_video_writer(tmp_path / "out.mkv", OutputVideo.like(info, audio_from=origin)) as writer:
        writer.write(read, times)
    new_start = audio_packets(tmp_path / "out.mkv")[0][0]
    with av.open(str(tmp_path / "out.mkv")) as container:
        new_video_start = next(container.decode(video=0)).time
    assert abs((new_start - Fraction(new_video_start)) - (start - video_start)) <= Fraction(2, 1000)


def test_audio_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    origin = tone(tmp_path / "a.mp4", "aac", "mp4")
    for name, says in [
        ("v.webm", r"webm file cannot hold the aac audio"),
        ("v.gif", "cannot hold"),
        ("frames/", "cannot hold audio"),
    ]:
        with pytest.raises(MediaError, match=says) as excinfo:
            open_video_writer(f"{tmp_path}/{name}", OutputVideo(64, 48, FPS, audio_from=origin))
        one_line(excinfo)
    with pytest.raises(MediaError, match="webm file cannot hold"):
        SegmentedVideoWriter(
            tmp_path / "v.webm", OutputVideo(64, 48, FPS, audio_from=origin), segment_frames=5
        )
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_audio_can_be_cut_where_a_shortened_video_ends(tmp_path: Path) -> None:
    origin = tone(tmp_path / "a.mp4", "aac", "mp4", seconds=3)
    save(tmp_path / "v.mp4", moving(24), audio_from=origin, audio_end=Fraction(1))
    times = [time for time, _ in audio_packets(tmp_path / "v.mp4")]
    assert Fraction(9, 10) < max(times) < 1


# ------------------------------------------------------------------------------------------------------------ segments


def write_segments(
    path: Path, frames: Array, times: list[Fraction] | None, stop: int | None, piece: int, **options: Any
) -> int:
    """Write frames from where the last run got to, up to `stop` (None: finish). Returns the frame
    this run began at.
    """
    video = OutputVideo(frames.shape[2], frames.shape[1], FPS, **options)
    with SegmentedVideoWriter(path, video, segment_frames=8, resume=True) as writer:
        begin = writer.frames_done
        for start in range(begin, len(frames) if stop is None else stop, piece):
            end = min(start + piece, len(frames) if stop is None else stop)
            writer.write(frames[start:end], None if times is None else times[start:end])
        if stop is None:
            writer.finish()
    return begin


@UNHURRIED
@given(
    ending=st.sampled_from([".mp4", ".mkv", ".webm", ".mov"]),
    count=st.integers(1, 40),
    stops=st.lists(st.integers(0, 39), max_size=3),
    piece=st.integers(1, 11),
    variable=st.booleans(),
)
def test_an_interrupted_run_gives_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, ending: str, count: int, stops: list[int], piece: int, variable: bool
) -> None:
    frames = moving(count, 32, 48)
    steps = np.random.default_rng(count).integers(900, 9000, count)
    times = [Fraction(int(tick), 90000) for tick in np.cumsum(steps) - steps[0]] if variable else None
    options = {"time_base": Fraction(1, 90000)} if variable else {}
    folder = Path(mkdtemp(dir=tmp_path))
    whole, parts = folder / f"whole{ending}", folder / f"parts{ending}"
    write_segments(whole, frames, times, None, 5, **options)
    done = 0
    for stop in sorted(stops):
        begin = write_segments(parts, frames, times, min(stop, count), piece, **options)
        assert begin == done
        done = max(done, min(stop, count) // 8 * 8)
    assert write_segments(parts, frames, times, None, piece, **options) == done
    assert parts.read_bytes() == whole.read_bytes()
    read, got, _ = load(parts)
    assert read.shape == frames.shape
    assert distance(read, frames) < 8
    expected = times or [index / FPS for index in range(count)]
    assert all(
        abs(a - b) <= (Fraction(0) if ending in (".mp4", ".mov") else Fraction(1, 1000))
        for a, b in zip(got, expected, strict=True)
    )
    assert sorted(os.listdir(folder)) == [parts.name, whole.name]


RUN_SEGMENTS = """
import sys, numpy as np
from fractions import Fraction
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
t, y, x = np.ogrid[:96, :48, :64]
frames = np.stack(np.broadcast_arrays(t * 2 + x, t + y, 255 - t + 0 * x), -1).astype(np.uint8)
with SegmentedVideoWriter(sys.argv[1], OutputVideo(64, 48, Fraction(24)), segment_frames=4, resume=True) as writer:
    print(writer.frames_done, flush=True)
    for index in range(writer.frames_done, 96):
        writer.write(frames[index : index + 1])
        print(index, flush=True)
    writer.finish()
"""


def test_killed_runs_come_to_the_same_bytes(tmp_path: Path) -> None:
    def run(path: Path, kill_at: int | None) -> int:
        with subprocess.Popen(
            [sys.executable, "-c", RUN_SEGMENTS, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            begun = int(process.stdout.readline())
            for line in process.stdout:
                if int(line) == kill_at:
                    process.send_signal(signal.SIGKILL)
                    break
        return begun

    run(tmp_path / "whole.mp4", None)
    assert run(tmp_path / "parts.mp4", 30) == 0
    assert not (tmp_path / "parts.mp4").exists()
    assert run(tmp_path / "parts.mp4", 70) >= 24
    assert run(tmp_path / "parts.mp4", None) >= 64
    assert (tmp_path / "parts.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_joining_can_be_repeated_after_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, frames = tmp_path / "v.mp4", moving(20)
    video = OutputVideo(64, 48, FPS)
    with SegmentedVideoWriter(path, video, segment_frames=8) as writer:
        writer.write(frames)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("wfvae.runtime.media.output_container.commit", interrupt_for("v.mp4"))
            writer.finish()
    assert os.listdir(tmp_path) == ["v.mp4.partial"]
    with SegmentedVideoWriter(path, video, segment_frames=8, resume=True) as writer:
        assert writer.frames_done == 16
        writer.write(frames[16:])
        writer.finish()
    assert len(load(path)[0]) == 20


def interrupt_for(name: str) -> Any:
    from wfvae.files import commit

    def interrupted(partial: Path, path: Path) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        commit(partial, path)

    return interrupted


def test_a_run_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with SegmentedVideoWriter(path, OutputVideo(64, 48, FPS), segment_frames=4) as writer:
        writer.write(moving(9))
        assert writer.frames_done == 8
    for video, frames, says in [
        (OutputVideo(64, 48, NTSC), 4, "fps"),
        (OutputVideo(64, 48, FPS, crf=30), 4, "options"),
        (OutputVideo(64, 48, FPS), 5, "segment_frames"),
        (OutputVideo(32, 48, FPS), 4, "size"),
    ]:
        with pytest.raises(MediaError, match=says) as excinfo:
            SegmentedVideoWriter(path, video, segment_frames=frames, resume=True)
        one_line(excinfo)
    with SegmentedVideoWriter(path, OutputVideo(64, 48, NTSC), segment_frames=4, resume=False) as writer:
        assert writer.frames_done == 0


def test_segments_that_were_tampered_with(tmp_path: Path) -> None:
    path, video = tmp_path / "v.mp4", OutputVideo(64, 48, FPS)
    with SegmentedVideoWriter(path, video, segment_frames=4) as writer:
        writer.write(moving(12))
    segment = writer.folder / "segment-000001.json"
    segment.write_text(json.dumps(json.loads(segment.read_text()) | {"frames": 3}))
    with SegmentedVideoWriter(path, video, segment_frames=4, resume=True) as writer:
        assert writer.frames_done == 4  # it, and all behind it, are made again
        writer.write(moving(12)[4:])
        (writer.folder / "segment-000000.nut").write_bytes(
            (writer.folder / "segment-000000.nut").read_bytes()[:-200]
        )
        with pytest.raises(MediaError, match="start over") as excinfo:
            writer.finish()
        one_line(excinfo)
    assert not path.exists()


def test_segments_are_refused_where_they_cannot_be(tmp_path: Path) -> None:
    video = OutputVideo(64, 48, FPS)
    for name in ("-", str(tmp_path), str(tmp_path / "v.gif")):
        with pytest.raises(MediaError):
            SegmentedVideoWriter(name, video, segment_frames=4)
    with pytest.raises(MediaError, match="at least 1"):
        SegmentedVideoWriter(tmp_path / "v.mp4", video, segment_frames=0)
    (tmp_path / "v.mp4.partial").mkdir()
    (tmp_path / "v.mp4.partial" / "thesis.txt").write_text("x")
    with pytest.raises(MediaError, match=r"thesis\.txt"):
        SegmentedVideoWriter(tmp_path / "v.mp4", video, segment_frames=4)
    with (
        pytest.raises(MediaError, match="no frames"),
        SegmentedVideoWriter(tmp_path / "w.mp4", video, segment_frames=4) as writer,
    ):
        writer.finish()


def test_the_output_of_a_resumable_run_is_the_encoders_own(tmp_path: Path) -> None:
    """One segment joined is, packet for packet, what the plain writer makes."""
    frames = moving(14)
    save(tmp_path / "plain.mp4", frames)
    with SegmentedVideoWriter(
        tmp_path / "parts.mp4", OutputVideo(64, 48, FPS), segment_frames=100
    ) as writer:
        writer.write(frames)
        writer.finish()
    assert (tmp_path / "plain.mp4").read_bytes() == (tmp_path / "parts.mp4").read_bytes()
