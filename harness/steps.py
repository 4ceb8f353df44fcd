"""Optimisers, sums over batches, and steps captured in CUDA graphs."""

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn

from harness.devices import RandomState, device_of, tf32, to_host

use_graphs = True  # `--no_graph`, or a capture that failed or was wrong, ends it for the process
OUTPUT_TOLERANCE = 1e-3  # of a replayed step against the eager one, relative
CHANGE_TOLERANCE = 0.05  # of the change that each makes to the weights, relative


def adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Fused Adam (Kingma & Ba, ICLR 2015).

    Where `captured` makes CUDA graphs, the learning rate is a tensor, which a replayed step reads:
    schedulers work there, too.
    """
    device = device_of(model)
    if not _captures(device):
        return torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    rate = torch.tensor(lr, device=device)
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True, capturable=True)


def mean_over_images(sums: list[torch.Tensor], n_images: int) -> torch.Tensor:
    """Sums over the images of each batch -> the mean over all images, float64 on the CPU.

    The only point of an epoch at which the host waits for the device.
    """
    return to_host(torch.stack(sums)).sum(dim=0) / n_images


def captured(step: Callable, *arguments: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of a batch that calls step(*arguments, batch).

    On CUDA the step is captured in a CUDA graph, one per shape of the batch, and replayed: a single
    launch for all its small kernels. A step with an optimiser trains, so its matrix products there
    are in TF32. Elsewhere the step is called as it is.

    Args:
        step: returns a tensor. It must not wait for the device, nor branch on the host.
        arguments: hashable. Modules and optimisers among them, also inside tuples, are what the
            step changes.
    """
    device = device_of(next(part for part in _parts(arguments) if isinstance(part, nn.Module)))
    return _captured(step, *arguments) if _captures(device) else _bound(step, *arguments)


# The next epoch finds its graphs here: those of a training and of a validation, or of two runs.
@functools.lru_cache(maxsize=4)
def _captured(step: Callable, *arguments: Any) -> "CapturedStep":
    return CapturedStep(_bound(step, *arguments), _parts(arguments))


def _bound(step: Callable, *arguments: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    parts = _parts(arguments)
    trains = any(isinstance(part, torch.optim.Optimizer) for part in parts)
    on_cuda = any(isinstance(p, nn.Module) and device_of(p).type == "cuda" for p in parts)
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


def _captures(device: torch.device) -> bool:
    return device.type == "cuda" and use_graphs


class CapturedStep:
    """A step that is captured in a CUDA graph for each shape of its batch, proved, and replayed.

    A new graph is trusted only after one replay has agreed with the step itself, from the same
    state, random numbers and batch. If it doesn't, or can't be captured, one line says so, and this
    process goes on without graphs, from the state before the attempt.

    Args:
        step: a function of the batch that returns a tensor.
        parts: the modules and optimisers that the step changes.
    """

    N_WARM_UP = 3

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], parts: list):
        self.step = step
        self.parts = parts
        self.graphs = {}  # a function that replays the graph, by the shape of the batch

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """The step's result for the batch."""
        if batch.shape not in self.graphs and use_graphs:
            try:
                # Other values than the batch's: a graph that keeps them is then found out.
                replay = self._capture(batch.flip(0))
                self._prove(replay, batch)
                self.graphs[batch.shape] = replay
            except RuntimeError as error:
                _give_up_graphs(str(error.__context__ or error).strip().split("\n")[0])
        return self.graphs[batch.shape](batch) if use_graphs else self.step(batch)

    def _capture(self, input: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
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

        def replay(batch):
            input.copy_(batch)
            graph.replay()
            return output.clone()

        return replay

    def _prove(self, replay: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> None:
        """Compare a replay with the step, from the same state and random numbers.

        Raises:
            RuntimeError: outputs or changes of the weights differ by more than the tolerances.
        """
        before = _weights(self.parts)
        outputs, changes = [], []
        for function in (replay, self.step):
            with _undone(RandomState(batch.device), *self.parts):
                outputs.append(function(batch).detach().clone())
                changes.append(_weights(self.parts) - before)
        if not torch.allclose(*outputs, rtol=OUTPUT_TOLERANCE, atol=1e-6):
            raise RuntimeError("a replayed step gives another result than the step itself")
        if not (changes[0] - changes[1]).norm() <= CHANGE_TOLERANCE * changes[1].norm():
            raise RuntimeError("a replayed step changes the weights otherwise than the step itself")


def _give_up_graphs(reason: str) -> None:
    global use_graphs
    use_graphs = False
    print(f"warning: no CUDA graphs, so steps are slower: {reason}", file=sys.stderr)


def _weights(parts: list) -> torch.Tensor:
    """All parameters and floating-point buffers of the modules in one vector."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    tensors = [value for module in modules for value in module.state_dict().values()]
    return torch.cat([value.flatten() for value in tensors if value.is_floating_point()])


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
