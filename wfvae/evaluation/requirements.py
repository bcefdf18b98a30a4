"""What evaluation needs of its environment."""

from __future__ import annotations

from wfvae.errors import MissingExtraError
from wfvae.metrics.frames import scikit_image


def use_threads(count: int) -> None:
    """Limits the CPU threads of LPIPS and FVD in this process."""
    import torch

    torch.set_num_threads(count)


def require_libraries() -> None:
    """Raises `MissingExtraError` if a package of the extra `eval` is not installed."""
    try:
        import scipy  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("evaluation", str(error.name), "eval") from error
    scikit_image("eval")
