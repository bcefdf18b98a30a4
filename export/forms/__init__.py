"""How the exported graphs compute convolutions."""
