"""The demo's report: complete, self-contained, escaped, well-formed, and free of browser errors."""

import base64
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from matplotlib.figure import Figure

from wfvae.evaluation.subbands import BAND_NAMES, Subband
from wfvae.export.parity import Check
from wfvae.report.data import Picture, ReportData, RunInfo, Throughput
from wfvae.report.page import render_report
from wfvae.report.plots import draw_psnr, plot_style, svg_text
from wfvae.video.synthetic.clips import ProceduralClip

SHARES = (0.9621, 0.0123, 0.0111, 0.0014, 0.0101, 0.0017, 0.00129, 0.00001)
CHECK = Check(
    name="stream = direct",
    direction="decode",
    backend="onnxruntime",
    plan="8+8+1",
    frames=37,
    elements=37 * 8 * 8 * 3,
    equal_bits=False,
    max_abs=3.25e-06,
    max_ulp=4321,
    psnr_db=117.53,
    passed=True,
    equal_share=0.5,
    tolerance=1e-4,
    rule="close",
)
BARE: dict[str, object] = {"psnr_per_frame": (), "subbands": {}, "pictures": (), "video": None}
EXACT = replace(CHECK, equal_bits=True, max_abs=0.0, max_ulp=0, psnr_db=math.inf)


class Page:
    """A page, which is well-formed XML too, without its styles."""

    def __init__(self, text: str) -> None:
        root = ElementTree.fromstring(text)
        styled = [
            (parent, child) for parent in root.iter() for child in parent if child.tag.endswith("style")
        ]
        for parent, child in styled:
            parent.remove(child)
        self.text = " ".join(" ".join(root.itertext()).split())
        self.tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        self.attributes = [pair for element in root.iter() for pair in element.attrib.items()]


def report(**changes: object) -> ReportData:
    """Data with every field filled."""
    clip = ProceduralClip(5, 48, 64).frames(0, 3)
    blurred = ((clip.astype(np.uint16) + np.roll(clip, 1, 2) + 1) // 2).astype(np.uint8)
    bands = tuple(
        Subband(name, 1.0, share, 9.125 - k)
        for k, (name, share) in enumerate(zip(BAND_NAMES, SHARES, strict=True))
    )
    flat = tuple(replace(band, entropy=1.75) for band in bands)
    run = RunInfo(
        model="WF-VAE-tiny",
        parameters=1_482_339,
        bundle_hash="sha256:9f2c41d0a7be",
        backend="ONNX Runtime CPU",
        versions=(("onnxruntime", "1.23.2"), ("numpy", "2.3.4")),
        cpu="Imaginary CPU 9000",
        threads=2,
        finished=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
        commands=("wfvae export model/ bundle/", "wfvae verify bundle/ --json"),
        source="procedural clip, seed 5",
        frames=37,
        height=48,
        width=64,
        fps=25.0,
    )
    stages = {"export": 12.31, "encode": 5.82, "verify": 131.4}
    data = ReportData(
        run=run,
        throughput=Throughput(41.37, 28.94, stages, 7_340_032, 18_874_368, 340_992, 14_336, 98_765),
        parity=(CHECK, EXACT),
        psnr_per_frame=tuple(33.5 + math.sin(k) for k in range(37)),
        subbands={"input": bands, "reconstruction": flat},
        pictures=(Picture(0, clip[0], blurred[0]), Picture(2, clip[2], clip[2])),
        video="out/side by side.mp4",
    )
    return replace(data, **changes)  # type: ignore[arg-type]


def test_page_with_full_data_shows_every_number() -> None:
    page = Page(render_report(report()))
    for expected in """
        WF-VAE-tiny|1,482,339|sha256:9f2c41d0a7be|ONNX Runtime CPU|onnxruntime 1.23.2, numpy 2.3.4|Threads 2
        Imaginary CPU 9000|2026-03-04 05:06:07 UTC|wfvae export model/ bundle/ wfvae verify bundle/ --json
        procedural clip, seed 5|37 frames|64×48|25 fps|41.37|28.94|12.31 s|5.82 s|131 s|In all 150 s|7,340,032
        18,874,368|340,992|14.0 KiB (14,336 bytes)|98,765|4.20 %|23.8 ×|1.65 ×|stream = direct|decode|8+8+1
        3.25e-06|4,321|117.53|∞|mean 33.51 dB|lowest 32.50 dB|highest 34.50 dB|0.9621|1e-05|9.125|1.750
        amplified 8 times|Input, frame 2|Reconstruction, ∞ dB|All 2 parity checks passed
        PSNR (dB)|entropy (bits)
    """.replace("\n", "|").split("|"):
        assert expected.strip() in page.text, expected
    assert all(page.text.count(name) == 2 * 2 + 1 for name in BAND_NAMES), "two plots, two widths, one table"


def test_page_is_self_contained() -> None:
    text = render_report(report())
    page = Page(text)
    loading = ("src", "href", "srcset", "data", "poster")
    links = {value for name, value in page.attributes if name in loading}
    links = {link for link in links if not link.startswith("data:image/png;base64,")}
    assert links == {"out/side%20by%20side.mp4"}
    assert not page.tags & {"script", "link"}
    assert not re.search(r"url\((?!#)|@import", text)
    addresses = set(re.findall(r"https?://[^\"'\s<]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names, never loaded"
    assert any("default-src 'none'" in value for name, value in page.attributes if name == "content")


def test_markup_in_texts_is_escaped() -> None:
    nasty = "<script>alert('&\"')</script>"
    data = report()
    texts = dict.fromkeys(("model", "bundle_hash", "cpu", "source", "backend"), nasty)
    data = replace(
        data,
        run=replace(data.run, **texts, commands=(nasty,), versions=((nasty, nasty),)),
        parity=(replace(CHECK, name=nasty, plan=nasty, backend=nasty, direction=nasty),),
        throughput=replace(data.throughput, stages={nasty: 1.0}),
        subbands={nasty: data.subbands["input"]},
        video="a<b>&.mp4",
    )
    page = Page(render_report(data))
    assert "script" not in page.tags
    assert page.text.count("alert(") >= 12


def test_page_rendered_twice_is_the_same_and_its_ids_are_unique() -> None:
    text = render_report(report())
    assert text == render_report(report())
    ids = re.findall(r' id="([^"]*)"', text)
    assert ids and len(ids) == len(set(ids))
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 2 * 3, "three plots, each for wide and narrow windows"


@pytest.mark.parametrize("values", [[math.inf], [math.inf, 30.0, math.inf], [math.inf] * 900, [1e-9, 1e9]])
def test_plot_of_extreme_series_is_well_formed_with_text_labels_and_a_dark_scheme(
    values: list[float],
) -> None:
    with plot_style():
        figure = Figure((9, 3))
        figure.suptitle("$a_$ <b>")
        draw_psnr(figure.subplots(), values)
        plot = svg_text(figure, "a <plot>")
    root = ElementTree.fromstring(plot)
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"frame", "$a_$ <b>", "PSNR (dB)"} <= texts and root.attrib["aria-label"] == "a <plot>"
    assert "prefers-color-scheme:dark" in plot and not re.search(r"\b(nan|inf)\b", plot)


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        ((CHECK, replace(CHECK, passed=False)), "1 of 2 parity checks failed"),
        ((replace(CHECK, frames=0),), "1 of 1 parity checks failed"),
        ((replace(CHECK, max_abs=math.nan),), "✗ FAIL"),
        ((), "Nothing was checked"),
    ],
)
def test_failed_and_empty_checks_are_failures_in_words(checks: tuple[Check, ...], words: str) -> None:
    assert words in Page(render_report(report(**BARE, parity=checks))).text


def test_pictures_in_the_page_are_lossless() -> None:
    data = report()
    uris = re.findall(r"data:image/png;base64,([^\"]*)", render_report(data))
    assert len(uris) == 6
    with av.open(io.BytesIO(base64.b64decode(uris[1]))) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(decoded, data.pictures[0].reconstruction)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium executable on the PATH")
def test_browser_shows_the_page_without_errors_in_dark_colours(tmp_path: Path) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(render_report(report(video=None)), encoding="utf-8")
    options = "headless no-sandbox disable-gpu enable-logging=stderr blink-settings=preferredColorScheme=0"
    command = ["chromium", *(f"--{option}" for option in options.split()), "--window-size=500,1400"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in done.stderr
    with av.open(str(shot)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert int(picture[2, 2].astype(int).sum()) < 150 and picture.std() > 20
