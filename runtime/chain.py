"""A hash of a sequence of arrays that can be continued later, and does not depend on its pieces."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from wfvae.runtime.backends.base import Array

_START = bytes(32).hex()


class Chain:
    """h(0) = 32 zero bytes; h(k+1) = SHA-256 of h(k) and the bytes of item k.

    Example:
        >>> numbers, whole, parts = np.arange(6).reshape(3, 2), Chain(), Chain()
        >>> whole.extend(numbers)
        >>> for part in (numbers[:1], numbers[1:]):
        ...     parts.extend(part)
        >>> whole.hexdigest == parts.hexdigest
        True
    """

    def __init__(self, hexdigest: str = _START) -> None:
        """hexdigest: of the items before those that are added."""
        self._value = bytes.fromhex(hexdigest)

    @property
    def hexdigest(self) -> str:
        """The hash of all items so far, in hexadecimal."""
        return self._value.hex()

    def extend(self, items: Iterable[Array]) -> None:
        """Adds items, such as the frames (H, W, 3) of an array (T, H, W, 3)."""
        for item in items:
            digest = hashlib.sha256(self._value)
            digest.update(np.ascontiguousarray(item).data)
            self._value = digest.digest()

    def over(self, pieces: Iterable[Array]) -> Iterator[tuple[Array, str]]:
        """Yields pieces, each with the hash of everything up to its end."""
        for piece in pieces:
            self.extend(piece)
            yield piece, self.hexdigest


def chain_of(pieces: Iterable[Array]) -> str:
    """Returns the hash of all items of all pieces."""
    chain = Chain()
    for piece in pieces:
        chain.extend(piece)
    return chain.hexdigest
