"""Records: immutable objects that JSON or TOML can hold, read and checked by msgspec.

Bounds stand as `Meta` on a field's type. What does not fit them is reported in one line that names
the key, what was given and what was expected.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect, structs

from wfvae.errors import WFVAEError

T = TypeVar("T")
R = TypeVar("R", bound="Record")
LONGEST_VALUE = 100
"""Characters of a value that an error shows."""
_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "object": "a section of keys",
    "str": "text",
}
"""Types in the messages of msgspec, in the words of a TOML file."""
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
        data: what `parse_json` or `parse_toml` of `wfvae.spec.bounded` returned.
        fail: makes the error from a phrase that says what is wrong.
        name: key under which `data` was found, for the text.
        hook: converts to types that JSON does not have; called with the type and the value.
    """
    try:
        return msgspec.convert(data, kind, str_keys=True, dec_hook=hook)
    except msgspec.ValidationError as problem:
        if isinstance(problem.__cause__, WFVAEError):  # raised by a record's own check
            raise fail(str(problem.__cause__)) from problem
        raise fail(_explain(str(problem), kind, data, name)) from problem


def read_unchanged(kind: type[R], data: Mapping[str, Any], fail: Callable[[str], WFVAEError]) -> R:
    """Converts as `read_as`, and fails unless computed fields have their values in `data`."""
    record = read_as(kind, data, fail)
    if record.to_dict() != data:
        raise fail("it has been changed (its SHA-256 differs)")
    return record


def name_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each key whose value differs, or that only one of the two has.

    >>> name_differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
    ['b was 2, and is 3']
    """
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key} was {_shown(before.get(key))}, and is {_shown(now.get(key))}" for key in keys]


def _shown(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def check_fields(
    record: msgspec.Struct,
    fail: Callable[[str], WFVAEError],
    *,
    section: str = "",
    hook: Callable[[type, Any], Any] | None = None,
) -> None:
    """Checks a record in its `__post_init__` as if it had been read, and converts its fields.

    msgspec itself checks only what it reads. `section` precedes the names of fields in an error.
    """
    for field in structs.fields(record):
        name = f"{section}.{field.name}".lstrip(".")
        value = read_as(field.type, getattr(record, field.name), fail, name=name, hook=hook)
        structs.force_setattr(record, field.name, value)


def _explain(problem: str, kind: type[Any], data: Any, name: str) -> str:
    """Adds to a message of msgspec the key's path, its value, and the known keys or choices."""
    # What follows the last " - at " is msgspec's; a key before it may hold any text.
    text, found, place = problem.rpartition(" - at ")
    if not found:
        text, place = problem, ""
    location = place.rstrip("`").rpartition("$")[2]
    path = (name + location).lstrip(".")
    expected, value = _strip(inspect.type_info(kind)), data
    for key in re.findall(r"\w+|\.\.\.", location):
        try:
            expected, value = _strip(_child(expected, key)), _item(value, key)
        except (LookupError, StopIteration, ValueError):  # a key that is no identifier
            value = _UNKNOWN
            break
    before = f"{path}." if path else ""
    if missing := re.fullmatch(r"Object missing required field `(.*)`", text):
        return f"{before}{missing[1]} is missing"
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
    if unknown and isinstance(expected, inspect.StructType):
        known = [field.encode_name for field in expected.fields]
        near = difflib.get_close_matches(unknown[1], known, 1)
        hint = f"did you mean {before}{near[0]}?" if near else f"known are: {', '.join(known)}"
        return f"unknown key {before}{unknown[1]}; {hint}"
    if isinstance(expected, inspect.LiteralType):
        text = f"Expected one of {', '.join(map(repr, expected.values))}"
    rule = re.sub(r"`([\w |]+)`", _name_types, text.partition(", got ")[0]).replace("Expected", "expected")
    if place.startswith("`key`"):
        return f"a key of {path}: {rule}"
    if value is _UNKNOWN:
        return f"{path}: {rule}"
    shown = repr(value)
    shown = shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}..."
    return f"{path or 'it'} is {shown}; {rule}"


def _name_types(found: re.Match[str]) -> str:
    names = found[1].split(" | ")
    return " or ".join(_WORDS.get(name, name) for name in names if name != "null")


def _item(value: Any, key: str) -> Any:
    """Returns an item of a list or mapping; unknown where msgspec names no key of a mapping."""
    if isinstance(value, Mapping):
        return value.get(key, _UNKNOWN)
    return value[int(key)] if isinstance(value, list | tuple) else _UNKNOWN


def _strip(kind: inspect.Type) -> inspect.Type:
    """Returns the type without its metadata and without None."""
    if isinstance(kind, inspect.Metadata):
        return _strip(kind.type)
    if isinstance(kind, inspect.UnionType):
        return _strip(next(part for part in kind.types if not isinstance(part, inspect.NoneType)))
    return kind


def _child(kind: inspect.Type, key: str) -> inspect.Type:
    """Returns the type of a field or an item."""
    match kind:
        case inspect.StructType():
            return next(field.type for field in kind.fields if field.encode_name == key)
        case inspect.DictType():
            return kind.value_type
        case inspect.VarTupleType():
            return kind.item_type
        case inspect.TupleType():
            return kind.item_types[int(key)]
    return kind
