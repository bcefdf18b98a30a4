"""An evaluation as JSON and as Markdown, in the layout of the paper's Table 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wfvae.errors import ResourceError
from wfvae.evaluation.evaluation import (
    FVD,
    LPIPS,
    METRICS,
    PSNR,
    PSNR_LIMIT,
    Evaluation,
    Metric,
    PairedDifference,
)
from wfvae.evaluation.interval import METHOD, Mean

JSON_NAME, MARKDOWN_NAME = "evaluation.json", "evaluation.md"
NOT_MEASURED = "not measured"
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "fvd": 2}
_LISTED = 20
"""Skipped videos named in the Markdown; all are in the JSON."""


@dataclass(frozen=True)
class Labelled:
    """An evaluation and what it is of."""

    label: str
    evaluation: Evaluation
    channels: int | None = None
    """Latent channels; None where nobody said, as files do not."""
    ratio: tuple[int, int, int] | None = None
    """Compression in time, height and width; None as above."""


def to_json(
    entries: Sequence[Labelled], differences: Sequence[PairedDifference], worst: int
) -> dict[str, Any]:
    """The result as data: an entry per set of reconstructions, and the second minus the first where
    there are `differences` of two.
    """
    result: dict[str, Any] = {
        "method": METHOD,
        "reconstructions": [_entry(entry, worst) for entry in entries],
    }
    if differences:
        result["difference"] = {
            "of": f"{entries[1].label} - {entries[0].label}",
            **{
                one.metric.key: {
                    **_mean(one.mean),
                    "videos_left_out": one.left_out,
                    "significant": one.significant,
                }
                for one in differences
            },
            "fvd": _fvd_difference(entries),
            "regressions": {
                one.metric.key: [name for name, _ in one.regressions()[:worst]]
                for one in differences
                if one.by_video
            },
            "videos": [
                {"name": name, **{one.metric.key: one.by_video.get(name) for one in differences}}
                for name in dict.fromkeys(name for one in differences for name in one.by_video)
            ],
        }
        result["difference"][PSNR.key]["frame_limit"] = PSNR_LIMIT
    return result


def _entry(entry: Labelled, worst: int) -> dict[str, Any]:
    found = entry.evaluation
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
    }
    if found.fvd.reason is not None:
        metrics[FVD.key][NOT_MEASURED] = found.fvd.reason
    return {
        "label": entry.label,
        "latent_channels": entry.channels,
        "compression": list(entry.ratio) if entry.ratio else None,
        "protocol": asdict(found.protocol),
        "complete": found.complete,
        "metrics": metrics,
        "worst": {
            metric.key: [video.name for video in found.worst(metric, worst)]
            for metric in METRICS
            if found.values(metric)
        },
        "videos": [asdict(video) for video in found.videos],
        "skipped": [asdict(one) for one in found.skipped],
    }


def _mean(mean: Mean | None) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "interval": None, "videos": 0}
    return {
        "mean": mean.value,
        "interval": None if mean.low is None else [mean.low, mean.high],
        "videos": mean.count,
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


def score_text(metric: Metric, mean: Mean | None, *, sign: bool = False) -> str:
    """A mean with the reach of its interval."""
    if mean is None:
        return "–"
    digits = _DIGITS[metric.key]
    plus = "+" if sign else ""
    reach = "" if mean.high is None else f" ± {mean.high - mean.value:.{digits}f}"
    return f"{mean.value:{plus}.{digits}f}{reach}"


def cells(entry: Labelled) -> list[str]:
    """PSNR, SSIM, LPIPS and FVD of an entry as text."""
    found = entry.evaluation
    texts = []
    for metric in METRICS:
        mean = found.mean(metric)
        if metric is LPIPS and found.lpips.reason is not None:
            texts.append(NOT_MEASURED)
        elif metric is PSNR and mean is None:
            texts.append("∞")
        else:
            texts.append(score_text(metric, mean))
    fvd = found.fvd.value
    return [*texts, NOT_MEASURED if fvd is None else f"{fvd:.{_DIGITS['fvd']}f}"]


def headings() -> list[str]:
    """Titles of `cells`."""
    return [metric.heading for metric in (*METRICS, FVD)]


def remarks(entry: Labelled) -> list[str]:
    """What the table alone does not say: what is missing and why, what was left out, what means
    less than it seems.
    """
    found = entry.evaluation
    lines = [f"{len(found.videos)} videos; {found.protocol.describe()}"]
    if not found.complete:
        lines.append("interrupted: not all videos were scored")
    identical = sum(video.identical_frames for video in found.videos)
    if identical:
        frames = sum(video.frames for video in found.videos)
        whole = sum(video.psnr is None for video in found.videos)
        lines.append(
            f"{identical} of {frames} frames are identical to their original; their PSNR is infinite and left"
            " out of the mean" + (f" ({whole} videos wholly)" if whole else "")
        )
    lines.append(
        f"LPIPS: {found.lpips.label}"
        if found.lpips.reason is None
        else f"LPIPS {NOT_MEASURED}: {found.lpips.reason}"
    )
    if found.fvd.reason is not None:
        lines.append(f"FVD {NOT_MEASURED}: {found.fvd.reason}")
    else:
        small = (
            f"; fewer clips than its {found.fvd.features} features, so compare it only with FVD of as many"
            " clips"
            if found.fvd.features is not None and found.fvd.clips <= found.fvd.features
            else ""
        )
        lines.append(f"FVD over {found.fvd.clips} clips of {found.fvd.frames} frames{small}")
    if found.skipped:
        lines.append(
            f"{len(found.skipped)} videos skipped, first '{found.skipped[0].name}': {found.skipped[0].reason}"
        )
    return lines


def limit_remark(entries: Sequence[Labelled]) -> list[str]:
    """Says where the paired difference of PSNR is not that of the two means shown."""
    videos = [video for entry in entries for video in entry.evaluation.videos]
    if all(video.psnr_limited == video.psnr for video in videos):
        return []
    return [
        f"paired difference of PSNR: over all frames; any above {PSNR_LIMIT:.1f} dB, as identical ones are,"
        f" counts as {PSNR_LIMIT:.1f} dB"
    ]


def regression_lines(differences: Sequence[PairedDifference], worst: int) -> list[str]:
    """Per metric in how many videos the second is worse, and the `worst` of them by name."""
    lines = []
    for one in differences:
        worse = one.regressions()
        # Three significant digits: what is worse is never shown as zero.
        named = ", ".join(f"{name} ({value:+.3g})" for name, value in worse[:worst])
        if one.by_video:
            line = f"the second is worse by {one.metric.title} in {len(worse)} of {len(one.by_video)} videos"
            lines.append(f"{line}: {named}" if named else line)
    return lines


def to_markdown(entries: Sequence[Labelled], differences: Sequence[PairedDifference], worst: int) -> str:
    """The result for people: a row per set of reconstructions with the columns of Table 1 (and
    SSIM), then what stands behind it.
    """
    parts = [
        _table(
            ["Channel", "Model", "TCPR", *headings()],
            [
                [_channels(entry), _plain(entry.label), _compression(entry), *cells(entry)]
                for entry in entries
            ],
        ),
        f"{METHOD}. FVD is of the whole set and has no interval.",
    ]
    if differences:
        rows = [
            [
                one.metric.title,
                score_text(one.metric, one.mean, sign=True),
                str(one.mean.count if one.mean else 0),
                _verdict(one),
            ]
            for one in differences
        ]
        title = f"## {_plain(entries[1].label)} minus {_plain(entries[0].label)}, video by video"
        parts += [title, _table(["Metric", "mean of paired differences", "videos", ""], rows)]
        parts += [f"{line}." for line in limit_remark(entries)]
        parts.append("\n".join(f"- {_plain(line)}" for line in regression_lines(differences, worst)))
    for entry in entries:
        found = entry.evaluation
        parts += [f"## {_plain(entry.label)}", "\n".join(f"- {_plain(line)}" for line in remarks(entry))]
        for metric in METRICS:
            if listed := found.worst(metric, worst):
                names = ", ".join(
                    f"{_plain(video.name)} ({video.get(metric):.{_DIGITS[metric.key]}f})" for video in listed
                )
                parts.append(f"Worst {metric.title}: {names}")
        if found.skipped:
            parts.append(
                "Skipped:\n\n"
                + "\n".join(f"- {_plain(one.name)}: {_plain(one.reason)}" for one in found.skipped[:_LISTED])
            )
    return "# Evaluation\n\n" + "\n\n".join(parts) + "\n"


def _channels(entry: Labelled) -> str:
    return "–" if entry.channels is None else str(entry.channels)


def _compression(entry: Labelled) -> str:
    if entry.ratio is None:
        return "–"
    time, height, width = entry.ratio
    return f"{time * height * width} ({time}×{height}×{width})"


def _verdict(one: PairedDifference) -> str:
    if one.mean is None or one.mean.low is None:
        return ""
    if not one.significant:
        return "no difference shown"
    return "better" if (one.mean.value > 0) == one.metric.higher_is_better else "worse"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """A name as text, not as markup."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in " ".join(text.split()))
    return escaped.encode("utf-8", "backslashreplace").decode()


def prepare_folder(folder: Path) -> None:
    """Makes the folder of the results and tries whether it can be written, which is better known
    before the work than after it.

    Raises:
        ResourceError: it cannot.
    """
    probe = folder / f".{JSON_NAME}.probe"
    try:
        if folder.exists() and not folder.is_dir():
            raise ResourceError(
                f"cannot write the evaluation to {folder}: it is a file; choose a directory with --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_written(folder, error) from error


def write_results(folder: Path, data: dict[str, Any], markdown: str) -> None:
    """Writes evaluation.json and evaluation.md; what was there before stays until they are
    complete.

    Raises:
        ResourceError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((JSON_NAME, json.dumps(data, indent=2) + "\n"), (MARKDOWN_NAME, markdown)):
            temporary = folder / f".{name}.part"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / name)
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write the evaluation to {folder}: {error.strerror or error}; choose another directory with"
        " --out"
    )
