"""Shards of latents as training data: what a batch holds, and each sample exactly once."""

import json
import multiprocessing
import re
import shutil
from collections import Counter
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.latent_shards import SCALE, SHIFT, write_shards
from wfvae.errors import DataError, TrainingError
from wfvae.train.data.latent_order import LatentOrder
from wfvae.train.latents import LatentBatch, LatentLoader, LatentShards

SIDES = [2, 3, 2, 2, 3, 2, 2, 2, 3, 2, 4]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "latents"
    write_shards(folder, SIDES)
    return folder


def assert_same(one: list[LatentBatch], other: list[LatentBatch]) -> None:
    assert [(b.epoch, b.step, b.keys) for b in one] == [(b.epoch, b.step, b.keys) for b in other]
    assert all(a.latents.equal(b.latents) for a, b in zip(one, other, strict=True))


def epochs(loader: LatentLoader, count: int) -> list[LatentBatch]:
    return [batch for _ in range(loader.epoch, count) for batch in loader]


def test_batch_holds_scaled_latents_of_one_shape_with_columns(tmp_path: Path) -> None:
    stored = write_shards(tmp_path / "out", SIDES, dtype="float16")
    for batch in LatentShards(tmp_path / "out", 2):
        assert batch.latents.dtype == torch.float32 and batch.latents.is_contiguous()
        for row, key, caption in zip(batch.latents, batch.keys, batch.column("caption"), strict=True):
            scale, shift = (np.array(f, np.float32).reshape(2, 1, 1) for f in (SCALE, SHIFT))
            expected = (stored[key].astype(np.float32) - shift) * scale
            assert np.array_equal(row.permute(1, 0, 2, 3), expected)
            assert caption == f"number {int(key)}"
    plain = next(iter(LatentShards(tmp_path / "out", 1, scaled=False)))
    assert np.array_equal(plain.latents[0].permute(1, 0, 2, 3), stored[plain.keys[0]])
    with pytest.raises(DataError, match=r"has no column 'label'; it has: caption"):
        plain.column("label")


def test_epochs_and_seeds_differ_in_order_and_no_shuffle_keeps_it(shards: Path) -> None:
    def keys(seed: int, epoch: int, **options: Any) -> list[str]:
        dataset = LatentShards(shards, 1, seed, **options)
        return [batch.keys[0] for batch in dataset.starting_at(epoch)]

    orders = [keys(0, 0), keys(0, 1), keys(1, 0), keys(0, 0, shuffle=2)]
    assert len(set(map(tuple, orders))) == 4 and len({tuple(sorted(order)) for order in orders}) == 1
    assert keys(0, 0, shuffle=0) == sorted(orders[0])


def test_moments_are_drawn_anew_in_each_epoch_from_the_seed(tmp_path: Path) -> None:
    stored = write_shards(tmp_path, [9] * 50, per_shard=50, kind="moments")
    dataset = LatentShards(tmp_path, 50, shuffle=0, scaled=False)
    first, again, second = (next(iter(dataset.starting_at(epoch))).latents for epoch in (0, 0, 1))
    assert first.equal(again) and not first.equal(second)
    values = np.stack(list(stored.values())).swapaxes(1, 2)
    noise = (first.numpy() - values[:, :2]) / np.exp(0.5 * values[:, 2:])
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    means = next(iter(LatentShards(tmp_path, 50, shuffle=0, scaled=False, posterior="mean")))
    assert np.array_equal(means.latents, values[:, :2])


@given(
    sides=st.lists(st.integers(1, 3), max_size=40),
    per_shard=st.integers(1, 9),
    batch=st.integers(1, 4),
    nodes=st.integers(1, 4),
    workers=st.integers(1, 4),
    buffer=st.integers(0, 50),
    data=st.data(),
)
def test_any_nodes_workers_and_resume_point_give_each_sample_exactly_once(
    sides: list[int], per_shard: int, batch: int, nodes: int, workers: int, buffer: int, data: st.DataObject
) -> None:
    epoch = data.draw(st.integers(0, 3))
    numbers = np.arange(len(sides)) // per_shard
    order = LatentOrder(numbers, np.array(sides, np.int64), 7, batch, nodes, buffer, drop_last=False)
    steps = len(order.global_batches(epoch))
    stop = data.draw(st.integers(0, steps))
    seen: Counter[int] = Counter()
    for rank in range(nodes):
        uninterrupted = order.batches(epoch, rank)
        # The first run has one worker, the resumed one several, which the loader asks in turn.
        before = [found for found in uninterrupted if found[0] < stop]
        shares = [order.batches(epoch, rank, stop, worker, workers) for worker in range(workers)]
        merged = [found for turn in zip_longest(*shares) for found in turn if found is not None]
        assert [step for step, _ in before + merged] == [step for step, _ in uninterrupted]
        for _, rows in before + merged:
            assert len({sides[row] for row in rows}) == 1 and len(rows) <= batch
            seen.update(map(int, rows))
    assert seen == Counter(range(len(sides)))
    # Ranks hold the rows of a single one, and all have equally many batches without the small ones.
    alone = LatentOrder(numbers, order.shapes, 7, batch * nodes, 1, buffer, drop_last=False)
    assert all(map(np.array_equal, alone.global_batches(epoch), order.global_batches(epoch)))
    whole = LatentOrder(numbers, order.shapes, 7, batch, nodes, buffer, drop_last=True)
    assert {len(whole.batches(epoch, rank)) for rank in range(nodes)} == {len(whole.global_batches(epoch))}


@settings(max_examples=10)
@given(stop=st.integers(0, 15), world=st.integers(1, 3))
def test_run_resumed_at_any_batch_has_the_batches_of_an_uninterrupted_one(
    shards: Path, stop: int, world: int
) -> None:
    for rank in range(world):
        dataset = LatentShards(shards, 2, 3, rank, world, shuffle=5)
        expected = epochs(LatentLoader(dataset), 3)
        first = LatentLoader(dataset)
        before: list[LatentBatch] = []
        while len(before) < min(stop, len(expected)):  # the state is taken inside an epoch
            before += islice(first, stop - len(before))
        resumed = LatentLoader(LatentShards(shards, 2, 3, rank, world, shuffle=5))
        resumed.load_state_dict(first.state_dict())
        assert_same(before + epochs(resumed, 3), expected)


def test_state_of_other_settings_is_refused_with_the_difference(shards: Path) -> None:
    state = LatentLoader(LatentShards(shards, 2, seed=1)).state_dict()
    LatentLoader(LatentShards(shards, 1, seed=1, world=2)).load_state_dict(state)
    with pytest.raises(DataError, match="other settings: seed was 1, and is 2"):
        LatentLoader(LatentShards(shards, 2, seed=2)).load_state_dict(state)


def test_missing_or_changed_shards_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no index.json can be read in '.*'.*; give the folder"):
        LatentShards(tmp_path, 1)
    write_shards(tmp_path, SIDES)
    shard = tmp_path / "latents-000001.tar"
    content = shard.read_bytes()
    dataset = LatentShards(tmp_path, 1, verify=True)
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"'latents-000001.tar' of '.*' has \d+ bytes instead of"):
        LatentShards(tmp_path, 1)
    shard.write_bytes(b"\1" * len(content))
    with pytest.raises(DataError, match="has another SHA-256 than the index states"):
        LatentShards(tmp_path, 1, verify=True)
    with pytest.raises(
        DataError, match=r"'latents-000001.tar' of '.*' is missing or cannot be read: it is damaged"
    ):
        list(LatentLoader(dataset))
    shard.unlink()
    with pytest.raises(DataError, match="is missing or cannot be read"):
        LatentShards(tmp_path, 1)


def test_samples_without_a_list_are_found_in_the_shards(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "latents"))
    (folder / "samples.npy").write_bytes(b"no list")
    with pytest.raises(DataError, match=r"'samples.npy' of .*: it has another SHA-256"):
        LatentShards(folder, 2)
    (folder / "samples.npy").unlink()
    with pytest.raises(DataError, match=r"'samples.npy' of .* is missing"):
        LatentShards(folder, 2)
    index = json.loads((folder / "index.json").read_text())
    del index["table_sha256"]
    (folder / "index.json").write_text(json.dumps(index))
    assert_same(list(LatentShards(folder, 2)), list(LatentShards(shards, 2)))


def test_url_is_read_as_a_folder_is(shards: Path) -> None:
    url = "memory://latents-of-the-test"
    write_shards(url, SIDES)
    assert_same(list(LatentShards(url, 2)), list(LatentShards(shards, 2)))


def test_example_of_the_documentation_trains_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards("latents", SIDES)
    text = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    seen: list[str] = []

    class Denoiser(torch.nn.Conv3d):
        def forward(self, noisy: torch.Tensor, time: torch.Tensor, captions: list[str]) -> torch.Tensor:
            seen.extend(captions)
            return super().forward(noisy)

    model = Denoiser(2, 2, 1)
    before = model.weight.detach().clone()
    names: dict[str, Any] = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    exec(code.replace("workers=4", "workers=0"), names | {"device": "cpu"})
    assert sorted(seen) == sorted(2 * [f"number {number}" for number in range(len(SIDES))])
    assert not model.weight.equal(before)
    loader = LatentLoader(LatentShards("latents", batch_size=8, seed=0))
    loader.load_state_dict(torch.load("run.pt")["data"])
    assert (loader.epoch, loader.step) == (2, 0)


@pytest.mark.slow
def test_workers_give_the_batches_of_none_and_report_a_changed_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, SIDES)
    dataset = LatentShards(tmp_path, 2)
    expected = epochs(LatentLoader(dataset), 2)
    loader = LatentLoader(dataset, workers=3)
    first = list(islice(loader, 3))
    second = LatentLoader(dataset, workers=2)
    second.load_state_dict(loader.state_dict())
    assert_same(first + epochs(second, 2), expected)
    shard = tmp_path / "latents-000001.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"\A[^\n]*latents-000001.tar[^\n]*\Z"):
        list(LatentLoader(dataset, workers=2))


@pytest.mark.slow
def test_killed_worker_is_reported_in_one_line(shards: Path) -> None:
    batches = iter(LatentLoader(LatentShards(shards, 1), workers=1))
    before = set(multiprocessing.active_children())
    next(batches)
    [worker] = set(multiprocessing.active_children()) - before
    worker.kill()
    with pytest.raises(TrainingError, match=r"data worker 0 .* was killed by SIGKILL before step \d+;"):
        list(batches)
