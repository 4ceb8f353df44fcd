"""Optimiser steps and sums over batches; on CUDA, steps captured in graphs."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn as nn

from harness import devices
from harness.devices import RandomState, device_of, to_host


def adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Fused Adam (Kingma & Ba, ICLR 2015); capturable where `captured` makes CUDA graphs."""
    return torch.optim.Adam(
        model.parameters(), lr=lr, fused=True, capturable=_captures(device_of(model))
    )


def mean_over_images(
    step: Callable[[torch.Tensor], torch.Tensor],
    data: Iterable[torch.Tensor],
    after_step: Callable[[], None] | None = None,
) -> torch.Tensor:
    """The sum of step(batch) over the batches, divided by the number of images, in float64.

    The host waits for the device only once, at the end.

    Args:
        step: returns the sum of its quantities over the images of a batch.
        data: batches.
        after_step: called after every step.
    """
    sums, n_images = [], 0
    for batch in data:
        sums.append(step(batch))
        n_images += len(batch)
        if after_step is not None:
            after_step()
    return to_host(torch.stack(sums)).sum(dim=0) / n_images


def captured(step: Callable, *arguments: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of a batch that calls step(*arguments, batch).

    On CUDA the step is captured in a CUDA graph, one per shape of the batch, and replayed: a
    single launch for all its small kernels. Elsewhere it is called as it is.

    Args:
        step: returns a tensor. It must not wait for the device, nor branch on the host.
        arguments: hashable. Modules and optimisers among them, also inside tuples, are what the
            step changes.
    """
    flat = [part for argument in arguments for part in _as_tuple(argument)]
    module = next(part for part in flat if isinstance(part, nn.Module))
    if _captures(device_of(module)):
        return _captured_once(step, *arguments)
    return functools.partial(step, *arguments)


def _as_tuple(argument: Any) -> tuple:
    return argument if isinstance(argument, tuple) else (argument,)


def _captures(device: torch.device) -> bool:
    return device.type == "cuda" and not devices.no_graph


@functools.cache
def _captured_once(step: Callable, *arguments: Any) -> "CapturedStep":
    parts = [
        part
        for argument in arguments
        for part in _as_tuple(argument)
        if isinstance(part, nn.Module | torch.optim.Optimizer)
    ]
    return CapturedStep(functools.partial(step, *arguments), parts)


class CapturedStep:
    """A step that is captured in a CUDA graph for each shape of its batch, and replayed.

    Args:
        step: a function of the batch that returns a tensor.
        parts: the modules and optimisers that the step changes.
    """

    N_WARM_UP = 3

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], parts: list):
        self.step = step
        self.parts = parts
        self.graphs = {}  # (graph, its input, its output) by the shape of the input

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """The step's result for the batch."""
        if batch.shape not in self.graphs:
            self.graphs[batch.shape] = self._capture(batch.clone())
        graph, input, output = self.graphs[batch.shape]
        input.copy_(batch)
        graph.replay()
        return output.clone()

    def _capture(self, input: torch.Tensor) -> tuple:
        """Capture the step after a few warm-up steps, and undo what those changed.

        Warm-up steps create what must exist before the capture: Adam's moments and cuBLAS's
        workspaces. They run on a side stream, as PyTorch's notes on CUDA graphs demand.
        """
        random = RandomState(input.device)
        before = copy.deepcopy([part.state_dict() for part in (random, *self.parts)])
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.N_WARM_UP):
                self.step(input)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.step(input)
        for part, state in zip((random, *self.parts), before):
            if isinstance(part, torch.optim.Optimizer):
                _reset_in_place(part, state)
            else:
                part.load_state_dict(state)  # copies into the same tensors
        return graph, input, output


def _reset_in_place(optimizer: torch.optim.Optimizer, state_dict: dict) -> None:
    """Load a state into the tensors that a graph writes; moments without a value become zero."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for n, parameter in enumerate(parameters):
        saved = state_dict["state"].get(n, {})
        for name, value in optimizer.state[parameter].items():
            if name in saved:
                value.copy_(saved[name])
            else:
                value.zero_()
