"""Several processes: equal to one with the whole batch, and one process's fault costs no step."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fixtures.program import clip, save
from fixtures.training import (
    CPU,
    WITH_DISCRIMINATOR,
    assert_close,
    assert_same_bits,
    assert_same_gradients,
    errors_of,
    folder_settings,
    newest_step,
    run_two_processes,
    small,
    state_of,
    train_two_processes,
)
from fixtures.videos import write_numbered
from wfvae.errors import DataError
from wfvae.model.vae import WFVAE
from wfvae.train.data import BadClipLedger, BatchStream
from wfvae.train.record import read_metrics
from wfvae.train.run import train
from wfvae.train.sources import training_source

PLAIN = {"model__dropout": 0.0, "run__steps": 3, "optimizer__batch": 4}
RECOMPUTE = {"run__activation_checkpointing": True}
PARTS = {"optimizer__accumulate": 2}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(PARTS, id="parts", marks=pytest.mark.slow), pytest.param(RECOMPUTE, id="recompute")],
)
def test_parts_and_recomputation_give_the_weights_of_a_whole_batch(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    train(small(**PLAIN), whole, CPU)
    train(small(**PLAIN, **changes), other, CPU)
    assert_close(state_of(whole), state_of(other))
    assert_same_gradients(whole, other)
    assert WFVAE.from_pretrained(other).config == WFVAE.from_pretrained(whole).config


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(small(**PLAIN), one, CPU)
    assert train_two_processes(small(**PLAIN, **PARTS), tmp_path) == 3
    assert_close(state_of(one), state_of(two))
    assert_same_gradients(one, two)
    totals = [[line["total"] for line in read_metrics(run, "train")] for run in (one, two)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_resumed_give_same_bits(tmp_path: Path) -> None:
    """All resume from what the first one had, so processes that had drifted apart would differ."""
    config = small(**WITH_DISCRIMINATOR, **PARTS, **RECOMPUTE, run__steps=4, optimizer__batch=4)
    two = tmp_path / "two"
    assert train_two_processes(config, tmp_path) == 4
    whole, logged = state_of(two), read_metrics(two, "train")
    shutil.rmtree(two / "checkpoints" / "step-00000004")
    assert 0 < newest_step(two) < 4
    assert train_two_processes(config, tmp_path, "--resume") == 4
    again = read_metrics(two, "train")[len(logged) :]
    assert [line["step"] for line in again] in ([], [4]), "it resumed, and did not begin anew"
    assert_same_bits(state_of(two), whole)


def run_with_fault(fault: str, folder: Path) -> tuple[list[str], str]:
    """Errors and output of two processes, of which the second evaluates `fault` in step 3."""
    program = folder / "broken.py"
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
    config = small(run__checkpoint_every=100, validation__every=0)
    done = run_two_processes(config, folder, program=(str(program),))
    assert done.returncode != 0
    return errors_of(done), done.stderr.decode()


def assert_all_known(lines: list[str], *known: str) -> None:
    """The other process has a line of its own, or is ended before it comes to it."""
    known = (*known, "another process of this run has ended", "interrupted")
    assert lines and all(any(part in line for part in known) for line in lines), lines


@pytest.mark.slow
def test_nan_of_second_process_costs_no_step_and_is_reported_by_it(tmp_path: Path) -> None:
    lines, _ = run_with_fault("before(frames) * float('nan')", tmp_path)
    own = [line for line in lines if "in the autoencoder, " in line and "step-00000002; --resume" in line]
    assert len(own) == 1 and "step 3: " in own[0], lines
    assert_all_known(lines, "step 3")
    assert newest_step(tmp_path / "two") == 2


@pytest.mark.slow
def test_killed_process_costs_the_others_no_step(tmp_path: Path) -> None:
    lines, written = run_with_fault("os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert_all_known(lines, "stopping")
    assert newest_step(tmp_path / "two") == 2
    assert "FutureWarning" not in written


@pytest.mark.slow
def test_missing_folder_is_reported_once(tmp_path: Path) -> None:
    done = run_two_processes(folder_settings(tmp_path / "nowhere"), tmp_path)
    assert done.returncode != 0
    lines = errors_of(done)
    assert sum("no such folder of videos" in line for line in lines) == 1
    assert_all_known(lines, "no such folder")


@pytest.mark.slow
def test_bad_file_of_second_process_costs_no_step(tmp_path: Path) -> None:
    # A video that ends before its header says, so that only some of its clips can be drawn.
    (tmp_path / "videos").mkdir()
    cut = write_numbered(tmp_path / "videos" / "cut.mp4", 60, muxing={"movflags": "faststart"})
    os.truncate(cut, cut.stat().st_size * 3 // 4)
    save(tmp_path / "videos" / "good.mp4", clip(12))
    settings = {"data__bad_files": 0, "run__steps": 50, "run__checkpoint_every": 100}
    config = folder_settings(tmp_path / "videos", **settings)
    source = training_source(config, tmp_path)

    def good_steps(seed: int, rank: int) -> int:
        with BatchStream(source, 1, seed, rank, 2, ledger=BadClipLedger(0)) as stream, suppress(DataError):
            for _ in range(20):
                next(stream)
        return stream.step

    seed = next(seed for seed in range(100) if 1 < good_steps(seed, 1) < good_steps(seed, 0))
    done = run_two_processes(config.with_changes(run={"seed": seed}), tmp_path)
    assert done.returncode != 0
    lines = errors_of(done)
    assert sum("more than the limit of 0; the last is 'cut.mp4'" in line for line in lines) == 1
    assert_all_known(lines, "limit of 0")
    assert newest_step(tmp_path / "two") == good_steps(seed, 1)
