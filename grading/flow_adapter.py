"""From a submission's module to its flow: the whole model, the flow and its couplings."""

import inspect
import re
import types
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn as nn

from gencheck.flow_maps import Bijection
from grading.adapters import build, first_that_works, parts_of
from grading.flow_subject import FlowSubject
from grading.loading import CannotLoad, Submission


def _takes_log_det(kind: type) -> bool:
    """Whether a module maps z and a log-determinant, as couplings and chains of them do."""
    second = list(inspect.signature(kind.forward).parameters.values())[2:3]
    return any(
        p.kind is p.POSITIONAL_OR_KEYWORD
        and (p.default is p.empty or re.search(r"ldj|det|jac", p.name.lower()))
        for p in second
    )


def _names_in(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return {*code.co_names}.union(*map(_names_in, inner))


def _flow_class(submission) -> type:
    """The class of the whole model, from images to log p(x); without one, that of the flow.

    The same names are given to both: a whole model takes no log-determinant, and makes the flow.

    Raises:
        CannotLoad: there is none.
    """
    named = submission.find_classes("Model", "RealNVP", "NormalizingFlow", "Flow")
    whole = [kind for kind in named if not _takes_log_det(kind)]
    for flow in named:
        for kind in submission.kinds().values():
            start = inspect.unwrap(kind.__init__)
            if inspect.isfunction(start) and flow.__name__ in _names_in(start.__code__):
                whole += [] if _takes_log_det(kind) else [kind]
    if not named:
        raise CannotLoad("there is no class Model or Flow")
    return (whole or named)[0]


def _flow_of(model) -> nn.Module:
    """The flow in a model, by its name or as the only part that maps log-determinants; or itself.

    Raises:
        CannotLoad: there is none.
    """
    if _takes_log_det(type(model)) and not isinstance(getattr(model, "flow", None), nn.Module):
        return model
    try:
        return parts_of(model, "flow")[0]
    except CannotLoad:
        maps = list(_outermost(model))
        if len(maps) != 1:
            raise
        return maps[0]


def _outermost(module) -> Iterator[nn.Module]:
    """The parts that map log-determinants and lie in no other such part."""
    for child in nn.Module.children(module):
        if _takes_log_det(type(child)):
            yield child
        else:
            yield from _outermost(child)


def _is_coupling(kind: type) -> bool:
    """By its class's name, or that of a class that it is derived from."""
    return any("coupling" in base.__name__.lower() for base in kind.__mro__)


def flow_subject(submission: Submission, grey: torch.Tensor) -> tuple[FlowSubject, dict]:
    """The flow of a submission, and the arguments its `main` gives to the epoch's function."""
    model, caught = build(submission, _flow_class(submission), [784])
    flow = _flow_of(model)
    named = [m for m in nn.Module.modules(flow) if _is_coupling(type(m))]
    named = [m for m in named if m is not flow]
    inner = {part for m in named for part in nn.Module.modules(m) if part is not m}
    couplings = [m for m in named if m not in inner]
    layers = getattr(flow, "layers", None)
    if isinstance(layers, nn.ModuleList) and not couplings:
        couplings = list(layers)

    def bijection(module):
        def both(z, ldj, reverse):
            return module(z, ldj, reverse=reverse) if reverse else module(z, ldj)

        return Bijection(partial(both, reverse=False), partial(both, reverse=True))

    def try_flow(_):
        value = submission.attempt(flow, torch.randn(3, 784), torch.zeros(3))
        if value is None or len(value) != 2:
            raise NotImplementedError

    first_that_works([None], try_flow, "the flow's forward")
    subject = FlowSubject(
        bijection(flow),
        [bijection(layer) for layer in couplings],
        flow,
        784,
        None if model is flow else model,
        submission.find("log_prior"),
        grey[:64].float(),
    )
    return subject, caught
