"""Finds the first tensor, in graph order, at which two computations part. Polygraphy exposes, runs
and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx

from wfvae.export.parity.difference import Array
from wfvae.export.parity.direct import clip_input
from wfvae.export.parity.exposed_graph import ExposedGraph, blocks
from wfvae.export.parity.plans import Job, describe_steps
from wfvae.runtime.bundle import Bundle
from wfvae.spec.frames import lead_frames, padded_size

_BUDGET = 256 << 20
"""Bytes of exposed tensors that one pass over the stream may hold; a search of a large model takes
several passes.
"""

_SHAPERS = frozenset({"Reshape", "Expand"})
"""Operators whose second input is a shape, which may be computed differently for the same tensor."""


def search_plans(job: Job, steps: Sequence[int]) -> str:
    """Names the first tensor of the step graph that differs between `steps` and one step of
    everything.
    """
    return _on_onnxruntime(job, lambda: _search_plans(job, steps))


def search_direct(job: Job, steps: Sequence[int]) -> str:
    """Names the first tensor that differs between the step graph, run in `steps`, and the direct
    graph.

    Compared are tensors that both graphs compute by the same operations from the same weights. What
    time alone makes different (history, interpolation, delay) has no counterpart and is counted as
    not compared.
    """
    return _on_onnxruntime(job, lambda: _search_direct(job, steps))


def _on_onnxruntime(job: Job, search: Callable[[], str]) -> str:
    name = job.bundle.backend.describe().get("name")
    if name != "onnxruntime":
        return (
            "not searched: inner tensors of two plans can be compared on ONNX Runtime only, and the backend"
            f" is {name}"
        )
    return guarded(job.bundle.manifest.precision, search)


def guarded(precision: str, search: Callable[[], str]) -> str:
    """What `search` finds or, in words, why it found nothing; Polygraphy's own output is silenced."""
    if precision not in ("fp32", "fp16"):
        return f"not searched: inner tensors of a {precision} graph cannot be read out"
    try:
        from polygraphy.logger import G_LOGGER
    except ImportError:
        return "not searched: this needs the package polygraphy; run: pip install 'wfvae[export]'"
    # Polygraphy formats every array for its log, though the log is off; in full that would take
    # longer than comparing.
    brief = np.printoptions(threshold=0, edgeitems=1)
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"), brief:
            return search()
    except (
        Exception
    ) as error:  # of ONNX Runtime and Polygraphy; the check's numbers are worth more than this hint
        return f"not found, the search failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _search_plans(job: Job, steps: Sequence[int]) -> str:
    graph = exposed(job, job.bundle)
    x, everything = stream_input(job), (job.latents,)
    names = list(graph.frame_axes)
    for block in _blocks(graph, names, job.latents):
        found = _first_unequal(block, graph.run_steps(x, steps, block), graph.run_steps(x, everything, block))
        if found:
            where = f"between steps of {describe_steps(steps)} and one step of {job.latents}"
            return f"{_describe(graph, *found)}, {where}; {_coverage(graph, names)}"
    return (
        "none of the tensors differs once they are exposed (which prevents fusion);"
        f" {_coverage(graph, names)}"
    )


def _search_direct(job: Job, steps: Sequence[int]) -> str:
    step, direct = exposed(job, job.bundle), exposed(job, job.bundle, ".direct")
    pairs = _counterparts(step, direct)
    x, clip = stream_input(job), clip_input(job)
    for block in _blocks(step, list(pairs), job.latents):
        streamed = step.run_steps(x, steps, block)
        whole = direct.run_clip(clip, {pairs[name] for name in block})
        aligned = {name: _align(streamed[name], whole[pairs[name]]) for name in block}
        comparable = [name for name in block if aligned[name] is not None]
        found = _first_unequal(comparable, _column(aligned, 0), _column(aligned, 1))
        if found:
            return (
                f"{_describe(step, *found)}, between the stream and the direct graph;"
                f" {_coverage(step, pairs)}"
            )
    return (
        "none of the tensors with a counterpart in the direct graph differs once exposed;"
        f" {_coverage(step, pairs)}"
    )


def _first_unequal(
    names: Iterable[str], ours: Mapping[str, Array], theirs: Mapping[str, Array]
) -> tuple[str, float] | None:
    """The first of `names` whose values are not all equal, and their largest difference."""
    from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc

    names = list(names)
    runs = RunResults()
    for runner, arrays in (("stream", ours), ("reference", theirs)):
        runs.append((runner, [IterationResult({name: arrays[name] for name in names}, runner_name=runner)]))
    [accuracy] = Comparator.compare_accuracy(
        runs, compare_func=SimpleCompareFunc(atol=0, rtol=0, fail_fast=True)
    )
    compared = accuracy["stream", "reference"][0]
    for name in names:
        if name in compared and not compared[name]:
            return name, float(getattr(compared[name], "max_absdiff", np.nan))
    return None


def _counterparts(step: ExposedGraph, direct: ExposedGraph) -> dict[str, str]:
    """Tensors of the step graph, in order, with those of the direct graph that compute the same."""
    by_signature = {
        signature: name for name, signature in _signatures(direct).items() if name in direct.frame_axes
    }
    mine = _signatures(step)
    pairs = {name: by_signature[mine[name]] for name in step.frame_axes if mine[name] in by_signature}
    output = step.spec.outputs[0].name
    return pairs | {output: direct.spec.outputs[0].name}


def _signatures(graph: ExposedGraph) -> dict[str, int]:
    """A number for what each tensor is: equal in two graphs if the same operations make it from the
    same weights.

    A convolution with weights of its own is known by these, whatever feeds it; so the comparison
    takes up again behind operations that exist in one graph only.
    """
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    found: dict[str, int] = {graph.spec.inputs[0].name: hash("input")}
    for node in graph.model.graph.node:
        inputs = list(node.input[:1] if node.op_type in _SHAPERS else node.input)
        known: list[object] = [
            name if name in constants else found.get(name, hash((graph.spec.kind, name))) for name in inputs
        ]
        if node.op_type == "Conv" and node.input[1] in constants:
            known = [node.input[1]]
        attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
        for index, output in enumerate(node.output):
            found[output] = hash((node.op_type, attributes, tuple(known), index))
    return found


def _align(streamed: Array, whole: Array) -> tuple[Array, Array] | None:
    """Cuts the stream's frames to the clip's: the leading copies and the delay go.

    How many these are depends on the place in the network, so all offsets are tried and the best is
    taken. None if the shapes do not fit.
    """
    spare = len(streamed) - len(whole)
    if spare < 0 or not len(whole) or streamed.shape[1:] != whole.shape[1:]:
        return None
    candidates = (streamed[offset : offset + len(whole)] for offset in range(spare + 1))
    return min(
        ((cut, whole) for cut in candidates),
        key=lambda pair: float(np.nan_to_num(np.abs(pair[0] - whole), nan=np.inf).max()),
    )


def _column(aligned: Mapping[str, tuple[Array, Array] | None], side: int) -> dict[str, Array]:
    return {name: pair[side] for name, pair in aligned.items() if pair is not None}


def exposed(job: Job, bundle: Bundle, suffix: str = "") -> ExposedGraph:
    """The job's step graph, or another of its direction, in `bundle`."""
    return ExposedGraph(
        bundle, bundle.manifest.graphs[job.direction + suffix], *padded_size(job.height, job.width)
    )


def stream_input(job: Job) -> Array:
    """The stream's network input, without batch: frames with lead and tail, or latents."""
    clip = clip_input(job)
    if job.direction == "decoder":
        return clip
    return np.concatenate([np.repeat(clip[:1], lead_frames(job.bundle.ratio), axis=0), clip])


def _blocks(graph: ExposedGraph, names: Sequence[str], latents: int) -> Iterable[list[str]]:
    return blocks(
        names, {name: graph.frame_axes[name].bytes_per_latent * (latents + 1) for name in names}, _BUDGET
    )


def _describe(graph: ExposedGraph, name: str, error: float) -> str:
    node: onnx.NodeProto = graph.producers[name]
    return f"{name} (node {node.name}, {node.op_type}), by at most {error:.3g}"


def _coverage(graph: ExposedGraph, compared: Collection[str]) -> str:
    total = len(graph.order)
    return f"{len(compared)} of {total} tensors could be compared"
