"""`check_vae`, `check_flow` and `check_gan` on anyone's callables."""

from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from grading import CheckFailure, check_flow, check_gan, check_vae
from grading.outcomes import PASS, UNJUDGED, WRONG, Check, Outcome, run_checks

N_PIXELS, Z_DIM = 784, 4


class TinyVAE(nn.Module):
    """A VAE whose head is a log variance; `kl` can be replaced by a wrong one."""

    def __init__(self, kl=None):
        super().__init__()
        self.hidden, self.head = nn.Linear(N_PIXELS, 32), nn.Linear(32, 2 * Z_DIM)
        self.decoder = nn.Sequential(nn.Linear(Z_DIM, 32), nn.Tanh(), nn.Linear(32, N_PIXELS))
        self.kl = kl or (lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).sum(1))

    def encode(self, x):
        return self.head(torch.tanh(self.hidden(x))).chunk(2, dim=1)

    def forward(self, x):
        mean, logvar = self.encode(x)
        logits = self.decoder(mean + (logvar / 2).exp() * torch.randn_like(mean))
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return (recon + self.kl(mean, logvar)).mean()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(32, N_PIXELS, generator=generator) < 0.2).float()


def test_right_vae_passes(x):
    model = TinyVAE()
    findings = check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert {f.check for f in findings if f.status == PASS} >= {"kl", "gradient", "likelihood"}


# The faults of well-known projects: a mean over dimensions, one sum over the batch, sigma for log.
@pytest.mark.parametrize(
    "kl, words",
    [
        (lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).mean(1), "averaged over the latent"),
        (lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).sum(), "summed over the batch"),
        (lambda m, v: 0.5 * ((v / 2).exp() + m**2 - v / 2 - 1).sum(1), "where the variance"),
        (lambda m, v: 0.5 * (v.exp() + m**2 - v.exp().log1p() - 1).sum(1), "no combination"),
    ],
)
def test_wrong_kl_is_named(x, kl, words):
    model = TinyVAE(kl)
    with pytest.raises(CheckFailure, match=words):
        check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)


class Affine(nn.Module):
    """A map with a full matrix: z -> z exp(s) A, whose log-determinant is easy."""

    def __init__(self, dim=6, factor=1.0, inverts=True):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.mix = nn.Parameter(torch.eye(dim))
        self.factor, self.inverts = factor, inverts

    def forward(self, z, ldj, reverse=False):
        added = self.factor * (self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1])
        if reverse:
            back = torch.linalg.inv(self.mix) if self.inverts else self.mix
            return (z @ back) * torch.exp(-self.log_scale), ldj - added
        return z * torch.exp(self.log_scale) @ self.mix, ldj + added


def test_right_flow_passes():
    flow = Affine()
    assert check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)


@pytest.mark.parametrize(
    "options, check", [({"factor": 2.0}, "flow_logdet"), ({"inverts": False}, "flow_inverse")]
)
def test_wrong_flow_is_named(options, check):
    flow = Affine(**options)
    with pytest.raises(CheckFailure, match=check):
        check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)


@pytest.mark.parametrize("sign", (1, -1))
def test_gan_step_is_judged_by_its_gradients(sign):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 784), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 1))
    g_optimizer, d_optimizer = (
        torch.optim.Adam(m.parameters()) for m in (generator, discriminator)
    )

    def step(real):
        fake = generator(torch.randn(len(real), 8))
        d_loss = F.softplus(-discriminator(real)) + F.softplus(discriminator(fake.detach()))
        d_optimizer.zero_grad()
        d_loss.mean().backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        F.softplus(-sign * discriminator(fake)).mean().backward()
        g_optimizer.step()

    batches = [2 * torch.rand(32, 784) - 1 for _ in range(24)]
    check = partial(check_gan, step, generator, discriminator, batches)
    if sign == 1:
        findings = {f.check: f for f in check()}
        assert findings["generator_loss"].status == PASS
        assert "no label smoothing" in findings["smoothing"].measured
    else:
        with pytest.raises(CheckFailure, match="D\\(G\\(z\\)\\) smaller"):
            check()


class Subject:
    seed = 0


@pytest.mark.parametrize("second, status", [(WRONG, WRONG), (PASS, UNJUDGED)])
def test_nothing_is_accused_by_one_measurement(second, status):
    outcomes = iter([Outcome(WRONG, "first"), Outcome(second, "second")])
    check = Check("name", lambda subject: next(outcomes), "why", "hint")
    (finding,) = run_checks("vae", Subject(), [check])
    assert finding.status == status
