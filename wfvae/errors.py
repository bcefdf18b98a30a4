"""Errors that a user can act on.

Every message is one line: what was given, what was expected and what to do. The command line prints
it and exits with code 2; a library user catches `WFVAEError`, which is a `ValueError`.
"""


class WFVAEError(ValueError):
    """Base of every error raised for wrong use or bad input."""

    def __str__(self) -> str:
        # Names and values from files may hold line breaks.
        return " ".join(super().__str__().splitlines())


class ConfigError(WFVAEError):
    """A model or training configuration that cannot be built."""


class CheckpointError(WFVAEError):
    """A checkpoint that is unreadable, incomplete or of another model."""


class InputError(WFVAEError):
    """An array or tensor argument of the wrong rank, size, type or content."""


class StateError(WFVAEError):
    """Streaming state that is missing, superfluous, misshaped, mistyped or of another stream."""


class StreamingError(WFVAEError):
    """A model that cannot be streamed without loss, or a stream used out of order."""


class BundleError(WFVAEError):
    """A bundle that is incomplete, changed, or made by an incompatible version."""


class MediaError(WFVAEError):
    """A video or image sequence that cannot be read or written."""


class LatentsError(WFVAEError):
    """A file or store of latents that cannot be read, written or decoded by this bundle."""


class DataError(WFVAEError):
    """Training data that is missing, unusable or wrongly described."""


class TrainingError(WFVAEError):
    """A training run that cannot continue."""


class ResourceError(WFVAEError):
    """A job that does not fit the memory or disk it was given."""


class MissingExtraError(WFVAEError, ImportError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package '{package}', which is not installed;"
            f" run: pip install 'wfvae[{extra}]'"
        )
