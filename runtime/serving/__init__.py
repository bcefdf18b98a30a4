"""Streams of many clients through one bundle: continuous batching behind a server's transport."""
