"""Results as Markdown: what the benchmarks print, and what `tables.py` writes into documents."""

from harness.tables import datasets, engines, memory, mutations, peers, quality, speed
from harness.tables.format import TABLES

__all__ = ["TABLES", "datasets", "engines", "memory", "mutations", "peers", "quality", "speed"]
