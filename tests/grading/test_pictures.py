"""Of which mode the generator was in as it drew the pictures that a submission saves."""

import pytest
import torch
import torch.nn as nn

from gencheck.outcomes import NOTE, PASS
from grading.pictures import CHECKS, Pictures


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))

    def forward(self, z):
        return self.layers(z)


class Watched:
    seen = None

    def __init__(self, pictures):
        self.pictures = pictures


@pytest.mark.parametrize("call", (lambda g, z: g(z), lambda g, z: g.forward(z)))
@pytest.mark.parametrize(
    "order, status",
    [
        ("train draw eval draw save train", PASS),
        ("train draw eval draw train save", PASS),
        ("train draw save", NOTE),
        ("train draw eval save", NOTE),
        ("eval draw save train draw save", NOTE),
        ("train save", PASS),  # of real images, say, before the generator has drawn any
        ("train draw", PASS),
    ],
)
def test_the_mode_is_that_in_which_the_generator_drew(monkeypatch, call, order, status):
    monkeypatch.setattr(Generator, "forward", Generator.forward)  # is put back
    pictures, generator = Pictures(), Generator()
    pictures.watch(Generator)
    does = {
        "train": generator.train,
        "eval": generator.eval,
        "draw": lambda: call(generator, torch.randn(4, 2)),
        "save": pictures.on_picture,
    }
    for word in order.split():
        does[word]()
    (check,) = CHECKS
    assert check.measure(Watched(pictures)).status == status


def test_what_is_not_the_generator_draws_no_picture():
    pictures = Pictures()
    pictures.watch(None)
    pictures.on_picture()
    assert not pictures
