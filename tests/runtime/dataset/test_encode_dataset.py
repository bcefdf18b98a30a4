"""`wfvae encode-dataset`: folders of real files to shards, through the command line."""

import io
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from fixtures.program import Program, clip, run_process, save, start_process, wait_for
from fixtures.videos import load
from wfvae.runtime import Bundle
from wfvae.runtime.dataset.children import ForkServer
from wfvae.runtime.dataset.decoding import DecoderFailure, DecoderProcess
from wfvae.runtime.dataset.job import encode_dataset
from wfvae.runtime.dataset.options import ClipOptions
from wfvae.runtime.dataset.plan import Unit
from wfvae.runtime.dataset.report import DatasetReport
from wfvae.runtime.dataset.videos import Video
from wfvae.spec.latent_shards import LatentShardSet
from wfvae.video.scaling import PictureScaler

pytest.importorskip("fsspec")
Samples = dict[str, tuple[npt.NDArray[Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of two sizes, one of them long, and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    save(folder / "a.mp4", clip(9, seed=1))
    save(folder / "b.mp4", clip(22, 24, 40, seed=2))
    save(folder / "c.mkv", clip(41, seed=3))
    (folder / "d.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def whole(videos: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of whole videos, encoded by one worker, two at a time."""
    out = tmp_path_factory.mktemp("whole") / "latents"
    code, _, _ = run_process("encode-dataset", bundle, videos, out, "--rows", 2, "--threads", 1)
    assert code == 1  # d.mp4
    return out


def samples(out: Path) -> Samples:
    """All samples, read as any program reads a tar archive."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, ending = member.name.partition(".")
                content = archive.extractfile(member)
                assert content is not None and ending not in found.get(key, {})
                found.setdefault(key, {})[ending] = content.read()
    return {
        key: (np.load(io.BytesIO(parts["npy"])), json.loads(parts["json"])) for key, parts in found.items()
    }


def shard_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def test_latents_are_those_of_the_bundle_bit_by_bit(whole: Path, videos: Path, model: Bundle) -> None:
    found = samples(whole)
    assert sorted(found) == ["000000000", "000000001", "000000002"]
    for latents, about in found.values():
        frames, _, _ = load(about["source"])
        expected = model.encode(frames)
        assert latents.dtype == np.float32 and np.array_equal(latents, expected)
        assert about["frames"] == len(frames)
        assert (about["height"], about["width"]) == frames.shape[1:3]
        assert about["latents"]["bundle"] == model.identity


def encode_within(limit: int, bundle: Path, videos: Path, out: Path) -> DatasetReport:
    execution = {"provider": "cpu", "threads": 1, "memory_limit": limit}
    return encode_dataset(bundle, str(videos), out, rows=4, execution=execution)


def test_rows_and_chunk_shrink_until_they_fit_the_memory(
    whole: Path, videos: Path, bundle: Path, model: Bundle, tmp_path: Path
) -> None:
    size = {"height": 32, "width": 48}  # of the larger videos
    limit = model.plan("encoder", **size, chunk=2).total_bytes
    assert limit < model.plan("encoder", **size, streams=2, chunk=2).total_bytes
    report = encode_within(limit, bundle, videos, tmp_path / "out")
    assert [failure.source for failure in report.failures] == [str(videos / "d.mp4")]
    assert {key: latents.tobytes() for key, (latents, _) in samples(tmp_path / "out").items()} == {
        key: latents.tobytes() for key, (latents, _) in samples(whole).items()
    }


def test_video_too_large_for_the_memory_fails_alone(
    videos: Path, bundle: Path, model: Bundle, tmp_path: Path
) -> None:
    limit = model.plan("encoder", height=24, width=40, chunk=1).total_bytes  # of the smaller video
    report = encode_within(limit, bundle, videos, tmp_path / "out")
    assert sorted(samples(tmp_path / "out")) == ["000000001"]
    reasons = {Path(failure.source).name: failure.reason for failure in report.failures}
    assert sorted(reasons) == ["a.mp4", "c.mkv", "d.mp4"]
    assert "1 encoder stream(s) of 32x48 at 1 latents per step need" in reasons["a.mp4"]


def test_index_lists_shards_and_failures_are_listed_by_source(whole: Path, videos: Path) -> None:
    import hashlib

    index = json.loads((whole / "index.json").read_text())
    assert index["samples"] == 3 and index["frames"] == 9 + 22 + 41 and index["failures"] == 1
    assert {shard["name"]: shard["sha256"] for shard in index["shards"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in shard_bytes(whole).items()
    }
    [failure] = [json.loads(line) for line in (whole / "failures.jsonl").read_text().splitlines()]
    assert failure["source"] == str(videos / "d.mp4") and "cannot read" in failure["reason"]
    assert sorted(path.name for path in whole.iterdir() if path.suffix != ".tar") == [
        ".lock",
        "failures.jsonl",
        "index.json",
        "samples.npy",
    ]


def test_list_of_samples_says_where_each_lies(whole: Path) -> None:
    data = LatentShardSet(str(whole))
    table = data.table()
    found = data.read(table, range(len(table)))
    expected = sorted(samples(whole).items())
    assert [sample.key for sample in found] == [key for key, _ in expected]
    for sample, (_, (latents, about)) in zip(found, expected, strict=True):
        assert np.array_equal(sample.latents, latents) and sample.about == about


def test_unpacked_sample_is_decoded_as_latents_of_its_video_are(
    whole: Path, videos: Path, bundle: Path, program: Program, tmp_path: Path
) -> None:
    program.done("unpack", whole, tmp_path / "samples", "--key", "000000000")
    program.done("encode", bundle, videos / "a.mp4", tmp_path / "a.zarr")
    for latents, out in (("samples/000000000.zarr", "one"), ("a.zarr", "two")):
        (tmp_path / out).mkdir()
        program.done("decode", bundle, tmp_path / latents, tmp_path / out)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / out).glob("*.png")} for out in ("one", "two"))
    assert len(one) == 9 and one == two


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_decodes_the_shards(whole: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, whole.glob("*.tar")))
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert {sample["__key__"]: sample["npy"].shape for sample in found} == {
        key: latents.shape for key, (latents, _) in samples(whole).items()
    }


def test_finished_data_set_is_left_as_it_is(
    whole: Path, videos: Path, bundle: Path, program: Program
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    again = program("encode-dataset", bundle, videos, whole, "--json")
    assert again.code == 1 and again.report["encoded_frames"] == 0 and again.report["samples"] == 3
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir() if path in before} == before


def test_other_options_for_the_same_folder_are_refused_with_the_difference(
    whole: Path, videos: Path, bundle: Path, program: Program
) -> None:
    line = program.refused("encode-dataset", bundle, videos, whole, "--dtype", "fp16")
    assert "begun with other settings: dtype (fp32 before, now fp16)" in line


def test_folder_of_other_files_is_refused(
    videos: Path, bundle: Path, program: Program, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("")
    line = program.refused("encode-dataset", bundle, videos, tmp_path)
    assert "holds 'thesis.txt', which is not of a data set of latents" in line


def test_windows_are_independent_clips_of_resized_frames(
    videos: Path, bundle: Path, model: Bundle, program: Program, tmp_path: Path
) -> None:
    options = ["--frames", 5, "--stride", 2, "--size", "16x24", "--dtype", "fp16", "--preview"]
    outcome = program(
        "encode-dataset", bundle, videos / "c.mkv", tmp_path / "out", *options, "--shard-size", 3, "--rows", 2
    )
    assert outcome.code == 0, outcome
    found = samples(tmp_path / "out")
    assert len(found) == 4  # 41 frames, windows of 10
    assert len(shard_bytes(tmp_path / "out")) == 2
    frames, _, _ = load(videos / "c.mkv")
    scaler = PictureScaler((16, 24), stretch=False)
    for key, (latents, about) in found.items():
        first = about["window"]["first_frame"]
        assert key == f"000000000-{about['window']['number']:06d}"
        window = np.stack([scaler.scale(frame) for frame in frames[first : first + 10 : 2]])
        assert np.array_equal(latents, model.encode(window).astype(np.float16))
        assert about["fps"] == "25/2"


def test_too_many_failures_stop_the_run(videos: Path, bundle: Path, program: Program, tmp_path: Path) -> None:
    for name in ("x.mp4", "y.mp4"):
        (tmp_path / name).write_bytes(b"no video" * 50)
    outcome = program("encode-dataset", bundle, tmp_path, tmp_path / "out", "--limit-failures", 1)
    assert outcome.code == 1 and "stopped" in outcome.out
    assert not (tmp_path / "out" / "index.json").exists()


def test_moments_of_a_bundle_that_returns_the_mean_are_refused(
    videos: Path, bundle: Path, program: Program, tmp_path: Path
) -> None:
    line = program.refused("encode-dataset", bundle, videos, tmp_path / "out", "--output", "moments")
    assert "this bundle's encoder returns the mean" in line


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer("wfvae.runtime.dataset.decoding") as server:
        yield server


@pytest.fixture
def decoder(forks: ForkServer) -> Iterator[DecoderProcess]:
    with DecoderProcess(forks, time_limit=1.0) as process:
        yield process


def unit_of(path: Path, height: int = 32, width: int = 48) -> Unit:
    return Unit(0, Video(str(path), str(path)), height, width)


def frames_from(decoder: DecoderProcess, unit: Unit, options: ClipOptions) -> npt.NDArray[np.uint8]:
    decoder.decode(unit, options, 4)
    found = []
    while (message := decoder.receive()) is not None:
        if isinstance(message, np.ndarray):
            found.append(message.copy())
    return np.concatenate(found)


def test_decoder_that_crashes_or_hangs_fails_its_video_and_reads_the_next(
    videos: Path, decoder: DecoderProcess
) -> None:
    path, options = videos / "c.mkv", ClipOptions()
    for sent, text in (
        (signal.SIGKILL, "crashed .signal SIGKILL"),
        (signal.SIGSTOP, "no frame for 1 seconds"),
    ):
        decoder.decode(unit_of(path), options, 4)
        assert decoder._child is not None
        os.kill(decoder._child.process_id, sent)
        with pytest.raises(DecoderFailure, match=text) as caught:
            while decoder.receive() is not None:
                pass
        assert caught.value.may_pass
    frames, _, _ = load(path)
    assert np.array_equal(frames_from(decoder, unit_of(path), options), frames)


def test_resampled_frames_are_those_shown_at_each_time(tmp_path: Path, decoder: DecoderProcess) -> None:
    frames = clip(4)
    times = [Fraction(0), Fraction(1, 10), Fraction(2, 10), Fraction(5, 10)]  # the third is shown long
    path = save(tmp_path / "uneven.mkv", frames, Fraction(10), times, time_base=Fraction(1, 1000))
    stored, _, _ = load(path)
    found = frames_from(decoder, unit_of(path), ClipOptions(fps="20"))
    shown = [0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3]
    assert np.array_equal(found[: len(shown)], stored[shown])


def test_member_of_a_shard_is_read_from_its_bytes(
    videos: Path, tmp_path: Path, decoder: DecoderProcess
) -> None:
    from wfvae.runtime.dataset.videos import find_videos

    with tarfile.open(tmp_path / "films.tar", "w") as archive:
        archive.add(videos / "b.mp4", "films/b.mp4")
        archive.add(videos / "a.mp4", "films/a.mp4")
    video = find_videos(str(tmp_path / "films.tar"))[1]
    frames, _, _ = load(videos / "a.mp4")
    found = frames_from(decoder, Unit(0, video, 32, 48), ClipOptions())
    assert np.array_equal(found, frames)


def test_preview_is_a_picture_of_the_first_frame(
    videos: Path, bundle: Path, program: Program, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program.done("encode-dataset", bundle, videos / "a.mp4", out, "--preview")
    [shard] = out.glob("*.tar")
    with tarfile.open(shard) as archive:
        member = archive.extractfile("000000000.jpg")
        assert member is not None
        with av.open(io.BytesIO(member.read())) as container:
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    frames, _, _ = load(videos / "a.mp4")
    assert np.abs(picture.astype(int) - frames[0]).mean() < 6


def encode_again(bundle: Path, source: Path, out: Path, *options: object) -> int:
    return run_process("encode-dataset", bundle, source, out, "--threads", 1, *options, timeout=120)[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--workers", 2], ["--rows", 1], ["--engine", "ray", "--workers", 2]])
def test_shards_have_the_same_bytes_for_any_engine_workers_and_rows(
    options: list[Any], whole: Path, videos: Path, bundle: Path, tmp_path: Path
) -> None:
    if "ray" in options:
        pytest.importorskip("ray")
    assert encode_again(bundle, videos, tmp_path / "out", *options) == 1
    assert shard_bytes(tmp_path / "out") == shard_bytes(whole)


def worker_processes(parent: int) -> list[int]:
    import psutil

    found = psutil.Process(parent).children(recursive=True)
    return [child.pid for child in found if child.name() == "wfvae-worker"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_killed_driver_or_worker_costs_no_sample_and_changes_no_shard(
    victim: str, whole: Path, videos: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["encode-dataset", bundle, videos, out, "--workers", 2, "--threads", 1, "--shard-size", 1]
    process = start_process(*arguments)
    assert wait_for(lambda: any(out.glob("*.tar")), process)
    if victim == "driver":
        process.kill()
        process.communicate()
        kept = shard_bytes(out)
        assert kept and not (out / "index.json").exists()
        assert encode_again(bundle, videos, out, "--workers", 2, "--shard-size", 1) == 1
        assert kept.items() <= shard_bytes(out).items()
    else:
        workers = worker_processes(process.pid)
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode == 1
    assert [(latents.tobytes(), about) for latents, about in samples(out).values()] == [
        (latents.tobytes(), about) for latents, about in samples(whole).values()
    ]
