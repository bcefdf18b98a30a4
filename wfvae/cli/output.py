"""Results and progress of a subcommand: JSON or text on a standard stream, a bar on a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

_WIDTH_OFF_TERMINAL = 200


def show(args: argparse.Namespace, data: Any, text: RenderableType, to_stderr: bool = False) -> None:
    """Prints a result: `data` as JSON if `--json` was given, else `text`.

    Args:
        to_stderr: print to standard error, because standard output carries data.

    Raises:
        OSError: the stream, which the error names, cannot be written, as on a full disk.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed by the calling process
        return
    try:
        _print(args, data, text, stream)
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard error" if to_stderr else "standard output"
        raise OSError(error.errno, error.strerror, name) from error


def _print(args: argparse.Namespace, data: Any, text: RenderableType, stream: TextIO) -> None:
    if args.json:
        stream.write(json.dumps(data, indent=2) + "\n")
        return
    if isinstance(text, str):
        # File names may hold bytes that are not UTF-8.
        stream.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        return
    from rich.console import Console

    width = None if stream.isatty() else _WIDTH_OFF_TERMINAL
    Console(file=stream, highlight=False, width=width).print(text)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows frames, rate and time left on a terminal's standard error, and nothing elsewhere.

    Yields:
        A function of frames done and frames in all, None if unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames  {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not on_terminal, transient=True) as bar:
        task = bar.add_task(label, total=None, rate="")

        def advance(done: int, total: int | None) -> None:
            speed = bar.tasks[task].speed
            # A container may understate its frames.
            shown = total if total is not None and total >= done else None
            bar.update(task, completed=done, total=shown, rate=f"{speed:.1f} fps" if speed else "")

        yield advance


def mebibytes(count: int) -> str:
    """Formats bytes for people.

    >>> mebibytes(3 << 20)
    '3.0 MiB'
    """
    return f"{count / (1 << 20):,.1f} MiB"
