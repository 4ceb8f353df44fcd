"""What one latent vector and one image give."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from gencheck.gan_calls import Call
from gencheck.outcomes import PASS, WEAK
from grading.other_settings import of_gan


class AlwaysTwo(nn.Module):
    """Returns numbers of two images, however many it is given."""

    def forward(self, x):
        return x.new_zeros(2, 2)


@pytest.mark.parametrize(
    "discriminator, width, status",
    [
        (nn.Linear(784, 1), 1, PASS),
        (nn.Linear(784, 2), 2, PASS),
        (nn.Linear(784, 11), 11, PASS),
        (AlwaysTwo(), 2, WEAK),
    ],
)
def test_one_image_gives_as_many_numbers_as_each_of_a_batch(discriminator, width, status):
    generator = nn.Linear(3, 784)
    seen = SimpleNamespace(
        g=SimpleNamespace(module=generator),
        d=SimpleNamespace(
            module=discriminator, calls=[Call.of((torch.randn(2, 784),), {})], older=[]
        ),
        last_of_generator=Call.of((torch.randn(2, 3),), {}),
        width=width,
    )
    outcome = of_gan(SimpleNamespace(seen=seen))
    assert outcome.status == status
    if status == WEAK:
        assert outcome.measured == "the discriminator with one image returns 4 numbers, not 2"
