"""Documents: links resolve, lines are short, commands exist, the README's Python code runs."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fixtures.program import Program, clip, load
from fixtures.videos import save
from wfvae import WFVAE
from wfvae.cli.main import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[1]
TRACKED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
DOCUMENTS = TRACKED.stdout.split()


def headings(text: str) -> set[str]:
    """The anchors that a web page of the document has."""
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_a_document_resolve(name: str) -> None:
    document = ROOT / name
    text = document.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        linked = document.parent / path if path else document
        anchored = anchor and linked.suffix == ".md" and linked.exists()
        if not linked.exists() or (anchored and anchor not in headings(linked.read_text("utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_prose_is_at_most_100_columns_and_code_110(name: str) -> None:
    wide = []
    fenced = False
    for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        limit = 110 if fenced or line.startswith("    ") else 100
        if len(line) > limit and not line.startswith("|"):
            wide.append(number)
    assert wide == []


def commands(text: str) -> list[list[str]]:
    """Arguments of every call of `wfvae` in the consoles of a document, without pipes."""
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    calls = (re.match(r"(?:\$ )?wfvae (.*?)(?: \||$)", line) for line in lines)
    return [shlex.split(call[1], comments=True) for call in calls if call]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_a_document_are_understood(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    parser = build_parser()
    for arguments in commands(text):
        parser.parse_args(arguments)
    used = set(re.findall(r"^(?:\$ )?wfvae ([a-z][a-z-]*)\b", text, re.MULTILINE))
    assert used <= set(COMMANDS)


@pytest.mark.slow
def test_first_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    save(Path("demo", "input.mp4"), clip(9))  # as `make demo` does
    [start] = re.findall(r"## Start\n(.*?)\n## ", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    calls = commands(start)
    assert [arguments[0] for arguments in calls][:3] == ["export", "encode", "decode"]
    for arguments in calls:
        if arguments[0] == "bench":  # takes long at any size; tests/cli/test_bench.py runs it
            continue
        small = ["24x32" if argument == "480x832" else argument for argument in arguments]
        assert program(*("out.mkv" if argument == "-" else argument for argument in small)).code == 0
    assert len(load(Path("out.mp4"))[0]) == 9


def test_python_code_of_the_readme_runs(
    exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported("small"), "bundle")
    save(Path("in.mp4"), clip(5))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    runtime, pipeline, model = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    frames, stored = clip(9), []
    names = {"frames": frames, "source": [frames], "chunks_a": [frames], "chunks_b": [frames[:2]]}
    names["store"] = lambda *parts: stored.append(parts)
    code = runtime.replace("height=480, width=832", f"height={frames.shape[1]}, width={frames.shape[2]}")
    exec(code, names)
    assert np.array_equal(np.concatenate([stored[0][0], stored[1][0]]), names["latents"])
    assert np.array_equal(stored[2][0], stored[1][0])
    assert names["report"].complete

    pipe = SimpleNamespace()
    exec(pipeline, {"pipe": pipe})
    assert pipe.vae.bundle.identity == names["bundle"].identity

    vae, x = WFVAE.from_pretrained("tiny"), 2 * torch.rand(1, 3, 9, 32, 32) - 1
    names = {"torch": torch, "x": x, "chunk": x[:, :, :4], "start": torch.tensor([True])}
    names |= {"chunks": x[:, :, :7].split(3, dim=2), "T": 7}
    names["state"] = vae.initial_state("encoder", 1, 32, 32)
    exec(model.replace("WF-VAE-L-16Chn/", "tiny"), names)
    assert names["latents"].shape[2] == 3 and names["video"].shape == (1, 3, 7, 32, 32)
