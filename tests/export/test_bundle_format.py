"""The bundle's specification: schema, document and its client agree with real bundles."""

import copy
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from fixtures.engine_records import engine_record
from wfvae.errors import BundleError
from wfvae.runtime import Bundle
from wfvae.spec.manifest import FORMAT, METADATA_KEY, Manifest
from wfvae.spec.schema import schema_text
from wfvae.spec.tensorrt_engines import BuildSettings, Span

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


def test_committed_schema_is_the_generated_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert (DOCS / "bundle.schema.json").read_text(encoding="utf-8") == schema_text()
    assert FORMAT in TEXT and METADATA_KEY in TEXT


@pytest.mark.parametrize(("name", "options"), EXPORTS)
def test_schema_accepts_every_manifest(
    exported: Callable[..., Path], name: str, options: dict[str, Any]
) -> None:
    manifest = read_manifest(exported(name, **options))
    assert [error.message for error in VALIDATOR.iter_errors(manifest)] == []
    manifest["engines"] = engine_entries(exported(name, **options))
    assert len(manifest["engines"]) == 2 * (1 + options.get("direct", True))
    assert [error.message for error in VALIDATOR.iter_errors(manifest)] == []


def engine_entries(bundle: Path) -> list[dict[str, Any]]:
    """Entries of engines as a build for whole clips lists them."""
    manifest, settings = Manifest.read(bundle), BuildSettings(Span(1, 2, 4), whole_clip=6, workspace=1 << 30)
    return [engine_record(manifest, graph, settings).to_dict() for graph in manifest.graphs]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the paths of all keys (not those inside `model` and `producer`) and first items."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:1]
    for key, entry in items:
        yield (*path, key)
        if key not in ("model", "producer"):
            yield from places(entry, (*path, key))


def changed(manifest: Any, path: tuple[Any, ...], change: Callable[[Any, Any], object]) -> Any:
    """Returns a copy in which `change` was applied to the owner of the last key of `path`."""
    copied = owner = copy.deepcopy(manifest)
    for key in path[:-1]:
        owner = owner[key]
    change(owner, path[-1])
    return copied


OPTIONAL = {
    f"{key}{suffix}" for key in ("encoder", "decoder") for suffix in (".direct", ".onnx", ".direct.onnx")
}


@pytest.fixture(scope="module")
def manifest(exported: Callable[..., Path]) -> Any:
    """The manifest of a bundle with one engine."""
    path = exported("4x8x8-trilinear")
    return read_manifest(path) | {"engines": engine_entries(path)[:1]}


@pytest.mark.slow
def test_schema_refuses_missing_unknown_and_mistyped_keys_anywhere(manifest: Any) -> None:
    paths = list(places(manifest))
    assert len(paths) > 140
    for path in paths:
        wrong = changed(manifest, path, lambda owner, key: owner.__setitem__(key, {"wrong": None}))
        assert not VALIDATOR.is_valid(wrong), f"wrong {path}"
        if isinstance(path[-1], int):
            continue
        more = changed(manifest, path, lambda owner, key: owner.update(unknown=1))
        assert not VALIDATOR.is_valid(more), f"more beside {path}"
        without = changed(manifest, path, lambda owner, key: owner.pop(key))
        assert VALIDATOR.is_valid(without) == (path[-1] in OPTIONAL), f"without {path}"


OUT_OF_RANGE: list[tuple[tuple[Any, ...], Any]] = [
    (("graphs", "encoder", "ratio"), 5),
    (("graphs", "encoder", "file"), "../encoder.onnx"),
    (("graphs", "encoder", "file"), "/absolute/encoder.onnx"),
    (("graphs", "encoder", "scratch_bytes"), [[[1, "depth"]]]),
    (("graphs", "encoder", "weights_bytes"), -1),
    (("graphs", "encoder", "outputs"), []),
    (("engines", 0, "file"), "engines/../encoder-0123456789abcdef.engine"),
    (("engines", 0, "file"), "engines/x.plan"),
    (("engines", 0, "settings", "height"), {"low": 8, "best": 12, "high": 16}),
]


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE)
def test_schema_refuses_values_out_of_range(manifest: Any, path: tuple[Any, ...], value: Any) -> None:
    wrong = changed(manifest, path, lambda owner, key: owner.__setitem__(key, value))
    assert not VALIDATOR.is_valid(wrong)


CONTRADICTIONS = {"kind": "direct", "direction": "decoder", "drain": True, "delay_frames": 2, "states": []}


@pytest.mark.parametrize(
    ("key", "value"), [*CONTRADICTIONS.items(), ("chunk_multiple", 1), ("lead_frames", 0)]
)
def test_manifest_with_contradicting_keys_is_refused_although_its_hash_fits(
    manifest: Any, key: str, value: Any
) -> None:
    wrong = changed(manifest, ("graphs", "encoder", key), lambda owner, key: owner.__setitem__(key, value))
    with pytest.raises(BundleError, match="export the bundle anew"):
        Manifest.from_dict(wrong | {"identity": identity_of(wrong)})
    assert identity_of(manifest) == manifest["identity"]


def identity_of(manifest: Any) -> str:
    """The hash as the document describes it."""
    content = {key: value for key, value in manifest.items() if key not in ("identity", "engines")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def schema_keys(schema: Any) -> Iterator[str]:
    """Yields all property names that the schema defines."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for entry in schema.values():
            yield from schema_keys(entry)
    elif isinstance(schema, list):
        for entry in schema:
            yield from schema_keys(entry)


def test_documents_list_every_key_and_no_other(exported: Callable[..., Path]) -> None:
    section = TEXT.partition("## Manifest")[2].partition("### Symbols in shapes")[0]
    documented = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
    assert len(documented) == len(set(documented))
    engines = {"EngineRecord", "BuildSettings", "Profile", "Target", "Span"}
    own = {name: kind for name, kind in SCHEMA["$defs"].items() if name not in engines}
    assert engines | set(own) == set(SCHEMA["$defs"])
    assert set(documented) == set(schema_keys({**SCHEMA, "$defs": own}))
    tensorrt = (DOCS / "tensorrt.md").read_text(encoding="utf-8")
    table = tensorrt.partition("## Which engine runs")[2].partition("\n## ")[0]
    engine_keys = {key for name in engines for key in schema_keys(SCHEMA["$defs"][name])}
    assert engine_keys <= set(re.findall(r"`([^`]+)`", table))
    symbols = re.findall(r"`([^`]+)`", TEXT.partition("### Symbols in shapes")[2].partition("## Video")[0])
    shapes = [tensor["shape"] for tensor in tensors(read_manifest(exported("8x8x8-trilinear")))]
    used = {dim for shape in shapes for dim in shape if isinstance(dim, str)}
    assert {dim.replace("width", "height") for dim in used} <= set(symbols)


def tensors(manifest: Any) -> Iterator[Any]:
    for graph in manifest["graphs"].values():
        yield from (*graph["inputs"], *graph["outputs"], *graph["states"])


@pytest.mark.parametrize(
    ("name", "drop"), [("4x8x8-nearest-16ch", 3), ("4x8x8-trilinear", 5), ("8x8x8-trilinear", 13)]
)
def test_decoder_drops_and_drains_as_the_worked_examples(
    exported: Callable[..., Path], opened: Callable[..., Bundle], name: str, drop: int
) -> None:
    """The document's tables of three latents: what each step gives, read off the text."""
    graph = read_manifest(exported(name))["graphs"]["decoder"]
    heading = f"r = {graph['ratio']}, {'nearest' if 'nearest' in name else 'trilinear'}"
    table = TEXT.partition(f"    {heading}")[2].partition("\n\n")[0]
    assert table.split()[1].rstrip(",") == str(drop) == str(graph["drop_frames"])
    assert ("no drain" in table) != graph["drain"]
    rows = re.findall(r"(?:z\d|end) +(.*)", table)
    counts = [graph["ratio"] if "..." in row else len(re.findall(r"f\d+", row)) for row in rows]
    with opened(name).decoder(height=8, width=8, chunk=1) as stream:
        channels = graph["inputs"][0]["shape"][2]
        given = [len(stream.push(np.zeros((1, channels, 1, 1), np.float32))) for _ in range(3)]
        given += [len(stream.finish())] * graph["drain"]
    assert given == counts and sum(counts) == 1 + 2 * graph["ratio"]


CLIENT_SCRIPT = """
import sys
import numpy as np
namespace = {}
exec(sys.stdin.read(), namespace)
bundle, *folders = sys.argv[1:]
for folder in folders:
    frames = np.load(f"{folder}/frames.npy")
    latents = namespace["encode"](bundle, frames, int(2))
    np.save(f"{folder}/latents.npy", latents)
    np.save(f"{folder}/decoded.npy", namespace["decode"](bundle, latents, *frames.shape[:3], m=3))
assert not any(name.partition(".")[0] in ("wfvae", "torch") for name in sys.modules)
"""


@pytest.mark.parametrize("name", ["4x8x8-nearest-16ch", "4x8x8-trilinear", "8x8x8-trilinear"])
def test_client_of_the_document_gives_the_bits_of_the_runtime(
    exported: Callable[..., Path], opened: Callable[..., Bundle], tmp_path: Path, name: str
) -> None:
    """The code of the document, alone with numpy and onnxruntime in a process of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    clips = {
        tmp_path / str(shape[0]): np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        for shape in [(19, 13, 22), (1, 3, 1)]
    }
    for folder, clip in clips.items():
        folder.mkdir()
        np.save(folder / "frames.npy", clip)
    arguments = [sys.executable, "-c", CLIENT_SCRIPT, str(exported(name)), *map(str, clips)]
    run = subprocess.run(arguments, input=code, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for folder, clip in clips.items():
        frames, height, width, _ = clip.shape
        latents, decoded = np.load(folder / "latents.npy"), np.load(folder / "decoded.npy")
        wanted = opened(name).encode(clip)
        assert latents.shape == wanted.shape and latents.tobytes() == wanted.tobytes()
        expected = opened(name).decode(wanted, frames=frames, height=height, width=width)
        assert decoded.shape == expected.shape == clip.shape and decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize("direction", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["4x8x8-trilinear", "8x8x8-trilinear"])
def test_plan_is_the_documented_formula(
    exported: Callable[..., Path], opened: Callable[..., Bundle], name: str, direction: Any
) -> None:
    graph = read_manifest(exported(name))["graphs"][direction]
    plan = opened(name).plan(direction, height=37, width=50, streams=2, chunk=3)

    def product(factors: list[int | str], values: dict[str, int]) -> int:
        return math.prod(factor if isinstance(factor, int) else values[factor] for factor in factors)

    values = {"batch": 2, "latents": 3, "height/8": 5, "width/8": 7}
    sums = [sum(product(factors, values) for factors in total) for total in graph["scratch_bytes"]]
    assert plan.scratch_bytes == max(sums) and plan.weights_bytes == graph["weights_bytes"]
    sides = {f"{side}/{k}": 8 * n // k for side, n in (("height", 5), ("width", 7)) for k in (2, 4, 8)}
    widths = {"float32": 4, "int32": 4}
    sides["batch"] = 1
    sizes = [product(state["shape"], sides) * widths[state["dtype"]] for state in graph["states"]]
    assert plan.state_bytes == sum(sizes)
