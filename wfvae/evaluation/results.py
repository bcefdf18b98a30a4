"""An evaluation as JSON, and its files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wfvae.evaluation.scores import (
    FVD,
    LPIPS,
    METHOD,
    METRICS,
    PSNR,
    PSNR_LIMIT,
    Evaluation,
    Mean,
    PairedDifference,
)
from wfvae.files import write_whole

JSON_NAME, MARKDOWN_NAME = "evaluation.json", "evaluation.md"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Labelled:
    """An evaluation and what is known of the model behind it."""

    label: str
    evaluation: Evaluation
    channels: int | None = None
    """Latent channels; None if unknown."""
    ratio: tuple[int, int, int] | None = None
    """Compression in time, height and width; None if unknown."""


def to_json(
    entries: Sequence[Labelled], differences: Sequence[PairedDifference], worst: int
) -> dict[str, Any]:
    """Returns one set of reconstructions, or two and their differences (docs/evaluation.md)."""
    result = {"method": METHOD, "reconstructions": [_entry(entry, worst) for entry in entries]}
    return result | ({"difference": _difference(entries, differences, worst)} if differences else {})


def _entry(entry: Labelled, worst: int) -> dict[str, Any]:
    found = entry.evaluation
    scored = [metric for metric in METRICS if found.values(metric)]
    return {
        "label": entry.label,
        "latent_channels": entry.channels,
        "compression": list(entry.ratio) if entry.ratio else None,
        "protocol": asdict(found.protocol),
        "complete": found.complete,
        "metrics": _metrics(found),
        "worst": {one.key: [video.name for video in found.worst(one, worst)] for one in scored},
        "videos": [asdict(video) for video in found.videos],
        "skipped": [asdict(one) for one in found.skipped],
    }


def _metrics(found: Evaluation) -> dict[str, Any]:
    metrics: dict[str, Any] = {metric.key: _mean(found.mean(metric)) for metric in METRICS}
    if found.lpips.reason is not None:
        metrics[LPIPS.key] = {"mean": None, NOT_MEASURED: found.lpips.reason}
    else:
        metrics[LPIPS.key]["network"] = found.lpips.label
    metrics[PSNR.key] |= {
        "identical_frames": sum(video.identical_frames for video in found.videos),
        "identical_videos": sum(video.psnr is None for video in found.videos),
    }
    metrics[FVD.key] = {
        "value": found.fvd.value,
        "clips": found.fvd.clips,
        "frames_per_clip": found.fvd.frames,
        "features": found.fvd.features,
        **({} if found.fvd.reason is None else {NOT_MEASURED: found.fvd.reason}),
    }
    return metrics


def _mean(mean: Mean | None) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "interval": None, "videos": 0}
    interval = None if mean.low is None else [mean.low, mean.high]
    return {"mean": mean.value, "interval": interval, "videos": mean.count}


def _difference(
    entries: Sequence[Labelled], differences: Sequence[PairedDifference], worst: int
) -> dict[str, Any]:
    by_metric: dict[str, Any] = {}
    regressions = {}
    for one in differences:
        key, facts = one.metric.key, {"videos_left_out": one.left_out, "significant": one.significant}
        by_metric[key] = _mean(one.mean) | facts
        if one.by_video:
            regressions[key] = [name for name, _ in one.regressions()[:worst]]
    by_metric[PSNR.key]["frame_limit"] = PSNR_LIMIT
    names = dict.fromkeys(name for one in differences for name in one.by_video)
    return {
        "of": f"{entries[1].label} - {entries[0].label}",
        **by_metric,
        "fvd": _fvd_difference(entries),
        "regressions": regressions,
        "videos": [
            {"name": name, **{one.metric.key: one.by_video.get(name) for one in differences}}
            for name in names
        ],
    }


def _fvd_difference(entries: Sequence[Labelled]) -> dict[str, Any]:
    first, second = (entry.evaluation.fvd.value for entry in entries)
    if first is None or second is None:
        return {"value": None, NOT_MEASURED: "FVD was not measured for both"}
    one, other = ({video.name for video in entry.evaluation.videos} for entry in entries)
    if one != other:
        reason = (
            f"FVD depends on which videos it is of, and {len(one ^ other)} were scored in only one of the"
            f" two, first '{min(one ^ other)}'"
        )
        return {"value": None, NOT_MEASURED: reason}
    return {"value": second - first}


def write_results(folder: Path, data: dict[str, Any], markdown: str) -> None:
    """Writes evaluation.json and evaluation.md, each whole or not at all."""
    write_whole(folder / JSON_NAME, json.dumps(data, indent=2) + "\n")
    write_whole(folder / MARKDOWN_NAME, markdown)
