"""Table of mutated files."""

from harness.tables.format import Result, machine_line, markdown_table, table


@table("mutated-files", "mutated-files")
def mutated_files(result: Result) -> str:
    """How mutated files of each format ended."""
    lines = [
        [
            row["format"],
            *(f"{row[key]:,}" for key in ("cases", "refused", "accepted", "faults")),
            f"{row['peak_mb']:,.0f} MB",
        ]
        for row in result["results"]
    ]
    columns = ["format", "cases", "refused in one line", "accepted", "faults", "peak memory"]
    return markdown_table(columns, lines) + machine_line(result)
