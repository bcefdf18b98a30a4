"""Ways to compute single layers of the exported graphs: those that the export chooses, and those
that were tried and dropped.

    python benchmarks/forms.py [--json benchmarks/results/forms-cpu.json]
    python benchmarks/forms.py --layers attention norm --engines onnxruntime --runs 9

Layers have sizes of the presets at 128x128. Each has the network's own form first; the others are
measured against it, in turns, in each engine by itself: a turn is the median of calls that take
`--seconds` in all. All forms of a layer must give the same, up to rounding. Weights are random. An
engine that is not installed, or whose precision this CPU does not compute in, is left out, with the
reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from bundle_engines import require_engine
from isolated import NotMeasured
from onnx import helper, numpy_helper
from record import load_average, machine, machine_line, markdown_table, write_json, write_text
from roofline import compile_model, seconds_of
from torch import Tensor, nn
from turns import take_turns

from wfvae.export.forms.form import Form as ExportForm
from wfvae.export.forms.minimal_filtering import MinimalFiltering, analyse, synthesise, transform
from wfvae.export.forms.subpixel import SubPixel
from wfvae.export.recorder.builder import onnx_type
from wfvae.export.recorder.recording import Recorder
from wfvae.export.recorder.tensor import TracedTensor
from wfvae.model.blocks import FrameAttention, Norm, Upsample2D
from wfvae.model.causal import CausalConv3d, OfflineClip
from wfvae.model.ops import cat_frames, upsample_conv

ENGINES = ("onnxruntime", "openvino-fp32", "openvino-bf16")
TOLERANCE = {"onnxruntime": 1e-4, "openvino-fp32": 1e-4, "openvino-bf16": 2e-2}
"""How far forms may be apart, by the largest value."""
_OPSET = 20

Shape = tuple[int, ...]


class Form(nn.Module):
    """A computation with tensors of its own, on one or more inputs."""

    def __init__(
        self,
        compute: Callable[..., Tensor],
        module: nn.Module | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.compute, self.module = compute, module
        for name, tensor in (tensors or {}).items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(*inputs, *self.buffers(recurse=False))


@dataclass(frozen=True)
class Layer:
    name: str
    inputs: tuple[Shape, ...]
    """(B, T, C, H, W) each."""
    forms: Mapping[str, Form]
    """By name; the first is the network's own."""
    engines: tuple[str, ...] = ENGINES


def layers() -> dict[str, Callable[[], list[Layer]]]:
    """What can be measured, by the names of the command line."""
    return {
        "pairs": lambda: [
            in_pairs(8, channels, channels, side)
            for channels, side in ((512, 32), (256, 64), (192, 64), (128, 64))
        ],
        "rows": lambda: [
            one_by_one(5, 512, 512, 16),
            one_by_one(5, 256, 512, 16),
            one_by_one(5, 128, 128, 16),
        ],
        "doubling": lambda: [doubling(9, 256, 32)],
        "nearest": lambda: [nearest(4, 512, 32), nearest(8, 256, 64)],
        "attention": lambda: [attention(5, 512, 16)],
        "norm": lambda: [norm(9, 128, 64)],
        "history": lambda: [history(4, 512, 16)],
    }


def _convolution(channels: int, outputs: int) -> CausalConv3d:
    return CausalConv3d(channels, outputs, 8)


def _filtered(convolve: Callable[..., Tensor], filters: Mapping[str, Tensor], bias: Tensor | None) -> Form:
    assert bias is not None
    return Form(lambda x, *tensors: convolve(x, tensors[:-1], tensors[-1]), tensors={**filters, "bias": bias})


def _in_form(form: ExportForm, weight: Tensor, bias: Tensor | None, before: Callable[..., Tensor]) -> Form:
    """A form of the export, on what `before` returns."""
    return _filtered(lambda x, *rest: form.compute(before(x), *rest), form.filters(weight), bias)


def _unchanged(x: Tensor) -> Tensor:
    return x


def in_pairs(count: int, channels: int, outputs: int, side: int) -> Layer:
    conv = _convolution(channels, outputs)
    weight, bias = conv.conv.weight, conv.conv.bias
    forms = {
        "sum of taps": Form(conv.convolve, conv),
        "in pairs of frames": _in_form(MinimalFiltering("pairs"), weight, bias, _unchanged),
        "in pairs of frames and of rows": _in_form(
            MinimalFiltering("pairs and rows"), weight, bias, _unchanged
        ),
    }
    return Layer(
        f"3x3x3 convolution to {outputs} channels, frames in pairs",
        ((1, count + 2, channels, side, side),),
        forms,
    )


def one_by_one(count: int, channels: int, outputs: int, side: int) -> Layer:
    conv = _convolution(channels, outputs)
    weight, bias = conv.conv.weight, conv.conv.bias
    forms = {
        "sum of taps": Form(conv.convolve, conv),
        "in pairs of rows": _in_form(MinimalFiltering("rows"), weight, bias, _unchanged),
        "in pairs of rows and of columns": _filtered(_rows_and_columns, _tile_filters(weight), bias),
    }
    return Layer(
        f"3x3x3 convolution to {outputs} channels, frames one by one",
        ((1, count + 2, channels, side, side),),
        forms,
    )


def _tile_filters(weight: Tensor) -> dict[str, Tensor]:
    """Filters (C', C, 1, 1), transformed in height and width: three taps of four rows of four
    columns.
    """
    return {
        f"tap{tap}.{row}{column}": part[:, :, None, None].contiguous()
        for tap in range(3)
        for row, line in enumerate(transform(weight.detach()[:, :, tap].unbind(2)))
        for column, part in enumerate(transform(line.unbind(2)))
    }


def _rows_and_columns(frames: Tensor, filters: Sequence[Tensor], bias: Tensor) -> Tensor:
    """For even heights and widths."""
    padded = F.pad(frames.flatten(0, 1), (1, 1, 1, 1))
    products: list[list[Tensor]] = []
    for row, window in enumerate(
        analyse([padded[:, :, start : start - 3 or None : 2] for start in range(4)])
    ):
        products.append([])
        for column, tile in enumerate(
            analyse([window[:, :, :, start : start - 3 or None : 2] for start in range(4)])
        ):
            parts = [
                F.conv2d(
                    tile[tap : (tap - 2) or None],
                    filters[16 * tap + 4 * row + column],
                    bias if (tap, row, column) == (0, 1, 1) else None,
                )
                for tap in range(3)
            ]
            products[-1].append(parts[0] + parts[1] + parts[2])
    columns = [synthesise(column) for column in zip(*products, strict=True)]
    lines = [
        torch.stack(synthesise([column[line] for column in columns]), dim=4).flatten(3, 4)
        for line in range(2)
    ]
    result = torch.stack(lines, dim=3).flatten(2, 3)
    return result.reshape(1, -1, *result.shape[1:])


def doubling(count: int, channels: int, side: int) -> Layer:
    upsample = Upsample2D(channels)
    forms = {
        "repetition, then 3x3": Form(lambda x: upsample_conv(x.flatten(0, 1), upsample.conv), upsample),
        "four 2x2": _in_form(SubPixel(), upsample.conv.weight, upsample.conv.bias, lambda x: x.flatten(0, 1)),
    }
    return Layer("height and width doubled, 3x3 convolution", ((1, count, channels, side, side),), forms)


def nearest(count: int, channels: int, side: int) -> Layer:
    """Frames repeated in time, with one of history."""
    conv = _convolution(channels, channels)
    weight, bias = conv.conv.weight, conv.conv.bias

    def repeated(x: Tensor) -> Tensor:
        return torch.stack([x, x], dim=2).flatten(1, 2)

    forms = {
        "sum of taps": Form(lambda x: conv.convolve(repeated(x)), conv),
        "in pairs of frames": _in_form(MinimalFiltering("pairs"), weight, bias, repeated),
        "in pairs of frames and of rows": _in_form(
            MinimalFiltering("pairs and rows"), weight, bias, repeated
        ),
        "three products": _in_form(MinimalFiltering("repeats"), weight, bias, repeated),
        "three products in pairs of rows": _in_form(
            MinimalFiltering("repeats and rows"), weight, bias, repeated
        ),
    }
    return Layer(
        "frame rate doubled by repetition, 3x3x3 convolution", ((1, count + 1, channels, side, side),), forms
    )


def attention(count: int, channels: int, side: int) -> Layer:
    block = FrameAttention(channels, 8, "layernorm")
    weights = torch.cat([getattr(block, name).conv.weight[:, :, 0] for name in "qkv"])
    biases = torch.cat([getattr(block, name).conv.bias for name in "qkv"])

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        images = F.conv2d(block.norm(x).flatten(0, 1), weight, bias)
        parts = [images[:, start : start + channels] for start in (0, channels, 2 * channels)]
        query, key, value = (part.reshape(-1, 1, channels, side * side).transpose(2, 3) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(2, 3)
        return cast(Tensor, block.proj_out(attended.reshape(1, -1, channels, side, side), OfflineClip())) + x

    forms = {
        "three projections": Form(lambda x: block(x, OfflineClip()), block),
        "one projection": Form(fused, block, {"weight": weights, "bias": biases}),
    }
    return Layer("attention", ((1, count, channels, side, side),), forms)


def norm(count: int, channels: int, side: int) -> Layer:
    block = Norm(channels, "layernorm")
    scale, shift = (
        tensor.detach().reshape(-1, 1, 1).clone() for tensor in (block.norm.weight, block.norm.bias)
    )

    def over_channels(x: Any, scale: Any, shift: Any) -> Any:
        images = x.reshape(count, channels, side, side)
        axis = x.integers([1])

        def mean(values: Any) -> Any:
            return x.emit("ReduceMean", [values, axis], (count, 1, side, side), keepdims=1)

        centred = images - mean(images)
        variance = mean(centred * centred) + block.norm.eps
        deviation = x.emit("Sqrt", [variance], (count, 1, side, side))
        normed = centred / deviation * scale + shift
        return F.silu(normed).reshape(1, count, channels, side, side)

    forms = {
        "transposes around the norm": Form(lambda x: F.silu(block(x)), block),
        "means over channels": Form(over_channels, None, {"scale": scale, "shift": shift}),
    }
    # OpenVINO has a rewriting of its own (`runtime/backends/openvino_norms.py`).
    return Layer("norm and SiLU", ((1, count, channels, side, side),), forms, ("onnxruntime",))


def history(count: int, channels: int, side: int) -> Layer:
    conv = _convolution(channels, channels)
    shapes = tuple((1, frames, channels, side, side) for frames in (2, count))
    forms = {
        "cache and frames concatenated": Form(lambda history, x: conv.convolve(cat_frames(history, x)), conv),
        "concatenated for each tap": _tap_by_tap(conv),
    }
    return Layer("3x3x3 convolution with its causal cache", shapes, forms)


def _tap_by_tap(conv: CausalConv3d) -> Form:
    """A copy less: the last tap needs none."""

    def compute(history: Tensor, x: Tensor) -> Tensor:
        count = x.shape[1]
        taken = [cat_frames(history, x[:, : count - 2]), cat_frames(history[:, 1:], x[:, : count - 1]), x]
        weight, bias = conv.conv.weight, conv.conv.bias
        parts = [
            F.conv2d(frames.flatten(0, 1), weight[:, :, tap], bias if tap == 0 else None, padding=1)
            for tap, frames in enumerate(taken)
        ]
        total = parts[0] + parts[1] + parts[2]
        return total.reshape(1, count, *total.shape[1:])

    return Form(compute, conv)


def record(form: Form, shapes: Sequence[Shape]) -> onnx.ModelProto:
    """The form as the export would write it for a fixed size."""
    recorder = Recorder(form)
    builder = recorder.builder
    inputs = [builder.add_input(f"x{index}", shape, torch.float32) for index, shape in enumerate(shapes)]
    with recorder.recording():
        result: Any = form(*cast("list[Tensor]", [TracedTensor(recorder, value) for value in inputs]))
    builder.keep_only([result])
    values = [
        helper.make_tensor_value_info(value.name, onnx_type(torch.float32), shape)
        for value, shape in zip(inputs, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info(result.name, onnx_type(torch.float32), None)
    constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in builder.constants.items()]
    graph = helper.make_graph(builder.nodes, "form", values, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


def measure(layer: Layer, engine: str, threads: int, runs: int, seconds: float) -> Iterator[dict[str, Any]]:
    """A row per form."""
    rng = np.random.default_rng(0)
    feeds = {
        f"x{index}": rng.standard_normal(shape).astype(np.float32) for index, shape in enumerate(layer.inputs)
    }
    calls = {
        name: compile_model(record(form, layer.inputs), engine, threads) for name, form in layer.forms.items()
    }
    results = {name: np.array(call(feeds)[0]).reshape(-1) for name, call in calls.items()}
    times = take_turns(
        {name: partial(seconds_of, partial(call, feeds), seconds) for name, call in calls.items()},
        runs,
        warm_up=False,
    )
    own = next(iter(layer.forms))
    for name in layer.forms:
        apart = float(np.abs(results[name] - results[own]).max() / np.abs(results[own]).max())
        if apart > TOLERANCE[engine]:
            raise AssertionError(
                f"{layer.name}, {name}: {apart:.1e} of the largest value apart from the network's form"
            )
        speeds = [those / these for these, those in zip(times[name], times[own], strict=True)]
        yield {
            "layer": layer.name,
            "shapes": [list(shape) for shape in layer.inputs],
            "form": name,
            "engine": engine,
            "milliseconds": 1000 * statistics.median(times[name]),
            "speed_by_networks_form": statistics.median(speeds),
            "lowest_and_highest_speed": [min(speeds), max(speeds)],
            "largest_difference": apart,
        }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    rows = [
        (
            row["layer"],
            " + ".join("x".join(map(str, shape[1:])) for shape in row["shapes"]),
            row["form"],
            row["engine"],
            f"{row['milliseconds']:.2f}",
            f"{row['speed_by_networks_form']:.2f} x",
            "{:.2f} to {:.2f}".format(*row["lowest_and_highest_speed"]),
        )
        for row in result["rows"]
    ]
    header = (
        "layer",
        "frames, channels, height, width",
        "form",
        "engine",
        "ms",
        "speed by the network's form",
        "of single turns",
    )
    text = f"# Forms of layers\n\n{machine_line(result['machine'])}\n\n{markdown_table(header, rows)}"
    return text + "".join(
        f"\n{engine}: not measured: {reason}\n" for engine, reason in result["not_measured"].items()
    )


def missing(engines: Sequence[str]) -> dict[str, str]:
    """Those that cannot be measured here, with the reasons."""
    found = {}
    for engine in engines:
        try:
            require_engine(engine)
        except NotMeasured as reason:
            found[engine] = str(reason)
            print(f"{engine}: not measured: {reason}", file=sys.stderr)  # standard output may be JSON
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", choices=layers(), default=list(layers()))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--runs", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.15, help="of a form in a turn, at least (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--json",
        type=Path,
        help="write the results to this file, and .md beside it (default: print them as JSON)",
    )
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    before = load_average()
    not_measured = missing(args.engines)
    with torch.no_grad():
        rows = [
            row
            for name in args.layers
            for layer in layers()[name]()
            for engine in args.engines
            if engine in layer.engines and engine not in not_measured
            for row in measure(layer, engine, args.threads, args.runs, args.seconds)
        ]
    facts = machine(args.threads, "wfvae", "torch", "onnxruntime", "openvino")
    settings = {"runs": args.runs, "seconds": args.seconds}
    result = {
        "machine": facts,
        "load_average_before": before,
        **settings,
        "rows": rows,
        "not_measured": not_measured,
    }
    if args.json is None:
        print(json.dumps(result, indent=2))
        return
    write_json(args.json, result)
    write_text(args.json.with_suffix(".md"), table(result))
    print(table(result))


if __name__ == "__main__":
    main()
