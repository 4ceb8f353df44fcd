"""Optimiser steps and sums over batches; on CUDA, steps captured in graphs."""

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn as nn

from harness import devices
from harness.devices import RandomState, device_of, tf32, to_host


def adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Fused Adam (Kingma & Ba, ICLR 2015); capturable where `captured` makes CUDA graphs."""
    return torch.optim.Adam(
        model.parameters(), lr=lr, fused=True, capturable=_captures(device_of(model))
    )


def clipped_step(optimizer: torch.optim.Adam, max_norm: float) -> None:
    """A step of Adam with the gradient's norm clipped at `max_norm`.

    The fused kernel scales the gradients itself, in the pass that it makes over them anyway.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if optimizer.defaults["fused"] and norm.device.type != "mps":
        optimizer.grad_scale = (norm / max_norm).clamp(min=1.0).float()
        optimizer.found_inf = torch.zeros_like(optimizer.grad_scale)
    else:  # the fused kernel of MPS ignores a scale
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.step()


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
    single launch for all its small kernels. A step with an optimiser trains, so its matrix
    products there are in TF32. Elsewhere the step is called as it is.

    Args:
        step: returns a tensor. It must not wait for the device, nor branch on the host.
        arguments: hashable. Modules and optimisers among them, also inside tuples, are what the
            step changes.
    """
    if _captures(_device(arguments)):
        return _captured_once(step, *arguments)
    return _bound(step, *arguments)


@functools.cache
def _captured_once(step: Callable, *arguments: Any) -> "CapturedStep":
    return CapturedStep(_bound(step, *arguments), _parts(arguments))


def _bound(step: Callable, *arguments: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    trains = any(isinstance(part, torch.optim.Optimizer) for part in _parts(arguments))
    on_cuda = _device(arguments).type == "cuda"
    step = functools.partial(step, *arguments)
    return tf32()(step) if trains and on_cuda else step


def _parts(arguments: tuple) -> list:
    """The modules and optimisers among the arguments."""
    flat = [
        part
        for argument in arguments
        for part in (argument if isinstance(argument, tuple) else (argument,))
    ]
    return [part for part in flat if isinstance(part, nn.Module | torch.optim.Optimizer)]


def _device(arguments: tuple) -> torch.device:
    return device_of(next(part for part in _parts(arguments) if isinstance(part, nn.Module)))


def _captures(device: torch.device) -> bool:
    return device.type == "cuda" and not devices.no_graph


class CapturedStep:
    """A step that is captured in a CUDA graph for each shape of its batch, and replayed.

    If a capture fails, this process goes on without graphs, from the state before the attempt.

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
        if batch.shape not in self.graphs and not devices.no_graph:
            try:
                self.graphs[batch.shape] = self._capture(batch.clone())
            except RuntimeError as error:
                devices.no_graph = True
                reason = str(error.__context__ or error).strip().split("\n")[0]
                print(f"warning: no CUDA graphs, so steps are slower: {reason}", file=sys.stderr)
        if devices.no_graph:
            return self.step(batch)
        graph, input, output = self.graphs[batch.shape]
        input.copy_(batch)
        graph.replay()
        return output.clone()

    def _capture(self, input: torch.Tensor) -> tuple:
        """Capture the step after a few warm-up steps, and undo what those changed.

        Warm-up steps create what must exist before the capture: Adam's moments and cuBLAS's
        workspaces. They run on a side stream, as PyTorch's notes on CUDA graphs demand.
        """
        stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
        with _undone(RandomState(input.device), *self.parts):
            side.wait_stream(stream)
            with torch.cuda.stream(side):
                for _ in range(self.N_WARM_UP):
                    self.step(input)
            stream.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # A capture that fails would leave its own stream current.
            with torch.cuda.stream(stream), torch.cuda.graph(graph):
                output = self.step(input)
        return graph, input, output


@contextlib.contextmanager
def _undone(random: RandomState, *parts: nn.Module | torch.optim.Optimizer) -> Iterator[None]:
    """Restore random numbers and parts after the block, in the tensors that a graph knows."""
    before = copy.deepcopy([part.state_dict() for part in (random, *parts)])
    modules = [part for part in parts if isinstance(part, nn.Module)]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    needs_gradient = [parameter.requires_grad for parameter in parameters]
    try:
        yield
    except RuntimeError:
        # A capture that fails leaves CUDA's generators in capture mode; their copies are not.
        for generator in torch.cuda.default_generators:
            generator.graphsafe_set_state(generator.clone_state())
        raise
    finally:
        for part, state in zip((random, *parts), before):
            if isinstance(part, torch.optim.Optimizer):
                _reset_in_place(part, state)
            else:
                part.load_state_dict(state)  # copies into the same tensors
        for parameter, needed in zip(parameters, needs_gradient):
            parameter.requires_grad_(needed)


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
