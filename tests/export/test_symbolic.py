"""Sizes with symbols: they give what integers give, for all values, or raise."""

import math
import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfvae.errors import StreamingError
from wfvae.export.symbolic import Size, broadcast, product, simplify, slice_length

SYMBOLS = ("batch", "latents", "height/8")
MONOMIALS = st.lists(st.sampled_from(SYMBOLS), max_size=3).map(lambda symbols: tuple(sorted(symbols)))
SIZES = st.dictionaries(MONOMIALS, st.integers(-20, 20), max_size=4).map(Size)
VALUES = st.fixed_dictionaries({symbol: st.integers(1, 9) for symbol in SYMBOLS})
n, h = Size.symbol("n"), Size.symbol("h")


@given(SIZES, SIZES, st.integers(-9, 9), VALUES)
def test_arithmetic_equals_that_of_integers(a: Size, b: Size, number: int, values: dict[str, int]) -> None:
    x, y = a.at(values), b.at(values)
    for apply in (operator.add, operator.sub, operator.mul):
        assert apply(a, b).at(values) == apply(x, y)
        assert Size.of(apply(a, number)).at(values) == apply(x, number)
        assert Size.of(apply(number, a)).at(values) == apply(number, x)
    assert (-a).at(values) == -x
    assert product([a, b, number]).at(values) == x * y * number


@given(SIZES, st.integers(1, 12), VALUES)
def test_division_equals_that_of_integers_or_is_refused(
    a: Size, divisor: int, values: dict[str, int]
) -> None:
    if all(factor % divisor == 0 for monomial, factor in a.terms.items() if monomial):
        assert (a // divisor).at(values) == a.at(values) // divisor
        assert a % divisor == a.at(values) % divisor
        return
    for divide in (operator.floordiv, operator.mod):
        with pytest.raises(StreamingError, match=rf"divided by {divisor}.*for every length.*eq\. 4"):
            divide(a, divisor)


@given(SIZES, MONOMIALS, st.integers(1, 6), VALUES)
def test_exact_quotient_times_divisor_gives_the_size(
    a: Size, symbols: tuple[str, ...], factor: int, values: dict[str, int]
) -> None:
    divisor = Size({symbols: factor})
    assert (a * divisor).divide(divisor).at(values) == a.at(values)
    for other in (divisor, n + 1):
        try:
            quotient = a.divide(other)
        except StreamingError:
            continue
        assert quotient.at(values) * other.at({**values, "n": 1}) == a.at(values)


@given(SIZES, SIZES, VALUES)
@pytest.mark.parametrize("compare", [operator.lt, operator.eq])
def test_answered_comparison_holds_for_all_values(
    compare: Callable[[object, object], bool], a: Size, b: Size, values: dict[str, int]
) -> None:
    try:
        answer = compare(a, b)
    except StreamingError:
        return
    # Sizes that are not equal for all values may meet in some.
    assert answer == compare(a.at(values), b.at(values)) or (compare is operator.eq and not answer)


@pytest.mark.parametrize("size", [-n, 2 - 3 * n, -n * h, Size.of(-1)])
def test_comparison_of_one_sign_is_decided(size: Size) -> None:
    assert size < 0 and not -size < 0 and size == size and size != size + 1 and bool(size)
    assert hash(size + 0) == hash(size) and hash(Size.of(3)) == hash(3) and size != "n"


@pytest.mark.parametrize("size", [n - 2, 2 - n, n - h, 4 * n - 5, n * h - 2])
def test_comparison_that_depends_on_the_values_is_refused(size: Size) -> None:
    with pytest.raises(StreamingError, match="depends on the clip's size"):
        bool(size < 0)


@given(
    st.integers(0, 40), st.integers(-12, 12) | st.none(), st.integers(-12, 12) | st.none(), st.integers(1, 4)
)
def test_slice_of_an_integer_length_equals_pythons(
    length: int, start: int | None, stop: int | None, step: int
) -> None:
    assert slice_length(length, start, stop, step) == len(range(length)[start:stop:step])


@given(st.integers(0, 5), st.integers(0, 3) | st.none(), st.integers(1, 4), st.integers(1, 5))
def test_slice_of_a_symbolic_length_equals_pythons(
    start: int, behind: int | None, step: int, value: int
) -> None:
    """Bounds that lie inside, and lengths that the step divides for every value."""
    length = 12 * n + start + (behind or 0)
    stop = -behind if behind else None
    counted = slice_length(length, start, stop, step)
    assert Size.of(counted).at({"n": value}) == len(range(length.at({"n": value}))[start:stop:step])


@given(st.integers(1, 99), st.sampled_from([0, 1, 2]), st.integers(1, 9))
def test_half_of_a_symbol_of_space_is_rounded_up(value: int, start: int, other: int) -> None:
    rows = Size.symbol("height/8")
    half = slice_length(rows + 3, start, start - 3, 2)
    assert half == rows.half == Size.symbol("half of height/8")
    assert len(range(value + 3)[start : start - 3 : 2]) == (value + 1) // 2
    symbols = {"height/8": value, "batch": other}
    product_of_two = 4 * half * Size.symbol("batch") + 6
    for size, slack in ((product_of_two, 2 * other), (3 * half * half, value**2 + 3 * value + 4)):
        exact = size.at(symbols | {"half of height/8": (value + 1) // 2})
        assert exact <= size.bound.at(symbols) <= exact + slack


@pytest.mark.parametrize(
    "size", [Size.symbol("latents"), Size.symbol("height/8") + 2, Size.symbol("width/8")]
)
def test_half_of_other_sizes_is_exact_or_refused(size: Size) -> None:
    assert (2 * size).half == size and (2 * size + 1).half == size + 1
    with pytest.raises(StreamingError, match="divided by 2"):
        size.half  # noqa: B018


def test_size_without_symbols_is_a_plain_integer() -> None:
    assert type(simplify(n - n + 3)) is int and simplify(n) is n and simplify(7) == 7
    assert math.prod((2, 3)) == product((2, 3)).constant
    assert (n + 2).constant is None and Size({}).constant == 0
    assert repr(4 * n + 1) == "1 + 4*n" and repr(n - n) == "0"


def test_broadcast_gives_the_common_shape_or_raises() -> None:
    assert broadcast([(n, 1, 4), (3, 1)]) == (n, 3, 4)
    assert broadcast([(n, h), (n, h)]) == (n, h)
    for shapes in ([(n, 2), (n, 3)], [(n,), (h,)]):
        with pytest.raises(StreamingError, match="do not broadcast"):
            broadcast(shapes)
