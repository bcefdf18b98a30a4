"""Block-wise inference: the measure itself, our streams (equal bits), and the peers' own blocks
against their direct inference.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
needs_diffusers = pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_importable() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def peers(_benchmarks_importable: None) -> Any:
    return importlib.import_module("peers")


@pytest.fixture(scope="module")
def errors(_benchmarks_importable: None) -> Any:
    return importlib.import_module("blockwise_error")


@pytest.fixture(scope="module")
def blockwise(_benchmarks_importable: None) -> Any:
    return importlib.import_module("blockwise")


# The measure --------------------------------------------------------------------------------------


def test_error_of_worked_values(errors: Any) -> None:
    video = np.zeros((4, 8, 10, 3), dtype=np.float32)
    direct = video + np.float32(0.5)
    direct[0] = -0.5
    blocks = direct.copy()
    blocks[2, 3, 4] += 0.25
    latents = np.ones((2, 3), dtype=np.float32)
    error = errors.Error.of(video, direct, blocks, latents, latents + 2)
    assert not error.equal_bits
    assert (error.max_abs, error.latents_max_abs) == (0.25, 2.0)
    assert error.mean_square == pytest.approx(0.25**2 * 3 / (4 * 8 * 10 * 3))
    assert error.per_frame == pytest.approx([0, 0, math.sqrt(0.25**2 / 80), 0])
    assert np.argwhere(error.heat > 0).tolist() == [[3, 4]]
    assert error.heat[3, 4] == pytest.approx(math.sqrt(0.25**2 / 4))
    assert error.direct_psnr == pytest.approx(10 * math.log10(4 / 0.25))
    numbers = errors.Totals([error]).numbers()
    assert numbers["psnr_to_direct_db"] == pytest.approx(10 * math.log10(4 / error.mean_square))
    deviation = math.sqrt(0.25 - 0.25**2)  # three quarters +0.5, one quarter -0.5: mean 0.25
    assert numbers["relative_error"] == pytest.approx(math.sqrt(error.mean_square) / deviation)
    assert numbers["difference_db"] < 0


def test_equal_results_have_no_error_and_others_are_not_equal(errors: Any) -> None:
    video = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    latents = np.zeros(3, dtype=np.float32)
    numbers = errors.Totals([errors.Error.of(video / 2, video, video.copy(), latents, latents)]).numbers()
    assert (
        numbers["equal_bits"],
        numbers["psnr_to_direct_db"],
        numbers["difference_db"],
        numbers["max_abs"],
    ) == (True, None, 0.0, 0.0)
    assert not errors.Error.of(video, video, video, latents, -latents).equal_bits, "the sign of zero is a bit"
    with pytest.raises(ValueError, match="cannot be compared"):
        errors.Error.of(video, video, video[:1], latents, latents)


def test_picture_shows_where(errors: Any) -> None:
    heat = np.zeros((6, 9))
    heat[2, 7] = 1.0
    colours = errors.heat_colours(heat).astype(int).sum(axis=-1)
    assert np.unravel_index(colours.argmax(), colours.shape) == (2, 7)
    assert len(np.unique(colours)) == 2
    shades = errors.heat_colours(np.linspace(0, 1, 50)[None]).astype(int).sum(axis=-1)[0]
    assert (np.diff(shades) > 0).all(), "brighter is more"
    video = np.zeros((3, 8, 8, 3), dtype=np.float32)
    for scale in (0.0, 1e-7, 0.3):
        error = errors.Error.of(video, video, video + np.float32(scale), video, video)
        root = ET.fromstring(errors.picture_of(error, "<method>", "note & more"))
        assert len(list(root.iter("{http://www.w3.org/2000/svg}image"))) == 1


# Peers --------------------------------------------------------------------------------------------


PARAMETERS = {
    "sd-vae": 83.65,
    "svd": 97.74,
    "cogvideox": 215.58,
    "allegro": 174.96,
    "wan": 126.89,
    "hunyuan": 246.49,
    "ltx": 418.0,
}
"""Millions, of the released models."""


@needs_diffusers
@pytest.mark.parametrize("name", PARAMETERS)
def test_published_configurations_have_the_released_size(peers: Any, name: str) -> None:
    peer = peers.PEERS[name]
    with torch.device("meta"):
        model = peers._diffusers_class(peer.adapter.class_name)(**peer.published)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(
        PARAMETERS[name], rel=0.01
    )


@needs_diffusers
@pytest.mark.parametrize("name", PARAMETERS)
def test_peers_keep_shapes_and_repeat_themselves(peers: Any, name: str) -> None:
    peer = peers.PEERS[name]
    scale = 8
    model = peer.build(tile_scale=scale)
    frames, side = (25, 66) if name == "allegro" else (18, 50)  # more than one tile, and none of them whole
    video = peer.fit(
        torch.rand(1, 3, frames, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1, scale
    )
    time, rows, columns = peer.compression
    latents = model.encode(video)
    frames = (video.shape[2] - 1) // time + 1 if peer.frames_after_first else video.shape[2] // time
    assert latents.shape == (1, peer.channels, frames, video.shape[3] // rows, video.shape[4] // columns)
    result = model.decode(latents, video.shape[2])
    assert result.shape == video.shape
    for mode in peer.modes:
        model.use(mode.name)
        blocks = model.decode(latents, video.shape[2])
        assert blocks.shape == video.shape
        # Spatial tiles, and blocks in time without a complete cache, must make a difference; Wan's
        # cache is complete.
        close = float((blocks - result).abs().max()) < 1e-4
        assert close == (mode.name == "feature cache"), mode.name
    model.use(peers.DIRECT)
    assert torch.equal(model.encode(video), latents)
    assert torch.equal(model.decode(latents, video.shape[2]), result)
    assert torch.equal(peer.build(tile_scale=scale).encode(video), latents), "the seed decides"
    with pytest.raises(ValueError, match="no mode 'x'"):
        model.use("x")


@needs_diffusers
def test_local_weights_are_loaded_and_others_refused(peers: Any, tmp_path: Path) -> None:
    peer = peers.PEERS["sd-vae"]
    saved = peer.build(seed=5)
    saved.vae.save_pretrained(tmp_path / "vae")
    loaded = peer.build(full=True, weights=tmp_path / "vae")
    assert all(
        torch.equal(a, b) for a, b in zip(saved.vae.parameters(), loaded.vae.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match=r"config\.json"):
        peer.build(weights=tmp_path)


CHECKOUT = """
import torch

class Posterior:
    def __init__(self, x):
        self.x = x
    def mode(self):
        return self.x

class Coded:
    def __init__(self, x):
        self.latent_dist = Posterior(x)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.tiled = False
    @classmethod
    def from_pretrained(cls, folder):
        assert folder.endswith("weights")
        return cls()
    def enable_tiling(self):
        self.tiled = True
    def disable_tiling(self):
        self.tiled = False
    def encode(self, x):
        return Coded(x[:, :, ::4] * self.scale)
    def decode(self, z):
        video = (z / self.scale).repeat_interleave(4, 2)
        return video + 0.125 if self.tiled else video
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "made_up_vae.py").write_text(CHECKOUT)
    return tmp_path / "code"


def test_a_local_checkout_is_driven_by_its_entry(peers: Any, checkout: Path, tmp_path: Path) -> None:
    peer = peers.CHECKOUTS["cv-vae"]
    before = list(sys.path)
    model = peer.build(checkout, tmp_path / "weights", "made_up_vae:Model.from_pretrained")
    assert sys.path == before
    video = torch.rand(1, 3, 5, 4, 4)
    latents = model.encode(video)
    assert torch.equal(latents, video[:, :, ::4] * 2)
    direct = model.decode(latents, 5)
    model.use("tiling")
    assert torch.equal(model.decode(latents, 5), direct + 0.125)
    assert model.parameters == 1
    with pytest.raises(ValueError, match="another entry"):
        peer.build(checkout, tmp_path / "weights")
    with pytest.raises(ValueError, match="no directory"):
        peer.build(tmp_path / "nowhere", tmp_path / "weights")


# The benchmark ------------------------------------------------------------------------------------


def test_our_streams_have_equal_bits_and_files_say_so(
    blockwise: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--only",
        "wfvae",
        "cv-vae",
        "--frames",
        "14",
        "--size",
        "32",
        "--threads",
        "1",
        "--out",
        str(tmp_path),
    ]
    from wfvae.export.weights import state_dict_sha256
    from wfvae.model.vae import WFVAE

    assert blockwise.main(arguments) == 0
    data = json.loads((tmp_path / "blockwise.json").read_text())
    assert len(data["methods"]) == 3
    for method in data["methods"]:
        assert method["equal_bits"] is True
        assert (method["difference_db"], method["max_abs"], method["latents_max_abs"]) == (0.0, 0.0, 0.0)
        assert method["shape"] == [14, 32, 32]
        assert (tmp_path / method["picture"]).is_file()
    assert [one["model"] for one in data["not_measured"]] == ["CV-VAE"]
    text = (tmp_path / "blockwise.md").read_text()
    assert text.count("equal bits") == 3
    assert "0.00 dB" in text
    assert {method["weights"] for method in data["methods"]} == {"trained, preset tiny as it ships"}
    assert data["note"] == ""
    assert data["wfvae_checkpoint_sha256"] == state_dict_sha256(WFVAE.from_pretrained("tiny").state_dict())
    assert "random" not in text
    assert "not measured" in capsys.readouterr().out


@pytest.mark.parametrize(("weights", "meant"), [("random, seed 0", False), ("checkpoint", True)])
def test_a_random_network_has_no_quality_that_could_suffer(
    blockwise: Any, errors: Any, weights: str, meant: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    video = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    benchmark = blockwise.Benchmark([], None, [], [])
    for mode, blocks in (("equal", video / 2), ("other", video / 4)):
        benchmark.measure(
            "M",
            mode,
            "x",
            weights,
            1,
            [(video, errors.Error.of(video, video / 2, blocks, video, video))],
            video.shape[:3],
        )
    equal, other = benchmark.results
    assert (equal.difference_db, equal.direct_psnr_db) == (0.0, equal.blockwise_psnr_db)
    assert all((getattr(other, name) is not None) == meant for name in blockwise.TO_THE_VIDEO)
    told = f"{other.difference_db:+.2f} dB" if meant else "–"
    first, second = capsys.readouterr().out.splitlines()
    assert first == "M, equal: equal bits, max 0, 0.00 dB" and second.endswith(
        f" dB to direct, max {other.max_abs:.3g}, {told}"
    )
    assert blockwise.to_markdown(benchmark.results, [], "about").count(f" | {told} |\n") == 1


def test_a_stream_that_differs_fails(
    blockwise: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chunked = blockwise.chunked
    monkeypatch.setattr(
        blockwise, "chunked", lambda job, chunk: np.nextafter(chunked(job, chunk), np.float32(9))
    )
    assert blockwise.main(["--only", "wfvae", "--frames", "5", "--size", "16", "--threads", "1"]) == 1
    assert "stream, odd pushes: equal bits" in capsys.readouterr().out


def test_a_checkout_is_measured_on_given_videos(
    blockwise: Any, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fixtures.program import clip, save

    (tmp_path / "videos").mkdir()
    for seed in range(2):
        save(
            tmp_path / "videos" / f"{seed}.mkv", clip(6, 24, 32, seed=seed), codec="ffv1", pixel_format="bgr0"
        )
    given = f"od-vae={checkout},{tmp_path / 'weights'},made_up_vae:Model.from_pretrained"
    arguments = [
        "--only",
        "od-vae",
        "--data",
        str(tmp_path / "videos"),
        "--frames",
        "5",
        "--size",
        "16",
        "--checkout",
        given,
    ]
    assert blockwise.main([*arguments, "--threads", "1", "--out", str(tmp_path / "out")]) == 0
    [method] = json.loads((tmp_path / "out" / "blockwise.json").read_text())["methods"]
    assert method["difference_db"] == pytest.approx(
        method["blockwise_psnr_db"] - method["direct_psnr_db"], abs=1e-2
    )
    assert f"max 0.125, {method['difference_db']:+.2f} dB" in capsys.readouterr().out
    assert (method["model"], method["clips"], method["max_abs"]) == (
        "OD-VAE",
        2,
        pytest.approx(0.125, rel=1e-3),
    )
    assert method["psnr_to_direct_db"] == pytest.approx(10 * math.log10(4 / 0.125**2), rel=1e-3)
    assert blockwise.main(["--only", "od-vae", "--data", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


@needs_diffusers
def test_a_model_out_of_memory_is_a_row_and_results_are_written_at_once(
    blockwise: Any, peers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SVD has no memory even for direct inference; when it begins, the files hold SD-VAE; and Wan
    is measured all the same.
    """
    before = []

    def encode(model: Any, clip: torch.Tensor) -> torch.Tensor:
        data = json.loads((tmp_path / "blockwise.json").read_text())
        before.append(
            (
                [one["model"] for one in data["methods"]],
                (tmp_path / "blockwise.md").read_text().count("SD-VAE, tiling"),
            )
        )
        raise RuntimeError("DefaultCPUAllocator:\n can't allocate memory")

    monkeypatch.setattr(peers.SVDModel, "encode", encode)
    arguments = [
        "--only",
        "sd-vae",
        "svd",
        "wan",
        "--frames",
        "5",
        "--size",
        "48",
        "--tile-scale",
        "8",
        "--threads",
        "1",
    ]
    assert blockwise.main([*arguments, "--out", str(tmp_path)]) == 0
    assert before == [(["SD-VAE"], 1)]
    data = json.loads((tmp_path / "blockwise.json").read_text())
    assert {one["model"] for one in data["methods"]} == {"SD-VAE", "Wan 2.1"}
    reason = "DefaultCPUAllocator: can't allocate memory"
    assert data["not_measured"] == [{"model": "SVD", "mode": "all", "reason": reason}]
    assert f"| SVD, all | – | – | not measured: {reason} |" in (tmp_path / "blockwise.md").read_text()
    assert not list(tmp_path.glob("*.part"))


@needs_diffusers
def test_peers_are_measured_and_what_fails_is_said(blockwise: Any, tmp_path: Path) -> None:
    arguments = [
        "--only",
        "sd-vae",
        "allegro",
        "--frames",
        "4",
        "--size",
        "48",
        "--tile-scale",
        "8",
        "--threads",
        "1",
    ]
    assert blockwise.main([*arguments, "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "blockwise.json").read_text())
    [method] = data["methods"]
    assert (method["model"], method["equal_bits"]) == ("SD-VAE", False)
    assert method["psnr_to_direct_db"] > 0
    assert [method[name] for name in blockwise.TO_THE_VIDEO] == [None] * 3
    assert method["weights"].startswith("random")
    assert "not by how much a trained model suffers" in data["note"]
    [row] = [
        line for line in (tmp_path / "blockwise.md").read_text().splitlines() if line.startswith("| [SD-VAE")
    ]
    assert row.endswith("| – |"), "a random network has no quality that could suffer"
    [missing] = data["not_measured"]
    assert "smaller than one tile of Allegro" in missing["reason"]
