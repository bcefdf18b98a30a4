"""The bundle's specification: manifests are as the schema says, the schema's keys are documented,
and the document's client works.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from wfvae.runtime import Bundle
from wfvae.spec.engines import BuildSettings, EngineRecord, Span, Target, graph_sha256, profiles_for
from wfvae.spec.manifest import FORMAT, METADATA_KEY, Manifest

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "bundle-format.md").read_text(encoding="utf-8")
SCHEMA = json.loads((DOCS / "bundle.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
EXPORTS: list[tuple[str, dict[str, Any]]] = [
    ("4x8x8-trilinear", {}),
    ("4x8x8-nearest-16ch", {}),
    ("8x8x8-trilinear", {}),
    ("4x8x8-trilinear", {"latents": "moments"}),
    ("4x8x8-trilinear", {"size": (16, 24)}),
    ("4x8x8-trilinear", {"precision": "fp16"}),
    ("4x8x8-trilinear", {"precision": "bf16"}),
    ("small", {"direct": False}),
]


def read_manifest(bundle: Path) -> Any:
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["format"]["const"] == FORMAT and FORMAT in TEXT and METADATA_KEY in TEXT


@pytest.mark.parametrize(("name", "options"), EXPORTS)
def test_every_manifest_is_as_the_schema_says(
    exported: Callable[..., Path], name: str, options: dict[str, Any]
) -> None:
    manifest = read_manifest(exported(name, **options))
    assert [error.message for error in VALIDATOR.iter_errors(manifest)] == []
    manifest["engines"] = engine_entries(exported(name, **options))
    assert len(manifest["engines"]) == 2 * (1 + options.get("direct", True))
    assert [error.message for error in VALIDATOR.iter_errors(manifest)] == []


def engine_entries(bundle: Path) -> Any:
    """Entries of engines as a build for whole clips lists them."""
    manifest, settings = Manifest.read(bundle), BuildSettings(Span(1, 2, 4), whole_clip=6, workspace=1 << 30)
    target = Target("10.13.3.9", "NVIDIA H200", "9.0")
    records = [
        EngineRecord(
            key,
            graph_sha256(manifest, key),
            manifest.precision,
            settings,
            profiles_for(settings, graph),
            target,
            "0" * 64,
            7,
        )
        for key, graph in manifest.graphs.items()
    ]
    return json.loads(json.dumps([record.to_dict() for record in records]))


def test_wrong_entries_of_engines_are_not(exported: Callable[..., Path]) -> None:
    manifest = read_manifest(exported("4x8x8-trilinear"))
    [entry, *_] = engine_entries(exported("4x8x8-trilinear"))

    def valid(changed: Any) -> bool:
        return VALIDATOR.is_valid({**manifest, "engines": [changed]})

    assert valid(entry)
    for path in places(entry):
        changed = json.loads(json.dumps(entry))
        owner = owner_of(changed, path)
        if isinstance(owner, dict):
            owner["another"] = 1
            assert not valid(changed), f"a key beside {path}"
            del owner["another"], owner[path[-1]]
            assert not valid(changed), f"without {path}"
            owner[path[-1]] = ["?"]
            assert not valid(changed), f"{path} of another type"
    for name in (
        "engines/../encoder-0123456789abcdef.engine",
        "encoder-0123456789abcdef.engine",
        "engines/x.plan",
    ):
        assert not valid({**entry, "file": name}), name
    assert not valid(
        {**entry, "settings": {**entry["settings"], "height": {"low": 8, "best": 12, "high": 16}}}
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys, but for those inside of `model` and `producer`, and of the first entries
    of lists.
    """
    items: list[tuple[Any, Any]] = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))[:1]
        if isinstance(value, list)
        else []
    )
    for key, entry in items:
        yield (*path, key)
        if key not in ("model", "producer"):
            yield from places(entry, (*path, key))


def owner_of(manifest: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        manifest = manifest[key]
    return manifest


OPTIONAL = {
    "encoder.direct",
    "decoder.direct",
    "encoder.onnx",
    "decoder.onnx",
    "encoder.direct.onnx",
    "decoder.direct.onnx",
}


def test_wrong_manifests_are_not(exported: Callable[..., Path]) -> None:
    """Without any key, with a key more anywhere, and with a value of another kind anywhere."""
    manifest = read_manifest(exported("4x8x8-trilinear"))
    paths = list(places(manifest))
    assert len(paths) > 100
    for path in paths:
        if isinstance(path[-1], str) and path[-1] not in OPTIONAL:
            changed = copy.deepcopy(manifest)
            del owner_of(changed, path)[path[-1]]
            assert not VALIDATOR.is_valid(changed), f"without {path}"
        changed = copy.deepcopy(manifest)
        owner_of(changed, path)[path[-1]] = {"wrong": None}
        assert path == ("model",) or not VALIDATOR.is_valid(changed), f"wrong {path}"
        if isinstance(owner_of(manifest, path), dict):
            changed = copy.deepcopy(manifest)
            owner_of(changed, path)["unknown"] = 1
            assert not VALIDATOR.is_valid(changed), f"more beside {path}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "direct"),
        ("direction", "decoder"),
        ("ratio", 5),
        ("drain", True),
        ("delay_frames", 2),
        ("file", "../encoder.onnx"),
        ("file", "/tmp/encoder.onnx"),
        ("states", []),
        ("scratch_bytes", [[["batch"]]]),
        ("scratch_bytes", [[[1, "depth"]]]),
        ("weights_bytes", -1),
        ("outputs", []),
    ],
)
def test_contradictions_are_found(exported: Callable[..., Path], key: str, value: Any) -> None:
    manifest = read_manifest(exported("4x8x8-trilinear"))
    manifest["graphs"]["encoder"][key] = value
    assert not VALIDATOR.is_valid(manifest)


def schema_keys(schema: Any) -> Iterator[str]:
    """All property names that the schema defines."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for entry in schema.values():
            yield from schema_keys(entry)
    elif isinstance(schema, list):
        for entry in schema:
            yield from schema_keys(entry)


def test_every_key_is_documented_and_no_other(exported: Callable[..., Path]) -> None:
    section = TEXT.partition("## Manifest")[2].partition("### Symbols in shapes")[0]
    documented = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
    assert len(documented) == len(set(documented))
    graphs = {"encoder", "decoder", "encoder.direct", "decoder.direct"}
    engines = ("engine", "span", "side")
    described = {
        **SCHEMA,
        "$defs": {name: kind for name, kind in SCHEMA["$defs"].items() if name not in engines},
    }
    assert set(documented) == set(schema_keys(described)) - graphs
    table = (
        (DOCS / "tensorrt.md")
        .read_text(encoding="utf-8")
        .partition("## Which engine runs")[2]
        .partition("\n## ")[0]
    )
    assert {key for name in engines for key in schema_keys(SCHEMA["$defs"][name])} <= set(
        re.findall(r"`([^`]+)`", table)
    )
    symbols = set(
        re.findall(r"`([^`]+)`", TEXT.partition("### Symbols in shapes")[2].partition("## Video")[0])
    )
    used = {
        dim
        for tensor in tensors(read_manifest(exported("8x8x8-trilinear")))
        for dim in tensor["shape"]
        if isinstance(dim, str)
    }
    assert {dim.replace("width", "height") for dim in used} <= symbols


def tensors(manifest: Any) -> Iterator[Any]:
    for graph in manifest["graphs"].values():
        yield from (*graph["inputs"], *graph["outputs"], *graph["states"])


@pytest.mark.parametrize(
    ("name", "drop"), [("4x8x8-nearest-16ch", 3), ("4x8x8-trilinear", 5), ("8x8x8-trilinear", 13)]
)
def test_the_worked_examples(
    exported: Callable[..., Path], opened: Callable[..., Bundle], name: str, drop: int
) -> None:
    """The document's tables of three latents: what each step gives, read off the text."""
    graph = read_manifest(exported(name))["graphs"]["decoder"]
    heading = f"r = {graph['ratio']}, {'nearest' if 'nearest' in name else 'trilinear'}"
    table = TEXT.partition(f"    {heading}")[2].partition("\n\n")[0]
    assert (
        table.split()[1].rstrip(",") == str(drop) == str(graph["drop_frames"])
        and ("no drain" in table) != graph["drain"]
    )
    rows = re.findall(r"(?:z\d|end) +(.*)", table)
    counts = [
        len(re.findall(r"f\d+", row.split("...")[0])) if "..." not in row else graph["ratio"] for row in rows
    ]
    with opened(name).decoder(height=8, width=8, chunk=1) as stream:
        channels = graph["inputs"][0]["shape"][2]
        given = [len(stream.push(np.zeros((1, channels, 1, 1), np.float32))) for _ in range(3)]
        last = len(stream.finish())
    assert (
        given == counts[:3]
        and counts[3:] == ([last] if graph["drain"] else [])
        and sum(counts) == 1 + 2 * graph["ratio"]
    )


CLIENT_SCRIPT = """
import sys
import numpy as np
namespace = {}
exec(sys.stdin.read(), namespace)
bundle, folder = sys.argv[1:]
frames = np.load(f"{folder}/frames.npy")
latents = namespace["encode"](bundle, frames, int(2))
np.save(f"{folder}/latents.npy", latents)
np.save(f"{folder}/decoded.npy", namespace["decode"](bundle, latents, *frames.shape[:3], m=3))
assert not any(name.partition(".")[0] in ("wfvae", "torch") for name in sys.modules)
"""


@pytest.mark.parametrize("name", ["4x8x8-nearest-16ch", "4x8x8-trilinear", "8x8x8-trilinear"])
@pytest.mark.parametrize(("frames", "height", "width"), [(19, 13, 22), (1, 3, 1)])
def test_a_client_written_from_the_document_gives_the_same_bits(
    exported: Callable[..., Path],
    opened: Callable[..., Bundle],
    tmp_path: Path,
    name: str,
    frames: int,
    height: int,
    width: int,
) -> None:
    """The code of the document, alone with numpy and onnxruntime in a process of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    clip = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", clip)
    arguments = [sys.executable, "-c", CLIENT_SCRIPT, str(exported(name)), str(tmp_path)]
    run = subprocess.run(arguments, input=code, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    latents, decoded = np.load(tmp_path / "latents.npy"), np.load(tmp_path / "decoded.npy")
    wanted = opened(name).encode(clip)
    assert latents.shape == wanted.shape and latents.tobytes() == wanted.tobytes()
    expected = opened(name).decode(wanted, frames=frames, height=height, width=width)
    assert decoded.shape == expected.shape == clip.shape and decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["4x8x8-trilinear", "8x8x8-trilinear"])
def test_the_memory_formulas(exported: Callable[..., Path], opened: Callable[..., Bundle], name: str) -> None:
    manifest = read_manifest(exported(name))
    for direction in ("encoder", "decoder"):
        graph = manifest["graphs"][direction]
        values = {"batch": 2, "latents": 3, "height/8": 5, "width/8": 7}
        peak = max(
            sum(int(np.prod([values.get(s, s) for s in product])) for product in total)
            for total in graph["scratch_bytes"]
        )
        plan = opened(name).plan(direction, height=37, width=50, streams=2, chunk=3)  # type: ignore[arg-type]
        assert plan.scratch_bytes == peak and plan.weights_bytes == graph["weights_bytes"]
        widths = {"float32": 4, "int32": 4}
        sides = {
            "batch": 1,
            **{f"{s}/{k}": 8 * n // k for s, n in (("height", 5), ("width", 7)) for k in (2, 4, 8)},
        }
        state = sum(
            int(np.prod([sides.get(d, d) for d in s["shape"]])) * widths[s["dtype"]] for s in graph["states"]
        )
        assert plan.state_bytes == state


def test_the_identity_is_the_documents(exported: Callable[..., Path], opened: Callable[..., Bundle]) -> None:
    manifest = read_manifest(exported("8x8x8-trilinear"))
    content = {key: value for key, value in manifest.items() if key not in ("identity", "engines")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == manifest["identity"]
        == opened("8x8x8-trilinear").identity
    )
