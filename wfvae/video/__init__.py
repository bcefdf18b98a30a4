"""Pixels as files store them, and synthetic videos."""
