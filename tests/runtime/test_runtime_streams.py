"""Streams through exported graphs: any plan gives the bits of one call, and the model's numbers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.program import run_python
from fixtures.streams import (
    at_once,
    failing,
    finish_despite_failures,
    noise,
    passage,
    pieces,
    same_bits,
    step_in_another_thread,
)
from wfvae.errors import BundleError, InputError, ResourceError, StreamingError
from wfvae.model.vae import WFVAE
from wfvae.runtime import Bundle
from wfvae.runtime.pixels import to_float_frames, to_network, to_uint8_frames
from wfvae.runtime.reconstruction import ReconstructionStream
from wfvae.spec.frames import latent_frames

FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
LENGTHS = (1, 2, 8, 9)
SIDES = st.integers(1, 26)
Opened = Callable[..., Bundle]


def as_float(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The same values in [-1, 1]."""
    return (frames.astype(np.float64) / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize("name", FIXTURES)
@given(
    frames=st.integers(1, 22),
    height=SIDES,
    width=SIDES,
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    chunks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    floats=st.booleans(),
)
@settings(max_examples=40)
def test_any_plan_gives_the_bits_of_one_call(
    opened: Opened,
    name: str,
    frames: int,
    height: int,
    width: int,
    sizes: list[int],
    chunks: tuple[int, int],
    floats: bool,
) -> None:
    bundle, clip = opened(name), noise(frames, height, width)
    latents = bundle.encode(clip, chunk=100)
    assert latents.shape[0] == latent_frames(frames, bundle.ratio)
    with bundle.encoder(height=height, width=width, chunk=chunks[0]) as encoder:
        given_out = [encoder.push(piece) for piece in pieces(as_float(clip) if floats else clip, sizes)]
        assert same_bits(np.concatenate([*given_out, encoder.finish()]), latents)
        assert (encoder.frames_seen, encoder.latents_given) == (frames, len(latents))
    whole = bundle.decode(latents, frames=frames, height=height, width=width, chunk=100, pixels="float32")
    assert whole.shape == clip.shape
    with bundle.decoder(
        height=height, width=width, chunk=chunks[1], frames=frames, pixels="float32"
    ) as decoder:
        parts = [decoder.push(piece) for piece in pieces(latents, sizes)]
        assert same_bits(np.concatenate([*parts, decoder.finish()]), whole)
        assert decoder.frames_given == frames


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("frames", LENGTHS)
def test_stream_gives_the_numbers_of_the_model(
    opened: Opened, reference_model: Callable[..., WFVAE], name: str, frames: int
) -> None:
    """With padding, cropping, drops and drains, against whole-clip inference in PyTorch."""
    model, bundle, height, width = reference_model(name), opened(name), 21, 30
    clip = noise(frames, height, width, seed=frames)
    tail = -(frames - 1) % bundle.ratio
    padded = np.pad(clip, ((0, tail), (0, 3), (0, 2), (0, 0)), mode="edge")
    x = torch.from_numpy(as_float(padded)).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        mean = model.encode(x).latent_dist.mean
        decoded = model.decode(mean).sample
    latents = bundle.encode(clip, chunk=2)
    assert latents.shape == (1 + (frames - 1 + tail) // bundle.ratio, mean.shape[1], 3, 4)
    np.testing.assert_allclose(latents, mean[0].transpose(0, 1).numpy(), rtol=0, atol=2e-5)
    expected = decoded[0].permute(1, 2, 3, 0).numpy()[:frames, :height, :width]
    result = bundle.decode(latents, frames=frames, height=height, width=width, chunk=2, pixels="float32")
    assert result.shape == clip.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    rounded = np.clip(np.rint(result * np.float32(127.5) + np.float32(127.5)), 0, 255).astype(np.uint8)
    assert same_bits(bundle.decode(latents, frames=frames, height=height, width=width, chunk=3), rounded)


@pytest.mark.parametrize("name", FIXTURES)
def test_decoder_of_unknown_length_ends_where_finish_says(opened: Opened, name: str) -> None:
    """Frames that are not returned yet can be left out; others cannot be taken back."""
    bundle = opened(name)
    count = 2 * bundle.ratio + 1
    latents = bundle.encode(noise(count, 8, 16))
    whole = bundle.decode(latents)
    assert len(whole) == count
    for frames in (None, count - 1, count - bundle.ratio + 1):
        with bundle.decoder(height=8, width=16) as decoder:
            part = decoder.push(latents)
            if frames is None or frames >= len(part):
                assert same_bits(np.concatenate([part, decoder.finish(frames)]), whole[:frames])
            else:
                message = rf"frames is {frames}, but {len(part)} were returned already"
                with pytest.raises(InputError, match=message):
                    decoder.finish(frames)


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_queued_input_runs_with_the_next_call(model: Bundle, direction: str) -> None:
    source = passage(model, direction, 9)
    with source.open() as stream:
        stream.queue(source.data[:2])
        assert stream.engine_seconds == 0
        parts = [stream.push(source.data[2:]), stream.finish()]
        assert stream.engine_seconds > 0 and stream.finished
    assert source.is_result(parts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pixel_values_are_converted_exactly(dtype: Any) -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    exact = levels[0, ..., 0].astype(np.float64) / 127.5 - 1
    network = to_network(levels)
    assert same_bits(network, np.broadcast_to(exact.astype(np.float32), (1, 3, 16, 16)).copy())
    assert same_bits(to_uint8_frames(network, 16, 16), levels)
    floats = as_float(levels).astype(dtype)
    assert same_bits(to_float_frames(to_network(floats), 16, 16), floats.astype(np.float32))
    outside = np.array([-3, -1.001, 1.001, 7, 0.5 / 127.5], np.float32).reshape(1, 1, 1, 5).repeat(3, axis=1)
    assert to_uint8_frames(outside, 1, 5)[0, 0, :, 0].tolist() == [0, 0, 255, 255, 128]
    assert not to_uint8_frames(np.full((1, 3, 8, 8), np.nan, np.float32), 8, 8).any()
    assert to_uint8_frames(np.full((1, 3, 8, 8), 3e38, np.float32), 8, 8).min() == 255


@given(height=SIDES, width=SIDES, floats=st.booleans())
def test_borders_are_padded_by_repetition_and_cropped(height: int, width: int, floats: bool) -> None:
    frames = noise(2, height, width)
    padding = ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0))
    expected = np.pad(as_float(frames), padding, mode="edge").transpose(0, 3, 1, 2)
    network = to_network(as_float(frames) if floats else frames)
    assert np.array_equal(network, expected)
    assert same_bits(to_uint8_frames(network, height, width), frames)


def test_iterate_reads_no_more_than_the_result_needs(model: Bundle) -> None:
    read = []

    def frames() -> Iterator[npt.NDArray[np.uint8]]:
        for index in range(100):
            read.append(index)
            yield noise(1, 8, 8, seed=index)

    latents = model.encoder(height=8, width=8, chunk=1).iterate(frames())
    decoded = model.decoder(height=8, width=8, chunk=1).iterate(latents)
    assert read == []
    # The first latent gives only frames that are dropped.
    for length, frames_read in ((0, 1), (3, 5), (4, 9)):
        assert len(next(decoded)) == length and len(read) == frames_read
    with model.encoder(height=8, width=8, chunk=2) as encoder:
        assert [len(part) for part in encoder.iterate([noise(30, 8, 8)])] == [2, 2, 2, 2, 1]


MEMORY_SCRIPT = """
import json, sys
import numpy as np, psutil
from wfvae.runtime import open_bundle
bundle = open_bundle(sys.argv[1], provider="cpu", threads=1)
process, sizes, frame = psutil.Process(), [], np.zeros((4, 32, 32, 3), np.uint8)
size = {"height": 32, "width": 32, "chunk": 1}
with bundle.encoder(**size) as encoder, bundle.decoder(**size) as decoder:
    for done in range(4, 2001, 4):
        frame += 1
        decoder.push(encoder.push(frame))
        if done in (100, 2000):
            sizes.append(process.memory_info().rss)
print(json.dumps([sizes, sorted(name for name in sys.modules if name in ("torch", "onnx"))]))
"""


def test_memory_stays_flat_without_torch(exported: Callable[..., Path]) -> None:
    text = run_python(MEMORY_SCRIPT, exported("4x8x8-trilinear"))
    (after_100, after_2000), heavy = json.loads(text)
    assert after_2000 <= 1.05 * after_100
    assert heavy == []


def test_streams_of_two_threads_give_the_bits_of_one(model: Bundle) -> None:
    def work(seed: int) -> None:
        for turn in range(4):
            for direction in ("encoder", "decoder"):
                source = sources[direction, seed]
                with source.open(chunk=1 + turn % 2) as stream:
                    parts = [stream.push(piece) for piece in pieces(source.data, [3])]
                    assert source.is_result([*parts, stream.finish()])

    sources = {
        (direction, seed): passage(model, direction, 33, 40, 24, seed)
        for direction in ("encoder", "decoder")
        for seed in range(2)
    }
    at_once(work)


GOOD = noise(3, 8, 16)
WRONG_FRAMES: list[tuple[Any, str]] = [
    (noise(3, 16, 8), r"frames are 16x8, but this stream is 8x16; open another stream"),
    (noise(3, 8, 17), r"frames are 8x17"),
    (GOOD[0], r"shape \(8, 16, 3\); expected \(T, 8, 16, 3\)"),
    (GOOD[..., :2], r"shape \(3, 8, 16, 2\)"),
    (GOOD.astype(np.int64), r"frames are int64; expected uint8, or floating point"),
    (GOOD.astype(bool), r"frames are bool"),
    ("frames", r"shape \(\)"),
    (as_float(GOOD), r"frames are float32, but those before were uint8; use one type"),
    (np.full((3, 8, 16, 3), np.nan, np.float32), "frames hold NaN or infinite values"),
    (np.full((3, 8, 16, 3), -np.inf, np.float32), "frames hold NaN or infinite values"),
    (np.full((3, 8, 16, 3), 255.0, np.float32), r"from 255 to 255; expected \[-1, 1\]; .*frames / 127.5 - 1"),
    (np.full((3, 8, 16, 3), -1.01), r"from -1.01 to -1.01; expected \[-1, 1\]; .*clamped"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_FRAMES)
@pytest.mark.parametrize("before", [3, 5])
def test_refused_frames_leave_the_stream_unchanged(
    model: Bundle, wrong: Any, message: str, before: int
) -> None:
    """Also right after a step, when nothing is queued (before = 5)."""
    source = passage(model, "encoder", 14, 8, 16)
    with source.open(chunk=2) as encoder:
        parts = [encoder.push(source.data[:before])]
        with pytest.raises(InputError, match=message):
            encoder.push(wrong)
        assert source.is_result([*parts, encoder.push(source.data[before:]), encoder.finish()])


def test_refused_latents_leave_the_stream_unchanged(model: Bundle) -> None:
    latents = model.encode(noise(17, 8, 16))
    holed = latents.copy()
    holed[2, 0, 0, 0] = np.nan
    wrong: list[tuple[Any, str]] = [
        (holed, r"NaN or infinite values, first in latent 2 of these 5"),
        (np.where(np.isnan(holed), np.inf, holed), r"first in latent 2 of these 5"),
        (latents[0], r"shape \(4, 1, 2\); expected \(t, 4, 1, 2\) for a video of 8x16"),
        (latents[:, :3], r"shape \(5, 3, 1, 2\)"),
        (np.zeros((1, 4, 2, 1), np.float32), r"shape \(1, 4, 2, 1\)"),
        (latents.astype(np.int32), r"latents are int32; expected floating point"),
        (latents, r"9 latents were pushed, but a video of 14 frames has 5"),
    ]
    with model.decoder(height=8, width=16, frames=14) as decoder:
        parts = [decoder.push(latents[:4])]
        for array, message in wrong:
            with pytest.raises(InputError, match=message):
                decoder.push(array)
        with pytest.raises(InputError, match="4 latents were pushed for a video of 14 frames, which has 5"):
            decoder.finish()
        for frames, message in ((13, "opened with 14"), (0, "at least 1"), (-1, "at least 1")):
            with pytest.raises(InputError, match=message):
                decoder.finish(frames=frames)
        parts += [decoder.push(latents[4:]), decoder.finish(frames=14)]
    assert same_bits(np.concatenate(parts), model.decode(latents)[:14])


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_finished_or_closed_stream_is_refused(model: Bundle, direction: str) -> None:
    source = passage(model, direction, 9)
    stream, data = source.open(), source.data
    calls = [lambda: stream.push(data), stream.finish, lambda: list(stream.iterate([data]))]
    assert len(stream.push(data[:0])) == 0
    with pytest.raises(InputError, match=r"the stream has no .*; push at least 1 before finish"):
        stream.finish()
    stream.push(data)
    stream.finish()
    for call in calls:
        with pytest.raises(StreamingError, match="the stream is finished; open another one"):
            call()
    stream.close()
    for call in (*calls, stream.snapshot):
        with pytest.raises(StreamingError, match="the stream is closed"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bundle: bundle.encoder(height=8, width=8, chunk=0), "chunk is 0"),
        (lambda bundle: bundle.encoder(height=0, width=8), "0x8; expected at least 1x1"),
        (lambda bundle: bundle.decoder(height=8, width=8, frames=0), "frames is 0"),
        (lambda bundle: bundle.decoder(height=8, width=8, pixels="int8"), "pixels is 'int8'"),
        (lambda bundle: bundle.encode(noise(1, 8, 8)[0]), r"frames have shape \(8, 8, 3\)"),
        (lambda bundle: bundle.decode(np.zeros((4, 2, 2), np.float32)), r"latents have shape \(4, 2, 2\)"),
        (lambda bundle: bundle.encode(noise(0, 8, 8)), "no frames"),
        (lambda bundle: bundle.decode(np.zeros((0, 4, 2, 2), np.float32)), "no latents"),
    ],
)
def test_wrong_option_is_refused(model: Bundle, call: Callable[[Bundle], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(model)


@pytest.mark.parametrize("fail_at", [{1}, {3, 4}, {5}, {2, 3, 6}])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to allocate memory"), RuntimeError("no kernel"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_failed_step_loses_nothing(
    model: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    direction: Any,
    fail_at: set[int],
    late: bool,
    error: BaseException,
) -> None:
    source = passage(model, direction, 22)
    session: Any = model.step_session(direction)
    step = failing(session._session.run_with_iobinding, fail_at, late, error, [])
    monkeypatch.setattr(session._session, "run_with_iobinding", step)
    kinds: Any = (ResourceError, BundleError, KeyboardInterrupt)
    result, failures = finish_despite_failures(source.open(chunk=1), source.data, 9, kinds)
    assert failures == len(fail_at)
    assert same_bits(result, source.expected)


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("first", ["push", "iterate"])
def test_call_from_a_second_thread_is_refused_and_changes_nothing(
    model: Bundle, monkeypatch: pytest.MonkeyPatch, direction: str, first: str
) -> None:
    source = passage(model, direction, 21)
    stream = source.open(chunk=1)
    parts: list[Any] = []

    def work() -> None:
        if first == "push":
            parts.append(stream.push(source.data))
        else:
            parts.extend(stream.iterate([source.data]))

    snapshot = stream.snapshot()
    calls: list[Callable[[], object]] = [
        lambda: stream.push(source.data),
        lambda: stream.queue(source.data),
        lambda: next(stream.iterate([source.data])),
        stream.finish,
        stream.snapshot,
        lambda: stream.restore(snapshot),
    ]
    with step_in_another_thread(stream.session, monkeypatch, work):
        for call in calls:
            with pytest.raises(StreamingError, match="while another thread uses the stream"):
                call()
    assert source.is_result([*parts, *([stream.finish()] if first == "push" else [])])


def test_reconstruction_refuses_a_second_thread(model: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    video, parts = noise(13, 8, 13), []
    stream = ReconstructionStream(model, 8, 13, chunk=1)
    with step_in_another_thread(
        stream.encoder.session, monkeypatch, lambda: parts.append(stream.push(video))
    ):
        for call in (lambda: stream.push(video), stream.finish):
            with pytest.raises(StreamingError, match="another thread"):
                call()
    parts.append(stream.finish())
    assert same_bits(np.concatenate([frames for frames, _ in parts]), video)
