"""`wfvae export`."""

import argparse
from pathlib import Path

from wfvae.cli.arguments import add_json_argument, option_adder, parse_size
from wfvae.cli.output import mebibytes, show
from wfvae.errors import MissingExtraError

SUMMARY = "checkpoint to bundle: stateful ONNX graphs, weights, manifest"
DESCRIPTION = """\
Exports a checkpoint once, for streaming: one step graph per direction, whose causal caches are
explicit inputs and outputs, symbolic in batch and length, and one direct graph for whole clips, with
weights in one shared file and a manifest for clients.

  wfvae export checkpoint/ bundle/                         fp32, any size
  wfvae export checkpoint/ bundle/ --precision fp16 --size 480x832
  wfvae export checkpoint/ bundle/ --target openvino       fastest in OpenVINO with AMX
  wfvae export run/model.ckpt bundle/ --no-direct          streams only, no whole-clip graphs
  wfvae export runs/S-stage3 bundle/                       the averaged weights of a training run"""
CHECKPOINT = """\
directory with config.json and safetensors weights, run directory of 'wfvae train', training .ckpt,
tiny (the trained model that ships), or owner/name on Hugging Face"""
TARGET = """\
where the bundle will run, which chooses how convolutions are computed; it runs everywhere. openvino:
for --precision-hint bf16 on a CPU with AMX (default: auto, which is cpu)"""
DIRECT = """\
write whole-clip graphs without state, for clips in one call and 'wfvae verify'; they add no weights
(default: yes)"""
CONVOLUTIONS = """\
minimal: fewer multiplications in fp32, with larger weights; plain: one 2-D convolution per time tap;
volume: one 3-D convolution; mixed: that, but wide ones per time tap (default: by --target)"""


def _size(text: str) -> tuple[int, int] | None:
    return None if text == "dynamic" else parse_size(text)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = option_adder(parser)
    add("checkpoint", str, CHECKPOINT, "CHECKPOINT")
    add("bundle", Path, "directory to make", "BUNDLE")
    precisions = ("fp32", "fp16", "bf16")
    add("--precision", precisions, "of weights, activations and state (default: fp32)", default="fp32")
    add("--size", _size, "fix the video size in the graphs (default: dynamic)", "HxW|dynamic")
    add("--output", ("mean", "moments"), "what the encoder returns (default: mean)", default="mean")
    add("--opset", int, "version of ONNX operators, 18 to 24 (default: 20, for bf16 22)", "N")
    add("--target", ("auto", "cpu", "openvino", "gpu"), TARGET, default="auto")
    add("--convolutions", ("minimal", "plain", "volume", "mixed"), CONVOLUTIONS)
    parser.add_argument("--direct", action=argparse.BooleanOptionalAction, default=True, help=DIRECT)
    add("--overwrite", None, "replace an existing bundle")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Exports, and prints what was made."""
    try:
        from wfvae.export.bundle import ExportOptions, export_bundle
        from wfvae.model.vae import WFVAE
    except ModuleNotFoundError as error:
        raise MissingExtraError("exporting", str(error.name), "export") from error
    from rich.console import Console

    options = ExportOptions(
        precision=args.precision,
        size=args.size,
        latents=args.output,
        opset=args.opset,
        target=args.target,
        convolutions=args.convolutions,
        direct=args.direct,
    )
    with Console(stderr=True).status("loading the checkpoint") as status:
        model = WFVAE.from_pretrained(args.checkpoint)
        progress = status.update
        manifest = export_bundle(model, args.bundle, options, overwrite=args.overwrite, progress=progress)
    size = sum(record.bytes for record in manifest.files.values())
    facts = f"{manifest.parameters / 1e6:.1f} M parameters, {manifest.precision}, {mebibytes(size)}"
    hashes = f"bundle {manifest.identity[:16]}, checkpoint {manifest.checkpoint_sha256[:16]}"
    identity = {"bundle": str(args.bundle), "identity": manifest.identity, "bytes": size}
    text = f"{args.bundle}: {', '.join(manifest.graphs)}; {facts}\n{hashes}"
    show(args, {**identity, **manifest.to_dict()}, text)
    return 0
