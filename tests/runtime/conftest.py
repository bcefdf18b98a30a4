"""The bundle that most tests of the runtime use."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wfvae.runtime import Bundle

NAME = "4x8x8-trilinear"


@pytest.fixture(scope="session")
def bundle(exported: Callable[..., Path]) -> Path:
    """The directory of a bundle; do not write into it."""
    return exported(NAME)


@pytest.fixture(scope="session")
def model(opened: Callable[..., Bundle]) -> Bundle:
    """The same bundle, opened on the CPU."""
    return opened(NAME)
