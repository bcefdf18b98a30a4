"""A folder of videos as people have them: any codec, container, depth, rate and damage."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from wfvae.runtime.media.video_reader import open_video
from wfvae.video.scaling import PictureScaler

Frames = npt.NDArray[np.uint8]
RATE = Fraction(25)
TICK = Fraction(1, 1000)
SOUND_RATE, SOUND_SAMPLES = 48000, 1024


@dataclass(frozen=True)
class Kind:
    """How a file is made from frames."""

    name: str
    suffix: str
    codec: str = "libx264"
    pixels: str = "yuv420p"
    size: tuple[int, int] = (96, 128)
    options: dict[str, str] = field(default_factory=dict)
    times: Callable[[int], int] | None = None
    """Milliseconds of frame n; None: at `RATE`."""
    rotation: int = 0
    sound: bool = False
    damage: Callable[[bytes], bytes] | None = None
    """Changes the finished file."""
    frames: int | None = None


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def _noise(data: bytes) -> bytes:
    """Overwrites 64 bytes in the second half."""
    start = len(data) * 5 // 8
    return data[:start] + np.random.default_rng(len(data)).bytes(64) + data[start + 64 :]


HDR = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
KINDS = (
    Kind("H.264", ".mp4", size=(144, 176)),
    Kind("H.264 with sound", ".mov", sound=True),
    Kind("H.264, 10 bit, HDR", ".mkv", pixels="yuv420p10le", options=HDR),
    Kind("H.264, 4:4:4, odd size", ".mp4", pixels="yuv444p", size=(75, 101)),
    Kind("H.264, interlaced", ".mp4", options={"flags": "+ildct+ilme"}),
    Kind("H.264, rotated", ".mp4", rotation=90),
    Kind("H.264, variable rate", ".mkv", times=lambda n: 40 * n + 137 * (n // 3)),
    Kind("H.264, one frame", ".mp4", frames=1),
    Kind("HEVC, 10 bit", ".mp4", "libx265", "yuv420p10le", options={"x265-params": "log-level=none"}),
    Kind("VP9", ".webm", "libvpx-vp9", size=(90, 120)),
    Kind("MPEG-4", ".avi", "mpeg4"),
    Kind("MPEG-2", ".ts", "mpeg2video"),
    Kind("ProRes, 10 bit", ".mov", "prores_ks", "yuv422p10le"),
    Kind("JPEG", ".avi", "mjpeg", "yuvj422p"),
    Kind("FFV1, grey, 16 bit", ".mkv", "ffv1", "gray16le"),
    Kind("GIF", ".gif", "gif", "rgb8", size=(64, 80)),
    Kind("Matroska, cut short", ".mkv", damage=_cut(0.6)),
    Kind("MP4, cut short", ".mp4", damage=_cut(0.6)),
    Kind("AVI, bytes overwritten", ".avi", "mpeg4", damage=_noise),
    Kind("MPEG-2, bytes overwritten", ".ts", "mpeg2video", damage=_noise),
)
AS_GIVEN, NO_VIDEO = "given", "no video"


def make_mixed_folder(
    folder: Path, clips: Sequence[Path], others: Sequence[Path], frames: int, windows: int
) -> dict[Path, str]:
    """Writes a file of each kind from each window of each clip, and files that are no videos.

    Args:
        clips: videos, which are copied, too.
        others: files that are copied only.
        frames: of a window.
        windows: of a clip, spread over it.

    Returns:
        The kind of each file that has a suffix of videos and is not hidden.
    """
    found: dict[Path, str] = {}
    for number, clip in enumerate(clips):
        below = folder / f"{number} {clip.stem}"
        below.mkdir(parents=True)
        found[Path(shutil.copy(clip, below / clip.name))] = AS_GIVEN
        for window, source in enumerate(_windows(clip, frames, windows)):
            for index, kind in enumerate(KINDS):
                path = below / f"{window}-{index:02d}{kind.suffix}"
                write_kind(kind, source, path)
                found[path] = kind.name
    for name, content in {
        "empty.mp4": b"",
        "text.mkv": b"not a video\n" * 20,
        "100% \u00fc [x] 'q' *.mp4": b"RIFF",
        "line\nbreak.avi": bytes(2000),
        "\udcff\udcfe.webm": b"not a video",  # the name is no UTF-8
    }.items():
        (folder / name).write_bytes(content)
        found[folder / name] = NO_VIDEO
    for path in others:
        found[Path(shutil.copy(path, folder / path.name))] = AS_GIVEN
    (folder / ".hidden.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("not a video")
    return found


def _windows(clip: Path, frames: int, count: int) -> Iterator[Frames]:
    with open_video(clip) as reader:
        pictures = list(reader)
    for start in np.linspace(0, max(0, len(pictures) - frames), count).astype(int):
        yield np.stack(list(islice(pictures, start, start + frames)))


def write_kind(kind: Kind, frames: Frames, path: Path) -> None:
    """Writes frames (T, H, W, 3), scaled to the kind's size, without the project's own writer."""
    scaler = PictureScaler(kind.size, stretch=False)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(kind.codec, rate=RATE, options=dict(kind.options))
        stream.height, stream.width, stream.pix_fmt = *kind.size, kind.pixels
        if kind.times is not None:
            stream.codec_context.time_base = TICK
        if kind.rotation:
            stream.set_display_rotation(kind.rotation)
        sound: Any = container.add_stream("aac", rate=SOUND_RATE) if kind.sound else None
        for index, frame in enumerate(frames[: kind.frames]):
            picture = av.VideoFrame.from_ndarray(scaler.scale(frame), format="rgb24")
            picture = picture.reformat(format=kind.pixels)
            picture.pts, picture.time_base = (
                (index, 1 / RATE) if kind.times is None else (kind.times(index), TICK)
            )
            container.mux(stream.encode(picture))
            if sound is not None:
                silence = av.AudioFrame(format="fltp", layout="stereo", samples=SOUND_SAMPLES)
                for plane in silence.planes:
                    plane.update(bytes(plane.buffer_size))
                silence.sample_rate, silence.pts = SOUND_RATE, index * SOUND_SAMPLES
                container.mux(sound.encode(silence))
        container.mux(stream.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))
    if kind.damage is not None:
        path.write_bytes(kind.damage(path.read_bytes()))
