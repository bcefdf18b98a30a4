"""Arrays of other libraries through DLPack: the bits of numpy's, or one line."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from fixtures.streams import noise, same_bits
from wfvae.errors import InputError, StateError
from wfvae.runtime import Bundle
from wfvae.runtime.backends.onnxruntime import OnnxRuntimeMemory
from wfvae.runtime.dlpack import CPU, DeviceArray

SIZE = {"height": 8, "width": 13}
FRAMES = noise(9, **SIZE)
FLOATS = np.random.default_rng(0).random((9, 8, 13, 3), np.float32) * 2 - 1
Maker = Callable[[Any], Any]


def torch_tensor(array: Any) -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed").from_numpy(array.copy())


def jax_array(array: Any) -> Any:
    return pytest.importorskip("jax.numpy", reason="JAX is not installed").asarray(array)


def cupy_array(array: Any) -> Any:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("CuPy finds no GPU")
    return cupy.asarray(array)


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array: Any) -> Any:
    """A view of every other value of a larger array, axes in another order in memory."""
    wide = np.zeros((*array.shape[::-1], 2), array.dtype)
    view = wide[..., 1].T
    view[...] = array
    assert not view.flags.c_contiguous
    return view


def device_array(array: Any) -> DeviceArray:
    held = np.ascontiguousarray(array)
    return DeviceArray.contiguous(held.ctypes.data, held.shape, held.dtype, CPU, held)


LIBRARIES: dict[str, Maker] = {
    "numpy": np.copy,
    "numpy, read-only": read_only,
    "numpy, strided": strided,
    "lists": lambda array: array.tolist(),
    "torch": torch_tensor,
    "torch, strided": lambda array: torch_tensor(array.transpose(3, 0, 2, 1)).permute(1, 3, 2, 0),
    "jax": jax_array,
    "cupy": cupy_array,
    "onnxruntime": ort.OrtValue.ortvalue_from_numpy,
    "wfvae": device_array,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_array_of_any_library_gives_the_bits_of_numpy(model: Bundle, library: str) -> None:
    make = LIBRARIES[library]
    expected = model.encode(FLOATS)
    floats = make(FLOATS)
    assert same_bits(model.encode(floats), expected)
    assert same_bits(model.decode(make(expected)), model.decode(expected))
    with model.encoder(**SIZE) as stream:
        parts = [stream.push(make(FLOATS[:7])), stream.push(make(FLOATS[7:])), stream.finish()]
    assert same_bits(np.concatenate(parts), expected)
    if library != "lists":  # whose integers are int64
        assert same_bits(model.encode(make(FRAMES)), model.encode(FRAMES))


TYPES = [(library, dtype) for library in ("numpy", "torch", "jax") for dtype in ("float16", "bfloat16")]


# JAX has float64 only if it is switched on for the whole program.
@pytest.mark.parametrize(("library", "dtype"), [*TYPES, ("numpy", "float64"), ("torch", "float64")])
def test_floating_point_types_are_converted_to_float32(model: Bundle, library: str, dtype: str) -> None:
    narrow = FLOATS.astype(np.dtype(dtype))
    if library == "numpy":
        given: Any = narrow
    elif library == "torch":
        import torch

        given = torch_tensor(FLOATS).to(getattr(torch, dtype))
    else:
        given = jax_array(FLOATS).astype(dtype)
    assert same_bits(model.encode(given), model.encode(narrow.astype(np.float32)))


def test_stream_keeps_its_input_when_the_caller_reuses_the_tensor(model: Bundle) -> None:
    tensor = torch_tensor(FRAMES)
    with model.encoder(**SIZE) as stream:
        stream.queue(tensor)
        tensor.zero_()
        assert same_bits(stream.finish(), model.encode(FRAMES))


class OnDevice:
    """A tensor that is somewhere else."""

    def __init__(self, kind: int, index: int = 0) -> None:
        self.device = kind, index

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **arguments: Any) -> Any:
        raise AssertionError("nothing can be read from there")


def refused_tensors() -> dict[str, tuple[Callable[[], Any], str]]:
    def torch_of(**options: Any) -> Any:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        options = {"dtype": torch.float32, **options}
        if isinstance(options["dtype"], str):
            options["dtype"] = getattr(torch, options["dtype"])
        return torch.zeros(9, 8, 13, 3, **options)

    return {
        "requires_grad": (lambda: torch_of(requires_grad=True), r"\(Tensor\): .*use tensor.detach\(\)"),
        "meta": (lambda: torch_of(device="meta"), r"\(Tensor\): Unknown device type meta"),
        "sparse": (lambda: torch_of().to_sparse(), r"\(Tensor\): .*layout"),
        "int32": (lambda: torch_of(dtype="int32"), "are int32; expected uint8, or floating"),
        "bool": (lambda: torch_of(dtype="bool"), "are bool; expected uint8, or floating"),
        "float8": (lambda: torch_of(dtype="float8_e4m3fn"), "has no equivalent in numpy"),
        "shape": (lambda: torch_of()[0], r"have shape \(8, 13, 3\)"),
        "cuda": (lambda: OnDevice(2, 1), "are on cuda:1, and this bundle was opened on the CPU; copy them"),
        "rocm": (lambda: OnDevice(10), "are on rocm:0, and this bundle"),
        "unknown device": (lambda: OnDevice(77), "are on DLPack device 77:0, and this bundle"),
        "ragged": (lambda: [[1.0], [1.0, 2.0]], r"\(list\): .*inhomogeneous"),
        "nan": (lambda: torch_of() * float("nan"), "hold NaN"),
    }


@pytest.mark.parametrize("name", refused_tensors())
def test_tensor_that_cannot_be_used_is_refused_on_one_line(model: Bundle, name: str) -> None:
    make, message = refused_tensors()[name]
    data = make()
    with model.encoder(**SIZE) as stream:
        for call in (stream.push, model.encode):
            with pytest.raises(InputError, match=f"^frames .*{message}") as caught:
                call(data)
            assert "\n" not in str(caught.value)
        parts = [stream.push(FRAMES), stream.finish()]
    assert same_bits(np.concatenate(parts), model.encode(FRAMES))


def test_results_are_arrays_for_other_libraries(model: Bundle) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    latents = model.encode(FRAMES)
    assert same_bits(torch.from_dlpack(latents).numpy(), latents)


def test_no_other_library_is_imported() -> None:
    code = "import sys, wfvae.runtime.bundle; print({'torch', 'jax', 'cupy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_exported_memory_is_released_with_the_last_user() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    held = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    before = sys.getrefcount(held)
    array = DeviceArray.contiguous(held.ctypes.data, held.shape, held.dtype, CPU, held)
    row, tensor = array[1], torch.from_dlpack(array[0:1])
    array.__dlpack__()  # which nobody takes
    assert sys.getrefcount(held) > before
    del array
    assert tensor.tolist() == held[:1].tolist() and same_bits(np.from_dlpack(row), held[1])
    del row, tensor
    assert sys.getrefcount(held) == before


# Results and input in the memory of a GPU: the code that ONNX Runtime's CUDA provider runs, on
# memory that ONNX Runtime allocates on the CPU.

WHOLE = {"height": 8, "width": 16}
PIXELS = np.random.default_rng(1).random((13, 8, 16, 3), np.float32) * 2 - 1


@pytest.fixture
def resident(model: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle whose results may stay on the device. Lists are not on it, unlike arrays."""
    for direction in ("encoder", "decoder"):
        memory = OnnxRuntimeMemory("cpu", 0)
        monkeypatch.setattr(model.step_session(direction), "memory", memory)  # type: ignore[arg-type]
    return model


def network_order(frames: Any) -> Any:
    """Frames as a view of (T, 3, H, W), as PyTorch's `permute` gives them."""
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("order", [network_order, np.ascontiguousarray], ids=["permuted", "contiguous"])
def test_stream_on_the_device_gives_the_bits_of_the_host(resident: Bundle, order: Maker) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    frames = torch.from_dlpack(order(PIXELS))
    latents = resident.encode(frames, output="device", chunk=2)
    assert isinstance(latents, DeviceArray) and latents.device == CPU
    video = resident.decode(latents, output="device", pixels="float32", chunk=1)
    assert isinstance(video, DeviceArray)
    host = resident.encode(frames), resident.decode(latents, pixels="float32")
    assert same_bits(torch.from_dlpack(latents).numpy(), host[0])
    assert same_bits(torch.from_dlpack(video).contiguous().numpy(), host[1])
    resident.step_session("encoder").memory = resident.step_session("decoder").memory = None
    assert same_bits(host[0], resident.encode(PIXELS))
    assert same_bits(host[1], resident.decode(host[0], pixels="float32"))


def test_padded_frames_on_the_device_are_cropped_views(resident: Bundle) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    latents = resident.encode(FLOATS)
    expected = resident.decode(latents, **SIZE, frames=9, pixels="float32")
    video = resident.decode(latents, **SIZE, frames=9, pixels="float32", output="device", chunk=1)
    assert video.shape == (9, 8, 13, 3) and not video.is_contiguous
    assert same_bits(torch.from_dlpack(video).contiguous().numpy(), expected)


def test_resident_input_is_not_copied_to_the_host(resident: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a copy through the host")

    latents = resident.encode(PIXELS, output="device")
    with resident.decoder(**WHOLE, pixels="float32", output="device") as stream:
        monkeypatch.setattr(OnnxRuntimeMemory, "to_host", refuse)
        monkeypatch.setattr(OnnxRuntimeMemory, "read", refuse)
        resident.encode(network_order(PIXELS), output="device", chunk=1)
        stream.push(latents)


def test_input_from_both_sides_in_one_stream_gives_the_same_bits(resident: Bundle) -> None:
    expected = resident.encode(PIXELS)
    for first in (False, True):
        parts = []
        with resident.encoder(**WHOLE, chunk=2) as stream:
            for count, piece in enumerate(np.split(PIXELS, [2, 4, 5, 9, 11])):
                on_device = (count % 2 == 0) == first
                parts.append(stream.push(network_order(piece) if on_device else piece.tolist()))
            parts.append(stream.finish())
        assert same_bits(np.concatenate(parts), expected)
    with resident.decoder(**WHOLE, frames=13) as stream:
        for count, latent in enumerate(expected):
            stream.queue(latent[None] if count % 2 else latent[None].tolist())
        assert same_bits(stream.finish(), resident.decode(expected))


def test_results_on_the_device_outlive_stream_and_further_steps(resident: Bundle) -> None:
    with resident.encoder(**WHOLE, output="device") as stream:
        first = stream.push(network_order(PIXELS[:5]))
        kept = np.from_dlpack(first)
        before = kept.copy()
        stream.push(network_order(PIXELS[5:]))
    del first, stream
    assert same_bits(kept, before)


def test_snapshot_of_a_stream_on_the_device_is_one_of_the_host(resident: Bundle) -> None:
    expected = resident.encode(PIXELS)
    with resident.encoder(**WHOLE, output="device") as stream:
        parts = [np.from_dlpack(stream.push(network_order(PIXELS[:7])))]
        saved = stream.snapshot()
    with resident.restore(saved) as stream:
        parts += [stream.push(PIXELS[7:]), stream.finish()]
    assert same_bits(np.concatenate(parts), expected)
    with resident.decoder(**WHOLE) as decoder:
        decoder.push(expected[:1])
        saved = decoder.snapshot()
    with (
        resident.decoder(**WHOLE, pixels="float32", output="device") as stream,
        pytest.raises(StateError, match="is of a stream of uint8 frames"),
    ):
        stream.restore(saved)


def test_pool_takes_and_gives_arrays_on_the_device(resident: Bundle) -> None:
    expected = resident.encode(PIXELS), resident.encode(PIXELS[:9])
    with resident.encoder_pool(**WHOLE, rows=2, chunk=1) as pool:
        first, second = pool.open(output="device"), pool.open()
        first.push(network_order(PIXELS))
        second.push(PIXELS[:9].tolist())
        parts: dict[Any, list[Any]] = {first: [], second: []}
        for stream in parts:
            stream.finish()
        while len(pool):
            for stream, part in pool.step().items():
                parts[stream].append(part)
    assert {type(part) for part in parts[first]} == {DeviceArray}
    assert same_bits(np.concatenate([np.from_dlpack(part) for part in parts[first]]), expected[0])
    assert same_bits(np.concatenate(parts[second]), expected[1])


def test_device_output_has_rules(resident: Bundle, model: Bundle) -> None:
    latents = resident.encode(PIXELS)
    with pytest.raises(InputError, match=r"output='device'.*pass pixels='float32'"):
        resident.decode(latents, output="device", chunk=2)
    with pytest.raises(InputError, match="output is 'gpu'; expected host or device"):
        model.encode(PIXELS, output="gpu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="frames are 8x16, but this stream is 16x16"):
        resident.encoder(height=16, width=16).push(network_order(PIXELS))
    with resident.encoder(**WHOLE, output="device") as stream:
        assert stream.push(network_order(PIXELS[:0])).shape == (0, latents.shape[1], 1, 2)


def test_device_output_on_the_cpu_is_numpy(model: Bundle) -> None:
    assert isinstance(model.encode(FRAMES, output="device"), np.ndarray)
    assert isinstance(model.decode(model.encode(FRAMES), output="device"), np.ndarray)
