"""Attention in blocks of queries: the bits of whole attention, and less memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from wfvae.export import bundle as bundle_module
from wfvae.export.bundle import ExportOptions, export_bundle, graph_spec
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
def folders(small_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles with whole attention, in blocks, and in blocks of frames of one size."""
    base = tmp_path_factory.mktemp("attention")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_ROWS", ROWS)
        patch.setattr(bundle_module, "MOST_BLOCKS", BLOCKS)
        options: dict[str, Any] = {"convolutions": "minimal", "direct": True}
        export_bundle(small_model(), base / "whole", ExportOptions(target="gpu", **options))
        export_bundle(small_model(), base / "blocks", ExportOptions(**options))
        export_bundle(small_model(), base / "fixed", ExportOptions(size=SIZES[-1], **options))
    return {folder.name: folder for folder in base.iterdir()}


def results(bundle: Bundle, size: tuple[int, int]) -> list[np.ndarray[Any, Any]]:
    """Latents and frames of a short clip, by the step graphs and the direct ones."""
    frames = np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)
    latents = bundle.encode(frames, chunk=1)
    video = (frames.transpose(0, 3, 1, 2)[None] / np.float32(127.5) - 1).astype(np.float32)
    direct = [
        bundle.direct_session("encoder").run(video),
        bundle.direct_session("decoder").run(latents[None]),
    ]
    return [latents, bundle.decode(latents, chunk=1, pixels="float32"), *direct]


@pytest.mark.parametrize("hint", [None, pytest.param("fp32", marks=pytest.mark.slow)])
def test_blocks_of_queries_give_the_bits_of_whole_attention(
    folders: dict[str, Path], hint: str | None
) -> None:
    options: dict[str, Any] = {"backend": "onnxruntime", "provider": "cpu"}
    if hint is not None:
        pytest.importorskip("openvino", reason="needs the extra openvino")
        options = {"backend": "openvino", "precision_hint": hint}
    opened = {name: open_bundle(path, threads=1, **options) for name, path in folders.items()}
    for size in SIZES:
        expected = results(opened["whole"], size)
        # OpenVINO computes graphs of one size with other kernels.
        for name in ("blocks", "fixed") if size == SIZES[-1] and hint is None else ("blocks",):
            for found, wanted in zip(results(opened[name], size), expected, strict=True):
                assert found.shape == wanted.shape and found.tobytes() == wanted.tobytes(), (name, size)


@pytest.mark.parametrize(("name", "blocks"), [("whole", 1), ("blocks", BLOCKS), ("fixed", BLOCKS)])
@pytest.mark.parametrize("graph", ["encoder", "decoder", "encoder.direct", "decoder.direct"])
def test_every_graph_has_blocks_unless_it_is_for_gpus(
    folders: dict[str, Path], name: str, blocks: int, graph: str
) -> None:
    nodes = onnx.load(str(folders[name] / f"{graph}.onnx"), load_external_data=False).graph.node
    assert [node.op_type for node in nodes].count("Softmax") == blocks


@pytest.mark.slow
def test_large_frames_of_preset_s_are_planned_within_6_gibibytes() -> None:
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.preset("S")).eval()
    values: dict[Any, int] = {"batch": 1, "latents": 4, "height/8": 135, "width/8": 240}
    blocks = ExportOptions().attention_blocks
    spec = graph_spec(model, "encoder", "step")
    peaks = trace(model, spec, opset=20, convolutions="minimal", attention_blocks=blocks).scratch
    products = [[np.prod([values.get(part, part) for part in term]) for term in peak] for peak in peaks]
    assert 4 * 2**30 < max(map(sum, products)) <= 6 * 2**30
