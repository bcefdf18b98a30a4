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
from fractions import Fraction
from typing import Any

import numpy as np

from wfvae.errors import InputError, WFVAEError
from wfvae.runtime.backends.base import Array, FloatArray
from wfvae.runtime.feeds import DecoderFeed, EncoderFeed
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.spec.frames import DEFAULT_CHUNK, latent_size, padded_size
from wfvae.spec.manifest import GraphSpec

PARAMETER, FORMAT = "wfvae", "wfvae-triton/1"


class Server:
    """A Triton server, over gRPC."""

    def __init__(self, url: str, client: Any = None) -> None:
        import tritonclient.grpc as grpc

        self._grpc = grpc
        self._client = client or grpc.InferenceServerClient(url)

    def parameters(self, model: str) -> Mapping[str, str]:
        """Returns the string parameters of a model's configuration."""
        found = self._client.get_model_config(model).config.parameters
        return {key: value.string_value for key, value in found.items()}

    def infer(self, model: Model, x: FloatArray, sequence: int, start: bool, end: bool) -> FloatArray:
        """Sends `x` (batch 1) as one request of a sequence, and waits for the model's output."""
        name, output = model.graph.inputs[0].name, model.graph.outputs[0].name
        tensor = self._grpc.InferInput(name, list(x.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(x))
        wanted = [self._grpc.InferRequestedOutput(output)]
        flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        result: FloatArray = self._client.infer(model.name, [tensor], outputs=wanted, **flags).as_numpy(
            output
        )
        return result


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
        height, width = data["size"]
        self.size: tuple[int, int] = height, width
        """Padded (height, width) that the model takes."""
        self.channels = int(self.graph.inputs[0].shape[2])


class TritonStream:
    """One stream as one sequence of requests, each a full step of `latents` except the last ones.

    An encoder takes frames (T, H, W, 3) and gives latents (t, D, h, w); a decoder takes latents and
    gives uint8 frames.

    START is on the first request, END on the last. Where the graph drains (it has the input `end`),
    that is an extra request whose input is ignored; else it is the last one with data. So one step
    is held back until `finish`, which also keeps a decoder from returning more frames than the
    video has. Always finish a stream: END frees its slot on the server.
    """

    def __init__(self, model: Model, height: int, width: int, latents: int) -> None:
        if padded_size(height, width) != model.size:
            served = f"{model.name} serves {model.size[0]}x{model.size[1]} (and up to 7 less)"
            raise InputError(f"the video is {height}x{width}, and {served}; make a repository for it")
        feed = EncoderFeed if model.graph.direction == "encoder" else DecoderFeed
        self._model, self._feed, self._latents = model, feed(model.graph, height, width), latents
        # Must not be 0, and must be unique among clients.
        self._sequence = uuid.uuid4().int >> 66 | 1

    def push(self, data: Array) -> Iterator[Array]:
        """Takes any amount of input, and yields the results that are ready."""
        self._feed.push(data)
        while self._feed.ready > self._latents:
            yield self._step(self._feed.step_input(self._latents))

    def finish(self, frames: int | None = None) -> Iterator[Array]:
        """Ends the stream, and yields the rest. `frames`: a decoder's true number of frames."""
        drains = self._model.graph.drain
        self._feed.close(frames)
        while ready := self._feed.ready:
            count = min(ready, self._latents)
            yield self._step(self._feed.step_input(count), end=not drains and count == ready)
        if drains:
            # Also where no more frames are wanted: it frees the sequence's slot.
            x = np.zeros((1, self._model.channels, *latent_size(*self._model.size)), np.float32)
            yield self._step(x, end=True, drain=True)

    def _step(self, x: FloatArray, end: bool = False, drain: bool = False) -> Array:
        start = not self._feed.started
        output = self._model.server.infer(self._model, x[None], self._sequence, start, end)[0]
        return self._feed.accept_output(output, drain)


def reconstruct(
    encoder: Model, decoder: Model, chunks: Iterator[Array], size: tuple[int, int], latents: int
) -> Iterator[Array]:
    """Yields frames (T, H, W, 3) uint8 that went through both models."""
    if encoder.bundle != decoder.bundle:
        names = f"{encoder.name} and {decoder.name}"
        raise InputError(f"{names} come from different bundles; serve both from one repository")
    encoding, decoding = (TritonStream(model, *size, latents) for model in (encoder, decoder))
    frames = 0
    for chunk in chunks:
        frames += len(chunk)
        for part in encoding.push(chunk):
            yield from decoding.push(part[:, : decoder.channels])  # of moments, the means
    for part in encoding.finish():
        yield from decoding.push(part[:, : decoder.channels])
    yield from decoding.finish(frames)


def warm_up(model: Model, latents: int) -> None:
    """Runs a full step and one of a single latent: the server's first ones are slow.

    It replaces the server's own warm-up, which sends requests without a sequence and so fails for a
    model with implicit state.
    """
    for count in dict.fromkeys((latents, 1)):
        stream = TritonStream(model, *model.size, count)
        data: Array = np.zeros((count, model.channels, *latent_size(*model.size)), np.float32)
        if model.graph.direction == "encoder":
            data = np.zeros((1 + model.graph.ratio * (count - 1), *model.size, 3), np.uint8)
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
    add("--warm-up", action="store_true", help="run throw-away streams first")
    args = parser.parse_args()
    if args.latents < 1:
        parser.error(f"--latents is {args.latents}; expected at least 1")
    server = Server(args.url)
    encoder, decoder = (Model(server, f"{args.name}_{direction}") for direction in ("encoder", "decoder"))
    if args.warm_up:
        for model in (encoder, decoder):
            warm_up(model, args.latents)
    with open_video(args.video) as reader:
        info = reader.info
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
        sys.exit(f"triton_stream: {error}")
