"""Forms of convolution: equal to the network's own at any size, with bits that no chunk changes."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wfvae import WFVAE, WFVAEConfig
from wfvae.errors import BundleError
from wfvae.export.bundle import ExportOptions, export_bundle, graph_spec
from wfvae.export.forms import volume
from wfvae.export.forms.form import Convolution
from wfvae.export.forms.minimal_filtering import (
    ROWS_ALONE_FROM_CHANNELS,
    ROWS_FROM_CHANNELS,
    MinimalFiltering,
    Variant,
    choose,
    parity,
)
from wfvae.export.forms.subpixel import SubPixel
from wfvae.export.parity.verifier import verify
from wfvae.export.recorder.graph import trace
from wfvae.export.symbolic import Size
from wfvae.model.causal import CausalConv3d
from wfvae.model.ops import upsample_conv
from wfvae.runtime import open_bundle
from wfvae.video.synthetic.clips import ProceduralClip

SmallModel = Callable[..., Any]
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")
LATENTS = Size.symbol("latents")
FEW_BLOCKS = {"encoder_num_resblocks": 1, "decoder_num_resblocks": 1}


def convolution(seed: int, channels: int, outputs: int, **options: Any) -> CausalConv3d:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CausalConv3d(channels, outputs, 1, **options).double().requires_grad_(False)


def convolve(form: MinimalFiltering, conv: CausalConv3d, frames: Tensor) -> Tensor:
    return form.compute(frames, list(form.filters(conv.conv.weight).values()), conv.conv.bias)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VARIANTS = st.sampled_from(get_args(Variant))
SIZES = st.tuples(*(st.integers(1, top) for top in (3, 7, 5, 5, 6, 5)))


def assert_equals_taps(form: MinimalFiltering, sizes: tuple[int, ...]) -> None:
    """Borders too: all of every frame is compared."""
    batch, count, channels, outputs, height, width = sizes
    rows = 2 * height if form.name.endswith("and rows") else height
    if form.name.startswith("repeats"):
        # In a step, or in a whole clip, whose first frame was not repeated.
        pairs = random(0, batch, count // 2 + 2, channels, rows, width).repeat_interleave(2, dim=1)
        frames = torch.cat([pairs[:, :1], pairs], dim=1) if count % 2 else pairs
    else:
        frames = random(0, batch, count + 2, channels, rows, width)
    conv = convolution(0, channels, outputs)
    torch.testing.assert_close(convolve(form, conv, frames), conv.convolve(frames), rtol=0, atol=1e-12)


@given(SIZES, VARIANTS, st.sampled_from(["first", "last"]))
def test_any_variant_equals_the_sum_of_taps(sizes: tuple[int, ...], variant: Variant, unpaired: Any) -> None:
    """Frames that are repeated come in pairs that end with the head."""
    form = MinimalFiltering(variant, "first" if variant.startswith("repeats") else unpaired)
    assert_equals_taps(form, sizes)


@given(SIZES, VARIANTS)
def test_equal_frames_give_equal_bits(sizes: tuple[int, ...], variant: Variant) -> None:
    """So a head has the same bits in a stream, which has copies of it, and in a clip."""
    batch, count, channels, outputs, height, width = sizes
    form, conv = MinimalFiltering(variant), convolution(1, channels, outputs).float()
    frames = random(1, batch, 2 * count + 2, channels, 2 * height, width).float()
    head = frames[:, :1]
    result = convolve(form, conv, head.expand_as(frames).contiguous())
    assert torch.equal(result, result[:, :1].expand_as(result))
    if not variant.startswith("repeats"):
        later = torch.cat([head, head, head, frames[:, 3:]], dim=1)
        assert torch.equal(convolve(form, conv, later)[:, 0], result[:, 0])


@pytest.mark.parametrize("outputs", [64, 65, 150])
def test_filters_of_wide_convolutions_are_transformed_in_blocks(outputs: int) -> None:
    assert_equals_taps(MinimalFiltering("pairs and rows"), (1, 2, 2, outputs, 2, 3))


def test_filters_are_those_of_the_paper() -> None:
    """Worked by hand for the taps 1, 10, 100 in time and 2, 4, 8 in height."""
    time, height = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([2.0, 4.0, 8.0])
    weight = (time[:, None, None] * height[:, None] * torch.ones(3))[None, None]

    def filters(variant: Variant) -> dict[str, float]:
        found = MinimalFiltering(variant).filters(weight)
        assert {part.shape[2] for part in found.values()} == {1 if "rows" in variant else 3}
        return {name: float(part[0, 0, 0, 0]) for name, part in found.items()}

    times, rows = (1.0, 55.5, 45.5, 100.0), (2.0, 7.0, 3.0, 8.0)
    assert list(filters("pairs").values()) == [2 * t for t in times]
    assert filters("pairs and rows") == {
        f"pair{i}.rows{j}": t * r for i, t in enumerate(times) for j, r in enumerate(rows)
    }
    alone = {f"tap{i}.rows{j}": float(t * r) for i, t in enumerate(time) for j, r in enumerate(rows)}
    assert filters("rows") == filters("repeats and rows") == alone
    assert filters("repeats") == {"tap0": 2.0, "tap1": 20.0, "tap2": 200.0}


@pytest.mark.parametrize(
    ("length", "expected"),
    [(4, 0), (5, 1), (2 * LATENTS, 0), (4 * LATENTS + 3, 1), (LATENTS, None), (3 * LATENTS + 1, None)],
)
def test_parity_is_known_unless_it_depends_on_the_length(length: Any, expected: int | None) -> None:
    assert parity(length) == expected


# Sub-pixel form


@given(st.tuples(*(st.integers(1, top) for top in (3, 5, 5, 7, 7))), st.integers(0, 2**31))
def test_phases_equal_the_networks_convolution(sizes: tuple[int, ...], seed: int) -> None:
    """Heights and widths odd and even, down to one pixel."""
    count, channels, outputs, height, width = sizes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(channels, outputs, 3, padding=1).double().requires_grad_(False)
        images = torch.randn(count, channels, height, width, dtype=torch.float64)
    filters = list(SubPixel().filters(conv.weight).values())
    result: Tensor = SubPixel().compute(images, filters, conv.bias)
    torch.testing.assert_close(result, upsample_conv(images, conv), rtol=0, atol=1e-12)
    doubled = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(result, conv(doubled), rtol=0, atol=1e-12)


def test_taps_on_repeated_pixels_are_added() -> None:
    """Worked by hand: an even row sees one row above and, twice, its own."""
    taps = torch.tensor([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0], [100.0, 200.0, 400.0]])
    filters = SubPixel().filters(taps[None, None])
    assert list(filters) == ["phase00", "phase01", "phase10", "phase11"]
    assert {tuple(part.shape) for part in filters.values()} == {(1, 1, 2, 2)}
    assert filters["phase00"].flatten().tolist() == [1, 6, 110, 660]
    assert filters["phase11"].flatten().tolist() == [33, 44, 300, 400]


# Choice


def chosen(conv: CausalConv3d, length: Any, unpaired: Any = "first") -> Variant | None:
    stride = (conv.stride, conv.stride_spatial)
    form = choose(Convolution(conv.conv.weight, conv.conv.bias, length, stride, conv.repeated, unpaired))
    return None if form is None else form.name


@pytest.mark.parametrize(
    "options", [{"stride": (2, 2)}, {"kernel": 1}, {"kernel_spatial": 1}, {"stride": (2, 1)}]
)
def test_other_convolutions_do_not_fit(options: dict[str, Any]) -> None:
    assert chosen(convolution(0, 2, 2), 4) == "pairs"
    assert chosen(convolution(0, 2, 2, **options), 4) is None


@pytest.mark.parametrize(
    ("channels", "length", "variant", "of_repeated"),
    [
        (ROWS_FROM_CHANNELS - 1, 4, "pairs", "repeats"),
        (ROWS_FROM_CHANNELS, 4, "pairs and rows", "repeats and rows"),
        (ROWS_FROM_CHANNELS, 2 * LATENTS + 3, "pairs and rows", "repeats and rows"),
        (ROWS_ALONE_FROM_CHANNELS - 1, LATENTS + 2, None, None),
        (ROWS_ALONE_FROM_CHANNELS, LATENTS + 2, "rows", "rows"),
    ],
)
def test_variant_depends_on_channels_and_on_whether_frames_come_in_pairs(
    channels: int, length: Any, variant: Variant | None, of_repeated: Variant | None
) -> None:
    with torch.device("meta"):
        narrower, same = CausalConv3d(channels, channels + 1, 1), CausalConv3d(channels + 1, channels, 1)
        repeated = CausalConv3d(channels, channels, 1, repeated=True)
    assert chosen(narrower, length) == chosen(same, length) == variant
    assert chosen(repeated, length) == of_repeated and chosen(repeated, length, "last") == variant


@pytest.mark.parametrize(
    ("target", "forms"), [("auto", "minimal"), ("cpu", "minimal"), ("openvino", "mixed"), ("gpu", "plain")]
)
def test_target_chooses_the_forms_unless_they_are_given(target: Any, forms: str) -> None:
    assert ExportOptions(target=target).forms == forms
    assert ExportOptions(target=target, convolutions="volume").forms == "volume"


def test_half_precision_is_not_minimal() -> None:
    assert ExportOptions(precision="fp16").forms == ExportOptions(precision="bf16").forms == "plain"
    assert ExportOptions(precision="fp16", target="openvino").forms == "mixed"


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "form", "narrow_form"),
    [
        (256, 256, 3, True, True),
        (256, 512, 3, True, False),
        (320, 448, 3, True, False),
        (512, 32, 3, True, True),
        (8, 8, 1, False, False),
    ],
)
def test_wide_convolutions_stay_sums_of_taps(
    inputs: int, outputs: int, kernel: int, form: bool, narrow_form: bool
) -> None:
    with torch.device("meta"):
        given_one = Convolution(CausalConv3d(inputs, outputs, 1, kernel).conv.weight, None)
    found = [choice(given_one) is not None for choice in (volume.choose, volume.choose_narrow)]
    assert found == [form, narrow_form]


@given(
    st.tuples(*(st.integers(1, top) for top in (3, 7, 5, 5, 6, 5))),
    st.sampled_from([{}, {"stride": (2, 2)}, {"stride": (1, 2)}, {"kernel_spatial": 1}, {"kernel": 1}]),
)
def test_one_convolution_equals_the_sum_of_taps(sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    batch, count, channels, outputs, height, width = sizes
    conv = convolution(2, channels, outputs, **options)
    stride = (conv.stride, conv.stride_spatial)
    frames = random(2, batch, count * stride[0] + conv.kernel - 1, channels, 2 * height, 2 * width)
    form = volume.VolumeConvolution(stride)
    result = form.compute(frames, list(form.filters(conv.conv.weight).values()), conv.conv.bias)
    torch.testing.assert_close(result, conv.convolve(frames), rtol=0, atol=1e-12)


# Graphs


def constants(bundle: Path, key: str) -> set[str]:
    graph = onnx.load(str(bundle / f"{key}.onnx"), load_external_data=False).graph
    return {tensor.name for tensor in graph.initializer}


def assert_verified(bundle: Any, frames: Any, model: Any, largest: float) -> int:
    """Returns how many checks of equal bits passed."""
    verification = verify(bundle, frames, against=model)
    assert verification.passed, [check for check in verification.checks if not check.passed]
    assert max(check.max_abs for check in verification.checks) < largest
    exact = [check for check in verification.checks if check.rule == "equal bits"]
    assert all(check.equal_bits for check in exact)
    return len(exact)


@pytest.mark.parametrize(
    ("ratio", "interpolation", "part"),
    [(4, "trilinear", "pair3"), (8, "trilinear", "pair3"), (8, "nearest", "tap2")],
)
def test_streams_have_the_bits_of_direct_inference(
    ratio: int, interpolation: str, part: str, small_model: SmallModel, tmp_path: Path
) -> None:
    """With wide channels, where rows are transformed, narrow ones, and repeated frames."""
    wide = {"base_channels": ROWS_FROM_CHANNELS // 4, **FEW_BLOCKS}
    model = small_model(temporal_compression=ratio, t_interpolation=interpolation, **wide)
    export_bundle(model, tmp_path / "bundle", ExportOptions(direct=True))
    weight = "decoder.up2.1.conv.conv.weight."
    for key in ("decoder", "decoder.direct"):
        found = {name.removeprefix(weight) for name in constants(tmp_path / "bundle", key)}
        assert {name for name in ("pair3.rows3", "tap2.rows3") if name in found} == {f"{part}.rows3"}
    bundle = open_bundle(tmp_path / "bundle", provider="cpu", threads=1)
    assert assert_verified(bundle, ProceduralClip(5, 20, 28).frames(0, 2 * ratio + 3), model, 2e-5)


@pytest.mark.parametrize(
    ("backend", "hint", "size", "heights"),
    [
        pytest.param("onnxruntime", None, None, (24, 16), marks=pytest.mark.slow),
        pytest.param("onnxruntime", None, (24, 8), (24,), marks=pytest.mark.slow),
        pytest.param("openvino", "fp32", None, (24,), marks=[needs_openvino, pytest.mark.slow]),
        pytest.param("openvino", "bf16", None, (24,), marks=[needs_openvino, pytest.mark.slow]),
    ],
)
def test_streams_of_a_wide_network_in_pairs_of_rows_have_equal_bits(
    backend: Any, hint: str | None, size: Any, heights: Any, small_model: SmallModel, tmp_path: Path
) -> None:
    """At one frame per latent, with an even and an odd number of latent rows."""
    wide = {"base_channels": ROWS_ALONE_FROM_CHANNELS // 4, **FEW_BLOCKS}
    model = small_model(t_interpolation="nearest", **wide)
    export_bundle(model, tmp_path / "bundle", ExportOptions(direct=True, size=size))
    filters = constants(tmp_path / "bundle", "encoder") | constants(tmp_path / "bundle", "decoder")
    in_rows = {name.split(".conv")[0] for name in filters if ".rows" in name}
    assert {"encoder.mid.0", "decoder.mid.2"} <= in_rows and not {"encoder", "decoder"} & in_rows
    try:
        bundle = open_bundle(tmp_path / "bundle", backend=backend, threads=1, precision_hint=hint)
    except BundleError as error:
        assert hint == "bf16" and "does not compute in bf16" in str(error)
        pytest.skip(str(error))
    for height in heights:
        frames = ProceduralClip(5, height, 8).frames(0, 10)
        assert assert_verified(bundle, frames, model, 2e-5) >= 20  # in fp32 with the bf16 hint, too


@pytest.mark.parametrize(
    ("direction", "interpolation"),
    [
        ("encoder", "trilinear"),
        pytest.param("decoder", "trilinear", marks=pytest.mark.slow),
        pytest.param("decoder", "nearest", marks=pytest.mark.slow),
    ],
)
def test_planned_memory_covers_an_odd_number_of_rows(direction: Any, interpolation: Any) -> None:
    """The formula for any size, whose halves are bounds, against the sums for one size.

    Frames have more positions than a block of attention, whose length the formula takes as it is.
    """
    with torch.device("meta"):
        model = WFVAE(WFVAEConfig.preset("S", t_interpolation=interpolation)).eval()
    spec = graph_spec(model, direction, "step")
    values: dict[Any, int] = {"batch": 2, "latents": 3, "height/8": 33, "width/8": 32}

    def most(size: tuple[int, int] | None) -> int:
        peaks = trace(model, spec, size=size, opset=20, convolutions="minimal").scratch
        products = [[math.prod(values.get(part, part) for part in term) for term in peak] for peak in peaks]
        return max(map(sum, products))

    assert most((264, 256)) <= most(None) <= 1.2 * most((264, 256))


@pytest.mark.parametrize("interpolation", ["trilinear", "nearest"])
@pytest.mark.parametrize("ratio", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_graphs_of_volumes_have_one_layout_from_end_to_end(
    interpolation: str, ratio: int, small_model: SmallModel, tmp_path: Path
) -> None:
    """Frames are transposed where they enter and leave, for norms, and for attention."""
    model = small_model(temporal_compression=ratio, t_interpolation=interpolation, **FEW_BLOCKS)
    export_bundle(model, tmp_path / "bundle", ExportOptions(direct=True, target="openvino"))
    states = len(model.stream_spec("decoder").states)
    for key in ("decoder", "decoder.direct"):
        graph = onnx.load(str(tmp_path / "bundle" / f"{key}.onnx"), load_external_data=False).graph
        nodes = [node for node in graph.node if node.op_type in {"Conv", "Transpose", "LayerNormalization"}]
        kernels = [attribute(node, "kernel_shape") for node in nodes if node.op_type == "Conv"]
        assert [3, 3, 3] in kernels and {len(kernel) for kernel in kernels} == {3}
        orders = [attribute(node, "perm") for node in nodes if node.op_type == "Transpose"]
        norms = len([node for node in nodes if node.op_type == "LayerNormalization"])
        assert orders.count([0, 2, 3, 4, 1]) == orders.count([0, 4, 1, 2, 3]) == norms
        assert orders.count([0, 2, 1, 3, 4]) <= 12 + 2 * states * (key == "decoder")
    bundle = open_bundle(tmp_path / "bundle", provider="cpu", threads=1)
    frames = ProceduralClip(5, 16, 24).frames(0, ratio + 3)
    assert assert_verified(bundle, frames, model, 2e-5) == 0  # ONNX Runtime's 3-D convolutions are not exact


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(onnx.helper.get_attribute_value(found) for found in node.attribute if found.name == name)


def test_plain_and_minimal_bundles_differ_in_rounding_alone(small_model: SmallModel, tmp_path: Path) -> None:
    results, weights = [], []
    for form in ("plain", "minimal"):
        manifest = export_bundle(small_model(), tmp_path / form, ExportOptions(convolutions=form))  # type: ignore[arg-type]
        bundle = open_bundle(tmp_path / form, provider="cpu", threads=1)
        results.append(torch.from_numpy(bundle.encode(ProceduralClip(7, 16, 24).frames(0, 9))))
        weights.append(manifest.graphs["decoder"].weights_bytes)
    assert 0 < float((results[0] - results[1]).abs().max()) < 1e-5
    assert weights[0] < weights[1] < 4 / 3 * weights[0]
