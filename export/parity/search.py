"""Finds the first tensor, in graph order, at which two computations differ.

Two plans, or stream and direct graph: ONNX Runtime runs the graphs with their inner tensors as
outputs. A backend and ONNX Runtime on the CPU: both run the step graph so, and both get the
reference's states, so what is found is one step's own error, not what was carried over. The
TensorRT runner is experimental: it has not run on a GPU.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model

from wfvae.errors import InputError
from wfvae.export.parity.difference import Array
from wfvae.export.parity.exposed_graph import ExposedGraph, Feeds, Infer, blocks
from wfvae.export.parity.plans import Job, clip_input, describe_steps
from wfvae.export.parity.rules import Rule
from wfvae.runtime.bundle import Bundle
from wfvae.spec.frames import lead_frames, padded_size
from wfvae.spec.tensorrt_api import RTX

OpenRunner = Callable[
    [ExposedGraph, onnx.ModelProto, Sequence[Feeds]], contextlib.AbstractContextManager[Infer]
]
"""Opens a backend for a graph with more outputs, and for the inputs that it will get."""

_BUDGET = 256 << 20
"""Bytes of exposed tensors that are compared at once; large models take several passes."""


def run_search(precision: str, search: Callable[[], str]) -> str:
    """Returns what `search` finds, or why it found nothing; silences Polygraphy."""
    if precision not in ("fp32", "fp16"):
        return f"not searched: inner tensors of a {precision} graph cannot be read"
    try:
        from polygraphy.logger import G_LOGGER

        with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
            return search()
    except Exception as error:  # of an engine or Polygraphy: this is only a hint
        return f"not found, the search failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def search_plans(job: Job, steps: Sequence[int]) -> str:
    """Names the first tensor of the step graph that differs between `steps` and a single step."""
    graph, x = exposed(job, job.bundle), stream_input(job)

    def run(block: list[str]) -> Iterator[tuple[Array, Array]]:
        ours, theirs = graph.run_steps(x, steps, block), graph.run_steps(x, (job.latents,), block)
        return ((ours[name], theirs[name]) for name in block)

    where = f"between steps of {describe_steps(steps)} and one step of {job.latents}"
    return _search(graph, list(graph.frame_axes), job.latents, run, where)


def search_direct(job: Job, steps: Sequence[int]) -> str:
    """Names the first tensor that differs between stream, run in `steps`, and direct graph.

    Compared are convolutions with the same weights: what lies between them (history, delay) is not
    the same in both graphs.
    """
    step, direct = exposed(job, job.bundle), exposed(job, job.bundle, ".direct")
    pairs, x, clip = _counterparts(step, direct), stream_input(job), clip_input(job)

    def run(block: list[str]) -> Iterator[tuple[Array | None, Array]]:
        streamed, whole = (
            step.run_steps(x, steps, block),
            direct.run_clip(clip, {pairs[name] for name in block}),
        )
        return ((_aligned(streamed[name], whole[pairs[name]]), whole[pairs[name]]) for name in block)

    return _search(step, list(pairs), job.latents, run, "between the stream and the direct graph")


def _search(
    graph: ExposedGraph,
    names: Sequence[str],
    latents: int,
    run: Callable[[list[str]], Iterable[tuple[Array | None, Array]]],
    where: str,
) -> str:
    """Compares both results that `run` gives for each name, a block of names at a time."""
    coverage = describe_coverage(graph, len(names))
    sizes = {name: graph.frame_axes[name].bytes_per_latent * (latents + 1) for name in names}
    for block in blocks(sizes, _BUDGET):
        for name, (ours, theirs) in zip(block, run(block), strict=True):
            if ours is not None and not np.array_equal(ours, theirs):
                error = float(np.abs(ours.astype(np.float32) - theirs).max())
                return f"{graph.describe(name)}, by at most {error:.3g}, {where}; {coverage}"
    return f"no tensor that both have differs once exposed, which prevents fusion; {coverage}"


def _counterparts(step: ExposedGraph, direct: ExposedGraph) -> dict[str, str]:
    """Maps the step graph's convolutions, in order, to the direct graph's by their weights."""
    ours, theirs = _convolutions(step), _convolutions(direct)
    pairs = {name: theirs[weights] for weights, name in ours.items() if weights in theirs}
    return pairs | {step.spec.outputs[0].name: direct.spec.outputs[0].name}


def _convolutions(graph: ExposedGraph) -> dict[str, str]:
    """Maps the names of weights to the outputs of the convolutions that have them."""
    nodes = [node for node in graph.model.graph.node if node.op_type == "Conv"]
    return {node.input[1]: node.output[0] for node in nodes if node.output[0] in graph.frame_axes}


def _aligned(streamed: Array, whole: Array) -> Array | None:
    """Cuts the stream's frames to the clip's, without the leading copies and the delay.

    Their number depends on the place in the network, so the offset with the smallest difference is
    taken. None if the shapes do not fit.
    """
    spare = len(streamed) - len(whole)
    if spare < 0 or not len(whole) or streamed.shape[1:] != whole.shape[1:]:
        return None

    def error(offset: int) -> float:
        difference = np.abs(streamed[offset : offset + len(whole)] - whole)
        return float(np.nan_to_num(difference, nan=np.inf).max())

    best = min(range(spare + 1), key=error)
    return streamed[best : best + len(whole)]


def exposed(job: Job, bundle: Bundle, suffix: str = "") -> ExposedGraph:
    graph = bundle.manifest.graphs[job.direction + suffix]
    return ExposedGraph(bundle, graph, *padded_size(job.height, job.width))


def stream_input(job: Job) -> Array:
    """Returns the stream's network input, without batch: frames with lead and tail, or latents."""
    clip = clip_input(job)
    if job.direction == "decoder":
        return clip
    return np.concatenate([np.repeat(clip[:1], lead_frames(job.bundle.ratio), axis=0), clip])


def describe_coverage(graph: ExposedGraph, compared: int) -> str:
    return f"{compared} of {len(graph.order)} tensors could be compared"


def search_backend(job: Job, reference: Bundle, steps: Sequence[int], rule: Rule) -> str:
    """Names the first tensor that differs by more than the rule's share of its largest value."""
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
    """Returns a Polygraphy runner that builds a strongly typed engine for the shapes of `feeds`.

    It drives the flavour that the bundle's engines are of.
    """
    described = graph.bundle.backend.describe()
    use_flavour(described["flavour"])
    from polygraphy.backend.trt import (
        CreateConfig,
        EngineFromNetwork,
        NetworkFromOnnxBytes,
        Profile,
        TrtRunner,
    )

    from wfvae.runtime.backends.nvidia.cuda import Cuda

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


def use_flavour(name: str) -> None:
    """Makes Polygraphy drive a flavour, as its variable POLYGRAPHY_USE_TENSORRT_RTX does.

    Raises `InputError` if this process uses Polygraphy with the other flavour already: its modules
    import one of them for good.
    """
    from polygraphy import config

    uses_rtx = name == RTX.name
    if "polygraphy.backend.trt" in sys.modules and uses_rtx != config.USE_TENSORRT_RTX:
        problem = f"Polygraphy can't change to the flavour {name} in a process that used the other flavour"
        raise InputError(f"{problem}; verify the engines of each flavour in a process of its own")
    config.USE_TENSORRT_RTX = uses_rtx


RUNNERS: Mapping[str, OpenRunner] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "tensorrt": open_tensorrt,
}
"""By backend's name."""
