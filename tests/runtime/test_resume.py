"""Jobs that are killed at any moment resume to the bits of a job that was not."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures.program import (
    Program,
    clip,
    latents_of,
    names,
    run_python,
    save,
    start_process,
    stored,
    wait_for,
)
from wfvae.runtime import encode_video, open_bundle
from wfvae.runtime.jobs import SEGMENT_FRAMES
from wfvae.runtime.latents.latent_files import open_latents

SLOWLY = ("--chunk", 1, "--checkpoint-every", 0, "--threads", 1)
LONG, SHORT = 490, 30


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("long") / "in.mp4", clip(LONG))


@pytest.fixture(scope="module")
def short_video(long_video: Path) -> Path:
    return save(long_video.with_name("short.mp4"), clip(SHORT))


@pytest.fixture(scope="module")
def long_store(bundle: Path, long_video: Path) -> Path:
    """The latents of the long video; do not write into them."""
    encode_video(open_bundle(bundle, threads=1), long_video, long_video.with_name("z.zarr"))
    return long_video.with_name("z.zarr")


def content(path: Path) -> dict[str, bytes]:
    """The bits of a file, or of all files of a directory."""
    files = [file for file in [path, *path.rglob("*")] if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def signal_when(
    condition: Callable[[], object], *arguments: object, kind: signal.Signals = signal.SIGKILL
) -> tuple[int, bytes, str]:
    """Starts the program, sends a signal when `condition` holds, returns code, output, errors."""
    process = start_process(*arguments)
    reached = wait_for(condition, process)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert reached and (kind != signal.SIGKILL or process.returncode == -signal.SIGKILL)
    return process.returncode, out, err.decode()


SLOW_NAMES = [pytest.param(name, marks=pytest.mark.slow) for name in ("z.safetensors", "z.npy")]


@pytest.mark.parametrize("name", ["z.zarr", *SLOW_NAMES, "out.mp4"])
def test_job_killed_twice_resumes_to_the_same_bits(
    program: Program, bundle: Path, long_video: Path, long_store: Path, tmp_path: Path, name: str
) -> None:
    decodes = name == "out.mp4"
    job = ("decode", bundle, long_store) if decodes else ("encode", bundle, long_video)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    program.done(*job, whole / name)
    left = killed / {"z.zarr": "z.zarr", "out.mp4": "out.mp4.partial"}.get(name, f"{name}.partial.zarr")

    def finished_parts() -> int:
        return len(list(left.glob("segment-*.json"))) if decodes else stored(left)

    for goal in (1, 3) if decodes else sorted(random.Random(name).sample(range(2, 110), 2)):
        signal_when(lambda goal=goal: finished_parts() >= goal, *job, killed / name, *SLOWLY, "--resume")
        assert left == killed / name or not (killed / name).exists()
        if not decodes:  # any process reads the beginning of the whole
            with open_latents(left) as reader:
                assert not reader.complete
                assert np.array_equal(reader.read(), latents_of(long_store)[: reader.count])
    report = program.done(*job, killed / name, "--chunk", 3, "--resume")  # another chunk changes nothing
    assert 0 < report["resumed_at"] == LONG - report["frames"]
    assert not decodes or report["resumed_at"] % SEGMENT_FRAMES == 0
    assert content(killed) == content(whole)


_DRIVER = """
import contextlib, io, os, random, shutil, signal, sys
from pathlib import Path
from wfvae.cli import main as cli
from wfvae.runtime.backends.session_cache import SessionCache, shared_sessions

folder, seed, kills, resume = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
command = sys.argv[5:]
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}

def run(*extra):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return cli.main([*command, *extra]), err.getvalue()

def child(stop, *extra):
    # Counts the changes in `folder` in a new process, which kills itself before number `stop`.
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        return os.waitpid(process, 0)[1], text
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        opened = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in CHANGES or opened) and str(folder) in str(arguments[0]):
            if seen == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
    sys.addaudithook(hook)
    code, text = run(*extra)
    os.write(writing, f"{seen}\\n{text}".encode())
    os._exit(code)

def results():
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

def clear():
    shutil.rmtree(folder)
    folder.mkdir()

# One job here loads modules and sessions for all children.
shared_sessions(SessionCache(8)).__enter__()
code, text = run()
assert code == 0, text
clear()
status, text = child(None)
assert status == 0, text
changes = int(text.splitlines()[0])
expected = results()
dice = random.Random(seed)
# All of the end, where jobs turn from one form into another, and some moments before it.
last = range(max(0, changes - kills), changes)
for stop in sorted({*last, *dice.sample(range(changes), min(kills, changes))}):
    clear()
    status, text = child(stop)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (stop, status, text)
    status, text = child(None, *resume.split())
    assert status == 0 and text.count("\\n") == 1, (stop, text)
    found = results()
    different = [name for name in found | expected if found.get(name) != expected.get(name)]
    assert not different, (stop, changes, different)
print(changes)
"""


@pytest.mark.parametrize(
    ("name", "resume"),
    [
        ("z.zarr", "--resume"),
        pytest.param("z.npy", "--resume", marks=pytest.mark.slow),
        pytest.param("out.mp4", "--resume", marks=pytest.mark.slow),
        pytest.param("z.safetensors", "", marks=pytest.mark.slow),
        pytest.param("out.mp4", "", marks=pytest.mark.slow),
    ],
)
def test_job_killed_before_any_change_to_the_disk_resumes_to_the_same_bits(
    program: Program, bundle: Path, short_video: Path, tmp_path: Path, name: str, resume: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if name == "out.mp4":
        program.done("encode", bundle, short_video, tmp_path / "in.zarr")
        words = ["decode", bundle, tmp_path / "in.zarr", work / name]
    else:
        words = ["encode", bundle, short_video, work / name, "--chunk", 2, "--checkpoint-every", 0]
    driver = (_DRIVER, work, name, 4 if resume else 2, resume)
    assert int(run_python(*driver, *words, "--threads", 1)) > 10


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_encode_keeps_what_is_finished(
    program: Program, bundle: Path, long_video: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    store = tmp_path / "z.zarr"
    words = ("encode", bundle, long_video, store, *SLOWLY)
    ended = signal_when(lambda: stored(store) >= 10, *words, kind=kind)
    assert ended == (130, b"", "wfvae encode: interrupted; finished work is kept, go on with --resume\n")
    assert names(tmp_path) == ["z.zarr", "z.zarr.resume"]
    assert [path.name for path in store.rglob("*.partial")] == []
    facts = program.done("inspect", store)
    assert facts["complete"] is False and facts["count"] >= 10
    report = program.done("decode", bundle, store, tmp_path / "part.mp4")
    assert (report["frames"], report["complete"]) == (1 + 4 * (facts["count"] - 1), False)
    assert program.done("encode", bundle, long_video, store, "--resume")["resumed_at"] > 0
    assert names(tmp_path) == ["part.mp4", "z.zarr"]


@pytest.mark.parametrize(
    ("name", "begun", "left"),
    [
        ("out.mp4", "*-0000*", ["out.mp4.partial"]),
        ("frames/", "*-0000*", ["frames"]),
        ("out.gif", "*.part", []),
        ("again.mp4", ".*.part", ["again.mp4"]),
    ],
)
def test_interrupted_job_leaves_no_temporary_files(
    bundle: Path, long_video: Path, long_store: Path, tmp_path: Path, name: str, begun: str, left: list[str]
) -> None:
    """A reconstruction keeps the file that was there, and cannot be resumed."""
    verb, source, hint = "decode", long_store, "; finished work is kept, go on with --resume"
    if name == "again.mp4":
        verb, source, hint = "reconstruct", long_video, ""
        (tmp_path / name).write_bytes(b"before")
    words = (verb, bundle, source, f"{tmp_path}/{name}", "--chunk", 1, "--threads", 1)
    ended = signal_when(lambda: any(tmp_path.rglob(begun)), *words, kind=signal.SIGINT)
    assert ended == (130, b"", f"wfvae {verb}: interrupted{hint}\n")
    assert [found for found in names(tmp_path) if found != "out.mp4.resume"] == left
    assert not list(tmp_path.rglob(".*"))
    assert name != "again.mp4" or (tmp_path / name).read_bytes() == b"before"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "closed"),
    [(("--raw", "48x32"), False), ((), True), ((), False)],
    ids=["raw", "closed", "open"],
)
def test_interrupt_while_a_pipe_is_silent_ends_the_program(
    bundle: Path, tmp_path: Path, layout: tuple[str, ...], closed: bool
) -> None:
    """The thread that reads a pipe cannot be ended while the pipe stays open."""
    store, video = tmp_path / "z.zarr", clip(60)
    data = bytes(video) if layout else save(tmp_path / "in.mkv", video).read_bytes()[:-200]
    with start_process("encode", bundle, "-", store, *layout, "--chunk", 1, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(data)
        process.stdin.flush()
        assert wait_for(lambda: stored(store) >= 2, process)
        time.sleep(1.0)  # until it waits
        process.send_signal(signal.SIGINT)
        if closed:
            process.stdin.close()
        assert process.wait(60) == 130
        assert process.stderr.read() == b"wfvae encode: interrupted; finished work is kept\n"


@pytest.fixture
def interrupted(bundle: Path, long_video: Path, tmp_path: Path) -> Path:
    """A store that a killed run left."""
    store = tmp_path / "z.zarr"
    record = tmp_path / "z.zarr.resume"
    words = ("encode", bundle, long_video, store, *SLOWLY)
    signal_when(lambda: stored(store) >= 10 and record.exists(), *words)
    return store


def test_resume_of_another_job_is_refused(
    program: Program,
    exported: Callable[..., Path],
    bundle: Path,
    long_video: Path,
    short_video: Path,
    interrupted: Path,
    tmp_path: Path,
) -> None:
    before = content(interrupted)
    larger = save(tmp_path / "larger.mp4", clip(30, 40, 64))
    for video, problem in (
        (short_video, "another source"),
        (larger, "32x48 video, and this stream is 40x64"),
    ):
        complaint = program.refused("encode", bundle, video, interrupted, "--resume")
        assert problem in complaint and "without --resume" in complaint
    other = exported("4x8x8-nearest-16ch")
    assert "it was made by bundle" in program.refused("encode", other, long_video, interrupted, "--resume")
    assert content(interrupted) == before
    record = tmp_path / "z.zarr.resume"
    good = record.read_bytes()
    record.write_bytes(good[: len(good) // 2])
    complaint = program.refused("encode", bundle, long_video, interrupted, "--resume")
    assert str(record) in complaint and "without --resume" in complaint
    shutil.rmtree(interrupted)
    program.done("encode", bundle, short_video, interrupted)  # a new job removes the old one's snapshot
    assert not record.exists()
    record.write_bytes(good)
    assert "another source" in program.refused("encode", bundle, short_video, interrupted, "--resume")
    assert program.done("encode", bundle, long_video, interrupted)["frames"] == LONG
    assert not record.exists()


def test_resume_of_a_store_that_lost_latents_is_refused(
    program: Program, bundle: Path, long_video: Path, interrupted: Path
) -> None:
    path = interrupted / "latents" / "zarr.json"
    values = json.loads(path.read_text())
    values["shape"][0] = 2
    path.write_text(json.dumps(values))
    complaint = program.refused("encode", bundle, long_video, interrupted, "--resume")
    assert "holds 2 latents" in complaint and "without --resume" in complaint


def test_resume_of_a_decode_with_other_latents_is_refused(
    program: Program, bundle: Path, long_store: Path, tmp_path: Path
) -> None:
    other, out = tmp_path / "z.zarr", tmp_path / "out.mp4"
    program.done("encode", bundle, save(tmp_path / "other.mp4", clip(LONG, seed=5)), other)
    segments = tmp_path / "out.mp4.partial"
    words = ("decode", bundle, long_store, out, "--chunk", 1, "--threads", 1)
    signal_when(lambda: any(segments.glob("segment-*.json")), *words)
    complaint = program.refused("decode", bundle, other, out, "--resume")
    assert "begun with other settings: source was" in complaint
    assert program.done("decode", bundle, other, out)["resumed_at"] == 0
    program.done("decode", bundle, other, tmp_path / "again.mp4")
    assert out.read_bytes() == (tmp_path / "again.mp4").read_bytes()
    assert names(tmp_path) == ["again.mp4", "other.mp4", "out.mp4", "z.zarr"]


@pytest.mark.parametrize("name", ["z.zarr", "z.npy", "z.safetensors", "out.mp4", "out.gif", "frames/"])
def test_resume_with_nothing_to_resume_runs_the_whole_job(
    program: Program, bundle: Path, short_video: Path, tmp_path: Path, name: str
) -> None:
    verb, source = "encode", short_video
    if not name.startswith("z."):
        verb, source = "decode", tmp_path / "in.npy"
        program.done("encode", bundle, short_video, source)
    for _ in range(2):  # also over a finished result
        report = program.done(verb, bundle, source, f"{tmp_path}/{name}", "--resume")
        assert (report["frames"], report["resumed_at"]) == (SHORT, 0)
    made = {name.rstrip("/"), "z.npy.json"} if name == "z.npy" else {name.rstrip("/")}
    assert set(names(tmp_path)) - {"in.npy", "in.npy.json"} == made


def test_store_is_read_by_another_process_while_it_is_written(
    bundle: Path, long_video: Path, long_store: Path, tmp_path: Path
) -> None:
    whole = latents_of(long_store)
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
    assert len(set(counts)) >= 5 and counts == sorted(counts)
    assert np.array_equal(latents_of(store), whole)
