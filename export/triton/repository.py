"""Bundle to Triton model repository: one model per direction, with its weights and configuration.

    repository/
      wfvae.json                  what it was made from, and how
      wfvae_encoder/config.pbtxt
      wfvae_encoder/1/model.onnx  the bundle's graph in Triton's shapes
      wfvae_encoder/1/weights.bin this direction's part of the weights, since ONNX refuses links
      wfvae_decoder/...
      build_engines.sh            for TensorRT

With the platform python, a version holds `model.py` and a copy of the bundle instead.

No torch.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wfvae.export.triton.config import FORMAT, PLATFORMS, TritonOptions, config_text, model_size, tensor_dims
from wfvae.files import check_replaceable, replacing
from wfvae.spec.manifest import WEIGHTS_NAME, GraphSpec, Manifest
from wfvae.spec.serving import BUNDLE_FOLDER
from wfvae.spec.stream import Direction
from wfvae.spec.tensorrt_engines import WHOLE_CLIP, sound_records

RECORD_NAME = "wfvae.json"
BUILD_NAME = "build_engines.sh"
VERSION = "1"
GRAPH_NAME = "model.onnx"
DIRECTIONS: tuple[Direction, ...] = ("encoder", "decoder")
_ALIGNMENT = 64
_AXIS, _INNER = "triton/axis", "triton/"
_SCRIPT = """\
#!/bin/sh
# Builds the TensorRT engines of this repository. Written by 'wfvae triton'.
# Run it on the GPU that serves, inside the server's own image: a plan fits one TensorRT version and
# one kind of GPU.
set -eu
cd "$(dirname "$0")"
trtexec="${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}"
"""
_MODEL = """\
# Written by 'wfvae triton'. The server's Python needs the package wfvae.
{sites}from wfvae.runtime.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
_SITE = """\
import site

site.addsitedir({folder!r})

"""


def write_repository(
    bundle: Path, repository: Path, options: TritonOptions | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes the repository and returns its record (experimental: not yet served on a GPU).

    It appears when it is complete. `overwrite` replaces a repository, never another directory.

    Raises:
        BundleError: the bundle cannot be served by this platform, or the directory is not ours.
        InputError: options that do not fit the bundle.
        ResourceError: the repository cannot be written.
    """
    options = options or TritonOptions()
    manifest = Manifest.read(bundle)
    size = model_size(manifest, options)
    graphs = {direction: manifest.graphs[direction] for direction in DIRECTIONS}
    texts = {direction: config_text(manifest, graph, options) for direction, graph in graphs.items()}
    check_replaceable(repository, "repository", RECORD_NAME, overwrite)
    record = {
        "format": FORMAT,
        "bundle": manifest.identity,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "models": [f"{options.name}_{direction}" for direction in DIRECTIONS],
        "precision": manifest.precision,
        "options": {**options.to_dict(), "size": None if size is None else list(size)},
    }
    with replacing(repository) as building:
        for direction, graph in graphs.items():
            model = building / f"{options.name}_{direction}"
            (model / VERSION).mkdir(parents=True)
            (model / "config.pbtxt").write_text(texts[direction], encoding="utf-8")
            if options.platform == "python":
                _write_python_model(bundle, model / VERSION, options)
            elif size is not None:
                _write_graph(bundle, graph, model / VERSION, size)
        if options.platform == "tensorrt" and size is not None:
            script = building / BUILD_NAME
            script.write_text(build_script(manifest, options, size), encoding="utf-8")
            script.chmod(0o755)
        (building / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def build_script(manifest: Manifest, options: TritonOptions, size: tuple[int, int]) -> str:
    """Returns a shell script that builds the TensorRT engines with `trtexec`."""
    plan = PLATFORMS["tensorrt"]["default_model_filename"]
    commands = []
    for direction in DIRECTIONS:
        folder = f"{options.name}_{direction}/{VERSION}"
        words = ['"$trtexec"', f"--onnx={folder}/{GRAPH_NAME}", f"--saveEngine={folder}/{plan}"]
        words += ["--stronglyTyped", "--skipInference"] + ([] if options.tf32 else ["--noTF32"])
        shapes = engine_shapes(manifest, manifest.graphs[direction], options, size)
        words += [f"--{kind}Shapes={text}" for kind, text in shapes.items()]
        commands.append(" \\\n  ".join(words) + "\n")
    return _SCRIPT + "".join(commands)


def engine_shapes(
    manifest: Manifest, graph: GraphSpec, options: TritonOptions, size: tuple[int, int]
) -> dict[str, str]:
    """Returns the min, opt and max shapes of all inputs as `trtexec` takes them.

    Where the bundle has an engine of this direction, its step lengths are used, so that both serve
    the same steps.
    """
    steps = _engine_steps(manifest, graph) or (1, min(4, options.max_latents), options.max_latents)
    batches = (1, options.max_batch, options.max_batch)
    dims = {tensor.name: tensor_dims(tensor.shape, size) for tensor in graph.inputs}
    dims |= {state.input: tensor_dims(state.shape, size) for state in graph.states}
    texts = {}
    for kind, batch, latents in zip(("min", "opt", "max"), batches, steps, strict=True):
        count = latents * (graph.ratio if graph.direction == "encoder" else 1)
        shapes = {name: [batch, *(count if d < 0 else d for d in found)] for name, found in dims.items()}
        texts[kind] = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return texts


def _engine_steps(manifest: Manifest, graph: GraphSpec) -> tuple[int, int, int] | None:
    """Returns the (least, best, most) latents per step of the newest engine of this direction.

    Profiles for verification do not count. None if there is no engine.
    """
    for record in reversed(sound_records(manifest)):
        if record.graph == graph.direction:
            spans = [profile.latents for profile in record.profiles if profile.name != WHOLE_CLIP]
            return min(span.low for span in spans), spans[0].best, max(span.high for span in spans)
    return None


def with_second_axis(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which `start`, `end` and counters are (batch, 1), under the same names.

    Triton passes control inputs as (batch, 1), and has no state without a dimension of its own. No
    value changes, and external weights are not read.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    flat_inputs, flat_outputs = (
        [value for value in values if len(value.type.tensor_type.shape.dim) == 1]
        for values in (graph.input, graph.output)
    )
    flat = [*flat_inputs, *flat_outputs]
    if not flat:
        return result
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), _AXIS))
    inner = {value.name: _INNER + value.name for value in flat}
    for node in graph.node:
        for fields in (node.input, node.output):
            for index, name in enumerate(fields):
                fields[index] = inner.get(name, name)
    nodes = list(graph.node)
    for value in reversed(flat_inputs):
        name = inner[value.name]
        nodes.insert(0, helper.make_node("Squeeze", [value.name, _AXIS], [name], name=name))
    for value in flat_outputs:
        name = inner[value.name]
        nodes.append(helper.make_node("Unsqueeze", [name, _AXIS], [value.name], name=name))
    del graph.node[:]
    graph.node.extend(nodes)
    for value in flat:
        value.type.tensor_type.shape.dim.add(dim_value=1)
    return result


def with_size(model: onnx.ModelProto, graph: GraphSpec, size: tuple[int, int]) -> onnx.ModelProto:
    """Returns a copy whose inputs and outputs have the padded video size; batch and time stay free.

    The server's ONNX Runtime backend refuses a model whose declared outputs are not those of the
    configuration, symbolic sizes included.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    shapes = {tensor.name: tensor.shape for tensor in (*graph.inputs, *graph.outputs)}
    shapes |= {name: state.shape for state in graph.states for name in (state.input, state.output)}
    for value in (*result.graph.input, *result.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, side in zip(dims[1:], tensor_dims(shapes[value.name], size), strict=False):
            if side > 0:
                dim.dim_value = side
    return result


def _write_graph(bundle: Path, graph: GraphSpec, folder: Path, size: tuple[int, int]) -> None:
    original = onnx.load(str(bundle / graph.file), load_external_data=False)
    model = with_second_axis(with_size(original, graph, size))
    _copy_weights(model, bundle / WEIGHTS_NAME, folder / WEIGHTS_NAME)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(folder / GRAPH_NAME), full_check=True)


def _write_python_model(bundle: Path, folder: Path, options: TritonOptions) -> None:
    """Writes `model.py`, and a copy of the bundle with its engines and tuned chunk lengths."""
    text = _MODEL.format(sites="".join(_SITE.format(folder=folder) for folder in options.site_packages))
    (folder / PLATFORMS["python"]["default_model_filename"]).write_text(text, encoding="utf-8")
    # Not the lock, nor what an interrupted job has left.
    shutil.copytree(bundle, folder / BUNDLE_FOLDER, ignore=shutil.ignore_patterns(".*"))


def _copy_weights(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Copies the weights that the graph reads, and writes their new offsets into the graph."""
    with source.open("rb") as weights, target.open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            entries = {entry.key: entry for entry in tensor.external_data}
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            weights.seek(int(entries["offset"].value))
            entries["offset"].value = str(file.tell())
            file.write(weights.read(int(entries["length"].value)))
