"""The program `wfvae`: parses the command line, runs a subcommand, and turns errors into one line
and an exit code.

Exit codes: 0 done, 1 a check failed, 2 wrong use or bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from wfvae import __version__
from wfvae.errors import WFVAEError

COMMANDS = (
    "demo",
    "train",
    "export",
    "build",
    "encode",
    "decode",
    "reconstruct",
    "verify",
    "evaluate",
    "inspect",
    "plan",
    "bench",
    "triton",
)
"""Modules of `wfvae.cli`. Each has SUMMARY, DESCRIPTION, configure(parser) and run(args) -> exit
code.
"""

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = (
    "A causal video VAE (WF-VAE) as software: export once, stream videos of any length, prove that the stream"
    " is exact."
)
_EPILOG = """\
the whole job, from a checkpoint and a video:
  wfvae export CHECKPOINT bundle/            stateful ONNX graphs and their manifest
  wfvae encode bundle/ in.mp4 latents.zarr   constant memory, any length, --resume after a kill
  wfvae decode bundle/ latents.zarr out.mp4
  wfvae verify bundle/                       stream = whole clip, bit by bit
  wfvae inspect latents.zarr

without anything: wfvae demo"""


class _Parser(argparse.ArgumentParser):
    """Tells wrong use in one line. (argparse itself puts the whole usage before it.)"""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {' '.join(message.split())}; see: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands. Imports nothing heavy."""
    parser = _Parser(
        prog="wfvae",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"wfvae {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"wfvae.cli.{name}")
        sub = subparsers.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(sub)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=module.run)
    return parser


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """As `parse_args`, but what no command takes is told in the name of the command."""
    args, extra = parser.parse_known_args(argv)
    if extra:
        _Parser(prog=f"{parser.prog} {args.command}").error(f"unrecognized arguments: {' '.join(extra)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code."""
    args = _parsed(build_parser(), argv)
    # A polite kill ends like Ctrl-C: temporary files are removed, finished work stays.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        code: int = args.run(args)
        _flush_output()
        return code
    except KeyboardInterrupt as stop:
        return _fail(
            args, f"interrupted; {stop}" if stop.args else "interrupted" + _way_on(args), INTERRUPTED
        )
    except BrokenPipeError:
        _give_up_output()
        return _fail(args, "the program that reads the output has ended", WRONG)
    except WFVAEError as error:
        return _fail(args, str(error), WRONG)
    except MemoryError:
        way = (
            "use a smaller --chunk or size (wfvae plan tells what is needed)"
            if hasattr(args, "chunk")
            else "use smaller sizes"
        )
        return _fail(args, f"out of memory; {way}", WRONG)
    except OSError as error:
        return _fail(
            args, f"{error.strerror or error}: {error.filename}" if error.filename else str(error), WRONG
        )
    except Exception as error:  # a defect of ours: still one line, and the traceback on request
        return _fail(
            args,
            f"internal error, {type(error).__name__}: {error}; run again with --debug and report it",
            WRONG,
        )


def _flush_output() -> None:
    """Raises `OSError` that names standard output if it does not take all, as on a full disk."""
    if sys.stdout is None:  # closed by whoever started the program
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up_output()
        raise OSError(error.errno, error.strerror, "standard output") from error


def _give_up_output() -> None:
    """What is left of the output has nowhere to go; Python would complain once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _way_on(args: argparse.Namespace) -> str:
    if not hasattr(args, "resume"):
        return ""
    # What came through a pipe is gone.
    return "; finished work is kept" + ("" if getattr(args, "video", "") == "-" else ", go on with --resume")


def _fail(args: argparse.Namespace, message: str, code: int) -> int:
    if args.debug:
        traceback.print_exc()
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"wfvae {args.command}: {' '.join(message.split())}\n")
            sys.stderr.flush()
        except OSError:  # a full disk, or a terminal that was closed: the exit code still tells
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return code
