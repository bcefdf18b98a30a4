"""The demo's HTML page, its plots and its side-by-side video."""
