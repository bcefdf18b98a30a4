"""Placeholder, filled by the modules beside it."""
