"""The program as a user meets it: help, exit codes, one-line errors, JSON, progress."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.program import Program, clip, command, names, on_terminal, run_process, save, stored
from wfvae.cli import main as cli
from wfvae.runtime import Bundle, encode_video
from wfvae.runtime.jobs import Report

REPORT_KEYS = {field.name for field in dataclasses.fields(Report)} | {"frames_per_second"}


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Path]) -> Path:
    return exported("4x8x8-trilinear")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("video") / "in.mp4", clip(13))


@pytest.fixture(scope="module")
def store(opened: Callable[..., Bundle], video: Path) -> Path:
    store = video.with_name("z.zarr")
    encode_video(opened("4x8x8-trilinear"), video, store)
    return store


# Help ---------------------------------------------------------------------------------------------


def test_help_lists_every_command(program: Program) -> None:
    outcome = program("--help")
    assert outcome.code == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^ +{name}\s+\w", outcome.out, re.MULTILINE), name
    assert "--resume" in outcome.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_explains_every_argument(program: Program, name: str) -> None:
    outcome = program(name, "--help")
    assert outcome.code == 0
    parser = next(action for action in cli.build_parser()._actions if action.dest == "command")
    assert isinstance(parser.choices, dict)
    for action in parser.choices[name]._actions:
        for word in action.option_strings or [action.metavar]:
            assert str(word) in outcome.out, word
        assert action.help or action.metavar in outcome.out, action.dest
    assert f"wfvae {name}" in outcome.out.split("\n\n", 1)[1], "an example"
    assert max(map(len, outcome.out.splitlines())) <= 140


def test_version_option_prints_name_and_version(program: Program) -> None:
    outcome = program("--version")
    assert (outcome.code, outcome.out.split()[0]) == (0, "wfvae")


def test_help_and_streaming_without_torch_installed_work(bundle: Path, video: Path, tmp_path: Path) -> None:
    code = """
import sys
for name in ("torch", "onnx", "polygraphy", "lpips"):
    sys.modules[name] = None
from wfvae.cli import main as cli
for name in cli.COMMANDS:
    try:
        cli.main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
assert not {"numpy", "onnxruntime", "av", "zarr"} & {name for name, module in sys.modules.items() if module} - NEEDED
bundle, video, folder = sys.argv[1:]
assert cli.main(["reconstruct", bundle, video, folder + "/r.mkv"]) == 0
assert "zarr" not in sys.modules
assert cli.main(["encode", bundle, video, folder + "/z.zarr"]) == 0
assert cli.main(["decode", bundle, folder + "/z.zarr", folder + "/out.mp4"]) == 0
assert cli.main(["inspect", bundle]) == cli.main(["inspect", video]) == cli.main(["plan", bundle, "--size", "64x64"]) == 0
print("MISSING", file=sys.stderr)
assert cli.main(["export", "nowhere", folder + "/b"]) == 2
assert cli.main(["demo", "--out", folder + "/demo"]) == 2
"""
    code = code.replace("NEEDED", '{"numpy"}')
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle), str(video), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stderr.split("MISSING\n")
    assert before == ""
    complaints = after.splitlines()
    assert len(complaints) == 2
    assert all("pip install 'wfvae[export]'" in line for line in complaints)


# Exit codes and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "COMMAND"),
        ("foo", "invalid choice: 'foo'"),
        ("encode", "BUNDLE, VIDEO, LATENTS"),
        ("encode B V", "LATENTS"),
        ("encode B V z.zarr extra", "extra"),
        ("encode B V z.zarr --nonsense", "--nonsense"),
        ("encode B V z.zarr --chunk 0", "'0' is not an integer of at least 1"),
        ("encode B V z.zarr --chunk -3", "'-3' is not an integer of at least 1"),
        ("encode B V z.zarr --threads 100000", "number of threads"),
        ("encode B V z.zarr --limit inf", "not a number of bytes"),
        ("encode B V z.zarr --limit nan", "not a number of bytes"),
        ("encode B V z.zarr --limit 1K", "more than the limit"),
        ("encode B V z.zarr --device -1", "'-1' is not an integer"),
        ("encode B V z.zarr --checkpoint-every nan", "not a time"),
        ("encode B V z.zarr --checkpoint-every -1", "not a time"),
        ("encode B - z.zarr --raw 3x", "expected WIDTHxHEIGHT"),
        ("encode B V z.zarr --raw 48x32", "raw frames are read from a pipe only"),
        ("encode B V z.zarr --fps 25", "for a directory of images only"),
        ("encode B V z.zarr --fps 0", "'0' is not a frame rate"),
        ("encode B V z.zarr --fps 1e999999999", "is not a frame rate"),
        ("encode B V z.zarr --fps 1/0", "is not a frame rate"),
        ("encode B - z.zarr --fps 25", "states its own"),
        ("encode B V z.txt", "use one of .safetensors, .npy, .zarr"),
        ("encode B V z", "use one of .safetensors, .npy, .zarr"),
        ("encode B V nowhere/z.npy", "the directory 'nowhere' for 'z.npy' does not exist"),
        ("encode B V D.zarr", "exists and is no Zarr store"),
        ("encode B V D.npy", "'D.npy' exists and is not a file"),
        ("encode B nothing.mp4 z.zarr", "no such file: 'nothing.mp4'"),
        ("encode B D.zarr z.zarr", "no images in 'D.zarr'"),
        ("encode nowhere V z.zarr", "nowhere is not a bundle"),
        ("encode V V z.zarr", "is not a bundle"),
        ("encode Z V z.zarr", "is not a bundle"),
        ("decode B nothing.zarr o.mp4", "no such latents: 'nothing.zarr'"),
        ("decode B V o.mp4", "use one of .safetensors, .npy, .zarr"),
        ("decode B D.zarr o.mp4", "cannot read 'D.zarr' as latents"),
        ("decode B Z o.xyz", "use one of .mp4"),
        ("decode B Z o", "use one of .mp4"),
        ("decode B Z nowhere/o.mp4", "the directory 'nowhere' for 'o.mp4' does not exist"),
        ("decode B Z Z", "is the input itself"),
        ("decode B Z V --audio-from V", "is the input itself"),
        ("decode B Z o.mp4 --audio-from nothing.mp4", "no such file: 'nothing.mp4'"),
        ("decode B Z o.mp4 --container matroska", "it is for -"),
        ("decode B Z - --container nonsense", "no container format 'nonsense'"),
        ("decode B Z o.mp4 --codec nonsense", "no video encoder nonsense; choose one of"),
        ("decode B Z o.webm --codec libx264", "cannot hold libx264 video"),
        ("decode B Z o.mp4 --crf nan", "not a quality"),
        ("decode B Z o.mp4 --crf -5", "not a quality"),
        ("reconstruct B V V", "is the input itself"),
        ("reconstruct B V L", "is the input itself"),
        ("reconstruct B V o.txt", "use one of .mp4"),
        ("plan B --size 0x0", "'0x0' is not a size; expected HEIGHTxWIDTH"),
        ("plan B --size 64", "'64' is not a size"),
        ("plan B", "--size"),
        ("plan B --size 64x64 --limit 1K", "more than the limit"),
        ("plan Z --size 64x64", "is not a bundle"),
        ("inspect nothing", "nothing does not exist"),
        ("inspect D.zarr", "cannot read 'D.zarr' as latents"),
        ("export nowhere b", "nowhere does not exist"),
        ("export B b", "config.json"),
        ("export C B", "--overwrite"),
        ("export C b --opset 3", "opset is 3"),
        ("export C b --size 33x33", "multiples of 8"),
        ("verify nowhere", "nowhere is not a bundle"),
        ("verify B --frames 0", "'0' is not an integer of at least 1"),
    ],
)
def test_wrong_use_prints_one_line_exits_2_and_leaves_no_file(
    program: Program,
    bundle: Path,
    video: Path,
    store: Path,
    reference_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    says: str,
) -> None:
    work = tmp_path / "work"
    (work / "D.zarr").mkdir(parents=True)
    (work / "D.npy").mkdir()
    (work / "L.mp4").symlink_to(video)
    monkeypatch.chdir(work)
    before, content = names(work), video.read_bytes()
    places = {"B": bundle, "V": video, "Z": store, "L": "L.mp4", "C": reference_dir / "4x8x8-trilinear"}
    complaint = program.refused(*(places.get(word, word) for word in arguments.split()))
    assert says in complaint
    assert names(work) == before
    assert video.read_bytes() == content
    assert stored(store) == 4


def test_verify_with_failed_check_exits_1(
    program: Program, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.export import parity

    verified = parity.verify

    def failing(*arguments: Any, **options: Any) -> Any:
        result = verified(*arguments, **options)
        object.__setattr__(
            result, "checks", tuple(dataclasses.replace(check, passed=False) for check in result.checks)
        )
        return result

    assert program("verify", bundle, "--frames", 5, "--size", "16x16").code == 0
    monkeypatch.setattr(parity, "verify", failing)
    outcome = program("verify", bundle, "--frames", 5, "--size", "16x16", "--json")
    assert outcome.code == 1
    assert outcome.report["passed"] is False


def test_internal_error_prints_one_line_and_traceback_only_with_debug(
    program: Program, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("of ours\nin two lines")

    monkeypatch.setattr("wfvae.spec.memory.plan_memory", broken)
    outcome = program("plan", bundle, "--size", "64x64")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "wfvae plan: internal error, ZeroDivisionError: of ours in two lines; run again with --debug and"
        " report it"
    ]
    assert "Traceback" in program("plan", bundle, "--size", "64x64", "--debug").err


def test_closed_or_full_standard_streams_give_one_line(bundle: Path, video: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command("inspect", bundle), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (
        2,
        "wfvae inspect: the program that reads the output has ended\n",
    )

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        words = (f"'{word}'" for word in command("encode", bundle))
        return subprocess.run(
            ["sh", "-c", " ".join(words) + line], capture_output=True, text=True, timeout=60, check=False
        )

    assert shell(f" '{video}' '{tmp_path}/z.zarr' <&- >&-").returncode == 0
    assert stored(tmp_path / "z.zarr") == 4
    closed = shell(f" - '{tmp_path}/y.zarr' <&-")
    assert closed.returncode == 2
    assert "standard input is closed" in closed.stderr
    assert len(closed.stderr.splitlines()) == 1
    assert shell(f" '{tmp_path}/nothing' '{tmp_path}/y.zarr' 2>&-").returncode == 2
    assert shell(f" '{tmp_path}/nothing' '{tmp_path}/y.zarr' 2>/dev/full").returncode == 2
    for buffering in ("", "1"):  # a full disk shows when it is written, or when the program ends
        full = subprocess.run(
            ["sh", "-c", " ".join(f"'{word}'" for word in command("inspect", bundle)) + " >/dev/full"],
            env={**os.environ, "PYTHONUNBUFFERED": buffering},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (full.returncode, full.stderr) == (
            2,
            "wfvae inspect: No space left on device: standard output\n",
        )


def test_unknown_argument_is_reported_under_the_subcommand(program: Program) -> None:
    assert (
        program.refused("encode", "a", "b", "c", "d")
        == "wfvae encode: unrecognized arguments: d; see: wfvae encode --help"
    )


def test_sighup_interrupts_unless_nohup_ignores_it(bundle: Path, tmp_path: Path) -> None:
    """Unless it was started by nohup."""
    code = (
        "import os, signal, sys\n"
        "from wfvae.cli import main as cli\n"
        "from wfvae.cli import plan\n"
        "if sys.argv.pop(1) == 'nohup':\n"
        "    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "plan.run = lambda args: os.kill(os.getpid(), signal.SIGHUP) or 0\n"
        "sys.exit(cli.main())\n"
    )

    def ended(how: str) -> tuple[int, str]:
        words = [sys.executable, "-c", code, how, "plan", str(bundle), "--size", "64x64"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    assert ended("terminal") == (130, "wfvae plan: interrupted\n")
    assert ended("nohup") == (0, "")


# Results ------------------------------------------------------------------------------------------


def test_json_option_of_every_command_prints_its_facts(
    program: Program, bundle: Path, video: Path, reference_dir: Path, tmp_path: Path
) -> None:
    store, out = tmp_path / "z.zarr", tmp_path / "out.mp4"
    encoded = program.done("encode", bundle, video, store)
    assert set(encoded) == REPORT_KEYS
    expected = {
        "frames": 13,
        "latents": 4,
        "height": 32,
        "width": 48,
        "fps": 25.0,
        "resumed_at": 0,
        "complete": True,
    }
    assert {key: encoded[key] for key in expected} == expected
    assert {"source": str(video), "destination": str(store)}.items() <= encoded.items()
    decoded = program.done("decode", bundle, store, out)
    assert set(decoded) == REPORT_KEYS
    assert {key: decoded[key] for key in expected} == expected
    reconstructed = program.done("reconstruct", bundle, video, tmp_path / "r.mkv")
    assert {key: reconstructed[key] for key in expected} == expected
    plan = program.done("plan", bundle, "--size", "64x64")
    assert set(plan) == {"encoder", "decoder"}
    assert all(isinstance(plan[direction]["total_bytes"], int) for direction in plan)
    assert program.done("inspect", bundle)["kind"] == "bundle"
    facts = program.done("inspect", store)
    assert {
        "kind": "latents",
        "count": 4,
        "shape": [4, 4, 4, 6],
        "complete": True,
        "frames": 13,
        "fps": "25",
    }.items() <= facts.items()
    facts = program.done("inspect", reference_dir / "4x8x8-trilinear")
    assert (facts["kind"], facts["config"]["latent_dim"]) == ("checkpoint", 4)
    facts = program.done("inspect", video)
    assert {
        "kind": "video",
        "width": 48,
        "height": 32,
        "fps": "25",
        "frames": 13,
        "rotation": 0,
    }.items() <= facts.items()
    made = program.done("export", reference_dir / "4x8x8-trilinear", tmp_path / "bundle")
    assert made["identity"] == program.done("inspect", tmp_path / "bundle")["identity"]
    checked = program.done("verify", tmp_path / "bundle", "--frames", 5, "--size", "16x16")
    assert checked["passed"] is True


def test_text_of_every_command_names_counts_and_sizes(
    program: Program, bundle: Path, video: Path, tmp_path: Path
) -> None:
    store = tmp_path / "z.zarr"
    assert "4 latents of 13 frames 32x48" in program("encode", bundle, video, store).out
    assert "13 frames 32x48" in program("decode", bundle, store, tmp_path / "out.gif").out
    assert "13 frames 32x48" in program("reconstruct", bundle, video, tmp_path / "r.mkv").out
    assert "all files are as exported" in program("inspect", bundle).out
    assert "MiB" in program("plan", bundle, "--size", "480x832").out
    for thing in (store, video):
        lines = program("inspect", thing).out.splitlines()
        assert any(line.split() == ["height", "32"] for line in lines)


def test_odd_file_names_are_read_and_written(
    program: Program, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my dir ü 100% :smile: [red]"
    folder.mkdir()
    save(folder / "in %03d x.mp4".replace("%03d", "50%"), clip(5))
    monkeypatch.chdir(folder)
    assert "lat é.npy: 2 latents" in program("encode", bundle, "in 50% x.mp4", "lat é.npy").out
    assert (
        ":smile: 9%.mp4: 5 frames" in program("decode", bundle, "lat é.npy", ":smile: 9%.mp4", "--resume").out
    )
    (folder / "link.npy").symlink_to("lat é.npy")
    (folder / "link.npy.json").symlink_to("lat é.npy.json")
    assert program("decode", bundle, "./link.npy", "../out.MKV").code == 0
    assert names(folder) == sorted(
        ["in 50% x.mp4", "lat é.npy", "lat é.npy.json", ":smile: 9%.mp4", "link.npy", "link.npy.json"]
    )
    raw = os.fsdecode(b"\xff.mp4")
    os.rename("in 50% x.mp4", raw)
    code, out, err = run_process("reconstruct", bundle, raw, os.fsdecode(b"\xfe.mkv"), cwd=folder)
    assert (code, err) == (0, "")
    assert b"5 frames" in out


# Progress -----------------------------------------------------------------------------------------


def test_progress_is_shown_on_a_terminal_only(bundle: Path, video: Path, tmp_path: Path) -> None:
    code, text = on_terminal("encode", bundle, video, tmp_path / "z.zarr", "--chunk", 1, "--json")
    assert code == 0
    assert re.search(r"encode .*\d+/13 frames .* \d:\d\d:\d\d", text), text
    code, out, err = run_process(
        "encode", bundle, video, tmp_path / "z.zarr", env={**os.environ, "FORCE_COLOR": "1"}
    )
    assert (code, err) == (0, "")
    assert b"\x1b" not in out
