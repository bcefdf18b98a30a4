"""Results and progress of a subcommand: JSON or text on a standard stream, a bar on a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unicodedata import category

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_WIDTH_OFF_TERMINAL = 200
_CONTROLLING = ("Cc", "Cf", "Zl", "Zp")
"""Unicode's categories of control and format characters, and of other line breaks."""


def show(args: argparse.Namespace, data: Any, text: RenderableType, to_stderr: bool = False) -> None:
    """Prints a result: `data` as JSON if `--json` was given, else `text`.

    `to_stderr` prints to standard error, when standard output carries data. Raises `OSError` that
    names the stream if it cannot be written.
    """
    stream, name = (sys.stderr, "standard error") if to_stderr else (sys.stdout, "standard output")
    if stream is None:  # closed by the calling process
        return
    with naming_stream(name):
        if args.json:
            stream.write(json.dumps(data, indent=2) + "\n")
        elif isinstance(text, str):
            # File names may hold bytes that are not UTF-8.
            stream.write(printable(text).encode("utf-8", "backslashreplace").decode() + "\n")
        else:
            from rich.console import Console

            width = None if stream.isatty() else _WIDTH_OFF_TERMINAL
            Console(file=stream, highlight=False, markup=False, width=width).print(text)


def printable(text: str) -> str:
    r"""Returns text without characters that would control a terminal or reorder its line.

    Names and metadata come from files of others. Line breaks and tabs stay.

    >>> printable("a\x1b[2Jb\u202ec")
    'a\\x1b[2Jb\\u202ec'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(letter)[1:-1] if category(letter) in _CONTROLLING and letter not in "\n\t" else letter
        for letter in text
    )


@contextmanager
def naming_stream(name: str) -> Iterator[None]:
    """Adds a stream's name to errors of writing it, as on a full disk; not to a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def text_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """Returns a table for a terminal, with all columns but the first aligned to the right."""
    from rich.table import Table

    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(printable, row))
    return table


@contextmanager
def progress_bar(label: str, unit: str = "frames") -> Iterator[Callable[..., None]]:
    """Shows what is done, its rate and time left on a terminal's standard error; nothing elsewhere.

    Yields:
        A function of units done, units in all (None if unknown), and the label if it changes.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    rate = TextColumn(f"{unit}  {{task.fields[rate]}}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate)
    options: dict[str, Any] = {"console": console, "disable": not on_terminal, "transient": True}
    with Progress(*columns, TimeRemainingColumn(), **options) as bar:
        task = bar.add_task(label, total=None, rate="")

        def advance(done: int, total: int | None, stage: str = label) -> None:
            speed = bar.tasks[task].speed if unit == "frames" else None
            # A container may understate its frames.
            shown = total if total is not None and total >= done else None
            text = f"{speed:.1f} fps" if speed else ""
            bar.update(task, description=stage, completed=done, total=shown, rate=text)

        yield advance


def mebibytes(count: int) -> str:
    """Formats bytes for people.

    >>> mebibytes(3 << 20)
    '3.0 MiB'
    """
    return f"{count / (1 << 20):,.1f} MiB"
