"""Builds a bundle's TensorRT engines: one per direction, strongly typed, with optimisation profiles
from the manifest's shapes.

The graphs fix every type, so a bundle exported as fp16 or bf16 gives such an engine; fp32 may use
TF32 by choice. Weights are found by the graph's path. Polygraphy's loaders would do this too, but
they print TensorRT's reasons to standard output and do not return them, and have no way to ask for
an editable timing cache; the tests use them, to check this and the runtime from outside.

Nothing in here has ever run on a GPU: TensorRT's libraries are not to be had on the machines that
this was written on.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wfvae.errors import BundleError
from wfvae.export.tensorrt.files import write_whole
from wfvae.export.tensorrt.progress import BuildProgress, Progress, cancelling, make_monitor, no_progress
from wfvae.export.tensorrt.timing_cache import TimingCacheFile
from wfvae.spec.engines import (
    ENGINES_FOLDER,
    BuildSettings,
    EngineRecord,
    Profile,
    Target,
    engine_key,
    fit_settings,
    graph_sha256,
    list_engine,
    profiles_for,
    read_engine,
    sound_records,
)
from wfvae.spec.manifest import GraphSpec, Manifest
from wfvae.spec.tensorrt import Builder, BuilderConfig, ErrorLog, HostMemory, OnnxParser, make_logger, member


@dataclass(frozen=True)
class BuildReport:
    """What a build made or found."""

    built: tuple[EngineRecord, ...]
    kept: tuple[EngineRecord, ...]
    """Engines that were there already, unchanged."""


def timing_cache_path(bundle: Path, target: Target) -> Path:
    """Where a bundle keeps the timing cache of a GPU and version."""
    return bundle / ENGINES_FOLDER / f"{target.slug}.timing-cache"


def build_engines(
    bundle: Path,
    settings: BuildSettings,
    target: Target,
    trt: Any,
    *,
    timing_cache: TimingCacheFile | None = None,
    again: bool = False,
    progress: Progress = no_progress,
) -> BuildReport:
    """Builds what is missing and lists it in the manifest, engine by engine: what is finished stays
    if a later one fails.

    Args:
        bundle: the bundle's directory; its files are verified first.
        settings: sizes and choices. A bundle of fixed size overrides height and width.
        target: TensorRT's version and the GPU, which must be the calling thread's.
        trt: the module `tensorrt`.
        timing_cache: None keeps one in the bundle, per GPU and version.
        again: also build what is there already.
        progress: called from TensorRT's threads.

    Raises:
        BundleError: the bundle is damaged, or TensorRT can't build it; with TensorRT's reason.
        ResourceError: the disk is full.
        KeyboardInterrupt: by Ctrl-C; no half file is left.
    """
    manifest = Manifest.read(bundle)
    manifest.verify_files(bundle)
    settings = fit_settings(settings, manifest)
    cache = timing_cache or TimingCacheFile(timing_cache_path(bundle, target))
    built, kept = [], []
    for key, graph in manifest.graphs.items():
        profiles = profiles_for(settings, graph)
        if not profiles:
            continue  # a direct graph, for verification only
        present = None if again else _present(bundle, manifest, key, settings, profiles, target)
        if present is not None:
            kept.append(present)
            continue
        steps = BuildProgress(key, progress)
        with (
            cancelling(steps),
            _build(bundle / graph.file, graph, profiles, settings, trt, cache, steps) as memory,
        ):
            # Held by TensorRT; copied nowhere but to disk.
            content = memoryview(memory)  # type: ignore[arg-type]  # it is a buffer
            record = EngineRecord(
                graph=key,
                graph_sha256=graph_sha256(manifest, key),
                precision=manifest.precision,
                settings=settings,
                profiles=profiles,
                target=target,
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=content.nbytes,
            )
            write_whole(bundle / record.file, content)
            list_engine(bundle, record)
        built.append(record)
    return BuildReport(tuple(built), tuple(kept))


def _present(
    bundle: Path,
    manifest: Manifest,
    graph: str,
    settings: BuildSettings,
    profiles: tuple[Profile, ...],
    target: Target,
) -> EngineRecord | None:
    """The engine that a build would make, if it is there and unchanged."""
    key = engine_key(graph_sha256(manifest, graph), manifest.precision, settings, profiles, target)
    for record in sound_records(manifest):
        if record.graph == graph and record.key == key:
            with contextlib.suppress(BundleError):
                read_engine(record, bundle)
                return record
    return None


@contextlib.contextmanager
def _build(
    path: Path,
    graph: GraphSpec,
    profiles: tuple[Profile, ...],
    settings: BuildSettings,
    trt: Any,
    cache: TimingCacheFile,
    progress: BuildProgress,
) -> Iterator[HostMemory]:
    """The serialized engine of one graph, for as long as the context lasts."""
    log = ErrorLog()
    logger = make_logger(trt, log)
    builder: Builder = trt.Builder(logger)
    network = builder.create_network(1 << int(member(trt, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED")))
    parser: OnnxParser = trt.OnnxParser(network, logger)
    _parse(parser, path, trt, log)
    config = builder.create_builder_config()
    # The configuration refers to the monitor, which therefore must outlive it.
    monitor = make_monitor(trt, progress)
    _configure(config, settings, trt)
    config.progress_monitor = monitor
    for profile in profiles:
        _add_profile(builder, config, profile, graph, log)
    cache.attach(trt, config, log)
    memory = builder.build_serialized_network(network, config)
    if progress.cancelled:
        raise KeyboardInterrupt
    if memory is None:
        missing = (
            ", or the timing cache has no entry for a kernel (it is read-only)" if cache.read_only else ""
        )
        raise BundleError(
            f"TensorRT {trt.__version__} could not build {path.name}{missing}: {log.take()}; narrower"
            " --batch, --chunk, --height or --width need less memory"
        )
    cache.save(config)
    yield memory
    del parser, monitor, logger


def _parse(parser: OnnxParser, path: Path, trt: Any, log: ErrorLog) -> None:
    """Reads a graph and, by its path, the weights. Raises `BundleError` with the parser's reasons."""
    if parser.parse_from_file(str(path)) and not parser.num_errors:
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = "; ".join(" ".join(f"{error.node_name()}: {error.desc()}".split()) for error in errors[:3])
    raise BundleError(f"TensorRT {trt.__version__} can't read {path.name}: {reasons or log.take()}")


def _configure(config: BuilderConfig, settings: BuildSettings, trt: Any) -> None:
    """Flags and limits. Raises `BundleError` if TensorRT has or takes one not."""
    tf32 = member(trt, "BuilderFlag", "TF32")
    (config.set_flag if settings.tf32 else config.clear_flag)(
        tf32
    )  # never left to a default: TensorRT's is on
    if config.get_flag(tf32) != settings.tf32:
        raise BundleError(f"TensorRT {trt.__version__} did not take TF32 {'on' if settings.tf32 else 'off'}")
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace is not None:
        config.set_memory_pool_limit(member(trt, "MemoryPoolType", "WORKSPACE"), settings.workspace)


def _add_profile(
    builder: Builder, config: BuilderConfig, profile: Profile, graph: GraphSpec, log: ErrorLog
) -> None:
    """Adds a profile with a range for every input. Raises `BundleError` if TensorRT refuses it."""
    ranges = builder.create_optimization_profile()
    try:
        for name, (low, best, high) in profile.shapes(graph).items():
            ranges.set_shape(name, low, best, high)
        refused = config.add_optimization_profile(ranges) < 0
    except (ValueError, RuntimeError) as error:
        raise BundleError(
            f"TensorRT refuses the profile {profile.name!r} of {graph.file}: {error}"
        ) from error
    if refused:
        raise BundleError(f"TensorRT refuses the profile {profile.name!r} of {graph.file}: {log.take()}")
