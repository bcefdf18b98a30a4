"""Stand-ins for packages that a peer's code imports and its autoencoder does not use.

A module that is installed is never replaced.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor


class _Absent(type):
    """Classes that can be inherited from and named, but not called."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{cls.__module__}.{cls.__name__} is of a package that is not installed")

    def __getattr__(cls, name: str) -> Any:
        return _absent(name, f"{cls.__module__}.{cls.__name__}")


def _absent(name: str, owner: str) -> _Absent:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent(name, (), {"__module__": owner})


class _StandIn(ModuleType):
    """A module that has every public name."""

    def __getattr__(self, name: str) -> Any:
        return _absent(name, self.__name__)


class _Finder(MetaPathFinder, Loader):
    """Finds packages, and all that is in them, as stand-ins."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, _ = name.partition(".")
        return ModuleSpec(name, self, is_package=True) if package in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def importable(packages: Sequence[str]) -> Iterator[None]:
    """Makes packages that are not installed importable inside the block."""
    missing = [name for name in packages if name not in sys.modules and not importlib.util.find_spec(name)]
    finder = _Finder(missing)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        # Other libraries test by import whether a package is installed.
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]


def bare_package(name: str, folder: Path) -> None:
    """Makes the modules of a package importable without running its `__init__`."""
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: None = None, op: object = None
) -> Tensor:
    """Attention with the interface of xformers, (B, N, C) or (B, N, heads, C), by PyTorch's."""
    assert attn_bias is None
    if query.ndim == 3:
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
