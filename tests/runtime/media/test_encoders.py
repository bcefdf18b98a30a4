"""Encoders that were asked for, in every container: they work, or an error says what to change."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fixtures.odd_videos import transport_stream
from fixtures.program import Program, run_process
from fixtures.videos import distance, like, load, moving, one_line, save
from wfvae.errors import MediaError
from wfvae.runtime.media.encoder_plan import MUXERS
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter

NTSC, TICK = Fraction(30000, 1001), Fraction(1, 90000)
TIMES = [3003 * index * TICK for index in range(5)]
ADVICE = r"; choose another( codec(, or a file ending in \.\w+|$)|, such as libx264)"
USUAL = ("libx264", "mpeg4", "prores_ks", "mjpeg", "ffv1", "mpeg2video")
RARE = (
    "libx264rgb libx265 huffyuv ffvhuff utvideo dnxhd libvpx libvpx-vp9 libsvtav1 png apng flv h263 rawvideo"
    " dvvideo wmv2 qtrle jpeg2000 vc2 cfhd magicyuv cinepak"
)
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in RARE.split()]
NEED_A_DEVICE = ("h264_nvenc", "hevc_nvenc", "h264_qsv", "h264_v4l2m2m")


def has_encoder(name: str) -> bool:
    return name in av.codecs_available


@pytest.mark.parametrize("codec", [*USUAL, *OTHERS])
def test_encoder_works_in_a_container_or_says_what_to_change(tmp_path: Path, codec: str) -> None:
    """With the tick of MPEG-TS, which not every format can store."""
    if not has_encoder(codec):
        pytest.skip(f"this FFmpeg has no {codec}")
    frames, worked = moving(5), 0
    for ending in MUXERS:
        path = tmp_path / f"out{ending}"
        try:
            save(path, frames, NTSC, TIMES, codec=codec, time_base=TICK)
        except MediaError as error:
            with pytest.raises(MediaError, match=ADVICE) as excinfo:
                raise error
            one_line(excinfo)
            assert not path.exists()
            continue
        read, times, _ = load(path)
        assert len(read) == 5 and distance(read, frames) < 8
        assert max(abs(a - b) for a, b in zip(times, TIMES, strict=True)) <= Fraction(1, 1000)
        worked += 1
    assert worked or codec in ("apng", "dnxhd", "h263", "dvvideo", "vc2")  # which have no place or size


@pytest.mark.parametrize("codec", NEED_A_DEVICE)
def test_encoder_without_its_device_is_refused_before_any_work(tmp_path: Path, codec: str) -> None:
    if not has_encoder(codec):
        pytest.skip(f"this FFmpeg has no {codec}")
    try:
        save(tmp_path / "out.mkv", moving(2), codec=codec)
    except MediaError as error:
        assert str(error).startswith(f"the encoder {codec} does not start here")
        assert "choose another, such as libx264" in str(error)
    else:
        assert len(load(tmp_path / "out.mkv")[0]) == 2  # the machine has one


@pytest.mark.parametrize(("codec", "ending"), [("prores_ks", ".mov"), ("mjpeg", ".avi"), ("libx264", ".ts")])
def test_segments_of_any_encoder_are_resumed_and_joined(tmp_path: Path, codec: str, ending: str) -> None:
    frames = moving(11)
    paths = [tmp_path / f"{name}{ending}" for name in ("whole", "parts")]
    for path, stops in zip(paths, ([11], [6, 11]), strict=True):
        for stop in stops:
            with SegmentedVideoWriter(
                path, like(frames, codec=codec), segment_frames=4, resume=True
            ) as writer:
                writer.write(frames[writer.frames_done : stop])
                if stop == 11:
                    writer.finish()
    assert paths[0].read_bytes() == paths[1].read_bytes()
    read = load(paths[0])[0]
    assert read.shape == frames.shape and distance(read, frames) < 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "ending"), [("mpeg4", ".mp4"), ("mpeg4", ".avi"), ("mpeg2video", ".ts"), ("mjpeg", ".mkv")]
)
def test_transport_stream_is_reconstructed_with_any_encoder(
    program: Program, bundle: Path, tmp_path: Path, codec: str, ending: str
) -> None:
    source = tmp_path / "in.ts"
    transport_stream(source)
    out = tmp_path / f"out{ending}"
    options = ["--codec", codec]
    if ending == ".avi":  # the audio of MPEG-TS states its settings in its packets, not in a header
        assert "cannot hold the aac audio" in program.refused("reconstruct", bundle, source, out, *options)
        options += ["--no-audio"]
    report = program.done("reconstruct", bundle, source, out, *options)
    frames, times, _ = load(out)
    assert report["frames"] == len(frames) == 13
    first = 1 if ending == ".avi" else 0  # whose first frame is shown until the video begins
    assert np.ptp(np.diff([float(time) for time in times[first:]])) < 0.0011


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx265", "libsvtav1", "libvpx-vp9"])
def test_encoders_print_nothing(bundle: Path, tmp_path: Path, codec: str) -> None:
    source = save(tmp_path / "in.mp4", moving(5))
    code, _, err = run_process("reconstruct", bundle, source, tmp_path / "out.mkv", "--codec", codec)
    assert (code, err) == (0, "")
