"""Export: graphs that match the manifest, hold for every size, and compute the model."""

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
import pytest
import torch
from onnx import TensorProto
from torch import nn

from wfvae.errors import BundleError, StreamingError
from wfvae.export.bundle import ExportOptions, export_bundle, graph_spec
from wfvae.export.recorder.graph import trace
from wfvae.export.recorder.recorder import Recorder
from wfvae.export.recorder.tensor import OVERRIDES, TracedTensor
from wfvae.export.symbolic import Size
from wfvae.model.causal import CausalConv3d, StreamChunk
from wfvae.model.vae import WFVAE
from wfvae.runtime import Bundle, open_bundle
from wfvae.spec.frames import SPATIAL_RATIO
from wfvae.spec.manifest import METADATA_KEY, OPSETS, Manifest

FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
Exported = Callable[..., Path]
Opened = Callable[..., Bundle]
SmallModel = Callable[..., WFVAE]
KEYS = ("encoder", "decoder", "encoder.direct", "decoder.direct")
each_fixture = pytest.mark.parametrize("name", FIXTURES)
each_graph = pytest.mark.parametrize("key", KEYS)


def load(bundle: Path, key: str) -> onnx.ModelProto:
    return onnx.load(str(bundle / f"{key}.onnx"), load_external_data=False)


def declared(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | str]]:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return value.name, str(dtype), [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def content(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(bundle.iterdir())}


def uniform(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def clip(frames: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (frames, 16, 24, 3), dtype=np.uint8)


# What the graphs declare


@pytest.mark.parametrize(
    "options", [{}, {"latents": "moments"}, {"size": (16, 24)}, {"precision": "fp16"}, {"precision": "bf16"}]
)
@each_graph
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
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == {METADATA_KEY: graph}
    channels = {"encoder": graph["outputs"], "decoder": graph["inputs"]}[graph["direction"]][0]["shape"][2]
    assert channels == (8 if options.get("latents") == "moments" and graph["direction"] == "encoder" else 4)


# Sizes


@each_fixture
@pytest.mark.parametrize(
    ("batch", "groups", "height", "width"), [(1, 1, 8, 8), (3, 2, 24, 16), (2, 0, 16, 40)]
)
def test_direct_graphs_of_any_size_give_the_models_values(
    opened: Opened, reference_model: SmallModel, name: str, batch: int, groups: int, height: int, width: int
) -> None:
    model, bundle = reference_model(name), opened(name)
    x = uniform(batch, 1 + groups * bundle.ratio, 3, height, width)
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(x).transpose(1, 2)).latent_dist.mean
        video = model.decode(mean).sample
    latents = bundle.direct_session("encoder").run(x)
    np.testing.assert_allclose(latents, mean.transpose(1, 2).numpy(), rtol=0, atol=2e-5)
    decoded = bundle.direct_session("decoder").run(latents)
    np.testing.assert_allclose(decoded, video.transpose(1, 2).numpy(), rtol=0, atol=1e-4)


@each_fixture
@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize(("lengths", "size"), [((1, 3), (1, 16, 8)), ((2, 1), (3, 8, 24))])
def test_step_graphs_of_any_size_give_the_models_values_and_states(
    opened: Opened, reference_model: SmallModel, name: str, direction: Any, lengths: Any, size: Any
) -> None:
    """In the second step, row 1 starts anew and row 2 ends."""
    batch, height, width = size
    model, session = reference_model(name), opened(name).step_session(direction)
    ratio, channels = model.config.temporal_compression, model.config.latent_dim
    state: Any = session.new_state(batch, height, width)
    torch_state = model.initial_state(direction, batch, height, width)
    for index, count in enumerate(lengths):
        x = uniform(batch, ratio * count, 3, height, width)
        if direction == "decoder":
            x = uniform(batch, count, channels, height // SPATIAL_RATIO, width // SPATIAL_RATIO)
        start = np.array([index == 0 or row == 1 for row in range(batch)])
        end = np.array([index == 1 and row == 2 for row in range(batch)])
        output = session.step(state, x, start, end)
        step = model.encoder_step if direction == "encoder" else model.decoder_step
        flags = (torch.from_numpy(start), torch.from_numpy(end))
        with torch.no_grad():
            expected, torch_state = step(torch.from_numpy(x).transpose(1, 2), torch_state, *flags)
        expected = expected[:, :channels].transpose(1, 2)
        np.testing.assert_allclose(output, expected.numpy(), rtol=0, atol=1e-4)
        read = state.read()
        assert set(read) == set(torch_state)
        for path, tensor in torch_state.items():
            np.testing.assert_allclose(read[path], tensor.numpy(), rtol=1e-4, atol=1e-4, err_msg=path)


def test_fixed_size_gives_bits_of_free_size_and_refuses_others(opened: Opened) -> None:
    free, fixed = opened("4x8x8-trilinear"), opened("4x8x8-trilinear", size=(16, 24))
    assert fixed.manifest.size == (16, 24)
    latents = free.encode(clip(9))
    assert np.array_equal(fixed.encode(clip(9)), latents)
    assert np.array_equal(fixed.decode(latents), free.decode(latents))
    message = r"encoder\.direct\.onnx failed on an input of shape \(1, 1, 3, 16, 16\)"
    with pytest.raises(BundleError, match=message):
        fixed.direct_session("encoder").run(np.zeros((1, 1, 3, 16, 16), np.float32))


@pytest.mark.parametrize("opset", OPSETS)
def test_opsets_give_the_same_values(opened: Opened, exported: Exported, opset: int) -> None:
    """The export checks each with ONNX's checker; three of them are run, too."""
    bundle = exported("small", opset=opset)
    assert [(entry.domain, entry.version) for entry in load(bundle, "decoder").opset_import] == [("", opset)]
    if opset in (18, 20, 23):
        wanted, other = opened("small"), opened("small", opset=opset)
        latents = other.encode(clip(10))
        np.testing.assert_allclose(latents, wanted.encode(clip(10)), rtol=0, atol=1e-5)
        decoded, expected = (bundle.decode(latents, pixels="float32") for bundle in (other, wanted))
        np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-5)


# Files

EXPORT_SCRIPT = """
import sys
from pathlib import Path
from wfvae.export.bundle import ExportOptions, export_bundle
from wfvae.model.vae import WFVAE
export_bundle(WFVAE.from_pretrained(sys.argv[1]), Path(sys.argv[2]), ExportOptions(direct=True))
"""


def test_exports_of_two_processes_are_byte_identical(
    exported: Exported, reference_dir: Path, tmp_path: Path
) -> None:
    """With other hash seeds, another folder and number of threads."""
    checkpoint, wanted = reference_dir / "8x8x8-trilinear", content(exported("8x8x8-trilinear"))
    export_bundle(WFVAE.from_pretrained(checkpoint), tmp_path / "again", ExportOptions(direct=True))
    assert content(tmp_path / "again") == wanted
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    arguments = [sys.executable, "-c", EXPORT_SCRIPT, str(checkpoint), str(tmp_path / "other")]
    run = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert content(tmp_path / "other") == wanted


@each_fixture
def test_files_hold_nothing_of_the_exporting_machine(exported: Exported, name: str) -> None:
    words = [str(Path.cwd()), str(Path.home()), os.path.dirname(torch.__file__)]
    words += ["site-packages", ".py", "Traceback", "torch.nn"]
    words += [word for word in (getpass.getuser(), os.uname().nodename) if len(word) > 4]
    for file, data in content(exported(name)).items():
        found = [word for word in words if word.encode() in data] if file != "weights.bin" else []
        assert found == [], file
    assert all(not node.doc_string for node in load(exported(name), "decoder").graph.node)


def test_weights_of_all_graphs_are_stored_once_and_aligned(exported: Exported) -> None:
    bundle = exported("4x8x8-trilinear")
    places: dict[str, tuple[int, int]] = {}
    for tensor in [tensor for key in KEYS for tensor in load(bundle, key).graph.initializer]:
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {entry.key: entry.value for entry in tensor.external_data}
            place = int(entry["offset"]), int(entry["length"])
            assert entry["location"] == "weights.bin" and place[0] % 64 == 0
            assert places.setdefault(tensor.name, place) == place
    spans = sorted((offset, offset + length) for offset, length in places.values())
    assert all(end <= begin < end + 64 for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[0][0] == 0 and spans[-1][1] == (bundle / "weights.bin").stat().st_size


# Destinations


def test_destination_that_is_no_bundle_is_refused(small_model: SmallModel, tmp_path: Path) -> None:
    folder, file, empty = (tmp_path / name for name in ("folder", "file", "empty"))
    folder.mkdir()
    (folder / "note.txt").write_text("mine")
    file.write_text("mine")
    for path, overwrite in itertools.product((folder, file), (False, True)):
        with pytest.raises(BundleError, match="exists and is not a bundle; choose another name"):
            export_bundle(small_model(), path, overwrite=overwrite)
    assert (folder / "note.txt").read_text() == file.read_text() == "mine"
    empty.mkdir()
    export_bundle(small_model(), empty)
    assert Manifest.read(empty)


def test_existing_bundle_is_replaced_only_on_demand(small_model: SmallModel, tmp_path: Path) -> None:
    bundle, stages = tmp_path / "deep/er/bundle", list[str]()
    export_bundle(small_model(), bundle, progress=stages.append)
    assert stages[0] == "tracing encoder" and stages[-1] == "checking decoder.direct.onnx"
    with pytest.raises(BundleError, match="exists; choose another name, or replace it with --overwrite"):
        export_bundle(small_model(), bundle)
    (bundle / "engines").mkdir()
    export_bundle(small_model(), bundle, ExportOptions(opset=21), overwrite=True)
    assert Manifest.read(bundle).opset == 21 and not (bundle / "engines").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("wfvae.export.bundle.store_constants", OSError(28, "No space left on device")),
        ("os.replace", OSError(28, "No space left on device")),
        ("onnx.checker.check_model", KeyboardInterrupt()),
    ],
)
def test_failed_export_leaves_the_old_bundle(
    small_model: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, error: Any
) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(small_model(), bundle)
    before = content(bundle)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(target, fail)
    with pytest.raises((BundleError, KeyboardInterrupt)) as caught:
        export_bundle(small_model(), bundle, ExportOptions(opset=21), overwrite=True)
    if isinstance(caught.value, BundleError):
        assert "No space left on device; check the disk's space" in str(caught.value)
    assert content(bundle) == before and [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8'; expected one of fp32, fp16, bf16"),
        ({"latents": "sample"}, "latents is 'sample'; expected one of mean, moments"),
        ({"convolutions": "fast"}, "convolutions is 'fast'; expected one of minimal, plain, volume"),
        ({"target": "npu"}, "target is 'npu'; expected one of auto, cpu, openvino, gpu"),
        ({"opset": 17}, "opset is 17; expected 18 to 24"),
        ({"opset": 20, "precision": "bf16"}, "opset is 20; expected at least 22 for bf16"),
        ({"size": (16, 20)}, "size is 16x20; expected multiples of 8, or dynamic"),
        ({"size": (0, 8)}, "size is 0x8"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        ExportOptions(**options)


# Models that cannot be exported


def test_groupnorm_and_training_mode_are_refused(small_model: SmallModel, tmp_path: Path) -> None:
    flow = {"encoder_energy_flow_hidden_size": 32, "decoder_energy_flow_hidden_size": 32}
    with pytest.raises(StreamingError, match=r"groupnorm.*(frames|statistics|time)"):
        export_bundle(small_model(norm_type="groupnorm", base_channels=32, **flow), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    model = small_model(dropout=0.1).train()
    with pytest.raises(StreamingError, match=r"in training mode; call eval\(\)"):
        trace(model, graph_spec(model, "encoder", "step"), opset=20)


def test_unknown_operation_is_refused(
    small_model: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(OVERRIDES, torch.nn.functional.silu)
    with pytest.raises(StreamingError, match="the export has no ONNX form for silu"):
        export_bundle(small_model(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def add_input(recorder: Recorder, name: str, *shape: Any, dtype: torch.dtype = torch.float32) -> Any:
    return TracedTensor(recorder, recorder.add_input(name, shape, dtype))


BATCH, COUNT = Size.symbol("batch"), Size.symbol("n")


@pytest.mark.parametrize(
    ("kernel", "stride", "chunk", "constant"),
    [(3, 1, 4, True), (3, 2, 4, True), (4, 3, 6, True), (4, 3, 4, False), (5, 3, 8, False), (2, 3, 4, False)],
)
def test_cache_that_varies_is_refused(kernel: int, stride: int, chunk: int, constant: bool) -> None:
    """Equation (4): kernel 4, stride 3 and chunks of 4 frames cache 1, 2, 3, 1, ... frames."""
    conv = CausalConv3d(3, 4, spatial=1, kernel=kernel, stride=(stride, 1), kernel_spatial=3)
    conv.path = "conv"
    recorder = Recorder(conv)
    frames = add_input(recorder, "frames", BATCH, chunk * COUNT, 3, 8, 8)
    state = add_input(recorder, "state.conv", BATCH, kernel - stride, 3, 8, 8)
    start = add_input(recorder, "start", BATCH, dtype=torch.bool)
    view = StreamChunk({"conv": state} if kernel > stride else {}, start, start)
    with recorder.recording():
        if constant:
            conv(frames, view)
            assert view.next_state["conv"].shape == (BATCH, kernel - stride, 3, 8, 8)
        else:
            with pytest.raises(StreamingError, match=r"cache would change from chunk to chunk \(eq\. 4\)"):
                conv(frames, view)


def test_varying_slice_is_refused() -> None:
    x = add_input(Recorder(nn.Identity()), "x", COUNT, 2)
    with pytest.raises(StreamingError, match="a slice ends at"):
        x[: COUNT - 1]


# Precision


def test_fp16_runs_on_the_cpu_near_fp32(opened: Opened) -> None:
    half, full = opened("4x8x8-trilinear", precision="fp16"), opened("4x8x8-trilinear")
    latents, wanted = half.encode(clip(13)), full.encode(clip(13))
    assert latents.dtype == np.float32
    assert 0 < np.abs(latents - wanted).max() < 0.01 * np.abs(wanted).max()
    decoded, expected = (bundle.decode(wanted, pixels="float32") for bundle in (half, full))
    assert 0 < np.abs(decoded - expected).max() < 0.01 * np.abs(expected).max()


# Architectures

NO_PATHS = {"energy_flow_l2": False, "energy_flow_l3": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "without energy paths": NO_PATHS,
    "without W(3) path": {"energy_flow_l3": False},
    "nearest without attention": {"t_interpolation": "nearest", "use_attention": False},
    "C_flow 64": {"encoder_energy_flow_hidden_size": 64, "decoder_energy_flow_hidden_size": 64},
    "other depths": {"encoder_num_resblocks": 1, "decoder_num_resblocks": 3, "connect_res_layer_num": 0},
    "8x8x8 without W(2) path": {"temporal_compression": 8, "energy_flow_l2": False},
    "8x8x8 nearest, no paths": {"temporal_compression": 8, "t_interpolation": "nearest", **NO_PATHS},
}


@pytest.mark.parametrize("overrides", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_stream_of_any_architecture_gives_the_models_values(
    small_model: SmallModel, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    model = small_model(**overrides)
    export_bundle(model, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle", provider="cpu", threads=1)
    frames = uniform(1 + 2 * bundle.ratio, 16, 24, 3)
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
for name in ("kaiming_uniform_", "uniform_"):  # drawing 317 million numbers takes longer than the export
    setattr(torch.nn.init, name, lambda tensor, *rest, **options: tensor.fill_(0.01))
from wfvae.model.config import WFVAEConfig
from wfvae.export.bundle import export_bundle
from wfvae.model.vae import WFVAE
manifest = export_bundle(WFVAE(WFVAEConfig.preset(sys.argv[1])), Path(sys.argv[2]))
print(manifest.parameters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_export_of_the_largest_preset_needs_little_memory(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PRESET_SCRIPT, "L", str(tmp_path / "bundle")]
    run = subprocess.run(arguments, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    parameters, peak = map(int, run.stdout.split())
    # Transformed filters are 4/3 or 16/9 of the weights that they replace, which are nearly all.
    assert 4 * parameters < (tmp_path / "bundle/weights.bin").stat().st_size < 1.5 * 4 * parameters
    # Weights and filters are 2.5 times the parameters, 3.1 GB, and libraries. Measured: 3.4 GB; as
    # whole weights in float64 4.5 to 4.9.
    assert peak < 2.6 * 4 * parameters + 0.6e9
