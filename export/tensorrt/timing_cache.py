"""TensorRT's timing cache as a file: kernels that were timed once are not timed again, and a build
can be made to repeat its choices.

Nothing in here has ever run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wfvae.errors import BundleError
from wfvae.export.tensorrt.files import write_whole
from wfvae.spec.tensorrt import BuilderConfig, ErrorLog, member


@dataclass(frozen=True)
class TimingCacheFile:
    """Where the cache is, and whether it may change."""

    path: Path
    read_only: bool = False
    """Take every choice from the cache, and fail where it has none."""

    def attach(self, trt: Any, config: BuilderConfig, log: ErrorLog) -> None:
        """Gives the cache to a build.

        Raises `BundleError` if it is another GPU's or version's, or if it is read-only and not
        there.
        """
        # Without this flag a cache holds what was timed; with it, the choices themselves, which a
        # read-only build then repeats.
        config.set_flag(member(trt, "BuilderFlag", "EDITABLE_TIMING_CACHE"))
        if self.read_only:
            config.set_flag(member(trt, "BuilderFlag", "ERROR_ON_TIMING_CACHE_MISS"))
        cache = config.create_timing_cache(self._content())
        if cache is None or not config.set_timing_cache(cache, False):
            raise BundleError(
                f"TensorRT {trt.__version__} refuses the timing cache {self.path}: {log.take()}; it is of"
                " another GPU or version, or damaged; choose another file with --timing-cache, or delete it"
            )

    def save(self, config: BuilderConfig) -> None:
        """Writes the cache with what the build added, whole or not at all."""
        cache = None if self.read_only else config.get_timing_cache()
        if cache is not None:
            write_whole(self.path, memoryview(cache.serialize()))  # type: ignore[arg-type]  # it is a buffer

    def _content(self) -> bytes:
        if self.read_only and not self.path.is_file():
            raise BundleError(
                f"there is no timing cache {self.path}, and it was to be used read-only; build once without"
                " --timing-cache-only"
            )
        try:
            return self.path.read_bytes() if self.path.is_file() else b""
        except OSError as error:
            raise BundleError(f"cannot read the timing cache {self.path}: {error.strerror}") from error
