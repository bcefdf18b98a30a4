"""Errors of records: they name the key, what was given and what was expected."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "share is missing"),
        ([], r"it is \[\]; expected a section of keys"),
        ({"share": float("nan")}, "share is nan; expected a number >= 0 and < 1"),
        ({"share": "1"}, "share is '1'; expected a number >= 0 and < 1"),
        ({"share": 0, "chioce": "a"}, r"unknown key chioce; did you mean choice\?"),
        ({"share": 0, "x": "a"}, "unknown key x; known are: share, choice, flag, pair, items, named, rate"),
        ({"share": 0, "choice": "c"}, "choice is 'c'; expected one of 'a', 'b'"),
        ({"share": 0, "flag": 1}, "flag is 1; expected true or false"),
        ({"share": 0, "pair": [1]}, r"pair is \[1\]; expected a list of 2 values"),
        ({"share": 0, "pair": [1, 2.5]}, r"pair\[1\] is 2.5; expected an integer"),
        ({"share": 0, "items": 3}, "items is 3; expected a list"),
        (
            {"share": 0, "items": [{}, {"count": 4}]},
            r"items\[1\].count is 4; expected an integer >= 1 and <= 512",
        ),
        (
            {"share": 0, "items": [{"cuont": 4}]},
            r"unknown key items\[0\].cuont; did you mean items\[0\].count\?",
        ),
        (
            {"share": 0, "named": {"a": {}, "b": {"name": "B"}}},
            r"named.b.name is 'B'; expected text matching \^",
        ),
        ({"share": 0, "named": {"A": {}}}, r"a key of named must be text matching \^\[a-z\]\+\$"),
        ({"share": 0, "items": [{"name": "wrong"}]}, "the name is wrong; choose another one"),
        ({"share": 0, "rate": "x"}, r"rate is 'x'; expected a fraction \(Invalid literal"),
        ({"share": 0, "items": "y" * 200}, r"items is 'y{99}\.\.\.; expected a list"),
    ],
)
def test_wrong_value_is_named_with_what_was_expected(data: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{problem}"):
        read_as(Outer, data, ConfigError, hook=fraction)


def test_record_round_trips_through_plain_values() -> None:
    record = Outer(0.5, "b", True, (1, 2), (Inner(16),), {"a": Inner()})
    assert read_as(Outer, record.to_dict(), ConfigError) == record
    assert record.to_dict()["items"] == [{"count": 16, "name": "a"}]


def test_check_fields_converts_and_names_the_section() -> None:
    record = Outer(0, pair=[1, 2])  # type: ignore[arg-type]
    check_fields(record, ConfigError)
    assert record.pair == (1, 2) and isinstance(record.share, float)
    with pytest.raises(ConfigError, match=r"part\.share is 1; expected a number >= 0 and < 1"):
        check_fields(Outer(1), ConfigError, section="part")
