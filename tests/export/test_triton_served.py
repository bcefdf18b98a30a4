"""Repositories of `wfvae triton`, served by a real Triton server (24.10, on the CPU)."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fixtures.triton_client import EXAMPLE, example
from fixtures.triton_server import SITES, TritonServer, require
from wfvae.export.triton.config import TritonOptions
from wfvae.export.triton.repository import write_repository
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.video.synthetic.clips import ProceduralClip

HEIGHT, WIDTH = 30, 21  # padded to 32x24
NAME = "4x8x8-trilinear"
DIRECTIONS = ("encoder", "decoder")
SLOTS, IDLE = 4, 5
OTHERS = {"fp16": "onnxruntime", "bf16": "openvino"}
"""Backends by precision."""
STAND_IN = Path(__file__).parents[1] / "fixtures" / "triton_stand_in.py"
Opened = Callable[..., Bundle]

pytestmark = pytest.mark.slow


def with_stand_in(repository: Path) -> Path:
    """Lets Python models run the graphs in place of the server's ONNX Runtime backend, which the
    tests' server lacks. All else stays as it was written."""
    for direction in DIRECTIONS:
        folder = repository / f"wfvae_{direction}"
        config = folder / "config.pbtxt"
        text = config.read_text()
        assert 'platform: "onnxruntime_onnx"\ndefault_model_filename: "model.onnx"\n' in text
        text = text.replace('platform: "onnxruntime_onnx"\ndefault_model_filename: "model.onnx"\n', "")
        config.write_text(text + 'backend: "python"\n')
        # The server's Python ignores PYTHONPATH.
        sites = f"import site\nfor folder in {SITES}:\n    site.addsitedir(folder)\n"
        (folder / "1" / "model.py").write_text(sites + STAND_IN.read_text())
    return repository


@pytest.fixture(scope="module", params=["steps", "video"])
def served(
    request: pytest.FixtureRequest, exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server with four slots and an idle time-out of five seconds; it stops without an error.

    `steps`: the server batches and routes the state, as with ONNX Runtime. `video`: the runtime
    does, with the platform python; in the same repository stand models of `OTHERS`.
    """
    require()
    repository = tmp_path_factory.mktemp("served") / "repository"
    options = TritonOptions(gpu=False, max_batch=3, max_sequences=SLOTS, idle_seconds=IDLE)
    if request.param == "steps":
        write_repository(exported(NAME), repository, replace(options, size=(HEIGHT, WIDTH)))
        with_stand_in(repository)
    else:
        options = replace(options, platform="python", threads=1, site_packages=SITES)
        write_repository(exported(NAME), repository, options)
        other = repository.with_name("other")
        for precision, backend in OTHERS.items():
            bundle = exported(NAME, precision=precision)
            write_repository(bundle, other, replace(options, backend=backend, name=precision))
            for direction in DIRECTIONS:
                (other / f"{precision}_{direction}").rename(repository / f"{precision}_{direction}")
            shutil.rmtree(other)
    with TritonServer(repository) as server:
        yield server
        assert server.stop() == 0, server.log[-4000:]
        assert "Traceback" not in server.log


@pytest.fixture
def models(served: TritonServer) -> list[Any]:
    """Encoder and decoder, as the documented client sees them."""
    return models_of(served)


def models_of(served: TritonServer, timeout: float = 30.0, name: str = "wfvae") -> list[Any]:
    server = example.Server(served.url, timeout)
    return [example.Model(server, f"{name}_{direction}") for direction in DIRECTIONS]


def videos(lengths: list[int]) -> list[Any]:
    random = np.random.default_rng(len(lengths))
    return [random.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8) for length in lengths]


def streamed(bundle: Bundle, video: Any) -> Any:
    return bundle.decode(bundle.encode(video), frames=len(video), height=HEIGHT, width=WIDTH)


def reconstruct(models: list[Any], video: Any, step: int) -> Any:
    pieces = np.array_split(video, 1 + len(video) // 5)
    return np.concatenate(list(example.reconstruct(*models, iter(pieces), (HEIGHT, WIDTH), step)))


def write_video(path: Path, frames: int) -> Any:
    video = ProceduralClip(0, HEIGHT, WIDTH, frames).frames(0, frames)
    lossless = OutputVideo(WIDTH, HEIGHT, Fraction(25), codec="ffv1", pixel_format="bgr0")
    with open_video_writer(path, lossless) as writer:
        writer.write(video)
    return video


def program(served: TritonServer, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLE), *map(str, arguments), "--url", served.url]


def slots_are_free(served: TritonServer) -> None:
    """As many streams as there are slots can begin at once, and end."""
    [encoder, _] = models_of(served, timeout=10)
    streams = [encoder.open(HEIGHT, WIDTH, 1) for _ in range(SLOTS)]
    [video] = videos([9])
    for stream in streams:
        list(stream.push(video))
    for stream in streams:
        list(stream.finish())


def test_interleaved_clients_get_bits_of_runtime(served: TritonServer, opened: Opened) -> None:
    """More clients than slots, so that some wait."""
    lengths, steps = [1, 2, 5, 13, 22, 37], [2, 1, 2, 1, 2, 3]
    clips = videos(lengths)
    with ThreadPoolExecutor(len(clips)) as pool:
        each = [models_of(served) for _ in clips]
        results = list(pool.map(reconstruct, each, clips, steps))
    for video, result in zip(clips, results, strict=True):
        assert np.array_equal(result, streamed(opened(NAME), video))
    slots_are_free(served)


def test_program_reconstructs_file_to_file(served: TritonServer, opened: Opened, tmp_path: Path) -> None:
    video = write_video(tmp_path / "in.mkv", 11)
    (tmp_path / "out").mkdir()
    command = program(served, tmp_path / "in.mkv", tmp_path / "out", "--latents", 2, "--warm-up")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with open_video(tmp_path / "out") as reader:
        assert np.array_equal(np.stack(list(reader)), streamed(opened(NAME), video))


def test_unknown_model_is_reported_on_one_line(served: TritonServer) -> None:
    command = program(served, "in.mkv", "out.mkv", "--name", "other")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "other_encoder" in done.stderr and "unknown model" in done.stderr


def test_full_server_limits_wait_and_serves_again(served: TritonServer, opened: Opened) -> None:
    [encoder, decoder] = models_of(served, timeout=1)
    [video] = videos([13])
    holders = [encoder.open(HEIGHT, WIDTH, 1) for _ in range(SLOTS)]
    for holder in holders:
        next(iter(holder.push(video)))
    with pytest.raises(example.ServerError, match="no answer within 1 s; a stream waits while all slots"):
        reconstruct([encoder, decoder], video, 1)
    for holder in holders:
        holder.close()
    assert np.array_equal(reconstruct(models_of(served), video, 2), streamed(opened(NAME), video))


def test_killed_and_silent_clients_free_their_slots(
    served: TritonServer, opened: Opened, tmp_path: Path
) -> None:
    """Meanwhile, another client gets the bits of the runtime."""
    [video] = videos([37])
    silent = models_of(served)[0].open(HEIGHT, WIDTH, 1)
    next(iter(silent.push(video)))
    write_video(tmp_path / "in.mkv", 400)
    command = program(served, tmp_path / "in.mkv", tmp_path / "out.mkv", "--latents", 1)
    with subprocess.Popen(command) as killed, ThreadPoolExecutor(1) as pool:
        try:
            while not list(tmp_path.glob(".out*")):
                assert killed.poll() is None
                time.sleep(0.02)
            other = pool.submit(reconstruct, models_of(served), video, 2)
        finally:
            killed.kill()
    assert np.array_equal(other.result(), streamed(opened(NAME), video))
    time.sleep(IDLE + 1)
    slots_are_free(served)
    with pytest.raises(example.ServerError, match=r"must specify the START flag|start it again"):
        list(silent.push(video))


def test_stream_continues_after_failed_request(models: list[Any], opened: Opened) -> None:
    """A refused request leaves the sequence open, and its state as it was."""
    [video] = videos([13])
    encoder = models[0]
    with encoder.open(HEIGHT, WIDTH, 1) as stream:
        parts = list(stream.push(video))
        wrong = np.zeros((1, 3, 3, 32, 24), np.float32)
        message = "Concat|concat|shape"
        if encoder.takes_video:
            wrong, message = np.zeros((1, 3, 8, 8, 3), np.uint8), "frames are 8x8, but this stream is 30x21"
        with pytest.raises(example.ServerError, match=message):
            encoder.server.infer(encoder, wrong, stream._sequence, False, False)
        parts += stream.finish()
    assert np.array_equal(np.concatenate(parts), opened(NAME).encode(video))


video_only = pytest.mark.parametrize("served", ["video"], indirect=True)


@video_only
def test_one_repository_serves_many_sizes(models: list[Any], opened: Opened) -> None:
    """At once, with requests that return nothing, and with one of another length each."""
    random, bundle = np.random.default_rng(5), opened(NAME)
    shapes = [(9, 30, 21), (14, 16, 16), (1, 40, 24), (22, 16, 16)]
    clips = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]

    def client(video: Any) -> Any:
        count, height, width, _ = video.shape
        encoder, decoder = models
        with encoder.open(height, width, 1) as stream:
            pieces = np.array_split(video, count)  # frame by frame: most answers are empty
            latents = [part for piece in pieces for part in stream.push(piece)]
            latents = np.concatenate([*latents, *stream.finish()])
        with decoder.open(height, width, 3) as stream:
            frames = np.concatenate([*stream.push(latents), *stream.finish(count)])
        return latents, frames

    with ThreadPoolExecutor(len(clips)) as pool:
        for video, (latents, frames) in zip(clips, pool.map(client, clips), strict=True):
            count, height, width, _ = video.shape
            assert np.array_equal(latents, bundle.encode(video))
            expected = bundle.decode(latents, frames=count, height=height, width=width)
            assert np.array_equal(frames, expected)


@video_only
@pytest.mark.parametrize(("precision", "backend"), OTHERS.items())
def test_models_of_other_precisions_and_engines_give_bits_of_runtime(
    served: TritonServer, exported: Callable[..., Path], precision: str, backend: str
) -> None:
    [video] = videos([22])
    with open_bundle(exported(NAME, precision=precision), backend=backend, threads=1) as bundle:
        expected = streamed(bundle, video)
    assert np.array_equal(reconstruct(models_of(served, name=precision), video, 3), expected)


@video_only
def test_clients_get_error_texts_of_runtime(models: list[Any]) -> None:
    encoder, decoder = models
    server, latents = decoder.server, np.zeros((1, 2, 4, 4, 3), np.float32)

    def refused(model: Any, x: Any, sequence: int, message: str, **settings: int) -> None:
        with pytest.raises(example.ServerError, match=message):
            server.infer(model, x, sequence, True, True, **settings)

    refused(decoder, latents, 1, "2 latents were pushed for a video of 9 frames, which has 3", frames=9)
    refused(decoder, latents, 2, "frames is 0; expected an integer of at least 1", frames=0)
    refused(decoder, np.full_like(latents, np.nan), 3, "latents hold NaN or infinite values")
    refused(encoder, np.zeros((1, 0, 16, 16, 3), np.uint8), 4, "the stream has no frames")


def test_open_sequence_delays_stop(exported: Callable[..., Path], tmp_path: Path) -> None:
    """By `--exit-timeout-secs`, after which the server reports an error."""
    require()
    repository = tmp_path / "repository"
    write_repository(exported(NAME), repository, TritonOptions(size=(HEIGHT, WIDTH), gpu=False))
    with_stand_in(repository)
    shutil.rmtree(repository / "wfvae_decoder")
    with TritonServer(repository, exit_timeout=2) as server:
        encoder = example.Model(example.Server(server.url), "wfvae_encoder")
        list(encoder.open(HEIGHT, WIDTH, 1).push(videos([13])[0]))
        assert server.stop() == 1
        assert "Exit timeout expired" in server.log
