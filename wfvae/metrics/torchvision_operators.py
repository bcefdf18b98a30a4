"""Makes `import torchvision` work where its compiled operators cannot be loaded.

The torchvision of PyPI is built for CUDA: beside a torch for CPUs its import fails with `operator
torchvision::nms does not exist`, and PyPI has no pair for CPUs. LPIPS needs only torchvision's
networks, which are plain Python, so declaring the missing names is enough.
"""

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
"""Operators that torchvision describes at import, loaded or not. They get no kernel."""


def make_torchvision_importable(feature: str, extra: str) -> None:
    """Imports torchvision, after declaring operators if its compiled part cannot be loaded.

    Errors name `feature`, which needs it, and the `extra` that brings it: `MissingExtraError` if it
    is not installed, `ResourceError` if it is and cannot be imported.
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
        problem = f"cannot be imported beside torch {torch.__version__}: {' '.join(str(error).split())}"
        advice = "install the torchvision that was built for this torch"
        text = f"{feature} needs torchvision, which is installed and {problem}; {advice}"
        raise ResourceError(text) from error


def _compiled_operators_load(folder: Path) -> bool:
    """Whether torchvision's first step at import works, which hides its outcome."""
    loaders = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    extension = importlib.machinery.FileFinder(str(folder), loaders).find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return False
    return True


@cache  # the declarations last as long as this object lives
def _declare_missing_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)  # type: ignore[no-untyped-call]
    return library
