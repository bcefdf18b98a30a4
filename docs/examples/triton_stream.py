"""Streams a video through a Triton server that serves a repository of 'wfvae triton'.

    pip install 'tritonclient[grpc]'
    python docs/examples/triton_stream.py in.mp4 out.mp4 --url localhost:8001 --warm-up

It encodes, decodes and writes the reconstruction. The rules of the stream (sizes, frames to drop,
drain) come from the server's model configuration, so no bundle is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import Any

import numpy as np

from wfvae.errors import InputError, WFVAEError
from wfvae.runtime.backends.base import Array, FloatArray
from wfvae.runtime.closing import Closing
from wfvae.runtime.feeds import DecoderFeed, EncoderFeed
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.spec.frames import DEFAULT_CHUNK, latent_size, padded_size
from wfvae.spec.manifest import GraphSpec

PARAMETER, FORMAT = "wfvae", "wfvae-triton/1"
_TYPES = {"float32": "FP32", "uint8": "UINT8"}


class ServerError(WFVAEError):
    """A server that does not answer, or refuses a request."""


class Server:
    """A Triton server, over gRPC. Its methods raise `ServerError`.

    `timeout`: seconds that a request may take, waiting for a free slot included.
    """

    def __init__(self, url: str, timeout: float = 60.0, client: Any = None) -> None:
        import tritonclient.grpc as grpc

        self._grpc, self._url, self._timeout = grpc, url, timeout
        self._client = client or grpc.InferenceServerClient(url)

    def parameters(self, model: str) -> Mapping[str, str]:
        """Returns the string parameters of a model's configuration."""
        with self._errors(model):
            found = self._client.get_model_config(model, client_timeout=self._timeout).config.parameters
        return {key: value.string_value for key, value in found.items()}

    def infer(self, model: Model, x: Array, sequence: int, start: bool, end: bool, **settings: int) -> Array:
        """Sends `x` (batch 1) as one request of a sequence, and waits for the model's output."""
        name, output = model.graph.inputs[0].name, model.graph.outputs[0].name
        tensor = self._grpc.InferInput(name, list(x.shape), _TYPES[x.dtype.name])
        tensor.set_data_from_numpy(np.ascontiguousarray(x))
        options: dict[str, Any] = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        options |= {"outputs": [self._grpc.InferRequestedOutput(output)], "client_timeout": self._timeout}
        if settings:
            options["parameters"] = settings
        with self._errors(model.name):
            result: Array = self._client.infer(model.name, [tensor], **options).as_numpy(output)
        return result

    @contextmanager
    def _errors(self, model: str) -> Iterator[None]:
        """Turns what the client library raises into `ServerError`, on one line."""
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            text, status = " ".join(str(error.message()).split()), str(error.status())
            if status.endswith("DEADLINE_EXCEEDED"):
                text = (
                    f"no answer within {self._timeout:g} s; a stream waits while all slots of the server are"
                )
                text += " taken: try later, or raise --timeout"
            elif status.endswith("UNAVAILABLE"):
                text = f"no server answers ({text}); start one, or state its address with --url"
            raise ServerError(f"{model} at {self._url}: {text}") from error


class Model:
    """A model on a server, with the rules of its streams from its configuration."""

    def __init__(self, server: Server, name: str) -> None:
        data = json.loads(server.parameters(name).get(PARAMETER, "{}"))
        if data.get("format") != FORMAT:
            text = f"the model {name} has no rules of format {FORMAT}"
            raise InputError(f"{text}; make its repository with 'wfvae triton' of this version")
        self.server, self.name = server, name
        self.graph = GraphSpec.from_dict(data["graph"])
        self.bundle: str = data["bundle"]
        self.size: tuple[int, int] | None = tuple(data["size"]) if data["size"] else None
        """Padded (height, width) that the model takes; None: any."""
        self.channels = int(self.graph.inputs[0].shape[2])
        self.takes_video: bool = data["requests"] == "video"
        """Whether requests are frames as they are (platform python), or padded steps."""

    def open(self, height: int, width: int, latents: int) -> Stream:
        """Opens a stream of a video of this size, with at most `latents` per request."""
        if self.size is not None and padded_size(height, width) != self.size:
            served = f"{self.name} serves {self.size[0]}x{self.size[1]} (and up to 7 less)"
            raise InputError(f"the video is {height}x{width}, and {served}; make a repository for it")
        return (VideoStream if self.takes_video else StepStream)(self, height, width, latents)


class Stream(Closing):
    """One stream as one sequence of requests: START is on the first one, END on the last.

    An encoder takes frames (T, H, W, 3) and gives latents (t, D, h, w); a decoder takes latents and
    gives uint8 frames. Use it in a `with` block: END frees its slot on the server, and leaving the
    block sends it if the stream is not finished.
    """

    def __init__(self, model: Model, height: int, width: int, latents: int) -> None:
        self._model, self._latents = model, latents
        self._height, self._width = height, width
        # Must not be 0, and must be unique among clients.
        self._sequence = uuid.uuid4().int >> 66 | 1
        self._holds_slot = False

    @abstractmethod
    def push(self, data: Array) -> Iterator[Array]:
        """Takes any amount of input, and yields the results that are ready."""

    @abstractmethod
    def finish(self, frames: int | None = None) -> Iterator[Array]:
        """Ends the stream, and yields the rest. `frames`: a decoder's true number of frames."""

    @abstractmethod
    def _least(self) -> Array:
        """Returns the smallest input, for a request whose output does not matter."""

    def close(self) -> None:
        """Ends the sequence on the server, where `finish` has not."""
        if self._holds_slot:
            with suppress(ServerError):  # what went wrong before is what the caller must see
                self._infer(self._least(), start=False, end=True)

    def _infer(self, x: Array, start: bool, end: bool, **settings: int) -> Array:
        self._holds_slot = True  # also if the answer is an error, or does not come
        server = self._model.server
        output: Array = server.infer(self._model, x[None], self._sequence, start, end, **settings)[0]
        self._holds_slot = not end
        return output


class StepStream(Stream):
    """The stream of a model that takes padded steps (platforms onnxruntime and tensorrt).

    Where the graph drains (it has the input `end`), END is on an extra request whose input is
    ignored; else it is on the last one with data. So one step is held back until `finish`, which
    also keeps a decoder from returning more frames than the video has.
    """

    def __init__(self, model: Model, height: int, width: int, latents: int) -> None:
        super().__init__(model, height, width, latents)
        feed = EncoderFeed if model.graph.direction == "encoder" else DecoderFeed
        self._feed = feed(model.graph, height, width)

    def push(self, data: Array) -> Iterator[Array]:
        self._feed.push(data)
        while self._feed.ready > self._latents:
            yield self._step(self._feed.step_input(self._latents))

    def finish(self, frames: int | None = None) -> Iterator[Array]:
        drains = self._model.graph.drain
        self._feed.close(frames)
        while ready := self._feed.ready:
            count = min(ready, self._latents)
            yield self._step(self._feed.step_input(count), end=not drains and count == ready)
        if drains:
            # Also where no more frames are wanted: it frees the sequence's slot.
            yield self._step(self._least(), end=True, drain=True)

    def _least(self) -> FloatArray:
        graph, channels = self._model.graph, self._model.channels
        if graph.direction == "encoder":
            return np.zeros((graph.ratio, channels, *padded_size(self._height, self._width)), np.float32)
        return np.zeros((1, channels, *latent_size(self._height, self._width)), np.float32)

    def _step(self, x: FloatArray, end: bool = False, drain: bool = False) -> Array:
        return self._feed.accept_output(self._infer(x, not self._feed.started, end), drain)


class VideoStream(Stream):
    """The stream of a model that takes frames and latents as they are (platform python).

    The rules of the stream are the server's. The last part is held back until `finish`, for END and
    the number of frames.
    """

    def __init__(self, model: Model, height: int, width: int, latents: int) -> None:
        super().__init__(model, height, width, latents)
        self._held: Array | None = None
        self._started = False

    def push(self, data: Array) -> Iterator[Array]:
        encodes = self._model.graph.direction == "encoder"
        count = self._latents * (self._model.graph.ratio if encodes else 1)
        for first in range(0, len(data), count):
            if self._held is not None:
                yield self._send(self._held)
            self._held = np.array(data[first : first + count])

    def finish(self, frames: int | None = None) -> Iterator[Array]:
        if self._held is None:
            raise InputError("the stream has no input; push some before finish")
        yield self._send(self._held, end=True, **({} if frames is None else {"frames": frames}))

    def _least(self) -> Array:
        if self._model.graph.direction == "encoder":
            return np.zeros((0, self._height, self._width, 3), np.uint8)
        return np.zeros((0, self._model.channels, *latent_size(self._height, self._width)), np.float32)

    def _send(self, data: Array, end: bool = False, **settings: int) -> Array:
        start, self._started = not self._started, True
        if start and self._model.graph.direction == "decoder":
            settings |= {"height": self._height, "width": self._width}
        return self._infer(data, start, end, **settings)


def reconstruct(
    encoder: Model, decoder: Model, chunks: Iterator[Array], size: tuple[int, int], latents: int
) -> Iterator[Array]:
    """Yields frames (T, H, W, 3) uint8 that went through both models."""
    if encoder.bundle != decoder.bundle:
        names = f"{encoder.name} and {decoder.name}"
        raise InputError(f"{names} come from different bundles; serve both from one repository")
    frames = 0
    with encoder.open(*size, latents) as encoding, decoder.open(*size, latents) as decoding:
        for chunk in chunks:
            frames += len(chunk)
            for part in encoding.push(chunk):
                yield from decoding.push(part[:, : decoder.channels])  # of moments, the means
        for part in encoding.finish():
            yield from decoding.push(part[:, : decoder.channels])
        yield from decoding.finish(frames)


def warm_up(model: Model, size: tuple[int, int], latents: int) -> None:
    """Runs a full step and one of a single latent: the server's first ones are slow.

    It replaces the server's own warm-up, which sends requests without a sequence and so fails for a
    model with implicit state.
    """
    for count in dict.fromkeys((latents, 1)):
        data: Array = np.zeros((count, model.channels, *latent_size(*size)), np.float32)
        if model.graph.direction == "encoder":
            data = np.zeros((1 + model.graph.ratio * (count - 1), *size, 3), np.uint8)
        with model.open(*size, count) as stream:
            for _ in (*stream.push(data), *stream.finish()):
                pass


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("video", help="video file to read")
    add("out", help="video file to write")
    add("--url", default="localhost:8001", help="gRPC address (default: %(default)s)")
    add("--name", default="wfvae", help="of NAME_encoder, NAME_decoder (default: %(default)s)")
    add("--latents", type=int, default=DEFAULT_CHUNK, help="latents per request (default: %(default)s)")
    add("--timeout", type=float, default=60.0, help="seconds per request (default: %(default)g)")
    add("--warm-up", action="store_true", help="run throw-away streams first")
    args = parser.parse_args()
    if args.latents < 1:
        parser.error(f"--latents is {args.latents}; expected at least 1")
    if args.timeout <= 0:
        parser.error(f"--timeout is {args.timeout:g}; expected seconds above 0")
    server = Server(args.url, args.timeout)
    encoder, decoder = (Model(server, f"{args.name}_{direction}") for direction in ("encoder", "decoder"))
    with open_video(args.video) as reader:
        info = reader.info
        if args.warm_up:
            for model in (encoder, decoder):
                warm_up(model, (info.height, info.width), args.latents)
        frames = iter(reader.chunks(args.latents * encoder.graph.ratio))
        output = OutputVideo(info.width, info.height, info.fps or Fraction(24))
        with open_video_writer(args.out, output) as writer:
            for part in reconstruct(encoder, decoder, frames, (info.height, info.width), args.latents):
                if len(part):
                    writer.write(part)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WFVAEError as error:
        sys.stderr.write(f"triton_stream: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
