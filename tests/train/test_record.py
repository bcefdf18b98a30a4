"""The record of a run: metrics.jsonl, TensorBoard, rates and shares of time."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixtures.training import CPU, WITH_DISCRIMINATOR, folder_settings, make_videos, newest_step, small
from wfvae.errors import MissingExtraError, TrainingError
from wfvae.train.processes import World
from wfvae.train.record import Metrics, read_metrics
from wfvae.train.run import Watcher, train

NEEDS_DEV_FULL = pytest.mark.skipif(
    not Path("/dev/full").is_char_device(), reason="there is no /dev/full on this system"
)


def test_tensorboard_gets_the_numbers_of_the_record_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = small(run__steps=3, run__checkpoint_every=1, run__tensorboard=True)
    train(config, tmp_path, CPU)
    # Steps that are made again after an interruption are shown once.
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000003")
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    train(config, tmp_path, CPU, resume=True)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for kind, steps in (("train", [1, 2, 3]), ("validation", [3])):
        [last] = read_metrics(tmp_path, kind)
        for name in last.keys() - {"step"}:
            scalars = events.Scalars(f"{kind}/{name}")
            assert [event.step for event in scalars] == steps
            assert scalars[-1].value == pytest.approx(last[name], rel=1e-5), name


@NEEDS_DEV_FULL
def test_full_disk_at_the_record_saves_the_work(copied_run: Path) -> None:
    record = copied_run / "metrics.jsonl"
    record.unlink()
    record.symlink_to("/dev/full")
    rare = {"run__steps": 8, "run__checkpoint_every": 100, "validation__every": 0}
    longer = small(**WITH_DISCRIMINATOR, **rare)
    expected = r"^cannot write .*metrics.jsonl: No space left on device; make room and go on with --resume$"
    with pytest.raises(TrainingError, match=expected):
        train(longer, copied_run, CPU, resume=True)
    assert newest_step(copied_run) == 7
    record.unlink()
    assert train(longer, copied_run, CPU, resume=True).finished


@pytest.mark.parametrize("method", ["flush", "close"])
def test_full_disk_at_tensorboard_raises_unless_there_is_another_error(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[..., None]
) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    monkeypatch.setattr(writer, method, full_disk)
    expected = r"^cannot write .*tensorboard: No space left on device; make room and go on"
    with pytest.raises(TrainingError, match=expected), Metrics(tmp_path, 0, tensorboard=True) as metrics:
        metrics.write("train", 1, {"total": 1.0})
    if method == "close":
        with pytest.raises(KeyError), Metrics(tmp_path, 0, tensorboard=True):
            raise KeyError


def test_record_that_cannot_be_opened_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"^cannot write .*metrics\.jsonl: "):
        Metrics(tmp_path, 0, tensorboard=True)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "tensorboard").touch()
    with pytest.raises(TrainingError, match=r"^cannot write .*tensorboard: File exists"):
        Metrics(tmp_path, 0, tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    expected = r"^run.tensorboard needs the package 'tensorboard'.*'wfvae\[tensorboard\]'$"
    with pytest.raises(MissingExtraError, match=expected):
        Metrics(tmp_path, 0, tensorboard=True)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still: tests change its only value."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("wfvae.train.record.time", clock)
    monkeypatch.setattr("wfvae.train.run.time", clock)
    return now


def test_rates_and_remaining_time_are_those_of_the_latest_steps(tmp_path: Path, seconds: list[float]) -> None:
    def pass_a_step() -> bool:
        seconds[0] += 1.0 if seconds[0] < 2 else 3.0
        return False

    reports: list[float | None] = []
    watcher = Watcher(
        lambda done, total, values: reports.append(values.get("frames_per_second")), stopping=pass_a_step
    )
    config = small(run__steps=5, run__log_every=2, validation__every=0)
    train(config, tmp_path, CPU, watcher=watcher)
    lines = read_metrics(tmp_path, "train")
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["eta_seconds"] for line in lines] == [3.0, 3.0, 0.0]
    # Steps of 2 clips of 5 frames: two of 1 second, two of 3, one of 3.
    rates = [10.0, pytest.approx(10 / 3, rel=1e-5), pytest.approx(10 / 3, rel=1e-5)]
    assert [line["frames_per_second"] for line in lines] == rates
    assert reports == [None, rates[0], rates[0], rates[1], rates[2]]


def test_indexing_signals_to_the_processes_that_wait(tmp_path: Path, seconds: list[float]) -> None:
    names = ("a.mp4", "b.mp4", "c.mp4")
    videos, others = make_videos(tmp_path / "videos", *names), make_videos(tmp_path / "others", *names)
    seconds[0], signals = 1000.0, list[tuple[float, bool]]()

    class Heard(World):
        def any(self, flag: bool) -> bool:
            signals.append((seconds[0], flag))
            return flag

    def half_a_minute(done: int, total: int) -> None:
        seconds[0] += 30.0

    watcher = Watcher(indexing=half_a_minute, stopping=lambda: True)
    config = folder_settings(videos, validation__folder=str(others))
    train(config, tmp_path / "run", Heard(0, 1, CPU.device), watcher=watcher)
    indexed = [signal for signal in signals if signal[0] > 1000.0]
    assert indexed[:4] == [(1030.0, True), (1090.0, True), (1150.0, True), (1180.0, False)]
