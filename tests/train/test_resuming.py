"""Exact resumption: a run that was stopped or killed ends with the bits of an uninterrupted one."""

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from fixtures.program import Program, clip, save, start_process
from fixtures.training import (
    CPU,
    WITH_DISCRIMINATOR,
    assert_same_bits,
    folder_settings,
    logged_steps,
    make_videos,
    newest_step,
    resume_notices,
    small,
    state_of,
    steps_kept,
    write_config,
)
from wfvae.errors import ConfigError, DataError, MissingExtraError, ResourceError
from wfvae.train.config import TrainingConfig
from wfvae.train.record import read_metrics
from wfvae.train.run import Watcher, train

OTHERWISE = "; the run continues, but not as it would have without the interruption"


def test_stopped_run_resumed_with_workers_gives_same_bits_and_record(
    finished_run: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    watcher = Watcher(lambda done, *_: seen.append(done), stopping=lambda: len(seen) == 3)
    result = train(small(**WITH_DISCRIMINATOR), tmp_path, CPU, watcher=watcher)
    assert (result.step, result.finished) == (3, False)
    result = train(small(**WITH_DISCRIMINATOR, data__workers=1), tmp_path, CPU, resume=True)
    assert (result.step, result.finished) == (6, True)
    assert_same_bits(state_of(finished_run), state_of(tmp_path))
    times = ("frames_per_second", "data_wait", "compute", "eta_seconds")
    whole, resumed = (
        [{k: v for k, v in line.items() if k not in times} for line in read_metrics(run, "train")]
        for run in (finished_run, tmp_path)
    )
    assert whole == resumed


def test_run_resumed_before_and_after_its_discriminator_starts_gives_same_bits(tmp_path: Path) -> None:
    settings = {"loss__adversarial_start": 2, "run__steps": 4, "run__checkpoint_every": 1, "run__keep": 9}
    config = small(**WITH_DISCRIMINATOR, **settings, validation__every=0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config, whole, CPU)
    lines = read_metrics(whole, "train")
    assert [line["adversarial_weight"] > 0 for line in lines] == [False, False, True, True]
    assert ["discriminator" in line for line in lines] == [False, False, True, True]
    asked = iter([False, True, False, False, True])  # after the first step, and after two more
    stopping = Watcher(stopping=lambda: next(asked))
    assert [train(config, cut, CPU, resume=True, watcher=stopping).step for _ in range(2)] == [1, 3]
    assert train(config, cut, CPU, resume=True).finished
    assert_same_bits(state_of(whole), state_of(cut))


VIDEOS = {"data__kind": "folder", "data__workers": 1, "validation__every": 0}
CROPS = {"data__width": 48, "data__crop_height": 16, "data__crop_width": 24, "data__crops_per_clip": 3}


@pytest.mark.parametrize(
    ("moment", "settings"),
    [
        pytest.param(2, WITH_DISCRIMINATOR, id="discriminator"),
        pytest.param(1, VIDEOS | CROPS, marks=pytest.mark.slow, id="crops of videos"),
    ],
)
def test_killed_run_resumed_gives_same_bits(
    moment: int, settings: dict[str, Any], finished_run: Path, tmp_path: Path, program: Program
) -> None:
    if "data__kind" in settings:
        videos = make_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4", frames=20)
        settings = {**settings, "data__folder": str(videos), "data__noise": 0.0}
    whole, run = finished_run, tmp_path / "run"
    if settings is not WITH_DISCRIMINATOR:
        whole = tmp_path / "whole"
        train(small(**settings), whole, CPU)
    config = write_config(small(**settings), tmp_path / "small.toml")
    process = start_process("train", config, "--out", run)
    end = time.monotonic() + 60
    # Killed wherever it is once it has logged a step, maybe while it writes a checkpoint.
    while logged_steps(run) < 2 * moment - 1:
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # until its workers have ended, too
    assert process.returncode == -signal.SIGKILL
    resumed = program("train", config, "--out", run, "--resume", "--json")
    assert (resumed.code, resumed.report["step"], resumed.report["finished"]) == (0, 6, True), resumed
    # At moment 1 it may have been killed before its first checkpoint.
    assert moment == 1 or "training begins at step 0" not in resumed.err
    assert_same_bits(state_of(whole), state_of(run))
    assert not list((run / "checkpoints").glob(".*"))


def half_written(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
    save_file(tensors, path, **options)
    os.truncate(path, path.stat().st_size // 2)
    raise KeyboardInterrupt


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("wfvae.model.checkpoint.save_file", half_written),  # of the averaged weights
        ("wfvae.train.checkpoints.save_file", half_written),  # of everything
        ("wfvae.files._sync", interrupt),
    ],
)
def test_interruption_while_a_checkpoint_is_written_leaves_the_one_before(
    place: str,
    what: Callable[..., None],
    finished_run: Path,
    copied_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.rmtree(copied_run / "checkpoints" / "step-00000006")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, what)
        train(small(**WITH_DISCRIMINATOR), copied_run, CPU, resume=True)
    # As a process that was killed meanwhile leaves it.
    (copied_run / "checkpoints" / ".step-00000006.1234567.part").mkdir()
    assert newest_step(copied_run) == 4
    seen: list[int] = []
    watcher = Watcher(lambda done, *_: seen.append(done))
    assert train(small(**WITH_DISCRIMINATOR), copied_run, CPU, resume=True, watcher=watcher).finished
    assert seen == [5, 6]
    assert steps_kept(copied_run) == [3, 4, 6]
    assert_same_bits(state_of(finished_run), state_of(copied_run))


def test_run_is_neither_overwritten_nor_resumed_with_other_settings(
    finished_run: Path, tmp_path: Path, program: Program
) -> None:
    config = write_config(small(**WITH_DISCRIMINATOR), tmp_path / "small.toml")
    command = ("train", config, "--out", finished_run)
    assert "go on with --resume, or choose another --out" in program.refused(*command)
    changes = ("--set", "optimizer.batch=4", "run.seed=1", "run.precision=bf16")
    assert "another optimizer.batch, run.seed, run.precision" in program.refused(
        *command, "--resume", *changes
    )
    with pytest.raises(
        ConfigError, match=r"run.steps is 4, and .*step-00000006 has made 6; expected at least"
    ):
        train(small(**WITH_DISCRIMINATOR, run__steps=4), finished_run, CPU, resume=True)
    with pytest.raises(ConfigError, match="use a multiple of 3"):
        train(small(optimizer__batch=4, optimizer__accumulate=3), tmp_path / "run", CPU)


def test_refused_settings_leave_those_of_before(
    copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = WITH_DISCRIMINATOR | {"run__steps": 9}
    before = (copied_run / "config.toml").read_bytes()
    nowhere = {"validation__folder": str(tmp_path / "typo")}
    with pytest.raises(DataError, match="no such folder of videos"):
        train(small(**settings, **nowhere), copied_run, CPU, resume=True)
    with monkeypatch.context() as without, pytest.raises(MissingExtraError, match="tensorboard"):
        without.setitem(sys.modules, "torch.utils.tensorboard", None)
        train(small(**settings, run__tensorboard=True), copied_run, CPU, resume=True)
    assert (copied_run / "config.toml").read_bytes() == before
    assert train(TrainingConfig.load(copied_run / "config.toml"), copied_run, CPU, resume=True).finished
    with pytest.raises(DataError, match="no such folder of videos"):
        train(small(**nowhere), tmp_path / "new", CPU)
    assert not (tmp_path / "new" / "config.toml").exists()


def test_longer_run_resumes_and_keeps_fewer_checkpoints(copied_run: Path) -> None:
    # With all that a lack of memory advises to change.
    frugal = {"run__activation_checkpointing": True, "loss__perceptual_frames": 1, "run__keep": 1}
    result = train(small(**WITH_DISCRIMINATOR, **frugal, run__steps=7), copied_run, CPU, resume=True)
    assert (result.step, result.finished) == (7, True)
    assert steps_kept(copied_run) == [7]


def test_run_steered_past_divergence_reports_the_change(
    copied_run: Path, tmp_path: Path, program: Program
) -> None:
    steered = WITH_DISCRIMINATOR | {"optimizer__learning_rate": 5e-4, "optimizer__clip_norm": 1.5}
    keys = ("optimizer.learning_rate", "optimizer.clip_norm", "optimizer.schedule")
    with pytest.raises(ConfigError, match=r"made with another optimizer\.schedule, so"):
        config = small(**steered, run__steps=7, optimizer__schedule="constant")
        train(config, copied_run, CPU, resume=True, steering=keys)
    # Only on purpose: not because a configuration or a forgotten option differs.
    expected = (
        r"made with another optimizer\.learning_rate, so .*; it was optimizer\.learning_rate=0\.001, and"
        r" changes if it is given with --set"
    )
    with pytest.raises(ConfigError, match=expected):
        train(small(**steered, run__steps=7), copied_run, CPU, resume=True, steering=keys[1:])
    assert resume_notices(small(**steered, run__steps=7), copied_run, steering=keys) == [
        f"optimizer.learning_rate is 0.0005 and was 0.001{OTHERWISE}",
        f"optimizer.clip_norm is 1.5 and was 0.0{OTHERWISE}",
    ]
    assert 0 < read_metrics(copied_run, "train")[-1]["learning_rate"] <= 5e-4
    assert resume_notices(small(**steered, run__steps=8), copied_run) == []
    written = write_config(small(**steered, run__steps=9), tmp_path / "x.toml")
    command = ("train", written, "--out", copied_run, "--resume")
    outcome = program(*command, "--set", "optimizer.learning_rate=1e-4", "--json")
    assert outcome.report["step"] == 9
    assert "optimizer.learning_rate is 0.0001 and was 0.0005; the run continues" in outcome.err


def test_run_resumed_with_another_number_of_processes_reports_it(copied_run: Path) -> None:
    path = copied_run / "checkpoints" / "step-00000006" / "training.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert facts.pop("processes") == 1
    del facts["files"], facts["sha256"]  # as earlier versions wrote it
    expected = f"there were 2 processes before, and there are 1{OTHERWISE}"
    for recorded, lines in (({}, []), ({"processes": 1}, []), ({"processes": 2}, [expected])):
        path.write_text(json.dumps(facts | recorded), encoding="utf-8")
        assert resume_notices(small(**WITH_DISCRIMINATOR), copied_run) == lines


def test_run_resumed_on_changed_videos_reports_it(tmp_path: Path) -> None:
    videos, run = make_videos(tmp_path / "videos", "a.mp4"), tmp_path / "run"
    first: list[str] = []
    train(folder_settings(videos), run, CPU, watcher=Watcher(notice=first.append))
    assert first == ["validation.folder is not set, so nothing is validated"]
    (videos / "a.mp4").touch()
    assert resume_notices(folder_settings(videos), run) == first
    save(videos / "b.mp4", clip(7))
    lines = resume_notices(folder_settings(videos), run)
    assert lines == [*first, f"the videos below {videos} are not those of before{OTHERWISE}"]


def test_run_resumed_with_another_initial_model_reports_it(copied_run: Path) -> None:
    assert resume_notices(small(**WITH_DISCRIMINATOR, run__initial="elsewhere"), copied_run) == [
        "run.initial is 'elsewhere' and was ''; only a new run starts from it, this one resumes"
    ]


def test_resuming_without_a_checkpoint_begins_and_reports_it(tmp_path: Path) -> None:
    config = small(run__steps=1, validation__every=0, validation__clips=1)
    [line] = resume_notices(config, tmp_path)
    assert line == f"there is no checkpoint in {tmp_path} to go on from; training begins at step 0"


def test_second_process_in_a_directory_raises(tmp_path: Path, program: Program) -> None:
    run, config = tmp_path / "run", write_config(small(), tmp_path / "small.toml")
    run.mkdir()
    with (run / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        complaint = program.refused("train", config, "--out", run)
    assert complaint == (
        f"wfvae train: another process trains in {run}; wait for it or stop it, or choose another --out"
    )
    assert list(run.iterdir()) == [run / ".lock"]
    (tmp_path / "other" / ".lock").mkdir(parents=True)
    with pytest.raises(ResourceError, match=r"cannot write .*other.\.lock: "):
        train(small(), tmp_path / "other", CPU)


@pytest.mark.parametrize("inner", ["data", "validation"])
def test_validation_folder_overlapping_training_folder_is_refused(
    tmp_path: Path, program: Program, inner: str
) -> None:
    outer = make_videos(tmp_path / "videos", "a.mp4")
    folders = {"data": outer, "validation": outer} | {inner: make_videos(outer / "in", "b.mp4")}
    settings = folder_settings(folders["data"], validation__folder=str(folders["validation"]))
    config = write_config(settings, tmp_path / "x.toml")
    complaint = program.refused("train", config, "--out", tmp_path / "run")
    assert "so videos would be in both; keep them in folders apart" in complaint


@pytest.mark.parametrize("key", ["data", "validation"])
def test_run_in_a_folder_of_videos_is_refused_and_writes_nothing(
    tmp_path: Path, program: Program, key: str
) -> None:
    folders = {name: make_videos(tmp_path / name, "a.mp4") for name in ("data", "validation")}
    settings = folder_settings(folders["data"], validation__folder=str(folders["validation"]))
    config = write_config(settings, tmp_path / "x.toml")
    (tmp_path / "link").symlink_to(folders[key])
    for out in (folders[key], folders[key] / "runs" / "1", tmp_path / "link" / "run"):
        complaint = program.refused("train", config, "--out", out)
        assert f"directory '{out}' lies in {key}.folder, '{folders[key]}'" in complaint
        assert complaint.endswith(f"choose an --out outside {key}.folder")
    assert [path.name for path in folders[key].rglob("*")] == ["a.mp4"]
