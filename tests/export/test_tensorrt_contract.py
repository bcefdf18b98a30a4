"""Every name that is used of TensorRT, TensorRT-RTX and cuda-bindings, against the real packages.
Nothing is run.

TensorRT's bindings are a small wheel of their own. They load over empty stub libraries, which are
compiled here, and then show what they have: classes, parameters and enums of 10.13 and of 11.4.
TensorRT-RTX is installed with its libraries (the extra `rtx`).
cuda-bindings loads without a driver. pip fetches the wheels once into the user's cache; the tests
are skipped without a registry, a compiler or a wheel for this Python.
"""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wfvae.files import replacing
from wfvae.spec import tensorrt_api
from wfvae.spec.tensorrt_api import RTX, Flavour

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wfvae" / "contract"
TENSORRT = {"10.13": "tensorrt-cu13-bindings==10.13.3.9.post1", "11.4": "tensorrt-cu13-bindings==11.4.0.106"}
CUDA = {version: (f"cuda-bindings=={version}", "cuda-pathfinder==1.9.0") for version in ("12.9.9", "13.5.0")}
STUB_SYMBOLS = [f"create{name}_INTERNAL" for name in ("InferBuilder", "InferRefitter", "InferRuntime")]
STUB_SYMBOLS += ["createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL"]
STUB_SYMBOLS += ["getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry"]
STUB_SYMBOLS += ["initLibNvInferPlugins"]
"""Everything that the bindings of both versions link to."""
PROTOCOLS = [
    value
    for value in vars(tensorrt_api).values()
    if getattr(value, "_is_protocol", False) and value.__module__ == tensorrt_api.__name__
]
"""Named as TensorRT's classes."""


def installed(*requirements: str) -> Path:
    """A folder with these packages alone. Skips the test if pip cannot fetch them."""
    name = "-".join(requirements).replace("==", "-")
    folder = CACHE / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    if folder.is_dir():
        return folder
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--retries", "1", "--timeout", "10", *requirements, "--target"]
    with replacing(folder) as building:
        try:
            subprocess.run([*command, building], capture_output=True, text=True, timeout=60, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            pytest.skip(f"pip cannot get {' '.join(requirements)}: {error.stderr or error}"[-300:])
    return folder


def run(code: str, *path: Path, **variables: str) -> Any:
    """What `code` prints as JSON, in a process of its own with these folders on its path."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def build_stubs(folder: Path, major: str) -> None:
    """Compiles empty libraries with the names that the bindings link to."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("stub libraries need a C compiler on Linux")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in STUB_SYMBOLS))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        library = f"lib{name}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library]
        subprocess.run([compiler, *options, source], check=True)


DESCRIBE = """
import json
import {module} as trt
def members(thing):
    names = [name for name in dir(thing) if not name.startswith("_") or name == "__init__"]
    return {name: (getattr(thing, name).__doc__ or "") for name in names}
found = {name: getattr(trt, name) for name in dir(trt) if not name.startswith("__")}
classes = {name: members(value) for name, value in found.items() if isinstance(value, type)}
enums = {name: value.__members__ for name, value in found.items() if hasattr(value, "__members__")}
enums = {name: {member: int(value) for member, value in values.items()} for name, values in enums.items()}
settable = {n: [a for a in dir(found[n]) if getattr(getattr(found[n], a), "fset", None)] for n in classes}
print(json.dumps({"version": trt.__version__, "classes": classes, "enums": enums, "settable": settable}))
"""
IS_RTX = re.compile("RTX$")
"""Ends the names of our classes for what only TensorRT-RTX has."""


class Bindings:
    """What one version of a flavour's bindings has."""

    def __init__(self, flavour: Flavour, module: str, folder: Path, stubs: Path) -> None:
        self.flavour, self._module, self._path, self._stubs = flavour, module, folder, stubs
        found = self.run(DESCRIBE)
        self.version: str = found["version"]
        self.classes: dict[str, dict[str, str]] = found["classes"]
        self.enums: dict[str, dict[str, int]] = found["enums"]
        self.settable: dict[str, list[str]] = found["settable"]

    def run(self, code: str) -> Any:
        code = code.replace("{module}", self._module).replace("{flavour}", self.flavour.name)
        return run(code, self._path, LD_LIBRARY_PATH=str(self._stubs))

    def has(self, protocol: type) -> bool:
        """Whether one of our classes describes this flavour."""
        return self.flavour is RTX or not IS_RTX.search(protocol.__name__)

    def overloads(self, owner: str, method: str) -> list[tuple[list[tuple[str, str, bool]], str]]:
        """Each overload's parameters (name, type, has a default) and return type."""
        text = self.classes[owner][method]
        found = []
        for given, returned in re.findall(rf"^(?:\d+\. )?{method}\((.*)\) -> (.*)$", text, re.M):
            parts = [part for part in re.split(r", (?=\w+: )", given) if not part.startswith("self")]
            matches = [re.fullmatch(r"(\w+): (.*?)( = .*)?", part) for part in parts]
            found.append(([(m[1], m[2], m[3] is not None) for m in matches if m], returned.strip()))
        return found


@pytest.fixture(scope="module", params=[*sorted(TENSORRT), "rtx"])
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    stubs = tmp_path_factory.mktemp("stubs")
    if request.param == "rtx":
        module = pytest.importorskip(RTX.module, reason="the extra rtx is not installed")
        return Bindings(RTX, RTX.module, Path(module.__file__).parents[1], stubs)
    packages = installed(TENSORRT[request.param])
    build_stubs(stubs, request.param.split(".")[0])
    return Bindings(tensorrt_api.TENSORRT, "tensorrt_bindings", packages, stubs)


def methods(owner: type) -> dict[str, Callable[..., Any]]:
    found = {name: value for name, value in vars(owner).items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


TYPES = {
    "int": r"\bint\b|SupportsInt",
    "str": r"\bstr\b",
    "str | None": r"\bstr\b",
    "bool": r"\bbool\b",
    "None": r"None",
    "bytes": r"[Bb]uffer",
    "Shape": r"\btuple\b|Dims",
    "Sequence[int]": r"Dims",
    "Sequence[str]": r"[Ll]ist\[str\]",
}
"""Our types as patterns of TensorRT's, as its bindings write them."""


def accepts(kind: str, real: str) -> bool:
    """Whether a parameter or result of our type fits TensorRT's."""
    if kind in TYPES:
        return re.search(TYPES[kind], real) is not None
    name = IS_RTX.sub("", kind.removesuffix(" | None"))
    return name == "Any" or real.endswith((name, f"::{name}", f"::I{name}"))


CALLS = [(protocol, name) for protocol in PROTOCOLS for name in methods(protocol)]


@pytest.mark.parametrize(("protocol", "method"), CALLS, ids=[f"{p.__name__}.{m}" for p, m in CALLS])
def test_method_has_these_parameters(bindings: Bindings, protocol: type, method: str) -> None:
    if not bindings.has(protocol):
        pytest.skip("of TensorRT-RTX alone")
    owner = IS_RTX.sub("", protocol.__name__)
    ours = inspect.signature(methods(protocol)[method])
    parameters = [(name, p.annotation) for name, p in ours.parameters.items() if name != "self"]
    assert method in bindings.classes[owner], f"TensorRT {bindings.version} has no {owner}.{method}"
    if owner == "ParserError":  # its docstrings have C++ names and no parameters
        assert not parameters
        return
    overloads = bindings.overloads(owner, method)
    fitting = [
        returned
        for theirs, returned in overloads
        if [name for name, _, _ in theirs[: len(parameters)]] == [name for name, _ in parameters]
        and all(accepts(kind, real) for (_, kind), (_, real, _) in zip(parameters, theirs, strict=False))
        and all(default for _, _, default in theirs[len(parameters) :])
    ]
    assert fitting, f"TensorRT {bindings.version}: {owner}.{method} takes {overloads}, not {parameters}"
    assert any(accepts(ours.return_annotation, returned) for returned in fitting), fitting


def test_classes_attributes_constructors_and_enums_exist(bindings: Bindings) -> None:
    assert len(PROTOCOLS) >= 10
    for protocol in filter(bindings.has, PROTOCOLS):
        owner = IS_RTX.sub("", protocol.__name__)
        properties = {name for name, value in vars(protocol).items() if isinstance(value, property)}
        assert properties <= set(bindings.classes[owner]), owner
        assert set(typing.get_type_hints(protocol)) <= set(bindings.settable[owner]), owner
    for owner, wanted in tensorrt_api.CONSTRUCTED.items():
        taken = [[name for name, _, _ in theirs] for theirs, _ in bindings.overloads(owner, "__init__")]
        assert list(wanted) in taken, owner
    only_rtx = tensorrt_api.ONLY_RTX if bindings.flavour is RTX else {}
    for enum, names in (tensorrt_api.MEMBERS | only_rtx).items():
        assert set(names) <= set(bindings.enums[enum]), f"TensorRT {bindings.version} {enum}"
    assert {"ERROR", "INTERNAL_ERROR", "WARNING"} <= set(bindings.classes["ILogger"])


OUR_CLASSES = """
import json, sys
import {module} as trt
from wfvae.spec.tensorrt_api import FLAVOURS, MEMBERS, TensorRT
from wfvae.export.tensorrt.progress import BuildProgress, make_monitor
flavour = FLAVOURS["{flavour}"]
sys.modules[flavour.module] = trt
ours = TensorRT.load(flavour)
assert TensorRT.load(flavour) is ours
for enum, names in MEMBERS.items():
    assert [ours.member(enum, name).name for name in names] == list(names)
logger = ours.logger
for _ in range(2):
    logger.log(trt.ILogger.WARNING, "a warning")
logger.log(trt.ILogger.ERROR, "an\\nerror")
seen = []
progress = BuildProgress("encoder", lambda *report: seen.append(report))
monitor = make_monitor(ours, progress)
monitor.phase_start("a", None, 2)
going_on = [monitor.step_complete("a", 0)]
progress.cancelled = True
going_on.append(monitor.step_complete("a", 1))
monitor.phase_finish("a")
refused = []
for name in ("Builder", "Runtime"):
    try:
        if flavour.name == "tensorrt":
            ours.interface(name)(logger)
    except TypeError as error:  # the stub library's null: the logger was accepted
        refused.append("nullptr" in str(error))
flag = 1 << int(ours.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
messages = [ours.log.take(), ours.log.take_warnings()]
print(json.dumps([str(ours), messages, seen, going_on, refused, flag]))
"""


def test_logger_and_monitor_are_accepted_by_real_classes(bindings: Bindings) -> None:
    title, messages, seen, going_on, refused, flag = bindings.run(OUR_CLASSES)
    assert title == f"{bindings.flavour.title} {bindings.version}"
    assert messages == ["an error", ["a warning"]]
    assert seen == [["encoder: a", 0, 2], ["encoder: a", 1, 2], ["encoder: a", 2, 2]]
    assert going_on == [True, False]
    assert refused == ([] if bindings.flavour is RTX else [True, True])
    assert flag in (1, 2)  # not the same in all versions, hence members by name


@pytest.fixture(scope="module", params=sorted(CUDA))
def cuda(request: pytest.FixtureRequest) -> Path:
    return installed(*CUDA[request.param])


CUDA_CALL = """
import inspect, json
from wfvae.runtime.backends.nvidia.cuda import Cuda, DeviceError, load_cuda
try:
    Cuda(0)
    made = None
except DeviceError as error:
    made = str(error)
calls = []
class Failing(Cuda):
    def _call(self, function, *arguments, no_memory=None):
        calls.append(function.__name__)
        try:
            return super()._call(function, *arguments)
        except DeviceError:
            return 0
cuda = Failing.__new__(Failing)
cuda._rt, cuda._device_id = load_cuda(), 0
cuda._call(cuda._rt.cudaGetDeviceProperties, 0)
for name, method in vars(Cuda).items():
    if inspect.isfunction(method) and not name.startswith("_") and name != "name_and_capability":
        getattr(cuda, name)(*[0] * (len(inspect.signature(method).parameters) - 1))
print(json.dumps([made, calls, dir(cuda._rt.cudaDeviceProp)]))
"""


def test_cuda_functions_take_these_arguments_and_name_a_missing_gpu(cuda: Path) -> None:
    """A wrong number or type of arguments is a TypeError; without a driver every call fails."""
    made, calls, properties = run(CUDA_CALL, cuda, CUDA_VISIBLE_DEVICES="")
    assert re.match(r"GPU 0: .* \(cudaError\w+, from cudaGetDeviceCount\)$", made)
    assert len(set(calls)) >= 22 and {"name", "major", "minor"} <= set(properties)
