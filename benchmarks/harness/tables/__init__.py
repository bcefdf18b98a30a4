"""Results as Markdown: what the benchmarks print, and what `tables.py` writes into documents."""

from harness.tables.format import TABLES
from harness.tables.memory import memory, overhead, scale
from harness.tables.peers import blockwise, peers
from harness.tables.quality import ablation, bf16_quality, parity, tiny_model, training
from harness.tables.speed import forms, roofline, seconds, speed, streams

__all__ = [
    "TABLES",
    "ablation",
    "bf16_quality",
    "blockwise",
    "forms",
    "memory",
    "overhead",
    "parity",
    "peers",
    "roofline",
    "scale",
    "seconds",
    "speed",
    "streams",
    "tiny_model",
    "training",
]
