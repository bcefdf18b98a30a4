"""The demo's report: complete, self-contained, escaped, well-formed, and (with a browser at hand)
free of errors on the screen.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from wfvae.errors import InputError, ResourceError
from wfvae.evaluation.subbands import BAND_NAMES
from wfvae.export.parity import Check
from wfvae.report.data import (
    Picture,
    ReportData,
    RunInfo,
    Stage,
    StepTimes,
    SubbandBar,
    SubbandSeries,
    Throughput,
)
from wfvae.report.numbers import MISSING, TIMES
from wfvae.report.page import render_report, write_report
from wfvae.report.png import encode_png, png_data_uri
from wfvae.report.svg_plots import NARROW, WIDE, line_plot, nice_ticks
from wfvae.video.synthetic.clips import ProceduralClip

VOID = {"meta", "img", "br", "link", "hr", "input"}
CHECK = {
    "name": "stream = direct", "direction": "decode", "backend": "onnxruntime", "plan": "8+8+1", "frames": 37, "equal_bits": False,
    "max_abs": 3.25e-06, "max_ulp": 4321, "psnr_db": 117.53, "passed": True, "equal_share": 0.5, "tolerance": 1e-4, "rule": "close",
}  # fmt: skip


class Page(HTMLParser):
    """A strict little reader: tags must nest; keeps attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, text: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _, _ in self.attributes}


def report(**changes: object) -> ReportData:
    """Data with every field filled."""
    clip = ProceduralClip(5, 48, 64).frames(0, 3)
    blurred = (clip.astype(np.uint16) + np.roll(clip, 1, 2) + 1) // 2
    bars = tuple(
        SubbandBar(name, share, 9.125 - 1.0625 * k)
        for k, (name, share) in enumerate(zip(BAND_NAMES, _shares(), strict=True))
    )
    series = (
        SubbandSeries("input", bars),
        SubbandSeries("reconstruction", tuple(replace(bar, entropy_bits=1.75) for bar in bars)),
    )
    data = ReportData(
        run=RunInfo(
            "WF-VAE-tiny", 1_482_339, "sha256:9f2c41d0a7be", "ONNX Runtime CPU", (("onnxruntime", "1.23.2"), ("numpy", "2.3.4")),
            "Imaginary CPU 9000", 2, datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
            ("wfvae export model/ bundle/", "wfvae verify bundle/ --json"), "procedural clip, seed 5", 37, 48, 64, 25.0,
        ),
        throughput=Throughput(41.37, 28.94, (Stage("export", 12.31), Stage("encode", 5.82), Stage("verify", 131.4)),
                              7_340_032, 18_874_368, 340_992, 14_336, 98_765),
        parity=(
            Check(**CHECK),
            Check(**(CHECK | {"equal_bits": True, "max_abs": 0.0, "max_ulp": 0, "psnr_db": math.inf})),
        ),
        psnr_per_frame=tuple(33.5 + math.sin(k) for k in range(37)),
        step_times=(StepTimes("encode, 8 frames per step", (0.1913, 0.1921, 0.1902)),),
        subbands=series,
        subband_bin_width=1.5,
        pictures=(Picture(0, clip[0], blurred[0].astype(np.uint8)), Picture(2, clip[2], clip[2])),
        difference_gain=6,
        video="out/side by side.mp4",
    )  # fmt: skip
    return replace(data, **changes)  # type: ignore[arg-type]


def _shares() -> list[float]:
    return [0.9621, 0.0123, 0.0111, 0.0014, 0.0101, 0.0017, 0.00129, 0.00001]


def test_every_given_number_is_on_the_page() -> None:
    page = Page(render_report(report()))
    for expected in (
        "WF-VAE-tiny", "1,482,339", "sha256:9f2c41d0a7be", "ONNX Runtime CPU", "onnxruntime 1.23.2", "numpy 2.3.4", "Imaginary CPU 9000",
        "Threads 2", "2026-03-04 05:06:07 UTC", "wfvae export model/ bundle/", "wfvae verify bundle/ --json", "procedural clip, seed 5",
        "37 frames", f"64{TIMES}48", "25 fps",
        "41.37", "28.94", "12.31 s", "5.82 s", "131 s", "In all 150 s", "7,340,032",
        "18,874,368", "340,992", "14,336", "98,765", "4.20 %",
        f"23.8 {TIMES}", f"1.65 {TIMES}", "stream = direct", "decode", "8+8+1", "3.25e-06", "4,321",
        "117.53", "∞",
        f"mean {np.mean(report().psnr_per_frame):.2f} dB", "lowest 32.50 dB", "highest 34.50 dB", "mean 191.20 ms",
        "encode, 8 frames per step",
        "bin width of 1.5 (in 8-bit levels)",
        "0.9621", "1e-05", "9.125", "1.750", "amplified 6 times", "Input, frame 2", "Reconstruction, ∞ dB", "All 2 parity checks passed",
        "PSNR (dB)", "wall time (ms)", "entropy (bits)", *BAND_NAMES,
    ):  # fmt: skip
        assert expected in page.text, expected


def test_page_is_self_contained() -> None:
    text = render_report(report())
    page = Page(text)
    links = [
        value
        for _, name, value in page.attributes
        if name in ("src", "href", "srcset", "data", "poster", "action")
    ]
    assert links and all(
        link.startswith("data:image/png;base64,") or link == "out/side%20by%20side.mp4" for link in links
    )
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.search(r"url\((?!#)|@import", text)
    addresses = set(re.findall(r"https?://[^\"'\s<]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG's namespace is no address to load"


def test_markup_in_texts_is_escaped() -> None:
    nasty = "<script>alert('&\"')</script>"
    data = report()
    data = replace(
        data,
        title=nasty,
        run=replace(
            data.run,
            model=nasty,
            bundle_hash=nasty,
            cpu=nasty,
            source=nasty,
            backend=nasty,
            commands=(nasty,),
            versions=((nasty, nasty),),
        ),
        parity=(Check(**(CHECK | {"name": nasty, "plan": nasty, "backend": nasty, "direction": nasty})),),
        throughput=replace(data.throughput, stages=(Stage(nasty, 1.0),)),
        step_times=(StepTimes(nasty, (1.0, 2.0)),),
        subbands=(replace(data.subbands[0], label=nasty),),
        video="a<b>&.mp4",
    )
    page = Page(render_report(data))
    assert "script" not in page.tags
    assert page.text.count("alert(") >= 12


def test_plots_are_well_formed_and_pictures_decode() -> None:
    text = render_report(report())
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 2 * 4, "four plots, each for wide and narrow windows"
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.attrib["viewBox"].split()[2] in (str(WIDE), str(NARROW))
        assert "nan" not in plot and "inf" not in plot
    assert text.count("data:image/png") == 6
    names = re.findall(r'<pattern id="([^"]*)"', text)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("count", [1, 2, 7, 100, 5000])
def test_line_plots_of_any_length_stay_inside_and_small(count: int) -> None:
    values = [30.0 + k % 7 for k in range(count)]
    for width in (WIDE, NARROW):
        plot = line_plot(values, "frame", "PSNR", "dB", width)
        height = float(ElementTree.fromstring(plot).attrib["viewBox"].split()[3])
        points = [
            tuple(map(float, pair.split(",")))
            for group in re.findall(r'points="([^"]*)"', plot)
            for pair in group.split()
        ]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        assert len(plot) < 45_000


def test_line_plot_keeps_an_outlier_of_a_long_series() -> None:
    values = [40.0] * 10_000
    flat = line_plot(values, "frame", "PSNR", "dB", WIDE)
    values[7_777] = 12.0
    assert line_plot(values, "frame", "PSNR", "dB", WIDE) != flat
    assert 'class="band"' in line_plot(values, "frame", "PSNR", "dB", WIDE)
    with pytest.raises(InputError, match="no values"):
        line_plot([], "frame", "PSNR", "dB", WIDE)


@pytest.mark.parametrize(
    "values", [(math.inf,), (math.inf, 30.0, math.inf), (math.inf,) * 400, (42.0,), (0.0, 0.0), (1e-9, 1e9)]
)
def test_extreme_series_are_drawn(values: tuple[float, ...]) -> None:
    text = render_report(report(psnr_per_frame=values))
    Page(text)
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert plots and not any("nan" in plot or "inf" in plot for plot in plots)


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(31.3, 41.2, 5) == [32, 34, 36, 38, 40]
    assert all(0.1 <= tick <= 0.2 for tick in nice_ticks(0.1, 0.2, 5))


def test_failed_and_empty_checks_are_failures_in_words() -> None:
    failed = Page(render_report(report(parity=(Check(**CHECK), Check(**(CHECK | {"passed": False}))))))
    assert "1 of 2 parity checks failed" in failed.text and "✗ FAIL" in failed.text
    empty = Page(render_report(report(parity=(Check(**(CHECK | {"frames": 0})),))))
    assert "1 of 1 parity checks failed" in empty.text
    none = Page(render_report(report(parity=())))
    assert "Nothing was checked" in none.text


def test_optional_parts_may_be_left_out() -> None:
    bare = report(psnr_per_frame=(), step_times=(), subbands=(), pictures=(), video=None)
    page = Page(render_report(bare))
    assert not page.tags & {"svg", "img", "video"}


def test_missing_values_are_dashes() -> None:
    row = Check(**(CHECK | {"max_ulp": None, "psnr_db": None}))
    assert render_report(report(parity=(row,))).count(f">{MISSING}</td>") == 2


def test_wrong_data_is_refused() -> None:
    for video in ("/abs/x.mp4", "https://example.org/x.mp4", "C:\\x.mp4", ""):
        with pytest.raises(InputError, match="relative"):
            report(video=video)
    with pytest.raises(InputError, match="not a number"):
        report(psnr_per_frame=(30.0, math.nan))
    assert not Check(**(CHECK | {"max_abs": math.nan})).holds
    with pytest.raises(InputError, match="two"):
        report(subbands=report().subbands * 2)
    with pytest.raises(InputError, match="picture"):
        encode_png(np.zeros((4, 4), dtype=np.uint8))


def test_png_is_lossless(tmp_path: Path) -> None:
    picture = ProceduralClip(9, 33, 47, noise=5.0).frame(0)
    path = tmp_path / "picture.png"
    path.write_bytes(encode_png(picture))
    with av.open(str(path)) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(decoded, picture)
    assert png_data_uri(picture).startswith("data:image/png;base64,iVBOR")


def test_write_replaces_the_file_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("older")
    with pytest.raises(InputError):
        write_report(
            path, report(pictures=(Picture(0, np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)),))
        )
    assert path.read_text() == "older"
    write_report(path, report())
    assert path.read_text(encoding="utf-8") == render_report(report())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ResourceError, match="cannot write"):
        write_report(tmp_path / "absent" / "report.html", report())


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium executable on the PATH")


def browse(page: Path, folder: Path, width: int, *options: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Open a page headless: its picture, its console messages, and the addresses it asked the
    network for.
    """
    shot, log = folder / "shot.png", folder / "net.json"
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}", f"--window-size={width},1400",
        f"--screenshot={shot}", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    with av.open(str(shot)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    events = json.loads(log.read_text())["events"]
    # The browser's own business is "not an origin"; what a page asks for carries the page's origin.
    asked = [
        e["params"]["url"]
        for e in events
        if e.get("params", {}).get("initiator", "not an origin") != "not an origin"
    ]
    return picture, [line for line in done.stderr.splitlines() if ":CONSOLE" in line], asked


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1100, 1), (1100, 0), (500, 1)])
def test_browser_shows_the_page_without_errors_or_requests(tmp_path: Path, width: int, scheme: int) -> None:
    (tmp_path / "out").mkdir()
    write_report(tmp_path / "report.html", report(video=None))
    picture, messages, asked = browse(
        tmp_path / "report.html", tmp_path, width, f"--blink-settings=preferredColorScheme={scheme}"
    )
    assert messages == [] and asked == []
    assert picture.shape[1] == width
    background = int(picture[2, 2].astype(int).sum())
    assert background > 600 if scheme else background < 150, "light and dark follow the reader's preference"
    assert picture.std() > 20, "the page is not blank"
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200, "the pictures are shown"


@needs_browser
def test_browser_check_would_notice_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<script>console.error("noticed")</script><img src="http://example.invalid/a.png">')
    _, messages, asked = browse(page, tmp_path, 500)
    assert any("noticed" in message for message in messages)
    assert "http://example.invalid/a.png" in asked
