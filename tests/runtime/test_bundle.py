"""Opening a bundle: damaged files are refused by name, and too large streams before allocation."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fixtures.program import run_python
from fixtures.streams import at_once
from wfvae.errors import BundleError, InputError, ResourceError
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.backends import onnxruntime as onnxruntime_backend
from wfvae.runtime.backends.base import BackendOptions
from wfvae.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeStep

Opened = Callable[..., Bundle]
Edit = Callable[[dict[str, Any]], Any]
FILES = ("encoder.onnx", "decoder.onnx", "encoder.direct.onnx", "decoder.direct.onnx", "weights.bin")


@pytest.fixture
def copy(exported: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return shutil.copytree(exported("small"), tmp_path / "bundle")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.37, 0.9999])
def test_changed_byte_is_refused_by_name(copy: Path, name: str, position: float) -> None:
    content = bytearray((copy / name).read_bytes())
    content[int(position * len(content))] ^= 1
    (copy / name).write_bytes(content)
    message = rf"is damaged: {name} has been changed \(its SHA-256 differs\); copy it anew"
    with pytest.raises(BundleError, match=message):
        open_bundle(copy, provider="cpu").step_session("decoder")


def test_changed_letter_of_the_manifest_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    content = path.read_bytes()
    same = json.loads(content)
    for position in [*range(0, len(content), 211), content.index(b"sha256") + 12]:
        damaged = bytearray(content)
        damaged[position] ^= 1
        try:
            if json.loads(damaged) == same:
                continue
        except ValueError:
            pass
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="manifest"):
            open_bundle(copy, verify=False)
    path.write_bytes(content)
    open_bundle(copy)


def test_all_missing_and_cut_files_are_reported_in_one_error(copy: Path) -> None:
    for name in FILES[:-1]:
        (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    (copy / FILES[-1]).unlink()
    cut = r"decoder\.onnx has (\d+) bytes instead of (\d+)"
    with pytest.raises(BundleError, match=rf"{cut}; encoder\.direct.*; weights\.bin is missing") as caught:
        open_bundle(copy)
    found = re.search(cut, str(caught.value))
    assert found and int(found[1]) + 1 == int(found[2])


def test_damage_without_verification_is_refused_by_the_backend(copy: Path) -> None:
    (copy / "encoder.onnx").write_bytes(b"no graph")
    (copy / "weights.bin").write_bytes(b"")
    bundle = open_bundle(copy, provider="cpu", verify=False)
    for direction in ("encoder", "decoder"):
        with pytest.raises(BundleError, match=rf"cannot load {direction}\.onnx: ") as caught:
            getattr(bundle, direction)(height=8, width=8)
        assert "\n" not in str(caught.value)


MANIFEST_EDITS: list[tuple[Edit, str]] = [
    (lambda m: m.update(format="wfvae-bundle/2"), "is 'wfvae-bundle/2'; this version reads 'wfvae-bundle/1'"),
    (lambda m: m.pop("graphs"), "damaged: graphs is missing"),
    (lambda m: m["graphs"].pop("decoder"), "has been changed"),
    (lambda m: m["graphs"]["encoder"].update(states=3), r"graphs\[\.\.\.\]\.states: expected a list"),
    (lambda m: m.update(opset="old"), "damaged: opset is 'old'; expected an integer; export"),
    (lambda m: m["files"]["encoder.onnx"].update(sha256="0" * 64), "has been changed"),
    (lambda m: m.update(unknown=1), "damaged: unknown key unknown; known are: format, model"),
]


@pytest.mark.parametrize(("edit", "message"), MANIFEST_EDITS)
def test_changed_manifest_is_refused(copy: Path, edit: Edit, message: str) -> None:
    data = json.loads((copy / "manifest.json").read_text())
    edit(data)
    (copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_manifest_that_is_no_json_object_is_refused(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.json: "):
        open_bundle(copy)


def test_folder_without_manifest_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    (tmp_path / "file").write_text("x")
    for path in (copy, tmp_path / "none", tmp_path / "file"):
        message = r"is not a bundle: it has no manifest\.json; make one with: wfvae export"
        with pytest.raises(BundleError, match=message):
            open_bundle(path)


def test_unknown_backend_or_provider_is_refused(exported: Callable[..., Path]) -> None:
    path = exported("small")
    with pytest.raises(BundleError, match="backend is 'tensorflow'; this version has auto, onnxruntime"):
        open_bundle(path, "tensorflow")
    with pytest.raises(BundleError, match="provider is 'npu'; expected cpu, cuda or auto"):
        open_bundle(path, provider="npu")
    described = open_bundle(path, provider="cpu", threads=2).backend.describe()
    assert described == {
        "name": "onnxruntime",
        "version": onnxruntime.__version__,
        "provider": "CPUExecutionProvider",
        "device": "cpu",
        "threads": "2",
    }


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has a CUDA provider",
)
def test_cuda_without_its_provider_is_refused(exported: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="has no CUDA provider; install onnxruntime-gpu"):
        open_bundle(exported("small"), provider="cuda")
    assert open_bundle(exported("small")).backend.describe()["device"] == "cpu"


def test_cuda_provider_describes_gpu_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "wfvae.runtime.backends"
    monkeypatch.setattr(f"{module}.onnxruntime.choose_provider", lambda wanted, device_id: "CUDA")
    monkeypatch.setattr(f"{module}.nvidia.cuda.gpu_name", lambda index: f"NVIDIA {index}")
    monkeypatch.setattr(f"{module}.nvidia.cuda.driver_version", lambda: None)
    described = OnnxRuntimeBackend(tmp_path, (), BackendOptions(device_id=1)).describe()
    assert described.items() >= {"device": "cuda:1", "gpu": "NVIDIA 1", "tf32": "false"}.items()
    assert "driver" not in described


def test_bundle_of_one_size_refuses_others(opened: Opened) -> None:
    bundle = opened("small", size=(16, 24))
    assert bundle.encode(np.zeros((5, 16, 24, 3), np.uint8)).shape == (2, 4, 2, 3)
    assert bundle.encode(np.zeros((5, 9, 17, 3), np.uint8)).shape == (2, 4, 2, 3)  # padded to the same
    for open_ in (bundle.encoder, bundle.decoder):
        with pytest.raises(InputError, match="exported for 16x24 only, and the video is 24x16"):
            open_(height=24, width=16)
    for open_pool in (bundle.encoder_pool, bundle.decoder_pool):
        with pytest.raises(InputError, match="exported for 16x24 only"):
            open_pool(height=8, width=24, rows=1)


def test_graph_that_was_not_exported_is_refused(opened: Opened) -> None:
    bundle = opened("small", direct=False)
    assert set(bundle.manifest.graphs) == {"encoder", "decoder"}
    with pytest.raises(BundleError, match=r"no encoder\.direct graph; export it without --no-direct"):
        bundle.direct_session("encoder")


def test_closing_a_bundle_releases_its_sessions_but_not_its_streams(exported: Callable[..., Path]) -> None:
    with open_bundle(exported("small"), provider="cpu", threads=1) as bundle:
        stream = bundle.encoder(height=8, width=8)
        first = bundle.step_session("encoder")
        assert stream.session is first
        assert bundle.direct_session("decoder") is bundle.direct_session("decoder")
    assert len(stream.push(np.zeros((5, 8, 8, 3), np.uint8))) == 2
    assert bundle.step_session("encoder") is not first


def test_threads_that_open_at_once_get_one_session(exported: Callable[..., Path]) -> None:
    bundle = open_bundle(exported("small"), provider="cpu", threads=1)
    directions: list[Any] = ["encoder", "encoder", "decoder", "encoder"]
    sessions = at_once(lambda index: bundle.step_session(directions[index]), 4)
    assert sessions[0] is sessions[1] is sessions[3] is not sessions[2]


def test_session_without_planned_buffer_reuse_gives_the_bits_of_one_with_it(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = np.random.default_rng(0).normal(size=(3, 4, 2, 3)).astype(np.float32)

    def decoded() -> Any:
        with open_bundle(exported("small"), provider="cpu", threads=1) as bundle:
            return bundle.decode(latents, pixels="float32")

    ours, options = decoded(), onnxruntime_backend.session_options(1)
    assert not options.enable_mem_reuse
    options.enable_mem_reuse = True
    monkeypatch.setattr(onnxruntime_backend, "session_options", lambda threads: options)
    assert decoded().tobytes() == ours.tobytes()


@pytest.mark.parametrize("name", ["4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear"])
@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize(("height", "width", "streams"), [(8, 8, 1), (17, 30, 1), (64, 40, 3)])
def test_planned_state_is_what_is_allocated(
    opened: Opened, name: str, direction: Any, height: int, width: int, streams: int
) -> None:
    bundle = opened(name)
    plan = bundle.plan(direction, height=height, width=width, streams=streams, chunk=2)
    state: Any = bundle.step_session(direction).new_state(streams, -(-height // 8) * 8, -(-width // 8) * 8)
    assert plan.state_bytes * streams == sum(array.nbytes for array in state.read().values())
    assert plan.held_state_bytes == sum(
        value.numpy().nbytes for buffers in state._buffers for value in buffers.values()
    )
    rows, columns, ratio = -(-height // 8), -(-width // 8), bundle.ratio
    channels = bundle.manifest.model["latent_dim"]
    assert plan.io_bytes == 4 * streams * 2 * rows * columns * (channels + ratio * 3 * 64)
    assert plan.total_bytes == plan.held_state_bytes + plan.io_bytes + plan.scratch_bytes + plan.weights_bytes
    assert plan.to_dict()["total_bytes"] == plan.total_bytes


def test_memory_limit_is_checked_before_anything_is_allocated(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(exported("4x8x8-trilinear"), provider="cpu", threads=1, memory_limit=64 * 2**20)

    def allocate(*args: Any) -> None:
        raise AssertionError("something was allocated")

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeStep, "new_state", allocate)
        patch.setattr(Bundle, "step_session", allocate)
        large = r"1 encoder stream\(s\) of 2160x3840 at 1 latents per step need \d+ MiB"
        openings: list[tuple[Callable[[], Any], str]] = [
            (lambda: bundle.encoder(height=2160, width=3840), large),
            (lambda: bundle.encode(np.zeros((1, 2160, 3840, 3), np.uint8)), large),
            (lambda: bundle.decoder(height=2160, width=3840), "1 decoder stream"),
            (lambda: bundle.decoder_pool(height=128, width=128, rows=100), "100 decoder stream"),
            (lambda: bundle.encoder(height=256, width=256, chunk=1000), "at 1000 latents per step"),
        ]
        for opening, message in openings:
            parts = r".*\(state \d+, scratch \d+, weights \d+\), more than the limit of 64 MiB"
            with pytest.raises(ResourceError, match=message + parts):
                opening()
    with bundle.decoder(height=32, width=32) as stream:
        assert stream.push(np.zeros((2, 4, 4, 4), np.float32)).shape == (3, 32, 32, 3)


SCRATCH_SCRIPT = """
import json, sys, threading, time
import numpy as np, psutil
from wfvae.runtime import open_bundle
path, direction, size, chunk = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
bundle = open_bundle(path, provider="cpu", threads=1)
plan = bundle.plan(direction, height=size, width=size, chunk=chunk)
session = bundle.step_session(direction)
state = session.new_state(1, size, size)
for buffers in state._buffers:  # touch every page, so that only the step itself is seen to grow
    for value in buffers.values():
        value.numpy()[...] = 0
latents = size // 8
shape = (1, 4 * chunk, 3, size, size) if direction == "encoder" else (1, chunk, 4, latents, latents)
x, flag = np.ones(shape, np.float32), np.ones(1, bool)
memory = open("/proc/self/clear_refs", "w")
memory.write("5")  # forget the peak so far
memory.close()
before = psutil.Process().memory_info().rss
output = session.step(state, x, flag, ~flag)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([plan.scratch_bytes, peak - before - output.nbytes]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux's /proc")
@pytest.mark.parametrize(("direction", "size", "chunk"), [("encoder", 256, 4), ("decoder", 256, 2)])
def test_planned_scratch_is_what_a_step_takes(
    exported: Callable[..., Path], direction: str, size: int, chunk: int
) -> None:
    """The process's peak grows over one step by the activations and their packing."""
    arguments = (exported("4x8x8-trilinear"), direction, size, chunk)
    planned, measured = json.loads(run_python(SCRATCH_SCRIPT, *arguments))
    assert planned / 1.5 <= measured <= 3 * planned
