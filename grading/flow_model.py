"""Checks of a flow's model of images: noise, logit step, prior, log p(x), samples."""

import math

import torch
import torch.nn.functional as F

from gencheck.flow_subject import STD, pair
from gencheck.modules import replaced
from gencheck.outcomes import NOTE, PASS, WRONG, CannotJudge, Outcome, seed_everything
from grading.checks import load_checks

QUIRK_NATS = 0.02  # the hand-out's logit step leaves out 784 log(1 - 1e-5) = -0.0078 nats
QUIRK_LEVELS = 0.01  # and its reverse doesn't undo alpha: up to 0.0013 grey levels


def _model(flow, name):
    part = getattr(flow.model, name, None)
    if part is None:
        raise CannotJudge(f"there is no {name}")
    return part


def _images(flow):
    first = 0 if flow.seed < 2000 else 8
    return flow.x[first : first + 8].clone()


def grey_unit(flow) -> float:
    """A grey level in units of the logit step's input: 1, or 1/256 if `dequantize` divides."""
    step = getattr(flow.model, "dequantize", None)
    return 1.0 if step is None or step(_images(flow)).max() > 1 else 1 / 256


def differentiated(step, y):
    """(y, z, log-determinant as coded, autodiff's) of an elementwise step at y [batch, dim].

    The derivative of an elementwise step is the gradient of its sum.
    """
    y = y.clone().requires_grad_()
    with torch.enable_grad():
        z, ldj = pair(step(y.clone(), y.new_zeros(len(y))))  # it may change its input
        derivative = torch.autograd.grad(z.sum(), y)[0].double()
    return y.detach(), z.detach(), ldj.detach(), derivative.abs().log().sum(dim=1)


def logit(flow):
    """The logit step's log-determinant and inverse, at grey levels with noise."""
    step, unit = _model(flow, "logit_normalize"), grey_unit(flow)
    noisy = _images(flow) + torch.rand(8, flow.x.shape[1])
    y, z, ldj, exact = differentiated(step, unit * noisy)
    if not z.isfinite().all():
        raise CannotJudge("the logit step is not finite at grey levels with noise")
    # The log-determinant of a division in `dequantize` may be counted here.
    constants = (0.0, flow.dim * math.log(unit))
    error = min((ldj - exact - constant).abs().max().item() for constant in constants)
    with torch.no_grad():
        back = pair(step(z.clone(), torch.zeros(8), reverse=True))[0]
    levels = (back - y).abs().max().item() / unit
    # z and its derivative are float32: 784 logarithms of values near 0 or 1.
    tolerance = QUIRK_NATS + 784 * 2.0**-24 * exact.abs().max().item()
    limit = QUIRK_LEVELS + 256 * 2.0**-14
    measured = f"log-determinant off by {error:.2g} nats, inverse by {levels:.2g} grey levels"
    right = error < tolerance and levels < limit
    return Outcome(PASS if right else WRONG, measured, f"below {tolerance:.2g} and {limit:.2g}")


def _dequantize(flow):
    step, x = _model(flow, "dequantize"), flow.x[:32].clone()
    first, second = (step(x.clone()) / grey_unit(flow) - x for _ in range(2))
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
        words = "log_prior returns "
        words += "the sum over the whole batch" if same else f"one number, {value.item():.4g}"
        return Outcome(WRONG, words, "a value for every image, or for every pixel")
    error = (value.reshape(-1) - exact).abs().max().item()
    measured = f"log N(z; 0, I) is off by {error:.2g} nats"
    return Outcome(PASS if error < 0.05 else WRONG, measured, "log N(z; 0, I), to 0.05 nats")


def _log_px(flow):
    """log p(x) against log N(z) + log |det| for the noise that was drawn, seen on its way.

    log |det| is autodiff's; where that takes too long, the submission's, if it was found right.
    """
    if flow.model is None:
        raise CannotJudge("there is no class Model")
    logits, grey = [], []

    def spy(function, seen):
        def call(*args, **options):
            seen.append([*args, *options.values()][0].detach().clone())
            return function(*args, **options)

        return call

    targets = [(flow.module, "forward", spy(flow.module.forward, logits))]
    step = getattr(flow.model, "logit_normalize", None)
    if step is not None:
        targets.append((flow.model, "logit_normalize", spy(step, grey)))
    x = _images(flow)
    with flow.perturbed(precise=False, std=STD / 10), torch.no_grad():
        with replaced(*targets):
            value = torch.as_tensor(flow.model(x.clone())).double()
        if not logits:
            raise CannotJudge("the model's forward never calls its flow")
        z, ldj = pair(flow.flow.forward(logits[0].clone(), torch.zeros(len(x))))
        exact_ldj = flow.chained_log_abs_det(logits[0])
    ldj, source = (
        (ldj, "its own log-determinants") if exact_ldj is None else (exact_ldj, "autodiff")
    )
    # Where the step gets other values than grey levels with noise, something else scales them.
    unit = grey_unit(flow)
    if grey and grey[0].shape == x.shape and (grey[0] / unit - x).abs().max() <= 1:
        *_, step_ldj = differentiated(step, grey[0])
        step_ldj = step_ldj + flow.dim * math.log(unit)
    else:
        s = logits[0].double()
        step_ldj = (-math.log(256) - F.logsigmoid(s) - F.logsigmoid(-s)).sum(dim=1)
    exact = log_normal(z) + ldj.double() + step_ldj
    error, words = _compare(value, exact)
    tolerance = QUIRK_NATS + 784 * 2.0**-24 * exact.abs().max().item()
    if flow.wrong_logdet and (exact_ldj is None or error < tolerance):
        raise CannotJudge("the flow's log-determinant is wrong, which other checks judge")
    measured = (
        f"log p(x) is off by {error:.3g} nats (from {source}: {exact.mean():.1f} on average){words}"
    )
    if error < tolerance:
        return Outcome(NOTE if words else PASS, measured, "log p(x) for every image")
    return Outcome(WRONG, measured, f"below {tolerance:.2g} nats off")


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
    tries = 16
    if flow.model is not None and not hasattr(flow.model, "sample"):
        words = "there is no `sample` that draws images from the model"
        return Outcome(WRONG, words, "sample(n): n different images with values 0..255")
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
    if low < -0.02 or high > 256.02:
        return Outcome(WRONG, measured, expected)
    if (samples.std(dim=0) == 0).all():
        return Outcome(WRONG, measured + ": all images are the same", expected)
    if high <= 1.01:
        return Outcome(NOTE, measured + ": scaled to [0, 1]", expected)
    with torch.no_grad():
        density = torch.as_tensor(flow.model(samples.floor().clamp(0, 255).float()))
    if not density.isfinite().all():
        return Outcome(WRONG, measured + ", their density is not finite", expected)
    return Outcome(PASS, measured + ", their density is finite", expected)


CHECKS = load_checks(
    "model",
    {
        "logit": logit,
        "dequantize": _dequantize,
        "log_prior": _log_prior,
        "log_px": _log_px,
        "sample": _sample,
    },
)
