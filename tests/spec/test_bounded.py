"""Files of any content: parsed, or refused in one line that says what is wrong, at once."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from wfvae.errors import ConfigError
from wfvae.spec.bounded import (
    JSON_BYTES,
    parse_json,
    parse_toml,
    read_exactly,
    read_json,
    read_toml,
    to_fraction,
)

DEEP = 100_000
BAD_JSON = {
    "deep list": "[" * DEEP,
    "deep object": '{"a":' * DEEP,
    "deep and whole": "[" * 200 + "]" * 200,
    "a large exponent": '{"a": 1e999}',
    "NaN": '{"a": NaN}',
    "infinity": '{"a": -Infinity}',
    "an integer of 65 bits": '{"a": 18446744073709551616}',
    "an integer of 5,000 digits": f'{{"a": {"9" * 5000}}}',
    "a lone surrogate": '{"a": "\\ud800"}',
    "a lone surrogate as a key": '{"\\udfff": 1}',
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "nothing": "",
    "half": '{"a": ',
    "a zero byte": "\0",
}
BAD_TOML = {
    "deep list": "a = " + "[" * 60_000,
    "deep table": "a = " + "{b=" * 20_000,
    "a key of 30,000 parts": ".".join("a" * 30_000) + " = 1",
    "a header of 30,000 parts": "[" + ".".join("a" * 30_000) + "]",
    "an integer of 5,000 digits": f"a = {'9' * 5000}",
    "an integer of 65 bits": f"a = {2**64}",
    "a wrong date": "a = 2024-02-31",
    "no UTF-8": b'a = "\xff"',
    "too long": "#" * (1 << 17),
    "the same key twice": "a = 1\na = 2",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json_is_refused_in_one_line(kind: str) -> None:
    refused(lambda: parse_json(BAD_JSON[kind], ConfigError))


@pytest.mark.parametrize("kind", BAD_TOML)
def test_bad_toml_is_refused_in_one_line(kind: str) -> None:
    refused(lambda: parse_toml(BAD_TOML[kind], ConfigError))


def refused(parse: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse()
    message = str(caught.value)
    assert message and message.isprintable() and len(message) < 300


def test_values_at_the_bounds_are_read() -> None:
    deep = "[" * 32 + "]" * 32
    text = (
        f'{{"a": {2**63 - 1}, "b": {-(2**63) + 1}, "c": 1.7e308, "d": {deep}, "e": "\\u00e4\\ud83d\\ude00"}}'
    )
    found = parse_json(text, ConfigError)
    assert found["a"] == 2**63 - 1 and found["c"] == 1.7e308 and found["e"] == "ä😀"
    assert parse_json('"\\udcff"', ConfigError, any_text=True) == "\udcff"
    assert parse_json("[Infinity]", ConfigError, finite=False) == [float("inf")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("25", 25),
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(2997, 100)),
        (25, 25),
        (23.976, 2997 / 125),
    ],
)
def test_fraction_is_read(value: object, expected: float) -> None:
    assert to_fraction(value) == Fraction(expected).limit_denominator(10**6)


@pytest.mark.parametrize(
    "value",
    [
        "1e1000000000",
        "1/0",
        "",
        "1/",
        "-1",
        " 1",
        "1" * 5000,
        "4294967296",
        "1/4294967296",
        "²",
        True,
        None,
        float("nan"),
        [],
    ],
)
def test_what_is_no_fraction_is_refused_at_once(value: object) -> None:
    with pytest.raises(ValueError, match="expected a fraction"):
        to_fraction(value)


@pytest.mark.parametrize("read", [read_json, read_toml])
def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, read: Callable[[Path, Any], Any]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "nothing", Path("a\0b")):
        refused(lambda path=path: read(path, ConfigError))  # type: ignore[misc]


def test_file_above_its_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=f"1099511627776 bytes; expected at most {JSON_BYTES}"):
        read_json(path, ConfigError)


def test_reading_past_the_end_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    with path.open("rb") as file:
        buffer = bytearray(4)
        assert read_exactly(file, memoryview(buffer), 1) and buffer == b"bcde"
        assert not read_exactly(file, memoryview(buffer), 3)
