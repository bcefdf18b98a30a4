"""Finds the first tensor, in graph order, at which a backend differs from ONNX Runtime on the CPU.

Both run the step graph with its inner tensors as outputs, and both get the reference's states: so
each step begins alike, and what is found is one step's own error, not what was carried over. The
TensorRT runner is experimental: it has not run on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model

from wfvae.export.parity.difference import Array
from wfvae.export.parity.exposed_graph import ExposedGraph, Feeds, Infer, blocks
from wfvae.export.parity.layer_search import describe_coverage, exposed, stream_input
from wfvae.export.parity.plans import Job, describe_steps
from wfvae.export.parity.rules import Rule
from wfvae.runtime.bundle import Bundle

OpenRunner = Callable[
    [ExposedGraph, onnx.ModelProto, Sequence[Feeds]], contextlib.AbstractContextManager[Infer]
]
"""Opens a backend for a graph with more outputs, and for the inputs that it will get."""

_BUDGET = 512 << 20
"""Bytes of tensors compared at once; each further part of a large graph needs another session."""


def search_backend(job: Job, reference: Bundle, steps: Sequence[int], rule: Rule) -> str:
    """Names the first tensor that differs by more than the rule's share of its own largest value.

    Args:
        job: on the backend in question.
        reference: the same bundle on ONNX Runtime's CPU provider.
        steps: latents per step.
    """
    name = str(job.bundle.backend.describe().get("name"))
    make = RUNNERS.get(name)
    if make is None:
        return f"not searched: inner tensors cannot be read on the backend {name}"
    theirs, ours = exposed(job, reference), exposed(job, job.bundle)
    feeds = theirs.feeds(stream_input(job), steps)
    sizes = theirs.float_tensors(max(steps))
    coverage = describe_coverage(theirs, len(sizes))
    own_share = replace(rule, relative=True)
    for block in blocks({name: 2 * len(feeds) * size for name, size in sizes.items()}, _BUDGET):
        found = _run(make(ours, ours.exposing(block), feeds), feeds, block)
        expected = _run(contextlib.nullcontext(theirs.open(block)), feeds, block)
        for name in block:
            allowed = max(own_share.allowed(step[name]) for step in expected)
            for index, (result, wanted) in enumerate(zip(found, expected, strict=True)):
                error = float(np.abs(result[name] - wanted[name]).max())
                if not error <= allowed:
                    where = f"in step {index + 1} of {describe_steps(steps)} from equal states"
                    size = f"by {error:.3g} where {allowed:.3g} is allowed"
                    return f"{theirs.describe(name)}, {size}, {where}; {coverage}"
    return (
        "no tensor differs within a step from equal states, once exposed (which prevents fusion), by more"
        f" than {rule.tolerance:g} of its largest value; {coverage}"
    )


def _run(
    runner: contextlib.AbstractContextManager[Infer], feeds: Sequence[Feeds], names: Sequence[str]
) -> list[dict[str, Array]]:
    """Returns the named outputs of each step as float32."""
    with runner as infer:
        results = (infer(feed) for feed in feeds)
        return [{name: np.array(result[name], np.float32) for name in names} for result in results]


@contextlib.contextmanager
def open_onnxruntime(graph: ExposedGraph, model: onnx.ModelProto, feeds: Sequence[Feeds]) -> Iterator[Infer]:
    """Runs the model on the provider that the graph's bundle is opened on."""
    yield graph.open([output.name for output in model.graph.output])


@contextlib.contextmanager
def open_openvino(graph: ExposedGraph, model: onnx.ModelProto, feeds: Sequence[Feeds]) -> Iterator[Infer]:
    """Runs the model in OpenVINO as the backend does; exposed norms are OpenVINO's own."""
    from wfvae.runtime.backends.openvino import compile_settings, open_core
    from wfvae.runtime.backends.openvino_norms import rewrite_norms

    described = graph.bundle.backend.describe()
    hint, threads = described["precision_hint"], described["threads"]
    load_external_data_for_model(model, str(graph.bundle.path))
    core = open_core()
    network = core.read_model(model.SerializeToString())
    rewrite_norms(network, coarse=hint == "bf16")
    settings = compile_settings(hint, None if threads == "all" else int(threads))
    compiled = core.compile_model(network, "CPU", settings)

    def infer(feed: Feeds) -> dict[str, Array]:
        results = compiled({name: np.ascontiguousarray(array) for name, array in feed.items()})
        return {output.name: np.array(results[output.name]) for output in model.graph.output}

    yield infer


@contextlib.contextmanager
def open_tensorrt(graph: ExposedGraph, model: onnx.ModelProto, feeds: Sequence[Feeds]) -> Iterator[Infer]:
    """Builds an engine and runs it by Polygraphy."""
    with tensorrt_runner(graph, model, feeds) as runner:
        yield runner.infer


def tensorrt_runner(graph: ExposedGraph, model: onnx.ModelProto, feeds: Sequence[Feeds]) -> Any:
    """Returns a Polygraphy runner that builds a strongly typed engine for the shapes of `feeds`."""
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxBytes,
        Profile,
        TrtRunner,
    )

    from wfvae.runtime.backends.nvidia.cuda import Cuda

    described = graph.bundle.backend.describe()
    Cuda(int(described["device"].partition(":")[2]))  # Polygraphy takes the thread's GPU
    load_external_data_for_model(model, str(graph.bundle.path))
    profile = Profile()
    for name in feeds[0]:
        shapes = np.array([feed[name].shape for feed in feeds])
        low, high = (tuple(int(size) for size in edge) for edge in (shapes.min(axis=0), shapes.max(axis=0)))
        profile.add(name, min=low, opt=high, max=high)
    network = NetworkFromOnnxBytes(model.SerializeToString(), strongly_typed=True)
    config = CreateConfig(profiles=[profile], tf32=described["tf32"] == "true")
    return TrtRunner(EngineFromNetwork(network, config), name="tensorrt")


RUNNERS: Mapping[str, OpenRunner] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "tensorrt": open_tensorrt,
}
"""By backend's name."""
