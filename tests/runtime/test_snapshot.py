"""Snapshots: a stream restored anywhere gives the same bits, and other snapshots are refused."""

import json
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

from fixtures.program import names, run_python
from fixtures.streams import Passage, noise, passage
from wfvae.errors import InputError, ResourceError, StateError, StreamingError
from wfvae.runtime import Bundle, open_bundle
from wfvae.runtime.snapshot import Snapshot

HEIGHT, WIDTH, FRAMES = 12, 9, 22


def source_of(bundle: Bundle, direction: str) -> Passage:
    return passage(bundle, direction, FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def opened_again(exported: Callable[..., Path]) -> Callable[[str], Bundle]:
    return cache(lambda name: open_bundle(exported(name), provider="cpu", threads=1))


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["4x8x8-trilinear", "8x8x8-trilinear"])
@given(cuts=st.lists(st.integers(0, FRAMES), max_size=3).map(sorted), chunk=st.integers(1, 3))
@settings(max_examples=30)
def test_stream_restored_at_any_position_gives_same_bits(
    opened: Callable[..., Bundle],
    opened_again: Callable[[str], Bundle],
    name: str,
    direction: str,
    cuts: list[int],
    chunk: int,
) -> None:
    bundles = (opened(name), opened_again(name))
    source = source_of(bundles[0], direction)
    stream, parts, done = source.open(chunk), [], 0
    for index, cut in enumerate([*cuts, len(source.data)]):
        parts.append(stream.push(source.data[done:cut]))
        done = max(done, cut)
        before = stream.capture().counters
        snapshot = stream.snapshot()
        stream.close()  # nothing of it is used any more
        stream = bundles[index % 2].restore(snapshot, chunk=chunk)
        assert stream.capture().counters == before
    assert source.is_result([*parts, stream.finish()])
    over: Any = bundles[0].restore(stream.snapshot())
    for call in (over.finish, lambda: over.push(source.data)):
        with pytest.raises(StreamingError, match="finished"):
            call()


def test_restored_stream_keeps_counters_options_and_queued_input(model: Bundle) -> None:
    video, latents = (source_of(model, direction).data for direction in ("encoder", "decoder"))
    encoder = model.encoder(height=HEIGHT, width=WIDTH)
    encoder.push(video[:11])
    other = model.restore(bytearray(encoder.snapshot()))
    assert other.capture().pending["waiting"].tobytes() == video[9:11].tobytes()
    with pytest.raises(InputError, match="float32, but those before were uint8"):
        other.push(video[11:].astype(np.float32) / 127.5 - 1)
    decoder = model.decoder(height=HEIGHT, width=WIDTH, frames=21, pixels="float32")
    decoder.push(latents[:3])
    again = model.restore(memoryview(decoder.snapshot()))
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
    source = source_of(model, direction)
    stream = source.open()
    first = stream.push(source.data[:4])
    for _ in range(2):
        stream.save(tmp_path / "stream")
    assert names(tmp_path) == ["stream"]
    np.save(tmp_path / "rest.npy", source.data[4:])
    run_python(OTHER_PROCESS, bundle, *(tmp_path / name for name in ("stream", "rest.npy", "out.npy")))
    assert source.is_result([first, np.load(tmp_path / "out.npy")])


def test_snapshot_file_that_cannot_be_read_or_written_is_reported(model: Bundle, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read the snapshot"):
        model.restore(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "stream"):
        with pytest.raises(ResourceError, match="cannot write"):
            model.encoder(height=8, width=8).save(path)
    assert names(tmp_path) == ["file", "folder"]


def test_snapshot_is_written_without_a_second_copy_and_read_unchanged(tmp_path: Path) -> None:
    state = {"a": np.ones((4, 250_000), np.float32), "b": np.ones(1_000_000, np.uint16)}
    pending = {"video": np.arange(60, dtype=np.uint8).reshape(3, 20), "none": np.empty((0, 7), np.float16)}
    attached = {"mask": np.array([True, False]), "numbers": np.arange(3)}
    snapshot = Snapshot("bundle", "encoder", 8, 16, {"given": 3}, state, pending, attached, "a note ☃")
    tracemalloc.start()
    try:
        snapshot.write(tmp_path / "stream")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # the state has 6 MB
    assert (tmp_path / "stream").read_bytes() == snapshot.to_bytes()
    assert "attached.mask" in safetensors.numpy.load_file(tmp_path / "stream")
    again = Snapshot.read(tmp_path / "stream")
    assert (again.note, again.counters, again.height, again.width) == ("a note ☃", {"given": 3}, 8, 16)
    for found, written in ((again.state, state), (again.pending, pending), (again.attached, attached)):
        assert found.keys() == written.keys()
        for name, array in written.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_snapshot_of_another_stream_is_refused(model: Bundle, opened: Callable[..., Bundle]) -> None:
    stranger, source = opened("8x8x8-trilinear"), source_of(model, "encoder")
    stream = source.open()
    first = stream.push(source.data[:10])
    for other, message in (
        (source_of(model, "decoder").open(), "it is of the decoder, and this stream is of the encoder"),
        (model.encoder(height=HEIGHT + 1, width=WIDTH), "it is of 13x9 video, and this stream is 12x9"),
        (source_of(stranger, "encoder").open(), f"by bundle {stranger.identity[:12]}, and this one is"),
    ):
        with pytest.raises(StateError, match=message):
            stream.restore(other.snapshot())
    with pytest.raises(StateError, match="made by bundle"):
        stranger.restore(stream.snapshot())
    with pytest.raises(StateError, match=r"^.*made by bundle a b, and this one is .*$"):
        stream.restore(replace(stream.capture(), bundle="a\nb"))
    assert source.is_result([first, stream.push(source.data[10:]), stream.finish()])


def test_snapshot_with_a_wrong_state_is_refused(model: Bundle) -> None:
    """Its hash fits, as where another version or a wrong program wrote it."""
    source = source_of(model, "decoder")
    stream = source.open()
    first = stream.push(source.data[:2])
    snapshot = stream.capture()
    state = dict(snapshot.state)
    name = next(key for key in state if not key.endswith(".age"))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"state": {key: value for key, value in state.items() if key != name}}, f"missing {name}"),
        ({"state": {**state, "extra": state[name]}}, "unexpected extra"),
        ({"state": {**state, name: state[name][:, :, :1]}}, f"{name} has shape"),
        ({"state": {**state, name: state[name].astype(np.float16)}}, f"{name} has dtype float16, expected"),
        ({"counters": {}}, "counters"),
        ({"counters": {"latents_seen": "many"}}, "counters"),
    ]
    for change, message in changes:
        with pytest.raises(StateError, match=message):
            stream.restore(replace(snapshot, **change).to_bytes())
    assert source.is_result([first, stream.push(source.data[2:]), stream.finish()])


def with_counters(**changes: int) -> Callable[[Snapshot], Snapshot]:
    return lambda snapshot: replace(snapshot, counters={**snapshot.counters, **changes})


def with_pending(**changes: Any) -> Callable[[Snapshot], Snapshot]:
    return lambda snapshot: replace(snapshot, pending={**snapshot.pending, **changes})


def with_nan(snapshot: Snapshot) -> Snapshot:
    name = next(name for name, array in snapshot.state.items() if array.dtype == np.float32)
    return replace(snapshot, state={**snapshot.state, name: np.full_like(snapshot.state[name], np.nan)})


COUNTERS = ["frames_seen", "latents_given", "latents_seen", "drop", "given", "frames"]
IMPOSSIBLE: dict[str, Callable[[Snapshot], Snapshot]] = {
    **{f"{name} too large": with_counters(**{name: 10**18}) for name in COUNTERS},
    **{f"{name} below 0": with_counters(**{name: -7}) for name in COUNTERS},
    **{f"{name} no flag": with_counters(**{name: 2}) for name in ("started", "closed", "float")},
    "not started": with_counters(started=0),
    "ended": with_counters(closed=1),
    "input of another size": with_pending(waiting=np.zeros((1, 3, 3, 3), np.uint8)),
    "input of another type": with_pending(waiting=np.zeros((1, HEIGHT, WIDTH, 3))),
    "input of rank 0": with_pending(waiting=np.zeros((), np.float32)),
    "results of another size": with_pending(ready=np.zeros((1, 2), np.float32)),
    "more than a stream has": with_pending(more=np.zeros(1, np.float32)),
    "NaN in the state": with_nan,
}


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_snapshot_in_which_no_stream_can_be_is_refused(model: Bundle, direction: str, kind: str) -> None:
    source = source_of(model, direction)
    stream = source.open(1)
    first = stream.push(source.data[:6])
    snapshot = stream.capture()
    wrong = IMPOSSIBLE[kind](snapshot)
    if "frames below" in kind:
        wrong = replace(wrong, counters={**wrong.counters, "frames": 0})  # -1 is an unknown number
    for snapshot in (wrong, Snapshot.from_bytes(wrong.to_bytes())):
        with pytest.raises(StateError):
            stream.restore(snapshot)
    assert source.is_result([first, stream.push(source.data[6:]), stream.finish()])


@pytest.fixture(scope="module")
def small_snapshot(opened: Callable[..., Bundle]) -> bytes:
    with opened("small").encoder(height=8, width=8) as stream:
        stream.push(noise(2, 8, 8))
        return stream.snapshot()


def header_end(snapshot: bytes) -> int:
    return 8 + int.from_bytes(snapshot[:8], "little")


def test_truncated_snapshot_is_refused(small_snapshot: bytes) -> None:
    header, size = header_end(small_snapshot), len(small_snapshot)
    for length in {*range(header + 300), *range(header, size, 97), size - 1}:
        with pytest.raises(StateError, match="snapshot"):
            Snapshot.from_bytes(small_snapshot[:length])
    with pytest.raises(StateError, match="snapshot"):
        Snapshot.from_bytes(small_snapshot + b"\0")


@given(position=st.integers(0, 10**9), bit=st.integers(0, 7), in_header=st.booleans())
@settings(max_examples=200)
def test_snapshot_with_a_changed_bit_is_refused(
    small_snapshot: bytes, position: int, bit: int, in_header: bool
) -> None:
    end = header_end(small_snapshot)
    damaged = bytearray(small_snapshot)
    damaged[position % (end if in_header else len(damaged))] ^= 1 << bit
    if damaged[:8] + damaged[end:] == small_snapshot[:8] + small_snapshot[end:]:
        try:  # equal as JSON, for instance with other white space
            if json.loads(damaged[8:end]) == json.loads(small_snapshot[8:end]):
                return
        except ValueError:
            pass
    with pytest.raises(StateError, match="snapshot"):
        Snapshot.from_bytes(damaged)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no snapshot at all",
        b"\xff" * 200,
        (2).to_bytes(8, "little") + b"[]",
        (20).to_bytes(8, "little") + b'{"__metadata__":[]} ',
        safetensors.numpy.save({"x": np.zeros(3)}),
        safetensors.numpy.save({"x": np.zeros(3)}, metadata={"format": "wfvae-snapshot/1"}),
    ],
)
def test_file_that_is_no_snapshot_is_refused(content: bytes) -> None:
    with pytest.raises(StateError, match="this is not a stream's snapshot, or it is damaged"):
        Snapshot.from_bytes(content)


def test_snapshot_of_another_version_is_refused(model: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wfvae.runtime.snapshot.FORMAT", "wfvae-snapshot/2")
        snapshot = model.encoder(height=8, width=8).snapshot()
    message = "format is 'wfvae-snapshot/2'; this version reads 'wfvae-snapshot/1'"
    with pytest.raises(StateError, match=message):
        Snapshot.from_bytes(snapshot)


def test_failed_write_of_a_state_leaves_all_of_it(model: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from wfvae.runtime.backends import onnxruntime as backend

    state = model.step_session("encoder").new_state(1, 16, 16)
    before = state.read()
    changed = {name: array + 1 for name, array in before.items()}
    real, written = backend._write, []

    def write_three(value: Any, array: Any, spec: Any) -> None:
        if len(written) == 3:
            raise RuntimeError("out of memory")
        written.append(spec)
        real(value, array, spec)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "_write", write_three)
        with pytest.raises(RuntimeError):
            state.write(changed)
    assert all(np.array_equal(array, before[name]) for name, array in state.read().items())
    state.write(changed)
    assert all(np.array_equal(array, changed[name]) for name, array in state.read().items())
