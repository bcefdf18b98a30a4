"""Snapshots: a stream restored anywhere gives the same bits, and other snapshots are refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.program import names
from wfvae.errors import InputError, ResourceError, StateError, StreamingError
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.snapshot import Snapshot

Opened = Callable[..., Bundle]
HEIGHT, WIDTH, FRAMES = 12, 9, 22


@cache
def data(bundle: Bundle) -> tuple[Any, Any, Any]:
    """A video, its latents and what they decode to."""
    video = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    latents = bundle.encode(video)
    return video, latents, bundle.decode(latents, frames=FRAMES, height=HEIGHT, width=WIDTH)


def open_stream(bundle: Bundle, direction: str, chunk: int = 4) -> tuple[Any, Any, Any]:
    """A stream, its input and its output."""
    video, latents, decoded = data(bundle)
    if direction == "encoder":
        return bundle.encoder(height=HEIGHT, width=WIDTH, chunk=chunk), video, latents
    return bundle.decoder(height=HEIGHT, width=WIDTH, frames=FRAMES, chunk=chunk), latents, decoded


@pytest.fixture(scope="module")
def fresh(exported: Callable[..., Path]) -> Callable[[str], Bundle]:
    """The same bundles, opened a second time."""

    @cache
    def open_again(name: str) -> Bundle:
        return open_bundle(exported(name), provider="cpu", threads=1)

    return open_again


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["4x8x8-trilinear", "8x8x8-trilinear"])
@given(cuts=st.lists(st.integers(0, FRAMES), max_size=3).map(sorted), chunk=st.integers(1, 3))
@settings(max_examples=30)
def test_stream_restored_at_any_position_gives_same_bits(
    opened: Opened, fresh: Callable[[str], Bundle], name: str, direction: str, cuts: list[int], chunk: int
) -> None:
    bundles = (opened(name), fresh(name))
    stream, source, expected = open_stream(bundles[0], direction, chunk)
    parts, done = [], 0
    for index, cut in enumerate([*cuts, len(source)]):
        parts.append(stream.push(source[done:cut]))
        done = max(done, cut)
        before = stream.capture().counters
        snapshot = stream.snapshot()
        assert isinstance(snapshot, bytes)
        stream.close()  # nothing of it is used any more
        stream = bundles[index % 2].restore(snapshot, chunk=chunk)
        assert stream.capture().counters == before
    result = np.concatenate([*parts, stream.finish()])
    assert result.dtype == expected.dtype and result.tobytes() == expected.tobytes()
    over = bundles[0].restore(stream.snapshot())
    for call in (over.finish, lambda: over.push(source)):
        with pytest.raises(StreamingError, match="finished"):
            call()


def test_restored_stream_keeps_counters_options_and_queued_input(opened: Opened) -> None:
    bundle = opened("4x8x8-trilinear")
    video, latents, _ = data(bundle)
    encoder = bundle.encoder(height=HEIGHT, width=WIDTH)
    encoder.push(video[:11])
    other = bundle.restore(bytearray(encoder.snapshot()))
    counters = {"frames_seen": 11, "latents_given": 3, "float": 0, "started": 1, "closed": 0}
    assert other.capture().counters == counters
    assert other.capture().pending["waiting"].tobytes() == video[9:11].tobytes()
    with pytest.raises(InputError, match="float32, but those before were uint8"):
        other.push(video[11:].astype(np.float32))
    decoder = bundle.decoder(height=HEIGHT, width=WIDTH, frames=21, pixels="float32")
    decoder.push(latents[:3])
    again = bundle.restore(memoryview(decoder.snapshot()))
    assert again.capture().counters == decoder.capture().counters
    assert again.push(latents[3:4]).dtype == np.float32
    with pytest.raises(InputError, match="has 6"):
        again.push(np.repeat(latents, 2, axis=0))


OTHER_PROCESS = """
import sys, numpy as np
from wfvae.runtime import open_bundle
with open_bundle(sys.argv[1], provider="cpu", threads=1).restore(sys.argv[2]) as stream:
    np.save(sys.argv[4], np.concatenate([stream.push(np.load(sys.argv[3])), stream.finish()]))
"""


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
def test_stream_restored_in_another_process_gives_same_bits(
    bundle: Path, model: Bundle, tmp_path: Path, direction: str
) -> None:
    stream, source, expected = open_stream(model, direction)
    first = stream.push(source[:4])
    for _ in range(2):
        stream.save(tmp_path / "stream")
    assert names(tmp_path) == ["stream"]
    np.save(tmp_path / "rest.npy", source[4:])
    arguments = [bundle, *(tmp_path / name for name in ("stream", "rest.npy", "out.npy"))]
    command = [sys.executable, "-c", OTHER_PROCESS, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert np.concatenate([first, np.load(tmp_path / "out.npy")]).tobytes() == expected.tobytes()


def test_snapshot_file_that_cannot_be_read_or_written_is_reported(opened: Opened, tmp_path: Path) -> None:
    bundle = opened("4x8x8-trilinear")
    with pytest.raises(StateError, match="cannot read the snapshot"):
        bundle.restore(tmp_path / "none")
    stream, _, _ = open_stream(bundle, "encoder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "stream"):
        with pytest.raises(ResourceError, match="cannot write"):
            stream.save(path)
    assert names(tmp_path) == ["file", "folder"]


def test_snapshot_is_written_without_a_second_copy_and_read_unchanged(tmp_path: Path) -> None:
    state = {"a": np.ones((4, 250_000), np.float32), "b": np.ones(1_000_000, np.uint16)}
    pending = {"video": np.arange(60, dtype=np.uint8).reshape(3, 20), "none": np.empty((0, 7), np.float16)}
    snapshot = Snapshot("bundle", "encoder", 8, 16, {"given": 3}, state, pending, note="a note ☃")
    tracemalloc.start()
    try:
        snapshot.write(tmp_path / "stream")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # the state has 6 MB
    tensors = safetensors.numpy.load_file(tmp_path / "stream")
    assert sorted(tensors) == ["input.none", "input.video", "state.a", "state.b"]
    assert (tmp_path / "stream").read_bytes() == snapshot.to_bytes()
    attached = {"mask": np.array([True, False]), "numbers": np.arange(3)}
    whole = Snapshot.from_bytes(replace(snapshot, attached=attached).to_bytes())
    for found, written in ((whole.state, state), (whole.pending, pending), (whole.attached, attached)):
        for name, array in written.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    with pytest.raises(UnicodeEncodeError):
        replace(snapshot, note="\udcff").write(tmp_path / "other")
    assert names(tmp_path) == ["stream"]
    again = Snapshot.read(tmp_path / "stream")
    assert (again.note, again.counters, again.height, again.width) == ("a note ☃", {"given": 3}, 8, 16)


def test_snapshot_of_another_stream_is_refused(opened: Opened) -> None:
    bundle, stranger = opened("4x8x8-trilinear"), opened("8x8x8-trilinear")
    stream, source, expected = open_stream(bundle, "encoder")
    first = stream.push(source[:10])
    decoder, latents, _ = open_stream(bundle, "decoder")
    decoder.push(latents[:2])
    large = bundle.encoder(height=HEIGHT + 1, width=WIDTH)
    foreign = stranger.encoder(height=HEIGHT, width=WIDTH)
    for other, message in (
        (decoder, "it is of the decoder, and this stream is of the encoder"),
        (large, "it is of 13x9 video, and this stream is 12x9"),
        (foreign, f"made by bundle {stranger.identity[:12]}, and this one is {bundle.identity[:12]}"),
    ):
        with pytest.raises(StateError, match=message):
            stream.restore(other.snapshot())
    with pytest.raises(StateError, match="made by bundle"):
        bundle.restore(foreign.snapshot())
    assert np.concatenate([first, stream.push(source[10:]), stream.finish()]).tobytes() == expected.tobytes()


def resealed(snapshot: bytes, **changes: Any) -> bytes:
    """A changed snapshot with a hash that fits, as another version or a wrong program writes it."""
    return replace(Snapshot.from_bytes(snapshot), **changes).to_bytes()


def test_snapshot_with_a_wrong_state_is_refused(opened: Opened) -> None:
    bundle = opened("4x8x8-trilinear")
    stream, source, expected = open_stream(bundle, "decoder")
    first = stream.push(source[:2])
    snapshot = stream.snapshot()
    state = dict(Snapshot.from_bytes(snapshot).state)
    name = next(key for key in state if not key.endswith(".age"))
    for wrong, message in (
        ({key: value for key, value in state.items() if key != name}, f"missing {name}"),
        ({**state, "extra": state[name]}, "unexpected extra"),
        ({**state, name: state[name][:, :, :1]}, f"{name} has shape"),
        ({**state, name: state[name].astype(np.float16)}, f"{name} has dtype float16, expected float32"),
    ):
        with pytest.raises(StateError, match=message):
            stream.restore(resealed(snapshot, state=wrong))
    for counters in ({}, {"latents_seen": "many"}):
        with pytest.raises(StateError, match="counters"):
            stream.restore(resealed(snapshot, counters=counters))
    assert np.concatenate([first, stream.push(source[2:]), stream.finish()]).tobytes() == expected.tobytes()


def small_snapshot(bundle: Bundle) -> bytes:
    with bundle.encoder(height=8, width=8) as stream:
        stream.push(np.zeros((2, 8, 8, 3), np.uint8))
        return stream.snapshot()


def test_truncated_snapshot_is_refused(opened: Opened) -> None:
    snapshot = small_snapshot(opened("small"))
    header = 8 + int.from_bytes(snapshot[:8], "little")
    for length in {*range(header + 300), *range(header, len(snapshot), 97), len(snapshot) - 1}:
        with pytest.raises(StateError, match="snapshot"):
            Snapshot.from_bytes(snapshot[:length])
    with pytest.raises(StateError, match="snapshot"):
        Snapshot.from_bytes(snapshot + b"\0")


@given(position=st.integers(0, 10**9), bit=st.integers(0, 7), in_header=st.booleans())
@settings(max_examples=200)
def test_snapshot_with_a_changed_bit_is_refused(
    opened: Opened, position: int, bit: int, in_header: bool
) -> None:
    snapshot = bytearray(small_snapshot(opened("small")))
    limit = 8 + int.from_bytes(snapshot[:8], "little") if in_header else len(snapshot)
    position %= limit
    damaged = bytearray(snapshot)
    damaged[position] ^= 1 << bit
    if in_header and json_equal(snapshot, damaged):
        return
    with pytest.raises(StateError, match="snapshot"):
        Snapshot.from_bytes(bytes(damaged))


def json_equal(a: bytes, b: bytes) -> bool:
    """Whether two headers are equal as JSON, for instance with other white space."""
    length = 8 + int.from_bytes(a[:8], "little")
    try:
        return a[:8] == b[:8] and bool(json.loads(a[8:length]) == json.loads(b[8:length]))
    except ValueError:
        return False


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no snapshot at all",
        bytes(200),
        b"\xff" * 200,
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (20).to_bytes(8, "little") + b'{"__metadata__":[]} ',
        safetensors.numpy.save({"x": np.zeros(3)}),
        safetensors.numpy.save({"x": np.zeros(3)}, metadata={"format": "wfvae-snapshot/1"}),
    ],
)
def test_file_that_is_no_snapshot_is_refused(content: bytes) -> None:
    with pytest.raises(StateError, match="this is not a stream's snapshot, or it is damaged"):
        Snapshot.from_bytes(content)


def test_snapshot_of_another_version_is_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wfvae.runtime.snapshot.FORMAT", "wfvae-snapshot/2")
    snapshot = small_snapshot(opened("small"))
    monkeypatch.undo()
    message = "format is 'wfvae-snapshot/2'; this version reads 'wfvae-snapshot/1'"
    with pytest.raises(StateError, match=message):
        Snapshot.from_bytes(snapshot)


def test_failed_write_of_a_state_leaves_all_of_it(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    from wfvae.runtime.backends import onnxruntime as backend

    session = opened("4x8x8-trilinear").step_session("encoder")
    state = session.new_state(1, 16, 16)
    before = state.read()
    real, left = backend._write, [3]

    def fill(value: Any, array: Any, spec: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        real(value, array, spec)

    changed = {name: array + 1 for name, array in before.items()}
    monkeypatch.setattr(backend, "_write", fill)
    with pytest.raises(RuntimeError):
        state.write(changed)
    monkeypatch.undo()
    assert all(np.array_equal(array, before[name]) for name, array in state.read().items())
    state.write(changed)
    assert all(np.array_equal(array, changed[name]) for name, array in state.read().items())
