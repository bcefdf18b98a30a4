"""Mutations of bytes, JSON, lines of TOML, snapshots and ONNX messages, by a random generator."""

import copy
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import onnx

from wfvae.runtime.snapshot import Snapshot, _digest
from wfvae.spec.manifest import json_sha256

RAW = "@raw:"
NUMBERS = [0, 1, -1, 2, 3, 4, 7, 8, 12, 16, 48, 255, 1000, 10**9, 2**31, 2**53, 2**63, -(2**63), 10**400]
TEXTS = ["", "a", "x" * 100_000, "\x1b[31m", "\n", "..", "/etc/passwd", "../x", "\u202e", "\x00", "9" * 400]
FRACTIONS = ["1e1000000000", "1/0", "-1/3", f"{RAW}1e999", f"{RAW}NaN", f"{RAW}-Infinity", 0.5, -0.5, 1e308]
SYMBOLS = ["batch", "frames", "latents", "height", "width/8", "groups", "batch\n", "encoder", "decoder"]
TYPES = ["float64", "bfloat16", "int32", "moments", None, True, False]
CONTAINERS = [[], {}, [[]], {"": {}}, [0] * 2000, ["batch"] * 40, f"{RAW}{'[' * 3000}{']' * 3000}"]
VALUES: list[Any] = [*NUMBERS, *TEXTS, *FRACTIONS, *SYMBOLS, *TYPES, *CONTAINERS]


def change_bytes(data: bytes, random: Random) -> bytes:
    """Flips, overwrites, cuts, inserts or repeats some bytes; headers more often than the rest."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5, 20))):
        if not changed:
            break
        area = random.choice((len(changed), len(changed), 64, 512))
        place = random.randrange(min(area, len(changed)))
        count = random.choice((1, 2, 4, 8, 64))
        match random.randrange(6):
            case 0:
                changed[place] ^= 1 << random.randrange(8)
            case 1:
                changed[place : place + count] = random.randbytes(count)
            case 2:
                del changed[place : place + random.choice((count, len(changed)))]
            case 3:
                changed[place:place] = random.randbytes(count)
            case 4:
                changed[place:place] = changed[place : place + count]
            case 5:
                changed[place : place + count] = random.choice((b"\x00", b"\xff", b"\x7f")) * count
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all values inside of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [one for key, item in items for one in ((*path, key), *places(item, (*path, key)))]


def change_json(value: Any, random: Random) -> Any:
    """Replaces, removes, repeats or swaps values anywhere in a JSON value."""
    changed = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        found = places(changed)
        if not found:
            break
        *path, key = random.choice(found)
        owner = changed
        for step in path:
            owner = owner[step]
        match random.randrange(8):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, list):
                owner.append(copy.deepcopy(owner[key]))
            case 1:
                owner[random.choice(("", "x", "\x1b[2J", "a" * 300, "a - at `$.b`"))] = copy.deepcopy(
                    owner[key]
                )
            case 2:
                other: Any = changed
                for step in random.choice(found):
                    other = other[step] if not isinstance(other, str) and step in places_of(other) else other
                owner[key] = copy.deepcopy(other)
            case 3 if type(owner[key]) is int:
                owner[key] += random.choice((-1, 1, 8, 10**6, -(10**6), 2**40))
            case _:
                owner[key] = copy.deepcopy(random.choice(VALUES))
    return changed


def places_of(value: Any) -> Any:
    """Returns the keys of a container."""
    return value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()


def as_text(value: Any) -> str:
    """Returns JSON, in which values that begin with `RAW` stand as they are."""
    parts = json.dumps(value).split(f'"{RAW}')
    return parts[0] + "".join(part.replace('"', "", 1) for part in parts[1:])


def change_json_file(path: Path, random: Random, field: str = "", left_out: tuple[str, ...] = ()) -> None:
    """Changes a JSON file as text or as values; `field` gets the hash of the rest, mostly."""
    text = path.read_text()
    if random.random() < 0.15:
        path.write_bytes(change_bytes(text.encode(), random))
        return
    value = change_json(json.loads(text), random)
    if field and random.random() < 0.85:
        rest = {key: item for key, item in value.items() if key not in (field, *left_out)}
        value[field] = json_sha256(json.loads(as_text(rest))) if sound(rest) else "0" * 64
    path.write_text(as_text(value))


def sound(value: Any) -> bool:
    """Whether Python's own parser takes the value."""
    try:
        json.dumps(json.loads(as_text(value)))
    except (ValueError, RecursionError):
        return False
    return True


def change_safetensors(path: Path, random: Random, inner: str = "") -> None:
    """Changes a file's bytes, or its header as JSON; `inner` is metadata that is JSON itself."""
    data = path.read_bytes()
    if random.random() < 0.4:
        path.write_bytes(change_bytes(data, random))
        return
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if inner and random.random() < 0.7:
        header["__metadata__"][inner] = as_text(
            change_json(json.loads(header["__metadata__"][inner]), random)
        )
    else:
        header = change_json(header, random)
    text = as_text(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def change_snapshot(data: bytes, random: Random) -> bytes:
    """Changes a snapshot's bytes, or counters, arrays and facts under a hash that fits."""
    if random.random() < 0.25:
        return change_bytes(data, random)
    found = Snapshot.from_bytes(data)
    metadata = {
        "format": "wfvae-snapshot/1",
        "bundle": found.bundle,
        "direction": found.direction,
        "size": f"{found.height}x{found.width}",
        "counters": json.dumps(dict(found.counters), sort_keys=True),
        "note": found.note,
    }
    tensors = {f"state.{name}": array for name, array in found.state.items()}
    tensors |= {f"input.{name}": array for name, array in found.pending.items()}
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(tensors))
        match random.randrange(7):
            case 0 | 1:
                metadata["counters"] = as_text(change_json(json.loads(metadata["counters"]), random))
            case 2:
                metadata[random.choice([key for key in metadata if key != "counters"])] = str(
                    random.choice(VALUES)
                )[:50]
            case 3:
                tensors[name] = tensors[name][..., :-1] if tensors[name].ndim else tensors[name]
            case 4:
                tensors[name] = tensors[name].astype(random.choice(("f2", "f4", "f8", "i4", "u1", "u2")))
            case 5:
                changed = tensors[name].copy()
                changed.reshape(-1)[:1] = (
                    random.choice((float("nan"), float("inf"), 0)) if changed.dtype.kind == "f" else 255
                )
                tensors[name] = changed
            case 6:
                tensors[random.choice(("state.x", "input.ready", "input.waiting"))] = tensors.pop(name)
    import safetensors.numpy

    metadata["sha256"] = _digest(metadata, tensors)
    tensors = {name: array.copy() for name, array in tensors.items()}
    return bytes(safetensors.numpy.save(tensors, metadata))


def change_toml(text: str, random: Random) -> bytes:
    """Changes a configuration's bytes or lines."""
    if random.random() < 0.3:
        return change_bytes(text.encode(), random)
    lines = text.splitlines()
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(lines))
        name = lines[place].partition(" = ")[0]
        value = random.choice(VALUES)
        written = (
            value.removeprefix(RAW) if isinstance(value, str) and value.startswith(RAW) else json.dumps(value)
        )
        written = random.choice((written, "inf", "nan", "2024-01-01", "1e999", "{a=1}", '"""'))
        match random.randrange(6):
            case 0:
                del lines[place]
            case 1:
                lines.insert(place, lines[random.randrange(len(lines))])
            case 2:
                lines.insert(place, f"{'a.' * random.choice((1, 50, 9000))}b = {written}")
            case _:
                lines[place] = f"{name} = {written}"
        if not lines:
            break
    return "\n".join(lines).encode()


def change_onnx(data: bytes, random: Random) -> bytes:
    """Changes a graph's bytes, or its nodes, attributes, shapes and external data."""
    if random.random() < 0.3:
        return change_bytes(data, random)
    model: Any = onnx.load_from_string(data)
    graph = model.graph
    for _ in range(random.choice((1, 1, 2, 4))):
        node, weight = random.choice(graph.node), random.choice(graph.initializer)
        match random.randrange(8):
            case 0 if weight.dims:
                weight.dims[random.randrange(len(weight.dims))] = random.choice(
                    (0, -1, 1, 2**20, 2**40, 2**62)
                )
            case 1 if weight.external_data:
                entry = random.choice(weight.external_data)
                entry.value = random.choice(("0", "-1", "9" * 30, "../x", "manifest.json", "4096", "x", ""))
            case 2 if weight.raw_data:
                weight.raw_data = change_bytes(weight.raw_data, random)
            case 3:
                node.op_type = random.choice(
                    (
                        "Add",
                        "Expand",
                        "ConstantOfShape",
                        "Loop",
                        "Range",
                        "Tile",
                        "Shape",
                        "MatMul",
                        "If",
                        "Pad",
                    )
                )
            case 4 if node.input:
                node.input[random.randrange(len(node.input))] = random.choice(
                    (
                        "",
                        random.choice(graph.initializer).name,
                        random.choice(graph.node).output[0],
                        "nowhere",
                    )
                )
            case 5 if node.attribute:
                attribute = random.choice(node.attribute)
                attribute.i = random.choice((0, -1, 2**31, 2**62))
                if attribute.ints:
                    attribute.ints[0] = random.choice((0, -1, 99, 2**31, 2**62))
            case 6:
                del graph.node[random.randrange(len(graph.node))]
            case 7:
                weight.data_type = random.randrange(20)
    return bytes(model.SerializeToString())


def list_file(bundle: Path, name: str) -> None:
    """Enters a changed file's size and hash in the manifest, as whoever forges a bundle would."""
    path = bundle / "manifest.json"
    value, content = json.loads(path.read_text()), (bundle / name).read_bytes()
    value["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    rest = {key: item for key, item in value.items() if key not in ("identity", "engines")}
    path.write_text(json.dumps(value | {"identity": json_sha256(rest)}))
