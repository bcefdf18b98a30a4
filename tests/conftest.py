"""Shared by all tests: where the reference data is, and small models."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import torch

    from fixtures.program import Program
    from wfvae.model.vae import WFVAE
    from wfvae.runtime import Bundle

# Before torch is imported. The models are tiny: a second thread gains nothing, and on a busy
# machine the two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("wfvae", deadline=None, max_examples=40)
settings.load_profile("wfvae")


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    """`program("encode", bundle, ...)`: the command line, run in this process."""
    from fixtures.program import Program

    return Program(capsys)


@pytest.fixture(scope="session", autouse=True)
def session_cache() -> Iterator[None]:
    """Bundles of equal files share ONNX Runtime's sessions, which take long to open."""
    from wfvae.runtime.backends.session_cache import SessionCache, shared_sessions

    with shared_sessions(SessionCache(40)):
        yield


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of the published model's checkpoints and outputs, one subfolder each."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def reference_model(reference_dir: Path) -> Callable[..., WFVAE]:
    """`reference_model(name, dtype=float32)`: a fixture's model. Models hold no state, so tests
    share them; do not change one.
    """

    @cache
    def load(name: str, dtype: torch.dtype | None = None) -> WFVAE:
        import torch

        from wfvae.model.vae import WFVAE

        return WFVAE.from_pretrained(reference_dir / name, dtype=dtype or torch.float32).requires_grad_(False)

    return load


@pytest.fixture(scope="session")
def small_model() -> Callable[..., WFVAE]:
    """`small_model(**config)`: a model of a few thousand weights, random but always the same."""

    def build(dtype: torch.dtype | None = None, **overrides: Any) -> WFVAE:
        import torch

        from wfvae.model.config import WFVAEConfig
        from wfvae.model.vae import WFVAE

        sides = {f"{side}_energy_flow_hidden_size": 8 for side in ("encoder", "decoder")}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = WFVAE(WFVAEConfig(**{"base_channels": 8, **sides, **overrides}))
            with torch.no_grad():  # norms begin as the identity, which would hide a wrong one
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(0.2 * torch.randn_like(parameter))
        return model.to(dtype or torch.float32).eval()

    return build


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, reference_dir: Path, small_model: Callable[..., WFVAE]
) -> Callable[..., Path]:
    """`exported(name, **options)`: a bundle's directory, made once for all processes. `name` is a
    folder of the reference data, `small`, or a preset. Do not write into it."""

    @cache
    def export(name: str, **options: Any) -> Path:
        from wfvae.export.bundle import ExportOptions, export_bundle
        from wfvae.model.config import WFVAEConfig
        from wfvae.model.vae import WFVAE

        base = tmp_path_factory.getbasetemp()
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        key = hashlib.sha256(repr((name, sorted(options.items()))).encode()).hexdigest()[:16]
        made = shared / "bundles" / key
        if not made.exists():
            if name == "small":
                model = small_model()
            elif name in ("S", "M", "L"):
                model = WFVAE(WFVAEConfig.preset(name)).eval()  # random, but built from the same shapes
            else:
                model = WFVAE.from_pretrained(name if name == "tiny" else reference_dir / name)
            own = tmp_path_factory.mktemp("bundle")
            export_bundle(model, own / name, ExportOptions(**{"direct": True, **options}))
            made.parent.mkdir(exist_ok=True)
            try:
                own.rename(made)
            except OSError:  # another process was quicker; exports are the same to the byte
                if not made.exists():
                    raise
        return made / name

    return export


@pytest.fixture(scope="session")
def opened(exported: Callable[..., Path]) -> Callable[..., Bundle]:
    """`opened(name, **options)`: the bundle opened on the CPU, shared by all tests."""

    @cache
    def open_(name: str, **options: Any) -> Bundle:
        from wfvae.runtime import open_bundle

        return open_bundle(exported(name, **options), provider="cpu", threads=1)

    return open_
