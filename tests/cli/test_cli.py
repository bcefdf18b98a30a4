"""The program as a user meets it: help, exit codes, one-line errors, JSON, progress."""

import dataclasses
import os
import re
import shlex
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


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_explains_every_argument(program: Program, name: str) -> None:
    outcome = program(name, "--help")
    assert outcome.code == 0
    parser = next(action for action in cli.build_parser()._actions if action.dest == "command")
    assert isinstance(parser.choices, dict)
    for action in parser.choices[name]._actions:
        for word in action.option_strings or [action.metavar]:
            assert str(word) in outcome.out, word
    assert f"wfvae {name}" in outcome.out.split("\n\n", 1)[1], "an example"
    assert re.search(rf"^ +{name}\s+\w", program("--help").out, re.MULTILINE)


WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "polygraphy", "lpips"):
    sys.modules[name] = None
from wfvae.cli import main as cli
for name in cli.COMMANDS:
    try:
        cli.main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
assert not {"onnxruntime", "av", "zarr"} & {name for name, module in sys.modules.items() if module}
bundle, video, folder = sys.argv[1:]
assert cli.main(["reconstruct", bundle, video, folder + "/r.mkv"]) == 0
assert "zarr" not in sys.modules
assert cli.main(["encode", bundle, video, folder + "/z.zarr"]) == 0
assert cli.main(["decode", bundle, folder + "/z.zarr", folder + "/out.mp4"]) == 0
for words in (["inspect", bundle], ["inspect", video], ["plan", bundle, "--size", "64x64"]):
    assert cli.main(words) == 0
print("MISSING", file=sys.stderr)
assert cli.main(["export", "nowhere", folder + "/b"]) == 2
assert cli.main(["demo", "--out", folder + "/demo"]) == 2
"""


def test_help_and_streaming_without_torch_installed_work(bundle: Path, video: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", WITHOUT_TORCH, str(bundle), str(video), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    before, _, after = done.stderr.partition("MISSING\n")
    assert before == ""
    assert [line.count("pip install 'wfvae[export]'") for line in after.splitlines()] == [1, 1]


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(words, text=True, timeout=60, check=False, **options)


BAD_VALUES = {
    "encode B V z.zarr --chunk": "0 -3 1_0",
    "encode B V z.zarr --threads": "0 100000",
    "encode B V z.zarr --limit": "0 inf nan",
    "encode B V z.zarr --device": "-1",
    "encode B V z.zarr --checkpoint-every": "nan -1",
    "encode B V z.zarr --fps": "0 1e999999999 1/0 20000",
    "encode B - z.zarr --raw": "3x 0x3",
    "decode B Z o.mp4 --crf": "nan -5 64",
    "plan B --size": "0x0 64",
    "verify B --frames": "0",
    "inspect V --subbands --bin-width": "0 inf",
}
BAD_OPTIONS = [
    (f"{words} {value}", f"'{value}' is not ") for words in BAD_VALUES for value in BAD_VALUES[words].split()
]
WRONG_USE = [
    ("", "COMMAND"),
    ("foo", "invalid choice: 'foo'"),
    ("encode", "BUNDLE, VIDEO, LATENTS"),
    (
        "encode B V z.zarr d --nonsense",
        "wfvae encode: unrecognized arguments: d --nonsense; see: wfvae encode",
    ),
    ("encode B V z.zarr --limit 1K", "more than the limit"),
    ("encode B V z.zarr --raw 48x32", "raw frames are read from a pipe only"),
    ("encode B V z.zarr --fps 25", "for a directory of images only"),
    ("encode B - z.zarr --fps 25", "states its own"),
    ("encode B V z.txt", "use one of .safetensors, .npy, .zarr"),
    ("encode B V nowhere/z.npy", "the directory 'nowhere' for 'z.npy' does not exist"),
    ("encode B V D.zarr", "exists and is no Zarr store"),
    ("encode B V D.npy", "'D.npy' exists and is not a file"),
    ("encode B nothing.mp4 z.zarr", "no such file: 'nothing.mp4'"),
    ("encode B D.zarr z.zarr", "no images in 'D.zarr'"),
    ("encode nowhere V z.zarr", "nowhere is not a bundle"),
    ("decode B nothing.zarr o.mp4", "no such latents: 'nothing.zarr'"),
    ("decode B V o.mp4", "use one of .safetensors, .npy, .zarr"),
    ("decode B D.zarr o.mp4", "cannot read 'D.zarr' as latents"),
    ("decode B Z o.xyz", "use one of .mp4"),
    ("decode B Z nowhere/o.mp4", "the directory 'nowhere' for 'o.mp4' does not exist"),
    ("decode B Z Z", "is the input itself"),
    ("decode B Z V --audio-from V", "is the input itself"),
    ("decode B Z o.mp4 --audio-from nothing.mp4", "no such file: 'nothing.mp4'"),
    ("decode B Z o.mp4 --container matroska", "it is for -"),
    ("decode B Z - --container nonsense", "no container format 'nonsense'"),
    ("decode B Z o.mp4 --codec nonsense", "no video encoder nonsense; choose one of"),
    ("decode B Z o.webm --codec libx264", "cannot hold libx264 video"),
    ("reconstruct B V V", "is the input itself"),
    ("reconstruct B V L", "is the input itself"),
    ("plan B", "--size"),
    ("plan B --size 64x64 --limit 1K", "more than the limit"),
    ("inspect nothing", "nothing does not exist"),
    ("inspect D.zarr", "cannot read 'D.zarr' as latents"),
    ("export nowhere b", "nowhere does not exist"),
    ("export B b", "config.json"),
    ("export C B", "--overwrite"),
    ("export C b --opset 3", "opset is 3"),
    ("export C b --size 33x33", "multiples of 8"),
]


@pytest.fixture(scope="module")
def places(bundle: Path, video: Path, store: Path, reference_dir: Path) -> dict[str, Path]:
    return {"B": bundle, "V": video, "Z": store, "L": Path("L.mp4"), "C": reference_dir / "4x8x8-trilinear"}


@pytest.mark.parametrize(("arguments", "says"), [*WRONG_USE, *BAD_OPTIONS])
def test_wrong_use_prints_one_line_exits_2_and_leaves_no_file(
    program: Program, places: dict[str, Path], tmp_path: Path, monkeypatch: Any, arguments: str, says: str
) -> None:
    work, video = tmp_path / "work", places["V"]
    (work / "D.zarr").mkdir(parents=True)
    (work / "D.npy").mkdir()
    (work / "L.mp4").symlink_to(video)
    monkeypatch.chdir(work)
    before, content = names(work), video.read_bytes()
    assert says in program.refused(*(places.get(word, word) for word in arguments.split()))
    assert names(work) == before and video.read_bytes() == content and stored(places["Z"]) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["encode", "", "in.mp4", "z.npy"], "argument 1 ('') is empty after 'encode'"),
        (["encode", "bundle", "in.mp4", ""], "argument 3 ('') is empty after 'in.mp4'"),
        (["train", "tiny-quick", "--out", ""], "argument 3 ('') is empty after '--out'"),
        (["train", "tiny-quick", "--out="], "argument 2 ('--out=') is empty"),
    ],
)
def test_empty_argument_is_refused_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    text = capsys.readouterr().err
    assert says in text and text.count("\n") == 1


def test_verify_with_failed_check_exits_1(
    program: Program, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wfvae.export import parity

    verified = parity.verify

    def failing(*arguments: Any, **options: Any) -> Any:
        result = verified(*arguments, **options)
        checks = tuple(dataclasses.replace(check, passed=False) for check in result.checks)
        return dataclasses.replace(result, checks=checks)

    assert program.done("verify", bundle, "--frames", 5, "--size", "16x16")["passed"] is True
    monkeypatch.setattr(parity, "verify", failing)
    outcome = program("verify", bundle, "--frames", 5, "--size", "16x16", "--json")
    assert (outcome.code, outcome.report["passed"]) == (1, False)


def test_internal_error_prints_one_line_and_traceback_only_with_debug(
    program: Program, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("of ours\nin two lines")

    monkeypatch.setattr("wfvae.spec.memory.plan_memory", broken)
    outcome = program("plan", bundle, "--size", "64x64")
    problem = "internal error, ZeroDivisionError: of ours in two lines; run again with --debug and report it"
    assert (outcome.code, outcome.err) == (2, f"wfvae plan: {problem}\n")
    assert "Traceback" in program("plan", bundle, "--size", "64x64", "--debug").err


def shell(redirection: str, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return run(["sh", "-c", f"{shlex.join(command(*words))} {redirection}"], **options)


@pytest.mark.parametrize("buffering", ["", "1"])
def test_full_disk_and_ended_reader_give_one_line(bundle: Path, buffering: str) -> None:
    """It shows when the output is written, or when the program ends."""
    environment = {**os.environ, "PYTHONUNBUFFERED": buffering}
    full = shell(">/dev/full", "inspect", bundle, env=environment)
    problem = "wfvae inspect: No space left on device: standard output\n"
    assert (full.returncode, full.stderr) == (2, problem)
    reading, writing = os.pipe()
    os.close(reading)
    ended = run(command("inspect", bundle), stdout=writing, env=environment)
    os.close(writing)
    problem = "wfvae inspect: the program that reads the output has ended\n"
    assert (ended.returncode, ended.stderr) == (2, problem)


def test_closed_standard_streams_are_not_needed(bundle: Path, video: Path, tmp_path: Path) -> None:
    assert shell("<&- >&-", "encode", bundle, video, tmp_path / "z.zarr").returncode == 0
    assert stored(tmp_path / "z.zarr") == 4
    closed = shell("<&-", "encode", bundle, "-", tmp_path / "y.zarr")
    assert closed.returncode == 2 and "standard input is closed" in closed.stderr
    assert len(closed.stderr.splitlines()) == 1
    for redirection in ("2>&-", "2>/dev/full"):
        assert shell(redirection, "encode", bundle, tmp_path / "nothing", tmp_path / "y.zarr").returncode == 2


HANG_UP = """
import os, signal, sys
from wfvae.cli import main as cli
from wfvae.cli import plan
if sys.argv.pop(1) == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
plan.run = lambda args: os.kill(os.getpid(), signal.SIGHUP) or 0
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("start", "end"), [("terminal", (130, "wfvae plan: interrupted\n")), ("nohup", (0, ""))]
)
def test_sighup_interrupts_unless_nohup_ignores_it(start: str, end: tuple[int, str]) -> None:
    done = run([sys.executable, "-c", HANG_UP, start, "plan", "bundle", "--size", "64x64"])
    assert (done.returncode, done.stderr) == end


JOB = {"frames": 13, "latents": 4, "height": 32, "width": 48, "fps": 25.0, "resumed_at": 0, "complete": True}


def test_jobs_print_their_report_as_json_or_text(
    program: Program, bundle: Path, video: Path, tmp_path: Path
) -> None:
    store = tmp_path / "z.zarr"
    for job, source, target in (
        ("encode", video, store),
        ("decode", store, tmp_path / "out.mp4"),
        ("reconstruct", video, tmp_path / "r.mkv"),
    ):
        report = program.done(job, bundle, source, target)
        assert set(report) == REPORT_KEYS
        expected = {**JOB, "source": str(source), "destination": str(target)}
        assert {key: report[key] for key in expected} == expected
        assert "13 frames 32x48" in program(job, bundle, source, target).out


def test_inspect_prints_what_a_path_is(
    program: Program, bundle: Path, video: Path, store: Path, reference_dir: Path
) -> None:
    latents = {
        "kind": "latents",
        "count": 4,
        "shape": [4, 4, 4, 6],
        "complete": True,
        "frames": 13,
        "fps": "25",
    }
    clip = {"kind": "video", "width": 48, "height": 32, "fps": "25", "frames": 13, "rotation": 0}
    checkpoint = {"kind": "checkpoint", "latent channels": 4}
    paths = {bundle: {"kind": "bundle"}, store: latents, video: clip}
    for path, expected in {**paths, reference_dir / "4x8x8-trilinear": checkpoint}.items():
        assert expected.items() <= program.done("inspect", path).items()
        lines = [line.split() for line in program("inspect", path).out.splitlines()]
        assert "height" not in expected or ["height", "32"] in lines
    assert "all files are as exported" in program("inspect", bundle).out


def test_odd_file_names_are_read_and_written(
    program: Program, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my dir ü 100% :smile: [red]"
    folder.mkdir()
    save(folder / "in 50% x.mp4", clip(5))
    monkeypatch.chdir(folder)
    assert "lat é.npy: 2 latents" in program("encode", bundle, "in 50% x.mp4", "lat é.npy").out
    decoded = program("decode", bundle, "lat é.npy", ":smile: 9%.mp4", "--resume")
    assert ":smile: 9%.mp4: 5 frames" in decoded.out
    assert set(names(folder)) == {"in 50% x.mp4", "lat é.npy", "lat é.npy.json", ":smile: 9%.mp4"}
    raw = os.fsdecode(b"\xff.mp4")
    os.rename("in 50% x.mp4", raw)
    code, out, err = run_process("reconstruct", bundle, raw, os.fsdecode(b"\xfe.mkv"), cwd=folder)
    assert (code, err) == (0, "")
    assert b"5 frames" in out


def test_progress_is_shown_on_a_terminal_only(bundle: Path, video: Path, tmp_path: Path) -> None:
    code, text = on_terminal("encode", bundle, video, tmp_path / "z.zarr", "--chunk", 1, "--json")
    assert code == 0 and re.search(r"encode .*\d+/13 frames .* \d:\d\d:\d\d", text), text
    colours = {**os.environ, "FORCE_COLOR": "1"}
    code, out, err = run_process("encode", bundle, video, tmp_path / "z.zarr", env=colours)
    assert (code, err, b"\x1b" in out) == (0, "", False)
