"""What model, graph, manifest and runtime agree on: frames, state, files of a bundle. No torch."""
