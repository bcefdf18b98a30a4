"""Jobs that are killed, at any moment, go on to the bits of a job that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures.program import Program, clip, latents_of, names, save, start_process, stored, wait_for
from wfvae.runtime.jobs import SEGMENT_FRAMES
from wfvae.runtime.latents.latent_files import open_latents

SLOWLY = ("--chunk", 1, "--checkpoint-every", 0, "--threads", 1)
LONG, SHORT = 490, 30


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Path]) -> Path:
    return exported("4x8x8-trilinear")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("long") / "in.mp4", clip(LONG))


@pytest.fixture(scope="module")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("short") / "in.mp4", clip(SHORT))


def content(path: Path) -> dict[str, bytes]:
    """The bits of a file, or of all files of a directory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# The real program, killed where it is -------------------------------------------------------------


@pytest.mark.parametrize("name", ["z.zarr", "z.safetensors", "z.npy"])
def test_an_encode_killed_several_times_ends_with_the_same_bits(
    program: Program, bundle: Path, long_video: Path, tmp_path: Path, name: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    program.done("encode", bundle, long_video, whole / name, *SLOWLY)
    store = killed / (name if name.endswith(".zarr") else f"{name}.partial.zarr")
    dice = random.Random(name)
    resumed = 0
    for target in sorted(dice.sample(range(2, 110), 2)):
        process = start_process("encode", bundle, long_video, killed / name, *SLOWLY, "--resume", "--json")
        reached = wait_for(lambda goal=target: stored(store) >= goal, process)
        process.kill()
        process.communicate()
        assert reached
        assert process.returncode == -signal.SIGKILL
        # What is there is the beginning of the whole, for this process as for any other.
        part = latents_of(store)
        assert np.array_equal(part, latents_of(whole / name)[: len(part)])
        with open_latents(store) as reader:
            assert not reader.complete
        assert not (killed / name).exists() or name.endswith(".zarr")
    # A different chunk size on the way changes nothing.
    report = program.done("encode", bundle, long_video, killed / name, "--chunk", 3, "--resume")
    resumed = report["resumed_at"]
    assert 0 < resumed < LONG
    assert report["frames"] == LONG - resumed
    assert content(killed / name) == content(whole / name)
    assert names(killed) == names(whole)


@pytest.mark.parametrize("name", ["out.mp4"])
def test_a_decode_killed_several_times_ends_with_the_same_bits(
    program: Program, bundle: Path, long_video: Path, tmp_path: Path, name: str
) -> None:
    store = tmp_path / "z.zarr"
    program.done("encode", bundle, long_video, store)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    program.done("decode", bundle, store, whole / name)
    parts = killed / f"{name}.partial"
    for segments in (0, 2):
        process = start_process("decode", bundle, store, killed / name, *SLOWLY, "--resume")
        reached = wait_for(
            lambda goal=segments: len(list(parts.glob("segment-*.json"))) >= goal and parts.exists(), process
        )
        process.kill()
        process.communicate()
        assert reached
        assert not (killed / name).exists()
    report = program.done("decode", bundle, store, killed / name, "--resume")
    resumed = report["resumed_at"]
    assert resumed >= 2 * SEGMENT_FRAMES
    assert resumed % SEGMENT_FRAMES == 0
    assert report["frames"] == LONG - resumed
    assert content(killed / name) == content(whole / name)
    assert names(killed) == [name]


# Killed before any one of its changes to the disk -------------------------------------------------

_DRIVER = """
import contextlib, io, os, random, shutil, signal, sys
from pathlib import Path
from wfvae.cli import main as cli
from wfvae.runtime.backends.onnxruntime import OnnxRuntimeBackend

folder, report, seed, kills, resume = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
command = sys.argv[6:]
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}

def run(extra):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return cli.main([*command, *extra]), err.getvalue()

def child(extra, stop):
    # In a process of its own: count the changes in `folder`, and SIGKILL oneself before number `stop`.
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        _, status = os.waitpid(process, 0)
        return status, text
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in CHANGES or opened) and folder in str(arguments[0]):
            if seen == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
    sys.addaudithook(hook)
    code, text = run(extra)
    os.write(writing, f"{seen}\\n{text}".encode())
    os._exit(code)

def snapshot(path):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}

def clear():
    shutil.rmtree(folder)
    os.mkdir(folder)

# One job here loads what takes long to load, for all children: modules, and the session, which holds no state.
sessions, open_session = {}, OnnxRuntimeBackend._session
def session(self, graph):
    if graph.file not in sessions:
        sessions[graph.file] = open_session(self, graph)
    return sessions[graph.file]
OnnxRuntimeBackend._session = session
code, text = run([])
assert code == 0, text
clear()
status, text = child([], None)
assert status == 0, text
changes = int(text.splitlines()[0])
expected = snapshot(Path(folder))
dice = random.Random(seed)
# The end is where jobs turn from one form into another: all of it, and some moments of the way there.
last = list(range(max(0, changes - kills), changes))
for stop in sorted({*last, *dice.sample(range(changes), min(kills, changes))}):
    clear()
    status, text = child([], stop)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (stop, status, text)
    status, text = child([resume] if resume else [], None)
    assert status == 0, (stop, text)
    assert text.count("\\n") == 1, (stop, text)
    found = snapshot(Path(folder))
    assert set(found) == set(expected), (stop, changes, sorted(set(found) ^ set(expected)))
    different = [name for name in found if found[name] != expected[name]]
    assert not different, (stop, changes, different)
Path(report).write_text(str(changes))
"""


@pytest.mark.parametrize(
    ("name", "resume"),
    [
        ("z.zarr", "--resume"),
        ("z.npy", "--resume"),
        ("out.mp4", "--resume"),
        ("z.safetensors", ""),
        ("out.mp4", ""),
    ],
)
def test_a_kill_before_any_change_to_the_disk(
    program: Program, bundle: Path, short_video: Path, tmp_path: Path, name: str, resume: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if name == "out.mp4":
        program.done("encode", bundle, short_video, tmp_path / "in.zarr")
        words = ["decode", bundle, tmp_path / "in.zarr", work / name]
    else:
        words = ["encode", bundle, short_video, work / name, "--chunk", 2, "--checkpoint-every", 0]
    report = tmp_path / "changes"
    line = [
        sys.executable,
        "-c",
        _DRIVER,
        work,
        report,
        name,
        4 if resume else 2,
        resume,
        *words,
        "--threads",
        1,
    ]
    done = subprocess.run(
        [str(word) for word in line], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(report.read_text()) > 10


# Interrupted politely -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_encode_keeps_what_is_finished(
    program: Program, bundle: Path, long_video: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    store = tmp_path / "z.zarr"
    process = start_process("encode", bundle, long_video, store, *SLOWLY)
    assert wait_for(lambda: stored(store) >= 10, process)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == (b"", b"wfvae encode: interrupted; finished work is kept, go on with --resume\n")
    assert names(tmp_path) == ["z.zarr", "z.zarr.resume"]
    assert [path.name for path in store.rglob("*.partial")] == []
    facts = program.done("inspect", store)
    assert facts["complete"] is False
    assert facts["count"] >= 10
    # It can be decoded as far as it goes.
    report = program.done("decode", bundle, store, tmp_path / "part.mp4")
    assert (report["frames"], report["complete"]) == (1 + 4 * (facts["count"] - 1), False)
    assert program.done("encode", bundle, long_video, store, "--resume")["resumed_at"] > 0
    assert names(tmp_path) == ["part.mp4", "z.zarr"]


@pytest.mark.parametrize(
    ("name", "left"), [("out.mp4", ["out.mp4.partial"]), ("frames/", ["frames"]), ("out.gif", [])]
)
def test_an_interrupted_decode_leaves_no_rubbish(
    bundle: Path, long_video: Path, tmp_path: Path, program: Program, name: str, left: list[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    program.done("encode", bundle, long_video, tmp_path / "z.zarr")
    process = start_process(
        "decode", bundle, tmp_path / "z.zarr", f"{work}/{name}", "--chunk", 1, "--threads", 1
    )
    assert wait_for(lambda: any(work.rglob("*-0000*" if left else "*.part")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines() == [
        "wfvae decode: interrupted; finished work is kept, go on with --resume"
    ]
    assert [found for found in names(work) if found != "out.mp4.resume"] == left
    assert not list(work.rglob(".*"))


def test_an_interrupted_reconstruct_leaves_nothing_and_what_was_there_before(
    bundle: Path, long_video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"before")
    process = start_process("reconstruct", bundle, long_video, out, "--chunk", 1, "--threads", 1)
    assert wait_for(lambda: any(tmp_path.glob(".*.part")), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"wfvae reconstruct: interrupted\n")
    assert names(tmp_path) == ["out.mp4"]
    assert out.read_bytes() == b"before"


def test_an_interrupt_while_a_pipe_is_silent(bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "z.zarr"
    words = ("encode", bundle, "-", store, "--raw", "48x32", "--chunk", 1)
    process = start_process(*words, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(bytes(clip(9)))
    process.stdin.flush()
    assert wait_for(lambda: stored(store) >= 2, process)
    process.send_signal(signal.SIGINT)
    process.stdin.close()
    process.stdin = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"wfvae encode: interrupted; finished work is kept\n")
    assert names(tmp_path) == ["z.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [("--raw", "48x32"), ()], ids=["raw", "container"])
def test_an_interrupt_while_a_pipe_stays_silent(
    bundle: Path, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    """The thread that reads it cannot be ended; the program can."""
    store, video = tmp_path / "z.zarr", clip(60)
    with start_process("encode", bundle, "-", store, *layout, "--chunk", 1, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(bytes(video) if layout else save(tmp_path / "in.mkv", video).read_bytes()[:-200])
        process.stdin.flush()
        assert wait_for(lambda: stored(store) >= 2, process)
        time.sleep(1.0)  # until it waits
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b"wfvae encode: interrupted; finished work is kept\n"


# What is not the same job -------------------------------------------------------------------------


@pytest.fixture
def interrupted(bundle: Path, long_video: Path, tmp_path: Path) -> Path:
    """A store that a killed run left."""
    store = tmp_path / "z.zarr"
    process = start_process("encode", bundle, long_video, store, *SLOWLY)
    assert wait_for(lambda: stored(store) >= 10 and (tmp_path / "z.zarr.resume").exists(), process)
    process.kill()
    process.communicate()
    return store


def test_resume_refuses_what_is_not_the_same_job(
    program: Program,
    exported: Callable[..., Path],
    bundle: Path,
    long_video: Path,
    short_video: Path,
    interrupted: Path,
    tmp_path: Path,
) -> None:
    before = content(interrupted)
    assert "another source" in program.refused("encode", bundle, short_video, interrupted, "--resume")
    larger = save(tmp_path / "larger.mp4", clip(30, 40, 64))
    assert "another source" in program.refused("encode", bundle, larger, interrupted, "--resume")
    other = exported("4x8x8-nearest-16ch")
    assert "it was made by bundle" in program.refused("encode", other, long_video, interrupted, "--resume")
    assert content(interrupted) == before
    record = tmp_path / "z.zarr.resume"
    good = record.read_bytes()
    record.write_bytes(good[: len(good) // 2])
    complaint = program.refused("encode", bundle, long_video, interrupted, "--resume")
    assert str(record) in complaint
    assert "without --resume" in complaint
    record.write_bytes(good)
    shutil.rmtree(interrupted)
    program.done(
        "encode", bundle, short_video, interrupted
    )  # another job has taken the name, and the record with it
    assert not record.exists()
    record.write_bytes(good)
    assert "another source" in program.refused("encode", bundle, short_video, interrupted, "--resume")
    # Without --resume everything begins anew, and all that was left goes.
    assert program.done("encode", bundle, long_video, interrupted)["frames"] == LONG
    assert not record.exists()


def test_a_store_that_lost_latents_is_not_continued(
    program: Program, bundle: Path, long_video: Path, interrupted: Path
) -> None:
    path = interrupted / "latents" / "zarr.json"
    values = json.loads(path.read_text())
    values["shape"][0] = 2
    path.write_text(json.dumps(values))
    complaint = program.refused("encode", bundle, long_video, interrupted, "--resume")
    assert "holds 2 latents" in complaint
    assert "without --resume" in complaint


def test_a_decode_is_not_continued_with_other_latents(
    program: Program, bundle: Path, long_video: Path, tmp_path: Path
) -> None:
    one, two, out = tmp_path / "1.zarr", tmp_path / "2.zarr", tmp_path / "out.mp4"
    program.done("encode", bundle, long_video, one)
    program.done("encode", bundle, save(tmp_path / "other.mp4", clip(LONG, seed=5)), two)
    process = start_process("decode", bundle, one, out, "--chunk", 1, "--threads", 1)
    parts = tmp_path / "out.mp4.partial"
    assert wait_for(lambda: any(parts.glob("segment-*.json")), process)
    process.kill()
    process.communicate()
    complaint = program.refused("decode", bundle, two, out, "--resume")
    assert "begun with other settings (origin)" in complaint
    assert program.done("decode", bundle, two, out)["resumed_at"] == 0
    program.done("decode", bundle, two, tmp_path / "again.mp4")
    assert content(out) == {".": (tmp_path / "again.mp4").read_bytes()}
    assert names(tmp_path) == ["1.zarr", "2.zarr", "again.mp4", "other.mp4", "out.mp4"]


def test_resume_with_nothing_to_resume_just_runs(
    program: Program, bundle: Path, short_video: Path, tmp_path: Path
) -> None:
    for name in ("z.zarr", "z.npy", "z.safetensors"):
        for _ in range(2):  # also over a finished result
            report = program.done("encode", bundle, short_video, tmp_path / name, "--resume")
            assert (report["frames"], report["resumed_at"]) == (SHORT, 0)
    for name in ("out.mp4", "out.gif", "frames/"):
        for _ in range(2):
            report = program.done("decode", bundle, tmp_path / "z.zarr", f"{tmp_path}/{name}", "--resume")
            assert (report["frames"], report["resumed_at"]) == (SHORT, 0)
    assert names(tmp_path) == [
        "frames",
        "out.gif",
        "out.mp4",
        "z.npy",
        "z.npy.json",
        "z.safetensors",
        "z.zarr",
    ]


def test_a_store_is_read_by_another_process_while_it_is_written(
    program: Program, bundle: Path, long_video: Path, tmp_path: Path
) -> None:
    program.done("encode", bundle, long_video, tmp_path / "whole.npy")
    whole = latents_of(tmp_path / "whole.npy")
    store = tmp_path / "z.zarr"
    process = start_process("encode", bundle, long_video, store, *SLOWLY)
    counts = []
    while process.poll() is None:
        if wait_for(lambda: stored(store) > (counts[-1] if counts else 0), process):
            part = latents_of(store)
            assert np.array_equal(part, whole[: len(part)])
            counts.append(len(part))
    process.communicate()
    assert process.returncode == 0
    assert len(set(counts)) >= 5
    assert counts == sorted(counts)
    assert np.array_equal(latents_of(store), whole)
