"""Interpolations that repeat pictures or miss their end points."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from gencheck.outcomes import PASS, WEAK, CannotJudge
from grading.interpolation import CHECKS

WIDTH = 8
WEIGHTS = {
    "both end points": (torch.linspace(0, 1, 9), PASS, "9 pictures from end point to end point"),
    "no last one": (torch.arange(9) / 9, WEAK, "an end point is none of the 9 pictures"),
    "neither": (torch.arange(1, 8) / 8, WEAK, "an end point is none of the 7 pictures"),
    "the first twice": (torch.linspace(0, 1, 9).roll(1).fmod(1), WEAK, "pictures 1 and 2 of 9"),
}


def outcome(interpolate):
    seen = SimpleNamespace(
        g=SimpleNamespace(module=nn.Linear(WIDTH, 784)), latents=[torch.randn(4, WIDTH)]
    )
    (check,) = CHECKS
    return check.measure(SimpleNamespace(seen=seen, seed=0, interpolate=interpolate))


def line(weights, whole):
    def interpolate(generator):
        generator(torch.randn(64, WIDTH))  # pictures to choose from
        first, last = torch.randn(2, WIDTH)
        z = first + weights[:, None] * (last - first)
        for part in [z] if whole else z.split(1):
            generator(part)
        raise ValueError("a plot that fails")

    return interpolate


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_pictures_between_two_latents(name, whole):
    weights, status, words = WEIGHTS[name]
    found = outcome(line(weights, whole))
    assert found.status == status and words in found.measured


def test_what_is_no_path_is_not_judged():
    with pytest.raises(CannotJudge):
        outcome(lambda generator: generator(torch.randn(9, WIDTH)))
