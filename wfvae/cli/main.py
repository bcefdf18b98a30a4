"""The program `wfvae`: parses the command line, runs a subcommand, reports errors on one line.

Exit codes: 0 done, 1 a check failed, 2 wrong use or bad input, 130 interrupted.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import IO, NoReturn

from wfvae import __version__
from wfvae.cli.arguments import parse_bytes
from wfvae.cli.output import naming_stream, printable
from wfvae.errors import WFVAEError
from wfvae.machine import memory_allowance

COMMANDS = (
    "demo",
    "train",
    "export",
    "build",
    "encode",
    "encode-dataset",
    "pack",
    "unpack",
    "decode",
    "reconstruct",
    "verify",
    "evaluate",
    "inspect",
    "plan",
    "bench",
    "triton",
)
"""Modules of `wfvae.cli` with SUMMARY, DESCRIPTION, configure(parser), run(args) -> exit code."""

OWN_LIMIT = ("plan", "triton")
"""Commands whose `--limit` is about something else than this process."""

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = """\
A causal video VAE (WF-VAE) as software: export once, stream videos of any length, prove that the
stream is exact."""
_EPILOG = """\
the whole job, from a checkpoint and a video:
  wfvae export CHECKPOINT bundle/            stateful ONNX graphs and their manifest
  wfvae encode bundle/ in.mp4 latents.zarr   constant memory, any length, --resume after a kill
  wfvae decode bundle/ latents.zarr out.mp4
  wfvae verify bundle/                       the stream equals the whole clip, bit by bit
  wfvae inspect latents.zarr

with no files at hand: wfvae demo"""


class _Parser(argparse.ArgumentParser):
    """Reports usage errors on one line; argparse itself prints the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {' '.join(message.split())}; see: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all subcommands. Imports nothing heavy."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="wfvae", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"wfvae {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"wfvae.cli.{name.replace('-', '_')}")
        texts = {"help": module.SUMMARY, "description": module.DESCRIPTION}
        sub = subparsers.add_parser(name, formatter_class=formatter, **texts)
        module.configure(sub)
        if name not in OWN_LIMIT:
            text = "refuse work that needs more memory, such as 8G (default: what is available)"
            sub.add_argument("--limit", type=parse_bytes, metavar="BYTES", help=text)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=module.run)
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses as `parse_args` does, but reports unknown arguments under the subcommand's name."""
    given = sys.argv[1:] if argv is None else list(argv)
    args, extra = parser.parse_known_args(given)
    own = _Parser(prog=f"{parser.prog} {args.command}")
    if extra:
        own.error(f"unrecognized arguments: {' '.join(extra)}")
    for number, text in enumerate(given):
        # An empty path would stand for the current folder.
        if not text or (text.startswith("--") and text.endswith("=")):
            before = "" if text or not number else f" after '{given[number - 1]}'"
            own.error(f"argument {number} ('{text}') is empty{before}; give a path or a value")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code.

    >>> main(["plan", "nowhere", "--size", "64x64"])
    2
    """
    if argv is None:
        _silence_libraries()
    args = _parse(build_parser(), argv)
    _interrupt_on_signals()
    try:
        allowed = None if args.command in OWN_LIMIT else args.limit
        with memory_allowance(allowed):
            code: int = args.run(args)
        _flush_output()
        return code
    except KeyboardInterrupt as stop:
        return _fail(args, f"interrupted{f'; {stop}' if stop.args else _advice(args)}", INTERRUPTED)
    except Exception as error:
        return _fail(args, _describe(error, args), WRONG)


def _describe(error: Exception, args: argparse.Namespace) -> str:
    match error:
        case WFVAEError():
            return str(error)
        case BrokenPipeError():
            _discard(sys.stdout)
            return "the program that reads the output has ended"
        case OSError():
            return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
        case MemoryError():
            smaller = "a smaller --chunk or size ('wfvae plan' prints what is needed)"
            return f"out of memory; use {smaller if hasattr(args, 'chunk') else 'smaller sizes'}"
    # A defect of the program: one line all the same.
    return f"internal error, {type(error).__name__}: {error}; run again with --debug and report it"


def _silence_libraries() -> None:
    """Keeps warnings of libraries from standard error, which has one line for an error."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:  # neither -W nor PYTHONWARNINGS was given
        warnings.simplefilter("ignore")


def _interrupt_on_signals() -> None:
    """Makes SIGTERM and SIGHUP end the program as Ctrl-C does: finished work stays."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, signal.default_int_handler)


def _flush_output() -> None:
    """Raises `OSError` that names standard output if it cannot be written, as on a full disk."""
    if sys.stdout is None:  # closed by the calling process
        return
    try:
        with naming_stream("standard output"):
            sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
        raise


def _discard(stream: IO[str]) -> None:
    """Redirects a stream that cannot be written, or Python would report it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _advice(args: argparse.Namespace) -> str:
    """Returns what the user of an interrupted job can do."""
    if not hasattr(args, "resume"):
        return ""
    reads_pipe = getattr(args, "video", "") == "-"  # what came through a pipe is gone
    return "; finished work is kept" + ("" if reads_pipe else ", go on with --resume")


def _fail(args: argparse.Namespace, message: str, code: int) -> int:
    """Prints one line, after the traceback if `--debug` was given, and returns `code`."""
    if args.debug:
        traceback.print_exc()
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"wfvae {args.command}: {printable(' '.join(message.split()))}\n")
            sys.stderr.flush()
        except OSError:  # a full disk or a closed terminal: the exit code remains
            _discard(sys.stderr)
    return code
