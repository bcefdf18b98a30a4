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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from wfvae.errors import InputError, WFVAEError
from wfvae.runtime.backends.base import Array, FloatArray
from wfvae.runtime.decoder_feed import DecoderFeed
from wfvae.runtime.encoder_feed import EncoderFeed
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.spec.frames import latent_size, padded_size
from wfvae.spec.manifest import GraphSpec

PARAMETER, FORMAT = "wfvae", "wfvae-triton/1"


class Transport(Protocol):
    """What this client needs of a connection to a server."""

    def parameters(self, model: str) -> Mapping[str, str]:
        """Returns the string parameters of a model's configuration."""

    def infer(
        self, model: str, name: str, x: FloatArray, output: str, sequence: int, start: bool, end: bool
    ) -> FloatArray:
        """Sends input `name` as one request of a sequence, and waits for the tensor `output`."""


class GrpcTransport:
    """gRPC through tritonclient."""

    def __init__(self, url: str, client: Any = None) -> None:
        import tritonclient.grpc as grpc

        self._grpc = grpc
        self._client = client or grpc.InferenceServerClient(url)

    def parameters(self, model: str) -> Mapping[str, str]:
        found = self._client.get_model_config(model).config.parameters
        return {key: value.string_value for key, value in found.items()}

    def infer(
        self, model: str, name: str, x: FloatArray, output: str, sequence: int, start: bool, end: bool
    ) -> FloatArray:
        tensor = self._grpc.InferInput(name, list(x.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(x))
        wanted = [self._grpc.InferRequestedOutput(output)]
        flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        result: FloatArray = self._client.infer(model, [tensor], outputs=wanted, **flags).as_numpy(output)
        return result


@dataclass(frozen=True)
class Rules:
    """A model's streams, from its configuration."""

    model: str
    graph: GraphSpec
    size: tuple[int, int]
    """Padded (height, width) that the model takes."""
    bundle: str

    @classmethod
    def read(cls, transport: Transport, model: str) -> Rules:
        data = json.loads(transport.parameters(model).get(PARAMETER, "{}"))
        if data.get("format") != FORMAT:
            text = f"the model {model} has no rules of format {FORMAT}"
            raise InputError(f"{text}; make its repository with 'wfvae triton' of this version")
        height, width = data["size"]
        return cls(model, GraphSpec.from_dict(data["graph"]), (height, width), data["bundle"])

    def require(self, height: int, width: int) -> None:
        """Raises `InputError` unless the model takes video of this size."""
        if padded_size(height, width) != self.size:
            served = f"{self.model} serves {self.size[0]}x{self.size[1]} (and up to 7 less)"
            raise InputError(f"the video is {height}x{width}, and {served}; make a repository for it")


class TritonStream:
    """One stream as one sequence of requests, each a full step of `latents` except the last ones.

    START is on the first request, END on the last. Where the graph drains (it has the input `end`),
    that is an extra request whose input is ignored; else it is the last one with data. So one step
    is held back until `finish`, which also keeps a decoder from returning more frames than the
    video has. Always finish a stream: END frees its slot on the server.
    """

    def __init__(
        self, transport: Transport, rules: Rules, feed: EncoderFeed | DecoderFeed, latents: int
    ) -> None:
        rules.require(feed.height, feed.width)
        self._transport, self._rules, self._feed, self._latents = transport, rules, feed, latents
        # Must not be 0, and must be unique among clients.
        self._sequence = uuid.uuid4().int >> 66 | 1

    def push(self, data: Array) -> Iterator[Array]:
        """Takes any amount of input, and yields the results that are ready."""
        self._feed.push(data)
        while self._feed.ready > self._latents:
            yield self._step(self._latents, end=False)

    def finish(self, frames: int | None = None) -> Iterator[Array]:
        """Ends the stream, and yields the rest. `frames`: a decoder's true number of frames."""
        drains = self._rules.graph.drain
        self._feed.close(frames)
        while ready := self._feed.ready:
            count = min(ready, self._latents)
            yield self._step(count, end=not drains and count == ready)
        if drains:
            # Also where no more frames are wanted: it frees the sequence's slot.
            channels = int(self._rules.graph.inputs[0].shape[2])
            x = np.zeros((1, channels, *latent_size(*self._rules.size)), np.float32)
            yield self._feed.accept_output(self._infer(x, end=True), True)

    def _step(self, count: int, end: bool) -> Array:
        return self._feed.accept_output(self._infer(self._feed.step_input(count), end), False)

    def _infer(self, x: FloatArray, end: bool) -> FloatArray:
        graph, start = self._rules.graph, not self._feed.started
        names = graph.inputs[0].name, graph.outputs[0].name
        output: FloatArray = self._transport.infer(
            self._rules.model, names[0], x[None], names[1], self._sequence, start, end
        )[0]
        return output


def open_stream(transport: Transport, rules: Rules, height: int, width: int, latents: int) -> TritonStream:
    """Encoder: frames (T, H, W, 3) to latents (t, D, h, w). Decoder: latents to uint8 frames."""
    feed = EncoderFeed if rules.graph.direction == "encoder" else DecoderFeed
    return TritonStream(transport, rules, feed(rules.graph, height, width), latents)


def reconstruct(
    transport: Transport,
    encoder: Rules,
    decoder: Rules,
    chunks: Iterator[Array],
    size: tuple[int, int],
    latents: int,
) -> Iterator[Array]:
    """Yields frames (T, H, W, 3) uint8 that went through both models."""
    if encoder.bundle != decoder.bundle:
        names = f"{encoder.model} and {decoder.model}"
        raise InputError(f"{names} come from different bundles; serve both from one repository")
    encoding, decoding = (open_stream(transport, rules, *size, latents) for rules in (encoder, decoder))
    channels, frames = int(decoder.graph.inputs[0].shape[2]), 0
    for chunk in chunks:
        frames += len(chunk)
        for part in encoding.push(chunk):
            yield from decoding.push(part[:, :channels])  # of moments, the means
    for part in encoding.finish():
        yield from decoding.push(part[:, :channels])
    yield from decoding.finish(frames)


def warm_up(transport: Transport, rules: Rules, latents: int) -> None:
    """Runs a full step and one of a single latent: the server's first ones are slow.

    It replaces the server's own warm-up, which sends requests without a sequence and so fails for a
    model with implicit state.
    """
    channels = int(rules.graph.inputs[0].shape[2])
    for count in dict.fromkeys((latents, 1)):
        stream = open_stream(transport, rules, *rules.size, count)
        video = np.zeros((1 + rules.graph.ratio * (count - 1), *rules.size, 3), np.uint8)
        data = np.zeros((count, channels, *latent_size(*rules.size)), np.float32)
        for _ in (*stream.push(video if rules.graph.direction == "encoder" else data), *stream.finish()):
            pass


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", help="video file to read")
    parser.add_argument("out", help="video file to write")
    parser.add_argument("--url", default="localhost:8001", help="gRPC address (default: %(default)s)")
    parser.add_argument(
        "--name", default="wfvae", help="of NAME_encoder, NAME_decoder (default: %(default)s)"
    )
    parser.add_argument("--latents", type=int, default=4, help="latents per request (default: %(default)s)")
    parser.add_argument("--warm-up", action="store_true", help="run throw-away streams first")
    args = parser.parse_args()
    if args.latents < 1:
        parser.error(f"--latents is {args.latents}; expected at least 1")
    transport = GrpcTransport(args.url)
    encoder, decoder = (Rules.read(transport, f"{args.name}_{name}") for name in ("encoder", "decoder"))
    if args.warm_up:
        for rules in (encoder, decoder):
            warm_up(transport, rules, args.latents)
    with open_video(args.video) as reader:
        info = reader.info
        frames = iter(reader.chunks(args.latents * encoder.graph.ratio))
        output = OutputVideo(info.width, info.height, info.fps or Fraction(24))
        with open_video_writer(args.out, output) as writer:
            size = (info.height, info.width)
            for part in reconstruct(transport, encoder, decoder, frames, size, args.latents):
                if len(part):
                    writer.write(part)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WFVAEError as error:
        sys.exit(f"triton_stream: {error}")
