"""What goes wrong: with videos, latents, bundles and disks. One clear line, code 2, and what was
finished stays readable.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fixtures.program import Program, clip, command, latents_of, load, names, run_process, save
from wfvae.runtime import Bundle, encode_video
from wfvae.runtime.latents.latent_files import open_latents

NAME = "4x8x8-trilinear"


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Path]) -> Path:
    return exported(NAME)


@pytest.fixture(scope="module")
def model(opened: Callable[..., Bundle]) -> Bundle:
    return opened(NAME)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("video") / "in.mp4", clip(40))


def write_pictures(path: Path, pictures: list[av.VideoFrame], codec: str, rate: int = 25) -> Path:
    """Encodes pictures as they are."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = (
            pictures[0].width,
            pictures[0].height,
            pictures[0].format.name,
        )
        for index, picture in enumerate(pictures):
            picture.pts, picture.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


# Videos that are none, or not whole ---------------------------------------------------------------


def no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()


BAD_VIDEOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero bytes": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "text": (lambda path: path.write_text("hello, this is no video\n" * 50), "cannot read"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "cannot read"),
    "no frames": (no_frames, "no frames"),
    "a folder without images": (lambda path: path.mkdir(), "no images in"),
    "a broken link": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "a device": (lambda path: path.symlink_to("/dev/null"), "neither a file nor a directory"),
}


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_what_is_no_video_is_refused_before_anything_is_written(
    program: Program, bundle: Path, tmp_path: Path, kind: str
) -> None:
    make, says = BAD_VIDEOS[kind]
    make(tmp_path / "in.mp4")
    for words in (
        ("encode", bundle, tmp_path / "in.mp4", tmp_path / "z.zarr"),
        ("encode", bundle, tmp_path / "in.mp4", tmp_path / "z.npy"),
        ("reconstruct", bundle, tmp_path / "in.mp4", tmp_path / "out.mp4"),
    ):
        complaint = program.refused(*words)
        assert says in complaint
        assert str(tmp_path / "in.mp4") in complaint
    assert str(tmp_path / "in.mp4") in program.refused("inspect", tmp_path / "in.mp4")
    assert names(tmp_path) == ["in.mp4"]


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_a_truncated_video_gives_its_latents_and_then_the_error(
    program: Program, bundle: Path, model: Bundle, video: Path, tmp_path: Path, ending: str
) -> None:
    whole = save(tmp_path / f"whole{ending}", clip(40), encoder_options=(("g", "5"), ("bf", "0")))
    cut = tmp_path / f"cut{ending}"
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * 0.7)])
    store = tmp_path / "z.zarr"
    complaint = program.refused("encode", bundle, cut, store, "--chunk", 1)
    assert "cut short" in complaint
    assert "--keep-damaged" in complaint
    with open_latents(store) as reader:
        assert not reader.complete
        assert 2 <= reader.count < 11
        assert np.array_equal(reader.read(), model.encode(load(whole)[0])[: reader.count])
    out = tmp_path / "out.mp4"
    assert "cut short" in program.refused("reconstruct", bundle, cut, out)
    assert not out.exists()
    report = program.done("encode", bundle, cut, store, "--keep-damaged")
    assert report["frames"] >= 5
    assert report["complete"]
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_a_size_that_changes_in_the_middle(program: Program, bundle: Path, tmp_path: Path) -> None:
    parts = []
    for height in (32, 48):
        pictures = [
            av.VideoFrame.from_ndarray(np.ascontiguousarray(f), "rgb24").reformat(format="yuv420p")
            for f in clip(8, height)
        ]
        parts.append(write_pictures(tmp_path / f"{height}.h264", pictures, "libx264"))
    mixed = tmp_path / "mixed.h264"
    mixed.write_bytes(b"".join(part.read_bytes() for part in parts))
    complaint = program.refused("encode", bundle, mixed, tmp_path / "z.zarr", "--chunk", 1)
    assert "frame 8 of" in complaint
    assert "48x48, but the frames before it are 48x32" in complaint
    assert 1 <= len(latents_of(tmp_path / "z.zarr")) <= 3
    assert "48x48" in program.refused("reconstruct", bundle, mixed, tmp_path / "out.mp4")
    folder = tmp_path / "images"
    save(f"{folder}/", clip(3))  # type: ignore[arg-type]
    save(f"{folder}/x%d.png", clip(1, 40, 40))  # type: ignore[arg-type]
    assert "give all images one size" in program.refused("encode", bundle, folder, tmp_path / "z.npy")
    (folder / "x0.png").write_bytes(b"no image")
    assert "x0.png" in program.refused("encode", bundle, folder, tmp_path / "z.npy")


# Unusual videos -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "height", "width"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 9), (6, 7, 3), (1, 8, 8), (2, 17, 33), (3, 31, 2), (5, 16, 40)],
)
def test_any_size_and_length(
    program: Program, bundle: Path, model: Bundle, tmp_path: Path, height: int, width: int, count: int
) -> None:
    source = clip(count, height, width)
    save(f"{tmp_path}/in/", source)  # type: ignore[arg-type]
    report = program.done("encode", bundle, tmp_path / "in", tmp_path / "z.zarr")
    assert (report["frames"], report["latents"], report["height"], report["width"]) == (
        count,
        1 + -(-(count - 1) // 4),
        height,
        width,
    )
    latents = model.encode(source)
    assert np.array_equal(latents_of(tmp_path / "z.zarr"), latents)
    expected = model.decode(latents, frames=count, height=height, width=width)
    program.done("decode", bundle, tmp_path / "z.zarr", f"{tmp_path}/out/")
    assert np.array_equal(load(tmp_path / "out")[0], expected)
    for ending in (".mp4", ".webm"):
        out = tmp_path / f"out{ending}"
        assert program.done("decode", bundle, tmp_path / "z.zarr", out)["frames"] == count
        assert load(out)[0].shape == source.shape
    program.done("reconstruct", bundle, tmp_path / "in", f"{tmp_path}/again/")
    assert np.array_equal(load(tmp_path / "again")[0], expected)


@pytest.mark.parametrize(
    ("pixel_format", "codec"),
    [
        ("yuv420p10le", "ffv1"),
        ("gray", "ffv1"),
        ("gray10le", "ffv1"),
        ("yuva420p", "ffv1"),
        ("yuv444p", "libx264"),
        ("bgra", "ffv1"),
    ],
)
def test_ten_bits_grey_and_alpha(
    program: Program, bundle: Path, model: Bundle, tmp_path: Path, pixel_format: str, codec: str
) -> None:
    pictures = [
        av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24").reformat(format=pixel_format)
        for frame in clip(9)
    ]
    path = write_pictures(tmp_path / "in.mkv", pictures, codec, 50)
    report = program.done("encode", bundle, path, tmp_path / "z.zarr")
    assert (report["frames"], report["fps"]) == (9, 50.0)
    frames = load(path)[0]
    assert np.array_equal(latents_of(tmp_path / "z.zarr"), model.encode(frames))
    assert np.abs(frames.astype(int) - clip(9)).mean() < (60 if "gray" in pixel_format else 16)
    program.done("reconstruct", bundle, path, tmp_path / "out.mp4")
    assert load(tmp_path / "out.mp4")[0].shape == frames.shape


# Latents ------------------------------------------------------------------------------------------


@pytest.fixture
def latents(program: Program, bundle: Path, video: Path, tmp_path: Path) -> Path:
    store = tmp_path / "z.zarr"
    program.done("encode", bundle, video, store)
    return store


@pytest.mark.parametrize("name", ["z.npy", "z.safetensors", "z.zarr"])
def test_a_nan_in_latents_is_named(
    program: Program, bundle: Path, video: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    program.done("encode", bundle, video, path)
    file = path / "latents/c/0/0/0/0" if path.is_dir() else path
    data = bytearray(file.read_bytes())
    stored = latents_of(path)
    start = 0 if path.is_dir() else len(data) - stored.nbytes
    offset = start + 5 * stored[0].nbytes
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    for out in ("out.mp4", "out.gif"):
        complaint = program.refused("decode", bundle, path, f"{tmp_path}/{out}")
        assert "latent 5 of" in complaint
        assert "NaN" in complaint
    assert not (tmp_path / "out.mp4").exists()
    assert not (tmp_path / "out.gif").exists()


def test_latents_of_another_bundle(
    program: Program, exported: Callable[..., Path], bundle: Path, latents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    other = exported(NAME, precision="fp16")  # another bundle of the same model
    assert program.done("decode", other, latents, out)["frames"] == 40
    complaint = program.refused("decode", exported("small"), latents, out)
    assert "made by another model" in complaint
    assert "--any-bundle" in complaint
    assert "frames each" in program.refused("decode", exported("8x8x8-trilinear"), latents, out)
    assert program("decode", exported("small"), latents, out, "--any-bundle").code in (0, 2)
    assert "channels" in program.refused(
        "decode", exported("4x8x8-nearest-16ch"), latents, out, "--any-bundle"
    )


def test_damaged_and_incomplete_latents(
    program: Program, bundle: Path, video: Path, latents: Path, tmp_path: Path
) -> None:
    clip_file = tmp_path / "z.safetensors"
    program.done("encode", bundle, video, clip_file)
    data = clip_file.read_bytes()
    for bad in (data[:-100], data[:4], b"", b"\0" * 200):
        clip_file.write_bytes(bad)
        assert "z.safetensors" in program.refused("decode", bundle, clip_file, tmp_path / "out.mp4")
        program.refused("inspect", clip_file)
    (latents / "latents/c/0/0/0/0").unlink()
    assert "latent 0" in program.refused("decode", bundle, latents, tmp_path / "out.mp4")
    (latents / "latents/zarr.json").write_text("{}")
    assert "z.zarr" in program.refused("decode", bundle, latents, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_a_store_without_latents_yet(program: Program, bundle: Path, latents: Path, tmp_path: Path) -> None:
    path = latents / "latents/zarr.json"
    path.write_text(
        path.read_text().replace('"complete": true', '"complete": false').replace("    11,\n", "    0,\n", 1)
    )
    assert program.done("inspect", latents)["count"] == 0
    assert "holds no latents yet" in program.refused("decode", bundle, latents, tmp_path / "out.mp4")


# Bundles ------------------------------------------------------------------------------------------


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_one_flipped_byte_in_any_file_of_a_bundle(
    program: Program, copy: Path, video: Path, tmp_path: Path
) -> None:
    for name in names(copy):
        good = (copy / name).read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        (copy / name).write_bytes(bad)
        for words in (("encode", copy, video, tmp_path / "z.npy"), ("inspect", copy)):
            complaint = program.refused(*words)
            assert name in complaint or name == "manifest.json"
            assert "export" in complaint
        (copy / name).write_bytes(good)
    assert program("encode", copy, video, tmp_path / "z.npy").code == 0


def test_a_bundle_with_a_file_missing_or_cut(
    program: Program, copy: Path, video: Path, tmp_path: Path
) -> None:
    for name in names(copy):
        file = copy / name
        file.rename(tmp_path / "away")
        complaint = program.refused("encode", copy, video, tmp_path / "z.npy")
        assert name in complaint
        file.write_bytes((tmp_path / "away").read_bytes()[:-10])
        complaint = program.refused("encode", copy, video, tmp_path / "z.npy")
        assert name in complaint
        (tmp_path / "away").replace(file)
    assert names(tmp_path) == ["bundle"]


# Disks --------------------------------------------------------------------------------------------


def mount(folder: Path, *options: str) -> bool:
    """Mounts a small file system in memory, where this is allowed (as root, in a namespace of its
    own or not).
    """
    if os.geteuid() != 0:
        return False
    words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, "size=64k"):
        pytest.skip(
            "mounting a tmpfs needs root; the limit on file sizes is tried instead, see the next test"
        )
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


JOBS: dict[str, Callable[[Path, Path, Path, Path], tuple[object, ...]]] = {
    "zarr": lambda bundle, video, store, disk: ("encode", bundle, video, disk / "z.zarr", "--chunk", 1),
    "checkpoints": lambda bundle, video, store, disk: (
        "encode",
        bundle,
        video,
        disk / "z.zarr",
        "--chunk",
        1,
        "--checkpoint-every",
        0,
    ),
    "npy": lambda bundle, video, store, disk: ("encode", bundle, video, disk / "z.npy"),
    "mp4": lambda bundle, video, store, disk: ("decode", bundle, store, disk / "out.mp4", "--crf", 0),
    "gif": lambda bundle, video, store, disk: ("decode", bundle, store, disk / "out.gif"),
    "images": lambda bundle, video, store, disk: ("decode", bundle, store, f"{disk}/frames/"),
    "reconstruct": lambda bundle, video, store, disk: (
        "reconstruct",
        bundle,
        video,
        disk / "out.mkv",
        "--crf",
        0,
    ),
}


@pytest.fixture(scope="module")
def big_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its latents take 98 KiB."""
    return save(tmp_path_factory.mktemp("big") / "in.mp4", clip(61, 80, 128))


@pytest.fixture(scope="module")
def big_store(model: Bundle, big_video: Path) -> Path:
    store = big_video.with_name("z.zarr")
    encode_video(model, big_video, store)
    return store


@pytest.mark.parametrize("job", JOBS)
def test_a_full_disk(
    program: Program, bundle: Path, big_video: Path, big_store: Path, small_disk: Path, job: str
) -> None:
    words = JOBS[job](bundle, big_video, big_store, small_disk)
    complaint = program.refused(*words)
    assert "no space left" in complaint.lower()
    assert str(small_disk) in complaint
    assert [path for path in small_disk.rglob(".*") if path.suffix == ".part"] == []
    left = small_disk / ("z.zarr" if job in ("zarr", "checkpoints") else "z.npy.partial.zarr")
    if left.exists():
        part = latents_of(left)
        assert np.array_equal(part, latents_of(big_store)[: len(part)])
    if job == "zarr":
        assert len(part) > 0
    if job == "images":
        assert load(small_disk / "frames")[0].shape[1:] == (80, 128, 3)
    # With space again, the job goes on.
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = program(*words, *(["--resume"] if words[0] != "reconstruct" else []))
    assert again.code == 0, again.err
    if job in ("zarr", "checkpoints"):
        assert np.array_equal(latents_of(small_disk / "z.zarr"), latents_of(big_store))


@pytest.mark.parametrize("job", ["mp4", "npy"])
def test_a_limit_on_the_size_of_files(
    bundle: Path, big_video: Path, big_store: Path, tmp_path: Path, job: str
) -> None:
    words = [str(word) for word in JOBS[job](bundle, big_video, big_store, tmp_path)]
    code = "import resource, signal, sys; from wfvae.cli import main as cli; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "no space left" in done.stderr
    assert not (tmp_path / words[3]).exists()


def test_a_full_pipe_device(bundle: Path, big_store: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        words = command("decode", bundle, big_store, "-", "--container", "rawvideo")
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "no space left" in done.stderr.lower()


OUTPUTS = ("z.zarr", "z.npy", "out.mp4", "out.gif", "frames/", "r.mkv")


def words_for(output: Path | str, bundle: Path, video: Path, store: Path) -> tuple[object, ...]:
    name = Path(output).name
    if name.startswith("z."):
        return ("encode", bundle, video, output)
    return (
        ("reconstruct", bundle, video, output) if name.startswith("r.") else ("decode", bundle, store, output)
    )


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_disk_that_cannot_be_written(
    program: Program, bundle: Path, video: Path, latents: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount(folder, "ro"):
        try:
            complaint = program.refused(*words_for(f"{folder}/{name}", bundle, video, latents))
            assert str(folder) in complaint
            assert "writable" in complaint or "not permitted" in complaint
            assert names(folder) == []
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    # Everywhere, also without root: below what is no directory.
    (tmp_path / "file").write_text("")
    complaint = program.refused(*words_for(f"{tmp_path}/file/{name}", bundle, video, latents))
    assert str(tmp_path / "file") in complaint


# Leftovers ----------------------------------------------------------------------------------------


def test_what_killed_runs_left_goes_with_the_next_run(
    program: Program, bundle: Path, video: Path, latents: Path, tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    work = tmp_path / "work"
    work.mkdir()
    files = ("out.mp4", "out.gif", "r.mkv", "z.npy", "z.npy.json", "z.safetensors")
    for name, ending in itertools.product(files, ("part", "probe")):
        (work / f".{name}.{ended.pid}.{ending}").write_text("left")
    (work / f".z.zarr.{ended.pid}.part" / "latents").mkdir(parents=True)
    running = work / f".out.mp4.{os.getppid()}.part"  # of a process that is still there
    running.write_text("in use")
    for name in (*files, "z.zarr"):
        if not name.endswith(".json"):
            program.done(*words_for(work / name, bundle, video, latents))
    assert names(work) == sorted([running.name, *files, "z.zarr"])


def test_two_processes_at_once_and_a_name_without_a_folder(bundle: Path, video: Path, tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            command("encode", bundle, video, f"{name}.npy"), cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        for name in "ab"
    ]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert run_process("decode", bundle, "a.npy", "out.mp4", cwd=tmp_path)[0] == 0
