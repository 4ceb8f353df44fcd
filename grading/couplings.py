"""Checks of a submission's flow: gencheck's, of each coupling and of the whole, and of masks."""

import torch

from gencheck.flow import inverse_outcome, logdet_outcome, reverse_outcome, rows_outcome
from gencheck.flow_subject import pair
from gencheck.outcomes import PASS, WEAK, WRONG, CannotJudge, Outcome
from grading.checks import load_checks


def _coupling_inverse(flow):
    return inverse_outcome(flow, lambda: flow.layers()[:2])


def _coupling_logdet(flow):
    return logdet_outcome(flow, lambda: flow.layers()[:2], precise=False)


def _coupling_reverse(flow):
    return reverse_outcome(flow, lambda: flow.layers()[:2])


def _flow_inverse(flow):
    return inverse_outcome(flow, lambda: [flow.flow])


def _flow_logdet(flow):
    """The whole flow's Jacobian where layers are unknown; else the sum over judged layers."""
    if not flow.couplings:
        return logdet_outcome(flow, lambda: [flow.flow], precise=False)
    with flow.perturbed():
        whole, total = _whole_and_total(flow)
        error = (whole - total).abs().max().item()
        tolerance = max(1e-3, flow.tolerance(total.abs().max().item()))
    measured = f"differs from the sum over its layers by {error:.2g} nats"
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
    if (point - whole_z).abs().max() > 1e-3 * (1 + whole_z.abs().max()):
        raise CannotJudge("the flow is not its layers one after the other")
    return whole, total


def _flow_reverse(flow):
    return reverse_outcome(flow, lambda: [flow.flow])


def _masks(flow):
    """The pixels that a layer changes, from its output."""
    board = (torch.arange(28)[:, None] + torch.arange(28)).flatten() % 2
    sets = []
    with flow.perturbed(precise=False):
        _whole_and_total(flow)  # permutations between couplings would move what they change
        z, ldj = flow.inputs(1)
        for layer in flow.layers():
            with torch.no_grad():
                sets.append((pair(layer.forward(z.clone(), ldj.clone()))[0] != z)[0])
    expected = "a checkerboard and its complement in turn"
    if n := int((~torch.stack(sets).any(dim=0)).sum()):
        return Outcome(WRONG, f"{n} pixels never change", expected)
    problems = []
    if any((first == second).any() for first, second in zip(sets, sets[1:])):
        problems.append("layers don't alternate")
    if flow.dim == 784 and not all(
        (s == (board == b)).all() for s, b in zip(sets, [*_parity(sets, board)])
    ):
        problems.append("the changed pixels are no checkerboard")
    return Outcome(WEAK if problems else PASS, "; ".join(problems) or expected, expected)


def _parity(sets, board):
    first = 0 if (sets[0] == (board == 0)).all() else 1
    return [(first + i) % 2 for i in range(len(sets))]


CHECKS = load_checks(
    "flow",
    {
        "coupling_inverse": _coupling_inverse,
        "coupling_logdet": _coupling_logdet,
        "coupling_reverse_logdet": _coupling_reverse,
        "flow_inverse": _flow_inverse,
        "flow_logdet": _flow_logdet,
        "flow_reverse_logdet": _flow_reverse,
        "flow_rows": rows_outcome,
        "masks": _masks,
    },
)
