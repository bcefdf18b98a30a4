"""Attention in blocks of queries: the bits of whole attention, and less memory."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from wfvae.export.bundle import ExportOptions, export_bundle, graph_spec
from wfvae.export.forms import TARGETS
from wfvae.export.recorder import attention
from wfvae.export.recorder.graph import trace
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.runtime import Bundle, open_bundle

MakeModel = Callable[..., WFVAE]
ROWS, BLOCKS = 4, 3
# Positions of a frame: 1 block of one row, 2 of 3 and 2 rows, and 3 of 5.
SIZES = [(8, 8), (8, 40), (24, 40)]


@pytest.fixture(scope="module")
def folder(small_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`folder(**options)`: a bundle with blocks of `ROWS` queries."""
    base = tmp_path_factory.mktemp("attention")

    @cache
    def export(**options: Any) -> Path:
        path = base / str(options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "BLOCK_ROWS", ROWS)
            patch.setattr(attention, "MOST_BLOCKS", BLOCKS)
            export_bundle(small_model(), path, ExportOptions(**options))
        return path

    return export


def frames_of(size: tuple[int, int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)


def results(bundle: Bundle, size: tuple[int, int]) -> list[np.ndarray[Any, Any]]:
    """Latents and frames of a short clip, by the step graphs and the direct ones."""
    frames = frames_of(size)
    latents = bundle.encode(frames, chunk=1)
    video = (frames.transpose(0, 3, 1, 2)[None] / np.float32(127.5) - 1).astype(np.float32)
    direct = [
        bundle.direct_session("encoder").run(video),
        bundle.direct_session("decoder").run(latents[None]),
    ]
    return [latents, bundle.decode(latents, chunk=1, pixels="float32"), *direct]


@pytest.mark.parametrize("fixed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_blocks_of_queries_give_the_bits_of_whole_attention(folder: Callable[..., Path], fixed: bool) -> None:
    options: dict[str, Any] = {"backend": "onnxruntime", "provider": "cpu", "threads": 1}
    path = folder(size=SIZES[-1]) if fixed else folder()
    uncut = folder(target="gpu", convolutions="minimal")
    with open_bundle(path, **options) as cut, open_bundle(uncut, **options) as whole:
        for size in SIZES[-1:] if fixed else SIZES:
            for found, wanted in zip(results(cut, size), results(whole, size), strict=True):
                assert found.shape == wanted.shape and found.tobytes() == wanted.tobytes(), size


@pytest.mark.slow
@pytest.mark.parametrize(("hint", "target"), [("fp32", "auto"), ("bf16", "auto"), ("bf16", "openvino")])
def test_blocks_of_queries_give_the_bits_of_whole_attention_in_openvino(
    folder: Callable[..., Path], hint: str, target: str
) -> None:
    """It moves the scaling of queries to other places as it sees fit."""
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    if hint == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO does not list BF16 for this CPU")
    options: dict[str, Any] = {"backend": "openvino", "precision_hint": hint, "threads": 1}
    frames, found = frames_of(SIZES[-1]), []
    for path in (folder(target=target), folder(target="gpu", convolutions=TARGETS[target])):
        with open_bundle(path, **options) as bundle:
            found.append(bundle.encode(frames, chunk=1).tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("graph", ["encoder", "decoder", "encoder.direct", "decoder.direct"])
def test_every_graph_has_blocks_unless_it_is_for_gpus(folder: Callable[..., Path], graph: str) -> None:
    for path, blocks in ((folder(), BLOCKS), (folder(target="gpu", convolutions="minimal"), 1)):
        nodes = onnx.load(str(path / f"{graph}.onnx"), load_external_data=False).graph.node
        assert [node.op_type for node in nodes].count("Softmax") == blocks


@pytest.mark.slow
def test_large_frames_of_preset_s_are_planned_within_6_gibibytes() -> None:
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.preset("S")).eval()
    values: dict[Any, int] = {"batch": 1, "latents": 4, "height/8": 135, "width/8": 240}
    spec = graph_spec(model, "encoder", "step")
    peaks = trace(model, spec, opset=20, convolutions="minimal").scratch
    products = [[np.prod([values.get(part, part) for part in term]) for term in peak] for peak in peaks]
    assert 4 * 2**30 < max(map(sum, products)) <= 6 * 2**30
