"""`check_vae`, `check_flow` and `check_gan` on anyone's callables."""

import contextlib
import copy
from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from grading import CheckFailure, check_flow, check_gan, check_vae
from grading.outcomes import PASS, UNJUDGED, WRONG, Check, Outcome, TooLong, run_checks

N_PIXELS, Z_DIM = 784, 4


class TinyVAE(nn.Module):
    """A VAE whose head is a log variance; `kl`, `std` and `returned` can be replaced."""

    std = staticmethod(lambda head: (head / 2).exp())
    returned = staticmethod(lambda recon, kl, z, logits: (recon + kl).mean())

    def __init__(self, kl=None):
        super().__init__()
        self.hidden, self.head = nn.Linear(N_PIXELS, 32), nn.Linear(32, 2 * Z_DIM)
        self.decoder = nn.Sequential(nn.Linear(Z_DIM, 32), nn.Tanh(), nn.Linear(32, N_PIXELS))
        self.kl = kl or (lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).sum(1))

    def encode(self, x):
        return self.head(torch.tanh(self.hidden(x))).chunk(2, dim=1)

    def forward(self, x):
        mean, head = self.encode(x)
        z = mean + self.std(head) * torch.randn_like(mean)
        logits = self.decoder(z)
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return self.returned(recon, self.kl(mean, head), z, logits)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(32, N_PIXELS, generator=generator) < 0.2).float()


def test_right_vae_passes(x):
    model = TinyVAE()
    findings = check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert {f.check for f in findings if f.status == PASS} >= {"kl", "gradient", "likelihood"}


def closed_form(std):
    """The KL as a function of the encoder's outputs, for a standard deviation of the head."""
    return lambda m, h: 0.5 * (std(h).square() + m**2 - 2 * std(h).log() - 1).sum(1)


def statuses(**options):
    """The statuses by check, of a VAE that must not be accused."""
    return {f.check: f.status for f in check_vae(**options, weak_too=True)}


RETURNED = {
    "loss and z": lambda recon, kl, z, logits: ((recon + kl).mean(), z),
    "loss and means": lambda recon, kl, z, logits: ((recon + kl).mean(), logits.sigmoid()),
    "means first": lambda recon, kl, z, logits: (logits.sigmoid(), (recon + kl).mean()),
    "both terms": lambda recon, kl, z, logits: (recon, kl),
    "both terms and z": lambda recon, kl, z, logits: (recon.mean(), kl.mean(), z),
    "loss and kl": lambda recon, kl, z, logits: ((recon + kl).mean(), kl.mean()),
    "loss and recon": lambda recon, kl, z, logits: ((recon + kl).mean(), recon.mean()),
    "loss and bits": lambda recon, kl, z, logits: ((recon + kl).mean(), (recon + kl).mean() / 543),
    "loss and both terms": lambda recon, kl, z, logits: (recon + kl, recon, kl),
    "both terms and loss": lambda recon, kl, z, logits: (recon, kl, recon + kl),
}


@pytest.mark.parametrize("name", RETURNED)
def test_the_loss_is_found_among_returned_values(x, name):
    model = TinyVAE()
    model.returned = RETURNED[name]
    found = statuses(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert all(found[check] == PASS for check in ("loss", "likelihood", "kl", "gradient"))


def test_wrong_kl_is_found_beside_returned_values(x):
    model = TinyVAE(lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).mean(1))
    for name in ("loss and z", "loss and kl"):
        model.returned = RETURNED[name]
        with pytest.raises(CheckFailure, match="kl: "):
            check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)


def test_forward_without_loss_is_not_judged(x):
    model = TinyVAE()
    model.returned = lambda recon, kl, z, logits: (logits.sigmoid(), z, z)
    found = statuses(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert set(found.values()) == {PASS, UNJUDGED} and found["shapes"] == PASS
    assert list(found.values()).count(PASS) == 1


def test_plain_function_as_decoder_is_not_judged(x):
    model = TinyVAE()
    found = statuses(loss=model, encode=model.encode, decode=lambda z: model.decoder(z), x=x)
    assert found["moments"] == UNJUDGED


@pytest.mark.parametrize(
    "std",
    [
        lambda h: (-h / 2).exp(),  # a log precision
        lambda h: F.softplus(h) + 0.05,  # near a known one
    ],
)
def test_unknown_deviation_is_not_judged_unless_the_kl_is_of_another(x, std):
    model = TinyVAE(closed_form(std))
    model.std = std
    options = {"encode": model.encode, "decode": model.decoder, "x": x}
    found = statuses(loss=model, **options)
    assert found["kl"] == found["moments"] == UNJUDGED
    assert found["loss"] == found["likelihood"] == found["noise_per_call"] == PASS
    model.std = lambda h: 2 * std(h)
    with pytest.raises(CheckFailure, match="for the deviation that z is drawn with"):
        check_vae(loss=model, **options)


def test_encoder_that_the_loss_does_not_call_is_not_judged_blind(x):
    model = TinyVAE()
    inlined = copy.copy(model)  # the same weights, without a call of model.encode
    found = statuses(loss=inlined, encode=model.encode, decode=model.decoder, x=x)
    assert found["decoder_blind"] == UNJUDGED and found["kl"] == PASS


def test_infinite_kl_is_not_called_an_unstable_likelihood(x):
    model = TinyVAE(closed_form(F.relu))
    model.std = F.relu
    model.head.bias.data[Z_DIM] = -100.0  # the first deviation is 0
    options = {"encode": model.encode, "decode": model.decoder, "x": x, "weak_too": True}
    with pytest.raises(CheckFailure, match="exactly 0") as failure:
        check_vae(loss=model, **options)
    assert "stable" not in str(failure.value)


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
    findings = check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)
    assert {f.status for f in findings} == {PASS}


@pytest.mark.parametrize(
    "options, check", [({"factor": 2.0}, "flow_logdet"), ({"inverts": False}, "flow_inverse")]
)
def test_wrong_flow_is_named(options, check):
    flow = Affine(**options)
    with pytest.raises(CheckFailure, match=check):
        check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)


def snapshot(module):
    """All that a check must not change: weights, precision, mode, dropout rates."""
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    parts = [(part.training, getattr(part, "p", None)) for part in module.modules()]
    return tensors, parts


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_checks_leave_the_models_as_they_were(x, dtype):
    model, flow = TinyVAE().to(dtype).eval(), Affine().to(dtype).eval()
    model.decoder.extend([nn.Dropout(0.3), nn.BatchNorm1d(N_PIXELS, dtype=dtype)])
    before = [snapshot(module) for module in (model, flow)]
    with contextlib.suppress(CheckFailure):
        check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x.to(dtype))
    check_flow(forward=flow, inverse=partial(flow, reverse=True), dim=6)
    for module, (tensors, parts) in zip((model, flow), before):
        after, parts_after = snapshot(module)
        assert parts == parts_after
        assert after.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name


def gan_checks(g_loss, d_loss):
    """`check_gan` of a small GAN with these losses of the discriminator's outputs."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 784), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 1))
    g_optimizer, d_optimizer = (
        torch.optim.Adam(m.parameters()) for m in (generator, discriminator)
    )

    def step(real):
        fake = generator(torch.randn(len(real), 8))
        d_optimizer.zero_grad()
        d_loss(discriminator(real), discriminator(fake.detach())).mean().backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        g_loss(discriminator(fake)).mean().backward()
        g_optimizer.step()

    batches = [2 * torch.rand(32, 784) - 1 for _ in range(24)]
    return {f.check: f for f in check_gan(step, generator, discriminator, batches)}


def cross_entropy(real, fake):
    return F.softplus(-real) + F.softplus(fake)


def test_right_gan_passes():
    found = gan_checks(lambda fake: F.softplus(-fake), cross_entropy)
    assert found["generator_loss"].status == PASS
    assert "no label smoothing" in found["smoothing"].measured


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


def test_generator_that_helps_the_discriminator_is_accused():
    with pytest.raises(CheckFailure, match="D\\(G\\(z\\)\\) smaller"):
        gan_checks(lambda fake: F.softplus(fake), cross_entropy)


class Subject:
    seed = 0


@pytest.mark.parametrize("second, status", [(WRONG, WRONG), (PASS, UNJUDGED)])
def test_nothing_is_accused_by_one_measurement(second, status):
    outcomes = iter([Outcome(WRONG, "first"), Outcome(second, "second")])
    check = Check("name", lambda subject: next(outcomes), "why", "hint")
    (finding,) = run_checks("vae", Subject(), [check])
    assert finding.status == status


@pytest.mark.parametrize(
    "error, words", [(TooLong("longer than 20 s"), "longer than 20 s"), (SystemExit(3), "sys.exit")]
)
def test_call_that_is_too_slow_or_exits_leaves_its_own_check_unjudged(error, words):
    def measure(subject):
        raise error

    checks = [Check("slow", measure, "why", "hint", crash=True)]
    checks.append(Check("next", lambda subject: Outcome(PASS, "right"), "why", "hint"))
    slow, following = run_checks("vae", Subject(), checks)
    assert (slow.status, following.status) == (UNJUDGED, PASS)
    assert words in slow.measured
