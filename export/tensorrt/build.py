"""Builds a bundle's engines with TensorRT or TensorRT-RTX: one per direction, with profiles from
the manifest's shapes.

The networks are strongly typed: the graphs fix every type, so a bundle's precision is its engines'.
Polygraphy's loaders are not used, since they print TensorRT's reasons instead of returning them,
and cannot ask for an editable timing cache.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from wfvae.errors import BundleError, InputError
from wfvae.export.tensorrt.progress import BuildProgress, Progress, cancelling, make_monitor
from wfvae.files import write_whole
from wfvae.spec.manifest import GraphSpec, Manifest
from wfvae.spec.tensorrt_api import Builder, IBuilderConfig, INetworkDefinition, OnnxParser, Shape, TensorRT
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

    def attach(self, trt: TensorRT, config: IBuilderConfig) -> None:
        """Makes a build use the cache. Raises `BundleError` if it is missing or does not fit."""
        # Without this flag a cache holds timings; with it, the choices themselves.
        config.set_flag(trt.member("BuilderFlag", "EDITABLE_TIMING_CACHE"))
        if self.read_only:
            config.set_flag(trt.member("BuilderFlag", "ERROR_ON_TIMING_CACHE_MISS"))
        cache = config.create_timing_cache(self._content())
        if cache is None or not config.set_timing_cache(cache, False):
            raise BundleError(
                f"{trt} refuses the timing cache {self.path}: {trt.log.take()}; it is of another GPU or"
                " version, or damaged; choose another file with --timing-cache, or delete it"
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
    warnings: tuple[str, ...] = ()
    """What the builder warned of, each text once."""


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
    """Builds the missing engines (experimental: they have not run on a GPU yet).

    Portable engines, of TensorRT-RTX, need no GPU here. Each finished engine is listed in the
    manifest at once, and stays if a later one fails.

    Args:
        settings: sizes and choices. A bundle of fixed size overrides height and width.
        target: of `trt`. If it names a GPU, this must be the calling thread's.
        timing_cache: None keeps one in the bundle, per GPU and version. Portable engines have none,
            since their kernels are chosen where they run.
        again: also build engines that exist.
        progress: called from TensorRT's threads.

    Raises:
        BundleError: the bundle is damaged, or TensorRT can't build it; with TensorRT's reason.
        InputError: a tensor would have more values than TensorRT takes; with both numbers.
        KeyboardInterrupt: by Ctrl-C; no partial file is left.
    """
    manifest = Manifest.read(bundle)
    manifest.verify_files(bundle)
    settings = fit_settings(settings, manifest)
    cache = None
    if not trt.flavour.portable:
        cache = timing_cache or TimingCacheFile(timing_cache_path(bundle, target))
    trt.log.take_warnings()  # of something else that this process did
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
    return BuildReport(tuple(built), tuple(kept), tuple(trt.log.take_warnings()))


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
    cache: TimingCacheFile | None,
    trt: TensorRT,
    progress: BuildProgress,
) -> Iterator[memoryview]:
    """Yields the serialized engine of one graph, whose memory TensorRT owns."""
    builder: Builder = trt.interface("Builder")(trt.logger)
    network = builder.create_network(1 << int(trt.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")))
    parser: OnnxParser = trt.interface("OnnxParser")(network, trt.logger)
    _parse(parser, bundle / graph.file, trt)
    for profile in planned.profiles:
        _check_tensors(network, profile, graph, trt)
    config = builder.create_builder_config()
    _configure(config, planned, trt)
    # The configuration only refers to the monitor, which therefore must outlive it.
    config.progress_monitor = monitor = make_monitor(trt, progress)
    for profile in planned.profiles:
        _add_profile(builder, config, profile, graph, trt)
    if cache is not None:
        cache.attach(trt, config)
    memory = builder.build_serialized_network(network, config)
    if progress.cancelled:
        raise KeyboardInterrupt
    if memory is None:
        text = f"{trt} could not build {graph.file}"
        read_only = cache is not None and cache.read_only
        cause = ", or the timing cache has no entry for a kernel (it is read-only)" if read_only else ""
        reason = trt.log.take()
        advice = "; narrower --batch, --chunk, --height or --width need less, and --workspace allows more"
        of_memory = any(word in reason.lower() for word in ("memory", "workspace"))
        raise BundleError(f"{text}{cause}: {reason}{advice if of_memory else ''}")
    if cache is not None:
        cache.save(config)
    yield memoryview(memory)
    del parser, monitor


def _parse(parser: OnnxParser, path: Path, trt: TensorRT) -> None:
    if parser.parse_from_file(str(path)) and not parser.num_errors:
        return
    errors = [parser.get_error(index) for index in range(min(parser.num_errors, 3))]
    reasons = "; ".join(" ".join(f"{error.node_name()}: {error.desc()}".split()) for error in errors)
    raise BundleError(f"{trt} can't read {path.name}: {reasons or trt.log.take()}")


def _check_tensors(network: INetworkDefinition, profile: Profile, graph: GraphSpec, trt: TensorRT) -> None:
    """Raises `InputError` if a tensor has too many values at the profile's largest sizes.

    The builder would build an engine that refuses these sizes, or fail on a condition of its own.
    """
    most = trt.flavour.largest_tensor
    if most is None:
        return
    largest = {name: shape for name, (_, _, shape) in profile.shapes(graph).items()}
    count, name, shape = _largest_tensor(network, largest)
    if count > most:
        raise InputError(
            f"{name} of {graph.file} would have {count:,} values ({'x'.join(map(str, shape))}) at the largest"
            f" sizes of the profile {profile.name!r}, and {trt.flavour.title} takes at most {most:,};"
            " choose a smaller --batch, --chunk, --height or --width"
        )


def _largest_tensor(network: INetworkDefinition, input_shapes: Mapping[str, Shape]) -> tuple[int, str, Shape]:
    """Returns the values, layer and shape of the largest tensor for inputs of these shapes."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    declared = [tuple(tensor.shape) for tensor in inputs]
    for tensor in inputs:
        tensor.shape = input_shapes[tensor.name]
    found: tuple[int, str, Shape] = (0, "", ())
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in filter(None, map(layer.get_output, range(layer.num_outputs))):
            shape = tuple(output.shape)
            found = max(found, (math.prod(shape), layer.name, shape))
    for tensor, shape in zip(inputs, declared, strict=True):
        tensor.shape = shape
    return found


def _configure(config: IBuilderConfig, planned: EngineRecord, trt: TensorRT) -> None:
    settings, tf32 = planned.settings, trt.member("BuilderFlag", "TF32")
    # TensorRT's own default is on.
    set_flag = config.set_flag if settings.tf32 else config.clear_flag
    set_flag(tf32)
    if config.get_flag(tf32) != settings.tf32:
        raise BundleError(f"{trt} did not take TF32 {'on' if settings.tf32 else 'off'}")
    trt.set_target(config, planned.target.compute_capabilities)
    config.builder_optimization_level = settings.optimization_level
    workspace = settings.workspace or trt.flavour.largest_workspace
    if workspace is not None:
        config.set_memory_pool_limit(trt.member("MemoryPoolType", "WORKSPACE"), workspace)


def _add_profile(
    builder: Builder, config: IBuilderConfig, profile: Profile, graph: GraphSpec, trt: TensorRT
) -> None:
    ranges = builder.create_optimization_profile()
    refused = f"{trt.flavour.title} refuses the profile {profile.name!r} of {graph.file}"
    try:
        for name, (low, best, high) in profile.shapes(graph).items():
            ranges.set_shape(name, low, best, high)
        accepted = config.add_optimization_profile(ranges) >= 0
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{refused}: {error}") from error
    if not accepted:
        raise BundleError(f"{refused}: {trt.log.take()}")
