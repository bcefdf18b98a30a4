"""A stream in any chunks is the whole clip: in float64 to rounding (<= 1e-9); in fp32 the
differences are measured and shown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from wfvae.model.config import Interpolation
from wfvae.model.vae import WFVAE
from wfvae.spec.frames import latent_frames, lead_frames, tail_frames
from wfvae.spec.stream import Direction

NAMES = ["4x8x8-trilinear", "4x8x8-nearest-16ch", "8x8x8-trilinear"]
LENGTHS = [1, 2, 4, 5, 9, 16, 21, 33, 37]
HEIGHT, WIDTH = 16, 24
CLOSE = {"rtol": 0, "atol": 1e-9}

ModelFactory = Callable[..., WFVAE]
each_model = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(reference_model: ModelFactory, small_model: ModelFactory) -> Callable[[str], WFVAE]:
    """The published fixtures in float64, and `8x8x8-nearest`, of which there is none."""
    nearest = small_model(torch.float64, temporal_compression=8, t_interpolation="nearest")
    return lambda name: nearest if name == "8x8x8-nearest" else reference_model(name, torch.float64)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def random_video(frames: int, seed: int = 0, batch: int = 1) -> Tensor:
    return random(seed, batch, 3, frames, HEIGHT, WIDTH)


def random_latents(model: WFVAE, count: int, seed: int = 0, batch: int = 1) -> Tensor:
    return 2 * random(seed, batch, model.config.latent_dim, count, HEIGHT // 8, WIDTH // 8)


def whole_encode(model: WFVAE, video: Tensor) -> Tensor:
    """Moments by direct inference; a T that is not 1 + r n is padded behind with its last frame."""
    tail = tail_frames(video.shape[2], model.config.temporal_compression)
    return model.encode(torch.cat([video, *[video[:, :, -1:]] * tail], dim=2)).latent_dist.moments


def joined(parts: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2)


def compositions(total: int) -> Iterator[list[int]]:
    """All lists of positive numbers with this sum."""
    for cuts in product([False, True], repeat=total - 1):
        sizes = [1]
        for cut in cuts:
            sizes = [*sizes, 1] if cut else [*sizes[:-1], sizes[-1] + 1]
        yield sizes


# Stream = clip ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "8x8x8-nearest"])
@pytest.mark.parametrize("frames", LENGTHS)
def test_a_stream_is_the_whole_clip(name: str, frames: int, models: Callable[[str], WFVAE]) -> None:
    model = models(name)
    video = random_video(frames, batch=2)
    moments = whole_encode(model, video)
    latents = random_latents(model, moments.shape[2], batch=2)
    decoded = model.decode(latents).sample[:, :, :frames]
    for chunk in (1, 4, 7, frames):
        torch.testing.assert_close(joined(model.stream_encode(video.split(chunk, dim=2))), moments, **CLOSE)
        torch.testing.assert_close(
            joined(model.stream_decode(latents.split(chunk, dim=2), frames)), decoded, **CLOSE
        )


@each_model
def test_every_plan_of_a_short_clip(name: str, models: Callable[[str], WFVAE]) -> None:
    model = models(name)
    video, latents = random_video(7), random_latents(model, 6)
    moments, decoded = whole_encode(model, video), model.decode(latents).sample
    for sizes in compositions(7):
        torch.testing.assert_close(joined(model.stream_encode(video.split(sizes, dim=2))), moments, **CLOSE)
    for sizes in compositions(6):
        torch.testing.assert_close(joined(model.stream_decode(latents.split(sizes, dim=2))), decoded, **CLOSE)


@given(data=st.data())
@settings(max_examples=25)
def test_random_plans_of_longer_clips(data: st.DataObject, models: Callable[[str], WFVAE]) -> None:
    model = models(data.draw(st.sampled_from([*NAMES, "8x8x8-nearest"])))
    with torch.no_grad():
        sizes = data.draw(st.lists(st.integers(0, 19), min_size=1, max_size=8).filter(any))
        video = random_video(sum(sizes))
        torch.testing.assert_close(
            joined(model.stream_encode(video.split(sizes, dim=2))), whole_encode(model, video), **CLOSE
        )
        sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
        latents = random_latents(model, sum(sizes))
        frames = model.decode(latents).sample
        cut = data.draw(st.integers(0, min(frames.shape[2], model.config.temporal_compression) - 1))
        frames = frames[:, :, : frames.shape[2] - cut]
        torch.testing.assert_close(
            joined(model.stream_decode(latents.split(sizes, dim=2), frames.shape[2])), frames, **CLOSE
        )


def test_output_comes_as_soon_as_it_can(reference_model: ModelFactory) -> None:
    model = reference_model("4x8x8-trilinear")
    video = random_video(10).float()
    assert [m.shape[2] for m in model.stream_encode(video.split(1, dim=2))] == [
        1,
        1,
        1,
        1,
    ]  # at frames 1, 5, 9, and the end
    latents = random_latents(model, 4).float()
    assert [f.shape[2] for f in model.stream_decode(latents.split(1, dim=2))] == [
        3,
        4,
        4,
        2,
    ]  # 5 dropped; first step gives none
    model = reference_model("4x8x8-nearest-16ch")
    latents = random_latents(model, 3).float()
    assert [f.shape[2] for f in model.stream_decode(latents.split(1, dim=2))] == [1, 4, 4]
    assert not model.stream_spec("decoder").needs_drain


def test_the_numbers_of_the_documentation(models: Callable[[str], WFVAE]) -> None:
    rules = {name: models(name).stream_spec("decoder") for name in [*NAMES, "8x8x8-nearest"]}
    assert {name: (spec.delay, spec.drop) for name, spec in rules.items()} == {
        "4x8x8-trilinear": (2, 5),
        "4x8x8-nearest-16ch": (0, 3),
        "8x8x8-trilinear": (6, 13),
        "8x8x8-nearest": (0, 7),
    }


# Rows of a batch ----------------------------------------------------------------------------------


class Row:
    """One batch row: streams one after the other, with idle steps between them, in steps of given
    sizes.

    Collects what a client would: the outputs of each stream, after the frames to drop, up to the
    stream's length.
    """

    def __init__(self, model: WFVAE, direction: Direction, streams: list[tuple[int, int]], row: int) -> None:
        """`streams` holds (idle steps before, own steps) for each."""
        spec = model.stream_spec(direction)
        drain = [("end", 0)] if spec.needs_drain else []
        self.events: list[tuple[str, int]] = []
        for index, (idle, own) in enumerate(streams):
            self.events += [("idle", index)] * idle + [("start", index)] + [("go", index)] * (own - 1) + drain
        self.model, self.direction, self.row = model, direction, row
        self.inputs: list[list[Tensor]] = [[] for _ in streams]
        self.outputs: list[list[Tensor]] = [[] for _ in streams]
        self.current = 0

    def feed(self, step: int, units: int) -> tuple[Tensor, bool, bool]:
        """Input (1, channels, ., h, w), start, end."""
        kind = self.events[step][0] if step < len(self.events) else "idle"
        seed = 1000 * self.row + step
        if self.direction == "encoder":
            ratio = self.model.config.temporal_compression
            chunk = random_video(ratio * units, seed)
            if kind == "start":
                chunk[:, :, : lead_frames(ratio)] = chunk[:, :, lead_frames(ratio) : ratio]
        else:
            chunk = random_latents(self.model, units, seed)
        if kind in ("idle", "end"):
            chunk = 1e4 * chunk  # of no meaning, and must not be seen
        if kind == "start":
            self.current = self.events[step][1]
        if kind in ("start", "go"):
            self.inputs[self.current].append(chunk)
        return chunk, kind == "start", kind == "end"

    def take(self, step: int, output: Tensor) -> None:
        if step < len(self.events) and self.events[step][0] != "idle":
            self.outputs[self.current].append(output)

    def check(self) -> int:
        """Compares every stream with direct inference; returns how many there were."""
        drop = self.model.stream_spec(self.direction).drop
        for inputs, outputs in zip(self.inputs, self.outputs, strict=True):
            given, got = torch.cat(inputs, dim=2), torch.cat(outputs, dim=2)
            if self.direction == "encoder":
                expected = self.model.encode(
                    given[:, :, lead_frames(self.model.config.temporal_compression) :]
                ).latent_dist.moments
            else:
                expected = self.model.decode(given).sample
                got = got[:, :, drop : drop + expected.shape[2]]
            torch.testing.assert_close(got, expected, **CLOSE)
        return len(self.inputs)


def run_rows(
    model: WFVAE,
    direction: Direction,
    plans: list[list[tuple[int, int]]],
    units: list[int],
    poison: bool = False,
) -> int:
    """Drives one stream per plan in one batch, with steps of `units` latents in turn. Returns how
    many streams were compared.
    """
    rows = [Row(model, direction, plan, index) for index, plan in enumerate(plans)]
    state = model.initial_state(direction, len(rows), HEIGHT, WIDTH)
    if poison:
        state = {
            n: torch.full_like(t, torch.nan) if t.is_floating_point() else torch.full_like(t, 12345)
            for n, t in state.items()
        }
    step_function = model.encoder_step if direction == "encoder" else model.decoder_step
    for step in range(max(len(row.events) for row in rows)):
        chunks, start, end = zip(*[row.feed(step, units[step % len(units)]) for row in rows], strict=True)
        output, state = step_function(torch.cat(chunks), state, torch.tensor(start), torch.tensor(end))
        for index, row in enumerate(rows):
            row.take(step, output[index : index + 1])
    return sum(row.check() for row in rows)


DIRECTIONS: list[Direction] = ["encoder", "decoder"]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@each_direction
@each_model
def test_rows_start_and_end_at_different_steps(
    name: str, direction: Direction, models: Callable[[str], WFVAE]
) -> None:
    plans = [[(0, 3), (0, 1), (2, 2)], [(1, 1), (0, 4)], [(3, 4)], [(0, 1), (0, 1), (0, 1), (0, 1)]]
    for units in ([1], [2], [1, 3, 2]):
        assert run_rows(models(name), direction, plans, units) == 10


@given(
    name=st.sampled_from([*NAMES, "8x8x8-nearest"]),
    direction=st.sampled_from(DIRECTIONS),
    plans=st.lists(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    units=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
@settings(max_examples=25)
def test_random_rows(
    name: str,
    direction: Direction,
    plans: list[list[tuple[int, int]]],
    units: list[int],
    models: Callable[[str], WFVAE],
) -> None:
    with torch.no_grad():
        assert run_rows(models(name), direction, plans, units) >= 1


@each_direction
@each_model
def test_start_makes_a_row_forget_even_nan(
    name: str, direction: Direction, models: Callable[[str], WFVAE]
) -> None:
    assert run_rows(models(name), direction, [[(0, 3)], [(0, 1), (0, 2)]], [1], poison=True) == 3


@each_direction
@each_model
def test_two_streams_interleave_on_one_model(
    name: str, direction: Direction, models: Callable[[str], WFVAE]
) -> None:
    model = models(name)

    def inputs(seed: int) -> list[Tensor]:
        if direction == "encoder":
            return list(random_video(14, seed).split(3, dim=2))
        return list(random_latents(model, 5, seed).split(2, dim=2))

    stream = model.stream_encode if direction == "encoder" else model.stream_decode
    first, second = stream(inputs(1)), stream(inputs(2))
    taken: tuple[list[Tensor], list[Tensor]] = ([], [])
    for one, other in zip(first, second, strict=True):
        taken[0].append(one)
        taken[1].append(other)
    for seed, parts in zip((1, 2), taken, strict=True):
        alone = list(stream(inputs(seed)))
        assert len(alone) == len(parts) > 1
        assert all(torch.equal(a, b) for a, b in zip(alone, parts, strict=True))


# State --------------------------------------------------------------------------------------------

VARIANTS = [
    {},
    {"energy_flow_l2": False},
    {"energy_flow_l3": False},
    {"energy_flow_l2": False, "energy_flow_l3": False, "use_attention": False},
    {"connect_res_layer_num": 0, "encoder_num_resblocks": 0, "decoder_num_resblocks": 1},
]
INTERPOLATIONS: list[Interpolation] = ["nearest", "trilinear"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("compression", [4, 8])
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_specifications_are_what_a_step_returns(
    variant: int, compression: int, interpolation: str, dtype: torch.dtype, small_model: ModelFactory
) -> None:
    model = small_model(
        dtype, temporal_compression=compression, t_interpolation=interpolation, **VARIANTS[variant]
    )
    start = torch.tensor([True, False])
    chunks = {"encoder": random_video(2 * compression, batch=2), "decoder": random_latents(model, 2, batch=2)}
    for direction in DIRECTIONS:
        spec = model.stream_spec(direction)
        initial = model.initial_state(direction, 2, HEIGHT, WIDTH)
        step = model.encoder_step if direction == "encoder" else model.decoder_step
        output, state = step(chunks[direction].to(dtype), initial, start)
        assert output.dtype == dtype
        resolved = {s.name: (s.resolve(2, HEIGHT, WIDTH), f"torch.{s.dtype}") for s in spec.states}
        assert len(resolved) == len(spec.states) > 0
        for tensors in (initial, state):
            assert {n: (tuple(t.shape), str(t.dtype)) for n, t in tensors.items()} == resolved
            assert sum(t.numel() * t.element_size() for t in tensors.values()) == 2 * spec.bytes_per_stream(
                HEIGHT, WIDTH
            )
        assert all(name.startswith(f"{direction}.") for name in resolved)
        assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in state.values())
        model_paths = {path for path, _ in model.named_modules()}
        assert all(n in model_paths or n.rsplit(".", 1)[0] in model_paths for n in resolved)


@pytest.mark.parametrize("compression", [4, 8])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("variant", range(1, len(VARIANTS)))
def test_variants_of_the_network_stream_as_well(
    variant: int, interpolation: str, compression: int, small_model: ModelFactory
) -> None:
    model = small_model(
        torch.float64, temporal_compression=compression, t_interpolation=interpolation, **VARIANTS[variant]
    )
    for direction in DIRECTIONS:
        assert run_rows(model, direction, [[(0, 3)], [(1, 2), (0, 1)]], [1, 2]) == 3


@each_direction
@each_model
def test_steps_change_none_of_their_arguments(
    name: str, direction: Direction, models: Callable[[str], WFVAE]
) -> None:
    model = models(name)
    step = model.encoder_step if direction == "encoder" else model.decoder_step
    chunk = (
        random_video(model.config.temporal_compression, batch=2)
        if direction == "encoder"
        else random_latents(model, 1, batch=2)
    )
    _, state = step(chunk, model.initial_state(direction, 2, HEIGHT, WIDTH), torch.tensor([True, True]))
    arguments = {
        "chunk": chunk,
        "start": torch.tensor([True, False]),
        "end": torch.tensor([False, True]),
        **state,
    }
    before = {key: tensor.clone() for key, tensor in arguments.items()}
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    _, after = step(chunk, state, arguments["start"], arguments["end"])
    assert all(torch.equal(arguments[key], before[key]) for key in arguments)
    assert set(arguments) == {"chunk", "start", "end", *state}
    owned = {tensor.untyped_storage().data_ptr() for tensor in after.values()}
    assert not owned & {tensor.untyped_storage().data_ptr() for tensor in arguments.values()}
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """States lie channels-last in memory, which safetensors does not write; a restored one may lie
    otherwise.
    """
    return {name: tensor.contiguous() for name, tensor in state.items()}


@each_direction
@each_model
def test_a_stream_restored_from_a_saved_state_goes_on_identically(
    name: str, direction: Direction, reference_model: ModelFactory
) -> None:
    model = reference_model(name)
    step = model.encoder_step if direction == "encoder" else model.decoder_step
    units = 3 * model.config.temporal_compression if direction == "encoder" else 3
    chunk = random_video(units) if direction == "encoder" else random_latents(model, units)
    first, second, third = chunk.float().chunk(3, dim=2)
    no, yes = torch.tensor([False]), torch.tensor([True])
    _, state = step(first, model.initial_state(direction, 1, HEIGHT, WIDTH), yes)
    saved = save(packed(state))
    kept = step(second, state, no)
    kept_last = step(third, kept[1], no)
    restored = step(second, load(saved), no)
    restored_last = step(third, load(save(packed(restored[1]))), no)
    assert torch.equal(kept[0], restored[0])
    assert torch.equal(kept_last[0], restored_last[0])
    assert all(torch.equal(kept_last[1][key], restored_last[1][key]) for key in kept_last[1])


# Causality ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "8x8x8-nearest"])
def test_a_frame_changes_no_latent_before_it(name: str, models: Callable[[str], WFVAE]) -> None:
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


@pytest.mark.parametrize("name", [*NAMES, "8x8x8-nearest"])
def test_a_latent_changes_no_frame_before_it_but_the_delay(name: str, models: Callable[[str], WFVAE]) -> None:
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


# Measured, not asserted ---------------------------------------------------------------------------


@each_model
def test_fp32_differences_are_measured(
    name: str,
    reference_model: ModelFactory,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = reference_model(name)
    video = random_video(33).float()
    latents = random_latents(model, latent_frames(33, model.config.temporal_compression)).float()
    lines = []
    for what, whole, stream in (
        (
            "encode",
            model.encode(video).latent_dist.moments,
            joined(model.stream_encode(video.split(8, dim=2))),
        ),
        ("decode", model.decode(latents).sample, joined(model.stream_decode(latents.split(2, dim=2)))),
    ):
        assert whole.shape == stream.shape
        share, largest = (whole == stream).double().mean().item(), (whole - stream).abs().max().item()
        record_property(f"fp32 {what}: share of equal values", share)
        record_property(f"fp32 {what}: largest difference", largest)
        lines.append(
            f"fp32 stream against clip, {name}, {what}: {share:.2%} of the values equal, largest difference"
            f" {largest:.1e}"
        )
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


# Documentation ------------------------------------------------------------------------------------


def test_the_documented_example_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == 1
    variables: dict[str, object] = {}
    exec(compile(examples[0], "docs/streaming.md", "exec"), variables)
    assert variables["largest_difference"] < 1e-4  # type: ignore[operator]
    frames, video = variables["frames"], variables["video"]
    assert isinstance(frames, Tensor)
    assert isinstance(video, Tensor)
    assert frames.shape == video.shape
