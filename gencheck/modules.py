"""Handling other people's modules: finding, changing and restoring them."""

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
DROPOUTS += ("alpha_dropout", "feature_alpha_dropout")  # functions that their modules call, too


@contextlib.contextmanager
def replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Set attributes (object, name, value) inside the block, and restore what was there."""
    missing = object()
    before = [(thing, name, vars(thing).get(name, missing)) for thing, name, _ in replacements]
    for thing, name, value in replacements:
        object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        for thing, name, value in before:
            if value is missing:
                object.__delattr__(thing, name)
            else:
                object.__setattr__(thing, name, value)


def without_dropout() -> contextlib.AbstractContextManager[None]:
    """Make dropout the identity inside the block: its noise would hide what is measured."""
    return replaced(*((F, name, lambda input, *args, **options: input) for name in DROPOUTS))


@contextlib.contextmanager
def changed_weights(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Restore these tensors after the block, whatever happens to them in it."""
    parameters = list(parameters)
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, value in zip(parameters, saved):
            parameter.data.copy_(value)


def place_of(function: Callable) -> tuple[Any, str]:
    """Where a module or a method is looked up: (object, name of the attribute) for `replaced`."""
    name = "forward" if isinstance(function, nn.Module) else function.__name__
    return getattr(function, "__self__", function), name


def modules_of(*things: Any) -> list[nn.Module]:
    """The modules in these callables: themselves, whose methods they are, or what they refer to.

    Looks into partial functions, into what functions enclose and name, and into attributes of
    objects, a few levels deep.
    """
    found, seen = {}, set()

    def visit(thing, depth):
        if depth == 0 or id(thing) in seen or isinstance(thing, type):
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif isinstance(thing, functools.partial):
            parts = [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, types.MethodType):
            parts = [thing.__self__]
        elif isinstance(thing, types.FunctionType):
            named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
            parts = [n for n in named if isinstance(n, nn.Module | types.FunctionType)]
            with contextlib.suppress(ValueError):  # an enclosed name that has no value yet
                parts += [cell.cell_contents for cell in thing.__closure__ or ()]
        elif isinstance(thing, list | tuple):
            parts = thing
        else:
            parts = list(getattr(thing, "__dict__", {}).values())
        if not isinstance(thing, nn.Module):
            for part in parts:
                visit(part, depth - 1)

    for thing in things:
        visit(thing, 6)
    return list(found.values())


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The leaves of the graph that these tensors come from."""
    found, seen = {}, set()
    nodes = [t.grad_fn for t in tensors if t is not None and t.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        nodes += [following for following, _ in node.next_functions if following is not None]
    return list(found.values())


@contextlib.contextmanager
def restored_modes(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Restore after the block which of these modules are in training mode."""
    modes = [(part, part.training) for part in parts]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore modules after the block: weights, buffers, precision, mode, plain attributes."""
    parts = [part for module in modules for part in nn.Module.modules(module)]
    tensors = {id(t): t for part in parts for t in part.parameters(recurse=False)}
    tensors |= {id(t.grad): t.grad for t in list(tensors.values()) if t.grad is not None}
    saved = [(tensor, tensor.data, tensor.data.clone()) for tensor in tensors.values()]
    buffers = [
        (part, name, buffer, buffer.clone())
        for part in parts
        for name, buffer in part.named_buffers(recurse=False)
    ]
    flags = [
        (part, name, value)
        for part in parts
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | types.NoneType)
    ]
    try:
        with restored_modes(parts):
            yield
    finally:
        for tensor, data, value in saved:
            tensor.data = data.copy_(value)
        for part, name, buffer, value in buffers:
            setattr(part, name, buffer.copy_(value))
        for part, name, value in flags:
            vars(part)[name] = value


def perturb(parameters: Iterable[torch.Tensor], std: float, seed: int) -> None:
    """Add normal noise to tensors, from a generator of its own; it repeats after 65,537 numbers."""
    noise = std * torch.randn(65_537, generator=torch.Generator().manual_seed(seed))
    for parameter in parameters:
        n = parameter.numel()
        repeated = noise.repeat(-(-n // len(noise)))[:n].view(parameter.shape)
        parameter.data.add_(repeated.to(parameter.dtype))
        noise = noise.roll(n)
