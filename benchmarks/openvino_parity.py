"""What is equal on OpenVINO, and how far is it from the PyTorch model?

    python benchmarks/openvino_parity.py --reference tests/fixtures --json openvino-parity.json
    python benchmarks/openvino_parity.py --presets S --frames 13 --size 72x64 --bundles fp32

Exports each model in each precision and verifies it with each hint on a generated clip, as `wfvae
verify --backend openvino --against` does. Ends with code 1 if a bundle fails what that requires.
"""

import copy
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from harness.engines import DIRECTIONS, exported, open_on
from harness.processes import NotMeasured, reason_of
from harness.record import CommandLine, finish

from wfvae import WFVAE, WFVAEConfig
from wfvae.cli.arguments import parse_size
from wfvae.errors import WFVAEError
from wfvae.export.bundle import DTYPES
from wfvae.export.parity import Verification, verify
from wfvae.model.checkpoint import WEIGHTS_NAME
from wfvae.model.config import Preset
from wfvae.video.synthetic.clips import ProceduralClip

ENGINES = {"fp32": "openvino", "bf16": "openvino-bf16"}
"""By precision hint."""
STATEMENTS = {
    "plan_invariance": "plan invariance",
    "stream_direct": "stream = direct",
    "model_float64": "backend = model float64",
}
"""Checks of a verification by their keys in the result."""

Row = dict[str, Any]
Frames = npt.NDArray[np.uint8]


def models(options: Any) -> Iterator[tuple[str, WFVAE]]:
    """Yields each model with its name."""
    for path in sorted(options.reference.glob(f"*/{WEIGHTS_NAME}")) if options.reference else ():
        yield path.parent.name, WFVAE.from_pretrained(path.parent)
    if not options.presets:
        yield "tiny", WFVAE.from_pretrained("tiny")
    for preset in options.presets:
        yield f"{preset}, random weights", WFVAE.random(WFVAEConfig.preset(preset), 0)


def measure(options: Any, frames: Frames) -> Iterator[Row]:
    """Yields a row per model, precision of the bundle, and hint."""
    for (name, model), precision in product(models(options), options.bundles):
        with exported(copy.deepcopy(model), precision=precision, direct=True) as (path, manifest):
            row = {"model": name, "checkpoint_sha256": manifest.checkpoint_sha256, "bundle": precision}
            for hint, engine in ENGINES.items():
                row["hint"] = hint
                try:
                    with open_on(engine, path, options.threads) as bundle:
                        yield row | summary(verify(bundle, frames, against=model))
                except (NotMeasured, WFVAEError) as reason:
                    yield row | {"not_measured": reason_of(reason)}


def summary(verification: Verification) -> Row:
    """Returns the largest differences by statement and direction, and whether all bounds hold."""
    found: Row = {"passed": verification.passed}
    for (key, name), direction in product(STATEMENTS.items(), DIRECTIONS):
        checks = [one for one in verification.checks if (one.name, one.direction) == (name, direction)]
        # No number for a difference that one of them lacks, as where a result is NaN.
        numbers = bool(checks) and all(check.max_ulp is not None for check in checks)
        found.setdefault(key, {})[direction] = {
            "checks": len(checks),
            "equal_bits": bool(checks) and all(check.equal_bits for check in checks),
            "max_abs": max(check.max_abs for check in checks) if numbers else None,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandLine(__doc__, "openvino-parity.json", frames=29)
    parser.add_argument("--reference", type=Path, metavar="DIR", help="also verify the checkpoints in DIR/*/")
    text = "with random weights, in place of the model that ships"
    parser.add_argument("--presets", nargs="+", choices=get_args(Preset), default=[], help=text)
    parser.add_argument("--bundles", nargs="+", choices=DTYPES, default=list(DTYPES), help="their precisions")
    parser.add_argument("--size", type=parse_size, default=(64, 96), metavar="HxW", help="default: 64x96")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    height, width = options.size
    clip = ProceduralClip(0, height, width, options.frames).frames(0, options.frames)
    rows = list(measure(options, clip))
    job = {"frames": options.frames, "height": height, "width": width}
    finish(options, "parity", job=job, rows=rows)
    return int(not all(row.get("passed", True) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
