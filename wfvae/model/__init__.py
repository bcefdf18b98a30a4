"""The network in PyTorch, its configuration and its checkpoints."""
