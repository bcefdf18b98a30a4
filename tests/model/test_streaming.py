"""A stream in any chunks equals the whole clip: in float64 to 1e-9."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from wfvae.model.vae import WFVAE
from wfvae.spec.frames import SPATIAL_RATIO, latent_frames, tail_frames
from wfvae.spec.stream import Direction

NAMES = ["4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear", "8x8x8-nearest"]
LENGTHS = [1, 2, 4, 5, 9, 16, 33]
HEIGHT, WIDTH = 16, 24
CLOSE = {"rtol": 0, "atol": 1e-9}
DIRECTIONS: list[Direction] = ["encoder", "decoder"]

ModelFactory = Callable[..., WFVAE]
Models = Callable[[str], WFVAE]
each_model = pytest.mark.parametrize("name", NAMES)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(reference_model: ModelFactory, small_model: ModelFactory) -> Models:
    """The published fixtures in float64, and `8x8x8-nearest`, of which there is none."""
    nearest = small_model(torch.float64, temporal_compression=8, t_interpolation="nearest")
    return lambda name: nearest if name == "8x8x8-nearest" else reference_model(name, torch.float64)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def random_video(frames: int, seed: int = 0, batch: int = 1) -> Tensor:
    return random(seed, batch, 3, frames, HEIGHT, WIDTH)


def random_latents(model: WFVAE, count: int, seed: int = 0, batch: int = 1) -> Tensor:
    size = (HEIGHT // SPATIAL_RATIO, WIDTH // SPATIAL_RATIO)
    return 2 * random(seed, batch, model.config.latent_dim, count, *size)


def random_chunk(model: WFVAE, direction: Direction, units: int, seed: int = 0, batch: int = 1) -> Tensor:
    """Input of a step: `units` latents, or as many groups of frames."""
    if direction == "encoder":
        return random_video(units * model.config.temporal_compression, seed, batch)
    return random_latents(model, units, seed, batch)


def step_of(model: WFVAE, direction: Direction) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    return model.encoder_step if direction == "encoder" else model.decoder_step


def whole_encode(model: WFVAE, video: Tensor) -> Tensor:
    """Moments by direct inference; a T that is not 1 + r n is padded with its last frame."""
    tail = tail_frames(video.shape[2], model.config.temporal_compression)
    return model.encode(torch.cat([video, *[video[:, :, -1:]] * tail], dim=2)).latent_dist.moments


def assert_encode(model: WFVAE, video: Tensor, sizes: Any, expected: Tensor) -> None:
    posteriors = model.stream_encode(video.split(sizes, dim=2))
    moments = torch.cat([posterior.moments for posterior in posteriors], dim=2)
    torch.testing.assert_close(moments, expected, **CLOSE)


def assert_decode(model: WFVAE, latents: Tensor, sizes: Any, expected: Tensor) -> None:
    video = torch.cat(list(model.stream_decode(latents.split(sizes, dim=2), expected.shape[2])), dim=2)
    torch.testing.assert_close(video, expected, **CLOSE)


def compositions(total: int) -> Iterator[list[int]]:
    """All lists of positive numbers with this sum."""
    yield [total]
    for first in range(1, total):
        yield from ([first, *rest] for rest in compositions(total - first))


# Stream = clip


@each_model
@pytest.mark.parametrize("frames", LENGTHS)
def test_stream_equals_the_whole_clip(name: str, frames: int, models: Models) -> None:
    model = models(name)
    video = random_video(frames, batch=2)
    moments = whole_encode(model, video)
    latents = random_latents(model, moments.shape[2], batch=2)
    decoded = model.decode(latents).sample[:, :, :frames]
    for chunk in (1, 4, 7, frames):
        assert_encode(model, video, chunk, moments)
        assert_decode(model, latents, chunk, decoded)


@each_model
def test_every_plan_of_a_short_clip_equals_it(name: str, models: Models) -> None:
    model = models(name)
    video, latents = random_video(6), random_latents(model, 5)
    moments, decoded = whole_encode(model, video), model.decode(latents).sample
    for sizes in compositions(6):
        assert_encode(model, video, sizes, moments)
    for sizes in compositions(5):
        assert_decode(model, latents, sizes, decoded)


@given(
    name=st.sampled_from(NAMES),
    frames=st.lists(st.integers(0, 19), min_size=1, max_size=8).filter(any),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    cut=st.integers(0, 7),
)
@settings(max_examples=25)
def test_random_plans_of_longer_clips_equal_them(
    name: str, frames: list[int], counts: list[int], cut: int, models: Models
) -> None:
    model = models(name)
    with torch.no_grad():
        video = random_video(sum(frames))
        assert_encode(model, video, frames, whole_encode(model, video))
        latents = random_latents(model, sum(counts))
        decoded = model.decode(latents).sample
        kept = decoded.shape[2] - cut % min(decoded.shape[2], model.config.temporal_compression)
        assert_decode(model, latents, counts, decoded[:, :, :kept])


def test_streams_yield_as_soon_as_they_can(models: Models) -> None:
    model = models("4x8x8-trilinear")
    encoded = model.stream_encode(random_video(10).split(1, dim=2))
    assert [posterior.mode().shape[2] for posterior in encoded] == [
        1,
        1,
        1,
        1,
    ]  # at frames 1, 5, 9, and the end
    decoded = model.stream_decode(random_latents(model, 4).split(1, dim=2))
    assert [f.shape[2] for f in decoded] == [3, 4, 4, 2]  # 5 are dropped; the first step yields none


def test_delay_and_drop_are_those_of_the_documentation(models: Models) -> None:
    specs = [models(name).stream_spec("decoder") for name in NAMES]
    assert [(spec.delay, spec.drop) for spec in specs] == [(2, 5), (0, 3), (6, 13), (0, 7)]
    assert [spec.needs_drain for spec in specs] == [True, False, True, False]


# Rows of a batch

Plan = list[tuple[int, int]]
"""Streams of a row, one after the other: (idle steps before, own steps)."""


def events_of(plan: Plan, drains: bool) -> list[tuple[str, int]]:
    """What a row does at each step, and with which of its streams."""
    events: list[tuple[str, int]] = []
    for index, (idle, own) in enumerate(plan):
        events += [("idle", index)] * idle + [("start", index)] + [("go", index)] * (own - 1)
        events += [("end", index)] * drains
    return events


def run_rows(model: WFVAE, direction: Direction, plans: list[Plan], units: list[int]) -> int:
    """Runs one row per plan, in steps of `units` latents in turn, and compares each stream with its
    clip; returns how many there were. Rows begin with a state of NaN, which `start` must ignore.
    """
    spec = model.stream_spec(direction)
    rows = [events_of(plan, spec.needs_drain) for plan in plans]
    state = model.initial_state(direction, len(rows), HEIGHT, WIDTH)
    for tensor in state.values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 12345)
    inputs: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    outputs: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for step in range(max(map(len, rows))):
        kinds = [events[step] if step < len(events) else ("idle", 0) for events in rows]
        chunk = random_chunk(model, direction, units[step % len(units)], step, len(rows))
        for row, (kind, index) in enumerate(kinds):
            if kind == "start" and direction == "encoder":
                chunk[row, :, : spec.lead] = chunk[row, :, spec.lead, None]
            if kind in ("start", "go"):
                inputs[row, index].append(chunk[row])
            elif direction == "encoder":
                chunk[row].sign_()  # of no meaning, and must not be seen
            else:
                chunk[row] *= 1e4
        start, end = (torch.tensor([kind == flag for kind, _ in kinds]) for flag in ("start", "end"))
        output, state = step_of(model, direction)(chunk, state, start, end)
        for row, (kind, index) in enumerate(kinds):
            if kind != "idle":
                outputs[row, index].append(output[row])
    for key, parts in inputs.items():
        given, got = torch.cat(parts, dim=1)[None], torch.cat(outputs[key], dim=1)[None]
        if direction == "encoder":
            expected = model.encode(given[:, :, spec.lead :]).latent_dist.moments
        else:
            expected = model.decode(given).sample
            got = got[:, :, spec.drop : spec.drop + expected.shape[2]]
        torch.testing.assert_close(got, expected, **CLOSE)
    return len(inputs)


@each_direction
@each_model
def test_rows_that_start_and_end_at_different_steps_equal_their_clips(
    name: str, direction: Direction, models: Models
) -> None:
    plans = [[(0, 3), (0, 1), (2, 2)], [(1, 1), (0, 4)], [(3, 4)], [(0, 1), (0, 1), (0, 1), (0, 1)]]
    for units in ([1], [1, 3, 2]):
        assert run_rows(models(name), direction, plans, units) == 10


STREAMS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=3)


@given(
    name=st.sampled_from(NAMES),
    direction=st.sampled_from(DIRECTIONS),
    plans=st.lists(STREAMS, min_size=1, max_size=3),
    units=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
@settings(max_examples=15)
def test_random_rows_equal_their_clips(
    name: str, direction: Direction, plans: list[Plan], units: list[int], models: Models
) -> None:
    with torch.no_grad():
        assert run_rows(models(name), direction, plans, units) >= 1


# State

VARIANTS = [
    {},
    {"energy_flow_l2": False},
    {"energy_flow_l3": False},
    {"energy_flow_l2": False, "energy_flow_l3": False, "use_attention": False},
    {"connect_res_layer_num": 0, "encoder_num_resblocks": 0, "decoder_num_resblocks": 1},
]
each_kind = pytest.mark.parametrize(
    "kind", [(4, "nearest"), (4, "trilinear"), (8, "nearest"), (8, "trilinear")]
)


@each_direction
@each_kind
@pytest.mark.parametrize(
    ("variant", "dtype"), [(VARIANTS[0], torch.float32), *((variant, torch.bfloat16) for variant in VARIANTS)]
)
def test_step_returns_what_the_specification_says(
    variant: dict[str, Any], kind: tuple[int, str], dtype: torch.dtype, direction: Direction, small_model: Any
) -> None:
    model = small_model(dtype, temporal_compression=kind[0], t_interpolation=kind[1], **variant)
    spec, initial = model.stream_spec(direction), model.initial_state(direction, 2, HEIGHT, WIDTH)
    chunk = random_chunk(model, direction, 2, batch=2).to(dtype)
    output, state = step_of(model, direction)(chunk, initial, torch.tensor([True, False]))
    assert output.dtype == dtype
    expected = {s.name: (s.resolve(2, HEIGHT, WIDTH), f"torch.{s.dtype}") for s in spec.states}
    assert len(expected) == len(spec.states) > 0
    for tensors in (initial, state):
        assert {n: (tuple(t.shape), str(t.dtype)) for n, t in tensors.items()} == expected
        assert sum(t.nbytes for t in tensors.values()) == 2 * spec.bytes_per_stream(HEIGHT, WIDTH)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in state.values())
    paths = {path for path, _ in model.named_modules() if path.startswith(f"{direction}.")}
    assert all(name in paths or name.rpartition(".")[0] in paths for name in expected)


@each_direction
@each_kind
@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_rows_of_other_architectures_equal_their_clips(
    variant: dict[str, Any], kind: tuple[int, str], direction: Direction, small_model: ModelFactory
) -> None:
    model = small_model(torch.float64, temporal_compression=kind[0], t_interpolation=kind[1], **variant)
    assert run_rows(model, direction, [[(0, 3)], [(1, 2), (0, 1)]], [1, 2]) == 3


@each_direction
@each_model
def test_step_changes_neither_arguments_nor_weights(name: str, direction: Direction, models: Models) -> None:
    model = models(name)
    step, chunk = step_of(model, direction), random_chunk(model, direction, 1, batch=2)
    _, state = step(chunk, model.initial_state(direction, 2, HEIGHT, WIDTH), torch.tensor([True, True]))
    start, end = torch.tensor([True, False]), torch.tensor([False, True])
    watched = [chunk, start, end, *state.values()]
    before = [tensor.clone() for tensor in [*watched, *model.state_dict().values()]]
    names = set(state)
    _, after = step(chunk, state, start, end)
    assert set(state) == names
    assert all(map(torch.equal, [*watched, *model.state_dict().values()], before))
    owned = {tensor.untyped_storage().data_ptr() for tensor in after.values()}
    assert not owned & {tensor.untyped_storage().data_ptr() for tensor in watched}


@each_direction
@each_model
def test_stream_restored_from_a_saved_state_has_the_same_bits(
    name: str, direction: Direction, models: Models
) -> None:
    model = models(name)
    step, no = step_of(model, direction), torch.tensor([False])
    first, second, third = random_chunk(model, direction, 3).chunk(3, dim=2)
    _, state = step(first, model.initial_state(direction, 1, HEIGHT, WIDTH), torch.tensor([True]))
    kept, restored = state, state
    for chunk in (second, third):
        # States lie channels-last in memory, which safetensors does not write.
        restored = load(save({name: tensor.contiguous() for name, tensor in restored.items()}))
        expected, kept = step(chunk, kept, no)
        output, restored = step(chunk, restored, no)
        assert torch.equal(output, expected)
        assert all(torch.equal(restored[name], kept[name]) for name in kept)


# Causality


@each_model
def test_frame_changes_no_latent_before_its_own(name: str, models: Models) -> None:
    model = models(name)
    ratio = model.config.temporal_compression
    video = random_video(1 + 3 * ratio)
    moments = model.encode(video).latent_dist.moments
    for t in range(video.shape[2]):
        changed = video.clone()
        changed[:, :, t] = -changed[:, :, t]
        other = model.encode(changed).latent_dist.moments
        own = latent_frames(t + 1, ratio) - 1
        assert torch.equal(other[:, :, :own], moments[:, :, :own])
        assert not torch.allclose(other[:, :, own], moments[:, :, own], rtol=0, atol=1e-6)


@each_model
def test_latent_changes_no_frame_before_its_own_but_the_delay(name: str, models: Models) -> None:
    model = models(name)
    ratio, delay = model.config.temporal_compression, model.stream_spec("decoder").delay
    latents = random_latents(model, 5)
    frames = model.decode(latents).sample
    for index in range(5):
        changed = latents.clone()
        changed[:, :, index] = -changed[:, :, index]
        other = model.decode(changed).sample
        # The first latent after the head blends with no frame before it.
        own = 0 if index == 0 else 1 + ratio * (index - 1) - (delay if index > 1 else 0)
        assert torch.equal(other[:, :, :own], frames[:, :, :own])
        assert not torch.allclose(other[:, :, own], frames[:, :, own], rtol=0, atol=1e-9)


# Documentation


def test_documented_example_gives_equal_frames() -> None:
    text = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    variables: dict[str, Any] = {}
    exec(compile(example, "docs/streaming.md", "exec"), variables)
    assert variables["largest_difference"] < 1e-4
    assert variables["frames"].shape == variables["video"].shape
