"""Sizes with symbols: polynomials such as 2 + 4 n or 8 h, as exact as integers.

A graph must hold for any batch, length and size, so the sizes that a network computes are symbolic
while it is recorded. What cannot be decided for all values raises `StreamingError`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import zip_longest

from wfvae.errors import StreamingError
from wfvae.spec.frames import SPATIAL_RATIO

Monomial = tuple[str, ...]
"""Symbols of a product, sorted; () is the constant term."""

_HALF = "half of "
_MAY_BE_HALVED = f"height/{SPATIAL_RATIO}"
"""Half of a clip's length would depend on how it is cut into chunks."""


class Size:
    """An immutable polynomial with integer coefficients in symbols that are all at least 1.

    Example:
        >>> frames = 4 * Size.symbol("latents") + 1
        >>> frames * 2 - 2, frames % 4, frames < 5
        (8*latents, 1, False)
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: dict[Monomial, int] = {monomial: factor for monomial, factor in terms.items() if factor}

    @classmethod
    def symbol(cls, name: str) -> Size:
        return cls({(name,): 1})

    @classmethod
    def of(cls, value: int | Size) -> Size:
        return value if isinstance(value, Size) else cls({(): int(value)})

    @staticmethod
    def halved(symbol: str) -> str | None:
        """Returns what a symbol is half of, rounded up; None for most."""
        return symbol.removeprefix(_HALF) if symbol.startswith(_HALF) else None

    @property
    def half(self) -> Size:
        """Half of it, rounded up. Only the number of latent rows may be odd for some values."""
        if self.terms == {(_MAY_BE_HALVED,): 1}:
            return Size.symbol(f"{_HALF}{_MAY_BE_HALVED}")
        return (self + 1) // 2

    @property
    def bound(self) -> Size:
        """Its maximum without symbols that are half of others, whose terms must not be negative."""
        total = Size.of(0)
        for monomial, factor in self.terms.items():
            halves = [whole for symbol in monomial if (whole := Size.halved(symbol)) is not None]
            assert factor > 0 or not halves
            for _ in halves:
                factor = (factor + 1) // 2
            others = (Size.symbol(symbol) for symbol in monomial if Size.halved(symbol) is None)
            total = total + factor * product((*others, *(Size.symbol(whole) + 1 for whole in halves)))
        return total

    @property
    def constant(self) -> int | None:
        """The value, if no symbol is left."""
        if len(self.terms) > 1:
            return None
        return self.terms.get((), None if self.terms else 0)

    @property
    def smallest(self) -> int:
        """The value for the shortest clip, which has no groups of frames; it may be negative.

        A slice of so few frames is empty instead.
        """
        symbols = {symbol for monomial in self.terms for symbol in monomial}
        return self.at({symbol: int(symbol != "groups") for symbol in symbols})

    def at(self, values: Mapping[str, int]) -> int:
        """Returns the value for given symbols."""
        return sum(
            factor * math.prod(values[symbol] for symbol in monomial)
            for monomial, factor in self.terms.items()
        )

    # Recording makes hundreds of thousands of sizes, most of them from one size and an integer.

    def __add__(self, other: int | Size) -> Size:
        terms = dict(self.terms)
        if isinstance(other, int):
            terms[()] = terms.get((), 0) + other
            return Size(terms)
        for monomial, factor in other.terms.items():
            terms[monomial] = terms.get(monomial, 0) + factor
        return Size(terms)

    __radd__ = __add__

    def __neg__(self) -> Size:
        return Size({monomial: -factor for monomial, factor in self.terms.items()})

    def __sub__(self, other: int | Size) -> Size:
        return self + -other

    def __rsub__(self, other: int | Size) -> Size:
        return Size.of(other) - self

    def __mul__(self, other: int | Size) -> Size:
        if isinstance(other, int):
            return Size({monomial: factor * other for monomial, factor in self.terms.items()})
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                monomial = tuple(sorted((*left, *right)))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return Size(terms)

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Size:
        remainder = self % divisor
        return Size({monomial: factor // divisor for monomial, factor in (self - remainder).terms.items()})

    def __mod__(self, divisor: int) -> int:
        if any(factor % divisor for monomial, factor in self.terms.items() if monomial):
            raise StreamingError(
                f"a size of {self} frames or pixels is divided by {divisor}, which does not go into it for"
                " every length; its causal cache would change from chunk to chunk (eq. 4), and a graph needs"
                " constant shapes"
            )
        return self.terms.get((), 0) % divisor

    def divide(self, divisor: Size) -> Size:
        """Returns the exact quotient by a single product."""
        (symbols, factor), *others = divisor.terms.items()
        terms: dict[Monomial, int] = {}
        for monomial, value in self.terms.items():
            rest = Counter(monomial)
            rest.subtract(symbols)
            if others or value % factor or min(rest.values(), default=0) < 0:
                raise StreamingError(f"the size {divisor} does not divide {self}")
            terms[tuple(sorted(rest.elements()))] = value // factor
        return Size(terms)

    def __lt__(self, other: int | Size) -> bool:
        difference = self - other
        factors = [factor for monomial, factor in difference.terms.items() if monomial]
        at_ones = sum(difference.terms.values())
        if all(factor >= 0 for factor in factors) and at_ones >= 0:
            return False
        if all(factor <= 0 for factor in factors) and at_ones < 0:
            return True
        raise StreamingError(
            f"the network branches on whether {difference} is negative, which depends on the clip's size"
        )

    def __bool__(self) -> bool:
        return self != 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (int, Size)):
            return NotImplemented
        # Polynomials that have the same value everywhere have the same terms.
        return self.terms == other.terms if isinstance(other, Size) else self.constant == other

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()) if self.constant is None else self.constant)

    def __repr__(self) -> str:
        parts = [
            "*".join([*([str(factor)] if factor != 1 or not monomial else []), *monomial])
            for monomial, factor in sorted(self.terms.items())
        ]
        return " + ".join(parts) or "0"


Length = int | Size


def simplify(size: Length) -> Length:
    """Returns a plain integer where no symbol is left."""
    constant = size.constant if isinstance(size, Size) else size
    return size if constant is None else constant


def product(sizes: Iterable[Length]) -> Size:
    """Returns the product of sizes."""
    factor, symbolic = 1, Size.of(1)
    for size in sizes:
        if isinstance(size, Size):
            symbolic = symbolic * size
        else:
            factor *= size
    return symbolic * factor


def slice_length(length: Length, start: int | None, stop: int | None, step: int) -> Length:
    """Returns the length of `range(length)[start:stop:step]`, for bounds that lie inside."""
    if isinstance(length, int):
        return len(range(length)[start:stop:step])
    begin = Size.of(start or 0) + (length if (start or 0) < 0 else 0)
    end = length if stop is None else Size.of(stop) + (length if stop < 0 else 0)
    return simplify((end - begin).half if step == 2 else (end - begin + (step - 1)) // step)


def broadcast(shapes: Iterable[tuple[Length, ...]]) -> tuple[Length, ...]:
    """Returns the common shape under numpy's rules."""
    shapes = list(shapes)
    result: list[Length] = []
    for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        others = [size for size in sizes if size != 1]
        if any(size != others[0] for size in others):
            raise StreamingError(f"shapes {shapes} do not broadcast")
        result.append(others[0] if others else 1)
    return tuple(reversed(result))
