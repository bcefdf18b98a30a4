"""What the installed package promises: cheap to import, a runtime without torch, nothing forgotten
in the wheel or the import rules.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import wfvae

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Not part of the base installation, so nothing that runs on it may need them.
NOT_IN_BASE = (
    "PIL",
    "cuda",
    "huggingface_hub",
    "lpips",
    "onnx",
    "onnx_graphsurgeon",
    "onnxscript",
    "openvino",
    "polygraphy",
    "skimage",
    "tensorrt",
    "torch",
    "torchmetrics",
    "torchvision",
)
LAZY_NAMES = set(wfvae.__all__) - {"__version__"}


NEEDS_ONLY_THE_BASE = {"errors", "files", "machine", "runtime", "spec", "video"}


def modules() -> list[str]:
    """Every module of the package, read off the files, so that one in a folder without
    `__init__.py` is seen too.
    """
    found = []
    for folder, _, files in os.walk(ROOT / "wfvae", followlinks=True):
        parts = Path(folder).relative_to(ROOT).parts
        found += [
            ".".join([*parts, f.removesuffix(".py")]).removesuffix(".__init__")
            for f in files
            if f.endswith(".py")
        ]
    return sorted(found)


def run(code: str, *arguments: str) -> str:
    """Run `code` in a fresh interpreter in which every warning is an error; its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_cheap() -> None:
    loaded = run(
        "import sys, wfvae; print(wfvae.__version__, *{m.split('.')[0] for m in sys.modules})"
    ).split()
    assert loaded[0] == wfvae.__version__
    assert not set(loaded[1:]) & {"numpy", "onnxruntime", "av", "zarr", "rich", *NOT_IN_BASE}


BLOCKED_IMPORTS = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)

blocked = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocked())
for name in sys.argv[2].split(","):
    importlib.import_module(name)
print(*blocked & {m.split(".")[0] for m in sys.modules})
"""


def test_runtime_and_shared_specifications_need_only_the_base_installation() -> None:
    names = [m for m in modules() if m.count(".") and m.split(".")[1] in NEEDS_ONLY_THE_BASE]
    assert {"wfvae.errors", "wfvae.spec.manifest", "wfvae.runtime.bundle"} <= set(names)
    assert run(BLOCKED_IMPORTS, ",".join(NOT_IN_BASE), ",".join(names)) == ""


def test_the_block_works() -> None:
    with pytest.raises(AssertionError, match="blocked by the test"):
        run(BLOCKED_IMPORTS, "json", "json")


def test_version_stands_in_one_place() -> None:
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "wfvae.__version__"}
    sources = [p for folder in ("wfvae", "export", "runtime", "train") for p in (ROOT / folder).rglob("*.py")]
    assert [
        p.relative_to(ROOT).as_posix() for p in sources if re.search(r"^__version__\b", p.read_text(), re.M)
    ] == ["wfvae/__init__.py"]


def test_the_package_does_not_import_from_its_own_top_level() -> None:
    """The import rules follow `from wfvae.model.vae import WFVAE`, but could not see through the
    lazy `from wfvae import WFVAE`.
    """
    for module in modules():
        file = ROOT.joinpath(*module.split("."))
        for node in ast.walk(
            ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text())
        ):
            if isinstance(node, ast.ImportFrom) and node.module == "wfvae":
                assert not {a.name for a in node.names} & LAZY_NAMES, f"{module}, line {node.lineno}"
            elif isinstance(node, ast.Import):
                assert "wfvae" not in {a.name for a in node.names}, f"{module}, line {node.lineno}"


def test_folders_at_the_root_are_linked_into_the_package() -> None:
    for linked in ("export", "runtime", "train"):
        assert (ROOT / "wfvae" / linked).readlink() == Path("..") / linked


def test_every_folder_with_code_is_in_the_wheel() -> None:
    find = "from setuptools import find_packages; print(*find_packages(include=['wfvae', 'wfvae.*']))"
    folders = {m if (ROOT / m.replace(".", "/")).is_dir() else m.rpartition(".")[0] for m in modules()}
    assert set(run(find).split()) == folders


def test_every_file_beside_the_code_is_in_the_wheel() -> None:
    """By setuptools' own reading of pyproject.toml: ready configurations, the trained model,
    markers.
    """
    tell = """
from setuptools import Distribution
packing = Distribution()
packing.parse_config_files(["pyproject.toml"])
packing = packing.get_command_obj("build_py")
packing.ensure_finalized()
print(*(f"{folder}/{name.removeprefix(folder).lstrip('/')}" for _, folder, _, names in packing.data_files for name in names), sep="\\n")
"""
    packed = set(run(tell).splitlines())
    walked = os.walk(ROOT / "wfvae", followlinks=True)
    files = {
        (Path(folder) / name).relative_to(ROOT).as_posix() for folder, _, names in walked for name in names
    }
    beside = {file for file in files if not file.endswith(".py") and "__pycache__" not in file}
    assert "wfvae/train/configs/S-stage1.toml" in beside and "wfvae/weights/tiny/config.json" in beside
    assert beside - packed == set()


def test_tested_versions_are_pinned() -> None:
    """Every requirement has its line in constraints.txt, but for TensorRT, whose version the driver
    decides.
    """
    project = PYPROJECT["project"]
    required = [
        r for group in (project["dependencies"], *project["optional-dependencies"].values()) for r in group
    ]
    names = {re.match(r"[\w-]+", r)[0] for r in required} - {"wfvae", "tensorrt", "cuda-bindings"}  # type: ignore[index]
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert names - pinned == set()


def test_names_at_the_top_level_are_declared() -> None:
    assert set(wfvae.__all__) <= set(dir(wfvae))
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = wfvae.missing  # type: ignore[attr-defined]
