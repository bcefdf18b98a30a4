"""Shared by the tests of training runs."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.training import CPU, WITH_DISCRIMINATOR, small
from fixtures.video_folders import SIZE, OpenFolder
from wfvae.train.data import Strides, VideoFolder
from wfvae.train.run import train


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the small configuration has it for the program: bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with everything that has a state: discriminator, dropout, moving average."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("finished") / "run"
    train(small(**WITH_DISCRIMINATOR), run, CPU)
    torch.set_num_threads(before)
    return run


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change or to resume."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def full_disk() -> Callable[..., None]:
    """A function that raises what a full disk does."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    return full


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """An empty folder for videos."""
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


@pytest.fixture
def open_folder(videos: Path, tmp_path: Path) -> OpenFolder:
    """`open_folder(frames, size, stride, **options)`: `videos` as a source of clips."""

    def opened(frames: int = 5, size: tuple[int, int] = SIZE, stride: int = 1, **options: Any) -> VideoFolder:
        strides = options.pop("strides", Strides(stride, stride))
        index = tmp_path / "run" / "index.json"
        return VideoFolder(videos, frames, size, strides, index_path=index, **options)

    return opened
