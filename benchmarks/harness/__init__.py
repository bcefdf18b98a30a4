"""What the benchmarks have in common: turns, fresh processes, memory, engines, and results."""
