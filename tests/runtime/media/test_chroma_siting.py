"""Where chroma samples lie: videos are written and read with their format's siting."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from fixtures.videos import encode_stored, load, save
from wfvae.train.data.frame_pixels import PixelReader
from wfvae.train.data.video_file import opened_video

SIDE, PERIOD = 64, 16
INNER = slice(16, 48)
"""Whole periods, away from the borders, which are repeated."""
POSITIONS = {"left": (0.0, 0.5), "topleft": (0.0, 0.0), "center": (0.5, 0.5)}
"""Of the first chroma sample of 4:2:0 video, in pixels (x, y) of the first luma sample's centre."""
Plane = npt.NDArray[np.float64]


def waves(x: Plane, y: Plane) -> Plane:
    return np.sin(2 * np.pi * x / PERIOD)[None] + np.sin(2 * np.pi * y / PERIOD)[:, None]


def shift(values: Plane) -> tuple[float, float]:
    """How far waves lie from where they should, in pixels (x, y)."""

    def along(line: Plane, true: Plane) -> float:
        turns = [np.angle(np.fft.fft(wave[INNER] - wave[INNER].mean())[2]) for wave in (line, true)]
        return float((turns[0] - turns[1] + np.pi) % (2 * np.pi) - np.pi) * PERIOD / (2 * np.pi)

    true = np.sin(2 * np.pi * np.arange(SIDE) / PERIOD)
    return along(values[INNER].mean(0), true), along(values[:, INNER].mean(1), true)


def red_waves() -> npt.NDArray[np.uint8]:
    level = 30 * waves(np.arange(SIDE), np.arange(SIDE))
    return np.rint(np.stack([128 + level, 128 - level / 2, np.full_like(level, 128)], -1)).astype(np.uint8)


def stored_waves(siting: str, pixel_format: str) -> av.VideoFrame:
    """A 4:2:0 frame whose red chroma holds waves as a camera of that siting would sample them."""
    frame, (dx, dy) = av.VideoFrame(SIDE, SIDE, pixel_format), POSITIONS[siting]
    for index, plane in enumerate(frame.planes):
        values = np.full((plane.height, plane.line_size), 128, np.uint8)
        if index == 2:
            half = 2.0 * np.arange(SIDE // 2)
            values[:, : SIDE // 2] = np.rint(128 + 30 * waves(half + dx, half + dy))
        plane.update(values.tobytes())
    return frame


def stored_chroma(path: Path) -> Plane:
    """The red chroma of the first frame, each sample at its left-sited place in a picture."""
    with av.open(str(path)) as container:
        plane = next(container.decode(video=0)).planes[2]
        samples = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
    x, y = POSITIONS["left"]
    rows = [np.interp(np.arange(SIDE), 2 * np.arange(SIDE // 2) + x, row[: SIDE // 2]) for row in samples]
    centres = 2 * np.arange(SIDE // 2) + y
    columns = [np.interp(np.arange(SIDE), centres, column) for column in np.stack(rows).T]
    return np.stack(columns, 1)


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm", ".avi"])
def test_written_chroma_is_left_sited(tmp_path: Path, ending: str) -> None:
    frame = red_waves()
    path = save(tmp_path / f"out{ending}", frame[None], crf=1)
    assert np.abs(shift(stored_chroma(path))).max() < 0.01
    read = load(path)[0][0].astype(float)
    assert np.abs(shift(read[..., 0] - read[..., 1])).max() < 0.01


def test_written_jpeg_chroma_is_centred(tmp_path: Path) -> None:
    path = save(tmp_path / "out.mkv", red_waves()[None], codec="mjpeg", color_range="pc")
    assert shift(stored_chroma(path)) == pytest.approx((0.5, 0), abs=0.05)
    read = load(path)[0][0].astype(float)
    assert np.abs(shift(read[..., 0] - read[..., 1])).max() < 0.05


@pytest.mark.parametrize(
    ("codec", "muxer", "tag", "siting"),
    [
        ("libx264", "mp4", None, "left"),
        ("libx264", "mp4", "topleft", "topleft"),
        ("libx264", "avi", "center", "center"),
        ("ffv1", "avi", None, "left"),
        ("ffv1", "matroska", None, "left"),
        ("ffv1", "matroska", "topleft", "topleft"),
        ("ffv1", "matroska", "center", "center"),
        ("libvpx-vp9", "mp4", None, "left"),
        ("libvpx-vp9", "matroska", None, "left"),
        ("libsvtav1", "matroska", None, "left"),
        ("libsvtav1", "matroska", "topleft", "topleft"),
        ("mjpeg", "avi", None, "center"),
    ],
)
def test_chroma_is_read_as_tagged_and_else_as_its_format_implies(
    tmp_path: Path, codec: str, muxer: str, tag: str | None, siting: str
) -> None:
    picture = stored_waves(siting, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    options = {"crf": "1"} if codec.startswith("lib") else {}
    options |= {"chroma_sample_location": tag} if tag else {}
    context: dict[str, Any] = {"color_range": 2} if codec == "mjpeg" else {}
    path = encode_stored(tmp_path / "in", [picture], codec, muxer, options=options, **context)
    assert np.abs(shift(load(path)[0][0, ..., 0].astype(float))).max() < 0.05
    with opened_video(path) as (container, stream):
        trained_on = PixelReader(codec, (SIDE, SIDE)).read(next(container.decode(stream)))
    assert np.abs(shift(trained_on[..., 0].astype(float))).max() < 0.05
