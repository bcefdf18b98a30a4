"""`SequenceServer`: streams of many clients in one worker, without a transport."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from wfvae.errors import InputError, ResourceError, StreamingError, WFVAEError
from wfvae.runtime import Bundle
from wfvae.runtime.serving.sequences import Request, SequenceServer
from wfvae.runtime.serving.triton_model import to_capsule
from wfvae.spec.serving import ServingOptions

Opened = Callable[..., Bundle]
NAME = "4x8x8-trilinear"
HEIGHT, WIDTH = 20, 13
PATIENCE = 240


class Client:
    """Sends requests of one server, and waits for each answer."""

    def __init__(self, server: SequenceServer) -> None:
        self.server = server

    def send(
        self, sequence: int, data: Any, start: bool = False, end: bool = False, **settings: Any
    ) -> "queue.Queue[Any]":
        answers: queue.Queue[Any] = queue.Queue()
        flags = {"start": start, "end": end, "settings": settings}
        request = Request(sequence=sequence, data=data, answer=answers.put, refuse=answers.put, **flags)
        self.server.submit(request)
        return answers

    def __call__(self, sequence: int, data: Any, **options: Any) -> Any:
        answer = self.send(sequence, data, **options).get(timeout=PATIENCE)
        if isinstance(answer, WFVAEError):
            raise answer
        return answer


@pytest.fixture
def client(opened: Opened) -> Callable[..., Any]:
    """`with client(direction, **options) as send`: a server and a client of it."""

    @contextmanager
    def make(direction: Any, clock: Any = None, **options: Any) -> Iterator[Client]:
        more = {} if clock is None else {"clock": clock}
        with SequenceServer(opened(NAME), direction, ServingOptions(**options), **more) as server:
            yield Client(server)

    return make


def video(count: int, height: int = HEIGHT, width: int = WIDTH) -> Any:
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_clients_in_threads_get_bits_of_runtime(client: Any, opened: Opened) -> None:
    """More streams than rows, two sizes, requests of many lengths, empty ones among them."""
    bundle, clips = opened(NAME), [video(1), video(9), video(14, 16, 16), video(21), video(6, 16, 16)]
    with client("encoder", rows=3, chunk=2) as encode, client("decoder", rows=3) as decode:

        def run(name: int, clip: Any) -> Any:
            cuts = np.random.default_rng(name).integers(0, len(clip), 3)
            first, *rest = np.split(clip, np.sort(cuts))
            parts = [encode(name, first, start=True), *(encode(name, part) for part in rest)]
            latents = np.concatenate([*parts, encode(name, clip[:0], end=True)])
            count, height, width, _ = clip.shape
            frames = [decode(name, latents[:1], start=True, height=height, width=width)]
            frames.append(decode(name, latents[1:], end=True, frames=count))
            return latents, np.concatenate(frames)

        with ThreadPoolExecutor(len(clips)) as pool:
            results = list(pool.map(run, range(1, len(clips) + 1), clips))
    for clip, (latents, frames) in zip(clips, results, strict=True):
        count, height, width, _ = clip.shape
        assert np.array_equal(latents, bundle.encode(clip))
        assert np.array_equal(frames, bundle.decode(latents, frames=count, height=height, width=width))


def test_short_request_does_not_wait_for_long_one(
    client: Any, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream joins between two steps of another one's request."""
    session = opened(NAME).step_session("encoder")
    entered, release, step = threading.Event(), threading.Event(), session.step

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert release.wait(PATIENCE)
        return step(*arguments)

    monkeypatch.setattr(session, "step", slow)
    with client("encoder", rows=2, chunk=1) as encode:
        long = encode.send(1, video(41), start=True, end=True)
        assert entered.wait(PATIENCE)
        short = encode.send(2, video(1), start=True, end=True)
        release.set()
        answered = []
        for answers in (short, long):
            answered.append((len(answers.get(timeout=PATIENCE)), long.empty()))
    assert answered[0] == (1, True)
    assert answered[1][0] == 11


def test_wrong_input_leaves_stream_as_it_was(client: Any, opened: Opened) -> None:
    clip = video(13)
    with client("encoder") as encode:
        parts = [encode(7, clip[:5], start=True)]
        with pytest.raises(InputError, match="frames are 8x8, but this stream is 20x13"):
            encode(7, np.zeros((3, 8, 8, 3), np.uint8))
        parts.append(encode(7, clip[5:], end=True))
    assert np.array_equal(np.concatenate(parts), opened(NAME).encode(clip))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 4, 4), np.float32), "4 dimensions"),
        (np.zeros((2, 5, 3, 2), np.float32), r"expected \(t, 4, 3, 2\)"),
        (np.full((2, 4, 3, 2), np.nan, np.float32), "NaN"),
    ],
)
def test_stream_that_failed_at_start_is_not_open(client: Any, data: Any, message: str) -> None:
    with client("decoder") as decode:
        with pytest.raises(InputError, match=message):
            decode(1, data, start=True)
        with pytest.raises(StreamingError, match="stream 1 is not open"):
            decode(1, np.zeros((1, 4, 3, 2), np.float32))


def test_settings_are_checked(client: Any) -> None:
    latents = np.zeros((1, 4, 3, 2), np.float32)
    with client("decoder") as decode:
        for wrong in ({"height": 0}, {"width": "7"}, {"frames": 1.5}):
            with pytest.raises(InputError, match="expected an integer of at least 1"):
                decode(1, latents, start=True, **wrong)
        with pytest.raises(InputError, match="1 latents were pushed for a video of 9 frames"):
            decode(1, latents, start=True, end=True, frames=9)
        assert decode(1, latents, start=True, end=True).shape == (1, 24, 16, 3)


def test_start_drops_stream_of_same_name(client: Any, opened: Opened) -> None:
    clip = video(9)
    with client("encoder") as encode:
        encode(1, video(6), start=True)
        latents = encode(1, clip, start=True, end=True)
    assert np.array_equal(latents, opened(NAME).encode(clip))


def test_silent_stream_is_dropped_and_waiting_one_is_not(client: Any, opened: Opened) -> None:
    now = [0.0]
    with client("encoder", clock=lambda: now[0], idle_seconds=10) as encode:
        encode(1, video(5), start=True)
        now[0] = 6.0
        encode(2, video(5), start=True)
        now[0] = 11.0
        encode(2, video(4))
        with pytest.raises(StreamingError, match="silent for 10 s; start it again"):
            encode(1, video(4))
        assert len(encode(2, video(4), end=True)) == 1


def test_failed_step_refuses_its_streams_and_serves_new_ones(
    client: Any, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(NAME).step_session("encoder")
    with client("encoder") as encode:
        encode(1, video(5), start=True)
        with monkeypatch.context() as patch:
            patch.setattr(session, "step", lambda *arguments: raise_(ResourceError("out of memory")))
            with pytest.raises(ResourceError, match="out of memory"):
                encode(1, video(4))
            patch.setattr(session, "step", lambda *arguments: raise_(RuntimeError("a\nb")))
            with pytest.raises(WFVAEError, match="a step failed: a b"):
                encode(2, video(4), start=True)
        with pytest.raises(StreamingError, match="stream 1 is not open"):
            encode(1, video(4))
        assert len(encode(1, video(5), start=True, end=True)) == 2


def raise_(error: Exception) -> Any:
    raise error


def test_close_refuses_what_is_not_answered(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = opened(NAME)
    session = bundle.step_session("encoder")
    entered, release, step = threading.Event(), threading.Event(), session.step

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert release.wait(PATIENCE)
        return step(*arguments)

    monkeypatch.setattr(session, "step", slow)
    server = SequenceServer(bundle, "encoder", ServingOptions(chunk=1))
    answers = Client(server).send(1, video(41), start=True)
    assert entered.wait(PATIENCE)
    closing = threading.Thread(target=server.close)
    closing.start()
    release.set()
    closing.join(PATIENCE)
    assert "the server stops" in str(answers.get(timeout=PATIENCE))


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 0, 4, 5), (1, 2, 0, 0)])
def test_capsule_holds_array(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    class Tensor:
        def __dlpack__(self, **options: Any) -> Any:
            return to_capsule(array)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    found = np.from_dlpack(Tensor())
    assert found.dtype == np.float32 and np.array_equal(found, array)
