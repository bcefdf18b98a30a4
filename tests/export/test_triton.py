"""Triton repositories: the configuration against Triton's own schema, the wiring in a simulated
batcher that follows the server's published sources, and the framing of the example client.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from fixtures.engine_records import engine_record
from fixtures.triton_client import EXAMPLE, example
from fixtures.triton_server import free_port
from fixtures.triton_simulator import Pending, SimulatedModel
from wfvae.cli.main import main
from wfvae.errors import BundleError, InputError
from wfvae.export.triton.config import TritonOptions, config_text
from wfvae.export.triton.repository import (
    BUILD_NAME,
    RECORD_NAME,
    engine_shapes,
    with_second_axis,
    write_repository,
)
from wfvae.runtime import Bundle
from wfvae.runtime.media.video_info import OutputVideo
from wfvae.runtime.media.video_reader import open_video
from wfvae.runtime.media.video_writer import open_video_writer
from wfvae.spec.manifest import Manifest
from wfvae.spec.serving import ServingOptions
from wfvae.spec.tensorrt_engines import BuildSettings
from wfvae.video.synthetic.clips import ProceduralClip

HEIGHT, WIDTH = 30, 21  # padded to 32x24
FIXTURES = ("4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear")
DIRECTIONS = ("encoder", "decoder")
Exported = Callable[..., Path]
Opened = Callable[..., Bundle]
Make = Callable[..., Path]


def parse(text: str) -> Any:
    """`config.pbtxt` as Triton's schema reads it; an unknown field or a wrong type is an error."""
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config_of(repository: Path, model: str) -> Any:
    return parse((repository / model / "config.pbtxt").read_text())


def parameters_of(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def simulated(repository: Path) -> dict[str, SimulatedModel]:
    """The repository's models by name, on a simulated server."""
    names = [f"wfvae_{direction}" for direction in DIRECTIONS]
    return {name: SimulatedModel(config_of(repository, name), repository / name) for name in names}


@pytest.fixture
def repository(exported: Exported, tmp_path: Path) -> Make:
    def make(name: str = FIXTURES[0], precision: str = "fp32", **options: Any) -> Path:
        options = {"size": (HEIGHT, WIDTH), "gpu": False, **options}
        bundle = exported(name, precision=precision)
        write_repository(bundle, tmp_path / "repository", TritonOptions(**options))
        return tmp_path / "repository"

    return make


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in FIXTURES), (FIXTURES[0], "fp16")]
)
def test_configuration_agrees_with_manifest_and_graph(
    exported: Exported, repository: Make, name: str, precision: str
) -> None:
    manifest = Manifest.read(exported(name, precision=precision))
    for model in simulated(repository(name, precision)).values():  # compares with the graph
        graph = manifest.graphs[model.config.name.removeprefix("wfvae_")]
        channels = manifest.graphs["decoder"].inputs[0].shape[2]
        shapes = {"frames": [-1, 3, 32, 24], "latents": [-1, channels, 4, 3]}
        for tensor in (*model.config.input, *model.config.output):
            assert list(tensor.dims) == shapes[tensor.name]
        assert [state.input_name for state in model.batching.state] == [s.input for s in graph.states]
        assert not model.config.model_warmup  # its requests have no sequence, and so no state


def test_options_reach_the_configuration(exported: Exported) -> None:
    manifest = Manifest.read(exported(FIXTURES[0]))

    def configured(**options: Any) -> Any:
        chosen = TritonOptions(size=(64, 64), **options)
        return parse(config_text(manifest, manifest.graphs["decoder"], chosen))

    serving = {"gpus": (0, 2), "instances": 2, "max_batch": 8, "max_sequences": 9, "max_delay_us": 7}
    config = configured(**serving, idle_seconds=5, same_buffer=True, tf32=True)
    [group], batching = config.instance_group, config.sequence_batching
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (list(group.gpus), group.count, group.kind) == ([0, 2], 2, type(group).Kind.Value("KIND_GPU"))
    assert (batching.oldest.max_candidate_sequences, *batching.oldest.preferred_batch_size) == (9, 8)
    assert (batching.oldest.max_queue_delay_microseconds, config.max_batch_size) == (7, 8)
    assert batching.max_sequence_idle_microseconds == 5_000_000
    assert all(state.use_same_buffer_for_input_output for state in batching.state)
    assert accelerator.name == "cuda" and dict(accelerator.parameters) == {"use_tf32": "1"}
    assert parameters_of(config)["cudnn_conv_algo_search"] == "1"
    assert parameters_of(config)["enable_mem_pattern"] == "0"
    on_cpu, engine = configured(gpu=False), configured(platform="tensorrt")
    assert set(on_cpu.parameters) == {"wfvae", "enable_mem_pattern"} and not on_cpu.HasField("optimization")
    assert (engine.platform, engine.default_model_filename) == ("tensorrt_plan", "model.plan")
    assert set(engine.parameters) == {"wfvae"}


def test_size_is_the_bundles_or_stated(exported: Exported, tmp_path: Path) -> None:
    fixed = exported("small", size=(32, 24))
    with pytest.raises(InputError, match="exported for 32x24 only, and 40x40 is wanted"):
        write_repository(fixed, tmp_path / "a", TritonOptions(size=(40, 40)))
    assert not (tmp_path / "a").exists()
    for name, size in (("a", None), ("b", (30, 21))):
        record = write_repository(fixed, tmp_path / name, TritonOptions(size=size))
        assert record["options"]["size"] == [32, 24]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platform": "other"}, "expected one of 'onnxruntime', 'python', 'tensorrt'"),
        ({"platform": "python", "size": (16, 16)}, "which the platform python does not have"),
        ({"threads": 2}, "threads is 2, which the platform onnxruntime does not have"),
        ({"platform": "python", "backend": "openvino"}, "the backend openvino runs on CPUs"),
        ({"platform": "tensorrt", "gpu": False}, "GPUs only"),
        ({"max_batch": 4, "max_sequences": 3}, "at least max_batch, 4"),
        ({"name": "a/b"}, "name is 'a/b'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TritonOptions(**options)


def test_bfloat16_repository_needs_gpu_and_names_its_server(exported: Exported, tmp_path: Path) -> None:
    bundle = exported("small", precision="bf16", opset=22)
    with pytest.raises(BundleError, match="no bf16 convolution on a CPU"):
        write_repository(bundle, tmp_path / "r", TritonOptions(size=(16, 16), gpu=False))
    for platform, noted in (("tensorrt", False), ("onnxruntime", True)):
        write_repository(bundle, tmp_path / platform, TritonOptions(size=(16, 16), platform=platform))
        states = config_of(tmp_path / platform, "wfvae_encoder").sequence_batching.state
        assert {state.data_type for state in states} == {14}  # TYPE_BF16
        text = (tmp_path / platform / "wfvae_encoder" / "config.pbtxt").read_text()
        assert ("Needs Triton 26.03 or later" in text) == noted


def test_graphs_have_a_second_axis_and_only_their_weights(exported: Exported, repository: Make) -> None:
    bundle, folder, size = exported(FIXTURES[0]), repository(), 0
    for direction in DIRECTIONS:
        version = folder / f"wfvae_{direction}" / "1"
        original, model = onnx.load(str(bundle / f"{direction}.onnx")), onnx.load(str(version / "model.onnx"))
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for tensor in original.graph.initializer:
            assert onnx.numpy_helper.to_array(tensor).tobytes() == weights[tensor.name].tobytes()
        values = [*model.graph.input, *model.graph.output]
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        assert min(ranks.values()) == ranks["start"] == 2
        assert [value.name for value in model.graph.input] == [value.name for value in original.graph.input]
        assert with_second_axis(with_second_axis(original)) == with_second_axis(original)
        dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
        assert {dim.dim_param for dim in dims} <= {"", "batch", "frames", "latents"}
        size += (version / "weights.bin").stat().st_size
    assert size < 1.01 * (bundle / "weights.bin").stat().st_size + 4096


def test_tensorrt_repository_has_build_script(repository: Make) -> None:
    """Run with a stand-in for trtexec, it names files that exist and shapes of every input."""
    folder = repository(platform="tensorrt", gpu=True, max_batch=3, max_latents=6)
    recorder = folder.parent / "trtexec"
    recorder.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    recorder.chmod(0o755)
    environment = {"TRTEXEC": str(recorder), "PATH": "/usr/bin:/bin"}
    script = str(folder / BUILD_NAME)
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    calls = done.stdout.split("--onnx=")[1:]
    for call, direction in zip(calls, DIRECTIONS, strict=True):
        path, *arguments = call.split()
        model = onnx.load(str(folder / path), load_external_data=False)
        values = dict(argument.removeprefix("--").split("=") for argument in arguments if "=" in argument)
        assert values["saveEngine"] == f"wfvae_{direction}/1/model.plan" and "--noTF32" in arguments
        for kind, batch, latents in (("min", 1, 1), ("opt", 3, 4), ("max", 3, 6)):
            texts = dict(part.split(":") for part in values[f"{kind}Shapes"].split(","))
            shapes = {name: [int(side) for side in text.split("x")] for name, text in texts.items()}
            ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.input}
            assert {name: len(shape) for name, shape in shapes.items()} == ranks
            assert {shape[0] for shape in shapes.values()} == {batch}
            first = shapes[model.graph.input[0].name][1:]
            assert first == ([4 * latents, 3, 32, 24] if direction == "encoder" else [latents, 4, 4, 3])


def test_steps_are_those_of_the_bundles_newest_engine(exported: Exported) -> None:
    manifest = Manifest.read(exported(FIXTURES[0]))
    graph = manifest.graphs["encoder"]

    def entry(direction: str, chunk: int, whole_clip: int | None = None) -> dict[str, Any]:
        settings = BuildSettings(chunk=chunk, whole_clip=whole_clip)
        return engine_record(manifest, direction, settings).to_dict()

    def lengths(*engines: dict[str, Any]) -> list[int]:
        """Frames per step of the encoder: least, best and most."""
        shapes = engine_shapes(replace(manifest, engines=engines), graph, TritonOptions(), (32, 24))
        return [int(shapes[kind].split("x")[1]) for kind in ("min", "opt", "max")]

    assert lengths(entry("encoder", 6, whole_clip=9)) == [4, 24, 24]
    assert lengths(entry("encoder", 2), entry("encoder", 6), entry("decoder", 3)) == [4, 24, 24]
    assert lengths() == lengths(entry("decoder", 6)) == [4, 16, 32]


def test_python_repository_holds_bundle_and_options(exported: Exported, tmp_path: Path) -> None:
    """Any size; sizes that the bundle has are named for clients."""
    options = TritonOptions(
        platform="python", gpu=False, backend="openvino", precision_hint="bf16", max_batch=3, chunk=2
    )
    for name, size in (("any", None), ("fixed", (32, 24))):
        bundle, folder = exported("small", size=size), tmp_path / name
        write_repository(bundle, folder, options)
        for direction in DIRECTIONS:
            config, version = config_of(folder, f"wfvae_{direction}"), folder / f"wfvae_{direction}" / "1"
            [given], [returned] = config.input, config.output
            dims = {"frames": [-1, -1, -1, 3], "latents": [-1, 4, -1, -1]}
            assert (list(given.dims), list(returned.dims)) == (dims[given.name], dims[returned.name])
            assert (config.backend, given.allow_ragged_batch) == ("python", True)
            parameters = {key: json.loads(text) for key, text in parameters_of(config).items()}
            assert parameters["wfvae"]["size"] == (None if size is None else list(size))
            serving = ServingOptions(backend="openvino", precision_hint="bf16", rows=3, chunk=2)
            assert parameters["wfvae_serving"] == serving.to_dict()
            Manifest.read(version / "bundle").verify_files(version / "bundle")
            compile((version / "model.py").read_text(), "model.py", "exec")


def test_only_repositories_are_replaced(exported: Exported, tmp_path: Path) -> None:
    bundle, target, other = exported("small"), tmp_path / "r", tmp_path / "other"
    small, large = TritonOptions(size=(16, 16)), TritonOptions(size=(24, 24))
    other.mkdir()
    (other / "file").touch()
    with pytest.raises(BundleError, match="is not a repository"):
        write_repository(bundle, other, small, overwrite=True)
    write_repository(bundle, target, small)
    with pytest.raises(BundleError, match="--overwrite"):
        write_repository(bundle, target, small)
    write_repository(bundle, target, large, overwrite=True)
    assert json.loads((target / RECORD_NAME).read_text())["options"]["size"] == [24, 24]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "r"]


def test_command_writes_repository(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["triton", str(exported("small")), str(tmp_path / "r")]
    assert main(command) == 2
    assert "state it with --size" in capsys.readouterr().err
    assert main([*command, "--size", "20x30", "--gpus", "0,1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["models"] == ["wfvae_encoder", "wfvae_decoder"] and record["options"]["size"] == [24, 32]
    assert main([*command, "--size", "20x30", "--platform", "tensorrt", "--overwrite"]) == 0
    assert BUILD_NAME in capsys.readouterr().out
    serving = ["--platform", "python", "--device", "cpu", "--backend", "onnxruntime", "--threads", "1"]
    serving += ["--limit", "1G", "--pixels", "float32", "--site-packages", "/a:/b", "--chunk", "2"]
    assert main([*command, *serving, "--overwrite"]) == 0
    assert "for video of any size" in capsys.readouterr().out
    config = config_of(tmp_path / "r", "wfvae_decoder")
    found = json.loads(parameters_of(config)["wfvae_serving"])
    assert (found["threads"], found["memory_limit"], found["chunk"]) == (1, 2**30, 2)
    assert config.output[0].data_type == 11  # TYPE_FP32
    text = (tmp_path / "r" / "wfvae_encoder" / "1" / "model.py").read_text()
    assert text.index("addsitedir('/a')") < text.index("addsitedir('/b')") < text.index("from wfvae")


class SimulatedServer:
    """A transport to simulated models, for any number of clients in threads.

    A batch runs when every client waits for an answer, so that which requests meet in a batch does
    not depend on the machine.
    """

    def __init__(self, models: dict[str, Any], clients: int = 1) -> None:
        self.models, self._clients = models, clients
        self._waiting, self._changed = 0, threading.Condition()
        self.firsts: list[int] = []
        """Lengths of the first requests of sequences."""

    def model(self, direction: str) -> Any:
        return example.Model(self, f"wfvae_{direction}")

    def parameters(self, model: str) -> dict[str, str]:
        return parameters_of(self.models[model].config)

    def infer(self, model: Any, x: Any, sequence: int, start: bool, end: bool) -> Any:
        request = Pending(sequence, start, end, {model.graph.inputs[0].name: np.array(x)})
        with self._changed:
            if start:
                self.firsts.append(x.shape[1])
            self.models[model.name].submit(request)
            self._waiting += 1
            self._run()
            assert self._changed.wait_for(lambda: request.outputs is not None, timeout=60)
        assert request.outputs is not None
        return request.outputs[model.graph.outputs[0].name]

    def leave(self) -> None:
        """Removes one client."""
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
    models = [server.model(direction) for direction in DIRECTIONS]

    def client(video: Any, step: int) -> Any:
        try:
            pieces = np.array_split(video, 1 + len(video) // 5)
            parts = example.reconstruct(*models, iter(pieces), (HEIGHT, WIDTH), step)
            return np.concatenate(list(parts))
        finally:
            server.leave()

    with ThreadPoolExecutor(len(videos)) as pool:
        return list(pool.map(client, videos, latents))


def streamed(bundle: Bundle, video: Any) -> Any:
    return bundle.decode(bundle.encode(video), frames=len(video), height=video.shape[1], width=video.shape[2])


@pytest.mark.parametrize("name", FIXTURES)
def test_interleaved_sequences_give_bits_of_runtime(opened: Opened, repository: Make, name: str) -> None:
    """Seven clients, four slots (so that some wait in the backlog), at most three in a batch."""
    models, random = simulated(repository(name, max_batch=3, max_sequences=4)), np.random.default_rng(0)
    lengths, latents = [1, 2, 9, 13, 16, 21, 22], [2, 1, 2, 1, 2, 3, 2]
    videos = [random.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8) for length in lengths]
    results = reconstruct_all(SimulatedServer(models, len(videos)), videos, latents)
    for video, result in zip(videos, results, strict=True):
        assert np.array_equal(result, streamed(opened(name), video))
    for model in models.values():  # batched, and END freed every slot
        assert 2 <= max(model.batches) <= 3 and not model.slots


@pytest.mark.parametrize("fault", [None, "states", "controls"])
def test_wrong_wire_gives_other_bits(opened: Opened, repository: Make, fault: str | None) -> None:
    models, bundle = simulated(repository()), opened(FIXTURES[0])
    batching = models["wfvae_decoder"].config.sequence_batching
    video = np.random.default_rng(1).integers(0, 256, (13, HEIGHT, WIDTH, 3), dtype=np.uint8)
    if fault == "states":  # two of one shape
        convolutions = [state for state in batching.state if "conv" in state.input_name]
        pairs = ((a, b) for a in convolutions for b in convolutions if a is not b and a.dims == b.dims)
        first, second = next(pairs)
        first.output_name, second.output_name = second.output_name, first.output_name
    elif fault == "controls":
        start, end = batching.control_input
        start.name, end.name = end.name, start.name
    [result] = reconstruct_all(SimulatedServer(models), [video], [1])
    assert np.array_equal(result, streamed(bundle, video)) == (fault is None)


def test_example_reconstructs_file_to_file(
    opened: Opened, repository: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program, warm-up included, with a simulated server at the other end."""
    frames = ProceduralClip(0, HEIGHT, 20, 11).frames(0, 11)
    source, target = tmp_path / "in.mkv", tmp_path / "out"
    target.mkdir()
    lossless = OutputVideo(20, HEIGHT, Fraction(25), codec="ffv1", pixel_format="bgr0")
    with open_video_writer(source, lossless) as writer:
        writer.write(frames)
    server = SimulatedServer(simulated(repository()))
    monkeypatch.setattr(example, "Server", lambda url, timeout: server)
    arguments = ["triton_stream", str(source), str(target), "--latents", "2", "--warm-up"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert example.main() == 0
    with open_video(target) as reader:
        assert np.array_equal(np.stack(list(reader)), streamed(opened(FIXTURES[0]), frames))
    assert all(not model.slots for model in server.models.values())
    # The warm-up: a full step and one of a single latent, of both models.
    assert server.firsts[:4] == [8, 4, 2, 1]


def test_client_refuses_what_is_not_served(repository: Make) -> None:
    server = SimulatedServer(simulated(repository()))
    encoder, decoder = (server.model(direction) for direction in DIRECTIONS)
    with pytest.raises(InputError, match="the video is 48x48, and wfvae_encoder serves 32x24"):
        encoder.open(48, 48, 1)
    decoder.bundle = "0" * 64
    with pytest.raises(InputError, match="different bundles"):
        next(example.reconstruct(encoder, decoder, iter([]), (HEIGHT, WIDTH), 1))


def test_grpc_request_has_tensor_and_sequence_flags(repository: Make) -> None:
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    folder, answer = repository(), np.ones((1, 4, 3, 32, 24), np.float32)
    calls: list[Any] = []

    def infer(model: str, inputs: Any, outputs: Any, **flags: Any) -> Any:
        [tensor], [wanted] = inputs, outputs
        calls.append((model, tensor.name(), tensor.shape(), tensor.datatype(), wanted.name(), flags))
        return SimpleNamespace(as_numpy={"frames": answer}.get)

    def get_model_config(model: str, client_timeout: float) -> Any:
        return SimpleNamespace(config=config_of(folder, model))

    server = example.Server("nowhere:1", 9, SimpleNamespace(infer=infer, get_model_config=get_model_config))
    model = example.Model(server, "wfvae_decoder")
    assert server.infer(model, np.zeros((1, 1, 4, 4, 3), np.float32), 7, True, False) is answer
    flags = {"sequence_id": 7, "sequence_start": True, "sequence_end": False, "client_timeout": 9}
    assert calls == [("wfvae_decoder", "latents", [1, 1, 4, 4, 3], "FP32", "frames", flags)]


class FailingServer(SimulatedServer):
    """Refuses the requests of one model from a number on."""

    def __init__(self, models: dict[str, Any], model: str, number: int) -> None:
        super().__init__(models)
        self._model, self._number = model, number
        self.sent: list[tuple[int, bool, bool]] = []
        """Length, START and END of each request to the model."""

    def infer(self, model: Any, x: Any, sequence: int, start: bool, end: bool) -> Any:
        if model.name == self._model:
            self.sent.append((len(x[0]), start, end))
            if len(self.sent) == self._number:
                raise example.ServerError("refused")
        return super().infer(model, x, sequence, start, end)


@pytest.mark.parametrize("model", ["wfvae_encoder", "wfvae_decoder"])
def test_failed_request_ends_both_sequences(repository: Make, model: str) -> None:
    server = FailingServer(simulated(repository()), model, 2)
    video = np.zeros((13, HEIGHT, WIDTH, 3), np.uint8)
    models = [server.model(direction) for direction in DIRECTIONS]
    with pytest.raises(example.ServerError, match="refused"):
        list(example.reconstruct(*models, iter([video]), (HEIGHT, WIDTH), 1))
    assert server.sent[-1] == (4 if model == "wfvae_encoder" else 1, False, True)
    assert all(not simulated.slots for simulated in server.models.values())


def test_abandoned_reconstruction_ends_both_sequences(repository: Make) -> None:
    server = SimulatedServer(simulated(repository()))
    video = np.zeros((21, HEIGHT, WIDTH, 3), np.uint8)
    models = [server.model(direction) for direction in DIRECTIONS]
    parts = example.reconstruct(*models, iter([video]), (HEIGHT, WIDTH), 1)
    next(parts)
    assert all(simulated.slots for simulated in server.models.values())
    parts.close()
    assert all(not simulated.slots for simulated in server.models.values())


def test_sequence_may_start_anew(repository: Make) -> None:
    """After a failed START the client sends another one, with the same number."""
    server = SimulatedServer(simulated(repository()))
    model, random = server.model("encoder"), np.random.default_rng(0)
    first, second = (random.uniform(-1, 1, (1, 4, 3, 32, 24)).astype(np.float32) for _ in range(2))
    alone = server.infer(model, second, 1, True, True)
    server.infer(model, first, 2, True, False)
    assert np.array_equal(server.infer(model, second, 2, True, True), alone)


def test_program_without_server_fails_on_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    command = [sys.executable, EXAMPLE, "in.mp4", "out.mp4", "--url", f"localhost:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no server answers" in done.stderr and "--url" in done.stderr
