"""Bundle to Triton model repository: one model per direction, with weights, configuration and, for
TensorRT, a build script.

    repository/
      wfvae.json                  what it was made from and how
      wfvae_encoder/config.pbtxt
      wfvae_encoder/1/model.onnx  the bundle's graph in Triton's shapes
      wfvae_encoder/1/weights.bin this direction's part of the bundle's weights, copied: ONNX tools refuse links
      wfvae_decoder/...

No torch. Nothing here has met a server: see `docs/triton.md`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from wfvae.errors import BundleError
from wfvae.export.triton.config import FORMAT, PLATFORMS, TritonOptions, config_text, model_size, tensor_dims
from wfvae.export.triton.graph import with_second_axis
from wfvae.spec.engines import WHOLE_CLIP, sound_records
from wfvae.spec.manifest import WEIGHTS_NAME, GraphSpec, Manifest, state_input
from wfvae.spec.stream import Direction

RECORD_NAME = "wfvae.json"
BUILD_NAME = "build_engines.sh"
VERSION = "1"
GRAPH_NAME = "model.onnx"
DIRECTIONS: tuple[Direction, ...] = ("encoder", "decoder")
_ALIGNMENT = 64


def write_repository(
    bundle: Path, repository: Path, options: TritonOptions | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Writes the repository to a temporary directory that is renamed when complete, and returns its
    record.

    Args:
        bundle: directory of the bundle, whose files have been verified.
        repository: directory to make.
        overwrite: replace a repository made before (never another directory).

    Raises:
        BundleError: the bundle cannot be served by this platform, or the repository cannot be
            written.
        InputError: options that do not fit the bundle.
    """
    options = options or TritonOptions()
    manifest = Manifest.read(bundle)
    size = model_size(manifest, options.size)
    graphs = {direction: manifest.graphs[direction] for direction in DIRECTIONS}
    texts = {direction: config_text(manifest, graph, options) for direction, graph in graphs.items()}
    _check_destination(repository, overwrite)
    record = {
        "format": FORMAT,
        "bundle": manifest.identity,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "models": [f"{options.name}_{direction}" for direction in DIRECTIONS],
        "precision": manifest.precision,
        "options": {**asdict(options), "size": list(size), "gpus": list(options.gpus)},
    }
    building, former = (
        repository.with_name(f".{repository.name}.{os.getpid()}.{end}") for end in ("tmp", "old")
    )
    try:
        building.mkdir(parents=True)
        for direction, graph in graphs.items():
            model = building / f"{options.name}_{direction}"
            (model / VERSION).mkdir(parents=True)
            (model / "config.pbtxt").write_text(texts[direction], encoding="utf-8")
            _write_graph(bundle, graph, model / VERSION)
        if options.platform == "tensorrt":
            _write_build_script(building / BUILD_NAME, manifest, options, size)
        (building / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if repository.exists():
            repository.replace(former)
        try:
            building.replace(repository)
        except OSError:
            if former.exists():
                former.replace(repository)
            raise
    except OSError as error:
        raise BundleError(
            f"cannot write the repository {repository}: {error.strerror or error}; check space and"
            " permissions"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if repository.exists():
            shutil.rmtree(former, ignore_errors=True)
    return record


def engine_shapes(
    manifest: Manifest, graph: GraphSpec, options: TritonOptions, size: tuple[int, int]
) -> dict[str, str]:
    """TensorRT's optimisation profile as `trtexec` takes it: the texts for min, opt and max shapes
    of all inputs.

    Where the bundle has an engine of this direction, its step lengths are taken, so that both serve
    the same steps.
    """
    steps = _engine_steps(manifest, graph) or (1, min(4, options.max_latents), options.max_latents)
    batches = (1, options.max_batch, options.max_batch)
    texts = {}
    for kind, batch, latents in zip(("min", "opt", "max"), batches, steps, strict=True):
        count = latents * (graph.stream.ratio if graph.direction == "encoder" else 1)
        shapes = {tensor.name: tensor_dims(tensor.shape, size) for tensor in graph.inputs}
        shapes |= {state_input(state.name): tensor_dims(state.shape, size) for state in graph.states}
        texts[kind] = ",".join(
            f"{name}:{'x'.join(str(count if d < 0 else d) for d in (batch, *dims))}"
            for name, dims in shapes.items()
        )
    return texts


def _engine_steps(manifest: Manifest, graph: GraphSpec) -> tuple[int, int, int] | None:
    """(least, best, most) latents per step of the bundle's newest engine of this direction, those
    of verification left out.

    None if there is no engine: then the options decide.
    """
    for record in reversed(sound_records(manifest)):
        if record.graph == graph.direction:
            spans = [profile.latents for profile in record.profiles if profile.name != WHOLE_CLIP]
            return min(span.low for span in spans), spans[0].best, max(span.high for span in spans)
    return None


def _write_graph(bundle: Path, graph: GraphSpec, folder: Path) -> None:
    model = with_second_axis(onnx.load(str(bundle / graph.file), load_external_data=False))
    _copy_weights(model, bundle / WEIGHTS_NAME, folder / WEIGHTS_NAME)
    (folder / GRAPH_NAME).write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(folder / GRAPH_NAME), full_check=True)


def _copy_weights(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Copies what the graph reads of the bundle's weights, and tells the graph where it is now."""
    with source.open("rb") as weights, target.open("wb") as file:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            weights.seek(int(place["offset"]))
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = str(file.tell())
            file.write(weights.read(int(place["length"])))


def _write_build_script(
    path: Path, manifest: Manifest, options: TritonOptions, size: tuple[int, int]
) -> None:
    plan = PLATFORMS["tensorrt"][1]
    lines = [
        "#!/bin/sh",
        (
            "# Builds the TensorRT engines of this repository. Run it on the GPU that serves, inside the"
            " server's own image: a plan is good"
        ),
        (
            "# for one TensorRT version and one kind of GPU. Written by 'wfvae triton'; has never run on the"
            " machine that wrote it."
        ),
        "set -eu",
        'cd "$(dirname "$0")"',
        'trtexec="${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}"',
    ]
    for direction in DIRECTIONS:
        folder = f"{options.name}_{direction}/{VERSION}"
        shapes = engine_shapes(manifest, manifest.graphs[direction], options, size)
        arguments = [
            f"--onnx={folder}/{GRAPH_NAME}",
            f"--saveEngine={folder}/{plan}",
            "--stronglyTyped",
            "--skipInference",
        ]
        arguments += [] if options.tf32 else ["--noTF32"]
        arguments += [f"--{kind}Shapes={text}" for kind, text in shapes.items()]
        lines.append(" \\\n  ".join(['"$trtexec"', *arguments]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)


def _check_destination(repository: Path, overwrite: bool) -> None:
    if not repository.exists():
        return
    ours = (repository / RECORD_NAME).is_file()
    if not ours and not (repository.is_dir() and not any(repository.iterdir())):
        raise BundleError(f"{repository} exists and was not made by 'wfvae triton'; choose another name")
    if ours and not overwrite:
        raise BundleError(
            f"the repository {repository} exists; choose another name, or replace it with --overwrite"
        )
