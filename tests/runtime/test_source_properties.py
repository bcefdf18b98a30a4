"""What a video states besides its pixels, through the program: kept, or named as lost."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from fixtures.odd_videos import (
    HDR10,
    HLG,
    PQ,
    delayed_video,
    hdr_video,
    interlaced_video,
    two_videos,
    video_with_cover,
)
from fixtures.program import FPS, Program, audio_packets, clip, load, save, tone
from fixtures.videos import moving
from wfvae.runtime.latents.latent_files import open_latents
from wfvae.runtime.media.video_info import VideoInfo

TAGS = ("color_space", "color_range", "color_primaries", "color_transfer")
LIGHT = ("mastering_display", "content_light")
SLOW = pytest.mark.slow
WEBP = b"RIFF\x3a\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02\x00\x00\x00\x1f\x00\x00\x1f\x00\x00"


def fields(info: VideoInfo, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(info, name) for name in names}


def through_program(program: Program, bundle: Path, source: Path, ending: str) -> dict[str, Path]:
    """The video encoded and decoded, and reconstructed."""
    folder = source.parent
    program.done("encode", bundle, source, folder / "z.zarr")
    made = {name: folder / f"{name}{ending}" for name in ("decoded", "reconstructed")}
    program.done("decode", bundle, folder / "z.zarr", made["decoded"])
    program.done("reconstruct", bundle, source, made["reconstructed"])
    return made


@pytest.mark.parametrize(
    ("transfer", "name", "ending"),
    [
        (PQ, "smpte2084", ".mp4"),
        pytest.param(PQ, "smpte2084", ".mkv", marks=SLOW),
        pytest.param(HLG, "arib-std-b67", ".mp4", marks=SLOW),
    ],
)
def test_hdr_tags_and_metadata_are_kept(
    program: Program, bundle: Path, tmp_path: Path, transfer: int, name: str, ending: str
) -> None:
    source = hdr_video(tmp_path / "in.mp4", transfer)
    expected = {"color_space": "bt2020nc", "color_range": "tv", "color_primaries": "bt2020"}
    expected |= {"color_transfer": name, **(HDR10 if transfer == PQ else dict.fromkeys(LIGHT))}
    assert fields(load(source)[2], (*TAGS, *LIGHT)) == expected
    for path in through_program(program, bundle, source, ending).values():
        assert fields(load(path)[2], (*TAGS, *LIGHT)) == expected


@SLOW
def test_hdr_metadata_that_the_output_cannot_hold_are_named(
    program: Program, bundle: Path, tmp_path: Path
) -> None:
    source = hdr_video(tmp_path / "in.mp4")
    report = program.done("reconstruct", bundle, source, tmp_path / "out.webm")
    assert [text for text in report["notices"] if "mastering data are lost" in text]
    assert load(tmp_path / "out.webm")[2].color_transfer == "smpte2084"


@pytest.mark.parametrize("ending", [".ts", *(pytest.param(x, marks=SLOW) for x in (".mp4", ".mkv", ".avi"))])
def test_pixel_aspect_is_kept(program: Program, bundle: Path, tmp_path: Path, ending: str) -> None:
    aspect = Fraction(16, 15)
    source = save(tmp_path / "in.mp4", clip(5), sample_aspect_ratio=aspect)
    assert load(source)[2].sample_aspect_ratio == aspect
    for path in through_program(program, bundle, source, ending).values():
        assert load(path)[2].sample_aspect_ratio == aspect
    report = program.done("reconstruct", bundle, source, tmp_path / "out.webm")
    assert ["16:15" in text for text in report["notices"]] == [True]


def test_pixel_aspect_of_a_rotated_video_is_turned(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)
        for frame in moving(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    frames, _, info = load(source)
    assert (frames.shape[1:3], info.sample_aspect_ratio) == ((64, 48), Fraction(3, 4))


@pytest.mark.parametrize("ending", [".mp4", pytest.param(".mkv", marks=SLOW)])
def test_video_that_begins_after_its_audio_is_decoded_in_step(
    program: Program, bundle: Path, tmp_path: Path, ending: str
) -> None:
    source = delayed_video(tmp_path / "in.mp4", Fraction(1, 2))
    program.done("encode", bundle, source, tmp_path / "z.zarr")
    out = tmp_path / f"out{ending}"
    program.done("decode", bundle, tmp_path / "z.zarr", out, "--audio-from", source)
    program.done("reconstruct", bundle, source, tmp_path / f"r{ending}")
    delays = []
    for path in (source, out, tmp_path / f"r{ending}"):
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            delays.append(
                (video.start_time or 0) * Fraction(video.time_base or 1) - audio_packets(path)[0][0]
            )
    assert max(delays) - min(delays) <= Fraction(2, 1000)
    assert load(source)[2].start == Fraction(1, 2)
    program.done("decode", bundle, tmp_path / "z.zarr", tmp_path / "silent.mp4")
    assert load(tmp_path / "silent.mp4")[1][0] == 0


def test_default_stream_is_read_and_another_on_request(
    program: Program, bundle: Path, tmp_path: Path
) -> None:
    source = two_videos(tmp_path / "in.mkv", [(32, 48), (48, 64)], default=1)
    facts = program.done("inspect", source)
    assert (facts["video_stream"], facts["video_streams"]) == (1, [0, 1])
    assert (facts["height"], facts["width"]) == (48, 64)
    report = program.done("encode", bundle, source, tmp_path / "z.zarr")
    assert (report["height"], report["notices"]) == (48, ["video stream 1 was read, not 0 (--stream)"])
    report = program.done("reconstruct", bundle, source, tmp_path / "out.mp4", "--stream", 0)
    assert report["height"] == 32
    complaint = program.refused("encode", bundle, source, tmp_path / "z.zarr", "--stream", 7)
    assert "no video stream 7; choose one of 0, 1" in complaint
    complaint = program.refused("encode", bundle, tmp_path, tmp_path / "y.zarr", "--stream", 0)
    assert "no container" in complaint


def test_cover_is_never_read(program: Program, bundle: Path, tmp_path: Path) -> None:
    source = video_with_cover(tmp_path / "in.mp4")
    with av.open(str(source)) as container:
        covers = [one.index for one in container.streams.video if one.disposition & Disposition.attached_pic]
        [video] = [one.index for one in container.streams.video if one.index not in covers]
    assert len(covers) == 1
    facts = program.done("inspect", source)
    assert (facts["video_stream"], facts["video_streams"], facts["height"]) == (video, [video], 48)
    complaint = program.refused("encode", bundle, source, tmp_path / "z.zarr", "--stream", covers[0])
    assert f"choose one of {video}" in complaint


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_default_audio_track_stays_the_default(tmp_path: Path, ending: str) -> None:
    sound = tone(tmp_path / "tone.m4a")
    source = tmp_path / f"in{ending}"
    with av.open(str(sound)) as first, av.open(str(sound)) as second, av.open(str(source), "w") as target:
        for index, container in enumerate((first, second)):
            stream = container.streams.audio[0]
            copy = target.add_stream_from_template(stream, opaque=True)
            copy.disposition = Disposition(index)
        for index, container in enumerate((first, second)):
            for packet in container.demux(audio=0):
                if packet.size:
                    packet.stream = target.streams[index]
                    target.mux(packet)
    out = save(tmp_path / f"out{ending}", clip(5), audio_from=source)
    with av.open(str(out)) as container:
        defaults = [bool(one.disposition & Disposition.default) for one in container.streams.audio]
    assert defaults == [False, True]
    assert len(audio_packets(out)) == len(audio_packets(sound))


@pytest.mark.parametrize("tagged", [True, pytest.param(False, marks=SLOW)])
def test_interlaced_video_is_named_and_deinterlaced_on_request(
    program: Program, bundle: Path, tmp_path: Path, tagged: bool
) -> None:
    source = interlaced_video(tmp_path / "in.mp4", tagged=tagged)
    assert program.done("inspect", source)["field_order"] == ("top" if tagged else None)
    report = program.done("encode", bundle, source, tmp_path / "z.zarr")
    assert [("--deinterlace" in text) for text in report["notices"]] == [True] * tagged
    report = program.done("encode", bundle, source, tmp_path / "z.zarr", "--deinterlace")
    assert (report["frames"], report["notices"]) == (5, [])

    def comb(frames: Any) -> float:
        """How much neighbouring rows differ."""
        return float(np.abs(np.diff(frames[2].astype(int), axis=0)).mean())

    woven, times, _ = load(source)
    progressive, same_times, _ = load(source, deinterlace=True)
    assert progressive.shape == woven.shape and same_times == times
    assert comb(progressive) < comb(woven) / 10
    # The bar is where the upper field showed it.
    edges = [int(np.argmax(frame[20, :, 1] > 130)) for frame in progressive]
    assert edges == [4, 12, 20, 28, 36]


def test_rate_above_that_of_gif_is_resampled_with_a_notice(
    program: Program, bundle: Path, tmp_path: Path
) -> None:
    source = save(tmp_path / "in.mp4", clip(24), Fraction(120))
    out = tmp_path / "out.gif"
    report = program.done("reconstruct", bundle, source, out)
    frames, times, _ = load(out)
    assert 9 <= len(frames) <= 11 and Fraction(17, 100) <= times[-1] <= Fraction(1, 5)
    [notice] = report["notices"]
    assert f"{24 - len(frames)} of 24 frames were left out" in notice and "50 frames a second" in notice
    program.done("encode", bundle, source, tmp_path / "z.zarr")
    report = program.done("decode", bundle, tmp_path / "z.zarr", tmp_path / "decoded.gif")
    assert report["notices"] == [notice]
    assert len(load(tmp_path / "decoded.gif")[0]) == len(frames)


def test_animated_webp_is_named_as_what_ffmpeg_cannot_decode(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "in" / "anim.webp"
    path.parent.mkdir()
    path.write_bytes(WEBP + bytes(60))
    for source in (path, path.parent):
        complaint = program.refused("inspect", source)
        assert "animated WebP" in complaint and "convert it" in complaint


@pytest.mark.parametrize(
    "name", ["%04d.mp4", *(pytest.param(x, marks=SLOW) for x in ("50%.mp4", "100%done.mkv", "take %d.gif"))]
)
def test_percent_signs_in_names_of_videos_are_just_characters(
    program: Program, bundle: Path, tmp_path: Path, name: str
) -> None:
    source = save(tmp_path / f"in {name}", clip(5))
    program.done("encode", bundle, source, tmp_path / "50%d.zarr")
    program.done("decode", bundle, tmp_path / "50%d.zarr", tmp_path / name)
    assert len(load(tmp_path / name)[0]) == 5
    with open_latents(tmp_path / "50%d.zarr") as reader:
        assert reader.count == 2


def test_percent_signs_in_patterns_of_images(program: Program, tmp_path: Path) -> None:
    save(tmp_path / "50% off-%03d %s.png", clip(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"50% off-00{n} %s.png" for n in range(3)]
    assert np.array_equal(load(tmp_path)[0], clip(3))
    with pytest.raises(Exception, match="more than one place"):
        save(tmp_path / "%d-%d.png", clip(3))
