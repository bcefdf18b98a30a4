"""Engines as data: settings, profiles, the manifest's entries, and what may run where."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fixtures.engine_records import HERE, engine_record
from wfvae.cli import build as build_command
from wfvae.errors import BundleError, InputError
from wfvae.spec.engines import (
    BuildSettings,
    EngineRecord,
    Profile,
    Span,
    find_engine,
    graph_sha256,
    input_shapes,
    list_engine,
    profiles_for,
    read_engine,
)
from wfvae.spec.manifest import Manifest
from wfvae.spec.records import read_as

SPANS = st.lists(st.integers(1, 9), min_size=3, max_size=3).map(lambda sizes: Span(*sorted(sizes)))
SIDES = SPANS.map(lambda span: Span(8 * span.low, 8 * span.best, 8 * span.high))
SETTINGS = st.builds(
    BuildSettings,
    batch=SPANS,
    chunk=st.integers(1, 8),
    height=SIDES,
    width=SIDES,
    whole_clip=st.none() | st.integers(1, 20),
    tf32=st.booleans(),
    optimization_level=st.integers(0, 5),
    workspace=st.none() | st.integers(1, 1 << 40),
)


@pytest.fixture(scope="module")
def manifest(exported: Callable[..., Path]) -> Manifest:
    return Manifest.read(exported("4x8x8-trilinear"))


@pytest.mark.parametrize(("text", "span"), [("4", Span(4, 4, 4)), ("1:2:4", Span(1, 2, 4))])
def test_span_reads_back_as_written(text: str, span: Span) -> None:
    assert Span.parse(text) == span and str(span) == text


@pytest.mark.parametrize("text", ["", "0", "1:2", "3:2:4", "1:5:4", "-1:1:1", "a", "1:2:3:4", "1.5"])
def test_text_that_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="range"):
        Span.parse(text)


@given(settings=SETTINGS)
def test_command_of_settings_parses_to_the_same_settings(settings: BuildSettings) -> None:
    words = shlex.split(settings.command(Path("a bundle")))
    assert words[:3] == ["wfvae", "build", "a bundle"]
    parser = argparse.ArgumentParser()
    build_command.configure(parser)
    assert build_command.settings_from(parser.parse_args(words[2:])) == settings
    assert read_as(BuildSettings, settings.to_dict(), BundleError) == settings


@given(settings=SETTINGS)
def test_every_step_up_to_the_chunk_has_a_profile(manifest: Manifest, settings: BuildSettings) -> None:
    height, width, whole = settings.height.low, settings.width.high, settings.whole_clip or 0
    for key in ("encoder", "decoder"):
        profiles = profiles_for(settings, manifest.graphs[key])

        def admitted(rows: int, latents: int, profiles: tuple[Profile, ...] = profiles) -> bool:
            return any(profile.admits(rows, latents, height, width) for profile in profiles)

        assert all(admitted(settings.batch.high, latents) for latents in range(1, settings.chunk + 1))
        # Whole clips: one row or two, as verification runs them, however many others take.
        assert all(admitted(rows, latents) for rows in (1, 2) for latents in range(1, whole + 1))
        assert not admitted(1, max(settings.chunk, whole) + 1)


def test_input_shapes_of_step_and_direct_graphs(manifest: Manifest) -> None:
    shapes = input_shapes(manifest.graphs["encoder"], 2, 3, 16, 24)
    assert shapes["frames"] == (2, 12, 3, 16, 24) and shapes["start"] == (2,)
    assert input_shapes(manifest.graphs["encoder.direct"], 2, 3, 16, 24) == {"frames": (2, 9, 3, 16, 24)}
    decoder = manifest.graphs["decoder"]
    shapes = input_shapes(decoder, 2, 3, 16, 24)
    assert shapes["latents"] == (2, 3, 4, 2, 3)
    assert {
        f"state.{state.name}": state.resolve(2, 16, 24) for state in decoder.states
    }.items() <= shapes.items()


def test_records_read_back_from_the_manifest(manifest: Manifest, tmp_path: Path) -> None:
    records = (
        engine_record(manifest),
        engine_record(manifest, "decoder", BuildSettings(whole_clip=5, tf32=True)),
    )
    changed = manifest.with_engines(tuple(r.to_dict() for r in records))
    changed.write(tmp_path)
    read = Manifest.read(tmp_path)
    assert tuple(EngineRecord.from_dict(entry) for entry in read.engines) == records
    assert read.identity == manifest.identity


@pytest.mark.parametrize(
    "damage",
    [
        {"file": "../outside.engine"},
        {"graph": "../encoder"},
        {"target": {"tensorrt": "11.4.0.106", "gpu": "another", "compute_capability": "9.0"}},
        {"precision": "fp16"},
        {"settings": {}},
        {"profiles": None},
        {"bytes": "many"},
        {"key": "0"},
    ],
)
def test_changed_entry_is_refused(manifest: Manifest, damage: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="build the engines anew"):
        EngineRecord.from_dict({**engine_record(manifest).to_dict(), **damage})


def test_key_covers_everything_an_engine_depends_on(manifest: Manifest) -> None:
    base = engine_record(manifest)
    narrow = (Profile("chunk", Span.of(1), Span.of(4), Span.of(64), Span.of(64)),)
    others = [
        replace(base, graph_sha256="another"),
        replace(base, precision="fp16"),
        replace(base, profiles=narrow),
        replace(base, settings=BuildSettings(tf32=True)),
        replace(base, settings=BuildSettings(optimization_level=5)),
        replace(base, target=replace(HERE, tensorrt="11.4.0.107")),
        replace(base, target=replace(HERE, gpu="NVIDIA H100")),
        replace(base, target=replace(HERE, compute_capability="9.1")),
    ]
    assert len({r.key for r in (base, *others)}) == len(others) + 1
    assert replace(base, sha256="another", bytes=0).key == base.key


def test_graph_hash_covers_the_graph_and_its_weights(manifest: Manifest) -> None:
    base = graph_sha256(manifest, "encoder")
    for name in ("encoder.onnx", "weights.bin"):
        files = {**manifest.files, name: replace(manifest.files[name], sha256="another")}
        assert graph_sha256(replace(manifest, files=files), "encoder") != base
    files = {**manifest.files, "decoder.onnx": replace(manifest.files["decoder.onnx"], sha256="another")}
    assert graph_sha256(replace(manifest, files=files), "encoder") == base


def test_newest_fitting_engine_is_found(manifest: Manifest) -> None:
    elsewhere = engine_record(manifest, target=replace(HERE, gpu="NVIDIA A100"))
    wide, narrow = engine_record(manifest), engine_record(manifest, settings=BuildSettings(chunk=2))
    listed = manifest.with_engines(tuple(r.to_dict() for r in (wide, narrow, elsewhere)))
    assert find_engine(listed, Path("b"), "encoder", HERE, tf32=False) == narrow
    with pytest.raises(BundleError, match=r"no TensorRT engine for decoder; build it: wfvae build b$"):
        find_engine(listed, Path("b"), "decoder", HERE, tf32=False)
    with pytest.raises(
        BundleError, match=r"no TensorRT engine for encoder.direct; build it: wfvae build b --whole-clip 8$"
    ):
        find_engine(listed, Path("b"), "encoder.direct", HERE, tf32=False)


def test_engine_of_other_weights_is_refused(manifest: Manifest) -> None:
    files = {**manifest.files, "weights.bin": replace(manifest.files["weights.bin"], sha256="another")}
    listed = replace(manifest, files=files).with_engines((engine_record(manifest).to_dict(),))
    with pytest.raises(BundleError, match="another graph or other weights; build one: wfvae build b"):
        find_engine(listed, Path("b"), "encoder", HERE, tf32=False)


def test_half_precision_engine_fits_any_tf32_choice(exported: Callable[..., Path]) -> None:
    manifest = Manifest.read(exported("4x8x8-trilinear", precision="fp16"))
    listed = manifest.with_engines((engine_record(manifest).to_dict(),))
    assert find_engine(listed, Path("b"), "encoder", HERE, tf32=True).precision == "fp16"


def test_engine_with_changed_content_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    entry = engine_record(manifest, sha256=hashlib.sha256(b"content").hexdigest())
    with pytest.raises(BundleError, match=r"cannot read engines/encoder-.*: No such file.*wfvae build"):
        read_engine(entry, tmp_path)
    (tmp_path / "engines").mkdir()
    (tmp_path / entry.file).write_bytes(b"content")
    assert read_engine(entry, tmp_path) == b"content"
    (tmp_path / entry.file).write_bytes(b"Content")
    with pytest.raises(BundleError, match="has been changed"):
        read_engine(entry, tmp_path)


def test_engines_listed_at_the_same_time_are_all_kept(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path)
    records = [engine_record(manifest, settings=BuildSettings(chunk=chunk)) for chunk in range(1, 13)]
    with ThreadPoolExecutor(len(records)) as threads:
        list(threads.map(lambda entry: list_engine(tmp_path, entry), records))
    listed = Manifest.read(tmp_path).engines
    assert sorted(entry["file"] for entry in listed) == sorted(entry.file for entry in records)
