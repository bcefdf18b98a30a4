"""Files through the program: the bits of arrays, with size, rate, times, tags and audio kept."""

import threading
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fixtures.program import (
    FPS,
    Frames,
    Program,
    audio_packets,
    clip,
    latents_of,
    load,
    names,
    run_process,
    save,
    start_process,
    tone,
)
from wfvae.runtime import Bundle, Report, decode_video, encode_video, reconstruct_video
from wfvae.runtime.jobs import SEGMENT_FRAMES
from wfvae.runtime.latents.latent_files import open_latents
from wfvae.runtime.media.segmented_writer import SegmentedVideoWriter
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer

NTSC = Fraction(30000, 1001)
NAME = "4x8x8-trilinear"


def through(model: Bundle, frames: Frames) -> tuple[Any, Frames]:
    """Latents and reconstruction of an array."""
    latents = model.encode(frames)
    count, height, width, _ = frames.shape
    decoded: Any = model.decode(latents, frames=count, height=height, width=width)
    return latents, decoded


@pytest.mark.parametrize("video", ["out.mp4", "out/%06d.png"])
def test_interrupted_decode_ends_its_reading_thread(
    bundle: Path, model: Bundle, tmp_path: Path, video: str
) -> None:
    """Also while the error is held, whose traceback refers to the thread's iterator."""
    encode_video(model, save(tmp_path / "in.mp4", clip(61)), tmp_path / "z.zarr")

    def interrupt(done: int, frames: int | None) -> None:
        assert reading_threads()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:
        decode_video(model, tmp_path / "z.zarr", tmp_path / video, chunk=1, progress=interrupt)
    assert held.tb is not None
    assert not reading_threads()


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wfvae-prefetch"]


@pytest.mark.parametrize(
    ("ending", "latents_ending"),
    [(".mp4", ".zarr"), (".mkv", ".npy"), (".webm", ".safetensors"), (".mov", ".zarr"), (".gif", ".npy")],
)
def test_encode_gives_the_latents_of_the_frames(
    program: Program, bundle: Path, model: Bundle, tmp_path: Path, ending: str, latents_ending: str
) -> None:
    video = save(tmp_path / f"in{ending}", clip(14, 30, 50))
    out = tmp_path / f"z{latents_ending}"
    report = program.done("encode", bundle, video, out, "--chunk", 2)
    frames, _, info = load(video)
    assert np.array_equal(latents_of(out), model.encode(frames))
    assert (report["frames"], report["latents"], report["height"], report["width"]) == (14, 5, 30, 50)
    with open_latents(out) as reader:
        facts = reader.info
    assert (facts.frames, facts.height, facts.width, facts.padded_width) == (14, 30, 50, 56)
    for name in ("fps", "time_base", "color_range", "color_space"):
        assert getattr(facts, name) == getattr(info, name)
    assert facts.bundle_hash == model.identity and facts.scale == tuple(model.manifest.model["scale"])
    left = [out.name, f"{out.name}.json"] if latents_ending == ".npy" else [out.name]
    assert names(tmp_path) == sorted([video.name, *left])


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm", ".mov", ".gif"])
def test_decode_writes_the_frames_of_the_latents(
    program: Program, bundle: Path, model: Bundle, tmp_path: Path, ending: str
) -> None:
    video = save(tmp_path / "in.mp4", clip(14, 30, 50), NTSC, color_range="pc", color_space="smpte170m")
    program.done("encode", bundle, video, tmp_path / "z.zarr")
    out = tmp_path / f"out{ending}"
    report = program.done("decode", bundle, tmp_path / "z.zarr", out)
    assert report["frames"] == 14
    source, _, before = load(video)
    frames, times, after = load(out)
    decoded = through(model, source)[1]
    if ending == ".gif":
        same = save(tmp_path / "same.gif", decoded, NTSC)
    else:
        same = tmp_path / f"same{ending}"
        target = OutputVideo(50, 30, NTSC, before.time_base, color_range="pc", color_space="smpte170m")
        with SegmentedVideoWriter(same, target, segment_frames=SEGMENT_FRAMES) as writer:
            writer.write(decoded)
            writer.finish()
        assert after.fps == NTSC
        assert (after.color_range, after.color_space) == ("pc", "smpte170m")
    assert out.read_bytes() == same.read_bytes()
    assert frames.shape == (14, 30, 50, 3)
    if ending in (".mp4", ".mov"):
        assert times == [index / NTSC for index in range(14)]
        assert after.time_base == before.time_base


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_reconstruct_writes_the_reconstruction(
    program: Program, bundle: Path, model: Bundle, tmp_path: Path, ending: str
) -> None:
    colours = {"color_range": "pc", "color_space": "bt709"}
    video = save(tmp_path / "in.mp4", clip(23, 30, 50), Fraction(50), **colours)
    out = tmp_path / f"out{ending}"
    report = program.done("reconstruct", bundle, video, out, "--chunk", 2)
    assert (report["frames"], report["latents"], report["fps"]) == (23, 7, 50.0)
    source, times, before = load(video)
    with open_video_writer(tmp_path / f"same{ending}", OutputVideo.like(before)) as writer:
        writer.write(through(model, source)[1], times)
    assert out.read_bytes() == (tmp_path / f"same{ending}").read_bytes()
    found, found_times, after = load(out)
    assert found.shape == source.shape
    assert (after.fps, after.color_range, after.color_space) == (before.fps, "pc", "bt709")
    if ending == ".mp4":
        assert (found_times, after.time_base) == (times, before.time_base)


@pytest.mark.parametrize("name", [NAME, "8x8x8-trilinear"])
def test_reconstruct_of_any_length_gives_the_bits_of_arrays(
    opened: Callable[..., Bundle], tmp_path: Path, name: str
) -> None:
    model = opened(name)
    for count in range(1, 19):
        source = clip(count, 16, 16)
        save(f"{tmp_path}/in/", source)  # type: ignore[arg-type]
        report = reconstruct_video(model, tmp_path / "in", f"{tmp_path}/out/", chunk=2)
        assert report.frames == count
        assert np.array_equal(load(tmp_path / "out")[0], through(model, source)[1])


def test_variable_frame_rate_is_kept_by_reconstruct_and_reported(
    program: Program, bundle: Path, tmp_path: Path
) -> None:
    steps = [1, 7, 2, 2, 30, 1, 1, 4, 11, 3, 1]
    times = [Fraction(sum(steps[:index]), 100) for index in range(12)]
    video = save(tmp_path / "in.mp4", clip(12), times=times, time_base=Fraction(1, 1000))
    report = program.done("reconstruct", bundle, video, tmp_path / "out.mp4", "--chunk", 1)
    assert report["variable_frame_rate"] is True
    assert load(tmp_path / "out.mp4")[1] == times
    program.done("reconstruct", bundle, video, tmp_path / "out.mkv")
    assert load(tmp_path / "out.mkv")[1] == times  # on Matroska's tick of a millisecond
    assert program.done("inspect", video)["variable_frame_rate"] == 1
    text = program("encode", bundle, video, tmp_path / "z.zarr").out
    assert "variable frame rate: latents keep the average" in text


def test_audio_is_copied_where_the_output_can_hold_it(program: Program, bundle: Path, tmp_path: Path) -> None:
    video = save(tmp_path / "in.mp4", clip(25), audio_from=tone(tmp_path / "tone.m4a"))
    expected = audio_packets(video)
    assert len(expected) > 20
    assert program.done("reconstruct", bundle, video, tmp_path / "out.mp4")["audio"] == "copied"
    assert program.done("encode", bundle, video, tmp_path / "z.zarr")["audio"] == "left out"
    program.done("decode", bundle, tmp_path / "z.zarr", tmp_path / "decoded.mp4", "--audio-from", video)
    assert audio_packets(tmp_path / "out.mp4") == audio_packets(tmp_path / "decoded.mp4") == expected
    assert program.done("reconstruct", bundle, video, f"{tmp_path}/frames/")["audio"] == "left out"
    assert "audio left out" in program("reconstruct", bundle, video, tmp_path / "out.gif").out
    complaint = program.refused("reconstruct", bundle, video, tmp_path / "out.webm")
    assert "cannot hold the aac audio" in complaint and "--no-audio" in complaint
    report = program.done("reconstruct", bundle, video, tmp_path / "out.webm", "--no-audio")
    assert report["audio"] == "left out"
    silent = save(tmp_path / "silent.mp4", clip(5))
    assert program.done("reconstruct", bundle, silent, tmp_path / "out.webm")["audio"] is None


def test_raw_pipes_give_exact_pixels(bundle: Path, model: Bundle, tmp_path: Path) -> None:
    source = clip(10)
    latents, decoded = through(model, source)
    data = source.tobytes()
    raw = ("--raw", "48x32", "--fps", "30000/1001")
    assert run_process("encode", bundle, "-", tmp_path / "z.zarr", *raw, data=data)[::2] == (0, "")
    assert np.array_equal(latents_of(tmp_path / "z.zarr"), latents)
    with open_latents(tmp_path / "z.zarr") as reader:
        assert (reader.info.fps, reader.info.frames) == (NTSC, 10)
    code, out, err = run_process("decode", bundle, tmp_path / "z.zarr", "-", "--container", "rawvideo")
    assert (code, out) == (0, decoded.tobytes())
    assert err.startswith("-: 10 frames")
    both = (*raw, "--container", "rawvideo", "--json")
    code, out, err = run_process("reconstruct", bundle, "-", "-", *both, data=data)
    assert (code, out) == (0, decoded.tobytes())
    assert '"frames": 10' in err


@pytest.mark.slow
def test_broken_pipe_is_reported_in_one_line(bundle: Path, tmp_path: Path) -> None:
    for data, words in (
        (b"", ("--raw", "48x32")),
        (b"hello", ()),
        (b"x" * 5000, ("--raw", "48x32")),  # ends inside a frame
        (save(tmp_path / "in.mp4", clip(3)).read_bytes()[:700], ()),
    ):
        code, out, err = run_process("encode", bundle, "-", tmp_path / "z.zarr", *words, data=data)
        assert (code, out, len(err.splitlines())) == (2, b"", 1), err
        assert "standard input" in err
    store = tmp_path / "y.zarr"
    assert run_process("encode", bundle, tmp_path / "in.mp4", store)[0] == 0
    process = start_process("decode", bundle, store, "-", "--container", "rawvideo")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        err = errors.read().decode()
    assert process.wait(timeout=60) == 2
    assert "pipe was closed" in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(model: Bundle, tmp_path: Path) -> None:
    video = save(tmp_path / "in.mp4", np.concatenate([clip(25, 96, 96)] * 16))  # 11 MB of frames

    process, store, out = psutil.Process(), tmp_path / "z.zarr", tmp_path / "out.mp4"
    jobs: list[Callable[..., Report]] = [
        partial(encode_video, model, video, store, checkpoint_seconds=0.05),
        partial(decode_video, model, store, out, segment_frames=60),
        partial(reconstruct_video, model, video, tmp_path / "r.mp4"),
    ]
    for job in jobs:
        seen: list[tuple[int, int]] = []
        job(progress=lambda done, _, seen=seen: seen.append((done, process.memory_info().rss)))
        early = max(memory for done, memory in seen if done <= 150)
        assert max(memory for _, memory in seen) - early < 5 << 20
    with open_video(out) as reader:
        assert sum(1 for _ in reader) == 400
        assert reader.info.fps == FPS
