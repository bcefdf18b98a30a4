"""What equals what in OpenVINO: plans, streams and whole clips in units in the last place, and how
far it is from the PyTorch model.

    python benchmarks/openvino_parity.py --reference tests/fixtures [--json
    benchmarks/results/openvino-parity.json] python benchmarks/openvino_parity.py --preset S
    --frames 13 --size 72x64 --bundles fp32

Each model is exported in each precision and verified with each hint on a generated clip, as `wfvae
verify --backend openvino --against` does it, so that every plan it knows counts. Sizes are
symbolic. Ends with code 1 if a bundle is not what `wfvae verify` asks for.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from bundle_engines import open_on
from isolated import NotMeasured
from record import machine, machine_line, markdown_table, write_report

from wfvae import WFVAE, WFVAEConfig
from wfvae.cli.arguments import parse_size
from wfvae.cli.verify import DEFAULT_FRAMES, DEFAULT_SIZE
from wfvae.errors import WFVAEError
from wfvae.export.bundle import DTYPES, ExportOptions, export_bundle
from wfvae.export.parity import Check, Verification, verify
from wfvae.model.checkpoint import WEIGHTS_NAME
from wfvae.model.config import Preset
from wfvae.video.synthetic.clips import ProceduralClip

HINTS = {"fp32": "openvino", "bf16": "openvino-bf16"}
"""Engines by precision hint."""
DIRECTIONS = ("encode", "decode")
STATEMENTS = {
    "plan_invariance": "plan invariance",
    "stream_direct": "stream = direct",
    "model_float32": "backend = model float32",
    "model_float64": "backend = model float64",
}
"""Checks of a verification by their keys in the results."""
SHIPPED = "tiny"

Row = dict[str, Any]
Frames = npt.NDArray[np.uint8]


def models(options: argparse.Namespace) -> dict[str, Callable[[], WFVAE]]:
    """How to make each model."""
    found: dict[str, Callable[[], WFVAE]] = {}
    for weights in sorted(options.reference.glob(f"*/{WEIGHTS_NAME}")) if options.reference else ():
        found[weights.parent.name] = lambda folder=weights.parent: WFVAE.from_pretrained(folder)
    found[SHIPPED] = lambda: WFVAE.from_pretrained(SHIPPED)
    for preset in options.preset:
        found[f"{preset}, random weights"] = lambda preset=preset: WFVAE.random(WFVAEConfig.preset(preset), 0)
    return found


def verified(options: argparse.Namespace, frames: Frames) -> Iterator[Row]:
    """A row per model, precision of the bundle, and hint."""
    for name, make in models(options).items():
        model = make()
        for precision in options.bundles:
            with tempfile.TemporaryDirectory(prefix="wfvae-benchmark-") as folder:
                path = Path(folder) / "bundle"
                checkpoint = export_bundle(
                    copy.deepcopy(model), path, ExportOptions(precision=precision, direct=True)
                ).checkpoint_sha256
                for hint in options.hints:
                    row = {"model": name, "checkpoint_sha256": checkpoint, "bundle": precision, "hint": hint}
                    try:
                        yield row | measured(HINTS[hint], path, options.threads, frames, model)
                    except NotMeasured as reason:
                        yield row | {"not_measured": str(reason)}


def measured(engine: str, path: Path, threads: int, frames: Frames, model: WFVAE) -> Row:
    """What a verification found. Raises `NotMeasured` where this machine cannot do it."""
    with open_on(engine, path, threads) as bundle:
        try:
            return summary(verify(bundle, frames, against=model))
        except WFVAEError as error:
            raise NotMeasured(" ".join(str(error).split())) from error


def summary(verification: Verification) -> Row:
    """The largest differences by statement and direction, and what missed its bound."""
    found: Row = {
        "passed": verification.passed,
        "failed": [_complaint(check) for check in verification.checks if not check.holds],
    }
    for key, name in STATEMENTS.items():
        found[key] = {
            direction: largest(
                [check for check in verification.checks if (check.name, check.direction) == (name, direction)]
            )
            for direction in DIRECTIONS
        }
    return found


def _complaint(check: Check) -> str:
    why = check.problem or check.first_difference or f"{check.max_abs:.3g}, held to {check.rule}"
    return f"{check.name}, {check.direction}, {check.plan}: {why}"


def largest(checks: Sequence[Check]) -> Row:
    """Over some checks; None for numbers that one of them does not have, as where a result is NaN."""
    numbers = bool(checks) and all(check.max_ulp is not None for check in checks)
    return {
        "checks": len(checks),
        "equal_bits": bool(checks) and all(check.equal_bits for check in checks),
        "max_ulp": max(check.max_ulp or 0 for check in checks) if numbers else None,
        "max_abs": max(check.max_abs for check in checks) if numbers else None,
        "allowed": max((check.tolerance for check in checks), default=None),
    }


def over_models(rows: Sequence[Row]) -> Row:
    """The largest differences of several rows."""
    return {key: {way: _larger([row[key][way] for row in rows]) for way in DIRECTIONS} for key in STATEMENTS}


def _larger(ones: Sequence[Row]) -> Row:
    numbers = all(one["max_ulp"] is not None for one in ones)
    return {
        "equal_bits": all(one["equal_bits"] for one in ones),
        **{name: max(one[name] for one in ones) if numbers else None for name in ("max_ulp", "max_abs")},
    }


def tables(rows: Sequence[Row], options: argparse.Namespace) -> str:
    """Markdown: by bundle and hint over all models, then every row."""
    sums = []
    for precision in options.bundles:
        for hint in options.hints:
            mine = [
                row
                for row in rows
                if (row["bundle"], row["hint"]) == (precision, hint) and "not_measured" not in row
            ]
            if mine:
                sums.append(_line(f"{precision}, {hint}", over_models(mine)))
    statements = [
        f"{name}, {direction}" for name in ("plan invariance", "stream = direct") for direction in DIRECTIONS
    ]
    header = [*statements, "latents: error beside the model", "video: error beside the model"]
    text = (
        f"The largest over all models:\n\n{markdown_table(['bundle, hint', *header], sums)}" if sums else ""
    )
    lines = [
        [name, row["not_measured"], *[""] * (len(header) - 1)] if "not_measured" in row else _line(name, row)
        for row in rows
        for name in [f"{row['model']}, {row['bundle']}, {row['hint']}"]
    ]
    text += f"\nEach:\n\n{markdown_table(['model, bundle, hint', *header], lines)}"
    text += (
        "\n0 ULP: equal bits. Otherwise the largest difference, and in parentheses the most float32 numbers"
        " that lie between two values, which is large wherever they are near 0. Errors beside the model are"
        " those beside PyTorch in float64.\n"
    )
    failed = [
        f"- {row['model']}, {row['bundle']}, {row['hint']}: {line}"
        for row in rows
        for line in row.get("failed", ())
    ]
    return text + ("\nNot what `wfvae verify` asks for:\n\n" + "\n".join(failed) + "\n" if failed else "")


def _line(name: str, row: Row) -> list[str]:
    cells = [
        difference_text(row[key][direction])
        for key in ("plan_invariance", "stream_direct")
        for direction in DIRECTIONS
    ]
    errors = [row["model_float64"][direction]["max_abs"] for direction in DIRECTIONS]
    return [name, *cells, *("no number" if error is None else f"{error:.2g}" for error in errors)]


def difference_text(one: Mapping[str, Any]) -> str:
    if one["max_ulp"] is None:
        return "no number"
    return "0 ULP" if one["equal_bits"] else f"{one['max_abs']:.2g} ({one['max_ulp']:,} ULP)"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="also verify the checkpoints in this folder's subfolders",
    )
    parser.add_argument(
        "--preset",
        nargs="+",
        choices=get_args(Preset),
        default=[],
        metavar="P",
        help="also presets with random weights",
    )
    parser.add_argument(
        "--bundles",
        nargs="+",
        choices=DTYPES,
        default=list(DTYPES),
        metavar="P",
        help="precisions of the bundles",
    )
    parser.add_argument(
        "--hints", nargs="+", choices=HINTS, default=list(HINTS), metavar="H", help="precision hints"
    )
    parser.add_argument(
        "--frames", type=int, default=DEFAULT_FRAMES, help="of the clip (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=parse_size,
        default=DEFAULT_SIZE,
        metavar="HxW",
        help="of the clip (default: {}x{})".format(*DEFAULT_SIZE),
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to this file, and .md beside it")
    options = parser.parse_args()
    if options.frames < 1 or options.threads < 1:
        parser.error("--frames and --threads must be at least 1")
    if options.reference is not None and not any(options.reference.glob(f"*/{WEIGHTS_NAME}")):
        parser.error(f"--reference: no subfolder of {options.reference} has a {WEIGHTS_NAME}")
    return options


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    height, width = options.size
    rows = []
    for row in verified(options, ProceduralClip(0, height, width, options.frames).frames(0, options.frames)):
        rows.append(row)
        outcome = row.get("not_measured") or ("passed" if row["passed"] else "FAILED")
        print(
            f"{row['model']}, bundle {row['bundle']}, hint {row['hint']}: {outcome}",
            file=sys.stderr,
            flush=True,
        )
    facts = machine(options.threads, "wfvae", "torch", "onnx", "onnxruntime", "openvino", "numpy")
    text = (
        f"# Parity in OpenVINO, {options.frames} frames of"
        f" {height}x{width}\n\n{machine_line(facts)}\n\n{tables(rows, options)}"
    )
    print(text)
    if options.json is not None:
        job = {"frames": options.frames, "height": height, "width": width, "clip": "procedural, seed 0"}
        write_report(options.json, {"machine": facts, "job": job, "rows": rows}, text, None)
    return int(not all(row.get("passed", True) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
