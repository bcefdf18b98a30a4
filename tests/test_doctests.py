"""Every example in a docstring runs and gives what it shows."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [p for folder in ("wfvae", "export", "runtime", "train") for p in (ROOT / folder).rglob("*.py")]
WITH_EXAMPLES = sorted(p.relative_to(ROOT) for p in FILES if ">>> " in p.read_text())


def test_files_with_examples_are_found() -> None:
    assert Path("wfvae/files.py") in WITH_EXAMPLES


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=str)
def test_examples_of_a_module_give_what_they_show(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = file.with_suffix("").parts
    module = importlib.import_module(".".join(parts if parts[0] == "wfvae" else ("wfvae", *parts)))
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried and not failed
