"""Records: immutable objects that JSON or TOML can hold, read and checked by msgspec.

Bounds stand as `Meta` on a field's type. What does not fit them is reported in one line that names
the key, what was given and what was expected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import inspect, structs

from wfvae.errors import WFVAEError

T = TypeVar("T")
LONGEST_VALUE = 100
"""Characters of a value that an error shows."""
_UNKNOWN = object()
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}


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


def _explain(problem: msgspec.ValidationError, kind: type[Any], data: object, name: str) -> str:
    if isinstance(problem.__cause__, WFVAEError):  # raised by a record's own check
        return str(problem.__cause__)
    text, _, place = str(problem).partition(" - at ")
    expected, path, value = _unwrap(inspect.type_info(kind)), name, data
    for key in re.findall(r"[^.`\[\]]+|\.\.\.", place.partition("$")[2]):
        key = _failing_key(value, expected) if key == "..." else key
        path = f"{path}[{key}]" if isinstance(value, (list, tuple)) else _join(path, key)
        expected, value = _unwrap(_child(expected, key)), _item(value, key)
    if place.startswith("`key`") and isinstance(expected, inspect.DictType):
        return f"a key of {path} must be {describe_type(expected.key_type)}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{_join(path, missing[1])} is missing"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        return _explain_unknown(unknown[1], path, expected)
    given = f"{path} must be" if value is _UNKNOWN else f"{path or 'it'} is {_abbreviate(value)}; expected"
    reason = f" ({problem.__cause__})" if problem.__cause__ else ""
    return f"{given} {describe_type(expected)}{reason}"


def _explain_unknown(key: str, path: str, expected: inspect.Type) -> str:
    known = (
        [field.encode_name for field in expected.fields] if isinstance(expected, inspect.StructType) else []
    )
    near = difflib.get_close_matches(key, known, 1)
    hint = f"did you mean {_join(path, near[0])}?" if near else f"known are: {', '.join(known)}"
    return f"unknown key {_join(path, key)}; {hint}"


def _abbreviate(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _failing_key(value: Any, expected: inspect.Type) -> str:
    """Returns the key of a mapping's first wrong value, which msgspec does not name."""
    inner = _child(expected, "")
    for key, item in value.items():
        if isinstance(inner, inspect.StructType):
            try:
                msgspec.convert(item, inner.cls)
            except msgspec.ValidationError:
                return str(key)
    return "*"


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


def _item(value: Any, key: str) -> Any:
    try:
        return value[int(key)] if key.isdecimal() else value[key]
    except (KeyError, TypeError):
        return _UNKNOWN


def describe_type(kind: inspect.Type) -> str:
    """Returns what a type takes, in words, such as `an integer >= 1`."""
    match kind := _unwrap(kind):
        case inspect.UnionType():
            parts = [describe_type(part) for part in kind.types if not isinstance(part, inspect.NoneType)]
            return " or ".join(parts)
        case inspect.LiteralType():
            return f"one of {', '.join(map(repr, kind.values))}"
        case inspect.IntType() | inspect.FloatType():
            return " ".join(
                ["an integer" if isinstance(kind, inspect.IntType) else "a number", _bounds(kind)]
            ).rstrip()
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return f"text that matches {kind.pattern}" if kind.pattern else "text"
        case inspect.TupleType():
            return f"a list of {len(kind.item_types)} values"
        case inspect.VarTupleType():
            return "a list of one or more values" if kind.min_length else "a list of values"
        case inspect.CustomType():
            return f"a {kind.cls.__name__.lower()}"
    return "a section of keys"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    values = {sign: getattr(kind, name) for name, sign in _BOUNDS.items()}
    return " and ".join(f"{sign} {value:g}" for sign, value in values.items() if value is not None)
