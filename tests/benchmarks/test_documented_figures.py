"""Figures in README.md and docs against the committed results that they come from, at the precision
that they are printed in.

Tables are read by their headers and prose by patterns, and nothing measured stands here: after a
new measurement these tests say what the documents have to say. A pattern that is not found means
that a sentence was reworded: adapt it here, so that the sentence stays checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README, PERFORMANCE, OPENVINO, TRAINING = (
    "README.md",
    "docs/performance.md",
    "docs/openvino.md",
    "docs/training.md",
)

NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
DIGITS = 4
"""Of every number in a result file."""
DIRECTIONS = {"encode": "encoder", "decode": "decoder"}
SPEED_SECTIONS = ("speed", "speed 256x256 17 frames")
"""Those of which the tables must have every clip."""


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


# Numbers ------------------------------------------------------------------------------------------


def agrees(printed: str, value: float, about: float = 0.0) -> bool:
    """Whether `printed` is `value`, rounded to the decimals that it has, or to the digits of a
    result file where it has more of them; `about` allows as large a share more."""
    plain = printed.replace(",", "")
    half_printed = 0.5 * 10.0 ** -len(plain.partition(".")[2])
    half_stored = 0.5 * 10.0 ** (math.floor(math.log10(abs(value))) + 1 - DIGITS) if value else 0.0
    return abs(float(plain) - value) <= max(half_printed, half_stored) * (1 + 1e-9) + about * abs(value)


def complaint(where: str, printed: str, value: float) -> list[str]:
    """What there is to say about a printed number: nothing if it is right."""
    return [] if agrees(printed, value) else [f"{where}: says {printed}, the result file {value:.4g}"]


def numbers(document: str, pattern: str) -> list[str]:
    """The groups of a pattern, `#` for a number, in the text of a document, whose lines may break
    anywhere.
    """
    found = re.search(pattern.replace("#", NUMBER), " ".join(text_of(document).split()))
    assert found, f"{document} has no sentence like: {pattern}"
    return list(found.groups())


def check_sentence(document: str, pattern: str, values: Sequence[float]) -> None:
    """The numbers of a sentence, in order."""
    printed = numbers(document, pattern)
    wrong = [
        line for one, value in zip(printed, values, strict=True) for line in complaint(pattern, one, value)
    ]
    assert not wrong, "\n".join([document, *wrong])


# Tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]
    before: str
    """Of its section, the text before it."""


def tables_of(text: str) -> list[Table]:
    """All tables of a Markdown text, without emphasis."""
    found, before, lines = [], "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(
                [
                    cell.strip().replace("**", "").replace("`", "")
                    for cell in line.strip().strip("|").split("|")
                ]
            )
            continue
        if lines:
            found.append(Table(lines[0], lines[2:], before))
            lines = []
        before = "" if line.startswith("#") else f"{before} {line}"
    return found


def tables_with(pattern: str, column: int | None = None, document: str = PERFORMANCE) -> list[Table]:
    """Those of a document of whose headers one (or that of a column) matches; at least one."""
    mine = [
        table
        for table in tables_of(text_of(document))
        if any(
            re.search(pattern, title)
            for title in (table.header if column is None else [table.header[column]])
        )
    ]
    assert mine, f"{document} has no table with a column like: {pattern}"
    return mine


def parts_of(cell: str, count: int, where: str) -> list[str]:
    """A cell's values, of which a column of several has as many, with slashes between."""
    parts = cell.split("/")
    assert len(parts) == count, f"{where}: {cell!r} holds {len(parts)} values; expected {count}"
    return parts


def only_number(cell: str, where: str) -> str:
    found = re.findall(NUMBER, cell)
    assert len(found) == 1, f"{where}: {cell!r} holds {len(found)} numbers; expected one"
    return str(found[0])


# Speed of the runtime -----------------------------------------------------------------------------


def speed_clips(preset: str = "S") -> dict[tuple[int, int, str], dict[str, Any]]:
    """Clips of the speed sections by size, frames and direction."""
    sections = {
        name: section for name, section in result("runtime-cpu").items() if name.split()[0] == "speed"
    }
    mine = [section for section in sections.values() if section["preset"] == preset]
    return {
        (section["size"], clip["frames"], clip["direction"]): clip
        for section in mine
        for clip in section["clips"]
    }


def speeds(size: int, frames: int, form: str, what: str) -> list[float]:
    """Of encode and decode."""
    return [speed_clips()[size, frames, direction]["forms"][form][what] for direction in DIRECTIONS.values()]


def forms_of(column: str) -> list[str]:
    """The forms that a column of a speed table has: of a list of chunk lengths or precisions, in
    its order.
    """
    hints = re.findall("fp32|bf16", column) if "OpenVINO" in column else []
    if stream := re.search(r"streams? (?:of|in chunks of) ([\d /,]*\d) frames", column):
        streams = [f"stream of {frames} frames" for frames in re.findall(r"\d+", stream[1])]
        return [f"openvino {hint}, {name}" for hint, name in product(hints, streams)] or streams
    if hints:
        return [f"openvino {hint}" for hint in hints]
    names = {"reference form": "reference", "PyTorch": "wfvae", "ONNX Runtime": "onnxruntime"}
    found = [form for words, form in names.items() if words in column]
    assert len(found) == 1, (
        f"{column!r} is no column that this test knows; expected one of {', '.join(names)}, OpenVINO or a"
        " stream"
    )
    return found


def speed_complaints(table: Table, told: set[tuple[int, int, str]]) -> list[str]:
    """Of one table. Cells hold seconds (s) and speed by the reference form (x), or what the header
    says: `by direct`, `by reference`.
    """
    clips, wrong = speed_clips(), []
    for row in table.rows:
        label = f"{table.header[0]}, {row[0]}"
        frames, size = re.search(r"(\d+) frames", label), re.search(r"(\d+)x\1\b", label)
        direction = re.search("encode|decode", label)
        assert frames and size and direction, f"{label}: expected frames, a size and encode or decode"
        key = (int(size[1]), int(frames[1]), DIRECTIONS[direction[0]])
        assert key in clips, f"{label}: no such clip is in the results"
        told.add(key)
        for column, cell in zip(table.header[1:], row[1:], strict=True):
            where, forms = f"{label}, {column}", forms_of(column)
            by_header = (
                "time_by_direct"
                if "by direct" in column
                else "speed_by_reference"
                if "by reference" in column
                else None
            )
            if not re.search(r"\d", cell):
                continue  # not measured
            for form, part in zip(forms, parts_of(cell, len(forms), where), strict=True):
                for printed, unit in re.findall(NUMBER + r"\s*([sx]?)", part):
                    what = (
                        "seconds"
                        if unit == "s"
                        else by_header or ("speed_by_reference" if unit == "x" else None)
                    )
                    assert what, f"{where}: {cell!r} has no unit, and the header does not say by what"
                    value = clips[key]["forms"][form][what]
                    assert value is not None, f"{where}: {what} was not measured"
                    wrong += complaint(f"{where} ({form}, {what})", printed, value)
    return wrong


def test_speed_tables() -> None:
    told: set[tuple[int, int, str]] = set()
    wrong = [
        line for table in tables_with(r"^\d+ frames", column=0) for line in speed_complaints(table, told)
    ]
    assert not wrong, "\n".join(wrong)
    measured = result("runtime-cpu")
    wanted = {
        (measured[name]["size"], clip["frames"], clip["direction"])
        for name in SPEED_SECTIONS
        if name in measured
        for clip in measured[name]["clips"]
    }
    assert wanted <= told, f"no table has {sorted(wanted - told)}"


def test_runs_behind_the_speed_tables() -> None:
    """All alike, or those of longer clips in parentheses."""
    runs, *other = numbers(PERFORMANCE, r"[Mm]edians of (\d+) interleaved runs(?: \((\d+) frames: (\d+)\))?")
    for (size, frames, direction), clip in speed_clips().items():
        told = other[1] if str(frames) == other[0] else runs
        assert clip["runs"] == int(told), (
            f"{size}x{size}, {frames} frames, {direction}: says {told} runs, the result file {clip['runs']}"
        )


def test_openvino_streams_are_told() -> None:
    """In a sentence, or in a column of the tables, which the test above checks."""
    columns = [column for table in tables_with(r"^\d+ frames", column=0) for column in table.header]
    if any(
        "OpenVINO" in column and "stream" in column for column in columns
    ) and "frames took" not in text_of(PERFORMANCE):
        return
    pattern = (
        r"streams of (\d+) frames took # and # \(fp32\), # and # \(bf16\) of its direct time at (\d+)x\d+, #"
        r" and #, # and # at (\d+)x"
    )
    chunk, *first, first_size, a, b, c, d, second_size = numbers(PERFORMANCE, pattern)
    wrong = []
    for size, printed in ((first_size, first), (second_size, [a, b, c, d])):
        values = [
            x
            for h in ("fp32", "bf16")
            for x in speeds(int(size), 17, f"openvino {h}, stream of {chunk} frames", "time_by_direct")
        ]
        wrong += [
            line
            for one, value in zip(printed, values, strict=True)
            for line in complaint(f"OpenVINO at {size}", one, value)
        ]
    assert not wrong, "\n".join(wrong)


def test_speed_without_avx512() -> None:
    [section] = result("runtime-cpu-avx2").values()
    forms = {clip["direction"]: clip["forms"] for clip in section["clips"]}
    assert {(clip["frames"], clip["runs"]) for clip in section["clips"]} == {(17, 5)} and section[
        "size"
    ] == 128

    def both(form: str, what: str) -> list[float]:
        return [forms[direction][form][what] for direction in DIRECTIONS.values()]

    ratios = [*both("onnxruntime", "speed_by_reference"), *both("openvino fp32", "speed_by_reference")]
    values = [*both("reference", "seconds"), *ratios]
    pattern = (
        r"encodes 17 frames in # s and decodes them in # s\. .*? is # and # x as fast, OpenVINO's in fp32 #"
        r" and # x,"
    )
    check_sentence(PERFORMANCE, pattern, values)
    chunks = ("stream of 8 frames", "stream of 16 frames")
    streams = [
        forms[direction][form]["time_by_direct"] for direction in DIRECTIONS.values() for form in chunks
    ]
    streams += both("openvino fp32, stream of 16 frames", "time_by_direct")
    pattern = (
        "chunks of 8 / 16 frames, encode took # / # and decode # / # of .*?, in chunks of 16 frames # and #"
        " of OpenVINO's"
    )
    check_sentence(PERFORMANCE, pattern, streams)
    check_sentence(
        README,
        r"without AVX-512 \(17 frames of 128x128, too\) ONNX Runtime is # x and # x, OpenVINO in fp32 # x and"
        r" # x as fast as that form",
        ratios,
    )


def test_parity_without_avx512() -> None:
    rows = result("openvino-parity-avx2")["rows"]
    assert len({row["model"] for row in rows}) == 4 and all(row["passed"] for row in rows)

    def largest(bundle: str, statement: str) -> list[float]:
        return [
            max(row[statement][d]["max_abs"] for row in rows if row["bundle"] == bundle) for d in DIRECTIONS
        ]

    exact = [
        row[statement][d]
        for row in rows
        if row["bundle"] == "fp32"
        for statement in ("plan_invariance", "stream_direct")
        for d in DIRECTIONS
    ]
    assert len(exact) == 16 and all(one["equal_bits"] and one["checks"] for one in exact)
    values = [
        *largest("fp32", "model_float64"),
        *largest("bf16", "plan_invariance"),
        *largest("bf16", "model_float64"),
    ]
    printed = re.search(
        r"and are (\S+) / (\S+) from the model\..*?by up to (\S+) / (\S+), within (\S+) / (\S+) of",
        text_of(OPENVINO),
        re.DOTALL,
    )
    assert printed
    for one, value in zip(printed.groups(), values, strict=True):
        assert float(one) == pytest.approx(value, rel=0.05), (one, value)


def test_speed_in_the_readme() -> None:
    model = result("model-cpu")["speed"]
    ratios = [model[direction]["ratio"] for direction in DIRECTIONS]
    check_sentence(
        README, "encode # x and decode # x as fast as the same network in the published code's", ratios
    )

    form, by_reference = "as fast as that form", "speed_by_reference"
    pattern = (
        rf"direct inference is # x \(encode\) and # x \(decode\) {form}.{{0,120}}?# x and # x at 256x256"
    )
    check_sentence(
        README,
        pattern,
        [value for size in (128, 256) for value in speeds(size, 17, "onnxruntime", by_reference)],
    )
    hints = [
        value for hint in ("fp32", "bf16") for value in speeds(128, 17, f"openvino {hint}", by_reference)
    ]
    check_sentence(README, rf"OpenVINO is # x and # x {form}, in bf16 # x and # x", hints)

    pattern = (
        r"at 128x128 a stream of (\d+) frames in chunks of (\d+) costs # x and # x direct inference, "
        r"one of (\d+) frames # x and # x \(.{0,80}?# x at 256x256\)"
    )
    long, chunk, *printed_long, short, first, second, larger = numbers(README, pattern)
    stream = f"stream of {chunk} frames"
    values = [
        *speeds(128, int(long), stream, "time_by_direct"),
        *speeds(128, int(short), stream, "time_by_direct"),
        speeds(256, int(short), stream, "time_by_direct")[1],
    ]
    printed = [*printed_long, first, second, larger]
    wrong = [
        line for one, value in zip(printed, values, strict=True) for line in complaint(pattern, one, value)
    ]
    assert not wrong, "\n".join(wrong)


# Memory -------------------------------------------------------------------------------------------


def test_memory_tables() -> None:
    """A table of the tiny preset, unless its header or rows name another."""
    jobs = {
        (job["preset"], tuple(sorted(map(int, job["peak_mb"]))), job["direction"]): job
        for name, section in result("runtime-cpu").items()
        if name.split()[0] == "memory"
        for job in section["jobs"]
    }
    wrong, told = [], set()
    for table in tables_with("^ratio"):
        columns = {
            index: found[1]
            for index, title in enumerate(table.header)
            if (found := re.search(rf"{NUMBER} frames", title))
        }
        lengths = tuple(sorted(int(frames.replace(",", "")) for frames in columns.values()))
        for row in table.rows:
            where = f"memory, {row[0]}"
            direction, preset = (
                re.search("encode|decode", row[0]),
                re.search(r"\b(S|M|L)\b", f"{table.header[0]} {row[0]}"),
            )
            assert direction, f"{where}: expected encode or decode"
            key = (preset[1] if preset else "tiny", lengths, direction[0])
            assert key in jobs, f"{where}: {key} was not measured"
            told.add(key)
            for index, frames in columns.items():
                value = jobs[key]["peak_mb"][frames.replace(",", "")]
                wrong += complaint(f"{where}, {frames} frames", only_number(row[index], where), value)
            ratio = next(index for index, title in enumerate(table.header) if title.startswith("ratio"))
            wrong += complaint(f"{where}, ratio", only_number(row[ratio], where), jobs[key]["ratio"])
    assert not wrong, "\n".join(wrong)
    wanted = {
        ("tiny", tuple(sorted(map(int, job["peak_mb"]))), job["direction"])
        for job in result("runtime-cpu")["memory"]["jobs"]
    }
    assert wanted <= told, f"no table has {sorted(wanted - told)}"


# Other autoencoders -------------------------------------------------------------------------------


def peers_of(size: int) -> dict[str, dict[str, Any]]:
    """What was measured at a size, by title, with what is so at any size."""
    return {
        row["title"]: {**row, **case}
        for row in result("peers-cpu")["rows"]
        for case in row.get("sizes", ())
        if case["size"] == size and "not_measured" not in case
    }


def test_the_table_of_peers() -> None:
    wrong = []
    for table in tables_with("^ms per frame", column=0):
        size = re.search(r"frames of (\d+)x\1\b", table.before)
        assert size, "the text before the table of peers does not say: N frames of HxH"
        peers = peers_of(int(size[1]))
        for label, *cells in table.rows:
            title = re.sub(r"\s*\(.*\)$", "", label).replace(",", "")
            assert title in peers, f"{label}: {title!r} is not in the results"
            row = peers[title]
            for column, cell in zip(table.header[1:], cells, strict=True):
                where = f"{label}, {column}"
                if re.match("compression", column):
                    wrong += (
                        []
                        if cell == (told := "x".join(map(str, row["compression"])))
                        else [f"{where}: says {cell}, results {told}"]
                    )
                    continue
                if peak := re.match("peak of (encode|decode)", column):
                    value = row[peak[1]]["peak_mb"]
                elif "channels" in column:
                    value = row["latent_channels"]
                elif column.startswith("parameters"):
                    value = row["parameters"] / 1e6
                else:
                    assert column in DIRECTIONS, f"{column!r} is no column that this test knows"
                    value = row[column]["ms_per_frame"]
                wrong += complaint(where, only_number(cell, where), value)
    assert not wrong, "\n".join(wrong)


def test_peers_in_the_readme() -> None:
    peers = peers_of(max(result("peers-cpu")["job"]["sizes"]))

    def speed_by(one: str, other: str) -> list[float]:
        return [
            peers[other][direction]["ms_per_frame"] / peers[one][direction]["ms_per_frame"]
            for direction in DIRECTIONS
        ]

    runtime = "WF-VAE-S ONNX Runtime"
    pattern = (
        r"preset S on ONNX Runtime encodes # x and decodes # x as fast as Wan 2\.1's \(in PyTorch # x and #"
        r" x\), "
        r"# x and # x as HunyuanVideo's; LTX-Video's, .{0,80}?decodes # x as fast as ours"
    )
    wan, hunyuan = speed_by(runtime, "Wan 2.1"), speed_by(runtime, "HunyuanVideo")
    values = [*wan, *speed_by("WF-VAE-S PyTorch", "Wan 2.1"), *hunyuan, speed_by("LTX-Video", runtime)[1]]
    check_sentence(README, pattern, values)


# Length, size and number of streams ---------------------------------------------------------------


def scaled(section: str, way: str, direction: str, **wanted: Any) -> dict[str, Any]:
    """One row of the results of `scale.py`."""
    wanted |= {"way": way, "direction": direction}
    found = [
        row
        for row in result("scale-cpu")["sections"][section]
        if all(row.get(key) == value for key, value in wanted.items())
    ]
    assert len(found) == 1, f"{len(found)} results of {section}, {wanted}"
    return dict(found[0])


def test_memory_by_length() -> None:
    def peak(way: str, preset: str, frames: str) -> float:
        return float(
            scaled("length", way, "decoder", preset=preset, frames=int(frames.replace(",", "")))["peak_mb"]
        )

    pattern = r"the tiny preset takes # MB to decode # frames and # MB to decode #[;,.]"
    first, short, second, long = numbers(PERFORMANCE, pattern)
    wrong = complaint(f"tiny, {short} frames", first, peak("stream", "tiny", short))
    wrong += complaint(f"tiny, {long} frames", second, peak("stream", "tiny", long))
    pattern = (
        r"preset S at (\d+)x\1 takes # MB for # frames and # MB for #, where direct inference takes # MB for"
        r" #[;,.]"
    )
    _, first, short, second, long, direct, of = numbers(PERFORMANCE, pattern)
    for name, way, frames, printed in (
        ("stream", "stream", short, first),
        ("stream", "stream", long, second),
        ("direct", "direct", of, direct),
    ):
        wrong += complaint(f"S, {name}, {frames} frames", printed, peak(way, "S", frames))
    assert not wrong, "\n".join(wrong)


def test_predicted_lengths() -> None:
    """The shorter one of encode and decode."""
    pattern = r"no longer fits # GB from about # frames of (\d+)x\d+ on, or (?:about )?# of (\d+)x\d+"
    gigabytes, *printed = numbers(PERFORMANCE, pattern)
    crossings = [row for row in result("scale-cpu")["crossovers"] if row["preset"] == "S"]
    for frames, size in (printed[:2], printed[2:]):
        mine = [row for row in crossings if row["size"] == int(size)]
        assert mine and mine[0]["limit_bytes"] == float(gigabytes) * 1e9, (
            f"{size}x{size}: predicted for another limit, or not at all"
        )
        value = min(row["longest_by_measurement"] for row in mine)
        assert agrees(frames, value, about=0.05), (
            f"{size}x{size}: says about {frames}, the result file {value}"
        )


def test_streams_in_a_batch() -> None:
    pattern = (
        r"preset S at (\d+)x\1 encodes a frame in # ms alone and in # to # in batches of (\d+) to (\d+), "
        r"and decodes one in # ms alone and in # to # in batches"
    )
    size, *encode, fewest, most, alone, least, largest = numbers(PERFORMANCE, pattern)
    wrong = []
    for direction, printed in (("encoder", encode), ("decoder", [alone, least, largest])):
        rows = [
            row
            for row in result("scale-cpu")["sections"]["streams"]
            if (row["direction"], row["size"]) == (direction, int(size))
        ]
        assert {row["preset"] for row in rows} == {"S"}
        times = {row["rows"]: row["ms_per_frame"] for row in rows}
        batches = [value for count, value in times.items() if int(fewest) <= count <= int(most)]
        for one, value in zip(printed, (times[1], min(batches), max(batches)), strict=True):
            wrong += complaint(f"streams, {direction}", one, value)
    assert not wrong, "\n".join(wrong)


def test_short_streams_in_processes_of_their_own() -> None:
    pattern = r"decode streams of (\d+) frames cost .{0,60}?# x direct inference at (\d+)x\d+, # x at (\d+)x"
    frames, *printed = numbers(PERFORMANCE, pattern)
    for ratio, size in (printed[:2], printed[2:]):
        same = {"preset": "S", "frames": int(frames), "size": int(size)}
        stream, direct = (
            scaled("size", way, "decoder", **same)["ms_per_frame"] for way in ("stream", "direct")
        )
        assert agrees(ratio, stream / direct), (
            f"{size}x{size}: says {ratio}, the result file {stream / direct:.4g}"
        )


# Around the engine, and roofs ---------------------------------------------------------------------


def test_the_table_of_overhead() -> None:
    stages = {
        "of which pixels": ("pixels to network", "postprocess"),
        "waiting for files": ("waiting for the reader", "waiting for the writer"),
    }
    totals = {"outside the engine": "outside_engine", "without overlap": "serial_outside_engine"}
    jobs = {job["job"]: job for job in result("overhead-cpu")["jobs"]}
    wrong = []
    [table] = tables_with("^outside the engine")
    assert {row[0] for row in table.rows} == set(jobs)
    for label, *cells in table.rows:
        for column, cell in zip(table.header[1:], cells, strict=True):
            shares = jobs[label]["share_of_wall"]
            value = (
                jobs[label][totals[column]]
                if column in totals
                else sum(shares.get(stage, 0.0) for stage in stages[column])
            )
            wrong += complaint(f"overhead, {label}, {column}", only_number(cell, label), 100 * value)
    assert not wrong, "\n".join(wrong)


def test_the_table_of_roofs() -> None:
    engines = {
        "ONNX Runtime fp32": "onnxruntime",
        "OpenVINO fp32": "openvino",
        "OpenVINO bf16": "openvino-bf16",
    }
    columns = {
        "GFLOP/s": ("gflop_per_second", 1),
        "best convolution": ("of_best_convolution", 100),
        "matrix product": ("of_gemm", 100),
    }
    measured = result("roofline-cpu")
    rows = {(row["engine"], row["what"]): row for row in measured["rows"] if row["kind"] == "graph"}
    wrong = []
    [table] = tables_with("GFLOP/s encode / decode")
    for label, *cells in table.rows:
        for column, cell in zip(table.header[1:], cells, strict=True):
            [(key, factor)] = [found for words, found in columns.items() if words in column]
            for graph, part in zip(DIRECTIONS.values(), parts_of(cell, 2, label), strict=True):
                wrong += complaint(
                    f"{label}, {column}, {graph}",
                    only_number(part, label),
                    factor * rows[engines[label], graph][key],
                )
    assert not wrong, "\n".join(wrong)
    check_sentence(PERFORMANCE, "Memory moves # GB/s", [measured["roofs"]["gb_per_second"]])
    whole = sum(rows["onnxruntime", f"{graph}.direct"]["flop"] for graph in DIRECTIONS.values()) / 1e9
    of_network = sum(one["gflop"] for one in result("model-cpu")["speed"].values())
    check_sentence(PERFORMANCE, r"\(# instead of # GFLOP for 17 frames there and back\)", [whole, of_network])


# The model that ships -----------------------------------------------------------------------------


def test_quality_of_the_model_that_ships() -> None:
    scores = result("tiny-model")["held_out"]["paintings_at_128x128"]
    check_sentence(
        README, "# dB and SSIM # on held-out clips of 128x128", [scores["psnr_db"], scores["ssim"]]
    )
    measured = result("runtime-cpu")
    losses = [measured[name]["largest_loss_db"]["openvino bf16"] for name in ("quality", "quality 256x256")]
    told = r"gains at least # dB \(128x128\) and costs at most # dB \(256x256\)"
    check_sentence(OPENVINO, told, [-losses[0], losses[1]])


def test_scores_of_the_model_that_ships() -> None:
    measured = result("tiny-model")
    kinds = {
        "128x128 paintings": "paintings_at_128x128",
        "windows of 256x256 paintings": "windows_of_256x256",
    }
    [table] = tables_with("128x128 pixels of", column=0, document=TRAINING)
    wrong, told = [], set()
    for label, psnr, ssim in table.rows:
        kind = kinds[label.partition(",")[0]]
        told.add(kind)
        scores = measured["held_out"][kind]
        wrong += [
            line
            for cell, key in ((psnr, "psnr_db"), (ssim, "ssim"))
            for line in complaint(label, only_number(cell, label), scores[key])
        ]
    assert told == set(measured["held_out"]) and not wrong, "\n".join(wrong)
    videos = [measured["videos"][f"{name}.mp4"] for name in ("bigbuckbunny", "bikes", "carphone_pristine")]
    sentence = "bigbuckbunny # dB and #, bikes # dB and #, carphone_pristine # dB and #"
    check_sentence(TRAINING, sentence, [video[key] for video in videos for key in ("psnr_db", "ssim")])
    check_sentence(
        TRAINING, "now the same frames reach #, # and # dB", list(measured["psnr_db_after_frames"].values())
    )


def test_the_stream_of_the_model_that_ships() -> None:
    stream, wrong = result("tiny-model")["stream"], []
    shots = {tuple(shot["frames"]): shot for shot in stream["shots"]} | {(): stream}
    [table] = tables_with("stage 5", document=TRAINING)
    told = set()
    for label, *_, last in table.rows:
        frames = tuple(map(int, re.findall(r"(\d+) to (\d+)", label)[0])) if " to " in label else ()
        told.add(frames)
        places = shots[frames]["psnr_db_by_place_in_latent"]
        wrong += [
            line
            for cell, value in zip(last.split(","), places, strict=True)
            for line in complaint(label, cell.strip(), value)
        ]
    assert told == set(shots) and not wrong, "\n".join(wrong)
    [table] = tables_with("levels of 255, means of 8x8", column=0, document=TRAINING)
    for label, *_, last in table.rows:
        places = shots[tuple(map(int, re.findall(r"(\d+) to (\d+)", label)[0]))][
            "coarse_error_change_by_place_in_latent"
        ]
        wrong += [
            line
            for cell, value in zip(last.split(","), places, strict=True)
            for line in complaint(label, cell.strip(), value)
        ]
    assert len(table.rows) == len(stream["shots"]) and not wrong, "\n".join(wrong)
    seams = stream["error_change_at_seams_over_within_steps"]
    check_sentence(
        TRAINING,
        "# x as much where steps of the encoder meet .*?, # x where those of the decoder do",
        [seams["encode"], seams["decode"]],
    )
    meeting = []
    for shot in stream["shots"]:
        first, *others = shot["error_change_by_place_in_latent"]
        meeting.append(first / (sum(others) / len(others)))
    check_sentence(
        TRAINING,
        "it is # and # x as much as between their other frames in the shots of shapes, # x in the titles",
        meeting,
    )
    afar, still = (
        [
            100 * stream[f"{where}_share"],
            stream[f"{where}_change_levels"],
            stream[f"{where}_change_levels_99th_percentile"],
        ]
        for where in ("afar", "still")
    )
    check_sentence(
        TRAINING,
        r"\(# % of the pixels\) pictures change by # levels of 255 from frame to frame, # at the 99th",
        afar,
    )
    check_sentence(TRAINING, r"stand still \(# %\) it is # levels, # at the 99th", still)
    check_sentence(
        TRAINING,
        "The stream has # dB in the mean and # in its last frame",
        [stream["psnr_db"], stream["psnr_db_lowest"]],
    )


def test_the_flicker_of_the_model_that_ships() -> None:
    """The rows of the table, each a video and a kind of comparison, and what the method itself
    costs.
    """
    measured, wrong = result("flicker"), []
    videos = {"what ships": "stream", "x264 at crf 28": "x264, crf 28"} | {
        name: name for name in ("softened original", "error turned over")
    }
    kinds = {
        "flicker over 5 frames": "one_latent",
        "flicker over 13 frames": "three_latents",
        "all differences": "all_differences",
    }
    [table] = tables_with("worst of 56 quarters", document=TRAINING)
    for label, *cells in table.rows:
        video, _, kind = label.removesuffix(" at most").partition(", ")
        found = measured["jod"][videos[video]][kinds[kind]]
        found = found["at_most"] if label.endswith(" at most") else found
        quarters = [found["worst_quarter"], found["quarters_seen"]] if "quarters" in found else []
        told = [float(cell) for cell in cells if cell.strip()]
        assert found.get("quarters", 56) == 56 and len(told) == len(found["shots"]) + len(quarters)
        pairs = zip(told, [*found["shots"], *quarters], strict=True)
        wrong += [
            f"{label}: {given} is told, {value} measured"
            for given, value in pairs
            if abs(given - value) > 0.0051
        ]
    assert len(table.rows) == 11 and not wrong, "\n".join(wrong)
    shots = [f"frames {first} to {last}" for first, last in measured["shots"]]
    assert [name.removesuffix(" (titles)") for name in table.header[1:4]] == shots
    lost = [
        max(10 - jod for jod in measured["jod"]["softened original"][kind]["shots"])
        for kind in ("one_latent", "three_latents")
    ]
    check_sentence(TRAINING, "the method itself, loses # with 5 frames and # with 13", lost)
    lowest = measured["jod"]["stream"]["three_latents"]["lowest_quarters"][:3]
    assert all(quarter["frames"] == [0, 23] for quarter in lowest)
    check_sentence(
        TRAINING, "those of the stream's first 24 frames: #, # and #", [quarter["jod"] for quarter in lowest]
    )
    ours, theirs = (measured["jod"][name]["three_latents"]["shots"] for name in ("stream", "x264, crf 28"))
    assert all(10 - jod < 0.5 for jod in ours) and all(
        one > other - 0.05 for one, other in list(zip(ours, theirs, strict=True))[1:]
    )
    missing = [100 * share for share in measured["jod"]["stream"]["three_latents"]["missing_share"]]
    check_sentence(
        TRAINING, "an error counts as steady: #, # and # % of the frames of the means are missing", missing
    )
    at_most, of_blur = (
        measured["jod"][name]["three_latents"]["at_most"]["shots"] for name in ("stream", "softened original")
    )
    assert all(abs(one - other) < 0.035 for one, other in zip(at_most, of_blur, strict=True))  # "within 0.03"
    assert (
        measured["jod"]["error turned over"]["three_latents"]["quarters_seen"] > 20
    )  # what flickers does not pass
    stream, blur = (
        measured["jod"][name]["all_differences"]["shots"] for name in ("stream", "softened original")
    )
    assert all(soft < ours for soft, ours in list(zip(blur, stream, strict=True))[:2])  # where shapes move


def test_the_flicker_of_other_streams() -> None:
    worst, quarters, at_most = [], 0, []
    for seed in (8, 9, 10, 11):
        measured = result(f"flicker-seed{seed}")
        assert (measured["seed"], measured["checkpoint_sha256"]) == (
            seed,
            result("flicker")["checkpoint_sha256"],
        )
        kinds = [measured["jod"]["stream"][kind] for kind in ("one_latent", "three_latents")]
        assert all(found["quarters_seen"] == 0 for found in kinds)
        worst.append(min(found["worst_quarter"] for found in kinds))
        quarters += kinds[0]["quarters"]
        at_most.append((kinds[1]["at_most"]["quarters_seen"], kinds[1]["at_most"]["worst_quarter"]))
    (first, lowest), *_ = at_most
    assert lowest == min(jod for _, jod in at_most)
    pattern = "at most, # of them are, # of which in the first of these, down to #"
    check_sentence(TRAINING, pattern, [sum(count for count, _ in at_most), first, lowest])
    check_sentence(
        TRAINING, "their worst quarters have #, #, # and #, and none of # is below 9", [*worst, quarters]
    )


def test_the_table_of_cuts() -> None:
    [table] = tables_with("last before", document=TRAINING)
    wrong = []
    for place, ((label, *cells), scores) in enumerate(
        zip(table.rows, result("tiny-model")["cuts"], strict=True)
    ):
        assert label.startswith(f"place {place}") and scores["place_in_latent"] == place
        values = [
            scores["psnr_db_before"],
            *scores["psnr_db_behind"][:4],
            scores["psnr_db_behind"][7],
            scores["psnr_db_later"],
        ]
        pairs = zip(cells, values, strict=True)
        wrong += [line for cell, value in pairs for line in complaint(label, only_number(cell, label), value)]
    assert not wrong, "\n".join(wrong)


def test_titles_that_pass() -> None:
    """The rows of the model that ships, by pixels per frame."""
    measured, wrong = result("tiny-model")["passing_titles"], []
    [table] = tables_with("pixels per frame", column=0, document=TRAINING)
    assert table.header[1:] == list(measured)
    for label, key in (("PSNR", "psnr_db"), ("change along the motion", "change_along_motion_levels")):
        *_, cells = [row[1:] for row in table.rows if row[0].startswith(label)]
        pairs = zip(cells, measured.values(), strict=True)
        wrong += [
            line for cell, scores in pairs for line in complaint(label, only_number(cell, label), scores[key])
        ]
    assert not wrong, "\n".join(wrong)


def test_the_table_of_the_ablation() -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in result("ablation")["rows"]:
        rows.setdefault(row["variant"].partition(" (")[0], []).append(row)
    [table] = tables_with("wavelet term", document=TRAINING)
    wrong = []
    for label, *cells in table.rows:
        variant = rows.pop(label.partition(" (")[0])
        for cell, key in zip(cells, ("psnr_db", "ssim", "wavelet_term"), strict=True):
            values = [row[key] for row in variant]
            if any(values):
                parts = parts_of(cell, len(values), label)
                wrong += [
                    line
                    for part, value in zip(parts, values, strict=True)
                    for line in complaint(label, only_number(part, label), value)
                ]
    assert not rows and not wrong, "\n".join(wrong)


def test_memory_and_shares_of_training() -> None:
    measured = result("training-cpu")

    memory, recipe = measured["memory"], measured["memory_recipe"]
    plain, frugal = memory["plain"], memory["checkpointing"]
    costs = [
        frugal["peak_mb"],
        plain["peak_mb"],
        frugal["activations_mb"],
        plain["activations_mb"],
        frugal["seconds_ratio"],
    ]
    check_sentence(
        TRAINING,
        "peak # instead of # MB, of which the step itself # instead of # MB .*? in # x the time",
        costs,
    )
    plain, frugal = recipe["plain"], recipe["checkpointing"]
    costs = [
        frugal["peak_mb"],
        plain["peak_mb"],
        frugal["activations_mb"],
        plain["activations_mb"],
        frugal["seconds_ratio"],
    ]
    sentence = (
        r"a step peaks at # instead of # MB, of which the step itself # instead of # MB, in # x the time \(of"
        r" one step each"
    )
    check_sentence(TRAINING, sentence, costs)
    assert all(section["checkpointing"]["peak_mb_ratio"] <= 0.5 for section in (memory, recipe))
    loading, folder = measured["loading"], measured["loading_folder"]
    fed = [part[key] for part in (loading, folder) for key in ("frames_per_second", "processors_used")]
    check_sentence(
        TRAINING, r"make # frames a second .*? \(# processors used\) and # of those three videos \(#\)", fed
    )
    shares = [
        100 * measured[section][share]
        for section in ("time", "time_folder")
        for share in ("compute", "data_wait")
    ]
    check_sentence(
        TRAINING,
        r"spends # % of its time in .*? waits # % of it for data; on a folder .*? # % and # %\.",
        shares,
    )


# What these tests rest on -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "value", "right"),
    [
        ("1.47", 1.473, True),
        ("1.47", 1.475, True),  # a result of 1.4749, rounded twice
        ("1.48", 1.475, True),
        ("1.47", 1.476, False),
        ("1,094", 1094.0, True),
        ("1,093", 1094.0, False),
        ("12,344", 12340.0, True),
        ("12,346", 12340.0, False),
        ("0.04", 0.0399, True),
        ("7.9", 7.84, False),
        ("0", 0.0, True),
    ],
)
def test_agreement_at_the_printed_precision(printed: str, value: float, right: bool) -> None:
    assert agrees(printed, value) is right


def test_what_a_speed_column_is_about() -> None:
    assert forms_of("stream of 4 / 8 frames by direct") == ["stream of 4 frames", "stream of 8 frames"]
    assert forms_of("OpenVINO fp32 / bf16 stream of 16 frames") == [
        f"openvino {hint}, stream of 16 frames" for hint in ("fp32", "bf16")
    ]
    assert forms_of("our PyTorch") == ["wfvae"] and forms_of("OpenVINO bf16 direct") == ["openvino bf16"]
    with pytest.raises(AssertionError, match="no column that this test knows"):
        forms_of("something new")


def test_a_wrong_cell_is_found() -> None:
    """The first table with its numbers doubled, each of which then is wrong."""
    first = tables_with(r"^\d+ frames", column=0)[0]
    doubled = [
        [row[0], *(re.sub(NUMBER, lambda found: str(2 * float(found[1])), cell) for cell in row[1:])]
        for row in first.rows
    ]
    count = sum(len(re.findall(NUMBER, cell)) for row in first.rows for cell in row[1:])
    assert len(speed_complaints(Table(first.header, doubled, ""), set())) == count > 0
