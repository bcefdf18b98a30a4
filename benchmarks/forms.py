"""What do the ways to compute a convolution (`export/forms/`) gain, layer by layer?

    python benchmarks/forms.py --json benchmarks/results/forms-cpu.json
    python benchmarks/forms.py --layers rows --engines onnxruntime --turns 9

Layers have sizes of the presets at 128x128. The network's own form comes first; the others are
measured against it, in turns, in each engine. All forms of a layer must give the same up to
rounding. Weights are random.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import onnx
import torch
from harness.engines import ENGINES
from harness.processes import NotMeasured
from harness.record import CommandLine, finish
from harness.single_models import compile_model, make_model
from harness.turns import median_seconds, ratio, take_turns
from torch import Tensor, nn

from wfvae.export.forms.form import Form as ExportForm
from wfvae.export.forms.minimal_filtering import MinimalFiltering, Variant
from wfvae.export.forms.subpixel import SubPixel
from wfvae.export.recorder.graph import Recorder, TracedTensor
from wfvae.model.blocks import Upsample2D
from wfvae.model.causal import CausalConv3d
from wfvae.model.ops import upsample_conv

TOLERANCE = {"onnxruntime": 1e-4, "openvino": 1e-4, "openvino-bf16": 2e-2}
"""How far forms may be apart, by the largest value."""


class Form(nn.Module):
    """A computation of one input, with a module or tensors of its own."""

    def __init__(self, compute: Callable[..., Tensor], module: Any = None, **tensors: Tensor) -> None:
        super().__init__()
        self.compute, self.module = compute, module
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, *self.buffers(recurse=False))


@dataclass(frozen=True)
class Layer:
    name: str
    shape: tuple[int, ...]
    """(B, T, C, H, W)."""
    forms: Mapping[str, Form]
    """By name; the first is the network's own."""


def _in_form(form: ExportForm, conv: nn.Module, before: Callable[[Tensor], Tensor]) -> Form:
    """A form of the export, of what `before` returns."""

    def compute(x: Tensor, *tensors: Tensor) -> Tensor:
        return form.compute(before(x), tensors[:-1], tensors[-1])

    filters = {name.replace(".", "_"): tensor for name, tensor in form.filters(conv.weight).items()}
    return Form(compute, **filters, bias=conv.bias)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _repeated(x: Tensor) -> Tensor:
    return torch.stack([x, x], dim=2).flatten(1, 2)


def _images(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def causal(
    what: str,
    ways: Sequence[Variant],
    shape: tuple[int, ...],
    outputs: int,
    before: Callable[[Tensor], Tensor] = _unchanged,
) -> Layer:
    """A 3x3x3 convolution of frames (T, C, H, W), of which the first are history."""
    conv = CausalConv3d(shape[1], outputs, 8)
    forms = {"sum of taps": Form(lambda x: conv.convolve(before(x)), conv)}
    forms |= {TITLES[way]: _in_form(MinimalFiltering(way), conv.conv, before) for way in ways}
    return Layer(f"3x3x3 convolution to {outputs} channels, {what}", (1, *shape), forms)


def doubling(count: int, channels: int, side: int) -> Layer:
    upsample = Upsample2D(channels)
    forms = {
        "repetition, then 3x3": Form(lambda x: upsample_conv(_images(x), upsample.conv), upsample),
        "four 2x2": _in_form(SubPixel(), upsample.conv, _images),
    }
    return Layer("height and width doubled, 3x3 convolution", (1, count, channels, side, side), forms)


TITLES: dict[Variant, str] = {
    "pairs": "in pairs of frames",
    "pairs and rows": "in pairs of frames and of rows",
    "rows": "in pairs of rows",
    "repeats": "three products",
    "repeats and rows": "three products in pairs of rows",
}
PAIRS: tuple[Variant, ...] = ("pairs", "pairs and rows")
REPEATED: tuple[Variant, ...] = (*PAIRS, "repeats", "repeats and rows")
LAYERS: dict[str, list[Callable[[], Layer]]] = {
    "pairs": [
        partial(causal, "frames in pairs", PAIRS, (10, channels, side, side), channels)
        for channels, side in ((512, 32), (256, 64), (192, 64), (128, 64))
    ],
    "rows": [
        partial(causal, "frames one by one", ("rows",), (7, channels, 16, 16), outputs)
        for channels, outputs in ((512, 512), (256, 512), (128, 128))
    ],
    "doubling": [partial(doubling, 9, 256, 32)],
    "nearest": [
        partial(causal, "frames repeated", REPEATED, shape, shape[1], _repeated)
        for shape in ((5, 512, 32, 32), (9, 256, 64, 64))
    ],
}


def record(form: Form, shape: Sequence[int]) -> onnx.ModelProto:
    """Returns the form as the export would write it for a fixed size."""
    recorder = Recorder(form)
    x = recorder.add_input("x", tuple(shape), torch.float32)
    with recorder.recording():
        result: Any = form(cast(Tensor, TracedTensor(recorder, x)))
    recorder.keep_only([result])
    constants = {name: tensor.numpy() for name, tensor in recorder.constants.items()}
    return make_model(recorder.nodes, {x.name: shape}, result.name, constants)


def measure(layer: Layer, engine: str, threads: int, turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Yields a row per form.

    Raises:
        NotMeasured: the engine is missing here.
        AssertionError: a form gives another result than the network's own.
    """
    feeds = {"x": np.random.default_rng(0).standard_normal(layer.shape).astype(np.float32)}
    calls = {
        name: compile_model(record(form, layer.shape), engine, threads) for name, form in layer.forms.items()
    }
    results = {name: np.array(call(feeds)[0]).reshape(-1) for name, call in calls.items()}
    jobs = {name: partial(median_seconds, partial(call, feeds), seconds) for name, call in calls.items()}
    times = take_turns(jobs, turns, warm_up=False)
    own = next(iter(layer.forms))
    for name in layer.forms:
        apart = float(np.abs(results[name] - results[own]).max() / np.abs(results[own]).max())
        if apart > TOLERANCE[engine]:
            raise AssertionError(
                f"{layer.name}, {name}: {apart:.1e} of the largest value apart from the network's form"
            )
        yield {
            "layer": layer.name,
            "shape": list(layer.shape),
            "form": name,
            "engine": engine,
            "milliseconds": 1000 * statistics.median(times[name]),
            "speed_by_networks_form": ratio(times[own], times[name]),
            "largest_difference": apart,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "forms-cpu.json", turns=5, seconds=0.15)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    with torch.no_grad():
        for make in (make for name in options.layers for make in LAYERS[name]):
            layer = make()
            for engine in [engine for engine in options.engines if engine not in missing]:
                try:
                    rows += measure(layer, engine, options.threads, options.turns, options.seconds)
                except NotMeasured as reason:
                    missing[engine] = str(reason)
    finish(options, "forms", turns=options.turns, rows=rows, not_measured=missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
