"""Makes `import torchvision` work where its compiled operators cannot be loaded.

A torchvision built for CUDA beside a torch built for the CPU (or any two builds that do not match)
skips its compiled operators without a word, and its import then fails with `operator
torchvision::nms does not exist`, because it goes on to describe the shapes of operators that were
never declared. LPIPS needs only its networks, which are plain Python, so declaring those names is
enough. Where the compiled operators load, nothing here does anything.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from functools import cache
from pathlib import Path

import torch

from wfvae.errors import MissingExtraError, ResourceError

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""The operators that torchvision describes at import whether or not they were loaded. They get a
name and no kernel: a call to one still fails, and says so."""


def make_torchvision_importable(feature: str, extra: str) -> None:
    """Imports torchvision, after declaring the operators it misses if its compiled part cannot be
    loaded.

    Args:
        feature, extra: what needs torchvision, and the extra that brings it, for the message.

    Raises:
        MissingExtraError: torchvision is not installed.
        ResourceError: it is, and cannot be imported all the same.
    """
    if "torchvision" in sys.modules:
        return
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        raise MissingExtraError(feature, "torchvision", extra)
    if not _compiled_operators_load(Path(specification.origin).parent):
        _declare_missing_operators()
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # RuntimeError for operators, OSError for libraries, ImportError for modules
        raise ResourceError(
            f"{feature} needs torchvision, which is installed and cannot be imported beside torch"
            f" {torch.__version__}: {' '.join(str(error).split())}; install the torchvision that was built"
            " for this torch"
        ) from error


def _compiled_operators_load(folder: Path) -> bool:
    """Does what torchvision does first at import, where it hides the outcome. Loading a library
    twice is harmless.
    """
    loaders = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    extension = importlib.machinery.FileFinder(str(folder), loaders).find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return False
    return True


@cache  # the declarations last as long as this object lives, and torch has one list of operators per process
def _declare_missing_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)  # type: ignore[no-untyped-call]
    return library
