"""Tables in documents are those of the committed results, and pictures can be drawn from them."""

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the results, and a document with one table."""
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("Before.\n\n<!-- table memory -->\n<!-- end table -->\n\nBehind.\n")
    return tmp_path


def test_check_of_the_repository_passes(tables: Any) -> None:
    assert tables.main(["--check"]) == 0


def test_check_of_a_changed_number_fails_with_its_place(
    tables: Any, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, arguments = repository / "README.md", ["--root", str(repository)]
    assert tables.main([*arguments, "--check"]) == 1 and readme.read_text().count("|") == 0
    assert tables.main(arguments) == 0 and tables.main([*arguments, "--check"]) == 0
    written = readme.read_text()
    assert written.startswith("Before.\n") and written.endswith("\nBehind.\n")
    readme.write_text(written.replace("153 MB", "154 MB"))
    capsys.readouterr()
    assert tables.main([*arguments, "--check"]) == 1
    assert "README.md (memory)" in capsys.readouterr().err
    assert tables.main(arguments) == 0 and readme.read_text() == written
    readme.write_text("<!-- table memory -->\n")
    assert tables.main(arguments) == 2
    assert "README.md: 1 tables begin and 0 end" in capsys.readouterr().err


def test_committed_pictures_are_those_of_the_results(tables: Any, tmp_path: Path) -> None:
    charts: Any = importlib.import_module("charts")

    def drawing(folder: Path, name: str) -> str:
        text = (folder / f"{name}.svg").read_text(encoding="utf-8")
        return re.sub(r"\b[a-z][0-9a-f]{10}\b", "ID", text)  # hashes of positions, down to the last bit

    for name in charts.PICTURES:
        charts.redraw(name, tmp_path)
        assert drawing(tmp_path, name) == drawing(ROOT / "benchmarks" / "results", name)
