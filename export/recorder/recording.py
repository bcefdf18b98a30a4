"""Recording a network: which module runs, and in which forms its convolutions are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from wfvae.export.forms.form import Form, Unpaired
from wfvae.export.recorder.builder import GraphBuilder
from wfvae.export.recorder.shapes import ShapeWriter

FilterStore = dict[tuple[str, str], dict[str, Tensor]]
"""Transformed filters by weight and form, then by their own names."""


class Recorder:
    """Records what a module computes on `TracedTensor` inputs.

    Args:
        module: the network, in eval mode.
        convolutions: a key of `wfvae.export.forms.table.FORMS`.
        unpaired: the frame of a whole clip without a partner (`wfvae.export.forms.form`).
        filters: transformed filters that other graphs of the module left; new ones are added.
    """

    def __init__(
        self,
        module: nn.Module,
        convolutions: str = "plain",
        unpaired: Unpaired = "first",
        filters: FilterStore | None = None,
    ) -> None:
        self.builder = GraphBuilder(module)
        self.shapes = ShapeWriter(self.builder)
        self.convolutions = convolutions
        self.unpaired = unpaired
        self._filters: FilterStore = {} if filters is None else filters
        self._paths = {id(child): path for path, child in module.named_modules()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Names the nodes recorded inside after the module that runs."""

        def enter(module: nn.Module, _: Any) -> None:
            self.builder.scopes.append(self._paths.get(id(module), self.builder.scopes[-1]))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self.builder.scopes.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            with torch.no_grad():
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def filters(self, weight: Tensor, form: Form) -> list[Tensor]:
        """Returns the form's filters of a weight, made once for all graphs and named after it."""
        path = self.builder.name_of(weight)
        assert path is not None
        key = path, form.name
        if key not in self._filters:
            self._filters[key] = {f"{path}.{name}": part for name, part in form.filters(weight).items()}
        self.builder.name_tensors(self._filters[key])
        return list(self._filters[key].values())
