"""TensorRT's timing cache as a file: kernels that were timed once are not timed again, and a build
can repeat an earlier one's choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wfvae.errors import BundleError
from wfvae.files import write_whole
from wfvae.spec.tensorrt import ErrorLog, IBuilderConfig, TensorRT


@dataclass(frozen=True)
class TimingCacheFile:
    """Where the cache is, and whether it may change."""

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
