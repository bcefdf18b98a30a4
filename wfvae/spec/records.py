"""Records: immutable objects that JSON or TOML can hold, read and checked by msgspec.

Bounds stand as `Meta` on a field's type. What does not fit them is reported in one line that names
the key, what was given and what was expected.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect, structs

from wfvae.errors import WFVAEError

T = TypeVar("T")
LONGEST_VALUE = 100
"""Characters of a value that an error shows."""
_WORDS = {
    inspect.BoolType: "true or false",
    inspect.DictType: "a section of keys",
    inspect.FloatType: "a number",
    inspect.IntType: "an integer",
    inspect.StrType: "text",
    inspect.StructType: "a section of keys",
    inspect.VarTupleType: "a list",
}
_BOUNDS = {
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "multiple_of": "a multiple of",
    "min_length": "of length >=",
    "max_length": "of length <=",
    "pattern": "matching",
}
_UNKNOWN = object()


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the records. Unknown keys are an error."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields in their order as JSON types."""
        result: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return result


def read_as(
    kind: type[T],
    data: object,
    fail: Callable[[str], WFVAEError],
    *,
    name: str = "",
    hook: Callable[[type, Any], Any] | None = None,
) -> T:
    """Converts plain values to a type, such as a record.

    Args:
        kind: a record, or any type that msgspec converts to.
        data: what `json.loads` or `tomllib.loads` returned.
        fail: makes the error from a phrase that says what is wrong.
        name: key under which `data` was found, for the text.
        hook: converts to types that JSON does not have; called with the type and the value.

    Example:
        >>> from wfvae.errors import ConfigError
        >>> class Point(Record, frozen=True):
        ...     x: int
        >>> read_as(Point, {"x": 3}, ConfigError)
        Point(x=3)
        >>> read_as(Point, {"x": "3"}, ConfigError)
        Traceback (most recent call last):
        wfvae.errors.ConfigError: x is '3'; expected an integer
    """
    try:
        return msgspec.convert(data, kind, str_keys=True, dec_hook=hook)
    except msgspec.ValidationError as problem:
        raise fail(_explain(problem, kind, data, name)) from problem


def read_json(path: Path, fail: Callable[[str], WFVAEError]) -> dict[str, Any]:
    """Reads a JSON object from a file. `fail` makes the error, as in `read_as`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise fail(str(error)) from error
    if not isinstance(data, dict):
        raise fail(f"expected a JSON object, found {type(data).__name__}")
    return data


def check_fields(
    record: msgspec.Struct,
    fail: Callable[[str], WFVAEError],
    *,
    section: str = "",
    hook: Callable[[type, Any], Any] | None = None,
) -> None:
    """Checks a record that was made in Python as if it had been read, and converts its fields.

    Call it in `__post_init__`: msgspec itself checks only what it reads. `section` comes before the
    names of fields in an error.
    """
    for field in structs.fields(record):
        name = f"{section}.{field.name}" if section else field.name
        value = read_as(field.type, getattr(record, field.name), fail, name=name, hook=hook)
        structs.force_setattr(record, field.name, value)


def _explain(problem: msgspec.ValidationError, kind: type[Any], data: object, path: str) -> str:
    """Returns a problem in words, with the key's path and the value, which msgspec leaves out."""
    if isinstance(problem.__cause__, WFVAEError):  # raised by a record's own check
        return str(problem.__cause__)
    text, _, place = str(problem).partition(" - at ")
    expected, value = _unwrap(inspect.type_info(kind)), data
    for key in re.findall(r"[^.`\[\]]+|\.\.\.", place.partition("$")[2]):
        key = _wrong_key(value, expected) if key == "..." else key
        path = f"{path}[{key}]" if isinstance(value, list | tuple) else _join(path, key)
        expected, value = _unwrap(_child(expected, key)), _item(value, key)
    if place.startswith("`key`") and isinstance(expected, inspect.DictType):
        return f"a key of {path} must be {describe_type(expected.key_type)}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{_join(path, missing[1])} is missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        return _explain_unknown(unknown[1], path, expected)
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}..."
    given = f"{path} must be" if value is _UNKNOWN else f"{path or 'it'} is {shown}; expected"
    reason = f" ({problem.__cause__})" if problem.__cause__ else ""
    return f"{given} {describe_type(expected)}{reason}"


def _explain_unknown(key: str, path: str, expected: inspect.Type) -> str:
    assert isinstance(expected, inspect.StructType)
    known = [field.encode_name for field in expected.fields]
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {_join(path, near[0])}?" if near else f"known are: {', '.join(known)}"
    return f"unknown key {_join(path, key)}; {hint}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _wrong_key(value: Any, expected: inspect.Type) -> str:
    """Returns the key of a mapping's first wrong record, which msgspec does not name."""
    inner = _child(expected, "")
    for key, item in value.items():
        try:
            msgspec.convert(item, inner.cls if isinstance(inner, inspect.StructType) else Any)
        except msgspec.ValidationError:
            return str(key)
    return "*"


def _item(value: Any, key: str) -> Any:
    try:
        return value[int(key)] if key.isdecimal() else value[key]
    except (KeyError, TypeError):
        return _UNKNOWN


def _unwrap(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _child(kind: inspect.Type, key: str) -> inspect.Type:
    """Returns the type of a field or an item."""
    match kind:
        case inspect.UnionType():
            return next(found for part in kind.types if (found := _child(part, key)) is not part)
        case inspect.StructType():
            return next(field.type for field in kind.fields if field.encode_name == key)
        case inspect.DictType():
            return kind.value_type
        case inspect.VarTupleType():
            return kind.item_type
        case inspect.TupleType():
            return kind.item_types[int(key)]
    return kind


def describe_type(kind: inspect.Type) -> str:
    """Returns what a type takes, in words, such as `an integer >= 1`."""
    match kind := _unwrap(kind):
        case inspect.UnionType():
            parts = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
            return " or ".join(map(describe_type, parts))
        case inspect.LiteralType():
            return f"one of {', '.join(map(repr, kind.values))}"
        case inspect.TupleType():
            return f"a list of {len(kind.item_types)} values"
        case inspect.CustomType():
            return f"a {kind.cls.__name__.lower()}"
    bounds = {words: getattr(kind, name, None) for name, words in _BOUNDS.items()}
    limits = [
        f"{words} {limit if isinstance(limit, str) else format(limit, 'g')}"
        for words, limit in bounds.items()
        if limit is not None
    ]
    return f"{_WORDS[type(kind)]} {' and '.join(limits)}".rstrip()
