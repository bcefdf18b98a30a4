"""`wfvae evaluate`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wfvae.cli.arguments import add_execution_arguments, add_json_argument, open_from, parse_positive
from wfvae.cli.output import progress_bar, show
from wfvae.errors import InputError, ResourceError
from wfvae.spec.frames import SPATIAL_RATIO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from wfvae.evaluation.evaluation import Evaluation, PairedDifference
    from wfvae.evaluation.lpips_choice import LPIPSChoice
    from wfvae.evaluation.protocol import Protocol
    from wfvae.evaluation.results import Labelled
    from wfvae.evaluation.sources import Source
    from wfvae.evaluation.video_features import VideoFeatures

SUMMARY = "score reconstructions: PSNR, SSIM, LPIPS, FVD"
DESCRIPTION = """\
Scores reconstructions against their originals, or a bundle by streaming the originals through it. Videos are matched by their path
below the folder, without suffix; a folder of images is a video. By default as in the paper: 33 frames of 256x256 of each video.
Means over videos with 95 % intervals, the worst videos by name, and with --compare the difference of two reconstructions, paired.

  wfvae evaluate real/ reconstructed/
  wfvae evaluate --bundle bundle/ --data real/ --i3d i3d_torchscript.pt --out results/
  wfvae evaluate real/ ours/ --compare theirs/ --json
  wfvae evaluate --bundle ours/ --data real/ --compare-bundle theirs/

Exit code 1 if videos had to be skipped: unreadable, too short, or not of one size with their original. docs/evaluation.md has the
definitions."""

_SHOWN = 5
_KNOWN_TO_BUNDLES = ("channels", "compression")
_OF_SECOND = ("compare_name", "compare_channels", "compare_compression")
_OF_SECOND_BUNDLE = ("compare_backend", "compare_precision_hint")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "real", nargs="?", type=Path, metavar="REAL", help="original video, or folder of videos"
    )
    parser.add_argument(
        "reconstruction",
        nargs="?",
        type=Path,
        metavar="RECON",
        help="its reconstruction, or folder of reconstructions",
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="BUNDLE", help="reconstruct with this bundle instead of reading RECON"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="with --bundle: the original videos")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="RECON",
        help="other reconstructions of the same videos, for paired differences",
    )
    parser.add_argument(
        "--compare-bundle", type=Path, metavar="BUNDLE", help="the same, reconstructed with this bundle"
    )
    parser.add_argument(
        "--matched", action="store_true", help="score only videos found on both sides, instead of refusing"
    )
    group = parser.add_argument_group(
        "what the tables say of the reconstructions (a bundle knows its channels and compression)"
    )
    _add_facts(group, "--", "the reconstructions")
    _add_facts(group, "--compare-", "what is compared with them")
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--frames", type=parse_positive, metavar="N", help="consecutive frames of each video (default: 33)"
    )
    group.add_argument(
        "--size",
        type=parse_positive,
        metavar="N",
        help="resize the short side, crop a square of N (default: 256)",
    )
    group.add_argument(
        "--window", choices=("first", "centre"), default="first", help="which frames (default: %(default)s)"
    )
    group.add_argument("--whole", action="store_true", help="whole videos at their own size")
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--lpips-weights",
        metavar="FILE|random|none",
        help=(
            "weights of LPIPS's backbone: a file of torchvision's state dict; random, to try out (default:"
            " torchvision's, downloaded)"
        ),
    )
    group.add_argument(
        "--lpips-net",
        choices=("alex", "vgg"),
        default="alex",
        help="backbone of LPIPS (default: %(default)s)",
    )
    group.add_argument(
        "--i3d", type=Path, metavar="FILE", help="TorchScript network of video features, for FVD"
    )
    group = parser.add_argument_group("results")
    group.add_argument(
        "--worst",
        type=parse_positive,
        default=_SHOWN,
        metavar="N",
        help="worst videos to name per metric (default: %(default)s)",
    )
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="write evaluation.json and evaluation.md there"
    )
    add_execution_arguments(parser)
    group = parser.add_argument_group("execution of --compare-bundle, where it differs")
    group.add_argument(
        "--compare-backend",
        metavar="NAME",
        help="what runs its graphs (default: as --backend and --precision-hint)",
    )
    group.add_argument(
        "--compare-precision-hint", choices=("fp32", "bf16"), help="with openvino: what to compute in"
    )
    add_json_argument(parser)


def _add_facts(group: argparse._ArgumentGroup, prefix: str, what: str) -> None:
    group.add_argument(
        f"{prefix}name", metavar="NAME", help=f"what to call {what} (default: name of folder or bundle)"
    )
    group.add_argument(
        f"{prefix}channels",
        type=parse_positive,
        metavar="N",
        help="latent channels of the model that made the files",
    )
    group.add_argument(
        f"{prefix}compression",
        type=_parse_compression,
        metavar="TxHxW",
        help="its compression, such as 4x8x8",
    )


def _parse_compression(text: str) -> tuple[int, int, int]:
    """`TxHxW` to (time, height, width)."""
    try:
        time, height, width = (parse_positive(part) for part in text.lower().split("x"))
        return time, height, width
    except (ValueError, argparse.ArgumentTypeError):
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a compression; expected TIMExHEIGHTxWIDTH, such as 4x8x8"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the scores, and returns 1 if videos were skipped."""
    _check_usage(args)
    from wfvae.evaluation.lpips_choice import choose_lpips
    from wfvae.evaluation.protocol import PAPER_FRAMES, PAPER_SIZE, Protocol
    from wfvae.evaluation.requirements import require_libraries, use_threads
    from wfvae.evaluation.video_features import VideoFeatures

    require_libraries()
    if args.threads is not None:
        use_threads(args.threads)
    protocol = (
        Protocol(None, None)
        if args.whole
        else Protocol(args.frames or PAPER_FRAMES, args.size or PAPER_SIZE, args.window)
    )
    run_ = _Run(
        args,
        protocol,
        choose_lpips(args.lpips_weights, args.lpips_net),
        None if args.i3d is None else VideoFeatures(args.i3d),
    )
    return run_.run()


def _check_usage(args: argparse.Namespace) -> None:
    """Raises `InputError` for arguments that do not go together."""
    files = (args.real, args.reconstruction)
    if (args.bundle is None) != (args.data is None):
        raise InputError("--bundle and --data belong together: --bundle BUNDLE --data DIR")
    if args.bundle is not None and any(files):
        raise InputError(
            f"{args.real} was given beside --bundle; give either REAL and RECON, or --bundle BUNDLE"
            " --data DIR"
        )
    if args.bundle is None and not all(files):
        raise InputError("nothing to compare; give REAL and RECON, or --bundle BUNDLE --data DIR")
    if args.whole and (args.frames or args.size or args.window != "first"):
        raise InputError(
            "--whole takes all frames at their own size; leave out --frames, --size and --window"
        )
    if args.bundle is None and args.compare_bundle is None and args.chunk is not None:
        raise InputError("--chunk is for --bundle; RECON is only read")
    if args.compare is not None and args.compare_bundle is not None:
        raise InputError(
            "--compare and --compare-bundle were both given; the second set of reconstructions is one of"
            " the two"
        )
    if args.compare is None and args.compare_bundle is None and (given := _given(args, _OF_SECOND)):
        raise InputError(
            f"{given} is for a second set of reconstructions; give one with --compare or --compare-bundle"
        )
    if args.compare_bundle is None and (given := _given(args, _OF_SECOND_BUNDLE)):
        raise InputError(f"{given} is for --compare-bundle, which was not given")
    for bundle, prefix in ((args.bundle, ""), (args.compare_bundle, "compare_")):
        if bundle is not None and (given := _given(args, [prefix + name for name in _KNOWN_TO_BUNDLES])):
            raise InputError(f"{given} was given for the bundle {bundle}, which knows its own; leave it out")


def _given(args: argparse.Namespace, names: Sequence[str]) -> str | None:
    """The first of these options that was given."""
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None), None)


def _second(args: argparse.Namespace) -> argparse.Namespace | None:
    """The arguments of what is compared, as if they were those of the first set; None where nothing
    is.
    """
    if args.compare is None and args.compare_bundle is None:
        return None
    name, backend, hint, provider = args.compare_name, args.backend, args.precision_hint, args.provider
    if execution := [one for one in (args.compare_backend, args.compare_precision_hint) if one is not None]:
        name = (
            name or f"{args.compare_bundle.resolve().name} ({', '.join(execution)})"
        )  # it may be the first bundle, run otherwise
        # Another backend may have neither such a hint nor such a provider.
        backend, hint = (
            args.compare_backend or backend,
            args.compare_precision_hint or (None if args.compare_backend else hint),
        )
        provider = "auto" if args.compare_backend else provider
    own = {
        "reconstruction": args.compare,
        "bundle": args.compare_bundle,
        "name": name,
        "channels": args.compare_channels,
        "compression": args.compare_compression,
        "backend": backend,
        "precision_hint": hint,
        "provider": provider,
    }
    return argparse.Namespace(**{**vars(args), **own})


@dataclass(frozen=True)
class _Reconstructions:
    """What is scored, and what the tables say of it."""

    source: Source
    label: str
    channels: int | None
    ratio: tuple[int, int, int] | None

    def labelled(self, evaluation: Evaluation) -> Labelled:
        from wfvae.evaluation.results import Labelled

        return Labelled(self.label, evaluation, self.channels, self.ratio)


@contextlib.contextmanager
def _open_reconstructions(args: argparse.Namespace) -> Iterator[_Reconstructions]:
    """Those of the arguments of one set, to be scored while this is open."""
    from wfvae.evaluation.sources import BundleSource, FileSource
    from wfvae.evaluation.video_files import find_videos, match_videos

    real = args.data or args.real
    if args.bundle is None:
        pairs = match_videos(real, args.reconstruction, only_matched=args.matched)
        label = args.name or args.reconstruction.resolve().name
        yield _Reconstructions(FileSource(tuple(pairs)), label, args.channels, args.compression)
        return
    videos = find_videos(real)
    with open_from(args) as bundle:
        label = args.name or args.bundle.resolve().name
        source = BundleSource(bundle, videos, args.chunk)
        yield _Reconstructions(
            source, label, bundle.manifest.model["latent_dim"], (bundle.ratio, SPATIAL_RATIO, SPATIAL_RATIO)
        )


class _Run:
    """One call of the command."""

    def __init__(
        self, args: argparse.Namespace, protocol: Protocol, lpips: LPIPSChoice, network: VideoFeatures | None
    ) -> None:
        self._args, self._protocol, self._lpips, self._network = args, protocol, lpips, network
        self._entries: list[Labelled] = []

    def run(self) -> int:
        """Scores, then shows and writes; what was scored before a failure or an interruption too."""
        try:
            differences = self._score_all()
        except (KeyboardInterrupt, Exception):
            if self._entries:
                self._give_out([])
            raise
        self._give_out(differences)
        return 1 if any(entry.evaluation.skipped for entry in self._entries) else 0

    def _score_all(self) -> list[PairedDifference]:
        from wfvae.evaluation.evaluation import compare

        second = _second(self._args)
        # Opened first, since what is wrong with it is better known before the work. It holds no
        # graphs until it is scored.
        with contextlib.nullcontext() if second is None else _open_reconstructions(second) as others:
            with _open_reconstructions(self._args) as reconstructions:
                self._score(reconstructions)
            if others is None:
                return []
            with contextlib.suppress(ResourceError):  # said at the end, when all is shown
                self._write([])  # not even a kill shall cost the first set
            self._score(others)
        return compare(self._entries[0].evaluation, self._entries[1].evaluation)

    def _score(self, scored: _Reconstructions) -> None:
        from wfvae.evaluation.evaluation import Evaluator
        from wfvae.evaluation.results import prepare_folder

        if self._args.out is not None:
            prepare_folder(self._args.out)
        evaluator = Evaluator(scored.source, self._protocol, self._lpips, self._network)
        try:
            with progress_bar(f"evaluate {scored.label}") as progress:
                evaluation = evaluator.run(progress)
        except (KeyboardInterrupt, Exception):
            found = evaluator.result(complete=False)
            if found.videos:
                self._entries.append(scored.labelled(found))
            raise
        self._entries.append(scored.labelled(evaluation))

    def _give_out(self, differences: list[PairedDifference]) -> None:
        """Shows and writes the results; each is tried whatever becomes of the other."""
        try:
            show(self._args, self._data(differences), _text(self._entries, differences, self._args.worst))
        finally:
            self._write(differences)

    def _write(self, differences: list[PairedDifference]) -> None:
        from wfvae.evaluation.results import to_markdown, write_results

        if self._args.out is not None:
            write_results(
                self._args.out,
                self._data(differences),
                to_markdown(self._entries, differences, self._args.worst),
            )

    def _data(self, differences: list[PairedDifference]) -> dict[str, Any]:
        from wfvae.evaluation.results import to_json

        return to_json(self._entries, differences, self._args.worst)


def _text(entries: list[Labelled], differences: list[PairedDifference], worst: int) -> RenderableType:
    """The scores for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from wfvae.evaluation.evaluation import METRICS
    from wfvae.evaluation.results import cells, headings, limit_remark, regression_lines, remarks, score_text

    table = Table("", *headings())
    for entry in entries:
        table.add_row(Text(entry.label), *cells(entry))
    if differences:
        texts = {
            one.metric.key: score_text(one.metric, one.mean, sign=True) + (" *" if one.significant else "")
            for one in differences
        }
        table.add_row("second - first, paired", *(texts.get(metric.key, "–") for metric in METRICS), "")
    lines = [
        "± is half of the 95 % interval (Student's t over videos)"
        + ("; * the interval excludes zero" if differences else "")
    ]
    lines += [*limit_remark(entries), *regression_lines(differences, worst)] if differences else []
    for entry in entries:
        lines += [f"{entry.label}: {line}" for line in remarks(entry)]
        for metric in METRICS:
            if listed := entry.evaluation.worst(metric, worst):
                lines.append(
                    f"{entry.label}: worst {metric.title}: "
                    + ", ".join(f"{video.name} ({video.get(metric):.4g})" for video in listed)
                )
    # Names of files may be bytes that are no text.
    return Group(table, *(Text(line.encode("utf-8", "backslashreplace").decode()) for line in lines))
