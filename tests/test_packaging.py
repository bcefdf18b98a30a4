"""The installed package: cheap to import, a runtime without torch, no file missing in the wheel."""

import ast
import itertools
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

EXTRAS = "PIL cuda huggingface_hub lpips onnx onnx_graphsurgeon onnxscript openvino polygraphy skimage"
NOT_IN_BASE = {*EXTRAS.split(), "tensorrt", "tensorrt_rtx", "torch", "torchmetrics", "torchvision"}
"""Not part of the base installation, so nothing that runs on it may need them."""
WITH_TORCH = {"wfvae.runtime.autoencoder"}
"""The interface of a torch module."""
NEEDS_ONLY_THE_BASE = {"errors", "files", "machine", "runtime", "spec", "video"}
LAZY_NAMES = set(wfvae.__all__) - {"__version__"}


def packaged_files() -> list[str]:
    """Paths of all files below the package's folder, links followed."""
    walked = os.walk(ROOT / "wfvae", followlinks=True)
    files = (Path(folder, name) for folder, _, names in walked for name in names)
    return sorted(path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts)


def run(code: str, *arguments: str) -> str:
    """Runs `code` in a fresh interpreter with warnings as errors, and returns its output."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_cheap() -> None:
    code = "import sys, wfvae; print(wfvae.__version__, *{m.split('.')[0] for m in sys.modules})"
    version, *loaded = run(code).split()
    assert version == wfvae.__version__
    assert not set(loaded) & {"numpy", "onnxruntime", "av", "zarr", "rich", *NOT_IN_BASE}


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
    files = [name.removesuffix(".py") for name in packaged_files() if name.endswith(".py")]
    modules = [name.replace("/", ".").removesuffix(".__init__") for name in files]
    names = [m for m in modules if m.count(".") and m.split(".")[1] in NEEDS_ONLY_THE_BASE]
    names = [name for name in names if name not in WITH_TORCH]
    assert {"wfvae.errors", "wfvae.spec.manifest", "wfvae.runtime.bundle"} <= set(names)
    assert run(BLOCKED_IMPORTS, ",".join(NOT_IN_BASE), ",".join(names)) == ""


@pytest.mark.parametrize("file", [name for name in packaged_files() if name.endswith(".py")])
def test_package_does_not_import_from_its_own_top_level(file: str) -> None:
    """The import rules could not see through the lazy `from wfvae import WFVAE`."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "wfvae":
            assert not {alias.name for alias in node.names} & LAZY_NAMES, f"line {node.lineno}"
        elif isinstance(node, ast.Import):
            assert "wfvae" not in {alias.name for alias in node.names}, f"line {node.lineno}"


def test_every_folder_with_code_is_in_the_wheel() -> None:
    find = "from setuptools import find_packages; print(*find_packages(include=['wfvae', 'wfvae.*']))"
    folders = {str(Path(name).parent) for name in packaged_files() if name.endswith(".py")}
    assert set(run(find).split()) == {folder.replace("/", ".") for folder in folders}


LIST_DATA_FILES = """
from setuptools import Distribution
packing = Distribution()
packing.parse_config_files(["pyproject.toml"])
packing = packing.get_command_obj("build_py")
packing.ensure_finalized()
for _, folder, _, names in packing.data_files:
    print(*(f"{folder}/{name.removeprefix(folder).lstrip('/')}" for name in names), sep="\\n")
"""


def test_every_file_beside_the_code_is_in_the_wheel() -> None:
    """By setuptools' own reading of pyproject.toml: configurations, the trained model, markers."""
    beside = {name for name in packaged_files() if not name.endswith(".py")}
    assert "wfvae/train/configs/S-stage1.toml" in beside and "wfvae/weights/tiny/config.json" in beside
    assert beside - set(run(LIST_DATA_FILES).splitlines()) == set()


def test_links_of_the_repository_lead_to_its_own_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    links = [line.partition("\t")[2] for line in listed.stdout.splitlines() if line.startswith("120000 ")]
    assert {"wfvae/export", "wfvae/runtime", "wfvae/train"} <= set(links)
    for link in links:
        assert not os.path.isabs(os.readlink(ROOT / link)), link
        assert (ROOT / link).resolve(strict=True).is_relative_to(ROOT), link


def test_tested_versions_are_pinned() -> None:
    """All requirements are in constraints.txt but TensorRT, whose version the driver decides."""
    project = PYPROJECT["project"]
    required = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = set(re.findall(r"^[\w-]+", "\n".join(required), re.M)) - {"wfvae", "tensorrt"}
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    assert names - set(pinned) == set()
