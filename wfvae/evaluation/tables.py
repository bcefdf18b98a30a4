"""An evaluation for people, in a terminal or a file: Table 1 of the paper, and what explains it."""

from collections.abc import Sequence

from wfvae.evaluation import scores
from wfvae.evaluation.results import NOT_MEASURED, Labelled
from wfvae.evaluation.scores import FVD, LPIPS, METRICS, PSNR, Mean, Metric, PairedDifference

_LISTED = 20
"""Skipped videos named in the Markdown; all are in the JSON."""


def _score_text(metric: Metric, mean: Mean | None, *, sign: bool = False) -> str:
    """Formats a mean with half of its interval."""
    if mean is None:
        return "–"
    plus, digits = "+" if sign else "", metric.digits
    reach = "" if mean.high is None else f" ± {mean.high - mean.value:.{digits}f}"
    return f"{mean.value:{plus}.{digits}f}{reach}"


def _cells(entry: Labelled) -> list[str]:
    """Formats PSNR, SSIM, LPIPS and FVD of an entry."""
    found = entry.evaluation
    texts = [_score_text(metric, found.mean(metric)) for metric in METRICS]
    if found.mean(PSNR) is None:
        texts[METRICS.index(PSNR)] = "∞"
    if found.lpips.reason is not None:
        texts[METRICS.index(LPIPS)] = NOT_MEASURED
    fvd = found.fvd.value
    return [*texts, NOT_MEASURED if fvd is None else f"{fvd:.{FVD.digits}f}"]


def _remarks(entry: Labelled, worst: int) -> list[str]:
    """Returns what the table does not show: what is missing and why, and the worst videos."""
    found = entry.evaluation
    lines = [f"{len(found.videos)} videos; {found.protocol.describe()}"]
    if not found.complete:
        lines.append("interrupted: not all videos were scored")
    if identical := sum(video.identical_frames for video in found.videos):
        frames = sum(video.frames for video in found.videos)
        whole = sum(video.psnr is None for video in found.videos)
        videos = f" ({whole} whole videos)" if whole else ""
        left_out = f"their PSNR is infinite and left out of the mean{videos}"
        lines.append(f"{identical} of {frames} frames are identical to their original; {left_out}")
    reason = found.lpips.reason
    lines.append(f"LPIPS: {found.lpips.label}" if reason is None else f"LPIPS {NOT_MEASURED}: {reason}")
    if found.fvd.reason is not None:
        lines.append(f"FVD {NOT_MEASURED}: {found.fvd.reason}")
    else:
        line = f"FVD over {found.fvd.clips} clips of {found.fvd.frames} frames"
        if found.fvd.features is not None and found.fvd.clips <= found.fvd.features:
            line += f"; fewer clips than its {found.fvd.features} features"
            line += ", so compare it only with FVD of as many clips"
        lines.append(line)
    if found.skipped:
        first = found.skipped[0]
        lines.append(f"{len(found.skipped)} videos skipped, first '{first.name}': {first.reason}")
    for metric in METRICS:
        named = [f"{video.name} ({video.get(metric):.4g})" for video in found.worst(metric, worst)]
        if named:
            lines.append(f"worst {metric.title}: {', '.join(named)}")
    return lines


def _limit_remark(entries: Sequence[Labelled]) -> list[str]:
    """Explains the paired difference of PSNR where it is not that of the two means shown."""
    videos = [video for entry in entries for video in entry.evaluation.videos]
    if all(video.psnr_limited == video.psnr for video in videos):
        return []
    limit = f"{scores.PSNR_LIMIT:.1f} dB"
    rule = f"over all frames; any above {limit}, as identical ones are, counts as {limit}"
    return [f"paired difference of PSNR: {rule}"]


def _regression_lines(differences: Sequence[PairedDifference], worst: int) -> list[str]:
    """Returns, per metric, in how many videos the second is worse, and names the worst."""
    lines = []
    for one in differences:
        worse = one.regressions()
        # Three significant digits: what is worse is never shown as zero.
        named = ", ".join(f"{name} ({value:+.3g})" for name, value in worse[:worst])
        if count := len(one.by_video):
            line = f"the second is worse by {one.metric.title} in {len(worse)} of {count} videos"
            lines.append(f"{line}: {named}" if named else line)
    return lines


def to_markdown(entries: Sequence[Labelled], differences: Sequence[PairedDifference], worst: int) -> str:
    """Returns the columns of the paper's Table 1 and SSIM, a row per set, then the details."""
    titles = ["Channel", "Model", "TCPR", *(metric.heading for metric in (*METRICS, FVD))]
    rows = [
        [str(entry.channels or "–"), _plain(entry.label), _compression(entry), *_cells(entry)]
        for entry in entries
    ]
    parts = [
        "# Evaluation",
        _table(titles, rows),
        f"{scores.METHOD}. FVD is of the whole set and has no interval.",
    ]
    if differences:
        parts += _compared(entries, differences, worst)
    for entry in entries:
        parts += [f"## {_plain(entry.label)}", _list(_remarks(entry, worst))]
        if skipped := entry.evaluation.skipped:
            parts += ["Skipped:", _list([f"{one.name}: {one.reason}" for one in skipped[:_LISTED]])]
    return "\n\n".join(parts) + "\n"


def _compared(entries: Sequence[Labelled], differences: Sequence[PairedDifference], worst: int) -> list[str]:
    rows = []
    for one in differences:
        text, count = _score_text(one.metric, one.mean, sign=True), one.mean.count if one.mean else 0
        rows.append([one.metric.title, text, str(count), _verdict(one)])
    return [
        f"## {_plain(entries[1].label)} minus {_plain(entries[0].label)}, video by video",
        _table(["Metric", "mean of paired differences", "videos", ""], rows),
        *(f"{line}." for line in _limit_remark(entries)),
        _list(_regression_lines(differences, worst)),
    ]


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
    widths = [max(3, *map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * width for width in widths], *rows]
    padded = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _plain(text: str) -> str:
    """Escapes a text that may hold Markdown, or bytes that are not UTF-8."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in " ".join(text.split()))
    return escaped.encode("utf-8", "backslashreplace").decode()
