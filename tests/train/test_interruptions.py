"""Signals and terminals: a run that is interrupted keeps its work and ends with one line."""

import fcntl
import os
import pty
import re
import signal
import sys
import termios
from pathlib import Path
from typing import Any

import psutil
import pytest

from fixtures.program import Program, on_terminal, start_process, wait_for
from fixtures.training import CPU, logged_steps, small, steps_kept, write_config
from wfvae.cli import main as cli
from wfvae.train.run import train

ENDLESS = {"run__steps": 100_000, "run__checkpoint_every": 100_000}


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, False), pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow)],
)
def test_interrupted_run_saves_its_last_step(
    number: signal.Signals, whole_group: bool, tmp_path: Path
) -> None:
    """A group gets it twice: torchrun forwards SIGTERM that reached all."""
    settings = small(**ENDLESS, data__workers=int(whole_group))
    run, config = tmp_path / "run", write_config(settings, tmp_path / "small.toml")
    process = start_process("train", config, "--out", run, start_new_session=whole_group)
    wait_for(lambda: logged_steps(run) >= 2, process)
    for _ in range(2 if whole_group else 1):
        os.killpg(process.pid, number) if whole_group else process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search(rb"interrupted; .*step-\d{8} is whole, go on with --resume", err)
    assert b"stopping after this step and its checkpoint; Ctrl-C (again) to stop at once" in err
    assert len(err.splitlines()) == 2, err
    [step] = steps_kept(run)
    assert step >= 2
    assert b"of 100000" in out
    longer = settings.with_changes(run={"steps": step + 1})
    assert train(longer, run, CPU, resume=True).step == step + 1


def test_interruption_while_torch_loads_reports_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading:
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "wfvae.train.run", Loading())
    step = tmp_path / "old" / "checkpoints" / "step-00000003"
    step.mkdir(parents=True)
    for name, kept in (("new", "nothing was saved yet"), ("old", f"{step} is whole, go on with --resume")):
        assert cli.main(["train", "tiny-quick", "--out", str(tmp_path / name)]) == 130
        assert capsys.readouterr().err == f"wfvae train: interrupted; {kept}\n"


@pytest.mark.slow
def test_interruption_while_workers_start_is_one_line(tmp_path: Path) -> None:
    """To the whole group, while the fork server loads torch and handles no signals yet."""
    config = write_config(small(**ENDLESS, data__workers=2), tmp_path / "small.toml")
    process = start_process("train", config, "--out", tmp_path / "run", start_new_session=True)

    def servers() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "forkserver" in " ".join(child.cmdline())]

    assert wait_for(servers, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.decode() == "wfvae train: interrupted; nothing was saved yet\n"


@pytest.mark.slow
def test_closed_terminal_interrupts_a_run(tmp_path: Path) -> None:
    """With its bar, which then has nowhere to be removed from."""
    run, config = tmp_path / "run", write_config(small(**ENDLESS), tmp_path / "small.toml")
    leader, follower = pty.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(follower, termios.TIOCSCTTY, 0)

    streams: dict[str, Any] = {"stdin": follower, "stderr": follower}
    options = {"start_new_session": True, "preexec_fn": own_terminal}
    process = start_process("train", config, "--out", run, **streams, **options)
    os.close(follower)
    wait_for(lambda: os.read(leader, 65536) and logged_steps(run) >= 2, process)
    os.close(leader)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(steps_kept(run)) == 1


@pytest.mark.slow
def test_progress_shows_on_a_terminal_only(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small(validation__every=0, validation__clips=1, run__steps=2)
    config = write_config(settings, tmp_path / "small.toml")
    pattern = r"training .*[12]/2 \d:\d\d:\d\d \d+\.\d frames/s  data wait \d+%"
    code, text = on_terminal("train", config, "--out", tmp_path / "one", "--json")
    losses = r"  reconstruction \d\S*  kl \d\S*  wavelet \d\S*"
    assert code == 0 and re.search(pattern + losses, text), text
    code, text = on_terminal("train", config, "--out", tmp_path / "narrow", "--json", columns=80)
    assert code == 0 and re.search(pattern + r"  recons\w*…", text), text  # losses are cut off
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert program.done("train", config, "--out", tmp_path / "other")["finished"]
