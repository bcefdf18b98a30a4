"""`wfvae train`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wfvae.cli.arguments import add_json_argument
from wfvae.cli.output import show
from wfvae.errors import MissingExtraError

if TYPE_CHECKING:
    from wfvae.train.loop import RunResult

_ETA_SECONDS = 600.0
"""Time over which the speed is taken that the remaining time is computed from; rich's half a minute
may not hold one step.
"""

SUMMARY = "videos to a checkpoint: one stage of training"
DESCRIPTION = """\
Trains a model by a configuration: a TOML file, or the name of a ready one (--list). Every key can be set on the command line.

  wfvae train tiny-quick --out runs/quick                                 procedural video, five minutes on two cores
  wfvae train S-stage1 --set data.folder=videos/                          the paper's stage I, into runs/S-stage1
  torchrun --nproc-per-node 8 -m wfvae train S-stage1 --set data.folder=videos/
  wfvae train S-stage1 --set data.folder=videos/ --resume                 after a kill, with the same result as without
  wfvae train S-stage2 --set data.folder=videos/                          from runs/S-stage1; --set run.initial=RUN for another
  wfvae export runs/S-stage2 bundle/                                      the averaged weights of the newest checkpoint"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="TOML file, or the name of a ready configuration"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="directory of the run (default: CONFIG's own, else runs/ and its name)",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="set section.key of the configuration; repeatable",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    parser.add_argument("--list", action="store_true", help="list the ready configurations")
    parser.add_argument(
        "--show", action="store_true", help="print the whole configuration as TOML, and do nothing"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, and prints where the result is."""
    from wfvae.errors import ConfigError
    from wfvae.train.config import TrainingConfig, ready_configs

    if args.list:
        show(args, ready_configs(), "\n".join(ready_configs()))
        return 0
    if args.config is None and args.set and "=" not in args.set[-1]:
        args.config = (
            args.set.pop()
        )  # `--set KEY=VALUE CONFIG`: options that take several values take this one, too
    if args.config is None:
        raise ConfigError(
            f"no configuration was given; expected a TOML file or one of: {', '.join(ready_configs())}"
        )
    config = TrainingConfig.load(args.config, args.set)
    if args.show:
        show(args, config.to_dict(), config.to_toml().rstrip())
        return 0
    directory = args.out or _default_directory(Path(args.config))
    with _what_is_kept(directory):
        try:
            from wfvae.train.loop import Watcher, train
            from wfvae.train.world import join_world, processes_here
        except ModuleNotFoundError as error:
            raise MissingExtraError("training", str(error.name), "train") from error
        from wfvae.machine import processor_count

        threads = config.run.threads or max(processor_count() // processes_here(), 1)
        with (
            join_world(threads) as world,
            _polite_stop() as stop,
            _progress(world.is_first) as (progress, notice, indexing),
        ):

            def stepped(done: int, total: int, values: dict[str, float]) -> None:
                stop.may_wait = True
                progress(done, total, values)

            watcher = Watcher(stepped, notice, stop.asked, indexing)
            steering = {override.partition("=")[0].strip() for override in args.set}
            result = train(config, directory, world, resume=args.resume, steering=steering, watcher=watcher)
        if world.is_first:
            _report(args, result, config.run.steps)
        if not result.finished:
            raise KeyboardInterrupt
    return 0


def _default_directory(config: Path) -> Path:
    """The run that a configuration belongs to, if it lies in one; else a new place."""
    from wfvae.spec.runs import RUN_CHECKPOINTS, RUN_CONFIG

    if config.name == RUN_CONFIG and (config.parent / RUN_CHECKPOINTS).is_dir():
        return config.parent
    return Path("runs") / config.stem


@contextmanager
def _what_is_kept(run: Path) -> Iterator[None]:
    """An interruption tells whether there is anything to go on from."""
    from wfvae.spec.runs import newest_of_run

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
    quality = f"; PSNR {scores.psnr_db:.2f} dB, SSIM {scores.ssim:.4f}" if scores else ""
    quality += f", LPIPS {scores.lpips:.4f}" if scores and scores.lpips is not None else ""
    skipped = f"; {result.bad_files} files skipped" if result.bad_files else ""
    waiting = f"; {result.shares['data_wait']:.0%} of the time waited for data"
    show(args, data, f"{result.directory}: step {result.step} of {steps}{quality}{skipped}{waiting}")


class _Stop:
    """Whether the run was asked to end."""

    def __init__(self) -> None:
        self.may_wait = False
        """Whether steps are being made, after each of which the run looks here."""
        self._asked = threading.Event()

    def asked(self) -> bool:
        """Whether it was."""
        return self._asked.is_set()

    def ask(self, number: int, frame: object) -> None:
        """A signal handler: the first call during training waits for the step in progress, all
        others end the program.

        But not SIGTERM once more: where one is sent to all processes, torchrun gets it, too, and
        passes it on. Nor SIGHUP: a shell sends it to its jobs when its terminal has.
        """
        if self._asked.is_set() and number != signal.SIGINT:
            return
        if self._asked.is_set() or not self.may_wait:
            raise KeyboardInterrupt
        self._asked.set()
        if sys.stderr is not None:
            with suppress(OSError):  # a terminal that was closed
                sys.stderr.write(
                    "wfvae train: stopping after this step and its checkpoint; Ctrl-C (again) to stop at"
                    " once\n"
                )


@contextmanager
def _polite_stop() -> Iterator[_Stop]:
    """The first Ctrl-C (or SIGTERM, or the end of the terminal) ends the run after the step in
    progress, with a checkpoint; a Ctrl-C after it at once."""
    stop = _Stop()
    asked_by = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        asked_by.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop.ask) for number in asked_by}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(
    shown: bool,
) -> Iterator[
    tuple[Callable[[int, int, dict[str, float]], None], Callable[[str], None], Callable[[int, int], None]]
]:
    """A bar with the losses on a terminal; skipped files are told anywhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Details(ProgressColumn):
        """What gives way where the terminal is narrow, from its end: as a column that might be
        wrapped, whose text never is.
        """

        def render(self, task: Task) -> Text:
            return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    on_terminal = shown and sys.stderr is not None and sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        Details(),
    )
    bar = Progress(
        *columns, console=console, disable=not on_terminal, transient=True, speed_estimate_period=_ETA_SECONDS
    )
    bar.start()
    try:
        index = bar.add_task("indexing", total=None, text="", visible=False)
        task = bar.add_task("training", total=None, text="")

        def progress(done: int, total: int, values: dict[str, float]) -> None:
            parts = [f"{values['frames_per_second']:.1f} frames/s"] if "frames_per_second" in values else []
            parts += [f"data wait {values['data_wait']:.0%}"]
            parts += [
                f"{name} {values[name]:.4g}"
                for name in (
                    "reconstruction",
                    "lpips",
                    "kl",
                    "wavelet",
                    "adversarial",
                )
                if values.get(name)
            ]
            bar.update(task, completed=done, total=total, text="  ".join(parts))

        def notice(line: str) -> None:
            if sys.stderr is not None:
                bar.console.print(line) if on_terminal else sys.stderr.write(f"wfvae train: {line}\n")

        def indexing(done: int, total: int) -> None:
            bar.update(index, completed=done, total=total, visible=done < total)

        yield progress, notice, indexing
    finally:
        with suppress(OSError):  # the terminal was closed
            bar.stop()
