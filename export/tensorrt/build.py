"""Builds a bundle's TensorRT engines: one per direction, with profiles from the manifest's shapes.

The networks are strongly typed: the graphs fix every type, so a bundle's precision is its engines'.
Polygraphy's loaders are not used, since they print TensorRT's reasons instead of returning them,
and cannot ask for an editable timing cache.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from wfvae.errors import BundleError
from wfvae.export.tensorrt.progress import BuildProgress, Progress, cancelling, make_monitor
from wfvae.files import write_whole
from wfvae.spec.manifest import GraphSpec, Manifest
from wfvae.spec.tensorrt_api import Builder, ErrorLog, IBuilderConfig, OnnxParser, TensorRT
from wfvae.spec.tensorrt_engines import (
    ENGINES_FOLDER,
    BuildSettings,
    EngineRecord,
    Profile,
    Target,
    fit_settings,
    graph_sha256,
    list_engine,
    profiles_for,
    read_engine,
    sound_records,
)


@dataclass(frozen=True)
class TimingCacheFile:
    """TensorRT's timing cache: kernels are timed once, and choices can be repeated."""

    path: Path
    read_only: bool = False
    """Take every choice from the cache, and fail where it has none."""

    def attach(self, trt: TensorRT, config: IBuilderConfig, log: ErrorLog) -> None:
        """Makes a build use the cache. Raises `BundleError` if it is missing or does not fit."""
        # Without this flag a cache holds timings; with it, the choices themselves.
        config.set_flag(trt.member("BuilderFlag", "EDITABLE_TIMING_CACHE"))
        if self.read_only:
            config.set_flag(trt.member("BuilderFlag", "ERROR_ON_TIMING_CACHE_MISS"))
        cache = config.create_timing_cache(self._content())
        if cache is None or not config.set_timing_cache(cache, False):
            raise BundleError(
                f"{trt} refuses the timing cache {self.path}: {log.take()}; it is of another GPU or version,"
                " or damaged; choose another file with --timing-cache, or delete it"
            )

    def save(self, config: IBuilderConfig) -> None:
        """Writes the cache with what the build added."""
        cache = None if self.read_only else config.get_timing_cache()
        if cache is not None:
            write_whole(self.path, memoryview(cache.serialize()))

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            if not self.read_only:
                return b""
            text = f"there is no timing cache {self.path} to read"
            raise BundleError(f"{text}; build once without --timing-cache-only") from None
        except OSError as error:
            raise BundleError(f"cannot read the timing cache {self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class BuildReport:
    """What a build made or found."""

    built: tuple[EngineRecord, ...]
    kept: tuple[EngineRecord, ...]
    """Engines that existed already, unchanged."""


def timing_cache_path(bundle: Path, target: Target) -> Path:
    """Returns where a bundle keeps the timing cache of a GPU and version."""
    return bundle / ENGINES_FOLDER / f"{target.slug}.timing-cache"


def build_engines(
    bundle: Path,
    settings: BuildSettings,
    target: Target,
    trt: TensorRT,
    *,
    timing_cache: TimingCacheFile | None = None,
    again: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> BuildReport:
    """Builds the missing engines (experimental: not yet run on a GPU).

    Each finished engine is listed in the manifest at once, and stays if a later one fails.

    Args:
        settings: sizes and choices. A bundle of fixed size overrides height and width.
        target: TensorRT's version and the GPU, which must be the calling thread's.
        timing_cache: None keeps one in the bundle, per GPU and version.
        again: also build engines that exist.
        progress: called from TensorRT's threads.

    Raises:
        BundleError: the bundle is damaged, or TensorRT can't build it; with TensorRT's reason.
        KeyboardInterrupt: by Ctrl-C; no partial file is left.
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
        planned = EngineRecord(
            graph=key,
            graph_sha256=graph_sha256(manifest, key),
            precision=manifest.precision,
            settings=settings,
            profiles=profiles,
            target=target,
            sha256="",
            bytes=0,
        )
        present = None if again else _find(planned, manifest, bundle)
        if present is not None:
            kept.append(present)
            continue
        phases = BuildProgress(key, progress)
        with cancelling(phases), _build(bundle, graph, planned, cache, trt, phases) as content:
            sha256 = hashlib.sha256(content).hexdigest()
            record = structs.replace(planned, sha256=sha256, bytes=content.nbytes)
            write_whole(bundle / record.file, content)
            list_engine(bundle, record)
        built.append(record)
    return BuildReport(tuple(built), tuple(kept))


def _find(planned: EngineRecord, manifest: Manifest, bundle: Path) -> EngineRecord | None:
    for record in sound_records(manifest):
        if record.file == planned.file:
            with contextlib.suppress(BundleError):
                read_engine(record, bundle)
                return record
    return None


@contextlib.contextmanager
def _build(
    bundle: Path,
    graph: GraphSpec,
    planned: EngineRecord,
    cache: TimingCacheFile,
    trt: TensorRT,
    progress: BuildProgress,
) -> Iterator[memoryview]:
    """Yields the serialized engine of one graph, whose memory TensorRT owns."""
    log = ErrorLog()
    logger = trt.logger(log)
    builder: Builder = trt.interface("Builder")(logger)
    network = builder.create_network(1 << int(trt.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")))
    parser: OnnxParser = trt.interface("OnnxParser")(network, logger)
    _parse(parser, bundle / graph.file, trt, log)
    config = builder.create_builder_config()
    _configure(config, planned.settings, trt)
    # The configuration only refers to the monitor, which therefore must outlive it.
    config.progress_monitor = monitor = make_monitor(trt, progress)
    for profile in planned.profiles:
        _add_profile(builder, config, profile, graph, log)
    cache.attach(trt, config, log)
    memory = builder.build_serialized_network(network, config)
    if progress.cancelled:
        raise KeyboardInterrupt
    if memory is None:
        text = f"{trt} could not build {graph.file}"
        cause = ", or the timing cache has no entry for a kernel (it is read-only)"
        raise BundleError(
            f"{text}{cause if cache.read_only else ''}: {log.take()}; narrower"
            " --batch, --chunk, --height or --width need less memory"
        )
    cache.save(config)
    yield memoryview(memory)
    del parser, monitor, logger


def _parse(parser: OnnxParser, path: Path, trt: TensorRT, log: ErrorLog) -> None:
    if parser.parse_from_file(str(path)) and not parser.num_errors:
        return
    errors = [parser.get_error(index) for index in range(min(parser.num_errors, 3))]
    reasons = "; ".join(" ".join(f"{error.node_name()}: {error.desc()}".split()) for error in errors)
    raise BundleError(f"{trt} can't read {path.name}: {reasons or log.take()}")


def _configure(config: IBuilderConfig, settings: BuildSettings, trt: TensorRT) -> None:
    tf32 = trt.member("BuilderFlag", "TF32")
    # TensorRT's own default is on.
    set_flag = config.set_flag if settings.tf32 else config.clear_flag
    set_flag(tf32)
    if config.get_flag(tf32) != settings.tf32:
        raise BundleError(f"{trt} did not take TF32 {'on' if settings.tf32 else 'off'}")
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.member("MemoryPoolType", "WORKSPACE"), settings.workspace)


def _add_profile(
    builder: Builder, config: IBuilderConfig, profile: Profile, graph: GraphSpec, log: ErrorLog
) -> None:
    ranges = builder.create_optimization_profile()
    refused = f"TensorRT refuses the profile {profile.name!r} of {graph.file}"
    try:
        for name, (low, best, high) in profile.shapes(graph).items():
            ranges.set_shape(name, low, best, high)
        accepted = config.add_optimization_profile(ranges) >= 0
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{refused}: {error}") from error
    if not accepted:
        raise BundleError(f"{refused}: {log.take()}")
