"""Documents: links resolve, lines are short, console blocks name existing commands."""

import re
import subprocess
from pathlib import Path

import pytest

from wfvae.cli.main import COMMANDS

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


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_a_document_exist(name: str) -> None:
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    used = {found for block in blocks for found in re.findall(r"\bwfvae ([a-z][a-z-]*)\b", block)}
    assert used <= set(COMMANDS)
