"""`wfvae train`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfvae.cli.arguments import add_json_argument, option_adder
from wfvae.cli.output import printable, show
from wfvae.errors import ConfigError, MissingExtraError
from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_CONFIG, newest_of_run

if TYPE_CHECKING:
    from wfvae.train.config import TrainingConfig
    from wfvae.train.run import RunResult
    from wfvae.train.step_loop import Watcher

_ETA_SECONDS = 600.0
"""Time that the remaining time is estimated from; rich's half a minute may not hold one step."""
_SHOWN_LOSSES = ("reconstruction", "lpips", "kl", "wavelet", "adversarial")

SUMMARY = "videos to a checkpoint: one stage of training"
DESCRIPTION = """\
Trains a model by a configuration: a TOML file, or the name of a ready one (--list).

  wfvae train tiny-quick --out runs/quick                   procedural video, minutes on a CPU
  wfvae train S-stage1 --set data.folder=videos/            stage I of the paper, into runs/S-stage1
  torchrun --nproc-per-node 8 -m wfvae train S-stage1 --set data.folder=videos/
  wfvae train S-stage1 --set data.folder=videos/ --resume   after a kill, to the same result
  wfvae train S-stage2 --set data.folder=videos/            from runs/S-stage1, or --set run.initial=RUN
  wfvae export runs/S-stage2 bundle/                        the averaged weights, newest checkpoint"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    text = "TOML file, or the name of a ready configuration"
    parser.add_argument("config", metavar="CONFIG", nargs="?", help=text)
    add = option_adder(parser)
    add("--out", Path, "directory of the run (default: CONFIG's own, else runs/ and its name)", "RUN")
    text = "set section.key of the configuration; repeatable"
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help=text)
    add("--resume", None, "continue from the newest checkpoint of the run")
    add("--list", None, "list the ready configurations")
    add("--show", None, "print the whole configuration as TOML, and do nothing")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, and prints where the result is."""
    from wfvae.train.config import TrainingConfig, ready_configs

    if args.list:
        show(args, ready_configs(), "\n".join(ready_configs()))
        return 0
    if args.config is None and args.set and "=" not in args.set[-1]:
        args.config = args.set.pop()  # `--set KEY=VALUE CONFIG`: the option takes several values
    if args.config is None:
        raise ConfigError(
            f"no configuration was given; expected a TOML file or one of: {', '.join(ready_configs())}"
        )
    config = TrainingConfig.load(args.config, args.set)
    if args.show:
        show(args, config.to_dict(), config.to_toml().rstrip())
        return 0
    directory = args.out or _default_directory(Path(args.config))
    with _reporting_what_is_kept(directory):
        _train(args, config, directory)
    return 0


def _train(args: argparse.Namespace, config: TrainingConfig, directory: Path) -> None:
    try:
        from wfvae.train.processes import join_world, processes_here
        from wfvae.train.run import train
    except ModuleNotFoundError as error:
        raise MissingExtraError("training", str(error.name), "train") from error
    from wfvae.machine import processor_count

    threads = config.run.threads or max(processor_count() // processes_here(), 1)
    steering = {override.partition("=")[0].strip() for override in args.set}
    with join_world(threads) as world, _stopping_politely() as stop:
        with _watching(world.is_first, stop) as watcher:
            result = train(config, directory, world, resume=args.resume, steering=steering, watcher=watcher)
        if world.is_first:
            _report(args, result, config.run.steps)
        if not result.finished:
            raise KeyboardInterrupt


def _default_directory(config: Path) -> Path:
    """Returns the run that a configuration lies in, or a new place."""
    if config.name == RUN_CONFIG and (config.parent / RUN_CHECKPOINTS).is_dir():
        return config.parent
    return Path("runs") / config.stem


@contextmanager
def _reporting_what_is_kept(run: Path) -> Iterator[None]:
    """Adds to an interruption whether there is a checkpoint to resume from."""
    try:
        yield
    except KeyboardInterrupt as stop:
        newest = newest_of_run(run)
        kept = f"{newest} is whole, go on with --resume" if newest is not None else "nothing was saved yet"
        raise KeyboardInterrupt(kept) from stop


def _report(args: argparse.Namespace, result: RunResult, steps: int) -> None:
    scores = result.scores
    data = {
        "run": str(result.directory),
        "step": result.step,
        "finished": result.finished,
        "bad_files": result.bad_files,
        "validation": scores._asdict() if scores else None,
        "time_shares": {name: round(share, 4) for name, share in result.shares.items()},
    }
    parts = [f"{result.directory}: step {result.step} of {steps}"]
    if scores:
        lpips = f", LPIPS {scores.lpips:.4f}" if scores.lpips is not None else ""
        parts.append(f"PSNR {scores.psnr_db:.2f} dB, SSIM {scores.ssim:.4f}{lpips}")
    if result.bad_files:
        parts.append(f"{result.bad_files} files skipped")
    parts.append(f"{result.shares['data_wait']:.0%} of the time waited for data")
    show(args, data, "; ".join(parts))


class _Stop:
    """Whether the run was asked to end."""

    def __init__(self) -> None:
        self.asked = False
        self.may_wait = False
        """Whether steps are being made, after each of which the run looks here."""

    def ask(self, number: int, frame: object) -> None:
        """A signal handler: the first call lets the step in progress end, others end the program.

        But not a second SIGTERM or SIGHUP: where one is sent to all processes, torchrun or a shell
        gets it, too, and forwards it.
        """
        if self.asked and number != signal.SIGINT:
            return
        if self.asked or not self.may_wait:
            raise KeyboardInterrupt
        self.asked = True
        with suppress(OSError):  # a terminal that was closed
            _write_line("stopping after this step and its checkpoint; Ctrl-C (again) to stop at once")


def _write_line(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"wfvae train: {printable(line)}\n")


@contextmanager
def _stopping_politely() -> Iterator[_Stop]:
    """Handles Ctrl-C, SIGTERM and the end of the terminal (except under nohup) by a `_Stop`."""
    stop = _Stop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watching(shown: bool, stop: _Stop) -> Iterator[Watcher]:
    """Shows a bar with the losses on a terminal, and notices anywhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from wfvae.train.step_loop import Watcher

    on_terminal = shown and sys.stderr is not None and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    options: dict[str, Any] = {"transient": True, "speed_estimate_period": _ETA_SECONDS}
    bar = Progress(*columns, _details(), console=console, disable=not on_terminal, **options)
    bar.start()
    index = bar.add_task("indexing", total=None, text="", visible=False)
    task = bar.add_task("training", total=None, text="")

    def progress(done: int, total: int, values: dict[str, float]) -> None:
        stop.may_wait = True
        speed = [f"{values['frames_per_second']:.1f} frames/s"] if "frames_per_second" in values else []
        losses = [f"{name} {values[name]:.4g}" for name in _SHOWN_LOSSES if values.get(name)]
        text = "  ".join([*speed, f"data wait {values['data_wait']:.0%}", *losses])
        bar.update(task, completed=done, total=total, text=text)

    def indexing(done: int, total: int) -> None:
        bar.update(index, completed=done, total=total, visible=done < total)

    def show_line(line: str) -> None:
        console.print(printable(line))

    try:
        yield Watcher(progress, show_line if on_terminal else _write_line, lambda: stop.asked, indexing)
    finally:
        with suppress(OSError):  # the terminal was closed
            bar.stop()


def _details() -> Any:
    """Returns a column that a narrow terminal cuts off; a plain one would be wrapped."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Details(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")

    return Details()
