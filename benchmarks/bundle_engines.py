"""Engines that a bundle is measured on, by name: a backend, and a precision hint where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isolated import NotMeasured

from wfvae.errors import WFVAEError
from wfvae.runtime import Bundle, open_bundle

ENGINES = ("onnxruntime", "openvino", "openvino-bf16")


def require_engine(engine: str) -> None:
    """Raises `NotMeasured` where a single model cannot be compiled for the engine: it is not
    installed, or this CPU lacks its precision.
    """
    backend, _, hint = engine.partition("-")
    if backend != "openvino":
        return
    from wfvae.runtime.backends.openvino import open_core, require_precision

    try:
        core = open_core()
        capabilities, device = (
            core.get_property("CPU", name) for name in ("OPTIMIZATION_CAPABILITIES", "FULL_DEVICE_NAME")
        )
        require_precision(hint or "fp32", capabilities, device)
    except WFVAEError as error:
        raise NotMeasured(" ".join(str(error).split())) from error


def open_on(engine: str, path: str | Path, threads: int) -> Bundle:
    """The bundle on the CPU. Raises `NotMeasured` where this version or this machine does not have
    the engine.
    """
    backend, _, hint = engine.partition("-")
    options: dict[str, Any] = {"provider": "cpu"} if backend == "onnxruntime" else {}
    options |= {"precision_hint": hint} if hint else {}
    try:
        return open_bundle(path, backend, threads=threads, verify=False, **options)
    except TypeError:  # an older `open_bundle`, without the option
        raise NotMeasured(
            f"this version of the runtime has no {backend} with the precision hint {hint}"
        ) from None
    except WFVAEError as error:
        raise NotMeasured(" ".join(str(error).split())) from error
