"""Export: graphs that are what the manifest says, hold for every size, tell nothing of the machine,
and compute the model.
"""

from __future__ import annotations

import getpass
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn

from wfvae.errors import BundleError, StreamingError
from wfvae.export.bundle import OPSETS, ExportOptions, export_bundle, graph_spec
from wfvae.export.recorder.graph import trace
from wfvae.export.recorder.recording import Recorder
from wfvae.export.recorder.tensor import OVERRIDES, TracedTensor
from wfvae.export.symbolic import Size
from wfvae.model.causal import CausalConv3d, StreamChunk
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.runtime import Bundle, open_bundle
from wfvae.spec.manifest import METADATA_KEY, Manifest

FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
Exported = Callable[..., Path]
Opened = Callable[..., Bundle]
SmallModel = Callable[..., WFVAE]
TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
}
# What engines are known to take. An addition needs a look at TensorRT's and OpenVINO's lists.
OPERATORS = frozenset(
    {
        "Add",
        "And",
        "Cast",
        "Concat",
        "Conv",
        "DepthToSpace",
        "Div",
        "Equal",
        "Expand",
        "Identity",
        "LayerNormalization",
        "LessOrEqual",
        "MatMul",
        "Min",
        "Mul",
        "Or",
        "Pad",
        "Range",
        "Reshape",
        "Resize",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)


def load(bundle: Path, key: str) -> onnx.ModelProto:
    return onnx.load(str(bundle / f"{key}.onnx"), load_external_data=False)


def declared(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | str]]:
    tensor = value.type.tensor_type
    return value.name, TYPES[tensor.elem_type], [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def content(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(bundle.iterdir())}


# What the graphs declare --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"latents": "moments"}, {"size": (16, 24)}, {"precision": "fp16"}, {"precision": "bf16"}]
)
@pytest.mark.parametrize("key", ["encoder", "decoder", "encoder.direct", "decoder.direct"])
def test_manifest_graph_and_metadata_agree(exported: Exported, key: str, options: dict[str, Any]) -> None:
    bundle = exported("4x8x8-trilinear", **options)
    manifest, model = json.loads((bundle / "manifest.json").read_text()), load(bundle, key)
    graph = manifest["graphs"][key]

    def fixed(dim: int | str) -> int | str:
        symbol, _, divisor = str(dim).partition("/")
        sizes = dict(zip(("height", "width"), manifest["size"] or (), strict=False))
        return sizes[symbol] // int(divisor or 1) if symbol in sizes else dim

    for side in ("input", "output"):
        wanted = [(t["name"], t["dtype"], [fixed(dim) for dim in t["shape"]]) for t in graph[f"{side}s"]]
        wanted += [(s[side], s["dtype"], [fixed(dim) for dim in s["shape"]]) for s in graph["states"]]
        assert [declared(value) for value in getattr(model.graph, side)] == wanted
    for state in graph["states"]:
        assert (state["input"], state["output"]) == (f"state.{state['name']}", f"next_state.{state['name']}")
    assert bool(graph["states"]) == (graph["kind"] == "step")
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == {METADATA_KEY: graph}
    channels = {"encoder": graph["outputs"], "decoder": graph["inputs"]}[graph["direction"]][0]["shape"][2]
    assert channels == (8 if options.get("latents") == "moments" and graph["direction"] == "encoder" else 4)


@pytest.mark.parametrize("key", ["encoder", "decoder"])
def test_onnx_runtime_reads_the_same(exported: Exported, key: str) -> None:
    bundle = exported("8x8x8-trilinear")
    graph = Manifest.read(bundle).graphs[key]
    session = onnxruntime.InferenceSession(str(bundle / graph.file), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in graph.inputs] + [f"state.{state.name}" for state in graph.states]
    assert [value.name for value in session.get_inputs()] == names
    shapes = [list(tensor.shape) for tensor in graph.inputs] + [list(state.shape) for state in graph.states]
    assert [value.shape for value in session.get_inputs()] == shapes
    assert set(session.get_modelmeta().custom_metadata_map) == {METADATA_KEY}


@pytest.mark.parametrize("name", FIXTURES)
def test_operators(exported: Exported, name: str) -> None:
    for key in ("encoder", "decoder", "encoder.direct", "decoder.direct"):
        model = onnx.shape_inference.infer_shapes(load(exported(name), key))
        assert {node.op_type for node in model.graph.node} <= OPERATORS
        assert {node.domain for node in model.graph.node} == {""}
        ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*model.graph.value_info, *model.graph.output)
        }
        resizes = [node for node in model.graph.node if node.op_type == "Resize"]
        assert all(ranks[node.output[0]] == 4 for node in resizes) and bool(resizes) == key.startswith(
            "decoder"
        )
        assert len({node.name for node in model.graph.node}) == len(model.graph.node) and not model.functions


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize(
    ("batch", "groups", "height", "width"), [(1, 1, 8, 8), (3, 2, 24, 16), (2, 0, 16, 40)]
)
def test_direct_graphs_hold_for_every_size(
    opened: Opened,
    reference_model: Callable[..., WFVAE],
    name: str,
    batch: int,
    groups: int,
    height: int,
    width: int,
) -> None:
    model, bundle = reference_model(name), opened(name)
    frames = 1 + groups * bundle.ratio
    x = np.random.default_rng(0).uniform(-1, 1, (batch, frames, 3, height, width)).astype(np.float32)
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(x).transpose(1, 2)).latent_dist.mean
        video = model.decode(mean).sample
    latents = bundle.direct_session("encoder").run(x)
    np.testing.assert_allclose(latents, mean.transpose(1, 2).numpy(), rtol=0, atol=2e-5)
    decoded = bundle.direct_session("decoder").run(latents)
    np.testing.assert_allclose(decoded, video.transpose(1, 2).numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_step_graphs_hold_for_every_size(
    opened: Opened, reference_model: Callable[..., WFVAE], name: str, direction: Any
) -> None:
    """Two steps of other lengths, rows that start and end at other times, all states: against the
    model's own steps.
    """
    model, session = reference_model(name), opened(name).step_session(direction)
    generator = np.random.default_rng(0)
    for batch, lengths, height, width in ((1, (1, 3), 16, 8), (3, (2, 1), 8, 24)):
        state: Any = session.new_state(batch, height, width)
        torch_state = model.initial_state(direction, batch, height, width)
        for index, count in enumerate(lengths):
            ratio, channels = model.config.temporal_compression, model.config.latent_dim
            shape = (
                (ratio * count, 3, height, width)
                if direction == "encoder"
                else (count, channels, height // 8, width // 8)
            )
            x = generator.uniform(-1, 1, (batch, *shape)).astype(np.float32)
            start = np.array([index == 0 or row == 1 for row in range(batch)])
            end = np.array([index == 1 and row == 2 for row in range(batch)])
            output = session.step(state, x, start, end)
            arguments = [torch.from_numpy(x).transpose(1, 2), torch_state]
            with torch.no_grad():
                if direction == "encoder":
                    moments, torch_state = model.encoder_step(*arguments, start=torch.from_numpy(start))
                    expected = moments[:, :channels]
                else:
                    expected, torch_state = model.decoder_step(
                        *arguments, start=torch.from_numpy(start), end=torch.from_numpy(end)
                    )
            np.testing.assert_allclose(output, expected.transpose(1, 2).numpy(), rtol=0, atol=1e-4)
            read = state.read()
            assert set(read) == set(torch_state)
            for path, tensor in torch_state.items():
                np.testing.assert_allclose(read[path], tensor.numpy(), rtol=1e-4, atol=1e-4, err_msg=path)


def test_a_fixed_size_is_fixed(opened: Opened) -> None:
    free, fixed = opened("4x8x8-trilinear"), opened("4x8x8-trilinear", size=(16, 24))
    assert fixed.manifest.size == (16, 24)
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
    latents = free.encode(frames)
    assert np.array_equal(fixed.encode(frames), latents) and np.array_equal(
        fixed.decode(latents), free.decode(latents)
    )
    with pytest.raises(
        BundleError, match=r"encoder\.direct\.onnx failed on an input of shape \(1, 1, 3, 16, 16\)"
    ):
        fixed.direct_session("encoder").run(np.zeros((1, 1, 3, 16, 16), np.float32))


@pytest.mark.parametrize("opset", OPSETS)
def test_opsets(opened: Opened, exported: Exported, opset: int) -> None:
    """The export checks each with ONNX's checker; all that this ONNX Runtime knows also give the
    same numbers.
    """
    bundle = exported("small", opset=opset)
    assert [(entry.domain, entry.version) for entry in load(bundle, "decoder").opset_import] == [("", opset)]
    if opset in (18, 20, 23):
        frames = np.random.default_rng(0).integers(0, 256, (10, 16, 24, 3), dtype=np.uint8)
        wanted = opened("small")
        latents = opened("small", opset=opset).encode(frames)
        np.testing.assert_allclose(latents, wanted.encode(frames), rtol=0, atol=1e-5)
        decoded = opened("small", opset=opset).decode(latents, pixels="float32")
        np.testing.assert_allclose(decoded, wanted.decode(latents, pixels="float32"), rtol=0, atol=1e-5)


# Files --------------------------------------------------------------------------------------------

EXPORT_SCRIPT = """
import sys
from pathlib import Path
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.model.vae import WFVAE
export_bundle(WFVAE.from_pretrained(sys.argv[1]), Path(sys.argv[2]), ExportOptions(direct=True))
"""


def test_exports_are_byte_identical(exported: Exported, reference_dir: Path, tmp_path: Path) -> None:
    """In this process and in another with other hash seeds, folder and number of threads."""
    checkpoint = reference_dir / "8x8x8-trilinear"
    wanted = content(exported("8x8x8-trilinear"))
    export_bundle(WFVAE.from_pretrained(checkpoint), tmp_path / "again", ExportOptions(direct=True))
    assert content(tmp_path / "again") == wanted
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    arguments = [sys.executable, "-c", EXPORT_SCRIPT, str(checkpoint), str(tmp_path / "other")]
    run = subprocess.run(
        arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert content(tmp_path / "other") == wanted


@pytest.mark.parametrize("name", FIXTURES)
def test_nothing_tells_of_the_exporting_machine(exported: Exported, name: str) -> None:
    words = [
        str(Path.cwd()),
        str(Path.home()),
        os.path.dirname(torch.__file__),
        "site-packages",
        ".py",
        "Traceback",
        "torch.nn",
    ]
    words += [word for word in (getpass.getuser(), os.uname().nodename) if len(word) > 4]
    for file, data in content(exported(name)).items():
        found = [word for word in words if word.encode() in data] if file != "weights.bin" else []
        assert found == [], file
    assert all(not node.doc_string for node in load(exported(name), "decoder").graph.node)


def test_weights_are_stored_once(exported: Exported) -> None:
    bundle = exported("4x8x8-trilinear")
    places: dict[str, tuple[str, ...]] = {}
    read = {}
    for key in ("encoder", "decoder", "encoder.direct", "decoder.direct"):
        entries = {}
        for tensor in load(bundle, key).graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                assert place["location"] == "weights.bin" and int(place["offset"]) % 64 == 0
                entries[tensor.name] = (place["offset"], place["length"])
        assert all(places.setdefault(name, where) == where for name, where in entries.items())
        read[key] = set(entries)
    assert read["encoder"] == read["encoder.direct"] and read["decoder"] == read["decoder.direct"]
    spans = sorted((int(offset), int(offset) + int(length)) for offset, length in places.values())
    assert all(end <= begin < end + 64 for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[0][0] == 0 and spans[-1][1] == (bundle / "weights.bin").stat().st_size
    plain = Manifest.read(exported("4x8x8-trilinear", convolutions="plain"))
    assert (
        plain.parameters * 4
        <= sum(plain.graphs[key].weights_bytes for key in ("encoder", "decoder"))
        <= plain.parameters * 4.2
    )


def test_the_weights_are_the_checkpoints(exported: Exported, reference_model: Callable[..., WFVAE]) -> None:
    weights = (exported("4x8x8-trilinear", convolutions="plain") / "weights.bin").read_bytes()
    for name, tensor in reference_model("4x8x8-trilinear").state_dict().items():
        if tensor.ndim == 4 and tensor.nbytes > 4096:
            assert tensor.numpy().tobytes() in weights, name


def test_two_exports_of_one_checkpoint_agree_in_its_hash(exported: Exported) -> None:
    manifests = [
        Manifest.read(exported("4x8x8-trilinear", **options))
        for options in ({}, {"precision": "fp16"}, {"size": (16, 24)})
    ]
    assert len({manifest.checkpoint_sha256 for manifest in manifests}) == 1
    assert len({manifest.identity for manifest in manifests}) == 3
    assert Manifest.read(exported("8x8x8-trilinear")).checkpoint_sha256 != manifests[0].checkpoint_sha256


# Destinations -------------------------------------------------------------------------------------


def test_destinations(small_model: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    folder, file, empty, bundle = (tmp_path / name for name in ("folder", "file", "empty", "deep/er/bundle"))
    folder.mkdir()
    (folder / "note.txt").write_text("mine")
    file.write_text("mine")
    empty.mkdir()
    for path in (folder, file):
        for overwrite in (False, True):
            with pytest.raises(BundleError, match="exists and is not a bundle; choose another name"):
                export_bundle(model, path, overwrite=overwrite)
    assert (folder / "note.txt").read_text() == file.read_text() == "mine"
    export_bundle(model, empty)
    stages: list[str] = []
    export_bundle(model, bundle, progress=stages.append)
    assert (
        stages[0] == "tracing encoder"
        and "writing weights" in stages
        and stages[-1] == "checking decoder.onnx"
    )
    before = content(bundle)
    with pytest.raises(BundleError, match="exists; choose another name, or replace it with --overwrite"):
        export_bundle(model, bundle)

    def no_space(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    for target, replacement, error, message in (
        (
            "wfvae.export.bundle.store_constants",
            no_space,
            BundleError,
            "No space left on device; check the disk's space",
        ),
        ("wfvae.spec.manifest.Manifest.write", no_space, BundleError, "cannot write the bundle"),
        ("pathlib.Path.replace", no_space, BundleError, "cannot write the bundle"),
        (
            "onnx.checker.check_model",
            lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt),
            KeyboardInterrupt,
            None,
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, replacement)
            with pytest.raises(error, match=message):
                export_bundle(model, bundle, ExportOptions(opset=21), overwrite=True)
        assert content(bundle) == before and [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    (bundle / "engines").mkdir()
    export_bundle(model, bundle, ExportOptions(opset=21), overwrite=True)
    assert Manifest.read(bundle).opset == 21 and [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert not (bundle / "engines").exists()


def test_a_failing_rename_brings_the_old_bundle_back(
    small_model: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = small_model(), tmp_path / "bundle"
    export_bundle(model, bundle)
    before, honest = content(bundle), Path.replace

    def fail_for_the_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp") and self.is_dir():
            raise PermissionError(13, "Permission denied")
        return honest(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_the_new)
    with pytest.raises(BundleError, match="Permission denied"):
        export_bundle(model, bundle, ExportOptions(opset=21), overwrite=True)
    assert content(bundle) == before and [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8'; expected one of fp32, fp16, bf16"),
        ({"latents": "sample"}, "latents is 'sample'; expected mean or moments"),
        ({"opset": 17}, "opset is 17; expected 18 to 24"),
        ({"opset": 20, "precision": "bf16"}, "opset is 20; expected at least 22 for bf16"),
        ({"size": (16, 20)}, "size is 16x20; expected multiples of 8, or dynamic"),
        ({"size": (0, 8)}, "size is 0x8"),
        ({"convolutions": "fast"}, "convolutions is 'fast'; expected minimal or plain"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        ExportOptions(**options)


# Models that cannot be exported -------------------------------------------------------------------


def test_groupnorm_is_refused_with_the_reason(small_model: SmallModel, tmp_path: Path) -> None:
    widths = {
        "base_channels": 32,
        "encoder_energy_flow_hidden_size": 32,
        "decoder_energy_flow_hidden_size": 32,
    }
    with pytest.raises(StreamingError, match=r"groupnorm.*(frames|statistics|time)"):
        export_bundle(small_model(norm_type="groupnorm", **widths), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_training_mode_is_refused(small_model: SmallModel) -> None:
    model = small_model(dropout=0.1).train()
    with pytest.raises(StreamingError, match=r"in training mode; call eval\(\)"):
        trace(model, graph_spec(model, "encoder", "step", "mean"), opset=20)


def test_an_unknown_operation_is_refused(
    small_model: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OVERRIDES, torch.nn.functional.silu)
    with pytest.raises(StreamingError, match="the export has no ONNX form for silu"):
        export_bundle(small_model(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def add_input(recorder: Recorder, name: str, shape: Any, dtype: torch.dtype) -> Any:
    return TracedTensor(recorder, recorder.builder.add_input(name, shape, dtype))


class Toy(nn.Module):
    """One causal convolution, with its only state."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(3, 4, spatial=1, kernel=kernel, stride=(stride, 1), kernel_spatial=3)
        self.conv.path = "conv"

    def forward(self, frames: Any, clip: Any) -> Any:
        return self.conv(frames, clip)


@pytest.mark.parametrize(
    ("kernel", "stride", "chunk", "constant"),
    [
        (3, 1, 4, True),
        (3, 2, 4, True),
        (4, 2, 4, True),
        (4, 3, 3, True),
        (4, 3, 6, True),
        (4, 3, 4, False),
        (5, 3, 8, False),
        (2, 3, 4, False),
    ],
)
def test_a_cache_that_varies_is_refused(kernel: int, stride: int, chunk: int, constant: bool) -> None:
    """Equation (4): with kernel 4, stride 3 and chunks of 4 frames the cache would be 1, 2, 3, 1,
    ... frames long.
    """
    toy = Toy(kernel, stride)
    recorder = Recorder(toy)
    batch, height, width = (Size.symbol(name) for name in ("batch", "height", "width"))
    frames: Any = add_input(
        recorder, "frames", (batch, chunk * Size.symbol("n"), 3, height, width), torch.float32
    )
    state: Any = add_input(recorder, "state.conv", (batch, kernel - stride, 3, height, width), torch.float32)
    start: Any = add_input(recorder, "start", (batch,), torch.bool)
    clip = StreamChunk({"conv": state} if kernel > stride else {}, start, start)
    if constant:
        with recorder.recording():
            toy(frames, clip)
        assert clip.next_state["conv"].shape == (batch, kernel - stride, 3, height, width)
    else:
        with (
            pytest.raises(
                StreamingError, match=r"its causal cache would change from chunk to chunk \(eq\. 4\)"
            ),
            recorder.recording(),
        ):
            toy(frames, clip)


def test_unknown_functions_and_varying_slices_are_refused() -> None:
    recorder = Recorder(nn.Identity())
    x: Any = add_input(recorder, "x", (Size.symbol("n"), 2), torch.float32)
    with pytest.raises(StreamingError, match="no ONNX form for relu"):
        torch.relu(x)
    with pytest.raises(StreamingError, match="a slice ends at"):
        x[: Size.symbol("n") - 1]


def test_shapes_that_are_taken_back_leave_no_node() -> None:
    recorder = Recorder(nn.Identity())
    frames: Any = add_input(
        recorder, "frames", (Size.symbol("batch"), Size.symbol("n"), 2, 4, 4), torch.float32
    )
    with recorder.recording():
        images = frames.flatten(0, 1)
        assert images.reshape(frames.shape) is frames
        whole = images.flatten(1, 3)
    recorder.builder.keep_only([whole])
    assert [(node.op_type, node.input[0]) for node in recorder.builder.nodes] == [("Reshape", "frames")]
    assert whole.shape == (Size.symbol("batch") * Size.symbol("n"), 32)


def test_a_convolution_pads_by_itself() -> None:
    conv, images = (
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(0)),
    )
    around = (0, 1, 2, 3)
    recorder = Recorder(conv)
    traced: Any = add_input(recorder, "images", images.shape, torch.float32)
    with recorder.recording():
        result: Any = conv(torch.nn.functional.pad(traced, around))
    recorder.builder.keep_only([result])
    [node] = recorder.builder.nodes
    assert (node.op_type, list(node.attribute[[a.name for a in node.attribute].index("pads")].ints)) == (
        "Conv",
        [3, 1, 4, 2],
    )
    expected = conv(torch.nn.functional.pad(images, around))
    assert tuple(result.shape) == tuple(expected.shape)


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"size": (16, 24)}])
@pytest.mark.parametrize("graph", ["encoder", "decoder", "encoder.direct", "decoder.direct"])
def test_every_node_and_constant_serves_an_output(
    exported: Callable[..., Path], graph: str, options: dict[str, Any]
) -> None:
    proto = onnx.load(
        str(exported("4x8x8-trilinear", **options) / f"{graph}.onnx"), load_external_data=False
    ).graph
    used = {name for node in proto.node for name in node.input} | {output.name for output in proto.output}
    assert [node.name for node in proto.node if not used.intersection(node.output)] == []
    assert [constant.name for constant in proto.initializer if constant.name not in used] == []


# Precision ----------------------------------------------------------------------------------------


def test_fp16_runs_on_the_cpu(opened: Opened) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (13, 16, 24, 3), dtype=np.uint8)
    half, full = opened("4x8x8-trilinear", precision="fp16"), opened("4x8x8-trilinear")
    latents = half.encode(frames)
    assert latents.dtype == np.float32
    wanted = full.encode(frames)
    assert 0 < np.abs(latents - wanted).max() < 0.01 * np.abs(wanted).max()
    decoded, expected = (bundle.decode(wanted, pixels="float32") for bundle in (half, full))
    assert (
        decoded.dtype == np.float32 and 0 < np.abs(decoded - expected).max() < 0.01 * np.abs(expected).max()
    )
    half_plan, full_plan = (bundle.plan("decoder", height=256, width=256) for bundle in (half, full))
    assert (
        abs(half_plan.state_bytes / full_plan.state_bytes - 0.5) < 0.01
        and half_plan.weights_bytes < 0.51 * full_plan.weights_bytes
    )


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)]
)
@pytest.mark.parametrize("key", ["encoder", "decoder", "encoder.direct", "decoder.direct"])
def test_half_precision_graphs(exported: Exported, precision: str, kind: int, key: str) -> None:
    """Valid ONNX; all weights are half, and all norms and softmaxes stand between casts."""
    bundle = exported("4x8x8-trilinear", precision=precision)
    onnx.checker.check_model(str(bundle / f"{key}.onnx"), full_check=True)
    model = load(bundle, key)
    made_by = {output: node for node in model.graph.node for output in node.output}
    used_by: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            used_by.setdefault(name, []).append(node)
    wide = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert len(wide) > 5
    for node in wide:
        for name in node.input:
            assert made_by[name].op_type == "Cast" and made_by[name].attribute[0].i == TensorProto.FLOAT
        for user in used_by[node.output[0]]:
            assert user.op_type == "Cast" and user.attribute[0].i == kind
    assert {
        tensor.data_type for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL
    } == {kind}
    video = [
        value for value in (*model.graph.input, *model.graph.output) if value.name in ("frames", "latents")
    ]
    assert len(video) == 2 and {value.type.tensor_type.elem_type for value in video} == {TensorProto.FLOAT}


# Architectures ------------------------------------------------------------------------------------

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "without energy paths": {"energy_flow_l2": False, "energy_flow_l3": False},
    "without W(2) path": {"energy_flow_l2": False},
    "without W(3) path": {"energy_flow_l3": False},
    "8 latent channels": {"latent_dim": 8},
    "no attention": {"use_attention": False},
    "nearest": {"t_interpolation": "nearest"},
    "C_flow 64": {"encoder_energy_flow_hidden_size": 64, "decoder_energy_flow_hidden_size": 64},
    "other depths": {"encoder_num_resblocks": 1, "decoder_num_resblocks": 3, "connect_res_layer_num": 0},
    "8x8x8 without W(2) path": {"temporal_compression": 8, "energy_flow_l2": False},
    "8x8x8 nearest, no paths": {
        "temporal_compression": 8,
        "t_interpolation": "nearest",
        "energy_flow_l2": False,
        "energy_flow_l3": False,
    },
}


@pytest.mark.parametrize("overrides", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_architectures(small_model: SmallModel, tmp_path: Path, overrides: dict[str, Any]) -> None:
    model = small_model(**overrides)
    export_bundle(model, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle", provider="cpu", threads=1)
    frames = np.random.default_rng(0).uniform(-1, 1, (1 + 2 * bundle.ratio, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(frames).permute(3, 0, 1, 2)[None]).latent_dist.mean
        video = model.decode(mean).sample[0].permute(1, 2, 3, 0).numpy()
    latents = bundle.encode(frames, chunk=2)
    np.testing.assert_allclose(latents, mean[0].transpose(0, 1).numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(bundle.decode(latents, chunk=1, pixels="float32"), video, rtol=0, atol=1e-4)


PRESET_SCRIPT = """
import resource, sys
from pathlib import Path
import torch
for name in ("kaiming_uniform_", "uniform_"):  # drawing 317 million random numbers takes longer than the export
    setattr(torch.nn.init, name, lambda tensor, *rest, **options: tensor.fill_(0.01))
from wfvae.model.config import WFVAEConfig
from wfvae.export.bundle import export_bundle
from wfvae.model.vae import WFVAE
manifest = export_bundle(WFVAE(WFVAEConfig.preset(sys.argv[1])), Path(sys.argv[2]))
print(manifest.parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_the_largest_preset_is_exported_in_little_memory(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PRESET_SCRIPT, "L", str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    parameters, peak = map(int, run.stdout.split())
    # Transformed filters are 4/3 or 16/9 of the weights that they stand for, which are nearly all.
    assert 4 * parameters < (tmp_path / "bundle/weights.bin").stat().st_size < 1.5 * 4 * parameters
    # Weights and filters are 2.5 times the parameters, 3.1 GB, and libraries. Seen: 3.4 GB; with
    # whole weights in float64 4.5 to 4.9.
    assert peak < 2.6 * 4 * parameters + 0.6e9


@pytest.mark.parametrize("preset", ["S", "M"])
def test_presets_are_traced(preset: Any) -> None:
    """Without their weights, which need not exist for that."""
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.preset(preset)).eval()
    for direction in ("encoder", "decoder"):
        for kind in ("step", "direct"):
            graph = graph_spec(model, direction, kind, "mean")  # type: ignore[arg-type]
            traced = trace(model, graph, opset=20, convolutions="minimal")
            assert traced.weights_bytes > 4 * 0.2 * sum(parameter.numel() for parameter in model.parameters())
            assert {node.op_type for node in traced.model.graph.node} <= OPERATORS
