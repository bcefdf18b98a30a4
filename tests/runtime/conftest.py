"""The bundle that most tests of the runtime use."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fixtures.streams import COPIES
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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[str]]:
    """`counted(pool)`: how often the pool's state is copied, by method of the state."""

    def count(pool: Any) -> Counter[str]:
        counts: Counter[str] = Counter()
        new_state = pool._session.new_state

        def counting(method: Any, name: str, *arguments: Any) -> Any:
            counts[name] += 1
            return method(*arguments)

        def new_counted(*size: int) -> Any:
            state = new_state(*size)
            for name in (*COPIES, *(name for name in ("grow",) if hasattr(state, name))):
                setattr(state, name, partial(counting, getattr(state, name), name))
            return state

        monkeypatch.setattr(pool._session, "new_state", new_counted)
        return counts

    return count
