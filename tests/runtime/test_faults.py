"""Faulty videos, latents, bundles and disks: one clear line, exit code 2, and finished work stays
readable.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fixtures.program import Program, clip, latents_of, load, names, save
from wfvae.runtime import Bundle, encode_video
from wfvae.runtime.latents.latent_files import open_latents

NAME = "4x8x8-trilinear"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("video") / "in.mp4", clip(40))


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
def test_unreadable_video_is_refused_before_anything_is_written(
    program: Program, bundle: Path, tmp_path: Path, kind: str
) -> None:
    make, message = BAD_VIDEOS[kind]
    source = tmp_path / "in.mp4"
    make(source)
    for words in (
        ("encode", bundle, source, tmp_path / "z.zarr"),
        ("encode", bundle, source, tmp_path / "z.npy"),
        ("reconstruct", bundle, source, tmp_path / "out.mp4"),
    ):
        complaint = program.refused(*words)
        assert message in complaint and str(source) in complaint
    assert str(source) in program.refused("inspect", source)
    assert names(tmp_path) == ["in.mp4"]


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_truncated_video_gives_its_latents_and_then_the_error(
    program: Program, bundle: Path, model: Bundle, tmp_path: Path, ending: str
) -> None:
    whole = save(tmp_path / f"whole{ending}", clip(40), encoder_options=(("g", "5"), ("bf", "0")))
    cut = tmp_path / f"cut{ending}"
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * 0.7)])
    store, out = tmp_path / "z.zarr", tmp_path / "out.mp4"
    complaint = program.refused("encode", bundle, cut, store, "--chunk", 1)
    assert "cut short" in complaint and "--keep-damaged" in complaint
    with open_latents(store) as reader:
        assert not reader.complete and 2 <= reader.count < 11
        assert np.array_equal(reader.read(), model.encode(load(whole)[0])[: reader.count])
    assert "cut short" in program.refused("reconstruct", bundle, cut, out)
    assert not out.exists()
    report = program.done("encode", bundle, cut, store, "--keep-damaged")
    assert report["frames"] >= 5 and report["complete"]
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize(("count", "height", "width"), [(1, 1, 1), (3, 1, 9), (6, 7, 3), (2, 17, 33)])
def test_video_of_any_size_and_length_keeps_both(
    program: Program, bundle: Path, model: Bundle, tmp_path: Path, height: int, width: int, count: int
) -> None:
    source, store = clip(count, height, width), tmp_path / "z.zarr"
    save(f"{tmp_path}/in/", source)  # type: ignore[arg-type]
    report = program.done("encode", bundle, tmp_path / "in", store)
    assert (report["frames"], report["latents"]) == (count, 1 + -(-(count - 1) // 4))
    assert (report["height"], report["width"]) == (height, width)
    latents = model.encode(source)
    assert np.array_equal(latents_of(store), latents)
    expected = model.decode(latents, frames=count, height=height, width=width)
    program.done("decode", bundle, store, f"{tmp_path}/out/")
    program.done("reconstruct", bundle, tmp_path / "in", f"{tmp_path}/again/")
    for folder in ("out", "again"):
        assert np.array_equal(load(tmp_path / folder)[0], expected)
    for ending in (".mp4", ".webm"):
        out = tmp_path / f"out{ending}"
        assert program.done("decode", bundle, store, out)["frames"] == count
        assert load(out)[0].shape == source.shape


@pytest.fixture
def latents(program: Program, bundle: Path, video: Path, tmp_path: Path) -> Path:
    store = tmp_path / "z.zarr"
    program.done("encode", bundle, video, store)
    return store


def test_latents_of_another_model_are_refused(
    program: Program, exported: Callable[..., Path], latents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    same_model = exported(NAME, precision="fp16")
    assert program.done("decode", same_model, latents, out)["frames"] == 40
    complaint = program.refused("decode", exported("small"), latents, out)
    assert "made by another model" in complaint and "--any-bundle" in complaint
    assert "frames each" in program.refused("decode", exported("8x8x8-trilinear"), latents, out)
    assert program.done("decode", exported("small"), latents, out, "--any-bundle")["frames"] == 40
    wider = exported("4x8x8-nearest-16ch")
    assert "channels" in program.refused("decode", wider, latents, out, "--any-bundle")


def test_damaged_or_empty_latents_are_refused_by_name(
    program: Program, bundle: Path, video: Path, latents: Path, tmp_path: Path
) -> None:
    array_file, out, images = tmp_path / "z.npy", tmp_path / "out.mp4", tmp_path / "out.gif"
    program.done("encode", bundle, video, array_file)
    stored = np.lib.format.open_memmap(array_file, "r+")
    stored[5, 0, 0, 0] = np.nan
    stored.flush()
    for video_file in (out, images):
        complaint = program.refused("decode", bundle, array_file, video_file)
        assert "latent 5 of" in complaint and "NaN" in complaint
    array_file.write_bytes(array_file.read_bytes()[:-100])
    for words in (("decode", bundle, array_file, out), ("inspect", array_file)):
        assert "z.npy" in program.refused(*words)
    (latents / "latents/c/0/0/0/0").unlink()
    assert "latent 0" in program.refused("decode", bundle, latents, out)
    header = latents / "latents/zarr.json"
    text = header.read_text().replace('"complete": true', '"complete": false')
    header.write_text(text.replace("    11,\n", "    0,\n", 1))
    assert program.done("inspect", latents)["count"] == 0
    assert "holds no latents yet" in program.refused("decode", bundle, latents, out)
    header.write_text("{}")
    assert "z.zarr" in program.refused("decode", bundle, latents, out)
    assert not out.exists() and not images.exists()


def test_damaged_bundle_is_refused(program: Program, bundle: Path, video: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (copy / "weights.bin").write_bytes(bytes((copy / "weights.bin").stat().st_size))
    for words in (("encode", copy, video, tmp_path / "z.npy"), ("inspect", copy)):
        complaint = program.refused(*words)
        assert "weights.bin" in complaint and "export" in complaint
    assert names(tmp_path) == ["bundle"]


def mount(folder: Path, *options: str) -> bool:
    """Mounts a small file system in memory, if the system allows it."""
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
        pytest.skip("mounting a tmpfs needs root; the next test limits the size of files instead")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def big_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its latents take 98 KiB."""
    return save(tmp_path_factory.mktemp("big") / "in.mp4", clip(61, 80, 128))


@pytest.fixture(scope="module")
def big_store(model: Bundle, big_video: Path) -> Path:
    store = big_video.with_name("z.zarr")
    encode_video(model, big_video, store)
    return store


JOBS: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "zarr": ("encode", "z.zarr", ("--chunk", 1)),
    "checkpoints": ("encode", "z.zarr", ("--chunk", 1, "--checkpoint-every", 0)),
    "npy": ("encode", "z.npy", ()),
    "mp4": ("decode", "out.mp4", ("--crf", 0)),
    "gif": ("decode", "out.gif", ()),
    "images": ("decode", "frames/", ()),
    "reconstruct": ("reconstruct", "out.mkv", ("--crf", 0)),
}


def words_of(job: str, bundle: Path, video: Path, store: Path, folder: Path) -> tuple[object, ...]:
    verb, name, options = JOBS[job]
    return verb, bundle, store if verb == "decode" else video, f"{folder}/{name}", *options


@pytest.mark.parametrize("job", JOBS)
def test_full_disk_keeps_finished_work_and_the_job_resumes(
    program: Program, bundle: Path, big_video: Path, big_store: Path, small_disk: Path, job: str
) -> None:
    words = words_of(job, bundle, big_video, big_store, small_disk)
    complaint = program.refused(*words)
    assert "no space left" in complaint.lower() and str(small_disk) in complaint
    assert [path for path in small_disk.rglob(".*") if path.suffix == ".part"] == []
    left = small_disk / ("z.npy.partial.zarr" if job == "npy" else "z.zarr")
    if left.exists():
        part = latents_of(left)
        assert np.array_equal(part, latents_of(big_store)[: len(part)])
        assert len(part) > 0 or job != "zarr"
    assert left.exists() or job != "zarr"
    if job == "images":
        assert load(small_disk / "frames")[0].shape[1:] == (80, 128, 3)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = program(*words, *([] if job == "reconstruct" else ["--resume"]))
    assert again.code == 0, again.err
    if job in ("zarr", "checkpoints"):
        assert np.array_equal(latents_of(small_disk / "z.zarr"), latents_of(big_store))


@pytest.mark.parametrize("job", ["mp4", "npy"])
def test_limit_on_the_size_of_files_is_reported(
    bundle: Path, big_video: Path, big_store: Path, tmp_path: Path, job: str
) -> None:
    words = words_of(job, bundle, big_video, big_store, tmp_path)
    code = """
import resource, signal, sys
from wfvae.cli import main as cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(cli.main(sys.argv[1:]))
"""
    line = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "no space left" in done.stderr.lower()
    assert not Path(str(words[3])).exists()


@pytest.mark.parametrize("job", [job for job in JOBS if job != "checkpoints"])
def test_unwritable_disk_is_reported_by_name(
    program: Program, bundle: Path, video: Path, latents: Path, tmp_path: Path, job: str
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount(folder, "ro"):
        try:
            complaint = program.refused(*words_of(job, bundle, video, latents, folder))
            assert str(folder) in complaint
            assert "writable" in complaint or "not permitted" in complaint
            assert names(folder) == []
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    # Everywhere, also without root: below something that is no directory.
    (tmp_path / "file").write_text("")
    complaint = program.refused(*words_of(job, bundle, video, latents, tmp_path / "file"))
    assert str(tmp_path / "file") in complaint
