"""The bundle's weights: one file of ONNX external data, each tensor stored once for all graphs."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from onnx import TensorProto
from torch import Tensor

from wfvae.export.recorder.graph import TracedGraph
from wfvae.export.recorder.recorder import onnx_type

_ALIGNMENT = 64
# Smaller tensors stay in the graph, where parsers want the scalars and shapes that they fold.
_EXTERNAL_FROM_BYTES = 1024


def store_constants(graphs: Iterable[TracedGraph], path: Path) -> None:
    """Adds every graph's constants to it: small ones inline, large ones as references to `path`.

    The file is written here, in order of name.
    """
    graphs = list(graphs)
    constants = {name: tensor for graph in graphs for name, tensor in graph.constants.items()}
    places: dict[str, tuple[int, int]] = {}
    with path.open("wb") as file:
        for name in sorted(constants):
            if constants[name].nbytes >= _EXTERNAL_FROM_BYTES:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                places[name] = (file.tell(), constants[name].nbytes)
                file.write(_content(constants[name]))
    for graph in graphs:
        for name in sorted(graph.constants):
            tensor = graph.constants[name]
            proto = TensorProto(name=name, data_type=onnx_type(tensor.dtype), dims=list(tensor.shape))
            if name in places:
                offset, length = places[name]
                proto.data_location = TensorProto.EXTERNAL
                for key, value in (("location", path.name), ("offset", offset), ("length", length)):
                    proto.external_data.add(key=key, value=str(value))
            else:
                proto.raw_data = bytes(_content(tensor))
            graph.model.graph.initializer.append(proto)


def state_dict_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns the hash of a checkpoint's tensors: names, types, shapes and values, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)};".encode())
        digest.update(_content(tensors[name]))
    return digest.hexdigest()


def _content(tensor: Tensor) -> memoryview:
    """Returns the content in ONNX's raw layout: row-major, little-endian."""
    return tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data
