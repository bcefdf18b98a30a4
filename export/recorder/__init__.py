"""Records the network's forward pass as an ONNX graph."""
