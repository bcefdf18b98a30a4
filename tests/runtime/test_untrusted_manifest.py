"""Manifests, tunings and engines whose hashes fit, with values that no bundle has."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.program import Program
from wfvae.errors import BundleError
from wfvae.runtime import open_bundle
from wfvae.spec.manifest import Manifest, json_sha256

Edit = Callable[[Any], object]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose manifest can be changed; its files are links."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for entry in bundle.iterdir():
        if entry.suffix in (".onnx", ".bin"):
            (folder / entry.name).symlink_to(entry)
    (folder / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes())
    return folder


def edit_manifest(folder: Path, edit: Edit) -> None:
    """Changes a manifest and computes its identity anew, as whoever forges one would."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    content = {key: value for key, value in data.items() if key not in ("identity", "engines")}
    path.write_text(json.dumps(data | {"identity": json_sha256(content)}))


def in_graph(key: str, **changes: Any) -> Edit:
    return lambda data: data["graphs"][key].update(changes)


def in_state(**changes: Any) -> Edit:
    return lambda data: data["graphs"]["decoder"]["states"][3].update(changes)


def in_input(index: int, **changes: Any) -> Edit:
    return lambda data: data["graphs"]["decoder"]["inputs"][index].update(changes)


def in_model(**changes: Any) -> Edit:
    return lambda data: data["model"].update(changes)


SIDES = ["height/8", "width/8"]
EDITS: dict[str, tuple[Edit, str]] = {
    "another rank": (in_input(0, shape=["batch"]), "inputs has latents"),
    "channels that are a symbol": (in_input(0, shape=["batch", "latents", "batch", *SIDES]), "inputs has"),
    "a symbol with a line break": (in_input(1, shape=["batch\n"]), "inputs has start"),
    "a type of flags": (in_input(1, dtype="float32"), "inputs has start"),
    "two inputs of one name": (in_input(1, name="end"), "inputs are latents, end, end"),
    "more channels than the model": (in_model(latent_dim=5), "inputs has latents"),
    "10^9 channels": (in_model(latent_dim=10**9), "latent_dim is 1000000000"),
    "channels that are text": (in_model(latent_dim="4"), "latent_dim is '4'"),
    "no scale": (lambda data: data["model"].pop("scale"), "scale is no list of one number"),
    "a scale of text": (in_model(scale=["a"]), "scale is no list of one number"),
    "two shifts": (in_model(shift=[0.0, 1.0]), "shift is no list of one number"),
    "a late decoder": (in_graph("decoder", delay_frames=4, drop_frames=7), "delay_frames is 4"),
    "10^12 frames to drop": (
        in_graph("decoder", delay_frames=10**12, drop_frames=10**12 + 3),
        "delay_frames is 1000000000000",
    ),
    "another ratio": (
        in_graph("encoder", ratio=8, chunk_multiple=8, lead_frames=7),
        "ratio is 4, that of the encoder 8",
    ),
    "a state without batch": (in_state(shape=[1, 2]), "expected batch"),
    "a state over time": (in_state(shape=["batch", "frames"]), "expected batch"),
    "a state of 10^9": (in_state(shape=["batch", 10**9]), "expected batch"),
    "a state of many axes": (in_state(shape=["batch", *[1] * 40]), "expected batch"),
    "two states of one name": (
        lambda data: data["graphs"]["decoder"]["states"].append(data["graphs"]["decoder"]["states"][0]),
        "two of one name",
    ),
    "a formula of a clip": (in_graph("decoder", scratch_bytes=[[[1, "groups"]]]), "expected the symbols"),
    "a formula below 0": (in_graph("decoder", scratch_bytes=[[[-1]]]), "factor -1"),
    "a formula of large numbers": (in_graph("decoder", scratch_bytes=[[[2**60]]]), "factor"),
    "a formula of many numbers": (in_graph("decoder", scratch_bytes=[[[2**40] * 2]]), "2 of them numbers"),
    "a formula of many factors": (
        in_graph("decoder", scratch_bytes=[[[1, *["batch"] * 1000]]]),
        "1001 factors",
    ),
    "a formula of many sums": (in_graph("decoder", scratch_bytes=[[[1]]] * 1000), "more than 256"),
    "a formula of many products": (in_graph("decoder", scratch_bytes=[[[1]] * 1000]), "more than 256"),
    "a huge size": (lambda data: data.update(size=[2**40, 8]), "expected sides of at most"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_manifest_of_no_possible_bundle_is_refused_although_its_hash_fits(copy: Path, kind: str) -> None:
    edit, says = EDITS[kind]
    edit_manifest(copy, edit)
    with pytest.raises(BundleError, match=says) as caught:
        Manifest.read(copy)
    assert "\n" not in str(caught.value) and "export the bundle anew" in str(caught.value)


def test_manifest_of_any_nesting_is_refused_by_every_command(copy: Path, program: Program) -> None:
    (copy / "manifest.json").write_text("[" * 100_000)
    for words in (
        ("inspect", copy),
        ("plan", copy, "--size", "16x16"),
        ("encode", copy, copy, copy / "z.npy"),
        ("decode", copy, copy / "z.npy", copy / "x.mp4"),
    ):
        assert "nests more than" in program.refused(*words)


def test_engines_and_tuning_of_any_content_are_described_or_refused(copy: Path, program: Program) -> None:
    edit_manifest(copy, lambda data: data.update(engines=[{"file": ["\x1b[31m"]}, {}]))
    assert program.done("inspect", copy)["engines"] == [["\x1b[31m"], "?"]
    setting = {"backend": {}, "cpu": "x", "cores": 1}
    entry = {"direction": "encoder", "height": 16, "width": 16, "setting": setting, "chunk": 4}
    entry |= {"seconds_per_frame": {"4": 0.5}, "version": ""}
    identity = json.loads((copy / "manifest.json").read_text())["identity"]
    tuning = {"format": "wfvae-tuning/1", "bundle": identity, "entries": [entry]}
    (copy / "tuning.json").write_text(json.dumps(tuning | {"sha256": json_sha256(tuning)}))
    assert program.done("inspect", copy)["tuned"] == ["encoder 16x16 chunk 4 (?, x)"]
    (copy / "tuning.json").write_text('{"a": 1e999}')
    assert "is damaged" in program.refused("inspect", copy)
    with pytest.raises(BundleError, match="is damaged"):
        open_bundle(copy, provider="cpu").encoder(height=16, width=16)


def test_state_that_the_graph_has_not_is_refused(copy: Path) -> None:
    def rename(data: Any) -> None:
        state = data["graphs"]["encoder"]["states"][0]
        name = state["name"] + ".other"
        state.update(name=name, input=f"state.{name}", output=f"next_state.{name}")

    edit_manifest(copy, rename)
    message = "cannot load encoder.onnx: its input state.* is (none|float32) in the manifest"
    with pytest.raises(BundleError, match=message):
        open_bundle(copy, provider="cpu", threads=1).encoder(height=16, width=16)
