"""The model of Triton's Python backend: a repository's `model.py` imports `TritonPythonModel`.

Runs in the server's Python only, which has the module `triton_python_backend_utils`.
"""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wfvae.errors import BundleError, InputError, ResourceError, StreamingError, WFVAEError
from wfvae.runtime.backends.base import Array
from wfvae.runtime.bundle import open_bundle
from wfvae.runtime.serving.sequences import Request, SequenceServer
from wfvae.spec.records import read_as
from wfvae.spec.serving import BUNDLE_FOLDER, SERVING_PARAMETER, ServingOptions
from wfvae.spec.stream import Direction

_CAPSULE, _USED = b"dltensor", b"used_dltensor"
"""Names that DLPack gives to capsules."""


class TritonPythonModel:
    """One direction of a bundle. Answers come from the worker's thread, so that requests of other
    streams are taken meanwhile.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the bundle beside `model.py`. What is raised fails the loading of the model."""
        import triton_python_backend_utils as triton

        self._triton = triton
        config = json.loads(args["model_config"])
        text = config["parameters"][SERVING_PARAMETER]["string_value"]
        options = read_as(ServingOptions, json.loads(text), BundleError, name=SERVING_PARAMETER)
        [given], [returned] = config["input"], config["output"]
        self._input, self._output = given["name"], returned["name"]
        direction: Direction = "encoder" if self._input == "frames" else "decoder"
        gpu = "GPU" in args["model_instance_kind"]
        provider = "auto" if options.backend == "openvino" else "cuda" if gpu else "cpu"
        self._bundle = open_bundle(
            Path(args["model_repository"]) / args["model_version"] / BUNDLE_FOLDER,
            options.backend,
            provider=provider,
            device_id=int(args["model_instance_device_id"]),
            threads=options.threads,
            tf32=options.tf32,
            cuda_graphs=options.cuda_graphs,
            precision_hint=options.precision_hint,
            memory_limit=options.memory_limit,
        )
        self._server = SequenceServer(self._bundle, direction, options)

    def execute(self, requests: list[Any]) -> None:
        """Queues requests; each answer goes through its request's sender."""
        for request in requests:
            flags, send = request.flags(), self._sender(request.get_response_sender())
            array = np.from_dlpack(self._triton.get_input_tensor_by_name(request, self._input))
            if len(array) != 1:
                send(InputError(f"the batch is {len(array)}; expected 1, since a sequence is one stream"))
                continue
            submitted = Request(
                sequence=request.correlation_id(),
                data=array[0],
                start=bool(flags & self._triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
                end=bool(flags & self._triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
                settings=json.loads(request.parameters()),
                answer=send,
                refuse=send,
            )
            self._server.submit(submitted)

    def finalize(self) -> None:
        """Drops all streams."""
        self._server.close()
        self._bundle.close()

    def _sender(self, sender: Any) -> Callable[[Array | WFVAEError], None]:
        def send(result: Array | WFVAEError) -> None:
            if isinstance(result, WFVAEError):
                response = self._triton.InferenceResponse(error=self._error(result))
            else:
                tensor = self._triton.Tensor.from_dlpack(self._output, to_capsule(result[None]))
                response = self._triton.InferenceResponse([tensor])
            sender.send(response, flags=self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        return send

    def _error(self, error: WFVAEError) -> Any:
        kinds = self._triton.TritonError
        code = kinds.INTERNAL
        if isinstance(error, (InputError, StreamingError)):
            code = kinds.INVALID_ARG
        elif isinstance(error, ResourceError):
            code = kinds.UNAVAILABLE
        return kinds(str(error), code)


def to_capsule(array: Array) -> Any:
    """Returns an array as a DLPack capsule that Triton's Python backend takes.

    The backend renames a capsule that it has taken in its own way, after which NumPy's destructor
    reports an error for each tensor. So the tensor moves to a capsule without a destructor; its
    consumer frees it. An empty array gets the strides that the backend takes for contiguous.
    """
    if array.size:
        array = np.ascontiguousarray(array)
    else:
        lengths = [*array.shape[1:], array.itemsize]
        strides = [int(np.prod(lengths[axis:])) for axis in range(array.ndim)]
        array = np.lib.stride_tricks.as_strided(np.empty(1, array.dtype), array.shape, strides)
    api = ctypes.pythonapi
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    taken = array.__dlpack__()
    pointer = pointer_of(("PyCapsule_GetPointer", api))(taken, _CAPSULE)
    moved = new(("PyCapsule_New", api))(pointer, _CAPSULE, None)
    rename(("PyCapsule_SetName", api))(taken, _USED)
    return moved
