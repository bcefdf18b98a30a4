"""Finds the first tensor, in graph order, at which a backend parts from ONNX Runtime on the CPU.
Polygraphy runs and compares.

Both run the step graph with its inner tensors as outputs, and both are fed the reference's states:
so each step begins alike, and what is found is one step's own error, not what was carried over. The
TensorRT part has never run: there was no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from wfvae.export.parity.difference import Array
from wfvae.export.parity.exposed_graph import ExposedGraph, blocks
from wfvae.export.parity.layer_search import exposed, guarded, stream_input
from wfvae.export.parity.plans import Job, describe_steps
from wfvae.export.parity.rules import Rule
from wfvae.runtime.bundle import Bundle

Feeds = Sequence[Mapping[str, Array]]
MakeRunner = Callable[[ExposedGraph, onnx.ModelProto, Feeds], Any]
"""Makes a Polygraphy runner of a backend for a graph with more outputs, and the inputs that it will
get.
"""

_BUDGET = 512 << 20
"""Bytes of tensors that are compared at once; each further part of a large graph needs another
session or engine.
"""


def search_backend(
    job: Job,
    reference: Bundle,
    steps: Sequence[int],
    rule: Rule,
    runners: Mapping[str, MakeRunner] | None = None,
) -> str:
    """Names the first tensor that differs by more than the rule's share of its own largest value.

    Args:
        job: on the backend in question.
        reference: the same bundle on ONNX Runtime's CPU provider.
        steps: latents per step.
        runners: by backend's name; `RUNNERS` if None.
    """
    name = str(job.bundle.backend.describe().get("name"))
    make = (RUNNERS if runners is None else runners).get(name)
    if make is None:
        return f"not searched: there is no way yet to read inner tensors on the backend {name}"
    return guarded(job.bundle.manifest.precision, lambda: _search(job, reference, steps, rule, make))


def _search(job: Job, reference: Bundle, steps: Sequence[int], rule: Rule, make: MakeRunner) -> str:
    theirs, ours = exposed(job, reference), exposed(job, job.bundle)
    feeds = theirs.feeds(stream_input(job), steps)
    sizes = theirs.float_tensors(max(steps))
    for block in blocks(list(sizes), {name: 2 * len(feeds) * size for name, size in sizes.items()}, _BUDGET):
        found = _first_different(block, theirs, ours, feeds, rule, make)
        if found is not None:
            name, step, error, allowed = found
            node = theirs.producers[name]
            return (
                f"{name} (node {node.name}, {node.op_type}), by {error:.3g} where {allowed:.3g} is allowed,"
                f" in step {step + 1} of {describe_steps(steps)} from equal states; {len(sizes)} of"
                f" {len(theirs.order)} tensors could be compared"
            )
    return (
        "no tensor differs within a step from equal states, once exposed (which prevents fusion), by more"
        f" than {rule.tolerance:g} of its largest value; {len(sizes)} of {len(theirs.order)} tensors could be"
        " compared"
    )


def _first_different(
    names: Sequence[str], theirs: ExposedGraph, ours: ExposedGraph, feeds: Feeds, rule: Rule, make: MakeRunner
) -> tuple[str, int, float, float] | None:
    """(name, step, error, error allowed), or None."""
    from polygraphy.comparator import Comparator, SimpleCompareFunc

    runners = [
        make(ours, ours.exposing(names), feeds),
        onnxruntime_runner(theirs, theirs.exposing(names), feeds),
    ]
    runs = Comparator.run(runners, data_loader=list(feeds))
    expected = runs[1][1]
    bound = Rule(rule.tolerance, relative=True)
    allowed = {
        name: max(bound.allowed(np.array(result[name], np.float32)) for result in expected) for name in names
    }
    if not rule.tolerance:
        allowed = dict.fromkeys(names, 0.0)
    [accuracy] = Comparator.compare_accuracy(
        runs, compare_func=SimpleCompareFunc(atol=allowed, rtol=0, fail_fast=True)
    )
    [steps] = accuracy.values()
    for name in names:
        for index, compared in enumerate(steps):
            if name in compared and not compared[name]:
                return name, index, float(getattr(compared[name], "max_absdiff", np.nan)), allowed[name]
    return None


def onnxruntime_runner(graph: ExposedGraph, model: onnx.ModelProto, feeds: Feeds) -> Any:
    """The model on the provider that the graph's bundle is opened on."""
    from polygraphy.backend.onnxrt import OnnxrtRunner

    return OnnxrtRunner(
        graph.session(model), name=f"onnxruntime {graph.bundle.backend.describe().get('provider')}"
    )


def tensorrt_runner(graph: ExposedGraph, model: onnx.ModelProto, feeds: Feeds) -> Any:
    """An engine of the model for the shapes of `feeds`, built when the runner starts; strongly
    typed, as the bundle's own.
    """
    from onnx.external_data_helper import load_external_data_for_model
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


def openvino_runner(graph: ExposedGraph, model: onnx.ModelProto, feeds: Feeds) -> Any:
    """The model in OpenVINO, with the bundle's precision hint and threads."""
    from wfvae.export.parity.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(model, graph.bundle.path, dict(graph.bundle.backend.describe()))


RUNNERS: Mapping[str, MakeRunner] = {
    "onnxruntime": onnxruntime_runner,
    "openvino": openvino_runner,
    "tensorrt": tensorrt_runner,
}
"""How each backend's inner tensors are read."""
