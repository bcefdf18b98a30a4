"""Workers on a Ray cluster, as actors of a Ray Data pipeline.

Ray schedules, restarts and balances the workers, and shows its own progress.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from wfvae.errors import MissingExtraError, ResourceError
from wfvae.runtime.closing import Closing
from wfvae.runtime.dataset import decoding
from wfvae.runtime.dataset.batching import Progress
from wfvae.runtime.dataset.children import ForkServer
from wfvae.runtime.dataset.plan import Part, Probe
from wfvae.runtime.dataset.shards import PartRecord
from wfvae.runtime.dataset.videos import Video
from wfvae.runtime.dataset.worker import Prober, WorkerSetup

PROBED_AT_ONCE = 64

Batch = dict[str, Any]


class RayEngine(Closing):
    """Runs workers as Ray actors. Connects to the cluster when it is made."""

    def __init__(self, setup: WorkerSetup, workers: int, address: str | None, cpus: int, gpus: float) -> None:
        """Args:
        address: of the cluster; None starts one on this machine, or uses `RAY_ADDRESS`.
        cpus: cores that one worker takes.
        gpus: of them, per worker.
        """
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingExtraError("encoding on a cluster", "ray", "ray") from error
        self._setup, self._workers, self._cpus, self._gpus = setup, workers, cpus, gpus
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except ConnectionError as error:
                problem = f"no Ray cluster answers at {address}: {error}"
                raise ResourceError(f"{problem}; start one with: ray start --head") from error

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = sys.stderr is not None and sys.stderr.isatty()
        logging.getLogger("ray.data").setLevel(logging.WARNING)

    def close(self) -> None:
        """Leaves the cluster as it is."""

    def probe(self, videos: Sequence[Video]) -> Iterator[Probe]:
        """Yields the facts of each video, in order."""
        import ray.data

        items = [{"index": index, "video": msgspec.json.encode(video)} for index, video in enumerate(videos)]
        rows = ray.data.from_items(items).map_batches(
            _RayProber,
            fn_constructor_args=(self._setup,),
            batch_size=PROBED_AT_ONCE,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self._workers),
            num_cpus=1,
        )
        found: list[Probe | None] = [None] * len(videos)
        for row in rows.iter_rows():
            found[row["index"]] = msgspec.json.decode(row["probe"], type=Probe)
        for probe in found:
            assert probe is not None
            yield probe

    def encode(self, parts: Iterable[Part], progress: Progress) -> Iterator[PartRecord]:
        """Yields the record of each part as it is finished, in any order."""
        import ray.data
        from ray.exceptions import RayError

        items = [{"part": msgspec.json.encode(part)} for part in parts]
        if not items:
            return
        rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _RayWorker,
            fn_constructor_args=(self._setup,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=self._workers, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=self._cpus,
            num_gpus=self._gpus or None,
        )
        try:
            for row in rows.iter_rows():
                record = msgspec.json.decode(row["record"], type=PartRecord)
                progress(record.frames)
                yield record
        except RayError as error:
            lines = str(error).strip().splitlines()
            raise ResourceError(f"the cluster gave up: {lines[-1]}; finished shards are kept") from error


class _RayProber:
    """A stateful transform: videos to their facts."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._prober = Prober(ForkServer(decoding.__name__), setup.options, setup.time_limit)

    def __call__(self, batch: Batch) -> Batch:
        videos = [msgspec.json.decode(video, type=Video) for video in batch["video"]]
        probes = [msgspec.json.encode(self._prober.probe(video)) for video in videos]
        return {"index": batch["index"], "probe": np.array(probes, object)}


class _RayWorker:
    """A stateful transform: parts to their records."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._worker = setup.open(ForkServer(decoding.__name__))

    def __call__(self, batch: Batch) -> Batch:
        parts = [msgspec.json.decode(part, type=Part) for part in batch["part"]]
        records = [msgspec.json.encode(self._worker.encode(part)) for part in parts]
        return {"record": np.array(records, object)}
