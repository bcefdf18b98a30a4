"""OpenVINO for Polygraphy: runs a model with exposed inner tensors as the backend runs a bundle's.

Norms whose inner tensors are exposed, too, are OpenVINO's own.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata


class OpenVinoRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no types
    """Runs one ONNX model in fp32 or bf16 on the CPU.

    Args:
        model: its external weights are read from `folder`.
        described: what the backend's `describe()` returned.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, described: dict[str, str]) -> None:
        super().__init__(name="openvino", prefix="openvino")
        self._proto, self._folder, self._described = model, folder, described
        self._compiled: Any = None

    def activate_impl(self) -> None:
        """Compiles the model."""
        from wfvae.runtime.backends.openvino import OpenVinoOptions, compile_settings, open_core
        from wfvae.runtime.backends.openvino_norms import rewrite_norms

        load_external_data_for_model(self._proto, str(self._folder))
        hint, threads = self._described["precision_hint"], self._described["threads"]
        core = open_core()
        model = core.read_model(self._proto.SerializeToString())
        rewrite_norms(model, coarse=hint == "bf16")
        options = OpenVinoOptions(precision_hint=hint, threads=None if threads == "all" else int(threads))
        self._compiled = core.compile_model(model, "CPU", compile_settings(options))

    def deactivate_impl(self) -> None:
        """Releases the compiled model."""
        self._compiled = None

    def get_input_metadata_impl(self) -> Any:
        """Returns names, types and shapes (None for symbolic) of the inputs."""
        metadata = TensorMetadata()
        for value in self._proto.graph.input:
            tensor = value.type.tensor_type
            shape = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
            metadata.add(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)
        return metadata

    def infer_impl(self, feed_dict: dict[str, Any]) -> OrderedDict[str, Any]:
        """Returns copies of all outputs by name."""
        results = self._compiled({name: np.ascontiguousarray(array) for name, array in feed_dict.items()})
        self.inference_time = 0.0  # Polygraphy requires a number
        return OrderedDict((value.name, np.array(results[value.name])) for value in self._proto.graph.output)
