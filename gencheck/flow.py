"""Checks of a normalising flow's mathematics (Dinh et al., "Density estimation using Real NVP")."""

import math

import torch

from gencheck.flow_subject import Bijection, FlowSubject, jacobian, pair
from gencheck.outcomes import (
    PASS,
    WEAK,
    WRONG,
    CannotJudge,
    Finding,
    Outcome,
    load_checks,
    modules_of,
    raise_failures,
    restored,
    run_checks,
)


def _invert(bijection, z, ldj):
    with torch.no_grad():
        z1, ldj1 = pair(bijection.forward(z.clone(), ldj.clone()))
        z2, ldj2 = pair(bijection.inverse(z1.clone(), ldj1.clone()))
    return z1, ldj1, z2, ldj2


def _inverse_outcome(flow, bijections):
    with flow.perturbed():
        z, ldj = flow.inputs(5)
        errors = []
        for bijection in bijections:
            z1, _, z2, _ = _invert(bijection, z, ldj)
            if (z1 - z).abs().max() < 1e-6:
                raise CannotJudge("the layers do nothing, even with perturbed weights")
            errors.append((z2 - z).abs().max().item())
        tolerance = 1e-2 if flow.dtype == torch.float32 else 1e-6
    measured = f"largest error {max(errors):.2g} with perturbed weights"
    return Outcome(PASS if max(errors) < tolerance else WRONG, measured, f"below {tolerance:g}")


def _logdet_outcome(flow, bijections):
    errors, signs = [], []
    with flow.perturbed(precise=False):
        z, ldj = flow.inputs(2)
        for bijection in bijections:
            with torch.no_grad():
                added = pair(bijection.forward(z.clone(), ldj.clone()))[1] - ldj
            if added.shape != ldj.shape:
                return Outcome(WRONG, f"log-determinants {list(added.shape)}", "[batch]")

            def transform(points, bijection=bijection):
                return bijection.forward(points, points.new_zeros(len(points)))[0]

            exact = torch.linalg.slogdet(jacobian(transform, z[0]).double())[1]
            errors.append((added[0] - exact).abs().item())
            signs.append((added[0].item(), exact.item()))
        tolerance = max(1e-2, flow.tolerance(max(abs(exact) for _, exact in signs)))
    worst = max(range(len(errors)), key=errors.__getitem__)
    coded, exact = signs[worst]
    if errors[worst] < tolerance:
        return Outcome(PASS, f"autodiff's, to {errors[worst]:.1g} nats")
    ratio = coded / exact if abs(exact) > 1e-3 else math.nan
    words = {-1: ", the sign is wrong", 2: ", it is doubled", 0: ", it is left out", 0.5: ", half"}
    known = [w for factor, w in words.items() if abs(ratio - factor) < 0.01]
    return Outcome(
        WRONG,
        f"log |det| = {coded:.3f} nats{known[0] if known else ''}",
        f"{exact:.3f}, autodiff's",
    )


def _reverse_outcome(flow, bijections):
    words = set()
    with flow.perturbed():
        z, ldj = flow.inputs(5)
        tolerance = 1e-2 if flow.dtype == torch.float32 else max(1e-6, flow.tolerance(100))
        for bijection in bijections:
            _, ldj1, _, ldj2 = _invert(bijection, z, ldj)
            added = ldj1 - ldj
            if ldj2.shape == ldj.shape and (ldj2 - ldj).abs().max() < tolerance:
                continue
            if ldj2.numel() == len(ldj) and (ldj2 == 0).all():
                words.add("reverse returns zero for the log-determinant, whatever was added before")
            elif ldj2.shape == ldj.shape and (ldj2 - ldj1).abs().max() < tolerance:
                words.add("reverse leaves the log-determinant as it is")
            elif ldj2.shape == ldj.shape and (ldj2 - ldj1 - added).abs().max() < tolerance:
                words.add("reverse adds the log-determinant again")
            else:
                error = (ldj2 - ldj).abs().max().item()
                words.add(f"off by {error:.3g} nats after forward and reverse")
    expected = "reverse subtracts what forward added"
    return Outcome(WRONG if words else PASS, "; ".join(sorted(words)) or expected, expected)


def _coupling_inverse(flow):
    return _inverse_outcome(flow, flow.layers()[:2])


def _coupling_logdet(flow):
    return _logdet_outcome(flow, flow.layers()[:2])


def _coupling_reverse(flow):
    return _reverse_outcome(flow, flow.layers()[:2])


def _flow_inverse(flow):
    return _inverse_outcome(flow, [flow.flow])


def _flow_logdet(flow):
    """The whole flow's Jacobian where layers are unknown; else the sum over judged layers."""
    if not flow.couplings:
        return _logdet_outcome(flow, [flow.flow])
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
    return _reverse_outcome(flow, [flow.flow])


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
        "masks": _masks,
    },
)


def check_flow(forward, inverse, dim: int, weak_too: bool = False) -> list[Finding]:
    """Check a bijection and its log-determinants; returns the findings.

    Args:
        forward: (z [batch, dim], ldj [batch]) -> (z, ldj + log |det dz_out / dz|). A module, or a
            method of one, is checked with perturbed weights and in float64.
        inverse: (z, ldj) -> (z, ldj - the same).
        dim: number of dimensions.
        weak_too: raise for weak findings as well.

    Raises:
        CheckFailure: an AssertionError that lists what is wrong.
    """
    modules = modules_of(forward, inverse)
    checks = [check for check in CHECKS if check.name.startswith("flow")]
    with restored(modules):
        module = modules[0] if modules else None
        subject = FlowSubject(Bijection(forward, inverse), None, module, dim)
        return raise_failures(run_checks("flow", subject, checks), weak_too)
