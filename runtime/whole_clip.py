"""Whole clips in one run of a direct graph, which has no state to carry."""

from typing import Any

from wfvae.runtime.backends.base import DirectSession
from wfvae.runtime.feed import Feed, Result

SHARE_OF_FREE_MEMORY = 0.5
"""What a clip may take where no limit is given: other streams and programs need memory, too."""


def run_clip(session: DirectSession, feed: Feed, data: Any) -> Result:
    """Runs all of a stream's input at once. Returns what the stream would.

    Args:
        session: a direct graph, in host memory.
        feed: that of a new stream.
        data: what `Stream.push` takes.

    Raises `InputError` and `ResourceError` as the stream does.
    """
    feed.push(data)
    feed.close()
    return feed.clip_result(session.run(feed.clip_input()[None])[0])
