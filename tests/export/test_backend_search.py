"""A backend beside ONNX Runtime on the CPU: the check, and the first tensor at which they differ.

The other backend is ONNX Runtime with one weight changed, or one that forgets its state.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from wfvae.errors import InputError
from wfvae.export.parity import Verification, search, verify
from wfvae.export.parity.exposed_graph import ExposedGraph
from wfvae.runtime.backends.base import BackendOptions
from wfvae.runtime.backends.onnxruntime import OnnxRuntimeBackend
from wfvae.runtime.bundle import Bundle
from wfvae.spec.manifest import Manifest
from wfvae.video.synthetic.clips import ProceduralClip

NAME = "4x8x8-trilinear"
CHECK = "backend = onnxruntime"
FRAMES = ProceduralClip(3, 8, 16).frames(0, 21)  # 6 latents: steps of 4 and 2


class Another:
    """A backend of another name, on ONNX Runtime with the graphs of `folder`."""

    def __init__(self, folder: Path, step_of: Callable[[Any], Any] = lambda session: session) -> None:
        self._inner = OnnxRuntimeBackend(folder, ["weights.bin"], BackendOptions(provider="cpu", threads=1))
        self._wrap = step_of

    def describe(self) -> dict[str, str]:
        return {"name": "another", "device": "cpu", "threads": "1"}

    def open_step(self, graph: Any) -> Any:
        return self._wrap(self._inner.open_step(graph))

    def open_direct(self, graph: Any) -> Any:
        return self._inner.open_direct(graph)


def on_another(path: Path, folder: Path, **options: Any) -> Bundle:
    return Bundle(path, Manifest.read(path), Another(folder, **options))


def with_changed_weight(source: Path, folder: Path, direction: str, place: float) -> tuple[Path, str]:
    """Copies a bundle and changes the weights of a convolution at this share of a graph's length.

    Returns:
        The copy and the name of the convolution's output.
    """
    shutil.copytree(source, folder)
    graph = onnx.load(str(source / f"{direction}.onnx"), load_external_data=False).graph
    external = onnx.TensorProto.EXTERNAL
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_location == external}
    nodes = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]
    node = nodes[int(place * len(nodes))]
    entry = {item.key: item.value for item in weights[node.input[1]].external_data}
    with (folder / "weights.bin").open("r+b") as file:
        file.seek(int(entry["offset"]))
        values = np.frombuffer(file.read(int(entry["length"])), np.float32) * np.float32(1.5)
        file.seek(int(entry["offset"]))
        file.write(values.tobytes())
    return folder, node.output[0]


def runner_over(folder: Path) -> search.OpenRunner:
    """Returns a runner for graphs whose weights are in `folder`."""

    @contextlib.contextmanager
    def run(graph: ExposedGraph, model: onnx.ModelProto, feeds: Any) -> Iterator[Any]:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in model.graph.output]
        yield lambda feed: dict(zip(names, session.run(names, feed), strict=True))

    return run


def failed(result: Verification) -> dict[tuple[str, str], str]:
    """Returns the first differences that failed checks name, by statement and direction."""
    found: dict[tuple[str, str], str] = {}
    for check in result.checks:
        if not check.passed:
            key = check.name, check.direction
            found[key] = found.get(key, "") + (check.first_difference or "")
    return found


def test_another_backend_is_compared_with_onnxruntime_in_both_directions(
    exported: Callable[..., Path],
) -> None:
    path = exported(NAME)
    stages: list[tuple[int, int]] = []
    result = verify(
        on_another(path, path), FRAMES, progress=lambda stage, done, total: stages.append((done, total))
    )
    found = [check for check in result.checks if check.name == CHECK]
    assert result.passed and [check.direction for check in found] == ["encode", "decode"]
    assert all(check.equal_bits and check.frames == 21 and check.backend == "another" for check in found)
    assert {check.rule for check in found} == {"error <= 0.0001"}
    assert all("either side" in check.reason for check in found)
    assert stages == [(done, len(stages)) for done in range(len(stages))]


@pytest.mark.parametrize(
    ("direction", "place"),
    [("encoder", 0.3), ("encoder", 0.8), pytest.param("decoder", 0.6, marks=pytest.mark.slow)],
)
def test_layer_with_another_weight_is_named(
    exported: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    direction: str,
    place: float,
) -> None:
    path = exported(NAME)
    folder, tensor = with_changed_weight(path, tmp_path / "changed", direction, place)
    monkeypatch.setattr(search, "RUNNERS", {"another": runner_over(folder)})
    verb = {"encoder": "encode", "decoder": "decode"}[direction]
    differences = failed(verify(on_another(path, folder), FRAMES))
    # Its stream and its direct inference are wrong alike; only the comparison with another backend
    # sees it.
    assert set(differences) == {(CHECK, verb)}
    found = differences[CHECK, verb]
    assert found.startswith(f"{tensor} (node ") and "Conv), by " in found
    assert "is allowed, in step 1 of 4+2 from equal states" in found


@pytest.mark.slow
def test_openvino_is_searched_with_a_runner_of_its_own(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from wfvae.runtime.backends.openvino import OpenVinoBackend

    path = exported(NAME)
    folder, tensor = with_changed_weight(path, tmp_path / "changed", "decoder", 0.6)
    backend = OpenVinoBackend(folder, ["weights.bin"], BackendOptions(threads=1))

    def over_changed_weights(graph: ExposedGraph, model: onnx.ModelProto, feeds: Any) -> Any:
        return search.open_openvino(
            SimpleNamespace(bundle=SimpleNamespace(path=folder, backend=backend)), model, feeds
        )

    monkeypatch.setattr(search, "RUNNERS", {"openvino": over_changed_weights})
    differences = failed(verify(Bundle(path, Manifest.read(path), backend), FRAMES))
    assert set(differences) == {(CHECK, "decode")}
    assert differences[CHECK, "decode"].startswith(f"{tensor} (node ")


def test_backend_that_forgets_its_state_has_no_wrong_tensor(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both get the reference's states, which separates an error carried over from a step's own."""

    def forgetting(session: Any) -> Any:
        if session.graph.direction == "decoder":
            return session
        real = session.step

        def step(state: Any, x: Any, start: Any, end: Any, on_device: bool = False) -> Any:
            before = state.read()
            result = real(state, x, start, end, on_device)
            if not start.any():
                state.write(before)
            return result

        session.step = step
        return session

    path = exported(NAME)
    monkeypatch.setattr(search, "RUNNERS", {"another": runner_over(path)})
    bundle = on_another(path, path, step_of=forgetting)
    differences = failed(verify(bundle, FRAMES))
    assert {name for name, _ in differences} >= {"plan invariance", "stream = direct"}
    [text] = [text for text in differences.values() if text]
    assert text.startswith("no tensor differs within a step from equal states")


def test_polygraphy_takes_the_tensorrt_runner_without_tensorrt(
    opened: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only names and arguments: an engine is built when the runner starts."""
    gpus: list[int] = []
    monkeypatch.setattr("wfvae.runtime.backends.nvidia.cuda.Cuda", gpus.append)
    bundle = opened(NAME)
    described = {"name": "tensorrt", "flavour": "tensorrt", "device": "cuda:1", "tf32": "true"}
    monkeypatch.setattr(bundle.backend, "describe", lambda: described)
    graph = ExposedGraph(bundle, bundle.manifest.graphs["encoder"], 16, 24)
    feeds = [{value.name: np.zeros((1, 1), np.float32) for value in graph.model.graph.input}]
    runner = search.tensorrt_runner(graph, graph.exposing([graph.spec.outputs[0].name]), feeds)
    assert type(runner).__name__ == "TrtRunner" and runner.name.startswith("tensorrt") and gpus == [1]
    with pytest.raises(InputError, match="in a process that used the other flavour"):
        search.use_flavour("rtx")


POLYGRAPHY_BUILDS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from wfvae.export.parity import search
from wfvae.export.parity.exposed_graph import ExposedGraph
from wfvae.runtime import open_bundle
from wfvae.runtime.backends.nvidia import cuda
cuda.Cuda = int
bundle = open_bundle(sys.argv[1], provider="cpu", verify=False)
described = {"flavour": "rtx", "device": "cuda:0", "tf32": "false"}
graph = ExposedGraph(bundle, bundle.manifest.graphs["encoder"], 16, 24)
[feed, *_] = graph.feeds(np.zeros((4, 3, 16, 24), np.float32), [1])
bundle.backend.describe = lambda: described
runner = search.tensorrt_runner(graph, graph.exposing([graph.spec.outputs[0].name]), [feed])
from polygraphy.backend.trt import EngineBytesFromNetwork
loader = runner._engine_or_context
engine = EngineBytesFromNetwork(loader._network, loader._config)()
print(runner.name, memoryview(engine).nbytes)
"""


@pytest.mark.slow
def test_polygraphy_builds_with_tensorrt_rtx(exported: Callable[..., Path]) -> None:
    """The engine that it would run on a GPU, in a process of its own."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    command = [sys.executable, "-c", POLYGRAPHY_BUILDS, exported(NAME)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name, size = done.stdout.split()[-2:]
    assert name.startswith("tensorrt") and int(size) > 100_000
