"""Streams a video through a Triton server that serves a repository of 'wfvae triton': encode,
decode, write the reconstruction.

    pip install 'tritonclient[grpc]'
    python docs/examples/triton_stream.py in.mp4 out.mp4 --url localhost:8001 --warm-up

Everything about the stream (sizes, frames to drop, drain) comes from the server's model
configuration; no bundle is needed here. The framing of requests is tested against a simulated
batcher. It has not been run against a server.
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
from wfvae.spec.frames import padded_size
from wfvae.spec.manifest import GraphSpec

PARAMETER, FORMAT = "wfvae", "wfvae-triton/1"


class Transport(Protocol):
    """What this client needs of a connection to a server."""

    def parameters(self, model: str) -> Mapping[str, str]:
        """The string parameters of a model's configuration."""

    def infer(
        self, model: str, name: str, x: FloatArray, output: str, sequence: int, start: bool, end: bool
    ) -> FloatArray:
        """Sends the input tensor `name` as one request of a sequence, and waits for the output
        tensor `output`.
        """


class GrpcTransport:
    """gRPC through tritonclient."""

    def __init__(self, url: str, client: Any = None) -> None:
        import tritonclient.grpc as grpc

        self._grpc = grpc
        self._client = client if client is not None else grpc.InferenceServerClient(url)

    def parameters(self, model: str) -> Mapping[str, str]:
        found = self._client.get_model_config(model).config.parameters
        return {key: value.string_value for key, value in found.items()}

    def infer(
        self, model: str, name: str, x: FloatArray, output: str, sequence: int, start: bool, end: bool
    ) -> FloatArray:
        tensor = self._grpc.InferInput(name, list(x.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(x))
        wanted = [self._grpc.InferRequestedOutput(output)]
        answer = self._client.infer(
            model, [tensor], outputs=wanted, sequence_id=sequence, sequence_start=start, sequence_end=end
        )
        result: FloatArray = answer.as_numpy(output)
        return result


@dataclass(frozen=True)
class Rules:
    """What a model's configuration says about its streams."""

    model: str
    graph: GraphSpec
    size: tuple[int, int]
    """Padded (height, width) that the model takes."""
    bundle: str

    @classmethod
    def read(cls, transport: Transport, model: str) -> Rules:
        found = transport.parameters(model).get(PARAMETER)
        data = json.loads(found) if found else {}
        if data.get("format") != FORMAT:
            raise InputError(
                f"the model {model} has no rules of format {FORMAT}; make its repository with 'wfvae triton'"
                " of this version"
            )
        return cls(
            model, GraphSpec.from_dict(data["graph"]), (data["size"][0], data["size"][1]), data["bundle"]
        )

    def require(self, height: int, width: int) -> None:
        """Raises `InputError` if video of this size is not what the model takes."""
        if padded_size(height, width) != self.size:
            served = f"{self.size[0]}x{self.size[1]}"
            raise InputError(
                f"the video is {height}x{width}, and {self.model} serves {served} (and up to 7 less); make a"
                " repository for it"
            )


class TritonStream:
    """One stream as one sequence of requests.

    Every request carries a full step of `latents` but the last ones. START is on the first. END is
    on the last: where the graph drains (it has the input `end`), that is an extra request, whose
    input means nothing; else it is the last with data. So one step is held back until `finish`,
    which also keeps a decoder from giving out more frames than the video turns out to have. END
    must be sent in any case, or the stream keeps its slot on the server until it times out.
    """

    def __init__(
        self, transport: Transport, rules: Rules, feed: EncoderFeed | DecoderFeed, latents: int
    ) -> None:
        self._transport, self._rules, self._feed, self._latents = transport, rules, feed, latents
        self._drains = rules.graph.stream.needs_drain
        # Must not be 0, and must be nobody else's.
        self._sequence = uuid.uuid4().int >> 66 | 1

    def push(self, data: Array) -> Iterator[Array]:
        """Takes any amount of input, and gives what becomes ready."""
        self._feed.push(data)
        while self._feed.ready > self._latents:
            yield self._step(self._latents, end=False)

    def finish(self, frames: int | None = None) -> Iterator[Array]:
        """Ends the stream, and gives the rest. `frames` is a decoder's true number of video frames."""
        self._feed.close(frames)
        while ready := self._feed.ready:
            count = min(ready, self._latents)
            yield self._step(count, end=not self._drains and count == ready)
        if self._drains:
            # Also where no more frames are wanted: it is what frees the sequence's slot.
            channels, (height, width) = int(self._rules.graph.inputs[0].shape[2]), self._rules.size
            output = self._infer(np.zeros((1, channels, height // 8, width // 8), np.float32), end=True)
            yield self._feed.accept_output(output, True)

    def _step(self, count: int, end: bool) -> Array:
        return self._feed.accept_output(self._infer(self._feed.step_input(count), end), False)

    def _infer(self, x: FloatArray, end: bool) -> FloatArray:
        graph, start = self._rules.graph, not self._feed.started
        names = graph.inputs[0].name, graph.outputs[0].name
        output: FloatArray = self._transport.infer(
            self._rules.model, names[0], x[None], names[1], self._sequence, start, end
        )[0]
        return output


def encoder_stream(transport: Transport, rules: Rules, height: int, width: int, latents: int) -> TritonStream:
    """Frames (T, H, W, 3) in, latents (t, D, h, w) out."""
    rules.require(height, width)
    return TritonStream(transport, rules, EncoderFeed(rules.graph, height, width), latents)


def decoder_stream(transport: Transport, rules: Rules, height: int, width: int, latents: int) -> TritonStream:
    """Latents (t, D, h, w) in, frames (T, H, W, 3) uint8 out."""
    rules.require(height, width)
    return TritonStream(transport, rules, DecoderFeed(rules.graph, height, width, None, "uint8"), latents)


def reconstruct(
    transport: Transport,
    encoder: Rules,
    decoder: Rules,
    chunks: Iterator[Array],
    height: int,
    width: int,
    latents: int,
) -> Iterator[Array]:
    """Frames (T, H, W, 3) uint8, through both models."""
    if encoder.bundle != decoder.bundle:
        raise InputError(
            f"{encoder.model} and {decoder.model} come from different bundles; serve both from one repository"
        )
    encoding = encoder_stream(transport, encoder, height, width, latents)
    decoding = decoder_stream(transport, decoder, height, width, latents)
    channels, frames = int(decoder.graph.inputs[0].shape[2]), 0
    for chunk in chunks:
        frames += len(chunk)
        for part in encoding.push(chunk):
            yield from decoding.push(part[:, :channels])  # of moments, the means
    for part in encoding.finish():
        yield from decoding.push(part[:, :channels])
    yield from decoding.finish(frames)


def warm_up(transport: Transport, rules: Rules, latents: int) -> None:
    """Runs a full step and one of a single latent, so that no user waits for the server's first
    ones.

    This stands in for the server's own warm-up, which runs requests without a sequence: a model
    with implicit state fails on it.
    """
    for count in dict.fromkeys((latents, 1)):
        stream = (encoder_stream if rules.graph.direction == "encoder" else decoder_stream)(
            transport, rules, *rules.size, count
        )
        shape = rules.graph.inputs[0].shape
        if rules.graph.direction == "encoder":
            data: Array = np.zeros((1 + rules.graph.stream.ratio * (count - 1), *rules.size, 3), np.uint8)
        else:
            data = np.zeros((count, int(shape[2]), rules.size[0] // 8, rules.size[1] // 8), np.float32)
        for _ in (*stream.push(data), *stream.finish()):
            pass


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", help="video file to read")
    parser.add_argument("out", help="video file to write")
    parser.add_argument(
        "--url", default="localhost:8001", help="the server's gRPC address (default: %(default)s)"
    )
    parser.add_argument(
        "--name", default="wfvae", help="the models are NAME_encoder and NAME_decoder (default: %(default)s)"
    )
    parser.add_argument("--latents", type=int, default=4, help="latents per request (default: %(default)s)")
    parser.add_argument("--warm-up", action="store_true", help="run throw-away streams first")
    args = parser.parse_args()
    if args.latents < 1:
        parser.error(f"--latents is {args.latents}; expected at least 1")
    transport = GrpcTransport(args.url)
    encoder, decoder = (
        Rules.read(transport, f"{args.name}_{direction}") for direction in ("encoder", "decoder")
    )
    if args.warm_up:
        for rules in (encoder, decoder):
            warm_up(transport, rules, args.latents)
    with open_video(args.video) as reader:
        info = reader.info
        frames = reader.chunks(args.latents * encoder.graph.stream.ratio)
        output = OutputVideo(info.width, info.height, info.fps or Fraction(24))
        with open_video_writer(args.out, output) as writer:
            for part in reconstruct(
                transport, encoder, decoder, iter(frames), info.height, info.width, args.latents
            ):
                if len(part):
                    writer.write(part)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WFVAEError as error:
        sys.exit(f"triton_stream: {error}")
