"""Adam, and steps captured in CUDA graphs."""

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn

from harness.devices import RandomState, device_of, tf32

use_graphs = True  # `--no_graph`, or a capture that failed or was wrong, ends it for the process

# How far a replayed step may be from the step itself, relative to the latter. Rounding moves
# weights by up to 4e-4 of their change, as Adam's first steps magnify gradients that are rounding
# alone, and the rest by 1e-6. Another step's noise or batch moves a result by 7e-4 or more.
TOLERANCES = {
    "result": 1e-4,
    "change of weights": 0.1,
    "change of buffers": 0.01,
    "optimiser state": 0.01,
    "random state": 0.0,
}


def adam(
    parameters: nn.Module | list[dict], lr: float, weight_decay: float = 0.0, eps: float = 1e-8
) -> torch.optim.Adam:
    """Fused Adam (Kingma & Ba, ICLR 2015), with the weight decay of AdamW.

    Each step multiplies the weights by 1 - lr * weight_decay, as PyTorch's AdamW does; lambda of
    Loshchilov & Hutter ("Decoupled weight decay regularization", ICLR 2019) is lr * weight_decay.

    Where `captured` makes CUDA graphs, the learning rate is a tensor, which a replayed step reads:
    schedulers work there, too.

    Args:
        parameters: a model, or groups as PyTorch's optimisers take them, perhaps with their own
            `lr`.
        lr: the learning rate of the others.
        weight_decay: per step and unit of learning rate.
        eps: added to the root of a gradient's mean square, by which its mean is divided.
    """
    if isinstance(parameters, nn.Module):
        parameters = [{"params": list(parameters.parameters())}]
    device = parameters[0]["params"][0].device
    captures = _captures(device)
    groups = []
    for group in parameters:
        rate = group.get("lr", lr)
        groups.append(group | {"lr": torch.tensor(rate, device=device) if captures else rate})
    return torch.optim.AdamW(
        groups, eps=eps, weight_decay=weight_decay, fused=True, capturable=captures
    )


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

    A new graph is trusted only if one replay agrees with the step itself, from the same state,
    random numbers and batch. If it doesn't, or can't be captured, one line says so, and this
    process goes on without graphs, from the state before the attempt.

    A graph repeats what the step does on the device. Python beside it, such as a scheduler's step,
    runs only at the capture, so it belongs outside the step.

    Args:
        step: a function of the batch that returns a tensor. It sets its gradients to zero itself.
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
            before = _State(RandomState(batch.device), self.parts)
            try:
                self.graphs[batch.shape] = self._proved(batch, before)
            except RuntimeError as error:
                _leave_capture_mode()
                before.restore()
                _give_up_graphs(str(error.__context__ or error).strip().split("\n")[0])
        return self.graphs[batch.shape](batch) if use_graphs else self.step(batch)

    def _proved(self, batch: torch.Tensor, before: "_State") -> Callable:
        """A function that replays a graph of the step, after one replay that agreed with the step.

        Raises:
            RuntimeError: the capture failed, or the replay differs by more than the tolerances.
        """
        expected = self._outcome(self.step, batch)
        before.restore()
        # Of zeros, not of the batch: a graph that keeps the values of its capture is found out.
        replay = self._capture(torch.zeros_like(batch))
        before.restore(captured=True)
        found = self._outcome(replay, batch)
        before.restore(captured=True)
        for name, value in expected.items():
            change = value - before.vectors.get(name, 0)
            # Not "greater than": NaN is a difference, too.
            if not (found[name] - value).norm() <= TOLERANCES[name[0]] * change.norm():
                raise RuntimeError(f"a replayed step leaves another {name[0]} than the step itself")
        return replay

    def _outcome(self, step: Callable, batch: torch.Tensor) -> dict[tuple, torch.Tensor]:
        """Vectors of all that a step leaves, by name."""
        result = step(batch).detach().flatten().clone()
        random = torch.cat(list(RandomState(batch.device).state_dict().values()))
        return {("result",): result, ("random state",): random.double()} | _vectors(self.parts)

    def _capture(self, input: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Capture the step after a few warm-up steps; returns a function that replays the graph.

        Warm-up steps create what must exist before the capture: Adam's moments and cuBLAS's
        workspaces. They run on a side stream, as PyTorch's notes on CUDA graphs demand.
        """
        stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(stream)
        try:
            with torch.cuda.stream(side):
                for _ in range(self.N_WARM_UP):
                    self.step(input)
        finally:
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


def _give_up_graphs(reason: str) -> None:
    global use_graphs
    use_graphs = False
    print(f"\nwarning: no CUDA graphs, so steps are slower: {reason}", file=sys.stderr)


def _leave_capture_mode() -> None:
    """A capture that fails leaves CUDA's generators in capture mode; their copies are not."""
    for generator in torch.cuda.default_generators:
        generator.graphsafe_set_state(generator.clone_state())


def _vectors(parts: list) -> dict[tuple, torch.Tensor]:
    """What a step can change of its parts: copies, a vector for each kind of tensor."""
    tensors = {}
    for n, part in enumerate(parts):
        if isinstance(part, nn.Module):
            tensors["change of weights", n] = list(part.parameters())
            tensors["change of buffers", n] = list(part.buffers())
            continue
        for state in part.state.values():
            for name, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors.setdefault(("optimiser state", n, name), []).append(value)
    return {
        name: torch.cat([value.detach().flatten().float() for value in values])
        for name, values in tensors.items()
        if values
    }


class _State:
    """The random numbers and parts at one moment, to which `restore` takes them back.

    Attributes:
        vectors: weights and buffers, as `_vectors` names them.
    """

    def __init__(self, random: RandomState, parts: list):
        modules = [part for part in parts if isinstance(part, nn.Module)]
        self._with_state_dict = [random, *modules]
        self._state_dicts = [copy.deepcopy(part.state_dict()) for part in self._with_state_dict]
        self._needs_gradient = {p: p.requires_grad for m in modules for p in m.parameters()}
        self._optimizers = {
            part: {parameter: copy.deepcopy(state) for parameter, state in part.state.items()}
            for part in parts
            if isinstance(part, torch.optim.Optimizer)
        }
        vectors = _vectors(parts)
        self.vectors = {name: vectors[name] for name in vectors if name[0].startswith("change")}

    @torch.no_grad()
    def restore(self, captured: bool = False) -> None:
        """Restore everything, in the same tensors.

        Args:
            captured: a graph knows the tensors of the optimisers' states. Then those that are new
                become zero, which is what they start from; otherwise they are removed.
        """
        for part, state_dict in zip(self._with_state_dict, self._state_dicts):
            part.load_state_dict(state_dict)  # copies into the same tensors
        for parameter, needed in self._needs_gradient.items():
            parameter.requires_grad_(needed)
        for optimizer, states in self._optimizers.items():
            for parameter, state in list(optimizer.state.items()):
                _restore_in_place(state, states.get(parameter, {}), keep_new=captured)
                if not state:
                    del optimizer.state[parameter]


def _restore_in_place(state: dict, saved: dict, keep_new: bool) -> None:
    """Restore a parameter's part of an optimiser's state."""
    for name, value in list(state.items()):
        is_tensor = isinstance(value, torch.Tensor)
        if is_tensor and name in saved:
            value.copy_(saved[name])
        elif name in saved:
            state[name] = saved[name]
        elif is_tensor and keep_new:
            value.zero_()
        else:
            del state[name]
