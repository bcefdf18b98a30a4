"""Training runs: exact resumption, processes, accumulation, faults, and what comes out. Through the
real program where it matters.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import multiprocessing
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fixtures.numbered_videos import write_numbered
from fixtures.program import Program, clip, on_terminal, save, start_process, wait_for
from wfvae.cli import main as cli
from wfvae.errors import CheckpointError, ConfigError, DataError, MissingExtraError, TrainingError
from wfvae.metrics.perceptual import load_lpips
from wfvae.model.causal import CausalConv3d
from wfvae.model.config import WFVAEConfig
from wfvae.model.vae import WFVAE
from wfvae.spec.runs import newest_of_run
from wfvae.train import checkpoints
from wfvae.train.bf16_support import computes_in_bf16
from wfvae.train.checkpoints import write_checkpoint
from wfvae.train.config import TrainingConfig
from wfvae.train.data import BadClipLedger, Batch, BatchStream, ProceduralClips, VideoFolder, held_out
from wfvae.train.discriminator import PatchDiscriminator3D
from wfvae.train.loop import Watcher, train
from wfvae.train.losses import hinge_discriminator_loss
from wfvae.train.metrics import Metrics, read_metrics
from wfvae.train.perceptual import PerceptualLoss
from wfvae.train.sources import training_source, validation_source
from wfvae.train.state import TrainingState
from wfvae.train.step import NotFiniteError, Trainer, learning_rate
from wfvae.train.strides import Strides
from wfvae.train.validation import NotFiniteScoresError, Scores, validate
from wfvae.train.world import World, processes_here

CPU = World(0, 1, torch.device("cpu"))
SMALL = {
    "model": {
        "preset": "tiny",
        "base_channels": 8,
        "latent_dim": 4,
        "encoder_energy_flow_hidden_size": 8,
        "decoder_energy_flow_hidden_size": 8,
        "encoder_num_resblocks": 1,
        "decoder_num_resblocks": 1,
        "dropout": 0.1,
    },
    "data": {
        "kind": "procedural",
        "frames": 5,
        "height": 32,
        "width": 32,
        "clips": 10,
        "workers": 0,
        "noise": 2.0,
        "scenes": ["clouds", "titles"],
    },
    "loss": {
        "perceptual": "none",
        "adversarial": False,
        "discriminator_channels": 8,
        "discriminator_layers": 3,
    },
    "optimizer": {
        "learning_rate": 1e-3,
        "batch": 2,
        "ema_decay": 0.9,
        "schedule": "cosine",
        "warmup_steps": 2,
    },
    "run": {"steps": 6, "precision": "fp32", "threads": 1, "checkpoint_every": 2, "log_every": 1},
    "validation": {"every": 3, "clips": 2, "frames": 5, "pictures": 1},
}


def small(**changes: object) -> TrainingConfig:
    """The small configuration; `section__key=value` changes it."""
    data = {name: dict(section) for name, section in SMALL.items()}
    for key, value in changes.items():
        section, name = key.split("__")
        data[section][name] = value
    return TrainingConfig.from_dict(data)


def written(config: TrainingConfig, path: Path) -> Path:
    path.write_text(config.to_toml(), encoding="utf-8")
    return path


def newest(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def last_state(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").iterdir())
    return load_file(newest / "training.safetensors")


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 100
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the configuration has it for the program: the bits of a run depend on the number of
    threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with everything that has a state: discriminator, dropout, moving average."""
    run = tmp_path_factory.mktemp("run")
    train(small(loss__adversarial=True), run, CPU)
    return run


def test_a_run_leaves_checkpoints_a_record_scores_and_pictures(finished_run: Path) -> None:
    steps = sorted(path.name for path in (finished_run / "checkpoints").iterdir())
    assert steps == [
        "step-00000003",
        "step-00000004",
        "step-00000006",
    ]  # the newest three: of every second step, and of validations
    assert TrainingConfig.load(finished_run / "config.toml") == small(loss__adversarial=True)
    lines = read_metrics(finished_run, "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["adversarial_weight"] > 0 and line["discriminator"] >= 0 for line in lines)
    assert sum(line["discriminator"] for line in lines) > 0
    for line in lines:
        parts = (
            line["reconstruction"]
            + 1e-6 * line["kl"]
            + 0.1 * line["wavelet"]
            + line["adversarial_weight"] * line["adversarial"]
        )
        assert line["total"] == pytest.approx(parts, rel=1e-4)
        assert 0 < line["compute"] <= 1
    scores = read_metrics(finished_run, "validation")
    assert [line["step"] for line in scores] == [3, 6]
    assert all(0 < line["psnr_db"] < 50 and -1 <= line["ssim"] <= 1 for line in scores)
    with Image.open(finished_run / "validation" / "step-00000006" / "clip-0.png") as picture:
        assert picture.size == (5 * 32, 3 * 32)
        pixels = np.asarray(picture)
    # The first row is the clip itself; the third is grey where nothing differs, and here much
    # differs.
    assert pixels[:32].std() > 10
    assert pixels[64:].std() > 5


def test_weights_average_and_discriminator_have_moved(finished_run: Path) -> None:
    states = [
        load_file(path / "training.safetensors") for path in sorted((finished_run / "checkpoints").iterdir())
    ]
    for prefix in ("model", "average", "discriminator", "optimizer", "discriminator_optimizer"):
        names = [
            name
            for name in states[0]
            if name.startswith(f"{prefix}.") and name.endswith(("weight", "exp_avg"))
        ]
        names = [name for name in names if "wavelet" not in name]
        moved = [name for name in names if not torch.equal(states[0][name], states[-1][name])]
        assert len(moved) > 0.9 * len(names) > 0, prefix


def test_the_average_is_that_of_its_definition(tmp_path: Path) -> None:
    # Without weight decay of the record itself: average_n = 0.9 average_(n-1) + 0.1 model_n, from
    # the checkpoints of every step.
    run = tmp_path / "run"
    train(small(run__checkpoint_every=1, run__keep=10, run__steps=3), run, CPU)
    states = [load_file(path / "training.safetensors") for path in sorted((run / "checkpoints").iterdir())]
    for before, after in itertools.pairwise(states):
        for name in [n for n in after if n.startswith("average.") and n.endswith(".bias")]:
            expected = (
                0.9 * before[name].double() + 0.1 * after["model." + name.removeprefix("average.")].double()
            )
            assert torch.allclose(after[name].double(), expected, atol=1e-7)


def validated(
    model: WFVAE, config: TrainingConfig, run: Path, perceptual: PerceptualLoss | None = None
) -> Scores:
    """What a validation of that run gives for a model."""
    source = validation_source(config, run)
    assert source is not None
    return validate(model, held_out(source, config.validation.clips), perceptual)


def test_what_is_validated_are_the_averaged_weights(finished_run: Path) -> None:
    lines = read_metrics(finished_run, "validation")
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        checkpoint = finished_run / "checkpoints" / f"step-{line['step']:08d}"
        state, model = load_file(checkpoint / "training.safetensors"), WFVAE.from_pretrained(checkpoint)
        scores = {}
        for prefix in ("average", "model"):
            model.load_state_dict({name: state[f"{prefix}.{name}"] for name in model.state_dict()})
            scores[prefix] = validated(model, small(loss__adversarial=True), finished_run)
        assert line["psnr_db"] == pytest.approx(scores["average"].psnr_db, rel=1e-4)
        assert line["ssim"] == pytest.approx(scores["average"].ssim, rel=1e-4)
        assert abs(line["psnr_db"] - scores["model"].psnr_db) > 1e-2, "otherwise it could be either"


def test_a_stopped_run_goes_on_to_the_same_bits(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: list[int] = []
    config = small(loss__adversarial=True)
    result = train(
        config, run, CPU, watcher=Watcher(lambda done, *_: seen.append(done), stopping=lambda: len(seen) == 3)
    )
    assert (result.step, result.finished) == (3, False)
    result = train(
        small(loss__adversarial=True, data__workers=1), run, CPU, resume=True
    )  # the number of workers is free
    assert (result.step, result.finished) == (6, True)
    assert_same_bits(last_state(finished_run), last_state(run))
    times = ("frames_per_second", "data_wait", "compute", "eta_seconds")
    records = [
        [{k: v for k, v in line.items() if k not in times} for line in read_metrics(r, "train")]
        for r in (finished_run, run)
    ]
    assert records[0] == records[1]


def test_a_discriminator_that_starts_later_is_resumed_before_and_after(tmp_path: Path) -> None:
    config = small(
        loss__adversarial=True,
        loss__adversarial_start=2,
        run__steps=4,
        run__checkpoint_every=1,
        run__keep=9,
        validation__every=0,
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config, whole, CPU)
    lines = read_metrics(whole, "train")
    assert [line["adversarial_weight"] > 0 for line in lines] == [False, False, True, True]
    assert ["discriminator" in line for line in lines] == [False, False, True, True]
    asked = iter([False, True, False, False, True])  # after the first step, and after two more
    for stop in (1, 3):
        assert (
            train(config, cut, CPU, resume=True, watcher=Watcher(stopping=lambda: next(asked))).step == stop
        )
    assert train(config, cut, CPU, resume=True).finished
    assert_same_bits(last_state(whole), last_state(cut))


@pytest.mark.parametrize("moment", [2, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (1, 3))])
def test_a_killed_run_goes_on_to_the_same_bits(
    moment: int, finished_run: Path, tmp_path: Path, program: Program
) -> None:
    _kill_and_resume(small(loss__adversarial=True), moment, finished_run, tmp_path, program)


@pytest.mark.slow
def test_a_killed_run_with_a_worker_that_cuts_many_crops_goes_on_to_the_same_bits(
    tmp_path: Path, program: Program
) -> None:
    size = {
        "data__height": 48,
        "data__width": 48,
        "data__crop_height": 32,
        "data__crop_width": 32,
        "validation__height": 32,
    }
    config = small(**size, validation__width=32, data__workers=1, data__crops_per_clip=3)
    train(config, tmp_path / "whole", CPU)
    _kill_and_resume(config, 2, tmp_path / "whole", tmp_path, program)


@pytest.mark.slow
def test_a_killed_run_on_videos_goes_on_to_the_same_bits(tmp_path: Path, program: Program) -> None:
    """Places, pieces and flips of files are drawn, and a worker reads ahead."""
    (tmp_path / "videos").mkdir()
    for number in range(3):
        save(tmp_path / "videos" / f"{number}.mp4", clip(20 + number, 48, 64, seed=number))
    config = small(
        data__kind="folder",
        data__folder=str(tmp_path / "videos"),
        data__noise=0.0,
        data__workers=1,
        validation__every=0,
    )
    train(config, tmp_path / "whole", CPU)
    _kill_and_resume(config, 2, tmp_path / "whole", tmp_path, program)


def _kill_and_resume(
    training: TrainingConfig, moment: int, finished_run: Path, tmp_path: Path, program: Program
) -> None:
    run, config = tmp_path / "run", written(training, tmp_path / "small.toml")
    process = start_process("train", config, "--out", run)
    end = time.monotonic() + 60
    # Killed wherever it is once it has logged a step; with luck in the middle of writing a
    # checkpoint.
    while (process.poll() is None and not (run / "metrics.jsonl").is_file()) or _logged(run) < 2 * moment - 1:
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # until its workers have ended, too
    assert process.returncode == -signal.SIGKILL
    resumed = program(
        "train", config, "--out", run, "--resume", "--json"
    )  # tells if there is no checkpoint yet
    assert (resumed.code, resumed.report["step"], resumed.report["finished"]) == (0, 6, True), resumed
    # At moment 1 it may have been killed before its first checkpoint.
    assert moment == 1 or "training begins at step 0" not in resumed.err
    assert_same_bits(last_state(finished_run), last_state(run))
    assert not [path for path in (run / "checkpoints").iterdir() if path.suffix == ".tmp"]


def _logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count('"train"') if path.is_file() else 0


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        (signal.SIGINT, False),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, True, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_and_a_polite_kill_keep_the_work(
    number: signal.Signals, whole_group: bool, tmp_path: Path
) -> None:
    """To the whole group, twice: torchrun sends on the SIGTERM that has reached all, a shell the
    SIGHUP of its terminal.
    """
    settings = small(run__steps=100_000, run__checkpoint_every=100_000, data__workers=int(whole_group))
    run, config = tmp_path / "run", written(settings, tmp_path / "small.toml")
    process = start_process("train", config, "--out", run, start_new_session=whole_group)
    end = time.monotonic() + 60
    while _logged(run) < 2:
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    if whole_group:
        for _ in range(2):  # torchrun, reached by the same signal, sends it on
            os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(rb"interrupted; .*step-\d{8} is whole, go on with --resume", err)
    assert b"stopping after this step and its checkpoint; Ctrl-C (again) to stop at once" in err
    assert len(err.splitlines()) == 2, err
    [checkpoint] = (run / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert step >= 2
    assert b"of 100000" in out
    on = settings.with_changes(run={"steps": step + 1})
    assert train(on, run, CPU, resume=True).step == step + 1


def test_an_interruption_while_torch_is_loaded_tells_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading:
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "wfvae.train.loop", Loading())
    step = tmp_path / "old" / "checkpoints" / "step-00000003"
    step.mkdir(parents=True)
    for name, kept in (("new", "nothing was saved yet"), ("old", f"{step} is whole, go on with --resume")):
        assert cli.main(["train", "tiny-quick", "--out", str(tmp_path / name)]) == 130
        assert capsys.readouterr().err == f"wfvae train: interrupted; {kept}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interruption_while_workers_start_is_one_line(number: signal.Signals, tmp_path: Path) -> None:
    """To the whole group, as the terminal sends it; the fork server is loading torch then, and
    looks after no signals yet.
    """
    config = written(
        small(data__workers=2, run__steps=100_000, run__checkpoint_every=100_000), tmp_path / "small.toml"
    )
    process = start_process("train", config, "--out", tmp_path / "run", start_new_session=True)

    def server() -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(process.pid).children()
            if "forkserver" in " ".join(child.cmdline())
        ]

    assert wait_for(server, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.decode() == "wfvae train: interrupted; nothing was saved yet\n"


def test_a_terminal_that_is_closed_interrupts_a_run(tmp_path: Path) -> None:
    """With its bar, which has nowhere to be taken away from then."""
    run, config = (
        tmp_path / "run",
        written(small(run__steps=100_000, run__checkpoint_every=100_000), tmp_path / "small.toml"),
    )
    leader, follower = pty.openpty()

    def owns() -> None:
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    process = start_process(
        "train",
        config,
        "--out",
        run,
        stdin=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=owns,
    )
    os.close(follower)
    wait_for(lambda: os.read(leader, 65536) and _logged(run) >= 2, process)
    os.close(leader)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [path.name.startswith("step-") for path in (run / "checkpoints").iterdir()] == [True]


@pytest.mark.slow
def test_the_progress_of_a_run_shows_on_a_terminal_and_nowhere_else(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(small(validation__every=0, validation__clips=1, run__steps=2), tmp_path / "small.toml")
    code, text = on_terminal("train", config, "--out", tmp_path / "one", "--json")
    assert code == 0
    losses = r"  reconstruction \d\S*  kl \d\S*  wavelet \d\S*"
    pattern = r"training .*[12]/2 \d:\d\d:\d\d \d+\.\d frames/s  data wait \d+%"
    assert re.search(pattern + losses, text), text
    code, text = on_terminal("train", config, "--out", tmp_path / "narrow", "--json", columns=80)
    assert code == 0 and re.search(pattern + r"  recons\w*…", text), text  # losses give way
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert program.done("train", config, "--out", tmp_path / "other")["finished"]


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    plain = {"model__dropout": 0.0, "run__steps": 3, "optimizer__batch": 4}
    train(small(**plain), whole, CPU)
    train(small(**plain, optimizer__accumulate=2), parts, CPU)
    _assert_close(last_state(whole), last_state(parts))
    _assert_same_gradients(whole, parts)


def test_recomputed_activations_give_the_same_weights(tmp_path: Path) -> None:
    plain, frugal = tmp_path / "plain", tmp_path / "frugal"
    train(small(run__steps=3), plain, CPU)
    train(small(run__steps=3, run__activation_checkpointing=True), frugal, CPU)
    _assert_close(last_state(plain), last_state(frugal))
    assert WFVAE.from_pretrained(frugal).config == WFVAE.from_pretrained(plain).config


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "accumulate"), [(False, 1), (True, 1), (False, 2)])
def test_two_processes_equal_one_with_the_whole_batch(
    recompute: bool, accumulate: int, tmp_path: Path
) -> None:
    """The single process keeps its activations and has the batch in one part, as neither changes
    anything but memory.
    """
    config = small(model__dropout=0.0, run__steps=3, optimizer__batch=4)
    train(config, tmp_path / "one", CPU)
    changed = config.with_changes(
        optimizer={"accumulate": accumulate}, run={"activation_checkpointing": recompute}
    )
    assert two_processes(changed, tmp_path) == 3
    _assert_close(last_state(tmp_path / "one"), last_state(tmp_path / "two"))
    _assert_same_gradients(tmp_path / "one", tmp_path / "two")
    one, two = (read_metrics(tmp_path / name, "train") for name in ("one", "two"))
    assert [line["total"] for line in one] == pytest.approx([line["total"] for line in two], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "accumulate"), [(False, 1), (False, 2), (True, 2)])
def test_two_processes_resumed_end_with_the_bits_of_an_uninterrupted_run(
    recompute: bool, accumulate: int, tmp_path: Path
) -> None:
    """All processes resume from what the first one had, so had they drifted apart, the others would
    end otherwise now.
    """
    plain = small(
        run__steps=4,
        run__checkpoint_every=2,
        optimizer__batch=4,
        optimizer__accumulate=accumulate,
        loss__adversarial=True,
    )
    config = plain.with_changes(run={"activation_checkpointing": recompute})
    assert two_processes(config, tmp_path) == 4
    whole = last_state(tmp_path / "two")
    logged = read_metrics(tmp_path / "two", "train")
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000004")
    assert 0 < newest(tmp_path / "two") < 4
    done = run_two_processes(config, tmp_path, "--resume")
    assert json.loads(done.stdout)["step"] == 4, done.stderr.decode()
    again = read_metrics(tmp_path / "two", "train")[len(logged) :]
    assert [line["step"] for line in again] in ([], [4]), "it went on, and did not begin anew"
    assert_same_bits(last_state(tmp_path / "two"), whole)


def test_starting_from_a_run_that_has_not_ended_is_told(tmp_path: Path) -> None:
    begun = small(run__steps=4, run__checkpoint_every=1, validation__every=0)
    train(
        begun,
        tmp_path / "begun",
        CPU,
        watcher=Watcher(stopping=lambda: (tmp_path / "begun/checkpoints/step-00000001").is_dir()),
    )
    told: list[str] = []
    again = small(run__steps=1, run__initial=str(tmp_path / "begun"), validation__every=0)
    train(again, tmp_path / "again", CPU, watcher=Watcher(notice=told.append))
    assert told == [f"run.initial {tmp_path / 'begun'} has not ended: this run starts from its step 1 of 4"]
    told.clear()
    train(
        again.with_changes(run={"initial": str(tmp_path / "again")}),
        tmp_path / "third",
        CPU,
        watcher=Watcher(notice=told.append),
    )
    assert told == []


def test_the_strides_of_the_settings_reach_training_and_validation(tmp_path: Path) -> None:
    for name in ("videos", "others"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "a.mp4", clip(30))
    folders = {
        "data__kind": "folder",
        "data__folder": str(tmp_path / "videos"),
        "validation__folder": str(tmp_path / "others"),
    }
    for options in ({}, folders):
        config = small(data__stride=3, data__min_stride=2, data__stills=0.25, **options)
        for source, stills in (
            (training_source(config, tmp_path), 0.25),
            (validation_source(config, tmp_path), 0.0),
        ):
            assert isinstance(source, ProceduralClips | VideoFolder)
            assert source.strides == Strides(3, 2, stills)


@pytest.mark.slow
def test_a_fault_of_the_second_process_between_steps_costs_no_step(tmp_path: Path) -> None:
    # A video that ends early: its header tells of more frames than there are, so that some of its
    # clips can be had and others not.
    videos = tmp_path / "videos"
    videos.mkdir()
    cut = write_numbered(videos / "cut.mp4", 60, muxing={"movflags": "faststart"})
    os.truncate(cut, cut.stat().st_size * 3 // 4)
    save(videos / "good.mp4", clip(12))
    config = small(
        data__kind="folder",
        data__folder=str(videos),
        data__bad_files=0,
        data__noise=0.0,
        run__steps=50,
        validation__every=0,
    )
    source = training_source(config, tmp_path)

    def good_steps(seed: int, rank: int) -> int:
        with BatchStream(source, 1, seed, rank, 2, ledger=BadClipLedger(0)) as stream, suppress(DataError):
            for _ in range(20):
                next(stream)
        return stream.step

    seed, good = next(
        (seed, good_steps(seed, 1)) for seed in range(100) if 1 < good_steps(seed, 1) < good_steps(seed, 0)
    )
    done = run_two_processes(config.with_changes(run={"seed": seed, "checkpoint_every": 100}), tmp_path)
    assert done.returncode != 0
    told = complaints(done)
    assert sum("more than the limit of 0; the last is 'cut.mp4'" in line for line in told) == 1
    assert all(
        "limit of 0" in line or "another process of this run has ended" in line or "interrupted" in line
        for line in told
    )
    assert newest(tmp_path / "two") == good


def run_with_a_fault(fault: str, tmp_path: Path) -> tuple[list[str], str]:
    """A run of two processes whose second takes the value of `fault` for the clips of its third
    step: complaints, and all that was said.
    """
    program = tmp_path / "broken.py"
    program.write_text(
        "import os, signal, sys\n"
        "from wfvae.cli import main as cli\n"
        "from wfvae.train import step\n"
        "def to_model_range(frames):\n"
        "    made.append(frames)\n"
        f"    return {fault} if os.environ['RANK'] == '1' and len(made) == 3 else before(frames)\n"
        "made, before, step.to_model_range = [], step.to_model_range, to_model_range\n"
        "sys.exit(cli.main())\n",
        encoding="utf-8",
    )
    done = run_two_processes(
        small(run__checkpoint_every=100, validation__every=0), tmp_path, program=(str(program),)
    )
    assert done.returncode != 0
    return complaints(done), done.stderr.decode()


@pytest.mark.slow
def test_nan_of_the_second_process_costs_no_step_and_is_told_by_it(tmp_path: Path) -> None:
    told, _ = run_with_a_fault("before(frames) * float('nan')", tmp_path)
    assert (
        sum(
            "step 3: in the autoencoder, " in line and "step-00000002; --resume would" in line
            for line in told
        )
        == 1
    ), told
    assert all(
        "step 3" in line or "another process of this run has ended" in line or "interrupted" in line
        for line in told
    ), told
    assert newest(tmp_path / "two") == 2


@pytest.mark.slow
def test_a_process_that_is_killed_costs_no_step_of_the_others(tmp_path: Path) -> None:
    told, said = run_with_a_fault("os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert all(
        "another process of this run has ended" in line or "interrupted" in line or "stopping" in line
        for line in told
    ), told
    assert told and newest(tmp_path / "two") == 2
    assert "FutureWarning" not in said


@pytest.mark.slow
def test_the_fault_of_one_process_is_told_as_one_fault(tmp_path: Path) -> None:
    done = run_two_processes(small(data__kind="folder", data__folder=str(tmp_path / "nowhere")), tmp_path)
    assert done.returncode != 0
    # The other process has one line, or is ended before it comes to it.
    told = complaints(done)
    assert sum("no such folder of videos" in line for line in told) == 1
    assert all(
        any(
            known in line
            for known in ("no such folder", "another process of this run has ended", "interrupted")
        )
        for line in told
    )


def complaints(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """What the processes of a run said that are not notices; torchrun has a lot to say as well."""
    said = [line for line in done.stderr.decode().splitlines() if line.startswith("wfvae train:")]
    return [line for line in said if ": skipped " not in line and "validation.folder is not set" not in line]


def two_processes(config: TrainingConfig, tmp_path: Path) -> int:
    """The step that a run of two processes came to; it is in `tmp_path / "two"`."""
    done = run_two_processes(config, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    step: int = json.loads(done.stdout)["step"]  # one report, of the first process
    return step


def run_two_processes(
    config: TrainingConfig, tmp_path: Path, *options: str, program: tuple[str, ...] = ("-m", "wfvae")
) -> subprocess.CompletedProcess[bytes]:
    """`wfvae train` by torchrun."""
    path = written(config, tmp_path / "small.toml")
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
    ]
    launcher += [
        "--rdzv-endpoint",
        "localhost:0",
        *program,
        "train",
        str(path),
        "--out",
        str(tmp_path / "two"),
        "--json",
        *options,
    ]
    return subprocess.run(
        launcher, capture_output=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def _assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Adam's first steps are nearly signs of gradients, so rounding may turn single weights; whole
    tensors must agree.
    """
    assert a.keys() == b.keys()
    for name in a:
        # The bias of the keys has no gradient but rounding (a softmax does not see it), which Adam
        # makes into steps of full size.
        if name.startswith(("model.", "average.")) and not name.endswith(".k.conv.bias"):
            distance, size = (a[name] - b[name]).norm(), a[name].norm()
            assert distance <= 1e-3 * size + 1e-5, name


def _assert_same_gradients(a: Path, b: Path) -> None:
    """Of two runs; AdamW's steps hardly depend on the scale of the gradients, its first moments and
    their norms do.
    """
    norms = [[line["gradient_norm"] for line in read_metrics(run, "train")] for run in (a, b)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    states = [
        {name: tensor for name, tensor in last_state(run).items() if name.endswith(".exp_avg")}
        for run in (a, b)
    ]
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) > 50
    largest = max(float(tensor.norm()) for tensor in states[0].values())
    for name, moment in states[0].items():
        assert float((moment - states[1][name]).norm()) <= 1e-2 * float(moment.norm()) + 1e-4 * largest, name


def test_batches_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use a multiple of 3"):
        train(small(optimizer__batch=4, optimizer__accumulate=3), tmp_path, CPU)


def test_resuming_where_there_is_nothing_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    train(
        small(run__steps=1, validation__every=0, validation__clips=1),
        tmp_path / "new",
        CPU,
        resume=True,
        watcher=Watcher(notice=lines.append),
    )
    assert (
        len(lines) == 1
        and "there is no checkpoint in" in lines[0]
        and "new to go on from; training begins at step 0" in lines[0]
    )


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(
    finished_run: Path, tmp_path: Path, program: Program
) -> None:
    config = written(small(loss__adversarial=True), tmp_path / "small.toml")
    assert "go on with --resume, or choose another --out" in program.refused(
        "train", config, "--out", finished_run
    )
    said = program.refused(
        "train",
        config,
        "--out",
        finished_run,
        "--resume",
        "--set",
        "optimizer.batch=4",
        "--set",
        "run.seed=1",
    )
    assert "another optimizer.batch, run.seed" in said


def test_settings_that_are_refused_leave_those_of_before(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = tmp_path / "run", {"loss__adversarial": True, "run__steps": 9}
    shutil.copytree(finished_run, run)
    before = (run / "config.toml").read_bytes()
    with pytest.raises(DataError, match="no such folder of videos"):
        train(small(**settings, validation__folder=str(tmp_path / "typo")), run, CPU, resume=True)
    with monkeypatch.context() as without, pytest.raises(MissingExtraError, match="tensorboard"):
        without.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
        train(small(**settings, run__tensorboard=True), run, CPU, resume=True)
    assert (run / "config.toml").read_bytes() == before
    assert train(TrainingConfig.load(run / "config.toml"), run, CPU, resume=True).finished
    with pytest.raises(DataError, match="no such folder of videos"):
        train(small(validation__folder=str(tmp_path / "typo")), tmp_path / "new", CPU)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_a_run_is_not_resumed_to_an_earlier_step(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with pytest.raises(
        ConfigError, match=r"run.steps is 4, and .*step-00000006 has made 6; expected at least as many"
    ):
        train(small(loss__adversarial=True, run__steps=4), run, CPU, resume=True)


def test_another_initial_model_of_a_run_that_goes_on_is_told(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert notices(small(loss__adversarial=True, run__initial="elsewhere"), run) == [
        "run.initial is 'elsewhere' and was ''; only a new run starts from it, this one goes on"
    ]


def test_a_missing_stage_before_is_told_as_such(tmp_path: Path) -> None:
    expected = (
        r"run\.initial, what this run starts from: .*nowhere.*; train the stage before first, or name .*"
        r" --set run\.initial=RUN"
    )
    with pytest.raises(CheckpointError, match=expected):
        train(small(run__initial=str(tmp_path / "nowhere")), tmp_path / "run", CPU)


def notices(
    config: TrainingConfig, run: Path, world: World = CPU, steering: Collection[str] = ()
) -> list[str]:
    """What is told when a run is resumed."""
    lines: list[str] = []
    train(config, run, world, resume=True, steering=steering, watcher=Watcher(notice=lines.append))
    return lines


def test_a_run_may_be_steered_which_is_told(finished_run: Path, tmp_path: Path, program: Program) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    steered = {
        "loss__adversarial": True,
        "optimizer__learning_rate": 5e-4,
        "optimizer__clip_norm": 1.5,
        "optimizer__schedule": "constant",
    }
    keys = ("optimizer.learning_rate", "optimizer.clip_norm", "optimizer.schedule")
    with pytest.raises(ConfigError, match=r"made with another optimizer\.schedule, so"):
        train(small(**steered, run__steps=7), run, CPU, resume=True, steering=keys)
    del steered["optimizer__schedule"]
    # Not because a configuration is another one, or because an option of the first call was
    # forgotten.
    told = (
        r"made with another optimizer\.learning_rate, so .*; it was optimizer\.learning_rate=0\.001, and"
        r" changes if you say so with --set"
    )
    with pytest.raises(ConfigError, match=told):
        train(small(**steered, run__steps=7), run, CPU, resume=True, steering=keys[1:])
    lines = notices(small(**steered, run__steps=7), run, steering=keys)
    otherwise = "; the run goes on, but not as it would have without the interruption"
    assert lines == [
        f"optimizer.learning_rate is 0.0005 and was 0.001{otherwise}",
        f"optimizer.clip_norm is 1.5 and was 0.0{otherwise}",
    ]
    assert 0 < read_metrics(run, "train")[-1]["learning_rate"] <= 5e-4
    assert notices(small(**steered, run__steps=8), run) == []
    config = written(small(**steered, run__steps=9), tmp_path / "x.toml")
    said = program(
        "train", config, "--out", run, "--resume", "--set", "optimizer.learning_rate=1e-4", "--json"
    )
    assert said.report["step"] == 9
    assert "optimizer.learning_rate is 0.0001 and was 0.0005; the run goes on" in said.err


def test_another_number_of_processes_is_told(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    path = run / "checkpoints" / "step-00000006" / "training.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert facts.pop("processes") == 1
    for processes, told in (
        (None, []),
        (1, []),
        (2, ["there were 2 processes before, and now there are 1; the run goes on, but not as"]),
    ):
        path.write_text(
            json.dumps(facts | ({} if processes is None else {"processes": processes})), encoding="utf-8"
        )
        lines = notices(small(loss__adversarial=True), run)
        assert [line[: len(start)] for line, start in zip(lines, told, strict=True)] == told


def test_a_run_on_a_folder_without_a_validation_says_so(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    save(videos / "a.mp4", clip(6))
    lines: list[str] = []
    train(folder_settings(videos), tmp_path / "run", CPU, watcher=Watcher(notice=lines.append))
    assert lines == ["validation.folder is not set, so nothing is validated"]


def test_one_process_at_a_time_trains_in_a_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def intrude(*_: object) -> None:
        train(small(), run, CPU)

    with pytest.raises(
        TrainingError,
        match=r"another process trains in .*run; wait for it or stop it, or choose another --out",
    ):
        train(small(), run, CPU, watcher=Watcher(progress=intrude))
    assert train(small(), run, CPU, resume=True).finished
    (tmp_path / "other" / ".lock").mkdir(parents=True)
    with pytest.raises(
        TrainingError, match=r"cannot write the run directory .*other: .*; choose another --out"
    ):
        train(small(), tmp_path / "other", CPU)


def folder_settings(folder: Path, **changes: object) -> TrainingConfig:
    return small(data__kind="folder", data__folder=str(folder), data__noise=0.0, run__steps=2, **changes)


def test_a_folder_that_changed_before_a_run_is_resumed_is_told(tmp_path: Path) -> None:
    videos, run = tmp_path / "videos", tmp_path / "run"
    videos.mkdir()
    save(videos / "a.mp4", clip(6))
    train(folder_settings(videos), run, CPU)
    (videos / "a.mp4").touch()
    assert len(notices(folder_settings(videos), run)) == 1  # that there is no validation
    save(videos / "b.mp4", clip(7))
    lines = notices(folder_settings(videos), run)
    assert (
        len(lines) == 2
        and "are not those of before; the run goes on, but not as it would have without" in lines[1]
    )


@pytest.mark.parametrize("inner", ["data", "validation"])
def test_validation_in_the_training_folder_is_refused(tmp_path: Path, program: Program, inner: str) -> None:
    outer = tmp_path / "videos"
    (outer / "in").mkdir(parents=True)
    for name in ("a.mp4", "in/b.mp4"):
        save(outer / name, clip(6))
    folders = {"data": outer, "validation": outer} | {inner: outer / "in"}
    config = written(
        folder_settings(folders["data"], validation__folder=str(folders["validation"])), tmp_path / "x.toml"
    )
    assert "so videos would be in both; keep them in folders apart" in program.refused(
        "train", config, "--out", tmp_path / "run"
    )


@pytest.mark.parametrize("key", ["data", "validation"])
def test_a_run_in_a_folder_of_videos_is_refused_before_anything_is_made(
    tmp_path: Path, program: Program, key: str
) -> None:
    folders = {"data": tmp_path / "data", "validation": tmp_path / "validation"}
    for folder in folders.values():
        folder.mkdir()
        save(folder / "a.mp4", clip(6))
    config = written(
        folder_settings(folders["data"], validation__folder=str(folders["validation"])), tmp_path / "x.toml"
    )
    (tmp_path / "link").symlink_to(folders[key])
    for out in (folders[key], folders[key] / "runs" / "1", tmp_path / "link" / "run"):
        said = program.refused("train", config, "--out", out)
        assert f"directory '{out}' lies in {key}.folder, '{folders[key]}'" in said
        assert said.endswith(f"choose an --out outside {key}.folder")
    assert [path.name for path in folders[key].rglob("*")] == ["a.mp4"]


def test_longer_runs_may_be_resumed(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    result = train(small(loss__adversarial=True, run__steps=7, run__keep=1), run, CPU, resume=True)
    assert (result.step, result.finished) == (7, True)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000007"]


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        ("decoder.conv_out.bias", "total is nan"),
        ("encoder.conv_out.conv.bias", r"in the autoencoder, z has \d+ values that are NaN"),
    ],
)
def test_nan_stops_the_run_and_names_step_batch_and_checkpoint(
    finished_run: Path, tmp_path: Path, weight: str, found: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    path = run / "checkpoints" / "step-00000006" / "training.safetensors"
    tensors = load_file(path)
    tensors[f"model.{weight}"][:] = float("nan")
    save_file(tensors, path)
    pattern = (
        rf"^step 7: {found}.*; the batch held procedural.*last good checkpoint is .*step-00000006; --resume"
        r" would make this step "
    )
    with pytest.raises(TrainingError, match=pattern):
        train(small(loss__adversarial=True, run__steps=8), run, CPU, resume=True)
    assert max(p.name for p in (run / "checkpoints").iterdir()) == "step-00000006"


def test_nan_costs_no_step_and_no_checkpoint(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    config = small(loss__adversarial=True, run__checkpoint_every=2, run__keep=1, validation__every=0)
    broken: list[bool] = []

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return real_loss(real, fake) * (float("nan") if broken else 1.0)

    real_loss = hinge_discriminator_loss
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            TrainingError,
            match=(
                r"^step 4: discriminator is nan.*; the last good checkpoint is .*step-00000003; --resume"
                r" would"
            ),
        ),
    ):
        patch.setattr("wfvae.train.step.hinge_discriminator_loss", loss)
        train(config, run, CPU, watcher=Watcher(lambda done, *_: broken.append(True) if done == 3 else None))
    # The one before is kept, too, to go on from there in another way.
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert train(config, run, CPU, resume=True).finished
    assert_same_bits(last_state(finished_run), last_state(run))


class _Two(World):
    """A process that thinks it has a peer, which reports what `peer` says."""

    peer: dict[str, Any]

    def mean(self, value: Tensor) -> Tensor:
        return value * self.peer["mean"]

    def any(self, flag: bool) -> bool:
        return flag or self.peer["any"]


@pytest.mark.parametrize(
    "peer", [{"mean": float("nan"), "any": False}, {"mean": 1.0, "any": True}], ids=["losses", "latents"]
)
def test_nan_of_another_process_does_not_accuse_the_clips_of_this_one(peer: dict[str, Any]) -> None:
    config = small(loss__adversarial=True)
    world = _Two(0, 1, CPU.device)
    object.__setattr__(world, "peer", peer)
    trainer = Trainer(config, TrainingState.fresh(config, CPU.device), world, None)
    clips = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)
    with pytest.raises(NotFiniteError) as told:
        trainer.step([clips])
    assert told.value.elsewhere
    assert re.match(r"step 1: (in the autoencoder, latents are NaN or infinite|\w+ is nan)", str(told.value))
    peer.update(mean=1.0, any=False)
    trainer.step([clips])
    with torch.no_grad():
        trainer.state.model.decoder.conv_out.bias[:] = float("nan")
    with pytest.raises(NotFiniteError) as told:
        trainer.step([clips])
    assert not told.value.elsewhere


def test_a_broken_gradient_of_the_discriminator_changes_nothing() -> None:
    # Its loss is finite, so that only the gradient tells; written into a checkpoint it would break
    # every resumption.
    config = small(loss__adversarial=True)
    state = TrainingState.fresh(config, CPU.device)
    assert state.discriminator is not None
    head = state.discriminator.head.weight
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    trainer = Trainer(config, state, CPU, None)
    head.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: discriminator_gradient_norm is nan"):
        trainer.step([torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)])
    assert state.step == 0
    after = state.tensors()
    assert_same_bits(before, {name: after[name] for name in before})


def test_a_run_that_diverged_in_its_last_step_says_what_to_do(tmp_path: Path) -> None:
    """The step itself was fine; its weights are not."""
    changes = {"optimizer__learning_rate": 1e18, "optimizer__warmup_steps": 0, "optimizer__ema_decay": 0.0}
    config, run = small(**changes, run__steps=1), tmp_path / "run"
    advice = (
        r"the validation of step 1: (latents|reconstructions) are NaN or infinite; the run has diverged.*:"
        r" remove the newest of .*run."
    )
    for resume in (False, True):
        with pytest.raises(
            TrainingError,
            match=advice + "checkpoints, and --resume from an earlier one with --set optimizer.learning_rate",
        ):
            train(config, run, CPU, resume=resume)


@pytest.mark.parametrize(("part", "found"), [("encoder", "latents"), ("decoder", "reconstructions")])
def test_what_is_not_finite_has_no_scores(part: str, found: str) -> None:
    model = WFVAE.random(small().model.architecture(), 0).eval()
    with torch.no_grad():
        next(getattr(model, part).conv_out.parameters()).fill_(math.nan)
    source = ProceduralClips(0, 1, 5, (32, 32), split="held-out")
    with pytest.raises(NotFiniteScoresError, match=f"{found} are NaN or infinite"):
        validate(model, held_out(source, 1))


def test_a_damaged_checkpoint_says_how_to_go_on(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    newest = run / "checkpoints" / "step-00000006"
    config = small(loss__adversarial=True)
    with (newest / "training.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"remove .*step-00000006 to resume from the one before"):
        train(config, run, CPU, resume=True)
    shutil.rmtree(newest)
    assert train(config, run, CPU, resume=True).step == 6
    assert_same_bits(last_state(finished_run), last_state(run))
    (run / "checkpoints" / "step-00000006" / "training.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="to resume from the one before"):
        train(config, run, CPU, resume=True)


def test_a_full_disk_keeps_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(run__keep=5)
    state = TrainingState.fresh(config, CPU.device)
    (tmp_path / "checkpoints").write_text("in the way", encoding="utf-8")
    with pytest.raises(
        TrainingError,
        match=r"^cannot write the checkpoint of step 0 into .*; there is none before it: make room",
    ):
        write_checkpoint(tmp_path, state, config)
    (tmp_path / "checkpoints").unlink()
    write_checkpoint(tmp_path, state, config)
    state.step = 1

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wfvae.train.checkpoints.save_file", full)
    with pytest.raises(
        TrainingError,
        match="No space left on device; step-00000000 is whole: make room and go on with --resume",
    ):
        write_checkpoint(tmp_path, state, config)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000000"]


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
        ("wfvae.train.checkpoints._facts", interrupt),
        ("wfvae.train.checkpoints._sync", interrupt),
    ],
)
def test_an_interruption_in_the_middle_of_a_checkpoint_leaves_the_one_before(
    place: str, what: Callable[..., None], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", small(loss__adversarial=True)
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, what)
        train(config, run, CPU, resume=True)
    assert_goes_on_from_step_four(run, config, finished_run)


@pytest.mark.slow
def test_a_process_that_dies_in_the_middle_of_a_checkpoint_leaves_the_one_before(
    finished_run: Path, tmp_path: Path
) -> None:
    code = """
import os, sys
from wfvae.cli import main as cli
from wfvae.train import checkpoints
def die(tensors, path):
    save_file(tensors, path)
    os.truncate(path, path.stat().st_size // 2)
    os._exit(9)
save_file, checkpoints.save_file = checkpoints.save_file, die
cli.main(["train", sys.argv[1], "--out", sys.argv[2], "--resume"])
"""
    run, config = tmp_path / "run", small(loss__adversarial=True)
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    done = subprocess.run(
        [sys.executable, "-c", code, written(config, tmp_path / "x.toml"), run],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr.decode()
    assert_goes_on_from_step_four(run, config, finished_run)


def assert_goes_on_from_step_four(run: Path, config: TrainingConfig, whole: Path) -> None:
    """After something ended the run while the checkpoint of step 6 was written."""
    folder = run / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000003",
        "step-00000004",
        "step-00000006.tmp",
    ]
    assert newest_of_run(run) == folder / "step-00000004"
    seen: list[int] = []
    assert train(config, run, CPU, resume=True, watcher=Watcher(lambda done, *_: seen.append(done))).finished
    assert seen == [5, 6]
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000003",
        "step-00000004",
        "step-00000006",
    ]
    assert_same_bits(last_state(whole), last_state(run))


def test_a_checkpoint_gets_its_name_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small()
    final = tmp_path / "checkpoints" / "step-00000000"
    synced: dict[bool, set[Path]] = {False: set(), True: set()}

    def sync(path: Path) -> None:
        synced[final.exists()].add(path)
        real(path)

    real = checkpoints._sync
    monkeypatch.setattr(checkpoints, "_sync", sync)
    write_checkpoint(tmp_path, TrainingState.fresh(config, CPU.device), config)
    temporary = final.with_name("step-00000000.tmp")
    parts = {temporary / path.relative_to(final) for path in [final, *final.rglob("*")]}
    assert len(parts) == 6
    assert synced == {False: parts, True: {final.parent}}


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_full_disk_at_the_record_is_told_and_keeps_the_work(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    record = run / "metrics.jsonl"
    record.unlink()
    record.symlink_to("/dev/full")
    longer = small(loss__adversarial=True, run__steps=8, run__checkpoint_every=100, validation__every=0)
    with pytest.raises(
        TrainingError,
        match=r"^cannot write .*metrics.jsonl: No space left on device; make room and go on with --resume$",
    ):
        train(longer, run, CPU, resume=True)
    assert newest(run) == 7
    record.unlink()
    assert train(longer, run, CPU, resume=True).finished


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_full_disk_at_the_file_for_tensorboard_is_told_in_one_line_and_keeps_the_work(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    pytest.importorskip("tensorboard")
    run, events = tmp_path / "run", tmp_path / "run" / "tensorboard"
    shutil.copytree(finished_run, run)
    events.mkdir()
    (events / f"events.out.tfevents.7.000000.here.{os.getpid()}").symlink_to("/dev/full")
    longer = small(
        loss__adversarial=True,
        run__steps=8,
        run__checkpoint_every=100,
        validation__every=0,
        run__tensorboard=True,
    )
    with monkeypatch.context() as patch:
        patch.setattr("wfvae.train.metrics.time", SimpleNamespace(time=lambda: 7.0))
        patch.setattr("wfvae.train.metrics.socket", SimpleNamespace(gethostname=lambda: "here"))
        said = program.refused("train", written(longer, tmp_path / "x.toml"), "--out", run, "--resume")
    pattern = (
        r"wfvae train: cannot write .*/tensorboard/events\S*: No space left on device; make room and go on"
        r" with --resume"
    )
    assert re.fullmatch(pattern, said), said
    assert newest(run) == 7
    assert train(longer, run, CPU, resume=True).finished


@pytest.mark.parametrize(("part", "name"), [("_file", "metrics.jsonl"), ("_events", "events.out.tfevents")])
def test_closing_a_record_that_the_disk_refuses_is_told_unless_something_else_is(
    part: str, name: str, tmp_path: Path
) -> None:
    if part == "_events":
        pytest.importorskip("tensorboard")

    def full() -> None:
        raise OSError(28, "No space left on device")

    def record() -> Metrics:
        metrics = Metrics(tmp_path, 0, part == "_events")
        holder = metrics._events if part == "_events" else metrics
        assert holder is not None
        holder._file.close()
        holder._file = SimpleNamespace(close=full)  # type: ignore[assignment]
        return metrics

    with (
        pytest.raises(
            TrainingError, match=rf"^cannot write .*{name}.*: No space left on device; make room and go on"
        ),
        record(),
    ):
        pass
    with pytest.raises(KeyError), record():
        raise KeyError


def test_a_record_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"^cannot write .*metrics\.jsonl: "):
        Metrics(tmp_path, 0, tensorboard=True)
    (tmp_path / "metrics.jsonl").rmdir()
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").touch()
    with pytest.raises(TrainingError, match=r"^cannot write .*tensorboard.events\S*: File exists$"):
        Metrics(tmp_path, 0, tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(
        MissingExtraError, match=r"^run.tensorboard needs the package 'tensorboard'.*'wfvae\[tensorboard\]'$"
    ):
        Metrics(tmp_path, 0, tensorboard=True)


def test_a_lost_worker_costs_no_step(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small(loss__adversarial=True, data__workers=1, run__checkpoint_every=100, validation__every=0)
    before = set(multiprocessing.active_children())

    def lose(done: int, *_: object) -> None:
        if done == 3:
            [worker] = set(multiprocessing.active_children()) - before
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(10)

    with pytest.raises(
        TrainingError,
        match=r"^data worker 0 .* was killed by SIGKILL before step 3; .*resume the run from its last check",
    ):
        train(config, run, CPU, watcher=Watcher(lose))
    assert newest(run) == 3
    assert train(config, run, CPU, resume=True).finished
    assert_same_bits(last_state(finished_run), last_state(run))


def test_too_many_bad_files_cost_no_step(tmp_path: Path, program: Program) -> None:
    videos, run = tmp_path / "videos", tmp_path / "run"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        save(videos / name, clip(6))
    whole = (videos / "a.mp4").read_bytes()
    config = small(
        data__kind="folder",
        data__folder=str(videos),
        data__bad_files=0,
        data__noise=0.0,
        run__steps=4,
        run__checkpoint_every=100,
    )

    def spoil(*_: object) -> None:
        (videos / "a.mp4").write_bytes(b"no video")

    # In the first step there is nothing to save; later there is.
    with pytest.raises(DataError, match="1 files cannot be used, more than the limit of 0"):
        train(
            config, run, CPU, watcher=Watcher(indexing=lambda done, total: spoil() if done == total else None)
        )
    assert list((run / "checkpoints").iterdir()) == []
    (videos / "a.mp4").write_bytes(whole)
    with pytest.raises(
        DataError, match=r"1 files cannot be used, more than the limit of 0; the last is 'a.mp4'"
    ):
        train(config, run, CPU, watcher=Watcher(lambda done, *_: spoil() if done == 2 else None))
    assert newest(run) == 2
    (videos / "a.mp4").write_bytes(whole)
    assert (
        program("train", written(config, tmp_path / "x.toml"), "--out", run, "--resume", "--json").report[
            "step"
        ]
        == 4
    )


def test_a_fault_between_steps_and_a_full_disk_are_both_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise TrainingError("cannot write the checkpoint")

    def lost(stream: BatchStream) -> Batch:
        if stream.step == 1:
            raise TrainingError("a worker was lost")
        return next_batch(stream)

    next_batch = BatchStream.__next__
    monkeypatch.setattr(BatchStream, "__next__", lost)
    monkeypatch.setattr("wfvae.train.loop.write_checkpoint", full)
    with pytest.raises(TrainingError, match=r"^a worker was lost; cannot write the checkpoint$"):
        train(small(), tmp_path, CPU)


def test_a_validation_that_fails_costs_no_step_and_does_not_come_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small(run__checkpoint_every=100)
    run.mkdir()
    (run / "validation").write_text("in the way of the pictures", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"cannot write .*step-00000003.clip-0\.png"):
        train(config, run, CPU)
    assert newest(run) == 3
    with pytest.raises(TrainingError, match=r"cannot write .*step-00000006.clip-0\.png"):
        train(config, run, CPU, resume=True)
    assert newest(run) == 6
    # The last one is made up for, once.
    (run / "validation").unlink()
    scores = train(config, run, CPU, resume=True).scores
    assert scores is not None
    assert [line["psnr_db"] for line in read_metrics(run, "validation")] == [
        pytest.approx(scores.psnr_db, rel=1e-5)
    ]
    again = train(config, run, CPU, resume=True).scores  # what the run has come to, not scored again
    assert (
        again is not None and again.psnr_db == pytest.approx(scores.psnr_db, rel=1e-5) and again.lpips is None
    )
    assert len(read_metrics(run, "validation")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__height": 8},
            (
                r"clips to validate on are 8x32 pixels, and SSIM needs at least 11x11; set validation\.height"
                r" .* at least 16"
            ),
        ),
        (
            {"validation__crop_height": 16, "validation__crop_width": 8},
            "clips to validate on are 16x8 pixels",
        ),
        (
            {"validation__width": 8, "loss__perceptual": "random"},
            "clips to validate on are 32x8 pixels, and LPIPS needs at least 16x16",
        ),
    ],
)
def test_clips_too_small_to_be_scored_are_refused_at_the_start(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(small(**changes), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("missing", "package"), [("skimage.metrics", "skimage.metrics"), ("PIL", "pillow")])
def test_packages_of_the_validation_are_asked_for_at_the_start(
    missing: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        MissingExtraError,
        match=rf"needs the package '{package}', which is not installed; run: pip install 'wfvae\[train\]'",
    ):
        train(small(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_bad_validation_files_are_told_once_and_the_rest_is_scored(tmp_path: Path) -> None:
    videos, held_out, run = tmp_path / "videos", tmp_path / "held-out", tmp_path / "run"
    for folder in (videos, held_out):
        folder.mkdir()
        save(folder / "a.mp4", clip(6))
    save(held_out / "b.mp4", clip(6, seed=2))
    (held_out / "broken.mp4").write_text("no video", encoding="utf-8")
    config = folder_settings(
        videos,
        validation__folder=str(held_out),
        validation__every=1,
        validation__clips=9,
        validation__height=32,
        validation__width=48,
        validation__crop_height=16,
        validation__crop_width=24,
        validation__pictures=9,
    )
    lines: list[str] = []

    def spoil(*_: object) -> None:
        (held_out / "a.mp4").write_bytes(b"no video")

    result = train(config, run, CPU, watcher=Watcher(spoil, lines.append))
    assert (result.finished, result.bad_files) == (True, 0)
    assert len(lines) == 2
    assert lines[0].startswith("validation: skipped 'broken.mp4': ")
    assert lines[1].startswith("validation: skipped 'a.mp4': ")
    assert [line["step"] for line in read_metrics(run, "validation")] == [1, 2]
    [picture] = (run / "validation" / "step-00000002").iterdir()
    with Image.open(picture) as opened:
        assert opened.size == (5 * 24, 3 * 16)


def test_a_validation_without_any_usable_file_is_one_clear_line(tmp_path: Path) -> None:
    videos, held_out, run = tmp_path / "videos", tmp_path / "held-out", tmp_path / "run"
    for folder in (videos, held_out):
        folder.mkdir()
        save(folder / "a.mp4", clip(6))
    config = folder_settings(videos, validation__folder=str(held_out), validation__every=1)

    def spoil(*_: object) -> None:
        (held_out / "a.mp4").write_bytes(b"no video")

    with pytest.raises(
        TrainingError,
        match=r"^the validation of step 1: of 1 clips none of them can be used, the last is 'a.mp4': ",
    ):
        train(config, run, CPU, watcher=Watcher(spoil))
    assert newest(run) == 1


def test_a_stage_starts_from_the_one_before(finished_run: Path, tmp_path: Path) -> None:
    # With a learning rate of zero and no decay the weights stay those of the run it starts from.
    frozen = {
        "optimizer__learning_rate": 0.0,
        "optimizer__weight_decay": 0.0,
        "optimizer__warmup_steps": 0,
        "run__steps": 1,
    }
    train(small(**frozen, run__initial=str(finished_run)), tmp_path / "next", CPU)
    state = last_state(tmp_path / "next")
    before = last_state(finished_run)
    averages = [name for name in before if name.startswith("average.")]
    assert len(averages) > 50
    for name in averages:
        assert torch.equal(state["model." + name.removeprefix("average.")], before[name])
    with pytest.raises(ConfigError, match="another architecture; it differs in latent_dim"):
        train(small(run__initial=str(finished_run), model__latent_dim=8), tmp_path / "other", CPU)


def test_the_discriminator_and_the_optimisers_of_a_stage_start_anew(
    finished_run: Path, tmp_path: Path
) -> None:
    # The first step leaves the discriminator alone, so that the checkpoint behind it shows how it
    # began.
    seed = 5
    train(
        small(
            loss__adversarial=True,
            loss__adversarial_start=1,
            run__initial=str(finished_run),
            run__seed=seed,
            run__steps=2,
            run__checkpoint_every=1,
            validation__every=0,
        ),
        tmp_path,
        CPU,
    )
    before = last_state(finished_run)
    first, second = (
        load_file(path / "training.safetensors") for path in sorted((tmp_path / "checkpoints").iterdir())
    )
    fresh = PatchDiscriminator3D(base=8, layers=3, seed=seed).state_dict()
    assert {name for name in first if name.startswith("discriminator.")} == {
        f"discriminator.{name}" for name in fresh
    }
    for name, tensor in fresh.items():
        assert torch.equal(first[f"discriminator.{name}"], tensor), name
        assert not torch.equal(before[f"discriminator.{name}"], tensor), name
    assert not [name for name in first if name.startswith("discriminator_optimizer.")]
    for state, optimizer in ((first, "optimizer"), (second, "discriminator_optimizer")):
        names = [
            name.removesuffix(".step")
            for name in before
            if name.startswith(f"{optimizer}.") and name.endswith(".step")
        ]
        assert len(names) > 5
        for name in names:
            assert (float(before[f"{name}.step"]), float(state[f"{name}.step"])) == (6.0, 1.0)
            # Of one gradient g: 0.1 g and 0.001 g^2.
            assert torch.allclose(
                state[f"{name}.exp_avg"].square(), 10 * state[f"{name}.exp_avg_sq"], rtol=1e-4, atol=1e-30
            ), name


def test_scale_and_shift_of_the_initial_model_stay_through_a_run(tmp_path: Path, reference_dir: Path) -> None:
    # The published 16-channel model lists four values; another may list one for each channel.
    # Neither is a setting of training.
    released = WFVAEConfig.from_json(reference_dir / "released-L-16ch" / "config.json")
    assert len(released.scale) == 4
    per_channel = tuple(1.0 + k / 8 for k in range(16)), tuple(k / 4 for k in range(16))
    config = {"model__latent_dim": 16, "run__steps": 1, "run__checkpoint_every": 1, "validation__every": 0}
    wanted = small(**config).model.architecture()
    for name, (scale, shift) in {"released": (released.scale, released.shift), "each": per_channel}.items():
        first, run = tmp_path / name, tmp_path / f"{name}-run"
        WFVAE.random(wanted.with_changes(scale=scale, shift=shift, dropout=0.0), 7).save_pretrained(first)
        train(small(**config, run__initial=str(first), optimizer__learning_rate=0.0), run, CPU)
        state, given = last_state(run), load_file(first / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(state[f"model.{path}"], tensor) for path, tensor in given.items())
        train(
            small(**config | {"run__steps": 2}, run__initial=str(first), optimizer__learning_rate=0.0),
            run,
            CPU,
            resume=True,
        )
        assert newest(run) == 2
        for step in (1, 2):
            made = WFVAE.from_pretrained(run / "checkpoints" / f"step-{step:08d}").config
            assert (made.scale, made.shift, made.dropout) == (scale, shift, 0.1)


def test_a_run_exports_its_averaged_weights(finished_run: Path, tmp_path: Path, program: Program) -> None:
    made = program.done("export", finished_run, tmp_path / "bundle")
    assert made["parameters"] > 0
    model, state = WFVAE.from_pretrained(finished_run), last_state(finished_run)
    assert all(torch.equal(tensor, state[f"average.{name}"]) for name, tensor in model.state_dict().items())
    inspected = program.done("inspect", finished_run)
    assert (inspected["kind"], inspected["tensors"]) == ("training run", len(model.state_dict()))
    assert Path(inspected["checkpoint"]) == finished_run / "checkpoints" / "step-00000006" / "checkpoint"
    older = WFVAE.from_pretrained(finished_run / "checkpoints" / "step-00000003")
    assert not torch.equal(older.decoder.conv_out.weight, model.decoder.conv_out.weight)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert "has no checkpoint yet" in program.refused("export", tmp_path / "empty", tmp_path / "none")
    assert "has no checkpoint yet" in program.refused("inspect", tmp_path / "empty")


def test_lpips_takes_part(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small(loss__perceptual="random", loss__perceptual_frames=3, run__steps=1, validation__clips=1)
    result = train(config, run, CPU)
    assert result.scores is not None
    assert result.scores.lpips is not None
    assert result.scores.lpips > 0
    train(small(run__steps=1), tmp_path / "without", CPU)
    [with_lpips], [without] = (read_metrics(r, "train") for r in (run, tmp_path / "without"))
    assert with_lpips["reconstruction"] == pytest.approx(
        without["reconstruction"] + 3 * 32 * 32 * with_lpips["lpips"], rel=1e-4
    )
    assert with_lpips["lpips"] > 0
    assert "lpips" not in without


def test_lpips_of_a_local_file_takes_part(tmp_path: Path) -> None:
    # LPIPS numbers VGG16's layers as torchvision does, within slices of its own.
    backbone = load_lpips("random", "vgg", seed=1).get_submodule("net").state_dict()
    file = tmp_path / "vgg16.safetensors"
    save_file({f"features.{name.partition('.')[2]}": tensor for name, tensor in backbone.items()}, file)
    config = small(loss__perceptual=str(file), run__steps=1, validation__clips=1)
    result = train(config, tmp_path / "run", CPU)
    assert result.scores is not None
    model = WFVAE.from_pretrained(tmp_path / "run")
    own, other = (validated(model, config, tmp_path, PerceptualLoss("random", seed=seed)) for seed in (1, 0))
    assert result.scores.lpips == own.lpips != other.lpips
    train(small(run__steps=1), tmp_path / "without", CPU)
    [with_lpips], [without] = (read_metrics(tmp_path / name, "train") for name in ("run", "without"))
    assert with_lpips["lpips"] > 0
    assert with_lpips["reconstruction"] == pytest.approx(
        without["reconstruction"] + 3 * 32 * 32 * with_lpips["lpips"], rel=1e-4
    )


def one_step(config: TrainingConfig) -> tuple[TrainingState, dict[str, float]]:
    """The state after the first step on clips that are always the same, gradients included, and
    what the step told.
    """
    state = TrainingState.fresh(config, CPU.device)
    clips = torch.randint(
        0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    perceptual = None if config.loss.perceptual == "none" else PerceptualLoss(config.loss.perceptual)
    return state, Trainer(config, state, CPU, perceptual).step([clips])


@pytest.mark.parametrize(("kind", "distance"), [("l1", Tensor.abs), ("l2", Tensor.square)])
def test_the_reconstruction_loss_of_a_step_is_the_one_asked_for(
    kind: str, distance: Callable[[Tensor], Tensor]
) -> None:
    config = small(loss__reconstruction=kind)
    state = TrainingState.fresh(config, CPU.device)
    seen: list[Tensor] = []
    state.model.decoder.register_forward_hook(
        lambda module, inputs, output: seen.append(output.video.detach().transpose(1, 2))
    )
    clips = torch.randint(
        0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    told = Trainer(config, state, CPU, None).step([clips])
    [reconstruction] = seen
    apart = distance(clips / 127.5 - 1 - reconstruction)
    assert told["reconstruction"] == pytest.approx(float(apart.sum() / (2 * 5)), rel=1e-5)
    # The same weights, noise and dropout as before: the first step of that seed.
    _, told = one_step(small(loss__reconstruction=kind, loss__frame_weights=[3, 3, 1, 1]))
    weights = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5]).view(1, 1, 5, 1, 1)
    assert told["reconstruction"] == pytest.approx(float((apart * weights).sum() / (2 * 5)), rel=1e-5)


def test_a_clipped_gradient_is_what_the_optimiser_gets() -> None:
    # AdamW's first moment is 0.1 of its first gradient. Its steps themselves hardly depend on the
    # gradient's length.
    limit = 1e-3
    (plain, told), (clipped, told_too) = (one_step(small(optimizer__clip_norm=norm)) for norm in (0.0, limit))
    assert told == told_too
    assert told["gradient_norm"] > 100 * limit  # of before clipping
    moments = [
        torch.cat(
            [state.optimizer.state[parameter]["exp_avg"].flatten() for parameter in state.model.parameters()]
        )
        for state in (plain, clipped)
    ]
    assert float(moments[0].norm()) == pytest.approx(0.1 * told["gradient_norm"], rel=1e-4)
    assert float(moments[1].norm()) == pytest.approx(0.1 * limit, rel=1e-4)
    assert torch.allclose(moments[1] * (told["gradient_norm"] / limit), moments[0], rtol=1e-3, atol=1e-4)


def test_weights_decay_by_themselves_and_not_through_the_gradient() -> None:
    # Decoupled: what a step does to a weight without decay, less the share rate * decay of the
    # weight before it.
    decay = 40.0
    config = small(loss__adversarial=True)
    begin = TrainingState.fresh(config, CPU.device)
    (plain, told), (decayed, told_too) = (
        one_step(small(loss__adversarial=True, optimizer__weight_decay=d)) for d in (0.0, decay)
    )
    assert told == told_too
    share = told["learning_rate"] * decay
    assert share == pytest.approx(0.02)
    for part in ("model", "discriminator"):
        before, without, with_decay = (
            {name: parameter.detach() for name, parameter in getattr(state, part).named_parameters()}
            for state in (begin, plain, decayed)
        )
        assert len(before) > 5
        for name, weight in before.items():
            expected = without[name] - share * weight
            assert torch.allclose(
                with_decay[name], expected, rtol=0, atol=1e-6 * max(1.0, float(weight.abs().max()))
            ), name
        assert max(float((without[name] - with_decay[name]).abs().max()) for name in before) > 0.01


GROUPNORM = {
    "model__norm_type": "groupnorm",
    "model__base_channels": 32,
    "model__encoder_energy_flow_hidden_size": 32,
    "model__decoder_energy_flow_hidden_size": 32,
}


LPIPS: dict[str, object] = {"loss__perceptual": "random"}


@pytest.mark.parametrize(
    "changes", [{}, {"run__precision": "bf16"}, GROUPNORM, LPIPS], ids=["fp32", "bf16", "groupnorm", "lpips"]
)
def test_recomputed_activations_give_the_same_gradients_against_a_discriminator(
    changes: dict[str, object],
) -> None:
    # Eq. 7 differentiates through the model's last layer before the backward pass does; what is
    # recomputed must serve both.
    plain, frugal = (
        one_step(small(loss__adversarial=True, run__activation_checkpointing=on, **changes))
        for on in (False, True)
    )
    assert any("_checkpoint_wrapped_module" in name for name, _ in frugal[0].model.named_parameters())
    assert plain[1] == pytest.approx(frugal[1], rel=1e-5)
    assert plain[1]["adversarial_weight"] > 0
    for one, other in ((plain[0].model, frugal[0].model), (plain[0].discriminator, frugal[0].discriminator)):
        assert one is not None and other is not None
        pairs = list(zip(one.parameters(), other.parameters(), strict=True))
        gradients = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
        assert len(gradients) == len(pairs) > 5
        largest = max(float(a.norm()) for a, _ in gradients)
        assert all(float((a - b).norm()) <= 1e-5 * (float(a.norm()) + 1e-3 * largest) for a, b in gradients)


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if (key := storage._cdata) in self._counted:
            return
        self._counted.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._counted.discard(key)
        self.now -= count


def test_recomputation_more_than_halves_what_a_step_holds() -> None:
    peaks = []
    for recompute in (False, True):
        config = TrainingConfig.load(
            "tiny-quick", [f"run.activation_checkpointing={str(recompute).lower()}", "run.precision=fp32"]
        )
        trainer = Trainer(config, TrainingState.fresh(config, CPU.device), CPU, None)
        clips = torch.randint(
            0, 256, (1, 3, 9, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        trainer.step([clips[:, :, :5, :32, :32]])  # the optimiser's moments are there from now on
        with _Live() as live:
            trainer.step([clips])
        peaks.append(live.peak)
    assert peaks[1] < 0.45 * peaks[0]


@pytest.mark.parametrize(
    ("recompute", "asked", "grouped"), [(False, 0, None), (False, 3, 3), (True, 0, 4), (True, 3, 3)]
)
def test_recomputation_takes_lpips_in_groups_of_a_latent(
    recompute: bool, asked: int, grouped: int | None
) -> None:
    """Which hold less, see the tests of the loss itself."""
    noted = []

    class Noting(PerceptualLoss):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(
            self, video: torch.Tensor, reconstruction: torch.Tensor, frames_at_once: int | None = None
        ) -> torch.Tensor:
            noted.append(frames_at_once)
            return reconstruction.abs().mean((1, 3, 4)).flatten()

    config = small(
        run__activation_checkpointing=recompute, loss__perceptual="random", loss__perceptual_frames=asked
    )
    trainer = Trainer(config, TrainingState.fresh(config, CPU.device), CPU, Noting())
    trainer.step([torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8)])
    assert noted == [grouped]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_model_computes_in_its_precision_and_the_discriminator_in_fp32_on_a_cpu(
    precision: str, dtype: torch.dtype
) -> None:
    config = small(run__precision=precision, loss__adversarial=True)
    state = TrainingState.fresh(config, CPU.device)
    assert state.discriminator is not None
    kinds: dict[str, set[torch.dtype]] = {}

    def watch(name: str, layer: torch.nn.Module) -> None:
        layer.register_forward_hook(lambda module, given, made: kinds.setdefault(name, set()).add(made.dtype))

    for part in ("encoder", "decoder"):
        for name, layer in getattr(state.model, part).named_modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d | CausalConv3d):
                watch(f"{part}.{name}", layer)
    watch("judge", state.discriminator.head)
    Trainer(config, state, CPU, None).step([torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)])
    assert kinds.pop("judge") == {torch.float32}
    assert len(kinds) > 10
    assert set().union(*kinds.values()) == {dtype}


@pytest.mark.parametrize("instructions", ["", "avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_without_bf16_is_told_of_and_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: str
) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, instructions: True}
    )
    assert computes_in_bf16(CPU.device) == bool(instructions)
    faster, other = ("bf16", "fp32") if instructions else ("fp32", "bf16")
    if instructions not in ("", "avx512_bf16"):
        return
    for precision, used, told in (
        ("fp32", "fp32", False),
        ("bf16", "bf16", not instructions),
        ("auto", faster, False),
    ):
        lines: list[str] = []
        run = tmp_path / precision
        train(
            small(run__precision=precision, run__steps=1, validation__every=0),
            run,
            CPU,
            watcher=Watcher(notice=lines.append),
        )
        assert [line.partition(",")[0] for line in lines] == ["bf16 is slower here than fp32"] * told
        assert TrainingConfig.load(run / "config.toml").run.precision == used
    weights = {name: last_state(tmp_path / name) for name in ("auto", faster)}
    assert_same_bits(weights["auto"], weights[faster])
    # It goes on with what it had, also where the other one would be faster.
    run, automatic = tmp_path / other, small(run__precision="auto", run__steps=2)
    assert train(automatic, run, CPU, resume=True).step == 2
    assert TrainingConfig.load(run / "config.toml").run.precision == other
    with pytest.raises(ConfigError, match=r"made with another run\.precision"):
        train(small(run__precision=faster, run__steps=3), run, CPU, resume=True)


def test_all_processes_take_the_precision_that_suits_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here this one of two has bf16, and the other one says that it has not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    class Beside(World):
        def any(self, flag: bool) -> bool:
            return True

        def wait(self) -> None:
            return

    run = tmp_path / "run"
    assert (
        train(small(run__precision="auto"), run, Beside(0, 1, CPU.device)).step == 0
    )  # that other one also asks to stop
    assert TrainingConfig.load(run / "config.toml").run.precision == "fp32"


def test_bf16_trains(tmp_path: Path) -> None:
    train(small(run__precision="bf16", loss__adversarial=True, run__steps=2), tmp_path, CPU)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in last_state(tmp_path).values())


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    train(
        small(
            run__steps=30,
            model__dropout=0.0,
            run__checkpoint_every=30,
            validation__every=0,
            optimizer__learning_rate=1e-2,
        ),
        tmp_path,
        CPU,
    )
    losses = [line["reconstruction"] for line in read_metrics(tmp_path, "train")]
    assert np.mean(losses[-6:]) < 0.75 * np.mean(losses[:6])


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = small(run__steps=3, run__checkpoint_every=1, run__tensorboard=True)
    train(config, tmp_path, CPU)
    # Steps that are made again after an interruption are shown once.
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000003")
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    train(config, tmp_path, CPU, resume=True)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for kind, steps in (("train", [1, 2, 3]), ("validation", [3])):
        [last] = read_metrics(tmp_path, kind)
        for name in last.keys() - {"step"}:
            scalars = events.Scalars(f"{kind}/{name}")
            assert [event.step for event in scalars] == steps
            assert scalars[-1].value == pytest.approx(last[name], rel=1e-5), name


def test_frames_per_second_counts_the_steps_that_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that goes on by a second per step: 2 clips of 5 frames. The last line covers one step,
    # the one before two.
    seconds = [0.0]

    def a_step_passes() -> bool:
        seconds[0] += 1.0
        return False

    monkeypatch.setattr("wfvae.train.loop.time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    told: list[dict[str, float]] = []
    watcher = Watcher(lambda done, total, values: told.append(values), stopping=a_step_passes)
    train(small(run__steps=3, run__log_every=2, validation__every=0), tmp_path, CPU, watcher=watcher)
    assert [line["frames_per_second"] for line in read_metrics(tmp_path, "train")] == [10.0, 10.0]
    assert [values.get("frames_per_second") for values in told] == [None, 10.0, 10.0]


def test_the_time_to_the_end_is_that_of_the_latest_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]

    def a_step_passes() -> bool:
        seconds[0] += 1.0 if seconds[0] < 2 else 3.0
        return False

    monkeypatch.setattr("wfvae.train.loop.time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    train(
        small(run__steps=5, run__log_every=2, validation__every=0),
        tmp_path,
        CPU,
        watcher=Watcher(stopping=a_step_passes),
    )
    assert [line["eta_seconds"] for line in read_metrics(tmp_path, "train")] == [3.0, 3.0, 0.0]


def test_waiting_for_the_data_of_other_processes_is_waiting_for_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]

    class Slow(World):
        """Takes a second to hear from a peer."""

        def any(self, flag: bool) -> bool:
            seconds[0] += 1.0
            return flag

    monkeypatch.setattr("wfvae.train.loop.time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    monkeypatch.setattr(
        Trainer, "_forward", lambda trainer, *given: trainer._autoencoding(*given)
    )  # which asks the peer, too
    result = train(small(run__steps=2, validation__every=0), tmp_path, Slow(0, 1, CPU.device))
    assert [line["data_wait"] for line in read_metrics(tmp_path, "train")] == [1.0, 1.0]
    assert result.shares["data_wait"] == 1.0


def test_indexing_gives_signs_to_the_processes_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, held_out = tmp_path / "videos", tmp_path / "held-out"
    for folder in (videos, held_out):
        folder.mkdir()
        for name in ("a.mp4", "b.mp4", "c.mp4"):
            save(folder / name, clip(6))
    seconds, signs = [1000.0], list[tuple[float, bool]]()

    class Heard(World):
        def any(self, flag: bool) -> bool:
            signs.append((seconds[0], flag))
            return flag

    def half_a_minute(done: int, total: int) -> None:
        seconds[0] += 30.0

    monkeypatch.setattr("wfvae.train.loop.time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    config = folder_settings(videos, validation__folder=str(held_out))
    train(
        config,
        tmp_path / "run",
        Heard(0, 1, CPU.device),
        watcher=Watcher(indexing=half_a_minute, stopping=lambda: True),
    )
    indexed = [sign for sign in signs if sign[0] > 1000.0]
    assert indexed[:4] == [(1030.0, True), (1090.0, True), (1150.0, True), (1180.0, False)]


@pytest.mark.slow
def test_a_process_waits_longer_than_its_patience_for_an_index_that_grows(tmp_path: Path) -> None:
    """Indexing takes 24 seconds, and two processes wait 20 for each other at most."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        save(videos / f"{number}.mp4", clip(6))
    program = tmp_path / "impatient.py"
    program.write_text(
        "import sys, time\n"
        "from datetime import timedelta\n"
        "from wfvae.cli import main as cli\n"
        "from wfvae.train import loop, world\n"
        "from wfvae.train.data import video_index\n"
        "def slow(*given):\n"
        "    time.sleep(4)\n"
        "    return probe(*given)\n"
        "probe, video_index.probe, video_index._AT_ONCE = video_index.probe, slow, 1\n"
        "world._PATIENCE, loop._SIGN_EVERY = timedelta(seconds=20), 1.0\n"
        "sys.exit(cli.main())\n",
        encoding="utf-8",
    )
    done = run_two_processes(folder_settings(videos), tmp_path, program=(str(program),))
    assert done.returncode == 0, done.stderr.decode()


def test_too_little_memory_names_what_helps(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")

    with (
        monkeypatch.context() as patch,
        pytest.raises(
            TrainingError,
            match=r"step 7: out of memory on cpu; .*step-00000006; resume it with run.activation_",
        ),
    ):
        patch.setattr(Trainer, "step", full)
        train(small(loss__adversarial=True, run__steps=7), run, CPU, resume=True)
    # What it advises may be changed in a run that is resumed.
    frugal = small(
        loss__adversarial=True, run__steps=7, run__activation_checkpointing=True, loss__perceptual_frames=1
    )
    assert train(frugal, run, CPU, resume=True).step == 7


@pytest.mark.parametrize("updating", [False, True])
def test_too_little_memory_loses_no_step_that_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updating: bool
) -> None:
    """But of one that had begun to change the weights, nothing can be saved."""
    made = Trainer._step

    def full(trainer: Trainer, parts: Any) -> dict[str, float]:
        if trainer.state.step == 2:
            trainer.updating = updating
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return made(trainer, parts)

    monkeypatch.setattr(Trainer, "_step", full)
    kept = "there is no checkpoint before it" if updating else "the last good checkpoint is .*step-00000002"
    with pytest.raises(TrainingError, match=f"step 3: out of memory on cpu; {kept}; resume it with"):
        train(small(run__steps=4, run__checkpoint_every=100), tmp_path / "run", CPU)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == (
        [] if updating else ["step-00000002"]
    )


def test_a_step_has_begun_to_change_the_weights_only_once_it_does() -> None:
    state = TrainingState.fresh(small(), CPU.device)
    trainer = Trainer(small(), state, CPU, None)
    clips = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)
    trainer.step([clips])
    assert not trainer.updating
    seen: list[bool] = []
    state.model.decoder.register_forward_hook(lambda *_: seen.append(trainer.updating))
    state.optimizer.register_step_pre_hook(lambda *_: seen.append(trainer.updating))
    trainer.step([clips])
    assert seen == [False, True]


def test_too_little_memory_for_a_validation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")

    monkeypatch.setattr("wfvae.train.loop.validate", full)
    expected = (
        r"^out of memory on cpu, for the validation of step 1; the last good .*step-00000001; resume it with"
        r" fewer validation\.frames"
    )
    with pytest.raises(TrainingError, match=expected):
        train(small(run__steps=2, validation__every=1), tmp_path / "run", CPU)


def test_where_nothing_is_validated_no_record_is_read_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is not the first has none."""
    (tmp_path / "videos").mkdir()
    save(tmp_path / "videos" / "a.mp4", clip(6))
    monkeypatch.setattr("wfvae.train.loop.read_metrics", lambda *_: pytest.fail("there may be none"))
    assert train(folder_settings(tmp_path / "videos"), tmp_path / "run", CPU).finished


def test_a_model_too_large_for_the_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for values in (1 << 50, 1 << 62):  # torch has a message of its own for what no computer can have
        monkeypatch.setattr("wfvae.train.loop.initial_model", lambda *_, values=values: torch.empty(values))
        with pytest.raises(
            TrainingError,
            match=r"out of memory on cpu, for the model with its average.*; choose a smaller model\.preset",
        ):
            train(small(), tmp_path / "one", CPU)

    def other(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("wfvae.train.loop.initial_model", other)
    with pytest.raises(RuntimeError, match="something else"):
        train(small(), tmp_path / "other", CPU)


def test_too_little_memory_for_clips_accuses_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    train(small(run__steps=2, validation__every=0, validation__clips=1), run, CPU)

    def full(*_: object) -> None:
        raise MemoryError

    lines: list[str] = []
    monkeypatch.setattr(ProceduralClips, "clip", full)
    with pytest.raises(
        DataError, match=r"^out of memory while clips were read; use smaller or shorter clips \(data\.height"
    ):
        train(
            small(run__steps=4, validation__every=0, validation__clips=1),
            run,
            CPU,
            resume=True,
            watcher=Watcher(notice=lines.append),
        )
    assert lines == []


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes_here() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert processes_here() == 8


def test_learning_rate_follows_its_schedule() -> None:
    shape = ["optimizer.learning_rate=1.0", "optimizer.warmup_steps=10", "optimizer.final_rate=0.2"]
    settings = TrainingConfig.load("tiny-quick", [*shape, "optimizer.schedule_steps=0"]).optimizer
    assert [learning_rate(settings, step, 110) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    # The half cosine: its middle lies half way between 1 and 0.2, its end at 0.2.
    assert [learning_rate(settings, step, 110) for step in (10, 60, 110, 500)] == pytest.approx(
        [1.0, 0.6, 0.2, 0.2]
    )
    # Of a run that ends half way down: its length changes nothing.
    fixed = TrainingConfig.load("tiny-quick", [*shape, "optimizer.schedule_steps=110"]).optimizer
    assert [learning_rate(fixed, step, 60) for step in (10, 60)] == pytest.approx([1.0, 0.6])
    constant = TrainingConfig.load("S-stage1", ["data.folder=x"]).optimizer
    assert {learning_rate(constant, step, 800_000) for step in (0, 400_000, 799_999)} == {1e-5}


def test_a_folder_of_videos_trains_and_bad_files_are_told_once(tmp_path: Path, program: Program) -> None:
    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    for number in range(2):
        save(videos / "deep" / f"{number}.mp4", clip(12, seed=number))
    (videos / "broken.mp4").write_text("no video", encoding="utf-8")
    config = written(
        small(data__kind="folder", data__folder=str(videos), run__steps=3), tmp_path / "small.toml"
    )
    outcome = program("train", config, "--out", tmp_path / "run", "--json")
    assert outcome.code == 0
    assert outcome.report["bad_files"] == 1
    assert outcome.report["validation"] is None
    assert outcome.err.count("broken.mp4") == 1
    assert (tmp_path / "run" / "index.json").is_file()
    looked_at: list[tuple[int, int]] = []
    source = training_source(
        TrainingConfig.load(config), tmp_path / "third", lambda *counts: looked_at.append(counts)
    )
    assert looked_at == [(1, 3), (2, 3), (3, 3)]
    assert len(source) == 2
    outcome = program("train", config, "--out", tmp_path / "other", "--set", "data.bad_files=0")
    assert outcome.code == 2
    first, told, complaint = outcome.err.splitlines()
    assert first == "wfvae train: validation.folder is not set, so nothing is validated"
    assert "skipped 'broken.mp4'" in told
    assert "more than the limit of 0" in complaint
    outcome = program(
        "train", config, "--out", tmp_path / "other", "--set", f"data.folder={tmp_path / 'run'}"
    )
    assert outcome.code == 2
    assert "no videos below" in outcome.err.splitlines()[-1]


def test_showing_makes_no_run(tmp_path: Path, program: Program) -> None:
    shown = program("train", "tiny-quick", "--show", "--set", "run.steps=5", "--out", tmp_path / "run")
    assert "steps = 5\n" in shown.out
    assert list(tmp_path.iterdir()) == []
