"""`check_vae` on anyone's callables."""

import contextlib
import copy
import re
from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gencheck import CheckFailure, NotJudged, check_flow, check_vae
from gencheck.outcomes import NOTE, PASS, UNJUDGED, WEAK
from tests.gencheck.test_flow import Affine

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
    found = check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert {f.check for f in found if f.status == PASS} >= {"kl", "gradient", "likelihood"}


def closed_form(std):
    """The KL as a function of the encoder's outputs, for a standard deviation of the head."""
    return lambda m, h: 0.5 * (std(h).square() + m**2 - 2 * std(h).log() - 1).sum(1)


CENTRAL = ("loss", "likelihood", "kl", "moments", "noise_per_image")


def statuses(**options):
    """The statuses by check, of a VAE that is not accused; what is not judged raises."""
    found = check_vae(**options, weak_too=True, allow_unjudged=CENTRAL)
    if found.unjudged and {f.check for f in found.unjudged} & {*CENTRAL}:
        with pytest.raises(NotJudged, match="allow_unjudged"):
            check_vae(**options)
    return {f.check: f.status for f in found}


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


@pytest.mark.thorough
@pytest.mark.parametrize("name", RETURNED)
def test_the_loss_is_found_among_returned_values(x, name):
    model = TinyVAE()
    model.returned = RETURNED[name]
    found = statuses(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert all(found[check] == PASS for check in ("loss", "likelihood", "kl", "gradient"))


class MonteCarloVAE(TinyVAE):
    """Its KL is log q(z|x) - log p(z) of the z that is drawn; `factor` multiplies log p(z)."""

    factor = 1.0

    def forward(self, x):
        mean, head = self.encode(x)
        posterior, prior = (
            torch.distributions.Normal(*parameters)
            for parameters in ((mean, self.std(head)), (0 * mean, torch.ones_like(mean)))
        )
        z = posterior.rsample()
        recon = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        kl = posterior.log_prob(z) - self.factor * prior.log_prob(z)
        return (recon + kl.sum(1)).mean()


def test_kl_of_one_draw_is_right(x):
    model = MonteCarloVAE()
    options = {"loss": model, "encode": model.encode, "decode": model.decoder, "x": x}
    found = statuses(**options)
    assert {found[check] for check in ("loss", "likelihood", "kl", "gradient")} == {PASS}
    model.factor = 0.5
    assert statuses(**options)["kl"] == UNJUDGED


class DropoutVAE(TinyVAE):
    """Dropout as a module and as a function; the average of `n_draws` reconstructions."""

    n_draws = 1

    def __init__(self):
        super().__init__()
        self.decoder.insert(2, nn.AlphaDropout(0.3))

    def encode(self, x):
        return super().encode(F.dropout(x, 0.3, self.training))

    def forward(self, x):
        mean, head = self.encode(x)
        recon = 0
        for _ in range(self.n_draws):
            logits = self.decoder(mean + self.std(head) * torch.randn_like(mean))
            losses = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
            recon = recon + losses / self.n_draws
        return (recon + self.kl(mean, head)).mean()


def test_dropout_is_switched_off_and_several_draws_are_not_judged(x):
    model = DropoutVAE()
    options = {"loss": model, "encode": model.encode, "decode": model.decoder, "x": x}
    found = statuses(**options)
    assert {found[check] for check in ("loss", "likelihood", "kl", "decoder_blind")} == {PASS}
    model.n_draws = 2
    found = statuses(**options)
    assert set(found.values()) <= {PASS, UNJUDGED} and found["likelihood"] == UNJUDGED


@pytest.mark.parametrize("form", ["distribution", "independent", "tensor"])
def test_encoder_may_return_a_distribution_or_one_tensor(x, form):
    model = TinyVAE()

    class Encoder(nn.Module):
        def forward(self, x):
            mean, head = TinyVAE.encode(model, x)
            normal = torch.distributions.Normal(mean, model.std(head))
            independent = torch.distributions.Independent(normal, 1)
            forms = {"distribution": normal, "independent": independent}
            return forms.get(form, torch.cat([mean, head], dim=1))

    model.encoder = encoder = Encoder()
    encoder.layers = nn.ModuleList([model.hidden, model.head])

    def encode(x):
        returned = encoder(x)
        if form == "tensor":
            return returned.chunk(2, dim=1)
        normal = returned.base_dist if form == "independent" else returned
        return normal.loc, 2 * normal.scale.log()

    model.encode = encode
    found = statuses(loss=model, encode=encoder, decode=model.decoder, x=x)
    assert {found[check] for check in ("shapes", "kl", "moments", "decoder_blind")} == {PASS}


def test_sixteen_images_are_enough_to_accuse(x):
    class SeesTheImage(TinyVAE):
        def forward(self, x):
            return super().forward(x) + x.sum(1).mean()

    model = SeesTheImage()
    with pytest.raises(CheckFailure, match="decoder_blind"):
        check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x[:16])


@pytest.mark.thorough
def test_wrong_kl_is_found_beside_returned_values(x):
    model = TinyVAE(lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).mean(1))
    for name in ("loss and z", "loss and kl"):
        model.returned = RETURNED[name]
        with pytest.raises(CheckFailure, match="kl: "):
            check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)


def test_a_wrong_kl_that_agrees_with_one_draw_by_chance_is_found(x):
    """With this seed the loss and the sum of z are the estimate of the first draw."""
    torch.manual_seed(108)
    model = TinyVAE(lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).mean(1))
    model.returned = RETURNED["loss and z"]
    with pytest.raises(CheckFailure, match="kl: "):
        check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)


def test_forward_without_loss_is_not_judged(x):
    model = TinyVAE()
    model.returned = lambda recon, kl, z, logits: (logits.sigmoid(), z, z)
    found = statuses(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert set(found.values()) == {PASS, UNJUDGED} and found["shapes"] == PASS
    assert {found[check] for check in ("loss", "likelihood", "kl", "gradient")} == {UNJUDGED}


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
    with pytest.raises(CheckFailure, match="for the distribution that z is drawn from"):
        check_vae(loss=model, **options)


class TransformedMean(TinyVAE):
    """Its mean is a function of the encoder's output; `kl_mean` is the one that its KL has."""

    mean = kl_mean = None

    def forward(self, x):
        mean, head = self.encode(x)
        z = self.mean(mean) + self.std(head) * torch.randn_like(mean)
        recon = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        return (recon + self.kl(self.kl_mean(mean), head)).mean()


@pytest.mark.parametrize("mean", [lambda m: torch.tanh(3 * m), lambda m: m.clamp(-1, 1), torch.exp])
def test_unknown_mean_is_not_judged_unless_the_kl_is_of_another(x, mean):
    model = TransformedMean()
    model.mean = model.kl_mean = mean
    options = {"loss": model, "encode": model.encode, "decode": model.decoder, "x": x}
    found = statuses(**options)
    assert found["kl"] == UNJUDGED and found["moments"] in (PASS, UNJUDGED)
    model.kl_mean = lambda m: mean(m) + 2
    with pytest.raises(CheckFailure, match="(kl|moments): "):
        check_vae(**options)


class TiedVAE(TinyVAE):
    """The decoder's last layer is the encoder's first, transposed."""

    def __init__(self, kl=None):
        super().__init__(kl)
        self.decoder = TiedDecoder(self.hidden)


class TiedDecoder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.first, self.hidden = nn.Linear(Z_DIM, 32), hidden
        self.bias = nn.Parameter(torch.zeros(N_PIXELS))

    def forward(self, z):
        return F.linear(torch.tanh(self.first(z)), self.hidden.weight.t(), self.bias)


def test_tied_weights_are_the_encoders(x):
    model = TiedVAE()
    found = statuses(loss=model, encode=model.encode, decode=model.decoder, x=x)
    assert {found[check] for check in ("loss", "likelihood", "kl", "gradient")} == {PASS}
    model = TiedVAE(lambda m, v: (v.exp() + m**2 - v - 1).sum(1))
    with pytest.raises(CheckFailure, match="2 times the KL"):
        check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)


def test_samples_may_be_arrays(x):
    model = TinyVAE()
    options = {"loss": model, "encode": model.encode, "decode": model.decoder, "x": x}

    @torch.no_grad()
    def sample(n):
        means = torch.sigmoid(model.decoder(torch.randn(n, Z_DIM)))
        return torch.bernoulli(means).numpy(), means.numpy()

    assert statuses(sample=sample, **options)["sample"] == PASS
    assert statuses(sample=lambda n: sample(n)[0].tolist(), **options)["sample"] == UNJUDGED
    with pytest.raises(CheckFailure, match="no binary images"):
        check_vae(sample=lambda n: sample(n)[1:], **options)


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


HEADS = {
    "the log variance": lambda h: (h / 2).exp(),
    "the log standard deviation": torch.exp,
    "the standard deviation": lambda h: h,
    "the variance as a power of 2": lambda h: torch.exp2(h / 2),
}


@pytest.mark.parametrize(
    "taken, sampled",
    [
        ("the log variance", "the standard deviation"),
        ("the log variance", "the variance as a power of 2"),
        ("the log variance", "the log standard deviation"),
        ("the log standard deviation", "the log variance"),
    ],
)
def test_kl_of_another_reading_than_the_sampled_one_is_named(x, taken, sampled):
    model = TinyVAE(closed_form(HEADS[taken]))
    model.std = HEADS[sampled]
    if sampled == "the standard deviation":
        model.head.bias.data[Z_DIM:] = 1.0
    with pytest.raises(CheckFailure) as failure:
        check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)
    words = f"output as {taken}, your sampling takes it as {sampled}"
    assert words in failure.value.result["kl"].measured


def test_power_of_two_is_a_variance(x):
    std = HEADS["the variance as a power of 2"]
    model = TinyVAE(closed_form(std))
    model.std = std
    found = check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x, weak_too=True)
    assert (found["kl"].status, found["gradient"].status) == (PASS, PASS)
    assert "the variance as a power of 2" in found["moments"].measured


class Idle(TinyVAE):
    """Creates parts that it never applies."""

    def __init__(self, part, hidden=torch.tanh):
        super().__init__()
        self.part, self.between = part, hidden

    def encode(self, x):
        return self.head(self.between(self.hidden(x))).chunk(2, dim=1)


@pytest.mark.parametrize(
    "part, hidden, status, words",
    [
        (nn.ReLU(), torch.tanh, NOTE, r"part \(ReLU\) is created and never applied$"),
        (nn.ReLU(), nn.Identity(), WEAK, "in the encoder two linear layers follow each other"),
        (nn.Linear(3, 3), torch.tanh, WEAK, r"part \(Linear\)"),
        (nn.BCELoss(), torch.tanh, PASS, "every layer"),
        (None, nn.Identity(), NOTE, "^in the encoder two linear layers"),
        (None, torch.tanh, PASS, "every layer"),
    ],
)
def test_layers_that_are_never_applied_are_named(x, part, hidden, status, words):
    model = Idle(part, hidden)
    found = check_vae(loss=model, encode=model.encode, decode=model.decoder, x=x)["layers"]
    assert found.status == status and re.search(words, found.measured)


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
