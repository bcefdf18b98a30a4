"""ONNX files that declare what they do not hold, or what no bundle has."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from wfvae.errors import BundleError
from wfvae.spec.onnx_file import check_graph

Change = Callable[[Any], object]


def small_model() -> Any:
    """y = x + c, where c is 4 floats in the file, and d 64 bytes of `weights.bin`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    inside = numpy_helper.from_array(np.zeros(4, np.float32), "c")
    outside = TensorProto(
        name="d", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "weights.bin"), ("offset", "64"), ("length", "64")):
        outside.external_data.add(key=key, value=value)
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", [x], [y], [inside, outside])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def written(folder: Path, change: Change) -> Path:
    model = small_model()
    change(model)
    (folder / "weights.bin").write_bytes(bytes(128))
    (folder / "graph.onnx").write_bytes(model.SerializeToString())
    return folder / "graph.onnx"


def place(**changes: str) -> Change:
    def change(model: Any) -> None:
        for entry in model.graph.initializer[1].external_data:
            entry.value = changes.get(entry.key, entry.value)

    return change


def node(operator: str, **attributes: Any) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(operator, ["x"], ["z"], **attributes))


def dims(index: int, *sizes: int) -> Change:
    def change(model: Any) -> None:
        del model.graph.initializer[index].dims[:]
        model.graph.initializer[index].dims.extend(sizes)

    return change


def foreign(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


INNER = helper.make_graph([], "inner", [], [])
TENSOR = numpy_helper.from_array(np.zeros(1, np.float32))
REFUSED: dict[str, tuple[Change, str]] = {
    "an initializer of terabytes": (dims(0, 10**6, 10**6), "shape .* with 16 bytes of data"),
    "a negative shape": (dims(0, -4), "shape"),
    "external data of terabytes": (dims(1, 10**12), "a tensor of 4000000000000 bytes in 64 bytes"),
    "data behind the end": (place(offset="128"), r"64 bytes at 128 of weights.bin \(128 bytes\)"),
    "a negative offset": (place(offset="-64"), "data at '-64'"),
    "a huge length": (place(length="9" * 400), "data at"),
    "data in a file that is not listed": (place(location="other.bin"), "other.bin.* does not list"),
    "data outside of the folder": (place(location="../weights.bin"), "does not list"),
    "a constant's shape": (node("ConstantOfShape", value=TENSOR), "operator 'ConstantOfShape'"),
    "a loop": (node("Loop", body=INNER), "graph .*inside a node|operator"),
    "an operator of others": (node("Add", domain="com.example"), "another domain"),
    "a function": (lambda model: model.functions.add(name="f"), "functions"),
    "sparse data": (lambda model: model.graph.sparse_initializer.add(), "sparse"),
    "text": (lambda model: setattr(model.graph.initializer[0], "data_type", TensorProto.STRING), "type 8"),
    "no graph": (lambda model: model.ClearField("graph"), "0 graphs"),
}


def test_graph_of_a_bundle_is_summed(tmp_path: Path) -> None:
    path = written(tmp_path, lambda model: None)
    onnx.checker.check_model(str(path))
    assert check_graph(path, ["weights.bin"]) == 16 + 64


@pytest.mark.parametrize("kind", REFUSED)
def test_graph_that_declares_what_no_bundle_has_is_refused(tmp_path: Path, kind: str) -> None:
    change, says = REFUSED[kind]
    with pytest.raises(BundleError, match=says) as caught:
        check_graph(written(tmp_path, change), ["weights.bin"])
    assert str(caught.value).startswith("cannot load graph.onnx: ") and "\n" not in str(caught.value)


def test_cut_or_changed_graph_is_read_to_the_end_or_refused(tmp_path: Path) -> None:
    path = written(tmp_path, lambda model: None)
    data, random = path.read_bytes(), np.random.default_rng(0)
    for count in range(600):
        changed = bytearray(data[: count % len(data)] if count < len(data) else data)
        for position in random.integers(0, max(len(changed), 1), 3) if count >= len(data) else ():
            changed[position] = random.integers(256)
        path.write_bytes(changed)
        try:
            assert check_graph(path, ["weights.bin"]) >= 0
        except BundleError as error:
            assert "\n" not in str(error)


def test_pipe_or_huge_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "huge.onnx").touch()
    os.truncate(tmp_path / "huge.onnx", 1 << 40)
    for name in ("pipe", "huge", "none"):
        with pytest.raises(BundleError, match=f"cannot load {name}.onnx"):
            check_graph(tmp_path / f"{name}.onnx", [])
