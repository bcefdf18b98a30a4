"""Triton repositories: the configuration against Triton's own schema, the wiring in a simulated
batcher, the client's framing.

No server has run any of it: what is shown is that the files say what Triton's schema and published
sources ask for, and that a batcher which follows them gives the runtime's own bits.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from wfvae.cli.main import main
from wfvae.errors import BundleError, InputError
from wfvae.export.triton.config import TYPES, Name, TritonOptions, config_text, to_text
from wfvae.export.triton.graph import with_second_axis
from wfvae.export.triton.repository import BUILD_NAME, RECORD_NAME, engine_shapes, write_repository
from wfvae.runtime import Bundle
from wfvae.spec.engines import BuildSettings, EngineRecord, Target, graph_sha256, profiles_for
from wfvae.spec.manifest import Manifest, state_input, state_output
from wfvae.video.synthetic.clips import ProceduralClip

HEIGHT, WIDTH = 30, 21  # padded to 32x24
FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
Exported = Callable[..., Path]
Opened = Callable[..., Bundle]


def load_example() -> Any:
    path = Path(__file__).parents[2] / "docs" / "examples" / "triton_stream.py"
    spec = importlib.util.spec_from_file_location("triton_stream", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["triton_stream"] = module
    spec.loader.exec_module(module)
    return module


example = load_example()


def parse(text: str) -> Any:
    """`config.pbtxt` as Triton's schema reads it; an unknown field or a wrong type is an error."""
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def simulated(repository: Path) -> dict[str, Any]:
    """The repository's models by name, on a simulated server."""
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    from fixtures.triton_simulator import SimulatedModel

    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    return {
        folder.name: SimulatedModel(parse((folder / "config.pbtxt").read_text()), folder)
        for folder in folders
    }


@pytest.fixture
def repository(exported: Exported, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "4x8x8-trilinear", precision: str = "fp32", **options: Any) -> Path:
        options = {"size": (HEIGHT, WIDTH), "gpu": False, **options}
        write_repository(
            exported(name, precision=precision), tmp_path / "repository", TritonOptions(**options)
        )
        return tmp_path / "repository"

    return make


# The configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", FIXTURES)
def test_every_tensor_of_the_manifest_is_configured(
    exported: Exported, repository: Callable[..., Path], name: str, precision: str
) -> None:
    folder, manifest = repository(name, precision), Manifest.read(exported(name, precision=precision))
    for direction in ("encoder", "decoder"):
        graph = manifest.graphs[direction]
        config = parse((folder / f"wfvae_{direction}" / "config.pbtxt").read_text())
        assert (config.name, config.platform, config.max_batch_size) == (
            f"wfvae_{direction}",
            "onnxruntime_onnx",
            4,
        )
        data_types = dict(type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name)
        number = {dtype: data_types[name].number for dtype, name in TYPES.items()}
        [given], [taken] = config.input, config.output
        latents = graph.inputs[0] if direction == "decoder" else graph.outputs[0]
        shapes = {"frames": [-1, 3, 32, 24], "latents": [-1, latents.shape[2], 4, 3]}
        for tensor, spec in ((given, graph.inputs[0]), (taken, graph.outputs[0])):
            assert (tensor.name, tensor.data_type, list(tensor.dims)) == (
                spec.name,
                number["float32"],
                shapes[spec.name],
            )
        batching = config.sequence_batching
        kinds = {control.name: [c.kind for c in control.control] for control in batching.control_input}
        start_end = type(config.sequence_batching).Control.Kind
        wired = {
            "start": [start_end.Value("CONTROL_SEQUENCE_START")],
            "end": [start_end.Value("CONTROL_SEQUENCE_END")],
        }
        assert kinds == {name: kind for name, kind in wired.items() if name == "start" or graph.has_end}
        states = {state.input_name: state for state in batching.state}
        assert list(states) == [state_input(state.name) for state in graph.states]
        for state in graph.states:
            found = states[state_input(state.name)]
            assert found.output_name == state_output(state.name) and found.data_type == number[state.dtype]
            assert list(found.dims) == (list(state.resolve(1, 32, 24)[1:]) or [1])
            assert found.initial_state[0].zero_data and not found.use_same_buffer_for_input_output
        assert (
            batching.max_sequence_idle_microseconds == 60_000_000
            and batching.oldest.max_candidate_sequences == 16
        )
        assert not config.model_warmup  # it would fail: its requests have no sequence, and so no state


def test_options_reach_the_configuration(exported: Exported) -> None:
    manifest = Manifest.read(exported("4x8x8-trilinear"))
    options = TritonOptions(
        size=(64, 64),
        gpus=(0, 2),
        instances=2,
        max_batch=8,
        max_sequences=9,
        max_delay_us=7,
        idle_seconds=5,
        same_buffer=True,
        tf32=True,
    )
    config = parse(config_text(manifest, manifest.graphs["decoder"], options))
    [group] = config.instance_group
    assert (list(group.gpus), group.count, group.kind) == ([0, 2], 2, type(group).Kind.Value("KIND_GPU"))
    oldest = config.sequence_batching.oldest
    assert (
        oldest.max_candidate_sequences,
        list(oldest.preferred_batch_size),
        oldest.max_queue_delay_microseconds,
    ) == (9, [8], 7)
    assert config.sequence_batching.max_sequence_idle_microseconds == 5_000_000
    assert all(state.use_same_buffer_for_input_output for state in config.sequence_batching.state)
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "cuda" and dict(accelerator.parameters) == {"use_tf32": "1"}
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    on_cpu = parse(config_text(manifest, manifest.graphs["decoder"], TritonOptions(size=(64, 64), gpu=False)))
    assert set(on_cpu.parameters) == {"wfvae"} and not on_cpu.HasField("optimization")
    engine = parse(
        config_text(manifest, manifest.graphs["decoder"], TritonOptions(size=(64, 64), platform="tensorrt"))
    )
    assert (engine.platform, engine.default_model_filename) == ("tensorrt_plan", "model.plan") and set(
        engine.parameters
    ) == {"wfvae"}


def test_text_is_deterministic_and_escaped(exported: Exported) -> None:
    manifest = Manifest.read(exported("4x8x8-trilinear"))
    graph, options = manifest.graphs["encoder"], TritonOptions(size=(8, 8))
    assert config_text(manifest, graph, options) == config_text(manifest, graph, options)
    text = 'a "quoted"\nline \\ with ä'
    config = parse(to_text({"name": text, "max_batch_size": 3, "metric_tags": [{"key": "k", "value": "v"}]}))
    assert (config.name, config.max_batch_size, dict(config.metric_tags)) == (text, 3, {"k": "v"})
    assert (
        to_text({"a": {"b": [1, -1], "c": True, "d": Name("X")}})
        == "a {\n  b: [1, -1]\n  c: true\n  d: X\n}\n"
    )


def test_the_size_is_the_bundles_or_stated(exported: Exported, tmp_path: Path) -> None:
    dynamic, fixed = exported("small"), exported("small", size=(32, 24))
    with pytest.raises(InputError, match="state it with --size"):
        write_repository(dynamic, tmp_path / "a", TritonOptions())
    with pytest.raises(InputError, match="exported for 32x24 only, and 40x40 is wanted"):
        write_repository(fixed, tmp_path / "a", TritonOptions(size=(40, 40)))
    assert not (tmp_path / "a").exists()
    for name, size in (("a", None), ("b", (30, 21))):
        assert write_repository(fixed, tmp_path / name, TritonOptions(size=size))["options"]["size"] == [
            32,
            24,
        ]
    config = (tmp_path / "a" / "wfvae_encoder" / "config.pbtxt").read_text()
    assert config == (tmp_path / "b" / "wfvae_encoder" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platform": "other"}, "expected onnxruntime or tensorrt"),
        ({"platform": "tensorrt", "gpu": False}, "GPUs only"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_batch": 4, "max_sequences": 3}, "at least max_batch, 4"),
        ({"name": "a/b"}, "expected letters"),
        ({"max_delay_us": -1}, "max_delay_us is -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TritonOptions(**options)


def test_bfloat16_is_for_tensorrt_only(exported: Exported, tmp_path: Path) -> None:
    bundle = exported("small", precision="bf16", opset=22)
    with pytest.raises(BundleError, match="no bfloat16 tensors"):
        write_repository(bundle, tmp_path / "r", TritonOptions(size=(16, 16)))
    write_repository(bundle, tmp_path / "r", TritonOptions(size=(16, 16), platform="tensorrt"))
    config = parse((tmp_path / "r" / "wfvae_encoder" / "config.pbtxt").read_text())
    assert {state.data_type for state in config.sequence_batching.state} == {14}  # TYPE_BF16


# The repository -----------------------------------------------------------------------------------


def test_graphs_have_a_second_axis_and_only_their_weights(
    exported: Exported, repository: Callable[..., Path]
) -> None:
    bundle, folder = exported("4x8x8-trilinear"), repository()
    sizes = []
    for direction in ("encoder", "decoder"):
        original = onnx.load(str(bundle / f"{direction}.onnx"))
        model = onnx.load(str(folder / f"wfvae_{direction}" / "1" / "model.onnx"))
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        for tensor in original.graph.initializer:
            assert (
                onnx.numpy_helper.to_array(tensor).tobytes()
                == onnx.numpy_helper.to_array(weights[tensor.name]).tobytes()
            )
        ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*model.graph.input, *model.graph.output)
        }
        assert min(ranks.values()) == 2 and ranks["start"] == 2
        assert [value.name for value in model.graph.input] == [value.name for value in original.graph.input]
        sizes.append((folder / f"wfvae_{direction}" / "1" / "weights.bin").stat().st_size)
    assert sum(sizes) < 1.01 * (bundle / "weights.bin").stat().st_size + 4096
    flat = with_second_axis(original)
    assert with_second_axis(flat).SerializeToString(deterministic=True) == flat.SerializeToString(
        deterministic=True
    )


def test_tensorrt_repositories_come_with_a_build_script(
    exported: Exported, repository: Callable[..., Path]
) -> None:
    folder = repository(platform="tensorrt", gpu=True, max_batch=3, max_latents=6)
    script = folder / BUILD_NAME
    assert (
        subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
        and script.stat().st_mode & 0o100
    )
    # Run with a stand-in for trtexec: every file that it names must be there, and every input must
    # have its three shapes.
    recorder = folder.parent / "trtexec"
    recorder.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    recorder.chmod(0o755)
    done = subprocess.run(
        [str(script)],
        env={"TRTEXEC": str(recorder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = done.stdout.split("--onnx=")[1:]
    assert len(calls) == 2
    for call, direction in zip(calls, ("encoder", "decoder"), strict=True):
        path, *arguments = call.split()
        model = onnx.load(str(folder / path), load_external_data=False)
        values = dict(argument.removeprefix("--").split("=") for argument in arguments if "=" in argument)
        assert values["saveEngine"] == f"wfvae_{direction}/1/model.plan" and "--noTF32" in arguments
        for kind, batch, latents in (("min", 1, 1), ("opt", 3, 4), ("max", 3, 6)):
            shapes = dict(part.split(":") for part in values[f"{kind}Shapes"].split(","))
            assert list(shapes) == [value.name for value in model.graph.input]
            for value in model.graph.input:
                shape = [int(side) for side in shapes[value.name].split("x")]
                assert len(shape) == len(value.type.tensor_type.shape.dim) and shape[0] == batch
            first = [int(side) for side in shapes[model.graph.input[0].name].split("x")]
            assert first[1:] == ([4 * latents, 3, 32, 24] if direction == "encoder" else [latents, 4, 4, 3])


def test_steps_are_those_of_the_bundles_engines(exported: Exported) -> None:
    manifest = Manifest.read(exported("4x8x8-trilinear"))
    options, target = TritonOptions(size=(32, 24)), Target("11.4.0", "NVIDIA H200", "9.0")

    def entry(direction: str, chunk: int, whole_clip: int | None = None) -> dict[str, Any]:
        settings = BuildSettings(chunk=chunk, whole_clip=whole_clip)
        profiles = profiles_for(settings, manifest.graphs[direction])
        return EngineRecord(
            graph=direction,
            graph_sha256=graph_sha256(manifest, direction),
            precision=manifest.precision,
            settings=settings,
            profiles=profiles,
            target=target,
            sha256="0" * 64,
            bytes=7,
        ).to_dict()

    def first_shapes(*engines: dict[str, Any]) -> list[str]:
        shapes = engine_shapes(manifest.with_engines(engines), manifest.graphs["encoder"], options, (32, 24))
        return [shapes[kind].split(",")[0] for kind in ("min", "opt", "max")]

    taken = ["frames:1x4x3x32x24", "frames:4x24x3x32x24", "frames:4x24x3x32x24"]
    assert (
        first_shapes(entry("encoder", 6))
        == first_shapes(entry("encoder", 2), entry("encoder", 6), entry("decoder", 3))
        == taken
    )
    assert (
        first_shapes(entry("encoder", 6, whole_clip=9)) == taken
    )  # whole clips are for verification, not for serving
    assert first_shapes(entry("encoder", 1)) == [
        "frames:1x4x3x32x24",
        "frames:4x4x3x32x24",
        "frames:4x4x3x32x24",
    ]
    default = first_shapes()
    assert default == ["frames:1x4x3x32x24", "frames:4x16x3x32x24", "frames:4x32x3x32x24"]
    damaged = {**entry("encoder", 6), "profiles": []}
    assert first_shapes(entry("decoder", 6)) == first_shapes({}) == first_shapes(damaged) == default


def test_only_repositories_are_replaced(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target, options = exported("small"), tmp_path / "r", TritonOptions(size=(16, 16))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(BundleError, match="was not made by"):
        write_repository(bundle, tmp_path / "other", options, overwrite=True)
    write_repository(bundle, target, options)
    with pytest.raises(BundleError, match="--overwrite"):
        write_repository(bundle, target, options)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wfvae.export.triton.repository._write_graph", full)
        with pytest.raises(BundleError, match="No space left"):
            write_repository(bundle, target, TritonOptions(size=(24, 24)), overwrite=True)
    assert json.loads((target / RECORD_NAME).read_text())["options"]["size"] == [16, 16]
    write_repository(bundle, target, TritonOptions(size=(24, 24)), overwrite=True)
    assert json.loads((target / RECORD_NAME).read_text())["options"]["size"] == [24, 24]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "r"]


def test_the_command(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(exported("small"))
    assert main(["triton", bundle, str(tmp_path / "r")]) == 2
    assert "state it with --size" in capsys.readouterr().err
    assert main(["triton", bundle, str(tmp_path / "r"), "--size", "20x30", "--gpus", "0,1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["models"] == ["wfvae_encoder", "wfvae_decoder"] and record["options"]["size"] == [24, 32]
    assert (
        main(
            [
                "triton",
                bundle,
                str(tmp_path / "r"),
                "--size",
                "20x30",
                "--platform",
                "tensorrt",
                "--overwrite",
            ]
        )
        == 0
    )
    assert BUILD_NAME in capsys.readouterr().out


# The wiring, in a simulated batcher ---------------------------------------------------------------


class SimulatedServer:
    """A transport to simulated models, for any number of clients in threads.

    A batch runs when every client waits for an answer, so that which requests meet in a batch does
    not depend on the machine.
    """

    def __init__(self, models: dict[str, Any], clients: int) -> None:
        self.models, self._clients = models, clients
        self._waiting, self._changed = 0, threading.Condition()

    def parameters(self, model: str) -> dict[str, str]:
        return {key: value.string_value for key, value in self.models[model].config.parameters.items()}

    def infer(self, model: str, name: str, x: Any, output: str, sequence: int, start: bool, end: bool) -> Any:
        from fixtures.triton_simulator import Pending

        request = Pending(sequence, start, end, {name: np.array(x)})
        with self._changed:
            self.models[model].submit(request)
            self._waiting += 1
            self._run()
            assert self._changed.wait_for(lambda: request.outputs is not None, timeout=60)
        assert request.outputs is not None
        return request.outputs[output]

    def leave(self) -> None:
        """One client less."""
        with self._changed:
            self._clients -= 1
            self._run()

    def _run(self) -> None:
        if self._waiting < self._clients or not self._waiting:
            return
        answered = [request for simulated in self.models.values() for request in simulated.run_batch()]
        assert answered, "no request can run"
        self._waiting -= len(answered)
        self._changed.notify_all()


def reconstruct_all(server: SimulatedServer, videos: list[Any], latents: list[int]) -> list[Any]:
    """Every video by a client of its own, all at once."""
    results: list[Any] = [None] * len(videos)
    rules = [example.Rules.read(server, f"wfvae_{direction}") for direction in ("encoder", "decoder")]

    def client(index: int) -> None:
        try:
            pieces = np.array_split(videos[index], 1 + len(videos[index]) // 5)
            parts = example.reconstruct(server, *rules, iter(pieces), HEIGHT, WIDTH, latents[index])
            results[index] = np.concatenate(list(parts))
        finally:
            server.leave()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(videos))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


@pytest.mark.parametrize("name", FIXTURES)
def test_interleaved_sequences_give_the_runtimes_bits(
    opened: Opened, repository: Callable[..., Path], name: str
) -> None:
    """The configuration's wiring: seven clients, four slots (so some wait in the backlog), at most
    three in a batch.
    """
    models = simulated(repository(name, max_batch=3, max_sequences=4))
    bundle, random = opened(name), np.random.default_rng(0)
    lengths, latents = [1, 2, 9, 13, 16, 21, 22], [2, 1, 2, 1, 2, 3, 2]
    videos = [random.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8) for length in lengths]
    results = reconstruct_all(SimulatedServer(models, len(videos)), videos, latents)
    for video, result in zip(videos, results, strict=True):
        expected = bundle.decode(bundle.encode(video), frames=len(video), height=HEIGHT, width=WIDTH)
        assert (
            result is not None and result.shape == expected.shape and result.tobytes() == expected.tobytes()
        )
    for model in models.values():
        assert (
            2 <= max(model.batches) <= 3 and model.open_sequences == 0
        )  # it was batched, and END freed every slot


def test_a_wrong_wire_is_noticed(opened: Opened, repository: Callable[..., Path]) -> None:
    """The simulator's comparison can fail: two states of one shape exchanged, or END taken for
    START.
    """
    bundle, folder = opened("4x8x8-trilinear"), repository()
    video = np.random.default_rng(1).integers(0, 256, (13, HEIGHT, WIDTH, 3), dtype=np.uint8)
    expected = bundle.decode(bundle.encode(video), frames=13, height=HEIGHT, width=WIDTH)

    def result() -> Any:
        return reconstruct_all(SimulatedServer(models, 1), [video], [1])[0]

    models = simulated(folder)
    assert result().tobytes() == expected.tobytes()
    states = models["wfvae_decoder"].config.sequence_batching.state
    first, second = next(
        (a, b) for a in states for b in states if a is not b and a.dims == b.dims and "conv" in a.input_name
    )
    first.output_name, second.output_name = second.output_name, first.output_name
    assert result().tobytes() != expected.tobytes()
    models = simulated(folder)
    start, end = models["wfvae_decoder"].config.sequence_batching.control_input
    start.name, end.name = end.name, start.name
    assert result().tobytes() != expected.tobytes()


def test_graphs_that_triton_refuses_are_refused(exported: Exported, repository: Callable[..., Path]) -> None:
    """The bundle's own graphs have flags of shape (batch,), which the server does not take; the
    simulator knows that.
    """
    folder = repository()
    (folder / "wfvae_decoder" / "1" / "model.onnx").write_bytes(
        (exported("4x8x8-trilinear") / "decoder.onnx").read_bytes()
    )
    (folder / "wfvae_decoder" / "1" / "weights.bin").write_bytes(
        (exported("4x8x8-trilinear") / "weights.bin").read_bytes()
    )
    with pytest.raises(AssertionError, match=r"start|end|age"):
        simulated(folder)


def test_the_example_from_file_to_file(
    opened: Opened, repository: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program, warm-up included, with a simulated server at the other end."""
    from wfvae.runtime.media.video_info import OutputVideo
    from wfvae.runtime.media.video_reader import open_video
    from wfvae.runtime.media.video_writer import open_video_writer

    frames = ProceduralClip(0, HEIGHT, 20, 11).frames(0, 11)
    with open_video_writer(
        tmp_path / "in.mkv", OutputVideo(20, HEIGHT, Fraction(25), codec="ffv1", pixel_format="bgr0")
    ) as writer:
        writer.write(frames)
    server = SimulatedServer(simulated(repository()), 1)
    monkeypatch.setattr(example, "GrpcTransport", lambda url: server)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(
        sys,
        "argv",
        ["triton_stream", str(tmp_path / "in.mkv"), str(tmp_path / "out"), "--latents", "2", "--warm-up"],
    )
    assert example.main() == 0
    bundle = opened("4x8x8-trilinear")
    expected = bundle.decode(bundle.encode(frames), frames=11, height=HEIGHT, width=20)
    with open_video(tmp_path / "out") as reader:
        assert np.stack(list(reader)).tobytes() == expected.tobytes()
    assert all(model.open_sequences == 0 for model in server.models.values())


# The client's framing -----------------------------------------------------------------------------


class Recorder:
    """A transport that notes requests and answers zeros of the right shape."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.requests: list[tuple[int, bool, bool]] = []
        self.sequences: set[int] = set()

    def parameters(self, model: str) -> dict[str, str]:
        config = parse((self._repository / model / "config.pbtxt").read_text())
        return {key: value.string_value for key, value in config.parameters.items()}

    def infer(self, model: str, name: str, x: Any, output: str, sequence: int, start: bool, end: bool) -> Any:
        self.requests.append((x.shape[1], start, end))
        self.sequences.add(sequence)
        if name == "frames":
            return np.zeros((1, x.shape[1] // 4, 4, 4, 3), np.float32)
        return np.zeros((1, 4 * x.shape[1], 3, 32, 24), np.float32)


def framed(
    repository: Path, direction: str, pushes: list[int], latents: int, frames: int | None = None
) -> list[tuple[int, bool, bool]]:
    recorder = Recorder(repository)
    rules = example.Rules.read(recorder, f"wfvae_{direction}")
    stream = getattr(example, f"{direction}_stream")(recorder, rules, HEIGHT, WIDTH, latents)
    channels = int(rules.graph.inputs[0].shape[2])
    shape = (HEIGHT, WIDTH, 3) if direction == "encoder" else (channels, 4, 3)
    dtype = np.uint8 if direction == "encoder" else np.float32
    given = sum(len(part) for count in pushes for part in stream.push(np.zeros((count, *shape), dtype)))
    given += sum(len(part) for part in stream.finish(frames))
    if direction == "decoder":
        assert given == (frames or 1 + 4 * (sum(pushes) - 1))
    assert len(recorder.sequences) == 1 and 0 < min(recorder.sequences) < 2**63
    return recorder.requests


def test_framing_of_requests(repository: Callable[..., Path]) -> None:
    folder = repository()
    assert framed(folder, "encoder", [1], 2) == [(4, True, True)]
    assert framed(folder, "encoder", [9], 1) == [(4, True, False), (4, False, False), (4, False, True)]
    assert framed(folder, "encoder", [3, 3, 4], 2) == [(8, True, False), (8, False, True)]
    # The decoder drains: END is on an extra request, even where no more frames are wanted.
    assert framed(folder, "decoder", [1], 2) == [(1, True, False), (1, False, True)]
    assert framed(folder, "decoder", [2, 3], 2) == [
        (2, True, False),
        (2, False, False),
        (1, False, False),
        (1, False, True),
    ]
    assert framed(folder, "decoder", [3], 4, frames=6) == [(3, True, False), (1, False, True)]


def test_framing_without_a_drain(repository: Callable[..., Path]) -> None:
    folder = repository("4x8x8-nearest-16ch")
    assert framed(folder, "decoder", [1], 2) == [(1, True, True)]
    assert framed(folder, "decoder", [1, 1, 1], 1) == [(1, True, False), (1, False, False), (1, False, True)]
    assert framed(folder, "decoder", [4], 2) == [(2, True, False), (2, False, True)]


def test_warm_up_runs_the_shapes_that_come(repository: Callable[..., Path]) -> None:
    recorder = Recorder(repository())
    for direction, expected in (("encoder", {8, 4}), ("decoder", {2, 1})):
        recorder.requests.clear()
        example.warm_up(recorder, example.Rules.read(recorder, f"wfvae_{direction}"), 2)
        assert {count for count, _, _ in recorder.requests} == expected and recorder.requests[-1][2]


def test_the_client_refuses_what_is_not_served(repository: Callable[..., Path]) -> None:
    recorder = Recorder(repository())
    encoder, decoder = (
        example.Rules.read(recorder, f"wfvae_{direction}") for direction in ("encoder", "decoder")
    )
    with pytest.raises(InputError, match="the video is 48x48, and wfvae_encoder serves 32x24"):
        example.encoder_stream(recorder, encoder, 48, 48, 1)
    other = example.Rules(decoder.model, decoder.graph, decoder.size, "0" * 64)
    with pytest.raises(InputError, match="different bundles"):
        next(example.reconstruct(recorder, encoder, other, iter([]), HEIGHT, WIDTH, 1))
    with pytest.raises(InputError, match="no rules of format"):
        example.Rules.read(SimpleNamespace(parameters=lambda model: {}), "wfvae_encoder")


def test_grpc_requests(repository: Callable[..., Path]) -> None:
    """The adapter to tritonclient: what it puts into a request, against a client that only notes
    it.
    """
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    folder = repository()
    calls: list[tuple[str, dict[str, Any]]] = []
    answer = np.ones((1, 4, 3, 32, 24), np.float32)

    def infer(model: str, inputs: Any, outputs: Any, **flags: Any) -> Any:
        [tensor], [wanted] = inputs, outputs
        calls.append(
            (
                model,
                {
                    "tensor": (tensor.name(), tensor.shape(), tensor.datatype()),
                    "wanted": wanted.name(),
                    **flags,
                },
            )
        )
        return SimpleNamespace(as_numpy={"frames": answer}.get)

    def get_model_config(model: str) -> Any:
        return SimpleNamespace(config=parse((folder / model / "config.pbtxt").read_text()))

    transport = example.GrpcTransport(
        "nowhere:1", SimpleNamespace(infer=infer, get_model_config=get_model_config)
    )
    rules = example.Rules.read(transport, "wfvae_decoder")
    result = transport.infer(
        rules.model, "latents", np.zeros((1, 1, 4, 4, 3), np.float32), "frames", 7, True, False
    )
    assert result is answer
    tensor = {"tensor": ("latents", [1, 1, 4, 4, 3], "FP32"), "wanted": "frames"}
    assert calls == [
        ("wfvae_decoder", {**tensor, "sequence_id": 7, "sequence_start": True, "sequence_end": False})
    ]
