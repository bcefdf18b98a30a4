"""Finds the first tensor, in graph order, at which two plans, or stream and direct graph, differ.

ONNX Runtime runs the graphs with their inner tensors as outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from wfvae.export.parity.difference import Array
from wfvae.export.parity.direct import clip_input
from wfvae.export.parity.exposed_graph import ExposedGraph, blocks
from wfvae.export.parity.plans import Job, describe_steps
from wfvae.runtime.bundle import Bundle
from wfvae.spec.frames import lead_frames, padded_size

_BUDGET = 256 << 20
"""Bytes of exposed tensors that one pass over the stream may hold; large models take several."""


def run_search(precision: str, search: Callable[[], str]) -> str:
    """Returns what `search` finds, or why it found nothing; silences Polygraphy."""
    if precision not in ("fp32", "fp16"):
        return f"not searched: inner tensors of a {precision} graph cannot be read"
    try:
        from polygraphy.logger import G_LOGGER
    except ImportError:
        return "not searched: this needs the package polygraphy; run: pip install 'wfvae[export]'"
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
            return search()
    except Exception as error:  # of an engine or Polygraphy; the check's numbers matter more than this hint
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
    """Maps the step graph's convolutions, in order, to those of the direct graph by their weights."""
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
    """Returns the job's step graph, or another graph of its direction, in `bundle`."""
    graph = bundle.manifest.graphs[job.direction + suffix]
    return ExposedGraph(bundle, graph, *padded_size(job.height, job.width))


def stream_input(job: Job) -> Array:
    """Returns the stream's network input, without batch: frames with lead and tail, or latents."""
    clip = clip_input(job)
    if job.direction == "decoder":
        return clip
    return np.concatenate([np.repeat(clip[:1], lead_frames(job.bundle.ratio), axis=0), clip])


def describe_coverage(graph: ExposedGraph, compared: int) -> str:
    """Formats how much of a graph could be compared."""
    return f"{compared} of {len(graph.order)} tensors could be compared"
