"""Writes the tables of README.md and docs/ from the results in benchmarks/results.

    python benchmarks/tables.py            rewrites what stands between the markers
    python benchmarks/tables.py --check    changes nothing; code 1 if a file would change

A document holds `<!-- table NAME -->` and `<!-- end table -->`, each on a line of its own. The
tables are functions in `harness/tables/`; the benchmarks print the same.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.tables import TABLES

from wfvae.files import write_whole

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks") / "results"
DOCUMENTS = ("README.md", "docs/*.md", "wfvae/weights/*/README.md")
END = "<!-- end table -->"
MARKED = re.compile(r"(<!-- table (\S+) -->\n)(.*?)" + END, re.DOTALL)


class DocumentError(Exception):
    """What is wrong with a document or a result file, in one line."""


def rewrite(text: str, document: str, results: Path) -> tuple[str, list[str]]:
    """Returns a document with its tables as they should be, and the names of those that change."""
    changed = []

    def replace(found: re.Match[str]) -> str:
        begin, name, old = found.groups()
        if name not in TABLES:
            known = ", ".join(TABLES)
            raise DocumentError(f"{document}: no table is called {name!r}; expected one of {known}")
        function, files = TABLES[name]
        try:
            new = function(*(json.loads((results / f"{file}.json").read_bytes()) for file in files))
        except (OSError, ValueError, KeyError) as error:
            raise DocumentError(f"{document}: table {name!r} cannot be made: {error!r}") from error
        if f"\n{new}\n" != old:
            changed.append(name)
        return f"{begin}\n{new}\n{END}"

    begins, ends = len(re.findall(r"^<!-- table ", text, re.MULTILINE)), text.count(END)
    if begins != ends:
        raise DocumentError(f"{document}: {begins} tables begin and {ends} end")
    return MARKED.sub(replace, text), changed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; code 1 if a file would change")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository (default: this one)")
    options = parser.parse_args(arguments)
    outdated = []
    try:
        for path in sorted(path for pattern in DOCUMENTS for path in options.root.glob(pattern)):
            name, text = str(path.relative_to(options.root)), path.read_text(encoding="utf-8")
            new, changed = rewrite(text, name, options.root / RESULTS)
            if changed:
                outdated.append(f"{name} ({', '.join(changed)})")
            if changed and not options.check:
                write_whole(path, new)
    except DocumentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if outdated:
        what = "differs from the results; run: python benchmarks/tables.py" if options.check else "rewritten"
        print(f"{'; '.join(outdated)}: {what}", file=sys.stderr)
    return int(bool(outdated) and options.check)


if __name__ == "__main__":
    sys.exit(main())
