"""Checks of a normalising flow's mathematics (Dinh et al., "Density estimation using Real NVP")."""

import math

import torch
import torch.nn as nn

from grading.flow_subject import STD, Bijection, FlowSubject, jacobian, pair
from grading.outcomes import (
    NOTE,
    PASS,
    WRONG,
    CannotJudge,
    Finding,
    Outcome,
    load_checks,
    raise_failures,
    replaced,
    run_checks,
    seed_everything,
)

QUIRK_NATS = 0.02  # the hand-out's logit step leaves out 784 log(1 - 1e-5) = -0.0078 nats
QUIRK_LEVELS = 0.01  # and its reverse doesn't undo alpha: up to 0.0013 grey levels


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
    with flow.perturbed(), torch.no_grad():
        z, ldj = flow.inputs(5)
        whole_z, whole = pair(flow.flow.forward(z.clone(), ldj.clone()))
        total, point = ldj.clone(), z.clone()
        for layer in flow.couplings:
            zero = torch.zeros_like(ldj)
            point, added = pair(layer.forward(point.clone(), zero))
            total = total + added
        if (point - whole_z).abs().max() > 1e-3 * (1 + whole_z.abs().max()):
            raise CannotJudge("the flow is not its layers one after the other")
        error = (whole - total).abs().max().item()
        tolerance = max(1e-3, flow.tolerance(total.abs().max().item()))
    measured = f"differs from the sum over its layers by {error:.2g} nats"
    return Outcome(PASS if error < tolerance else WRONG, measured, f"below {tolerance:.1g}")


def _flow_reverse(flow):
    return _reverse_outcome(flow, [flow.flow])


def _masks(flow):
    """The pixels that a layer changes, from its Jacobian's diagonal."""
    board = (torch.arange(28)[:, None] + torch.arange(28)).flatten() % 2
    sets = []
    with flow.perturbed(precise=False):
        z, ldj = flow.inputs(1)
        for layer in flow.layers():
            with torch.no_grad():
                sets.append((pair(layer.forward(z.clone(), ldj.clone()))[0] != z)[0])
    problems = []
    if not torch.stack(sets).any(dim=0).all():
        problems.append(f"{int((~torch.stack(sets).any(dim=0)).sum())} pixels never change")
    if any((first == second).any() for first, second in zip(sets, sets[1:])):
        problems.append("layers don't alternate")
    if flow.dim == 784 and not all(
        (s == (board == b)).all() for s, b in zip(sets, [*_parity(sets, board)])
    ):
        problems.append("the changed pixels are no checkerboard")
    expected = "a checkerboard and its complement in turn"
    return Outcome(WRONG if problems else PASS, "; ".join(problems) or expected, expected)


def _parity(sets, board):
    first = 0 if (sets[0] == (board == 0)).all() else 1
    return [(first + i) % 2 for i in range(len(sets))]


def _model(flow, name):
    part = getattr(flow.model, name, None)
    if part is None:
        raise CannotJudge(f"there is no {name}")
    return part


def _images(flow):
    first = 0 if flow.seed < 2000 else 8
    return flow.x[first : first + 8].clone()


def _logit(flow):
    """The logit step is elementwise, so its derivative is a gradient of the sum."""
    step = _model(flow, "logit_normalize")
    y = (_images(flow) + torch.rand(8, flow.x.shape[1])).requires_grad_()
    z, ldj = pair(step(y, torch.zeros(8)))
    derivative = torch.autograd.grad(z.sum(), y)[0].double()
    exact = derivative.abs().log().sum(dim=1)
    error = (ldj.detach() - exact).abs().max().item()
    with torch.no_grad():
        back = pair(step(z.detach().clone(), torch.zeros(8), reverse=True))[0]
    levels = (back - y).abs().max().item()
    # z and its derivative are float32: 784 logarithms of values near 0 or 1.
    tolerance = QUIRK_NATS + 784 * 2.0**-24 * exact.abs().max().item()
    measured = f"log-determinant off by {error:.2g} nats, inverse by {levels:.2g} grey levels"
    right = error < tolerance and levels < QUIRK_LEVELS + 256 * 2.0**-14
    return Outcome(PASS if right else WRONG, measured, f"below {tolerance:.2g} and {0.03:g}")


def _dequantize(flow):
    step, x = _model(flow, "dequantize"), flow.x[:32].clone()
    first, second = step(x.clone()) - x, step(x.clone()) - x
    u = first.flatten().double().sort().values
    n = len(u)
    ks = (u - torch.arange(n).double() / n).abs().max().item()
    problems = []
    if u[0] < 0 or u[-1] > 1:
        problems.append(f"noise from {u[0]:.2g} to {u[-1]:.2g} grey levels")
    elif ks > 3 / math.sqrt(n) + 1e-4:  # Kolmogorov-Smirnov: exceeded with probability 3e-8
        problems.append(f"noise with mean {u.mean():.3f}, variance {u.var():.4f} is not uniform")
    if (first == second).all():
        problems.append("the noise is the same on every call")
    if (first == first[:1]).all() or (first == first[:, :1]).all():
        problems.append("images or pixels share their noise")
    expected = "uniform on [0, 1), new for every pixel"
    return Outcome(WRONG if problems else PASS, "; ".join(problems) or expected, expected)


def log_normal(z: torch.Tensor) -> torch.Tensor:
    """log N(z; 0, I) in nats, [batch]."""
    return -0.5 * (z.double().square() + math.log(2 * math.pi)).sum(dim=1)


def _log_prior(flow):
    if flow.log_prior is None:
        raise CannotJudge("there is no log_prior")
    z = 2 * torch.randn(6, flow.dim)
    value, exact = torch.as_tensor(flow.log_prior(z.clone())).double(), log_normal(z)
    if value.shape == z.shape:  # elementwise, as the hand-out's docstring asks
        value = value.sum(dim=1)
    if value.numel() == 1:
        same = abs(value - exact.sum()) < 1e-3 * exact.sum().abs()
        words = "the sum over the whole batch" if same else f"one number, {value.item():.4g}"
        return Outcome(WRONG, words, "a value for every image, or for every pixel")
    error = (value.reshape(-1) - exact).abs().max().item()
    measured = f"off by {error:.2g} nats"
    return Outcome(PASS if error < 0.05 else WRONG, measured, "log N(z; 0, I), to 0.05 nats")


def _log_px(flow):
    """log p(x) against log N(z) + log |det| for the noise that was drawn, seen at the flow."""
    inner = getattr(flow.model, "flow", None)
    if not isinstance(inner, nn.Module):
        raise CannotJudge("there is no module model.flow to look into")
    seen = []

    def spy(z, *args, **options):
        seen.append(z.detach().clone())
        return original(z, *args, **options)

    x, original = _images(flow), inner.forward
    with flow.perturbed(precise=False, std=STD / 10), torch.no_grad():
        with replaced((inner, "forward", spy)):
            value = torch.as_tensor(flow.model(x.clone())).double()
        if not seen:
            raise CannotJudge("forward never calls model.flow")
        logits = seen[0]
        z, ldj = pair(flow.flow.forward(logits.clone(), torch.zeros(len(x))))
    s = logits.double()
    logit = -math.log(256) - torch.nn.functional.logsigmoid(s) - torch.nn.functional.logsigmoid(-s)
    exact = log_normal(z) + ldj.double() + logit.sum(dim=1)
    error, words = _compare(value, exact)
    tolerance = QUIRK_NATS + 784 * 2.0**-24 * exact.abs().max().item()
    measured = f"off by {error:.3g} nats of {exact.mean():.1f}{words}"
    if error < tolerance:
        return Outcome(NOTE if words else PASS, measured, "log p(x) for every image")
    return Outcome(WRONG, measured, f"below {tolerance:.2g}")


def _compare(value, exact):
    """The error of log p(x) in its best reading: for every image or averaged, of either sign."""
    value = value.sum(dim=1) if value.dim() == 2 and value.shape[1] > 1 else value.reshape(-1)
    target, words = exact, ""
    if value.numel() == 1:
        target, words = exact.mean().reshape(1), ", averaged over the batch"
    if value.shape != target.shape:
        return math.inf, f", shape {list(value.shape)}"
    positive, negative = ((sign * value - target).abs().max().item() for sign in (1, -1))
    if negative < positive:
        return negative, words + ", with its sign changed"
    return positive, words


def _sample(flow):
    samples, tries = None, 16
    seed_everything(flow.seed)
    with torch.no_grad():
        samples = _model(flow, "sample")(tries)
    samples = samples[0] if isinstance(samples, tuple | list) else samples
    samples = samples.double().reshape(len(samples), -1)
    low, high = samples.min().item(), samples.max().item()
    measured = f"values {low:.3g} to {high:.3g}, shape {list(samples.shape)}"
    expected = "different images with values 0..255"
    if len(samples) != tries or samples.shape[1] != flow.x.shape[1] or not samples.isfinite().all():
        return Outcome(WRONG, measured, expected)
    if low < -0.02 or high > 256.02 or (samples.std(dim=0) == 0).all():
        return Outcome(WRONG, measured, expected)
    if high <= 1.01:
        return Outcome(NOTE, measured + ": scaled to [0, 1]", expected)
    with torch.no_grad():
        density = torch.as_tensor(flow.model(samples.floor().clamp(0, 255).float()))
    if not density.isfinite().all():
        return Outcome(WRONG, measured + ", their density is not finite", expected)
    return Outcome(PASS, measured + ", their density is finite", expected)


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
MODEL_CHECKS = load_checks(
    "model",
    {
        "logit": _logit,
        "dequantize": _dequantize,
        "log_prior": _log_prior,
        "log_px": _log_px,
        "sample": _sample,
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
    owners = [getattr(part, "__self__", part) for part in (forward, inverse)]
    module = next((owner for owner in owners if isinstance(owner, nn.Module)), None)
    subject = FlowSubject(Bijection(forward, inverse), None, module, dim)
    checks = [check for check in CHECKS if check.name.startswith("flow")]
    return raise_failures(run_checks("flow", subject, checks), weak_too)
