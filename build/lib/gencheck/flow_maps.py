"""Anyone's flow as two maps with log-determinants, whatever library it comes from."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.distributions import ComposeTransform, Transform

from gencheck.outcomes import CannotJudge

LOGDET_NAMES = ("ldj", "logdet", "log_det", "log_det_j", "log_det_jac", "sldj", "logpx", "logp")
CONTEXT_NAMES = ("context", "c", "cond", "condition", "conditions", "y", "h", "label", "labels")
REVERSE_NAMES = ("reverse", "rev", "inverse", "invert")


class Bijection(NamedTuple):
    """A map with its log-determinant, both ways.

    Args:
        forward: (z [batch, ...], ldj [batch]) -> (z, ldj + log |det|).
        inverse: the same, backwards.
    """

    forward: Callable
    inverse: Callable


class _Map(NamedTuple):
    """A function (x, ldj) -> what the flow returns, and whether that continues the given ldj."""

    call: Callable
    continues: bool = False


def bijection_of(flow, inverse=None, context=None, inverse_logdet: bool = True) -> Bijection:
    """A flow's two maps; see `check_flow` for what it may be.

    Raises:
        CannotJudge: no inverse is found, or something can't be called.
    """
    there, back = _maps(flow, inverse, context)
    return Bijection(
        partial(_with_logdet, there, "the forward map"),
        partial(_with_logdet, back, "the inverse" if inverse_logdet else ""),
    )


def _maps(flow, inverse, context) -> tuple[_Map, _Map]:
    if inverse is not None:
        return _caller(flow, context), _caller(inverse, context)
    transform = _transform_of(flow, context)
    if transform is not None:
        return _Map(partial(_transformed, transform)), _Map(partial(_inverted, transform))
    if hasattr(getattr(flow, "_transform", None), "inverse"):  # nflows' Flow
        embed = getattr(flow, "_embedding_net", None)
        context = context if context is None or embed is None else embed(context)
        flow = flow._transform
    if hasattr(flow, "forward_and_log_det"):  # normflows' NormalizingFlow
        return tuple(
            _caller(function, context)
            for function in (flow.forward_and_log_det, flow.inverse_and_log_det)
        )
    for name in ("inverse", "backward"):
        if callable(getattr(flow, name, None)):
            function = flow if callable(flow) else flow.forward
            return _caller(function, context), _caller(getattr(flow, name), context)
    for name in REVERSE_NAMES:
        if name in _parameters(flow):
            return _caller(flow, context), _caller(partial(flow, **{name: True}), context)
    raise CannotJudge("no inverse is found: pass inverse=, a map (z) -> (x, log-determinant)")


def _transform_of(flow, context):
    """What has the methods of a `torch.distributions` transform in this object, or None.

    zuko's modules make theirs from the context; flowtorch's bijectors have the methods.
    """
    if isinstance(flow, nn.Module) and not hasattr(flow, "log_abs_det_jacobian"):
        names = list(_parameters(flow.forward))
        if names == ["c"] and not hasattr(flow, "inverse"):
            flow = flow(context) if context is not None else flow()
    if isinstance(getattr(flow, "transform", None), Transform):
        flow = flow.transform
    if isinstance(getattr(flow, "transforms", None), list) and hasattr(flow, "base_dist"):
        flow = ComposeTransform(flow.transforms)
    return flow if hasattr(flow, "log_abs_det_jacobian") else None


def _transformed(transform, x, _):
    if hasattr(transform, "call_and_ladj"):
        return transform.call_and_ladj(x)
    y = transform(x) if isinstance(transform, Transform) else transform.forward(x)
    return y, transform.log_abs_det_jacobian(x, y)


def _inverted(transform, y, _):
    if isinstance(transform, Transform):
        return _transformed(transform.inv, y, _)
    x = transform.inverse(y)
    return x, -transform.log_abs_det_jacobian(x, y)


def _parameters(function) -> dict[str, inspect.Parameter]:
    if isinstance(function, nn.Module):
        function = function.forward
    elif isinstance(function, partial) and isinstance(function.func, nn.Module):
        function = partial(function.func.forward, *function.args, **function.keywords)
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def _caller(function, context) -> _Map:
    """The function, given what it has parameters for."""
    if not callable(function):
        raise CannotJudge(f"{type(function).__name__} can't be called: pass a map or a module")
    others = list(_parameters(function).values())[1:]
    name = next((p.name for p in others if p.name in CONTEXT_NAMES), None)
    if context is not None and name is None:
        raise CannotJudge("no parameter of the flow is called context: pass functools.partial")
    others = [p for p in others if context is None or p.name != name]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in others if p.default is p.empty and p.kind in positional]
    takes = needed[:1] or [p for p in others if p.name.lower() in LOGDET_NAMES]

    def call(x, ldj):
        rows = {} if context is None else {name: context.expand(len(x), *context.shape[1:])}
        return function(x, **rows | {takes[0].name: ldj}) if takes else function(x, **rows)

    return _Map(call, bool(takes))


def _with_logdet(map_, words, x, ldj):
    """The map's (z, ldj + log |det|); without words the log-determinant is None.

    A log-determinant may be one number for all examples, and may come unsummed.
    """
    z, added = _split(map_.call(x, ldj), words)
    if not isinstance(z, torch.Tensor):
        raise CannotJudge(
            f"{words} returns {_name(z)}, which has no gradient: pass a map of torch tensors"
        )
    if not words or (added is None and words == "the inverse"):
        return z, None
    if added is None:
        raise CannotJudge(f"{words} returns no log-determinant: it must return (z, ldj)")
    added = torch.as_tensor(added, dtype=z.dtype, device=z.device)
    if added.numel() == 1:
        added = added.reshape(()).expand(len(x))
    elif len(added) == len(x) and added.numel() in (len(x), z.numel()):
        added = added.reshape(len(x), -1).sum(dim=1)
    else:
        raise CannotJudge(
            f"{words} returns log-determinants {list(added.shape)} for {len(x)} examples: it must "
            "return one for each"
        )
    return z, added if map_.continues else ldj + added


def _split(returned, words):
    if isinstance(returned, torch.Tensor) or not isinstance(returned, tuple | list):
        return returned, None
    if len(returned) != 2:
        raise CannotJudge(f"{words} returns {len(returned)} values: it must return (z, ldj)")
    z, added = returned
    if isinstance(z, list | tuple) and z:
        z = z[-1]  # all steps on the way
    return z, added


def _name(value) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
