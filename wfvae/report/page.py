"""The demo's report: one HTML file that needs nothing else (but the video beside it), made of plain
data.

No script, no font, no request: styles are inline, plots are SVG drawn here, pictures are PNG inside
the page. The page forbids the browser to load anything from elsewhere (Content-Security-Policy), so
that this stays true. What passed is told by words and marks, not by colour alone.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from wfvae.errors import ResourceError
from wfvae.export.parity.verification import Check
from wfvae.report.data import Picture, ReportData, StepTimes, SubbandSeries
from wfvae.report.numbers import (
    TIMES,
    byte_count,
    exact_bytes,
    number,
    percent,
    scientific,
    seconds_text,
    share_text,
)
from wfvae.report.png import png_data_uri
from wfvae.report.side_by_side import difference
from wfvae.report.svg_plots import bar_plot, both_widths, line_plot


def render_report(data: ReportData) -> str:
    """The report as the text of an HTML file.

    Raises:
        InputError: a picture is not (H, W, 3) uint8 or its two halves differ in shape, or the
            difference gain is out of range.
    """
    sections = (
        _header(data),
        _tiles(data),
        _video(data),
        _pictures(data),
        _psnr(data),
        _parity(data),
        _throughput(data),
        _step_times(data.step_times),
        _subbands(data),
        _run(data),
    )
    body = "\n".join(section for section in sections if section)
    return _PAGE.format(title=escape(data.title), style=_STYLE, body=body)


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the report under a temporary name beside `path`, then rename it: an older report stays
    whole until the new one is.

    Raises:
        InputError: as `render_report`.
        ResourceError: the file cannot be written.
    """
    path = Path(path)
    page = render_report(data)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        # mkstemp makes files for the owner's eyes only; a report is as readable as any file one
        # writes.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError(
            f"cannot write the report {path}: {error.strerror}; give a folder that exists and has room"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


# ---------------------------------------------------------------- text and numbers


def _card(title: str, content: str, note: str = "") -> str:
    """A section with a heading; title and note are escaped here, the content is HTML."""
    tail = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h2>{escape(title)}</h2>{content}{tail}</section>'


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values, escaped here."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{rows}</dl>'


# ---------------------------------------------------------------- sections


def _header(data: ReportData) -> str:
    run = data.run
    what = f"{run.source} · {run.frames:,} frames · {run.width}{TIMES}{run.height} · {run.fps:g} fps"
    lead = (
        f'<p class="lead">{escape(run.model)} on {escape(run.backend)}</p><p class="note">{escape(what)}</p>'
    )
    return f"<header><h1>{escape(data.title)}</h1>{lead}{_verdict(data.parity)}</header>"


def _verdict(rows: Sequence[Check]) -> str:
    """One line that says whether all checks hold; no checks at all is a failure."""
    held = sum(row.holds for row in rows)
    if not rows:
        return '<p class="verdict bad"><span class="mark">✗</span> Nothing was checked</p>'
    if held == len(rows):
        return f'<p class="verdict good"><span class="mark">✓</span> All {held} parity checks passed</p>'
    return (
        f'<p class="verdict bad"><span class="mark">✗</span> {len(rows) - held} of {len(rows)} parity checks'
        " failed</p>"
    )


def _mean_psnr(values: Sequence[float]) -> str:
    """Mean over the frames that differ at all, as the tile shows it."""
    finite = [value for value in values if math.isfinite(value)]
    if not values:
        return number(None)
    return number(sum(finite) / len(finite) if finite else math.inf, 2, " dB")


def _tiles(data: ReportData) -> str:
    speed, rate = data.throughput, data.run.fps
    equal = sum(row.equal_bits for row in data.parity)
    ratio = speed.raw_video_bytes / speed.latents_bytes if speed.latents_bytes else math.inf
    finite = [value for value in data.psnr_per_frame if math.isfinite(value)]
    lowest = f"lowest {number(min(finite), 2, ' dB')}" if finite else "of the reconstruction"
    tiles = (
        ("Mean PSNR", _mean_psnr(data.psnr_per_frame), lowest),
        ("Equal in every bit", f"{equal} of {len(data.parity)}", "parity checks"),
        ("Encode", f"{number(speed.encode_fps, 1)} fps", f"{speed.encode_fps / rate:.2f} {TIMES} real time"),
        ("Decode", f"{number(speed.decode_fps, 1)} fps", f"{speed.decode_fps / rate:.2f} {TIMES} real time"),
        (
            "State per stream",
            byte_count(speed.encoder_state_bytes + speed.decoder_state_bytes),
            "encoder + decoder",
        ),
        ("Latents", byte_count(speed.latents_bytes), f"{number(ratio, 1)} {TIMES} smaller than raw RGB"),
    )
    cells = "".join(
        f'<div class="tile"><p class="name">{escape(name)}</p><p class="value">{escape(value)}</p><p'
        f' class="note">{escape(note)}</p></div>'
        for name, value, note in tiles
    )
    return f'<section class="tiles">{cells}</section>'


def _video(data: ReportData) -> str:
    if data.video is None:
        return ""
    source = quote(data.video)
    content = (
        f'<video controls loop muted playsinline preload="metadata" src="{source}"></video>'
        f'<p class="note">Input, reconstruction, difference {TIMES} {data.difference_gain}. '
        f'File: <a href="{source}">{escape(data.video)}</a></p>'
    )
    return _card("Side by side", content)


def _pictures(data: ReportData) -> str:
    if not data.pictures:
        return ""
    rows = "".join(_picture_row(picture, data.difference_gain) for picture in data.pictures)
    note = f"The difference is amplified {data.difference_gain} times; middle grey means equal."
    return _card("Frames", rows, note)


def _picture_row(picture: Picture, gain: int) -> str:
    """Input, reconstruction and difference of one frame."""
    before, after = picture.reference, picture.reconstruction
    apart = difference(before, after, gain)
    error = float(np.mean((before.astype(np.float64) - after) ** 2))
    psnr = number(10 * math.log10(255 * 255 / error) if error else math.inf, 2, " dB")
    figures = (
        (before, f"Input, frame {picture.frame:,}"),
        (after, f"Reconstruction, {psnr}"),
        (apart, f"Difference {TIMES} {gain}"),
    )
    cells = "".join(
        f'<figure><img alt="{escape(words)}" src="{png_data_uri(image)}" width="{image.shape[1]}"'
        f' height="{image.shape[0]}"><figcaption>{escape(words)}</figcaption></figure>'
        for image, words in figures
    )
    return f'<div class="pictures">{cells}</div>'


def _psnr(data: ReportData) -> str:
    if not data.psnr_per_frame:
        return ""
    plot = both_widths(
        lambda width: line_plot(data.psnr_per_frame, "frame", "PSNR", "dB", width, least_span=4.0)
    )
    finite = [value for value in data.psnr_per_frame if math.isfinite(value)]
    equal = len(data.psnr_per_frame) - len(finite)
    note = f"{len(data.psnr_per_frame):,} frames: "
    if finite:
        note += (
            f"mean {number(sum(finite) / len(finite))} dB, lowest {number(min(finite))} dB, highest"
            f" {number(max(finite))} dB"
        )
    note += (", " if finite and equal else "") + (
        f"{equal:,} equal to the input (PSNR infinite, not in the mean)" if equal else ""
    )
    return _card("PSNR of the reconstruction, frame by frame", plot, note + ".")


def _parity(data: ReportData) -> str:
    heads = (
        "Result",
        "Check",
        "Direction",
        "Backend",
        "Plan",
        "Frames",
        "Equal bits",
        "Max abs",
        "Max ULP",
        "PSNR (dB)",
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(_parity_row(row, heads) for row in data.parity)
    table = f'<table class="parity"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    note = (
        "A ULP is one step between neighbouring numbers of the result's type. A check that compared no frames"
        " counts as failed."
    )
    content = (
        f'<div class="scroll">{table}</div>'
        if data.parity
        else "<p>No check was made, which counts as a failure.</p>"
    )
    return _card("Parity", content, note)


def _parity_row(row: Check, heads: Sequence[str]) -> str:
    result = (
        '<span class="pass"><b>✓</b> pass</span>' if row.holds else '<span class="fail"><b>✗</b> FAIL</span>'
    )
    cells = (
        row.name, row.direction, row.backend, row.plan, f"{row.frames:,}", "yes" if row.equal_bits else "no", scientific(row.max_abs),
        number(row.max_ulp, 0), number(row.psnr_db),
    )  # fmt: skip
    kinds = ("words", "", "", "words", "num", "", "num", "num", "num")
    written = "".join(
        f'<td data-name="{name}" class="{kind}">{escape(cell)}</td>'
        for name, cell, kind in zip(heads[1:], cells, kinds, strict=True)
    )
    return (
        f'<tr class="{"" if row.holds else "failed"}"><td data-name="{heads[0]}">{result}</td>{written}</tr>'
    )


def _throughput(data: ReportData) -> str:
    speed = data.throughput
    facts = [
        ("Encode", f"{number(speed.encode_fps, 2)} frames per second"),
        ("Decode", f"{number(speed.decode_fps, 2)} frames per second"),
        ("State of an encoder stream", exact_bytes(speed.encoder_state_bytes)),
        ("State of a decoder stream", exact_bytes(speed.decoder_state_bytes)),
        ("Video as 8-bit RGB", exact_bytes(speed.raw_video_bytes)),
        (
            "Latents",
            (
                f"{exact_bytes(speed.latents_bytes)}, {percent(speed.latents_bytes, speed.raw_video_bytes)}"
                " of the raw video"
            ),
        ),
    ]
    if speed.video_file_bytes is not None:
        facts.append(("Video file", exact_bytes(speed.video_file_bytes)))
    total = sum(stage.seconds for stage in speed.stages)
    longest = max((stage.seconds for stage in speed.stages), default=0.0) or 1.0
    bars = "".join(
        f'<div class="stage"><span>{escape(stage.name)}</span><i'
        f' style="width:{max(60 * stage.seconds / longest, 0.4):.2f}%"></i>'
        f"<b>{seconds_text(stage.seconds)}</b></div>"
        for stage in speed.stages
    )
    stages = (
        f'<h3>Wall time by stage</h3><div class="stages">{bars}</div><p class="note">In all'
        f" {seconds_text(total)}.</p>"
        if bars
        else ""
    )
    return _card("Throughput and size", _definitions(facts) + stages)


def _step_times(series: Sequence[StepTimes]) -> str:
    plots = "".join(
        f"<h3>{escape(steps.label)}</h3>{both_widths(partial(_step_plot, steps))}"
        for steps in series
        if steps.seconds
    )
    return (
        _card(
            "Time per step", plots, "Flat lines mean that a long stream costs per step what a short one does."
        )
        if plots
        else ""
    )


def _step_plot(steps: StepTimes, width: int) -> str:
    return line_plot(
        [1000 * seconds for seconds in steps.seconds], "step", "wall time", "ms", width, from_zero=True
    )


def _subbands(data: ReportData) -> str:
    if not data.subbands:
        return ""
    energy = both_widths(
        lambda width: bar_plot(
            data.subbands, lambda bar: bar.energy_share, "energy share", "", width, log=True
        )
    )
    entropy = both_widths(
        lambda width: bar_plot(
            data.subbands, lambda bar: bar.entropy_bits, "entropy", "bits", width, log=False
        )
    )
    content = (
        f"<h3>Share of the energy (logarithmic)</h3>{energy}<h3>Shannon"
        f" entropy</h3>{entropy}{_subband_table(data.subbands)}"
    )
    note = (
        f"3-D Haar transform of 2 {TIMES} 2 {TIMES} 2 pixels, orthonormal. The letters of a band stand for"
        " time, height, width: L sums, H differences. Entropy per coefficient, of the histogram with a bin"
        f" width of {data.subband_bin_width:g} (in 8-bit levels)."
    )
    return _card("Sub-band energy and entropy", content, note)


def _subband_table(series: Sequence[SubbandSeries]) -> str:
    """The numbers behind the bars."""
    names = [f"{one.label}: {what}" for one in series for what in ("energy share", "entropy (bits)")]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for index, bar in enumerate(series[0].bars):
        bars = [one.bars[index] for one in series if index < len(one.bars)]
        cells = "".join(
            f'<td class="num">{share_text(one.energy_share)}</td><td class="num">{one.entropy_bits:.3f}</td>'
            for one in bars
        )
        rows.append(f'<tr><th scope="row">{escape(bar.name)}</th>{cells}</tr>')
    table = (
        "<table><thead><tr><th"
        f' scope="col">Band</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    return f'<details><summary>The numbers</summary><div class="scroll">{table}</div></details>'


def _run(data: ReportData) -> str:
    run = data.run
    facts = [
        ("Model", run.model),
        ("Parameters", f"{run.parameters:,}"),
        ("Bundle", run.bundle_hash),
        ("Backend", run.backend),
        ("Versions", ", ".join(f"{name} {version}" for name, version in run.versions)),
        ("Processor", run.cpu),
        ("Threads", str(run.threads)),
        ("Finished", run.finished.strftime("%Y-%m-%d %H:%M:%S %Z").strip()),
    ]
    commands = escape("\n".join(run.commands))
    repeat = f'<h3>Repeat it</h3><pre tabindex="0"><code>{commands}</code></pre>' if run.commands else ""
    return _card("What ran", _definitions(facts) + repeat)


# ---------------------------------------------------------------- the page

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src 'self' file:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root{--paper:#f5f6f8;--card:#fff;--ink:#1b1f27;--soft:#5b6472;--edge:#dfe3e9;--accent:#1f6fb2;--second:#b4562b;--good:#15713c;
--good-bg:#e2f4e8;--bad:#b3261e;--bad-bg:#fbe7e5;--code:#eef1f5}
@media (prefers-color-scheme:dark){:root{--paper:#12151a;--card:#1a1f26;--ink:#e7eaef;--soft:#9aa5b4;--edge:#2d343f;--accent:#66b2f2;
--second:#f0a277;--good:#7bd69b;--good-bg:#153222;--bad:#ff9b92;--bad-bg:#40191a;--code:#12161c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 18px 48px;display:grid;gap:18px;grid-template-columns:minmax(0,1fr)}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .2em;letter-spacing:-.01em}
h2{font-size:1.12rem;margin:0 0 .8em}
h3{font-size:.95rem;margin:1.2em 0 .4em;font-weight:600}
p{margin:0 0 .5em}
a{color:var(--accent)}
.lead{font-size:1.08rem;margin:0}
.note{color:var(--soft);font-size:.875rem;margin:.5em 0 0}
header .note{margin:0}
.verdict{display:inline-block;margin:.9em 0 0;padding:.4em .9em;border-radius:999px;font-weight:600}
.verdict.good{color:var(--good);background:var(--good-bg)}
.verdict.bad{color:var(--bad);background:var(--bad-bg)}
.card,.tile{background:var(--card);border:1px solid var(--edge);border-radius:12px}
.card{padding:20px 22px;min-width:0}
.tiles{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.tile{padding:14px 16px}
.tile p{margin:0}
.tile .name{color:var(--soft);font-size:.85rem}
.tile .value{font-size:1.4rem;font-weight:650;line-height:1.35;font-variant-numeric:tabular-nums;white-space:nowrap}
.tile .note{font-size:.8rem}
video{display:block;width:100%;border-radius:8px;background:#000}
.pictures{display:grid;gap:10px;grid-template-columns:repeat(3,minmax(0,1fr));margin-bottom:14px}
figure{margin:0}
figure img{display:block;width:100%;height:auto;border-radius:6px;background:var(--code)}
figcaption{font-size:.82rem;color:var(--soft);margin-top:4px;font-variant-numeric:tabular-nums}
.facts{margin:0;display:grid;gap:0 28px;grid-template-columns:repeat(auto-fit,minmax(410px,1fr))}
.facts div{display:flex;justify-content:space-between;gap:14px;padding:6px 0;border-bottom:1px solid var(--edge)}
.facts dt{color:var(--soft);flex:none}
.facts dd{margin:0;text-align:right;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.stage{display:grid;grid-template-columns:9em minmax(0,1fr);align-items:center;padding:3px 0}
.stage span{color:var(--soft);overflow-wrap:anywhere}
.stage i{display:inline-block;height:14px;background:var(--accent);border-radius:3px;grid-column:2;grid-row:1}
.stage b{grid-column:2;grid-row:1;justify-self:end;font-weight:600;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 8px;border-bottom:1px solid var(--edge);white-space:nowrap}
thead th{color:var(--soft);font-weight:600}
th:first-child,td:first-child{padding-left:4px}
td.num{text-align:right}
td.words{white-space:normal;overflow-wrap:anywhere;min-width:8em}
.pass{color:var(--good);font-weight:600}
.fail{color:var(--bad);font-weight:700}
tr.failed td{background:var(--bad-bg)}
details{margin-top:12px}
summary{cursor:pointer;color:var(--accent)}
pre{background:var(--code);border-radius:8px;padding:12px 14px;margin:0;overflow-x:auto}
pre{font:.875rem/1.6 ui-monospace,Menlo,Consolas,monospace}
.plot svg{display:block;width:100%;height:auto}
.plot.narrow{display:none}
svg text{fill:var(--ink);font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
svg .tick,svg .axis{fill:var(--soft)}
svg .value{font-size:11px}
svg .callout{fill:var(--second);font-weight:600}
svg .grid{stroke:var(--edge);stroke-width:1}
svg .line{fill:none;stroke:var(--accent);stroke-width:1.8;stroke-linejoin:round}
svg .band{fill:var(--accent);opacity:.2}
svg .dot{fill:var(--accent)}
svg .mean{stroke:var(--second);stroke-width:1.4;stroke-dasharray:6 4}
svg .bar{fill:var(--accent)}
svg .bar.second{fill:revert-layer;stroke:var(--second);stroke-width:1.2}
svg .hatch-ground{fill:var(--card)}
svg .hatch-line{fill:var(--second)}
@media (max-width:680px){
main{padding:18px 10px 32px;gap:12px}
.card{padding:16px 14px}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr));gap:8px}
.tile{padding:11px 12px}
.tile .value{font-size:1.16rem}
.plot.wide{display:none}
.plot.narrow{display:block}
.pictures{grid-template-columns:repeat(2,minmax(0,1fr))}
.facts{grid-template-columns:minmax(0,1fr)}
.stage{grid-template-columns:6em minmax(0,1fr)}
.parity thead{display:none}
.parity,.parity tbody,.parity td{display:block}
.parity tr{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:0 12px;padding:9px 2px}
.parity tr{border-bottom:1px solid var(--edge)}
.parity tr.failed{background:var(--bad-bg);padding:9px 8px;border-radius:8px}
.parity td,.parity td.num,.parity td:first-child{text-align:left;white-space:normal;padding:2px 0;border:0}
.parity td{overflow-wrap:anywhere;min-width:0}
.parity td::before{content:attr(data-name);display:block;color:var(--soft);font-size:.74rem;line-height:1.3}
.parity td:nth-child(2){grid-column:2/-1;font-weight:600}
.parity td:nth-child(-n+2)::before{display:none}
.pictures figure:last-child{grid-column:1/-1;display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}
.pictures figure:last-child{align-items:center}
}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""
