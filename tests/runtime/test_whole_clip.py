"""Clips in one call: computed by the direct graph where that gives the stream's bits and fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.program import Program
from wfvae.errors import InputError
from wfvae.runtime import Bundle, open_bundle
from wfvae.spec.frames import latent_frames
from wfvae.spec.memory import plan_memory
from wfvae.spec.onnx_file import has_volumes

Exported = Callable[..., Path]


def opened(path: Path, **options: Any) -> Bundle:
    return open_bundle(path, **{"provider": "cpu", "threads": 1, "verify": False, **options})


def clip(frames: int, height: int = 17, width: int = 24, dtype: Any = np.uint8) -> Any:
    found = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), np.uint8)
    return found if dtype == np.uint8 else (found / np.float32(127.5) - 1).astype(dtype)


def used(bundle: Bundle) -> tuple[set[str], set[str]]:
    """The directions whose direct and step sessions were opened."""
    return set(bundle._directs), set(bundle._steps)


@given(frames=st.integers(1, 14), pixels=st.sampled_from(["uint8", "float32"]))
def test_clip_in_one_call_has_the_bits_of_its_stream(model: Bundle, frames: int, pixels: Any) -> None:
    video = clip(frames, dtype=np.dtype(pixels))
    latents = model.encode(video)
    assert np.array_equal(latents, model.encode(video, chunk=2))
    size = {"frames": frames, "height": 17, "width": 24, "pixels": pixels}
    decoded = model.decode(latents, **size)
    expected = model.decode(latents, **size, chunk=2)
    assert decoded.dtype == expected.dtype == pixels
    assert np.array_equal(decoded, expected)


def test_clip_in_one_call_runs_the_direct_graph(bundle: Path) -> None:
    whole, stepwise = opened(bundle), opened(bundle)
    for opened_bundle, options in ((whole, {}), (stepwise, {"chunk": 1})):
        opened_bundle.decode(opened_bundle.encode(clip(5), **options), **options)
    assert used(whole) == ({"encoder", "decoder"}, set())
    assert used(stepwise) == (set(), {"encoder", "decoder"})


def test_clip_that_exceeds_the_limit_is_streamed(bundle: Path) -> None:
    video = clip(33)
    manifest = opened(bundle).manifest
    whole = plan_memory(manifest, "encoder", 17, 24, 1, latent_frames(33, 4), whole_clip=True)
    limited = opened(bundle, memory_limit=whole.total_bytes - 1)
    latents = limited.encode(video)
    assert used(limited) == (set(), {"encoder"})
    roomy = opened(bundle, memory_limit=whole.total_bytes)
    assert np.array_equal(roomy.encode(video), latents)
    assert used(roomy) == ({"encoder"}, set())


@pytest.mark.parametrize(
    ("options", "execution"),
    [
        ({"direct": False}, {}),
        ({"precision": "fp16"}, {}),
        ({"convolutions": "volume"}, {}),
        ({"precision": "fp16"}, {"backend": "openvino"}),
    ],
)
def test_clip_is_streamed_where_bits_may_differ(
    exported: Exported, options: dict[str, Any], execution: dict[str, Any]
) -> None:
    execution = execution and {**execution, "provider": "auto"}
    streaming = opened(exported("small", **options), **execution)
    streaming.encode(clip(5))
    assert used(streaming) == (set(), {"encoder"})


def test_wrong_input_is_refused_as_by_a_stream(model: Bundle) -> None:
    for video in (clip(5)[:0], clip(5).astype(np.int32), np.full((5, 8, 8, 3), np.nan, np.float32)):
        with pytest.raises(InputError) as whole:
            model.encode(video)
        with pytest.raises(InputError) as stream:
            model.encode(video, chunk=1)
        assert str(whole.value) == str(stream.value)
    latents = model.encode(clip(5))
    for arguments in ({"frames": 9}, {"frames": 0}, {"height": 30, "width": 24}):
        with pytest.raises(InputError) as whole:
            model.decode(latents, **arguments)
        with pytest.raises(InputError) as stream:
            model.decode(latents, **arguments, chunk=1)
        assert str(whole.value) == str(stream.value)


@pytest.mark.parametrize("form", ["minimal", "plain", "volume", "mixed"])
def test_volumes_of_a_graph_are_those_that_onnx_reads(exported: Exported, form: str) -> None:
    path = exported("small", convolutions=form) / "encoder.onnx"
    kernels = [
        attribute.ints
        for node in onnx.load(path, load_external_data=False).graph.node
        for attribute in node.attribute
        if attribute.name == "kernel_shape"
    ]
    assert kernels
    assert has_volumes(path) == any(len(kernel) == 3 for kernel in kernels) == (form in ("volume", "mixed"))


def test_export_by_default_writes_direct_graphs_without_further_weights(
    program: Program, tmp_path: Path
) -> None:
    both = program("export", "tiny", tmp_path / "both", "--json").report
    steps = program("export", "tiny", tmp_path / "steps", "--no-direct", "--json").report
    assert set(both["graphs"]) - set(steps["graphs"]) == {"encoder.direct", "decoder.direct"}
    assert both["files"]["weights.bin"] == steps["files"]["weights.bin"]
