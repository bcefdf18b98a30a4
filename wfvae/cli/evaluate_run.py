"""The work of `wfvae evaluate`: scores one or two sets of reconstructions, prints and writes."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wfvae.cli.arguments import open_from
from wfvae.cli.output import progress_bar, show
from wfvae.errors import ResourceError
from wfvae.evaluation.evaluator import Evaluator, use_threads
from wfvae.evaluation.lpips_choice import choose_lpips
from wfvae.evaluation.protocol import PAPER_FRAMES, PAPER_SIZE, Protocol
from wfvae.evaluation.results import Labelled, to_json, write_results
from wfvae.evaluation.scores import PairedDifference, compare
from wfvae.evaluation.sources import Videos, bundle_videos, file_videos
from wfvae.evaluation.tables import to_markdown
from wfvae.evaluation.video_features import VideoFeatures
from wfvae.evaluation.video_files import find_videos, match_videos
from wfvae.files import prepare_folder
from wfvae.spec.frames import SPATIAL_RATIO


@dataclass(frozen=True)
class _Reconstructions:
    """A set to be scored, and its labels in the tables."""

    videos: Videos
    label: str
    channels: int | None
    ratio: tuple[int, int, int] | None


class EvaluationRun:
    """One call of the command."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        if args.threads is not None:
            use_threads(args.threads)
        frames, size = args.frames or PAPER_FRAMES, args.size or PAPER_SIZE
        self._protocol = Protocol(None, None) if args.whole else Protocol(frames, size, args.window)
        self._lpips = choose_lpips(args.lpips_weights, args.lpips_net)
        self._network = None if args.i3d is None else VideoFeatures(args.i3d)
        self._entries: list[Labelled] = []

    def run(self) -> int:
        """Scores, then prints and writes; after a failure or an interruption, what there is."""
        try:
            differences = self._score_all()
        except (KeyboardInterrupt, Exception):
            if self._entries:
                self._publish([])
            raise
        self._publish(differences)
        return 1 if any(entry.evaluation.skipped for entry in self._entries) else 0

    def _score_all(self) -> list[PairedDifference]:
        second = _second(self._args)
        # Opened first, so that its errors come before the work; it loads graphs when it is scored.
        with contextlib.nullcontext() if second is None else _open(second) as others:
            with _open(self._args) as reconstructions:
                self._score(reconstructions)
            if others is None:
                return []
            with contextlib.suppress(ResourceError):  # raised again at the end
                self._write([])  # a kill does not lose the first set
            self._score(others)
        return compare(self._entries[0].evaluation, self._entries[1].evaluation)

    def _score(self, scored: _Reconstructions) -> None:
        if self._args.out is not None:
            prepare_folder(self._args.out)
        evaluator, complete = Evaluator(scored.videos, self._protocol, self._lpips, self._network), False
        try:
            with progress_bar(f"evaluate {scored.label}") as progress:
                evaluator.run(progress)
            complete = True
        finally:
            found = evaluator.result(complete=complete)
            if found.videos:
                self._entries.append(Labelled(scored.label, found, scored.channels, scored.ratio))

    def _publish(self, differences: list[PairedDifference]) -> None:
        """Prints and writes the results; each is tried even if the other fails."""
        data, markdown = self._results(differences)
        try:
            show(self._args, data, markdown.rstrip("\n"))
        finally:
            self._write(differences)

    def _write(self, differences: list[PairedDifference]) -> None:
        if self._args.out is not None:
            write_results(self._args.out, *self._results(differences))

    def _results(self, differences: list[PairedDifference]) -> tuple[dict[str, Any], str]:
        options = (self._entries, differences, self._args.worst)
        return to_json(*options), to_markdown(*options)


def _second(args: argparse.Namespace) -> argparse.Namespace | None:
    """Returns the second set's arguments as if they were the first's; None without a second set."""
    if args.compare is None and args.compare_bundle is None:
        return None
    given = {**vars(args), "reconstruction": args.compare, "bundle": args.compare_bundle}
    given |= {key: vars(args)[f"compare_{key}"] for key in ("name", "channels", "compression")}
    backend, hint = args.compare_backend, args.compare_precision_hint
    if backend is not None or hint is not None:
        execution = ", ".join(part for part in (backend, hint) if part is not None)
        # It may be the first bundle, run otherwise.
        given["name"] = given["name"] or f"{args.compare_bundle.resolve().name} ({execution})"
    if hint is not None:
        given["precision_hint"] = hint
    if backend is not None:  # it may have neither the first one's hint nor its provider
        given |= {"backend": backend, "precision_hint": hint, "provider": "auto"}
    return argparse.Namespace(**given)


@contextlib.contextmanager
def _open(args: argparse.Namespace) -> Iterator[_Reconstructions]:
    """Opens one set of reconstructions."""
    real = args.data or args.real
    label = args.name or (args.bundle or args.reconstruction).resolve().name
    if args.bundle is None:
        pairs = match_videos(real, args.reconstruction, only_matched=args.matched)
        yield _Reconstructions(file_videos(pairs), label, args.channels, args.compression)
        return
    paths = find_videos(real)
    with open_from(args) as bundle:
        videos, ratio = bundle_videos(bundle, paths, args.chunk), (bundle.ratio, SPATIAL_RATIO, SPATIAL_RATIO)
        yield _Reconstructions(videos, label, bundle.manifest.model["latent_dim"], ratio)
