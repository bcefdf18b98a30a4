"""Every name that is used of TensorRT and cuda-bindings, against the real packages. A test of names
and signatures: nothing is run.

TensorRT's bindings are a small wheel of their own. They load over empty stub libraries, which are
compiled here, and then tell what they have: classes, parameters and enums of 10.13 and of 11.4.
cuda-bindings loads without a driver. The wheels are fetched once by pip into the user's cache;
without a registry, a compiler or a wheel for this Python the tests are skipped and say so.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from wfvae.runtime.backends.nvidia.cuda import Cuda, CudaBindings
from wfvae.spec import tensorrt as tensorrt_api

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wfvae" / "contract"
TENSORRT = {"10.13": "tensorrt-cu13-bindings==10.13.3.9.post1", "11.4": "tensorrt-cu13-bindings==11.4.0.106"}
CUDA = {version: (f"cuda-bindings=={version}", "cuda-pathfinder==1.9.0") for version in ("12.9.9", "13.5.0")}
STUB_SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""All that the bindings of both versions link to."""
SOURCES = [
    *(ROOT / "export" / "tensorrt").glob("*.py"),
    *(ROOT / "runtime" / "backends" / "nvidia").glob("*.py"),
    ROOT / "wfvae" / "spec" / "tensorrt.py",
]


FAILED: list[str] = []
"""Why packages could not be had. One failure is enough not to wait for a registry again."""


def installed(*requirements: str) -> Path:
    """A folder with these packages alone. Skips the test if they can't be had."""
    folder = (
        CACHE
        / f"{'-'.join(requirements).replace('==', '-')}-py{sys.version_info.major}{sys.version_info.minor}"
    )
    if not folder.is_dir():
        if FAILED:
            pytest.skip(FAILED[0])
        building = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
        ]
        command += ["--retries", "1", "--timeout", "10", "--target", str(building), *requirements]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            error = (done.stderr.strip().splitlines() or ["?"])[-1] if done.returncode else None
        except subprocess.TimeoutExpired:
            error = "it takes more than a minute"
        if error is not None:
            shutil.rmtree(building, ignore_errors=True)
            FAILED.append(f"pip can't get {' '.join(requirements)}: {error}")
            pytest.skip(FAILED[0])
        try:
            building.replace(folder)
        except OSError:  # another process was first
            shutil.rmtree(building, ignore_errors=True)
    return folder


def run(code: str, *path: Path, **variables: str) -> Any:
    """What `code`, in a process of its own with these folders on its path, prints as JSON."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Empty libraries with the names that the bindings link to."""

    @cache
    def build(major: str) -> Path:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None or sys.platform != "linux":
            pytest.skip("stub libraries need a C compiler on Linux")
        folder = tmp_path_factory.mktemp(f"stubs{major}")
        source = folder / "stub.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in STUB_SYMBOLS))
        for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            library = f"lib{name}.so.{major}"
            subprocess.run(
                [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source],
                check=True,
            )
        return folder

    return build


DESCRIBE = """
import json, sys
import tensorrt_bindings as trt
def members(thing):
    return {name: (getattr(thing, name).__doc__ or "") for name in dir(thing) if not name.startswith("_") or name == "__init__"}
names = [name for name in dir(trt) if not name.startswith("__")]
classes = {name: members(getattr(trt, name)) for name in names if isinstance(getattr(trt, name), type)}
enums = {name: getattr(trt, name).__members__ for name in names if hasattr(getattr(trt, name), "__members__")}
enums = {name: {k: int(v) for k, v in found.items()} for name, found in enums.items()}
settable = {n: [a for a in dir(getattr(trt, n)) if getattr(getattr(getattr(trt, n), a), "fset", None)] for n in classes}
print(json.dumps({"version": trt.__version__, "names": names, "classes": classes, "enums": enums, "settable": settable}))
"""


class Bindings:
    """What one version of TensorRT's bindings has."""

    def __init__(self, folder: Path, stubs: Path) -> None:
        self._path, self._stubs = folder, stubs
        found = self.run(DESCRIBE)
        self.version: str = found["version"]
        self.names: set[str] = set(found["names"])
        self.classes: dict[str, dict[str, str]] = found["classes"]
        self.enums: dict[str, dict[str, int]] = found["enums"]
        self.settable: dict[str, list[str]] = found["settable"]

    def run(self, code: str) -> Any:
        return run(code, self._path, LD_LIBRARY_PATH=str(self._stubs))

    def overloads(self, owner: str, method: str) -> list[tuple[list[tuple[str, str, bool]], str]]:
        """Each overload's parameters (name, type, has a default) after `self`, and what it returns."""
        text = self.classes[owner][method]
        found = []
        for given, returned in re.findall(rf"^(?:\d+\. )?{method}\((.*)\) -> (.*)$", text, re.M):
            parts = [part for part in re.split(r", (?=\w+: )", given) if not part.startswith("self")]
            matches = [re.fullmatch(r"(\w+): (.*?)( = .*)?", part) for part in parts]
            found.append(([(m[1], m[2], m[3] is not None) for m in matches if m], returned.strip()))
        return found


@pytest.fixture(scope="module", params=sorted(TENSORRT))
def bindings(request: pytest.FixtureRequest, stubs: Callable[[str], Path]) -> Bindings:
    folder = installed(TENSORRT[request.param])
    return _bindings(folder, stubs(request.param.split(".")[0]))


@cache
def _bindings(folder: Path, stubs: Path) -> Bindings:
    return Bindings(folder, stubs)


def methods(protocol: type) -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for name, value in vars(protocol).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def accepts(kind: Any, real: str) -> bool:
    """Whether a parameter or result of our type fits TensorRT's, as its bindings write it."""
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    expected = {
        "int": r"\bint\b|SupportsInt",
        "str": r"\bstr\b",
        "bool": r"\bbool\b",
        "None": r"None",
        "bytes": r"[Bb]uffer",
        "tuple[int, ...]": r"\btuple\b|Dims",
        "str | None": r"\bstr\b",
        "Sequence[int]": r"Dims",
        "Sequence[Sequence[int]]": r"[Ll]ist\[.*Dims\]",
        "Sequence[str]": r"[Ll]ist\[str\]",
    }
    names = {protocol.__name__: name for protocol, name in tensorrt_api.CONTRACT.items()}
    bare = text.removesuffix(" | None")
    if text in expected:
        return re.search(expected[text], real) is not None
    return bare == "Any" or real.endswith((names[bare], f"::I{names[bare]}"))


CALLS = [(protocol, name) for protocol in tensorrt_api.CONTRACT for name in methods(protocol)]


@pytest.mark.parametrize(("protocol", "method"), CALLS, ids=[f"{p.__name__}.{m}" for p, m in CALLS])
def test_methods_have_these_parameters(bindings: Bindings, protocol: type, method: str) -> None:
    owner = tensorrt_api.CONTRACT[protocol]
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
    assert fitting, (
        f"TensorRT {bindings.version}: {owner}.{method} takes {overloads}, and we call it with {parameters}"
    )
    assert any(accepts(ours.return_annotation, returned) for returned in fitting), (
        ours.return_annotation,
        fitting,
    )


def test_attributes_are_there_and_can_be_set(bindings: Bindings) -> None:
    for protocol, owner in tensorrt_api.CONTRACT.items():
        for name, value in vars(protocol).items():
            if isinstance(value, property):
                assert name in bindings.classes[owner], f"{owner}.{name}"
        for name in typing.get_type_hints(protocol):
            assert name in bindings.settable[owner], f"{owner}.{name}"


def test_enum_members_are_there(bindings: Bindings) -> None:
    for enum, names in tensorrt_api.MEMBERS.items():
        assert set(names) <= set(bindings.enums[enum]), f"TensorRT {bindings.version} {enum}"
    assert set(tensorrt_api.DATA_TYPES.values()) == set(tensorrt_api.MEMBERS["DataType"])
    assert {"ERROR", "INTERNAL_ERROR"} <= set(bindings.classes["ILogger"])


def test_constructors_take_these(bindings: Bindings) -> None:
    for owner, wanted in tensorrt_api.CONSTRUCTED.items():
        assert any(
            tuple(name for name, _, _ in theirs) == wanted
            for theirs, _ in bindings.overloads(owner, "__init__")
        ), owner


def test_nothing_else_is_used_of_the_module(bindings: Bindings) -> None:
    """Attributes of `trt` in our sources: all are in the tables that the tests above go through,
    and in the real module.
    """
    used = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("trt", "self._trt"):
                used.add(node.attr)
    assert used == {*tensorrt_api.CONSTRUCTED, *tensorrt_api.LISTED, "__version__"}
    assert used - {"__version__"} <= bindings.names


OUR_CLASSES = """
import json, sys
import tensorrt_bindings as trt
sys.modules["tensorrt"] = trt
from wfvae.spec.tensorrt import MEMBERS, ErrorLog, load_tensorrt, make_logger, member, tactic_sources
from wfvae.export.tensorrt.progress import BuildProgress, make_monitor
assert load_tensorrt() is trt
for enum, names in MEMBERS.items():
    assert [member(trt, enum, name).name for name in names] == list(names)
log = ErrorLog()
logger = make_logger(trt, log)
logger.log(trt.ILogger.WARNING, "a warning")
logger.log(trt.ILogger.ERROR, "an\\nerror")
seen = []
progress = BuildProgress("encoder", lambda *report: seen.append(report))
monitor = make_monitor(trt, progress)
monitor.phase_start("a", None, 2)
going_on = [monitor.step_complete("a", 0)]
progress.cancel()
going_on.append(monitor.step_complete("a", 1))
monitor.phase_finish("a")
refused = []
for make in (trt.Builder, trt.Runtime):
    try:
        make(logger)
    except TypeError as error:  # the stub library's null: the logger was taken
        refused.append("nullptr" in str(error))
flag = 1 << int(member(trt, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
sources = tactic_sources(trt, 1 << int(trt.TacticSource.JIT_CONVOLUTIONS) | 1 << 40)
print(json.dumps([log.take(), seen, going_on, refused, flag, sources]))
"""


def test_our_logger_and_monitor_are_made_of_the_real_classes(bindings: Bindings) -> None:
    log, seen, going_on, refused, flag, sources = bindings.run(OUR_CLASSES)
    assert sources == ["JIT_CONVOLUTIONS", "source 40"]
    assert log == "an error"
    assert seen == [["encoder: a", 0, 2], ["encoder: a", 1, 2], ["encoder: a", 2, 2]]
    assert going_on == [True, False] and refused == [True, True]
    assert flag == (2 if bindings.version.startswith("10.") else 1)  # another value in each, hence by name


def test_what_differs_between_the_versions(stubs: Callable[[str], Path]) -> None:
    """The reasons for looking names up, and for which names are not used at all."""
    ten, eleven = (_bindings(installed(TENSORRT[v]), stubs(v.split(".")[0])) for v in ("10.13", "11.4"))
    assert {"FP16", "BF16", "INT8", "FP8"} <= set(ten.enums["BuilderFlag"]) - set(eleven.enums["BuilderFlag"])
    assert "EXPLICIT_BATCH" in ten.enums["NetworkDefinitionCreationFlag"]
    assert "EXPLICIT_BATCH" not in eleven.enums["NetworkDefinitionCreationFlag"]
    gone = {
        "create_execution_context_without_device_memory",
        "device_memory_size",
        "get_device_memory_size_for_profile",
    }
    assert gone <= set(ten.classes["ICudaEngine"]) and not gone & set(eleven.classes["ICudaEngine"])
    for flag in ("EDITABLE_TIMING_CACHE", "ERROR_ON_TIMING_CACHE_MISS"):
        assert ten.enums["BuilderFlag"][flag] != eleven.enums["BuilderFlag"][flag]


# cuda-bindings ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=sorted(CUDA))
def cuda(request: pytest.FixtureRequest) -> Path:
    return installed(*CUDA[request.param])


def runtime_calls() -> list[tuple[str, int]]:
    """The functions of CUDA that `CudaBindings` calls, and with how many arguments."""
    found = []
    for node in ast.walk(ast.parse((ROOT / "runtime" / "backends" / "nvidia" / "cuda.py").read_text())):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node.func)
        if text == "self._call" and isinstance(node.args[0], ast.Attribute):
            found.append((node.args[0].attr, len(node.args) - 1))
        elif text.startswith("self._rt."):
            found.append((text.removeprefix("self._rt."), len(node.args)))
    return found


CUDA_DESCRIBE = """
import json
from cuda.bindings import runtime as rt
docs = {name: (getattr(rt, name).__doc__ or "").strip().splitlines()[:1] for name in dir(rt) if name.startswith("cuda")}
values = {name: list(getattr(rt, name).__members__) for name in dir(rt) if hasattr(getattr(rt, name), "__members__")}
print(json.dumps([docs, values, [name for name in dir(rt.cudaDeviceProp)]]))
"""


def test_cuda_functions_take_as_many_arguments(cuda: Path) -> None:
    docs, values, properties = run(CUDA_DESCRIBE, cuda)
    calls = runtime_calls()
    assert len({name for name, _ in calls}) >= 25
    for name, count in calls:
        [signature] = docs[name]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        assert len([part for part in inside.split(",") if part.strip()]) == count, signature
    assert {"name", "major", "minor"} <= set(properties)
    assert {"cudaSuccess", "cudaErrorMemoryAllocation"} <= set(values["cudaError_t"])
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(values["cudaMemcpyKind"])
    assert "cudaStreamCaptureModeThreadLocal" in values["cudaStreamCaptureMode"]
    assert {"cudaStreamNonBlocking", "cudaEventDisableTiming"} <= set(docs)


CUDA_CALL = """
import inspect, json
from wfvae.runtime.backends.nvidia.cuda import Cuda, CudaBindings, DeviceError, load_cuda
try:
    CudaBindings(0)
    made = None
except DeviceError as error:
    made = str(error)
cuda = CudaBindings.__new__(CudaBindings)
cuda._rt, cuda._device_id = load_cuda(), 0
outcomes = {}
for name, method in vars(Cuda).items():
    if inspect.isfunction(method) and not name.startswith("_"):
        try:
            getattr(cuda, name)(*[0] * (len(inspect.signature(method).parameters) - 1))
            outcomes[name] = "done"
        except DeviceError as error:
            outcomes[name] = "DeviceError"
print(json.dumps([made, outcomes]))
"""


def test_cuda_takes_integers_as_handles_and_says_that_there_is_no_gpu(cuda: Path) -> None:
    made, outcomes = run(CUDA_CALL, cuda, CUDA_VISIBLE_DEVICES="")
    assert re.match(r"GPU 0: .* \(cudaError\w+, from cudaGetDeviceCount\)$", made)
    # A handle of the wrong kind would be a TypeError; without a driver every call that reaches CUDA
    # fails.
    assert set(outcomes) == set(methods(Cuda))
    assert set(outcomes.values()) <= {"DeviceError", "done"}
    assert outcomes["launch"] == outcomes["copy_in"] == outcomes["allocate"] == "DeviceError"


def test_the_implementation_has_every_method_of_the_interface() -> None:
    for name, method in methods(Cuda).items():
        assert list(inspect.signature(method).parameters) == list(
            inspect.signature(getattr(CudaBindings, name)).parameters
        ), name
