"""Engines as data: settings, profiles, the manifest's entries, and what may run where."""

import argparse
import hashlib
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fixtures.engine_records import GPU, HERE, PORTABLE, VERSIONS, engine_record
from wfvae.cli import build as build_command
from wfvae.errors import BundleError, InputError
from wfvae.spec.manifest import Manifest
from wfvae.spec.records import read_as
from wfvae.spec.tensorrt_api import RTX
from wfvae.spec.tensorrt_engines import (
    BuildSettings,
    EngineRecord,
    Gpu,
    Profile,
    Span,
    engine_records,
    find_engine,
    list_engine,
    portable_target,
    profiles_for,
    read_engine,
)

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


@given(span=SPANS)
def test_span_reads_back_as_written_and_other_texts_are_refused(span: Span) -> None:
    assert Span.parse(str(span)) == span
    for text in ("", "0", "1:2", "3:2:4", "-1:1:1", "a", "1:2:3:4", "1.5"):
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


def listing(manifest: Manifest, *records: EngineRecord) -> Manifest:
    return replace(manifest, engines=tuple(record.to_dict() for record in records))


def test_records_read_back_from_the_manifest(manifest: Manifest, tmp_path: Path) -> None:
    other = engine_record(manifest, "decoder", BuildSettings(whole_clip=5, tf32=True))
    listing(manifest, engine_record(manifest), other).write(tmp_path)
    read = Manifest.read(tmp_path)
    assert engine_records(read) == [engine_record(manifest), other]
    assert read.identity == manifest.identity


DAMAGE: list[dict[str, object]] = [{"file": "../outside.engine"}, {"graph": "../encoder"}]
DAMAGE += [{"precision": "fp16"}, {"settings": {}}, {"profiles": None}, {"bytes": "many"}, {"key": "0"}]


@pytest.mark.parametrize("damage", DAMAGE)
def test_changed_entry_is_refused(manifest: Manifest, damage: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="build the engines anew"):
        EngineRecord.from_dict({**engine_record(manifest).to_dict(), **damage})


def test_key_covers_everything_an_engine_depends_on(manifest: Manifest) -> None:
    base = engine_record(manifest)
    narrow = (Profile("chunk", Span.of(1), Span.of(4), Span.of(64), Span.of(64)),)
    changes: list[dict[str, Any]] = [
        {"graph_sha256": "another"},
        {"precision": "fp16"},
        {"profiles": narrow},
        {"settings": BuildSettings(tf32=True)},
        {"settings": BuildSettings(optimization_level=5)},
        {"target": replace(HERE, version="11.4.0.107")},
        {"target": replace(HERE, gpu="NVIDIA H100")},
        {"target": replace(HERE, compute_capabilities=("9.1",))},
        {"target": PORTABLE},
        {"target": replace(PORTABLE, compute_capabilities=("8.9",))},
    ]
    keys = {replace(base, **change).key for change in changes}
    assert len(keys | {base.key}) == len(changes) + 1
    assert replace(base, sha256="another", bytes=0).key == base.key


def find(
    manifest: Manifest, graph: str = "encoder", tf32: bool = False, gpu: Gpu = GPU, **versions: Any
) -> EngineRecord:
    return find_engine(manifest, Path("b"), graph, gpu, versions or VERSIONS, tf32)


def test_newest_fitting_engine_is_found(manifest: Manifest) -> None:
    elsewhere = engine_record(manifest, target=replace(HERE, gpu="NVIDIA A100"))
    wide, narrow = engine_record(manifest), engine_record(manifest, settings=BuildSettings(chunk=2))
    assert find(listing(manifest, wide, narrow, elsewhere)) == narrow


ADA, BLACKWELL, TURING = Gpu("RTX 4090", "8.9"), Gpu("RTX 5090", "12.0"), Gpu("RTX 2080", "7.5")


def test_portable_engine_runs_on_every_gpu_that_it_was_built_for(manifest: Manifest) -> None:
    portable = engine_record(manifest, target=PORTABLE)
    own = engine_record(manifest, target=replace(HERE, compute_capabilities=("8.9",), gpu=ADA.name))
    ada_only = engine_record(manifest, target=replace(PORTABLE, compute_capabilities=("8.9",)))
    listed = listing(manifest, own, portable, ada_only)
    assert find(listed, gpu=BLACKWELL) == portable
    assert find(listed, gpu=ADA) == own  # it was timed on this GPU
    assert find(listed, gpu=ADA, rtx=PORTABLE.version) == ada_only


@pytest.mark.parametrize(
    ("gpu", "versions", "message"),
    [
        (GPU, VERSIONS, r"12\.0, and this is NVIDIA H200 \(.* 9\.0\).* b --flavour tensorrt$"),
        (TURING, VERSIONS, r"capability 7\.5\); build one: .* b --flavour rtx --compute-capability 7\.5$"),
        (
            ADA,
            {"rtx": "1.8"},
            r"built with TensorRT-RTX 1\.7\.1\.116, .* is TensorRT-RTX 1\.8; .*--flavour rtx$",
        ),
        (ADA, {"tensorrt": "11.4.0.106"}, r"TensorRT-RTX is not installed \(pip install 'wfvae\[rtx\]'\)"),
    ],
)
def test_portable_engine_that_cannot_run_here_is_refused_with_the_reason(
    manifest: Manifest, gpu: Gpu, versions: dict[str, str], message: str
) -> None:
    with pytest.raises(BundleError, match=rf"TensorRT-RTX engine for encoder can't run here: .*{message}"):
        find(listing(manifest, engine_record(manifest, target=PORTABLE)), gpu=gpu, **versions)


def test_portable_target_takes_supported_compute_capabilities_only(manifest: Manifest) -> None:
    assert portable_target(RTX, "1.7").compute_capabilities == RTX.default
    target = portable_target(RTX, PORTABLE.version, ["12.0", "8.9", "8.9"])
    assert target.compute_capabilities == ("8.9", "12.0")
    command = engine_record(manifest, target=target).command("b")
    assert command == "wfvae build b --flavour rtx --compute-capability 8.9 12.0"
    with pytest.raises(InputError, match=r"compute capability 9\.0; expected some of 7\.5, 8\.0"):
        portable_target(RTX, "1.7", ["8.9", "9.0"])


@pytest.mark.parametrize(("graph", "option"), [("decoder", ""), ("encoder.direct", " --whole-clip 8")])
def test_missing_engine_names_the_command_that_builds_it(manifest: Manifest, graph: str, option: str) -> None:
    with pytest.raises(
        BundleError, match=f"no TensorRT engine for {graph}; build it: wfvae build b{option}$"
    ):
        find(listing(manifest, engine_record(manifest)), graph)


def test_engine_of_other_weights_is_refused(manifest: Manifest) -> None:
    changed = replace(manifest.files["weights.bin"], sha256="another")
    other = replace(manifest, files={**manifest.files, "weights.bin": changed})
    listed = listing(other, engine_record(manifest))
    with pytest.raises(BundleError, match="another graph or other weights; build one: wfvae build b"):
        find(listed)
    other = replace(manifest, files={**manifest.files, "decoder.onnx": changed})
    assert find(listing(other, engine_record(manifest))) == engine_record(manifest)


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
