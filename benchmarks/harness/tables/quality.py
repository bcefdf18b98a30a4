"""Tables of parity and quality, and of training."""

import textwrap
from collections.abc import Sequence
from statistics import fmean

from harness.tables.format import (
    FORMS,
    Result,
    Row,
    machine_line,
    markdown_table,
    missing,
    number,
    small,
    table,
    times,
    unique,
)


@table("parity", "openvino-parity", "openvino-parity-S", "openvino-parity-avx2")
def parity(*results: Result) -> str:
    """The largest differences over all models, by machine, bundle and hint."""
    header = ["models", "CPU", "bundle", "hint", "plans", "stream = direct", "from the model in float64"]
    lines = []
    for result in results:
        rows = [row for row in result["rows"] if "not_measured" not in row]
        names = unique(row["model"] for row in result["rows"])
        models = f"{len(names)} models" if len(names) > 2 else " and ".join(names)
        features = result["machine"]["cpu_features"]
        cpu = "AVX-512" if "avx512f" in features else "AVX2"
        for bundle, hint in unique((row["bundle"], row["hint"]) for row in rows):
            mine = [row for row in rows if (row["bundle"], row["hint"]) == (bundle, hint)]
            cells = [_largest(mine, key) for key in ("plan_invariance", "stream_direct", "model_float64")]
            lines.append([models, cpu, bundle, hint, *cells])
    return markdown_table(header, lines, texts=7)


def _largest(rows: Sequence[Row], statement: str) -> str:
    """Returns the largest difference of latents / video, or that there is none."""
    found = []
    for job in ("encode", "decode"):
        ones = [row[statement][job] for row in rows]
        differences = [one["max_abs"] for one in ones]
        if all(one["equal_bits"] for one in ones):
            found.append("0 ULP")
        else:
            found.append("not a number" if None in differences else small(max(differences)))
    return found[0] if len(set(found)) == 1 else " / ".join(found)


@table("bf16-quality", "bf16-quality-cpu")
def bf16_quality(result: Result) -> str:
    """Mean PSNR of each engine's reconstruction by size, and the most that a clip loses in bf16."""
    rows = result["rows"]
    engines = unique(engine for row in rows for engine in row["psnr_db"])
    lines = []
    for height, width in unique((row["height"], row["width"]) for row in rows):
        mine = [row for row in rows if (row["height"], row["width"]) == (height, width)]
        losses = [row["loss_db"]["openvino-bf16"] for row in mine if "openvino-bf16" in row["loss_db"]]
        means = [f"{fmean(row['psnr_db'][engine] for row in mine):.2f} dB" for engine in engines]
        name = f"{len(mine)} clips of {mine[0]['frames']} frames of {height}x{width}"
        lines.append([name, *means, f"{max(losses):+.3f} dB" if losses else "–"])
    header = ["", *(FORMS[engine] for engine in engines), "largest loss in bf16"]
    return markdown_table(header, lines) + machine_line(result)


@table("tiny-model", "tiny-model")
def tiny_model(result: Result) -> str:
    """Quality of the model that ships."""
    held_out = result["held_out"]
    kinds = {
        "paintings_at_128x128": "128x128 paintings",
        "windows_of_256x256": "windows of 256x256 paintings",
    }
    lines = [
        [f"{title}, {held_out[kind]['clips']} held-out clips", *_quality(held_out[kind])]
        for kind, title in kinds.items()
    ]
    lines += [
        [f"`{name}`, 256 lines", *_quality(scores)] for name, scores in result.get("videos", {}).items()
    ]
    for length, psnr in result["psnr_db_of_last_frames"].items():
        lines.append([f"last frames of clips of {length} frames", f"{psnr:.2f} dB", ""])
    cuts = result["cuts"]
    behind = [cut["psnr_db_behind"] for cut in cuts]
    lines.append(["last frame before a cut", f"{fmean(cut['psnr_db_before'] for cut in cuts):.2f} dB", ""])
    for place in (1, 2, 4, 8):
        mean = fmean(psnr[place - 1] for psnr in behind)
        lines.append([f"frame {place} behind a cut", f"{mean:.2f} dB", ""])
    return markdown_table(["clips", "PSNR", "SSIM"], lines)


def _quality(scores: Row) -> list[str]:
    return [f"{scores['psnr_db']:.2f} dB", f"{scores['ssim']:.3f}"]


@table("training", "training-cpu")
def training(result: Result) -> str:
    """Memory and time of a training step, with and without activation checkpointing."""
    lines = []
    for name, all_losses in (("autoencoder alone", False), ("with LPIPS and discriminator", True)):
        plain, frugal = (row for row in result["rows"] if row["all_losses"] == all_losses)
        if problem := [row for row in (plain, frugal) if "not_measured" in row]:
            lines.append([name, *missing(problem[0], 3)])
            continue
        peaks = [f"{row['peak_mb']:,.0f} MB" for row in (plain, frugal)]
        lines.append([name, *peaks, times(frugal["seconds"] / plain["seconds"])])
    job = result["job"]
    clip = f"one step of preset {job['preset']}, {job['frames']} frames of {job['size']}x{job['size']}, fp32"
    header = ["", "peak memory", "with checkpointing", "its time"]
    return markdown_table(header, lines) + machine_line(result, clip)


@table("ablation", "ablation")
def ablation(result: Result) -> str:
    """Quality with and without energy paths and wavelet loss."""
    rows = result["rows"]
    lines = []
    for variant in unique(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        cells = [
            " / ".join(f"{row['psnr_db']:.2f}" for row in mine) + " dB",
            " / ".join(f"{row['ssim']:.3f}" for row in mine),
            " / ".join(f"{row['wavelet_term']:,.0f}" for row in mine)
            if any(row["wavelet_term"] for row in mine)
            else "–",
        ]
        lines.append([variant, *cells])
    seeds = " / ".join(str(seed) for seed in unique(row["seed"] for row in rows))
    return markdown_table(["", f"PSNR, seeds {seeds}", "SSIM", "wavelet term at the end"], lines)


@table("generation", "generation-tiny")
def generation(result: Result) -> str:
    """What a diffusion model learned from the latents of each bundle."""
    header = ["bundle", "steps", "time, minutes", "loss at the end", "FVD", "IS"]
    lines = []
    for row in result["rows"]:
        cells = [f"{row['steps']:,}", number(row["seconds"] / 60), _last_loss(row["loss"]["means"])]
        lines.append([row["name"], *cells, _fvd(row["fvd"]), _inception(row["is"])])
    job = result["job"]
    conditions = "unconditional" if job["label"] is None else f"conditional on {job['label']}"
    words = [
        f"{job['videos']} videos, {job['frames']} frames of {job['size']}x{job['size']}",
        f"Latte of {result['rows'][0]['parameters'] / 1e6:,.1f} M weights, {conditions}",
        f"batch {job['batch']}",
        f"{job['samples']} samples of {job['sampling_steps']} steps of {job['sampler'].upper()}",
    ]
    caption = textwrap.fill(machine_line(result, *words).strip(), 100)
    return markdown_table(header, lines) + "\n" + caption + "\n"


def _last_loss(means: Sequence[float]) -> str:
    """Returns the mean of the last tenth of a curve."""
    return f"{fmean(means[-max(1, len(means) // 10) :]):.3f}" if means else "–"


def _fvd(score: Row) -> str:
    if "not_measured" in score:
        return f"not measured: {score['not_measured']}"
    return f"{number(score['value'])} ({score['clips']} clips)"


def _inception(score: Row) -> str:
    if "not_measured" in score:
        return f"not measured: {score['not_measured']}"
    return f"{score['mean']:.2f} ± {score['deviation']:.2f}"
