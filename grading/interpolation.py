"""Interpolation between two latents: whether its pictures repeat, or miss the end points."""

import contextlib
import inspect
import re
from functools import partial

import torch
from torch.overrides import TorchFunctionMode

from gencheck.modules import replaced, restored_modes
from gencheck.outcomes import PASS, WEAK, CannotJudge, Outcome, seed_everything
from grading.checks import load_checks

DRAWS = ("randn", "randn_like", "normal", "normal_")
OF_GENERATOR = r"gen|model|net|^g$"
OF_NUMBERS = r"^n$|^n_|num|step|row"
N_PICTURES = 9  # seven steps between two end points, as the assignment asks for
SAME = 1e-3  # part of a latent's length that rounding may change


class _Drawn(TorchFunctionMode):
    """Records what is drawn from normal distributions inside the block."""

    def __init__(self):
        super().__init__()
        self.draws = []

    def __torch_function__(self, function, types, args=(), options=None):
        result = function(*args, **(options or {}))
        if getattr(function, "__name__", "") in DRAWS and isinstance(result, torch.Tensor):
            self.draws.append(result.detach().clone())
        return result


def find(submission):
    """A function of the generator that interpolates, by the submission's names, or None."""
    for module in submission.modules:
        for name, function in vars(module).items():
            if "interpol" in name.lower() and inspect.isfunction(function):
                parameters = inspect.signature(function).parameters
                if any(re.search(OF_GENERATOR, parameter.lower()) for parameter in parameters):
                    return partial(_call, submission, function)
    return None


def _call(submission, function, generator):
    known = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if re.search(OF_GENERATOR, name.lower()):
            known[name] = generator
        elif parameter.default is parameter.empty and re.search(OF_NUMBERS, name.lower()):
            known[name] = N_PICTURES
    submission.call(function, **known)


def _interpolation(gan):
    generator, inputs, drawn = gan.seen.g.module, [], _Drawn()
    forward, width = generator.forward, gan.seen.latents[-1][0].numel()

    def recording(z, *args, **options):
        inputs.append(z.detach().clone())
        return forward(z, *args, **options)

    seed_everything(gan.seed)
    with restored_modes(list(generator.modules())), replaced((generator, "forward", recording)):
        generator.eval()
        with contextlib.suppress(Exception), torch.no_grad(), drawn:  # the plot may fail
            gan.interpolate(generator)
    batches = [z.reshape(-1, width).double() for z in inputs if z.numel() % width == 0]
    single = [z for z in batches if len(z) == 1]
    paths = [z for z in [*batches, *([torch.cat(single)] if single else [])] if _is_path(z)]
    if not paths:
        raise CannotJudge("no path between two latents was seen")
    path = max(paths, key=len)
    problems, n = [], len(path)
    moves = (path[1:] - path[:-1]).norm(dim=1)
    for i in (moves < SAME * moves.max()).nonzero().flatten().tolist():
        problems.append(f"pictures {i + 1} and {i + 2} of {n} are the same")
    plane = torch.linalg.svd(path, full_matrices=False)[2][:2]
    draws = [z.reshape(-1, width).double() for z in drawn.draws if z.numel() % width == 0]
    for end in torch.cat(draws) if draws else ():
        is_end = (end - end @ plane.T @ plane).norm() < SAME * end.norm()
        if is_end and (path - end).norm(dim=1).min() > SAME * end.norm():
            problems.append(f"an end point is none of the {n} pictures")
    expected = "equal steps from one latent to the other, both included"
    measured = "; ".join(dict.fromkeys(problems)) or f"{n} pictures from end point to end point"
    return Outcome(WEAK if problems else PASS, measured, expected)


def _is_path(z) -> bool:
    """Whether latents [n, width] lie in a plane with 0, as those between two points do."""
    if len(z) < 3 or z.shape[1] < 3 or (z == z[0]).all():
        return False
    sizes = torch.linalg.svdvals(z)
    return bool(sizes[2] < SAME * sizes[0])


CHECKS = load_checks("gan", {"interpolation": _interpolation})
