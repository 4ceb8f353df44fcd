"""Checks of a submission's flow: gencheck's, of each coupling and of the whole, and of masks."""

import contextlib
from dataclasses import replace

import torch

from gencheck.flow import (
    MEASURES,
    inverse_outcome,
    logdet_outcome,
    reverse_outcome,
    rows_outcome,
)
from gencheck.flow_subject import pair
from gencheck.layers import layers_outcome
from gencheck.modules import replaced
from gencheck.outcomes import PASS, WEAK, WRONG, CannotJudge, Outcome, seed_everything
from gencheck.vae_nll import tensors
from grading.checks import load_checks
from grading.flow_subject import are_same


def _flow_logdet(flow):
    """The sum over the layers, each of which is judged; the whole Jacobian where it is more."""
    try:
        with flow.perturbed():
            whole, total = _whole_and_total(flow)
            tolerance = max(1e-3, flow.tolerance(total.abs().max().item()))
    except CannotJudge:
        return logdet_outcome(flow, lambda: [flow.flow], precise=False)
    error = (whole - total).abs().max().item()
    measured = f"the flow's log-determinant is {error:.2g} nats off the sum over its layers"
    return Outcome(PASS if error < tolerance else WRONG, measured, f"below {tolerance:.1g}")


@torch.no_grad()
def _whole_and_total(flow):
    """Log-determinants of the flow, and added up over its layers; CannotJudge if z differs."""
    z, ldj = flow.inputs(5)
    whole_z, whole = pair(flow.flow.forward(z.clone(), ldj.clone()))
    total, point = ldj.clone(), z.clone()
    for layer in flow.layers():
        point, added = pair(layer.forward(point.clone(), torch.zeros_like(ldj)))
        total = total + added
    if not are_same(point, whole_z):
        raise CannotJudge("the flow's result is not that of its layers one after the other")
    return whole, total


def _flow_reverse(flow):
    """Of the couplings, then of the whole flow: it is weak where `sample` has no use for it."""
    outcome = reverse_outcome(flow, lambda: (flow.couplings or [])[:2])
    if outcome.status == PASS:
        outcome = reverse_outcome(flow, lambda: [flow.flow])
    if outcome.status == WRONG and not _is_sampled_with(flow):
        words = f"{outcome.measured}; `sample` discards it, so that no result depends on it"
        return replace(outcome, status=WEAK, measured=words)
    return outcome


def _is_sampled_with(flow) -> bool:
    """Whether what `sample` returns depends on the reverse pass's log-determinant."""
    inner = getattr(flow.model, "flow", None)
    if not isinstance(inner, torch.nn.Module) or not hasattr(flow.model, "sample"):
        return False
    forward = inner.forward

    def shifted(*args, **options):
        z, ldj = pair(forward(*args, **options))
        return z, ldj + 1.0

    def drawn():
        seed_everything(flow.seed)
        return tensors(flow.model.sample(2))

    with contextlib.suppress(Exception), torch.no_grad():  # the check of `sample` says what fails
        plain = drawn()
        with replaced((inner, "forward", shifted)):
            return any(not torch.equal(a, b) for a, b in zip(plain, drawn()))
    return False


def _masks(flow):
    """The pixels that a layer changes, from its output."""
    board = (torch.arange(28)[:, None] + torch.arange(28)).flatten() % 2
    changed = []
    with flow.perturbed(precise=False):
        _whole_and_total(flow)  # permutations between couplings would move what they change
        z, ldj = flow.inputs(1)
        for layer in flow.layers():
            with torch.no_grad():
                changed.append((pair(layer.forward(z.clone(), ldj.clone()))[0] != z)[0])
    changed = torch.stack(changed)
    expected = "a checkerboard and its complement in turn"
    if n := int((~changed.any(dim=0)).sum()):
        return Outcome(WRONG, f"{n} pixels never change", expected)
    problems = []
    if (changed[:-1] == changed[1:]).any():
        problems.append("layers don't alternate")
    boards = board == torch.arange(len(changed))[:, None] % 2
    if not torch.equal(changed, boards) and not torch.equal(changed, ~boards):
        problems.append("the changed pixels are no checkerboard")
    return Outcome(WEAK if problems else PASS, "; ".join(problems) or expected, expected)


def _layers(flow):
    whole = flow.module if flow.model is None else flow.model

    def run():
        z, ldj = flow.inputs(2)
        of_layers = [
            part for c in flow.layers()[:2] for part in pair(c.forward(z.clone(), ldj.clone()))
        ]
        of_all = [*pair(flow.flow.forward(z.clone(), ldj.clone()))]
        with contextlib.suppress(Exception):  # other checks say what is wrong with these
            of_all += pair(flow.flow.inverse(z.clone(), ldj.clone()))
            of_all.append(flow.model(flow.x[:2].clone()))
            flow.model.sample(2)
        return {"coupling": of_layers, "": of_all}

    return layers_outcome({"": whole}, run)


CHECKS = load_checks(
    "flow",
    {
        "coupling_inverse": lambda flow: inverse_outcome(flow, lambda: flow.layers()[:2]),
        "coupling_logdet": lambda flow: logdet_outcome(flow, flow.layers, precise=False),
        "flow_inverse": MEASURES["flow_inverse"],
        "flow_logdet": _flow_logdet,
        "flow_reverse_logdet": _flow_reverse,
        "flow_rows": rows_outcome,
        "masks": _masks,
        "layers": _layers,
    },
)
