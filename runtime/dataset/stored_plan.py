"""The plan of a job: which videos can be read, and how they are cut into parts; made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from wfvae.runtime.dataset.plan import (
    DEFAULT_PART_BYTES,
    FEWEST_PARTS,
    Part,
    PartSize,
    Probe,
    Unit,
    cut_parts,
    encode_parts,
    estimated_work,
    units_of,
)
from wfvae.runtime.dataset.report import Stage
from wfvae.runtime.dataset.settings import SETTINGS, Settings, latent_bytes, read_records
from wfvae.runtime.dataset.shards import Failure
from wfvae.runtime.dataset.storage import ShardFolder
from wfvae.runtime.dataset.videos import Video
from wfvae.runtime.dataset.worker import WORK
from wfvae.spec.manifest import Manifest

_PLAN, _UNREADABLE = f"{WORK}/plan.jsonl", f"{WORK}/unreadable.jsonl"


def read_plan(folder: ShardFolder) -> tuple[list[Part], tuple[Failure, ...]]:
    """Reads the parts of an unfinished data set, and what cannot be read of its videos.

    Raises:
        DataError: the plan is damaged.
    """
    return read_records(folder, _PLAN, Part), tuple(read_records(folder, _UNREADABLE, Failure))


def stored_plan(
    folder: ShardFolder,
    settings: Settings,
    videos: Sequence[Video],
    probe_all: Callable[[Sequence[Video]], Iterator[Probe]],
    manifest: Manifest,
    size: PartSize | None,
    progress: Stage,
) -> tuple[list[Part], tuple[Failure, ...]]:
    """Returns the stored plan, or makes and stores one."""
    if folder.exists(SETTINGS):
        return read_plan(folder)
    options, ratio = settings.options, manifest.graphs["encoder"].stream.ratio
    probes = []
    for probe in probe_all(videos):
        probes.append(probe)
        progress("look at", len(probes), len(videos))
    if size is None:
        total = sum(estimated_work(probe, options, ratio) for probe in probes if not probe.failure)
        most = DEFAULT_PART_BYTES // latent_bytes(manifest, options)
        size = PartSize(work=min(most, -(-total // FEWEST_PARTS)))
    failures = []
    units: list[Unit] = []
    for index, (video, probe) in enumerate(zip(videos, probes, strict=True)):
        if probe.failure is not None:
            failures.append(Failure(video.name, probe.failure))
        else:
            units += units_of(index, video, probe, options, ratio, size)
    parts = list(cut_parts(units, size))
    folder.write(_UNREADABLE, msgspec.json.Encoder().encode_lines(failures))
    folder.write(_PLAN, encode_parts(parts))
    # Last: a plan counts only if all of it is there.
    folder.write(SETTINGS, msgspec.json.encode(settings))
    return parts, tuple(failures)
