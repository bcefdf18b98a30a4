"""Errors of records: they name the key, what was given and what was expected."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from wfvae.errors import ConfigError, InputError
from wfvae.spec.records import Record, check_fields, read_as

Positive = Annotated[int, Meta(ge=1, le=512, multiple_of=8)]


class Inner(Record, frozen=True):
    count: Positive = 8
    name: Annotated[str, Meta(pattern="^[a-z]+$")] = "a"

    def __post_init__(self) -> None:
        if self.name == "wrong":
            raise InputError("the name is wrong; choose another one")


class Outer(Record, frozen=True):
    share: Annotated[float, Meta(ge=0, lt=1)]
    choice: Literal["b", "a"] = "a"
    flag: bool = False
    pair: tuple[int, int] | None = None
    items: tuple[Inner, ...] = ()
    named: Annotated[Mapping[Annotated[str, Meta(pattern="^[a-z]+$")], Inner], Meta(description="...")] = {}
    rate: Fraction | None = None


def fraction(kind: type, value: Any) -> Any:
    return Fraction(value)


WRONG: list[tuple[Any, str]] = [
    ([], "it is []; expected a section of keys"),
    ({}, "share is missing"),
    ({"share": float("nan")}, "share is nan; expected a number >= 0.0"),
    ({"share": 1}, "share is 1; expected a number < 1.0"),
    ({"share": "1"}, "share is '1'; expected a number"),
    ({"chioce": "a"}, "unknown key chioce; did you mean choice?"),
    ({"x": "a"}, "unknown key x; known are: share, choice, flag, pair, items, named, rate"),
    ({"choice": "c"}, "choice is 'c'; expected one of 'a', 'b'"),
    ({"flag": 1}, "flag is 1; expected true or false"),
    ({"pair": [1]}, "pair is [1]; expected a list of length 2"),
    ({"pair": [1, 2.5]}, "pair[1] is 2.5; expected an integer"),
    ({"items": 3}, "items is 3; expected a list"),
    ({"items": [{}, {"count": 4}]}, "items[1].count is 4; expected an integer that's a multiple of 8"),
    ({"items": [{"cuont": 4}]}, "unknown key items[0].cuont; did you mean items[0].count?"),
    ({"items": [{"name": "wrong"}]}, "the name is wrong; choose another one"),
    ({"items": "y" * 200}, f"items is '{'y' * 99}...; expected a list"),
    ({"named": {"a": {}, "b": {"name": "B"}}}, "named[...].name: expected text matching regex '^[a-z]+$'"),
    ({"named": {"A": {}}}, "a key of named: expected text matching regex '^[a-z]+$'"),
    ({"rate": "x"}, "rate is 'x'; Invalid literal for Fraction: 'x'"),
]


@pytest.mark.parametrize(("data", "problem"), WRONG)
def test_wrong_value_is_named_with_what_was_expected(data: Any, problem: str) -> None:
    complete = {"share": 0, **data} if data else data
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}$"):
        read_as(Outer, complete, ConfigError, hook=fraction)


def test_record_round_trips_through_plain_values() -> None:
    record = Outer(0.5, "b", True, (1, 2), (Inner(16),), {"a": Inner()})
    assert read_as(Outer, record.to_dict(), ConfigError) == record
    assert record.to_dict()["items"] == [{"count": 16, "name": "a"}]


def test_check_fields_converts_and_names_the_section() -> None:
    record = Outer(0, pair=[1, 2])  # type: ignore[arg-type]
    check_fields(record, ConfigError)
    assert record.pair == (1, 2) and isinstance(record.share, float)
    with pytest.raises(ConfigError, match=r"part\.share is 1; expected a number < 1"):
        check_fields(Outer(1), ConfigError, section="part")
