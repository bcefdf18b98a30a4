"""A job reports success only for a result that is its own, whatever other programs do meanwhile."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fixtures.latents_info import INFO
from fixtures.program import Program, clip, latents_of, load, names, save
from fixtures.videos import encode_stored
from wfvae.errors import LatentsError, MediaError, StateError, WFVAEError
from wfvae.files import Destination
from wfvae.runtime import Bundle, decode_video, encode_video, open_bundle, reconstruct_video
from wfvae.runtime.latents.latent_files import open_latents, open_latents_writer

FRAMES, FRAMES_OF_41 = 81, 161


def slow(name: str) -> Any:
    """A parameter of the slow tests."""
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("video") / "in.mp4", clip(FRAMES))


@pytest.fixture(scope="module")
def store(model: Bundle, video: Path) -> Path:
    """Its 21 latents, in two chunks; do not write into them."""
    encode_video(model, video, video.with_name("z.zarr"))
    return video.with_name("z.zarr")


def at_latent(number: int, act: Callable[[], object]) -> Callable[[int, int | None], None]:
    """A job's `progress` that acts once, after so many frames."""
    done = []

    def progress(frames: int, total: int | None) -> None:
        if frames >= 4 * number and not done:
            done.append(frames)
            act()

    return progress


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupted_encode(model: Bundle, video: Path, latents: Path, at: int = 12, **options: Any) -> None:
    """Leaves an encode that has made snapshots."""
    options = {"chunk": 1, "checkpoint_seconds": 0, "progress": at_latent(at, interrupt), **options}
    with pytest.raises(KeyboardInterrupt):
        encode_video(model, video, latents, **options)


def interrupted_decode(model: Bundle, latents: Path, video: Path, **options: Any) -> None:
    """Leaves a decode that has made segments of 8 frames and snapshots."""
    options = {"chunk": 1, "checkpoint_seconds": 0, "segment_frames": 8, **options}
    with pytest.raises(KeyboardInterrupt):
        decode_video(model, latents, video, progress=at_latent(12, interrupt), **options)
    assert video.with_name(f"{video.name}.resume").exists()


@pytest.mark.parametrize(
    "name", ["z.zarr", *map(slow, ["z.npy", "z.safetensors", "out.mkv", "out.gif", "frames/"])]
)
@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["", "resume"])
def test_second_job_with_a_destination_is_refused(
    program: Program, bundle: Path, video: Path, store: Path, tmp_path: Path, name: str, resume: list[str]
) -> None:
    job = ("encode", bundle, video) if name.startswith("z.") else ("decode", bundle, store)
    if name == "frames/":
        (tmp_path / "frames").mkdir()
    held = tmp_path / ("frames/frame-%d.png" if name == "frames/" else name)
    with Destination(held):
        complaint = program.refused(*job, f"{tmp_path}/{name}", *resume)
        assert f"another job is writing '{held}'; wait" in complaint
        if not name.startswith("z."):
            assert "another job" in program.refused("reconstruct", bundle, video, f"{tmp_path}/{name}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert program.done(*job, f"{tmp_path}/{name}", *resume)["frames"] == FRAMES


@pytest.mark.parametrize("name", ["z.zarr", "out.mkv", slow("z.npy")])
def test_destination_is_locked_while_a_job_runs(
    program: Program, bundle: Path, model: Bundle, video: Path, store: Path, tmp_path: Path, name: str
) -> None:
    refused = []
    encodes = name.startswith("z.")
    job = ("encode", bundle, video) if encodes else ("decode", bundle, store)

    def try_again() -> None:
        for resume in ([], ["--resume"]):
            refused.append(program.refused(*job, tmp_path / name, *resume))

    options: dict[str, Any] = {"chunk": 1, "progress": at_latent(10, try_again)}
    run, source = (encode_video, video) if encodes else (decode_video, store)
    run(model, source, tmp_path / name, **options)  # type: ignore[operator]
    assert len(refused) == 2 and all("another job is writing" in line for line in refused)
    if encodes:
        assert np.array_equal(latents_of(tmp_path / name), latents_of(store))
    else:
        assert len(load(tmp_path / name)[0]) == FRAMES


def remove(path: Path) -> None:
    """In one step: the job may write meanwhile."""
    path.rename(path.with_name("removed"))
    shutil.rmtree(path.with_name("removed"), ignore_errors=True)


def replace_store(path: Path) -> None:
    """By a copy, where the job does not see what becomes of it."""
    shutil.copytree(path, path.with_name("copy"))
    while path.with_name("copy").exists():
        if path.exists():
            remove(path)  # also what the job has begun in its place
        with contextlib.suppress(OSError):
            path.with_name("copy").rename(path)


def overwrite_chunk(path: Path) -> None:
    chunk = path / "latents/c/0/0/0/0"
    data = np.fromfile(chunk, np.float32)
    data[7] += 1
    data.tofile(chunk)


HARM: dict[str, Callable[[Path], object]] = {
    "store removed": remove,
    "store moved": lambda path: path.rename(path.with_name("moved")),
    "store replaced": replace_store,
    "chunk removed": lambda path: remove(path / "latents/c/0"),
    "all chunks removed": lambda path: remove(path / "latents/c"),
    "chunk changed": overwrite_chunk,
    "group's metadata removed": lambda path: (path / "zarr.json").unlink(),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["z.zarr", pytest.param("z.npy", marks=pytest.mark.slow)])
def test_store_harmed_while_it_is_written_is_not_called_complete(
    model: Bundle, video: Path, tmp_path: Path, name: str, harm: str
) -> None:
    work = tmp_path / ("z.zarr" if name == "z.zarr" else "z.npy.partial.zarr")
    progress = at_latent(18, lambda: HARM[harm](work))
    with pytest.raises(WFVAEError) as excinfo:
        encode_video(model, video, tmp_path / name, chunk=1, progress=progress)
    assert "\n" not in str(excinfo.value) and str(tmp_path) in str(excinfo.value)
    assert not (tmp_path / "z.npy").exists()
    if (work / "latents/zarr.json").exists():
        with open_latents(work) as reader:
            assert not reader.complete
    encode_video(model, video, tmp_path / "again.zarr")


@pytest.mark.parametrize("kind", ["images", slow("file")])
def test_resume_with_a_source_that_changed_anywhere_before_is_refused(
    model: Bundle, tmp_path: Path, kind: str
) -> None:
    """Name, size and the first MiB are the same."""
    frames = np.random.default_rng(0).integers(0, 256, (45, 96, 128, 3), dtype=np.uint8)
    source = tmp_path / ("in" if kind == "images" else "in.nut")
    changed, late = frames.copy(), frames.copy()
    changed[32, 5, 5] ^= 1
    late[44, 5, 5] ^= 1
    sizes = []

    def write(video: Any) -> None:
        if kind == "images":
            for index, frame in enumerate(video):
                (source).mkdir(exist_ok=True)
                header = (
                    b"BM" + (54 + frame.nbytes).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
                )
                layout = [40, 128, -96 % 2**32, 1 | 24 << 16, 0, frame.nbytes, 0, 0, 0, 0]
                info = b"".join(value.to_bytes(4, "little") for value in layout)
                (source / f"{index}.bmp").write_bytes(header + info + frame[..., ::-1].tobytes())
        else:
            pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in video]
            encode_stored(source, pictures, "rawvideo", "nut")
        sizes.append(sum(path.stat().st_size for path in [source, *source.rglob("*")] if path.is_file()))

    write(frames)
    interrupted_encode(model, source, tmp_path / "z.zarr", at=10)
    before = (tmp_path / "z.zarr.resume").read_bytes()
    write(changed)
    with pytest.raises(StateError, match=r"the first \d+ frames of .* another source; give that one, or"):
        encode_video(model, source, tmp_path / "z.zarr", resume=True)
    assert (tmp_path / "z.zarr.resume").read_bytes() == before and len(set(sizes)) == 1
    write(late)  # what was not consumed may change
    assert encode_video(model, source, tmp_path / "z.zarr", resume=True).resumed_at > 32
    assert np.array_equal(latents_of(tmp_path / "z.zarr"), model.encode(load(source)[0]))


def test_resume_of_a_store_that_changed_is_refused(model: Bundle, video: Path, tmp_path: Path) -> None:
    interrupted_encode(model, video, tmp_path / "z.zarr")
    overwrite_chunk(tmp_path / "z.zarr")
    with pytest.raises(LatentsError, match="does not hold the latents that the interrupted run had written"):
        encode_video(model, video, tmp_path / "z.zarr", resume=True)


SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "backend": ({"name": "openvino"}, "backend was onnxruntime, and is openvino"),
    "version": ({"version": "0.1"}, r"backend version was [\d.]+, and is 0\.1"),
    "precision hint": ({"precision_hint": "bf16"}, "backend precision_hint was not set, and is bf16"),
}


@pytest.mark.parametrize("setting", [*SETTINGS, "keep_damaged", "wfvae", "libavcodec"])
@pytest.mark.parametrize("job", ["encode", slow("decode")])
def test_resume_with_other_settings_is_refused_by_name(
    model: Bundle,
    video: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    setting: str,
) -> None:
    out = tmp_path / ("z.zarr" if job == "encode" else "out.mkv")
    interrupted, source = (interrupted_encode, video) if job == "encode" else (interrupted_decode, store)
    interrupted(model, source, out)
    options: dict[str, Any] = {"resume": True}
    if job == "decode":
        options["segment_frames"] = 8
    if setting in SETTINGS:
        change, expected = SETTINGS[setting]
        described = {**model.backend.describe(), **change}
        monkeypatch.setattr(model.backend, "describe", lambda: described)
    elif setting == "wfvae":
        monkeypatch.setattr("wfvae.runtime.jobs.sources.version", lambda name: "0.0.1")
        expected = r"wfvae was [\d.]+, and is 0\.0\.1"
    elif setting == "libavcodec":
        monkeypatch.setitem(__import__("av").library_versions, "libavcodec", (1, 2, 3))
        expected = r"libavcodec was [\d.]+, and is 1\.2\.3"
    elif job == "encode":
        options["keep_damaged"], expected = True, "keep_damaged was False, and is True"
    else:
        options["output"], expected = {"crf": 30}, "crf"
    run = encode_video if job == "encode" else decode_video
    with pytest.raises(
        (StateError, MediaError), match=f"other settings.*{expected}.*(without|start over)"
    ) as excinfo:
        run(model, source, out, **options)  # type: ignore[operator]
    assert "\n" not in str(excinfo.value)


@pytest.mark.slow
def test_resume_on_another_backend_is_refused(bundle: Path, video: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    backends = [("onnxruntime", None), ("openvino", "fp32"), ("openvino", "bf16")]
    opened = [open_bundle(bundle, name, precision_hint=hint, threads=1) for name, hint in backends]
    for first in opened[:2]:
        for path in (tmp_path / "z.zarr", tmp_path / "z.zarr.resume"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        interrupted_encode(first, video, tmp_path / "z.zarr")
        for other in opened:
            if other is not first:
                with pytest.raises(StateError, match=r"other settings: .*(backend|precision_hint) was"):
                    encode_video(other, video, tmp_path / "z.zarr", resume=True)
    assert encode_video(opened[1], video, tmp_path / "z.zarr", resume=True).resumed_at > 0


@pytest.mark.parametrize("ending", [".zarr", slow(".npy"), slow(".safetensors")])
def test_decode_with_latents_that_changed_is_refused(
    model: Bundle, store: Path, tmp_path: Path, ending: str
) -> None:
    """By one bit, whatever the format; before the job is resumed, and while it runs."""
    source, out = tmp_path / f"z{ending}", tmp_path / "out.mkv"
    if ending == ".zarr":
        shutil.copytree(store, source)
    else:
        encode_video(model, store.with_name("in.mp4"), source)

    def change() -> None:
        path = source / "latents/c/1/0/0/0" if ending == ".zarr" else source
        data = bytearray(path.read_bytes())
        index = 16 if ending == ".zarr" else len(data) - 16
        data[index] ^= 1
        path.write_bytes(data)

    interrupted_decode(model, source, out)
    change()
    with pytest.raises((MediaError, LatentsError), match=r"source was|was changed after it was complete"):
        decode_video(model, source, out, resume=True, segment_frames=8)
    change()
    progress = at_latent(5, change)
    with pytest.raises(LatentsError, match="changed while they were decoded"):
        decode_video(model, source, out, resume=True, chunk=1, segment_frames=8, progress=progress)
    assert not out.exists()


@pytest.mark.parametrize(
    "name", ["z.zarr", "z.npy", *map(slow, ["z.safetensors", "out.mkv", "out.gif", "frame"])]
)
def test_linked_destination_is_followed_and_kept(
    program: Program, bundle: Path, video: Path, store: Path, tmp_path: Path, name: str
) -> None:
    """At first to nothing, then over an earlier result."""
    far, link = tmp_path / "far", tmp_path / name
    far.mkdir()
    link.symlink_to(far / name)
    job = ("encode", bundle, video) if name.startswith("z.") else ("decode", bundle, store)
    if name == "frame":
        (far / name).mkdir()
    for _ in range(2):
        assert program.done(*job, link)["frames"] == FRAMES
        assert link.is_symlink() and (far / name).exists() and not (far / name).is_symlink()
        expected = [name, "z.npy.json"] if name == "z.npy" else [name]
        assert names(far) == expected and names(tmp_path) == sorted(["far", name])


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("work", ["out.mkv.partial", "z.npy.partial.zarr", "z.zarr.resume"])
def test_work_that_is_a_link_is_refused_and_nothing_foreign_changes(
    model: Bundle, video: Path, store: Path, tmp_path: Path, work: str, resume: bool
) -> None:
    foreign = tmp_path / "foreign"
    if work == "z.zarr.resume":
        foreign.write_text("thesis")
    else:
        shutil.copytree(store, foreign)
        for name in ("plan.json", "segment-000000.nut", ".segment-000001.nut.0123456789abcdef.part"):
            (foreign / name).write_text("thesis")
    before = {path: path.read_bytes() for path in [foreign, *foreign.rglob("*")] if path.is_file()}
    (tmp_path / work).symlink_to(foreign)
    run, source = (decode_video, store) if work.startswith("out") else (encode_video, video)
    out = tmp_path / work.replace(".partial", "").replace(".resume", "")
    out = tmp_path / "z.npy" if work == "z.npy.partial.zarr" else out
    with pytest.raises(WFVAEError, match="is a link"):
        run(model, source, out, resume=resume)  # type: ignore[operator]
    assert {path: path.read_bytes() for path in before} == before and (tmp_path / work).is_symlink()


def test_reconstruction_follows_links_and_locks(model: Bundle, video: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out.mkv").symlink_to(tmp_path / "far" / "out.mkv")
    with Destination(tmp_path / "far" / "out.mkv"), pytest.raises(WFVAEError, match="another job"):
        reconstruct_video(model, video, tmp_path / "out.mkv")
    assert reconstruct_video(model, video, tmp_path / "out.mkv").frames == FRAMES
    assert (tmp_path / "out.mkv").is_symlink() and names(tmp_path / "far") == ["out.mkv"]


def test_inspect_lists_damaged_latents_with_exit_code_1(program: Program, tmp_path: Path) -> None:
    copy, array = tmp_path / "z.zarr", tmp_path / "z.npy"
    latents = np.random.default_rng(0).normal(size=(41, 3, 4, 6)).astype(np.float32)
    for path in (copy, array):
        with open_latents_writer(path, INFO) as writer:
            writer.append(latents)
            writer.finish(FRAMES_OF_41)
    assert program.done("inspect", copy)["damaged latents"] == {}
    overwrite_chunk(copy)
    outcome = program("inspect", copy)
    assert outcome.code == 1 and "hash differs from what was encoded" in outcome.out
    shutil.rmtree(copy / "latents/c/1")
    chunk = copy / "latents/c/2/0/0/0"
    values = np.fromfile(chunk, np.float32).reshape(16, -1)
    values[[1, 2, 5], 3] = np.nan, np.inf, -np.inf
    values.tofile(chunk)
    outcome = program("inspect", copy, "--json")
    assert (outcome.code, outcome.err) == (1, "")
    assert json.loads(outcome.out)["damaged latents"] == {"missing": "16-31", "not finite": "33-34, 37"}
    chunk.write_bytes(b"cut")
    assert "unreadable 32-40" in program("inspect", copy).out
    assert program.done("inspect", array)["damaged latents"] == {}
    stored = np.lib.format.open_memmap(array, "r+")
    stored[40, 0, 0, 0] = np.nan
    stored.flush()
    outcome = program("inspect", array)
    assert outcome.code == 1 and "not finite 40" in outcome.out
