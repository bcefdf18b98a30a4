"""One step of a batch of streams: gather the input, run the graph, share out the output."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from wfvae.runtime.backends.base import Array, StepSession, StreamState
from wfvae.runtime.feed import Feed


def run_step(
    session: StepSession, state: StreamState, feeds: Sequence[Feed], latents: int
) -> tuple[list[Array], float]:
    """Advances each feed's stream, one per row of `state`, by `latents`.

    Returns each stream's part of the output, and the seconds spent in the backend.
    """
    draining = [feed.draining for feed in feeds]
    start = np.array([not feed.started for feed in feeds])
    x = np.stack([feed.step_input(latents) for feed in feeds])
    began = time.perf_counter()
    output = session.step(state, x, start, np.array(draining))
    seconds = time.perf_counter() - began
    rows = zip(feeds, output, draining, strict=True)
    return [feed.accept_output(row, drained) for feed, row, drained in rows], seconds
