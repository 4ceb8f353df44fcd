"""`check_gan` on anyone's step and modules."""

import re

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gencheck.outcomes import NOTE, PASS, UNJUDGED
from grading import CheckFailure, check_gan


class TinyDiscriminator(nn.Module):
    """Dropout as a module and as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(784, 32), nn.Dropout(0.3), nn.Linear(32, 1)

    def forward(self, x):
        return self.last(F.dropout(self.drop(F.relu(self.first(x))), 0.3, self.training))


class Probabilities(TinyDiscriminator):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


def gan_checks(g_loss, d_loss, order="DG", n_batches=24, kind=TinyDiscriminator):
    """`check_gan` of a small GAN with these losses of the discriminator's outputs.

    In order "GDDG" the generator's backward pass comes first, its step last; "DDDDDG" makes five
    discriminator steps, with a batch each.
    """
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 784), nn.Tanh())
    discriminator, n_steps = kind(), [0]
    g_optimizer, d_optimizer = (
        torch.optim.Adam(m.parameters()) for m in (generator, discriminator)
    )

    def g_first(real):
        fake = generator(torch.randn(len(real), 8))
        g_optimizer.zero_grad()
        g_loss(discriminator(fake)).mean().backward()
        d_optimizer.zero_grad()
        d_loss(discriminator(x=real), discriminator(x=fake.detach())).mean().backward()
        d_optimizer.step()
        g_optimizer.step()

    def step(real):
        fake = generator(torch.randn(len(real), 8))
        d_optimizer.zero_grad()
        d_loss(discriminator(real), discriminator(fake.detach())).mean().backward()
        d_optimizer.step()
        n_steps[0] += 1
        if n_steps[0] % order.count("D"):
            return
        g_optimizer.zero_grad()
        g_loss(discriminator(fake)).mean().backward()
        g_optimizer.step()

    step = g_first if order == "GDDG" else step
    batches = [2 * torch.rand(32, 784) - 1 for _ in range(n_batches)]
    found = check_gan(step, generator, discriminator, batches)
    assert discriminator.drop.p == 0.3
    return {f.check: f for f in found}


def cross_entropy(real, fake):
    return F.softplus(-real) + F.softplus(fake)


def test_right_gan_passes():
    found = gan_checks(lambda fake: F.softplus(-fake), cross_entropy)
    assert found["generator_loss"].status == PASS
    assert "no label smoothing" in found["smoothing"].measured


def test_backward_pass_of_the_generator_may_come_first():
    found = gan_checks(lambda fake: F.softplus(-fake), cross_entropy, order="GDDG")
    assert found["stray_gradient"].status == found["discriminator_loss"].status == PASS


def test_ten_batches_are_enough_to_accuse():
    with pytest.raises(CheckFailure, match="D\\(G\\(z\\)\\) smaller"):
        gan_checks(lambda fake: F.softplus(fake), cross_entropy, order="DDDDDG", n_batches=10)


D_LOSSES = {
    "hinge": lambda real, fake: F.relu(1 - real) + F.relu(1 + fake),
    "Wasserstein": lambda real, fake: fake - real,
    "Wasserstein, other sign": lambda real, fake: real - fake,
    "cross-entropy": cross_entropy,
}


@pytest.mark.parametrize("name", D_LOSSES)
def test_generator_that_follows_the_discriminators_output_is_not_accused(name):
    sign = 1 if "other" in name else -1
    found = gan_checks(lambda fake: sign * fake, D_LOSSES[name])
    assert "D(G(z)) grows" in found["generator_loss"].measured
    with pytest.raises(CheckFailure, match="D\\(G\\(z\\)\\) smaller"):
        gan_checks(lambda fake: -sign * fake, D_LOSSES[name])


def test_least_squares_are_no_cross_entropy_with_the_same_labels():
    found = gan_checks(
        lambda fake: (fake - 1).square(), lambda real, fake: (real - 1).square() + fake.square()
    )
    assert found["discriminator_loss"].status == UNJUDGED
    with pytest.raises(CheckFailure, match="labels 0.90 for real and 0.90 for generated"):
        gan_checks(
            lambda fake: F.softplus(-fake),
            lambda real, fake: cross_entropy(real, fake) + 0.1 * real - 0.9 * fake,
        )


@pytest.mark.parametrize("fake_range", [(0.0, 0.3), (0.0, 0.0), (0.1, 0.4)])
def test_random_labels_are_read_off_roughly(fake_range):
    def d_loss(real, fake):
        targets = (
            torch.empty_like(real).uniform_(0.7, 1.2),
            torch.empty_like(fake).uniform_(*fake_range),
        )
        return sum(
            F.softplus(-logits) + (1 - target) * logits
            for logits, target in zip((real, fake), targets)
        )

    found = gan_checks(lambda fake: F.softplus(-fake), d_loss, n_batches=40)["discriminator_loss"]
    real, fake = map(
        float, re.findall(r"labels (\S+) for real and (\S+) for gen", found.measured)[0]
    )
    assert found.status == NOTE and "random ones" in found.measured
    assert (real, fake) == pytest.approx((0.95, sum(fake_range) / 2), abs=0.15)


def test_a_sigmoid_before_a_loss_of_logits_is_wrong():
    with pytest.raises(CheckFailure, match="probabilities for logits") as failure:
        gan_checks(lambda fake: F.softplus(-fake), cross_entropy, kind=Probabilities)
    assert "generator_loss" not in str(failure.value)
    found = gan_checks(
        lambda fake: -fake.log(),
        lambda real, fake: -real.log() - (1 - fake).log(),
        kind=Probabilities,
    )
    assert found["discriminator_loss"].status == PASS


def test_generator_that_helps_the_discriminator_is_accused():
    with pytest.raises(CheckFailure, match="D\\(G\\(z\\)\\) smaller"):
        gan_checks(lambda fake: F.softplus(fake), cross_entropy)
