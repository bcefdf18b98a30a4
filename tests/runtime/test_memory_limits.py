"""Work that does not fit the memory is refused with the numbers before anything is allocated."""

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fixtures.program import Program, save
from wfvae.errors import ResourceError
from wfvae.machine import available_memory, memory_allowance
from wfvae.runtime import Bundle, open_bundle

SIDE = 12_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path, side: int = SIDE) -> Path:
    """A PNG of a few hundred kB that says it has `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((side + 1) * 64))
    pieces = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))
    return path


@pytest.mark.parametrize("command", ["encode", "reconstruct", "inspect"])
def test_picture_that_does_not_fit_the_memory_is_refused_with_the_numbers(
    program: Program, bundle: Path, tmp_path: Path, command: str
) -> None:
    folder = bomb(tmp_path / "in" / "frame-0.png").parent
    words: tuple[Any, ...] = (folder,) if command == "inspect" else (bundle, folder, tmp_path / "z.npy")
    with memory_allowance(1 << 30):
        complaint = program.refused(command, *words)
    assert "pixels does not fit the memory" in complaint and str((1 << 30) // 32) in complaint
    assert "does not fit" in program.refused(command, *words, "--limit", "1G")


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_video_that_does_not_fit_the_memory_is_refused_with_the_numbers(
    program: Program, bundle: Path, tmp_path: Path, ending: str
) -> None:
    video = save(tmp_path / f"in{ending}", np.zeros((1, 1536, 2048, 3), np.uint8))
    for words in (("encode", bundle, video, tmp_path / "z.npy"), ("inspect", video)):
        with memory_allowance(65 << 20):
            complaint = program.refused(*words)
        assert "of 2048x1536 need 96 MiB, and 65 MiB are available" in complaint
    assert program.done("inspect", video)["width"] == 2048


def test_stream_that_exceeds_what_the_machine_has_is_refused_and_a_limit_overrides(
    bundle: Path, model: Bundle
) -> None:
    available = available_memory()
    assert available is not None
    side = 8 * int((available / 8) ** 0.25)  # attention alone takes side^4 / 8^3 bytes per latent
    with pytest.raises(ResourceError, match=r"need \d+ MiB \(state .*more than what is available, \d+ MiB"):
        model.encoder(height=4 * side, width=4 * side)
    with pytest.raises(ResourceError, match="more than what is available"):
        model.decoder_pool(height=4 * side, width=4 * side, rows=2)
    with memory_allowance(1 << 20), pytest.raises(ResourceError, match="more than what is available, 1 MiB"):
        model.encoder(height=1080, width=1920)
    limited = open_bundle(bundle, provider="cpu", threads=1, memory_limit=1 << 20)
    with pytest.raises(ResourceError, match="more than the limit of 1 MiB"):
        limited.encoder(height=64, width=64)


def test_whole_clip_that_exceeds_the_memory_is_refused(model: Bundle) -> None:
    model.admit_direct("encoder", height=16, width=16, latents=3)
    with pytest.raises(ResourceError, match="encoder stream"):
        model.admit_direct("encoder", height=16, width=16, latents=10**9)


CHECKPOINTS: dict[str, tuple[dict[str, Any], str]] = {
    "10^9 channels": ({"latent_dim": 10**9}, "latent_dim is 1000000000"),
    "10^4 blocks": ({"encoder_num_resblocks": 10**4}, "encoder_num_resblocks is 10000"),
    "wide layers": ({"base_channels": 4096}, "x [0-9]+ weights need"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("command", ["export", "train"])
def test_model_that_does_not_fit_the_memory_is_refused(
    program: Program, reference_dir: Path, tmp_path: Path, kind: str, command: str
) -> None:
    changes, says = CHECKPOINTS[kind]
    if command == "export":
        source = reference_dir / "4x8x8-trilinear"
        config = json.loads((source / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(config))
        name = "diffusion_pytorch_model.safetensors"
        (tmp_path / name).symlink_to(source / name)
        words: tuple[Any, ...] = ("export", tmp_path, tmp_path / "bundle")
        if kind == "wide layers":  # that its weights have other shapes is seen before any memory is taken
            says = "178 misshaped: encoder"
    else:
        sets = [f"model.{key}={value}" for key, value in changes.items()]
        words = ("train", "tiny-quick", "--out", tmp_path / "run", "--set", *sets)
    with memory_allowance(8 << 30):
        complaint = program.refused(*words)
    assert re.search(says, complaint), complaint


def test_training_clips_that_do_not_fit_the_memory_are_refused(program: Program, tmp_path: Path) -> None:
    words = ("train", "tiny-quick", "--out", tmp_path / "run", "--set", "data.height=800000")
    assert "clips of" in program.refused(*words, "data.width=800000", "data.frames=1000001")
    assert not (tmp_path / "run").exists()


SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 5004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""
M3U = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n"
CONCAT = "ffconcat version 1.0\nfile '/etc/hostname'\n"


@pytest.mark.parametrize("text", [SDP, M3U, CONCAT])
def test_image_folder_opens_images_only(program: Program, tmp_path: Path, text: str) -> None:
    (tmp_path / "frame-0.png").write_text(text)
    # A description of a session would wait for packets at its port; a playlist would open its file.
    assert "cannot read image" in program.refused("inspect", tmp_path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_every_kind_of_image_is_read(program: Program, tmp_path: Path, ending: str) -> None:
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / f"frame-0{ending}")
    assert program.done("inspect", tmp_path)["width"] == 24


def test_names_with_control_characters_do_not_reach_the_terminal(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\x07\u202eb.mp4"
    path.write_text("no video")
    complaint = program.refused("inspect", path)
    assert complaint.isprintable() and "a\\x1b[2J\\x07\\u202eb.mp4" in complaint
