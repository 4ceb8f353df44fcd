"""`check_vae` on VAEs of other shapes and likelihoods, and on what can't be judged."""

import contextlib
import math
from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions import Normal

from gencheck import CheckFailure, NotJudged, check_vae
from gencheck.outcomes import PASS, WRONG
from tests.gencheck.test_vae import N_PIXELS, Z_DIM, TinyVAE


class AnyVAE(nn.Module):
    """A VAE of small colour images; `terms(output, x)` is -log p(x|z), `encoded` what it returns.

    `n_out` numbers leave the decoder for each one of an image.
    """

    shape = (3, 4, 4)
    terms = staticmethod(lambda output, x: (output - x).square().sum(dim=(1, 2, 3)))
    encoded = staticmethod(lambda mean, log_var: (mean, log_var))
    beta, z_dim = 1.0, 4

    def __init__(self, n_out=1, z_dim=4):
        super().__init__()
        self.z_dim, n = z_dim, math.prod(self.shape)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(n, 16), nn.Tanh())
        self.last = nn.Linear(16, 2 * z_dim)
        self.decoder = nn.Sequential(nn.Linear(z_dim, 16), nn.Tanh(), nn.Linear(16, n_out * n))
        self.log_sigma = nn.Parameter(torch.tensor(-0.3))

    def encode(self, x):
        return self.encoded(*self.last(self.head(x)).chunk(2, dim=1))

    def decode(self, z):
        return self.decoder(z).view(len(z), -1, *self.shape[1:])

    def forward(self, x):
        mean, log_var = self.last(self.head(x)).chunk(2, dim=1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        kl = 0.5 * (log_var.exp() + mean**2 - log_var - 1).sum(1)
        return (self.terms(self.decode(z), x) + self.beta * kl).mean()


@pytest.fixture
def x():
    return (torch.rand(32, N_PIXELS, generator=torch.Generator().manual_seed(0)) < 0.2).float()


@pytest.fixture
def colours():
    return torch.rand(20, *AnyVAE.shape, generator=torch.Generator().manual_seed(1))


def any_vae(colours, n_out=1, options=None, **attributes):
    model = AnyVAE(n_out, attributes.pop("z_dim", 4))
    for name, value in attributes.items():
        setattr(model, name, value)
    options = {"nll": "gaussian"} | (options or {})
    return check_vae(model, model.encode, model.decode, colours, **options)


def learned(model_less_output, x):
    mean, log_var = model_less_output.chunk(2, dim=1)
    return -Normal(mean, (log_var / 2).exp()).log_prob(x).sum(dim=(1, 2, 3))


def categorical(output, x):
    logits = output.view(len(x), 5, *x.shape[1:])
    return F.cross_entropy(logits, x.long(), reduction="none").sum(dim=(1, 2, 3))


LIKELIHOODS = {
    "gaussian": (1, AnyVAE.terms, {}),
    "gaussian, averaged": (1, lambda o, x: (o - x).square().mean(), {}),
    "function": (1, lambda o, x: (o - x).abs().sum((1, 2, 3)),
                 {"nll": lambda o, x: (o - x).abs().sum((1, 2, 3))}),
    "beta": (1, AnyVAE.terms, {"beta": 4.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_any_likelihood_of_any_shape_passes(colours, name):
    n_out, terms, options = LIKELIHOODS[name]
    found = any_vae(colours, n_out, options, terms=terms, beta=options.get("beta", 1.0))
    assert {found[check].status for check in ("likelihood", "kl", "gradient")} == {PASS}


def test_learned_variance_passes(colours):
    model = AnyVAE(2)
    model.terms = learned
    model.decode = lambda z: model.decoder(z).view(len(z), 6, 4, 4)
    found = check_vae(
        model,
        model.encode,
        model.decoder,
        colours,
        nll=lambda o, x: learned(o.view(len(x), 6, 4, 4), x),
    )
    assert found["kl"].status == PASS

    def with_sigma(output, x):
        std = model.log_sigma.exp()
        return -Normal(output, std).log_prob(x).sum(dim=(1, 2, 3))

    model = AnyVAE()
    model.terms = with_sigma
    found = check_vae(model, model.encode, model.decode, colours, nll="gaussian")
    assert "beside D/2 log(2 pi sigma^2)" in found["kl"].measured


def test_mean_and_log_variance_in_one_tensor_pass_and_none_without_normalisation(colours):
    assert any_vae(colours, 2, terms=learned)["kl"].status == PASS

    def without_normalisation(output, x):
        mean, log_var = output.chunk(2, dim=1)
        return 0.5 * ((x - mean).square() / log_var.exp()).sum(dim=(1, 2, 3))

    with pytest.raises((CheckFailure, NotJudged), match="likelihood|kl"):
        any_vae(colours, 2, terms=without_normalisation)  # tenths of a nat, near the tolerance


def test_nothing_is_measured_twice(colours):
    model, images = AnyVAE(), []
    model.head.register_forward_hook(lambda module, inputs, output: images.append(len(output)))

    def loss(x):
        mean, log_var = model.encode(x)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        kl = 0.5 * (log_var.exp() + mean**2 - log_var - 1).sum(1)
        return (model.terms(model.decode(z), x) + kl).mean()

    check_vae(loss, model.encode, model.decode, colours, nll="gaussian")
    assert sum(images) < 1200  # 8 in most of its calls


def test_categorical_likelihood_passes(colours):
    model = AnyVAE(5)
    model.terms = categorical
    x = (5 * colours).floor()
    model.decode = lambda z: model.decoder(z).view(len(z), 5, *model.shape)
    found = check_vae(model, model.encode, model.decoder, x, nll=lambda o, x: categorical(o, x))
    assert found["kl"].status == PASS

    class Classes(AnyVAE):
        def decode(self, z):
            return self.decoder(z).view(len(z), 5, *self.shape)

    for beta, status in ((1.0, PASS), (0.5, WRONG)):
        model = Classes(5)
        model.terms, model.beta = categorical, beta
        with contextlib.nullcontext() if status == PASS else pytest.raises(CheckFailure) as failure:
            found = check_vae(model, model.encode, model.decode, x, nll="categorical")
        assert (failure.value.result if failure else found)["kl"].status == status


ENCODED = {
    "dictionary": (lambda mean, log_var: {"embedding": mean, "log_covariance": log_var}, {}),
    "distribution": (lambda mean, log_var: Normal(mean, (log_var / 2).exp()), {}),
    "z first": (lambda mean, log_var: (torch.randn_like(mean), mean, log_var), {}),
    "extract": (lambda mean, log_var: [{"p": (mean, -log_var)}],
                {"extract": lambda out: (out[0]["p"][0], -out[0]["p"][1])}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
def test_encoder_may_return_anything(colours, name):
    encoded, options = ENCODED[name]
    assert any_vae(colours, 1, options, encoded=encoded)["kl"].status == PASS


def test_loss_may_take_one_batch_size_only(colours):
    def terms(output, x):
        assert len(x) == 5
        return AnyVAE.terms(output, x)

    found = any_vae(colours, 1, {"batch_size": 5}, terms=terms)
    assert found["kl"].status == found["noise_per_image"].status == PASS


@pytest.mark.parametrize("seed", range(3))
def test_wrong_kl_beside_a_squared_error_is_named(colours, seed):
    with pytest.raises(CheckFailure, match="0.25 times the KL"):
        any_vae(colours, 1, {"seed": seed}, beta=0.25)
    with pytest.raises(CheckFailure, match="averaged over the latent dimensions, 0.125"):
        any_vae(colours, 1, {"seed": seed}, beta=1 / 8, z_dim=8)


def test_wide_encoders_get_less_noise(colours):
    class Wide(AnyVAE):
        def __init__(self, *args):
            super().__init__(*args)
            layers = nn.Flatten(), nn.Linear(48, 1000), nn.BatchNorm1d(1000), nn.ReLU()
            self.head, self.last = nn.Sequential(*layers), nn.Linear(1000, 8)
            nn.init.constant_(self.head[2].weight, 50.0)
            nn.init.normal_(self.last.weight, std=1e-3)

    def checked(beta):
        torch.manual_seed(0)
        model = Wide()
        model.beta = beta
        return check_vae(model, model.encode, model.decode, colours, nll="gaussian")

    assert checked(1.0)["kl"].status == PASS
    with pytest.raises(CheckFailure, match="averaged over the latent dimensions, 0.25"):
        checked(1 / 4)


def test_images_in_the_shape_of_the_loss(x):
    class Flattens(TinyVAE):
        def forward(self, x):
            return super().forward(x.view(-1, N_PIXELS))

    model = Flattens()
    found = check_vae(model, model.encode, model.decoder, x.view(-1, 1, 28, 28))
    assert found["kl"].status == PASS


class FlowVAE(TinyVAE):
    """A planar flow on z; the KL is that of the normal distribution before it."""

    def __init__(self):
        super().__init__()
        self.u, self.w = (nn.Parameter(0.01 * torch.randn(Z_DIM)) for _ in range(2))

    def forward(self, x):
        mean, head = self.encode(x)
        z = mean + self.std(head) * torch.randn_like(mean)
        z = z + self.u * torch.tanh(z @ self.w)[:, None]
        recon = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        return (recon + self.kl(mean, head)).mean()


class IWAE(TinyVAE):
    """A bound of five draws."""

    def forward(self, x):
        mean, head = (part.repeat(5, 1) for part in self.encode(x))
        z = mean + self.std(head) * torch.randn_like(mean)
        recon = F.binary_cross_entropy_with_logits(
            self.decoder(z), x.repeat(5, 1), reduction="none"
        ).sum(1)
        return -torch.logsumexp(-(recon + self.kl(mean, head)).view(5, -1), 0).mean()


def test_what_has_no_closed_form_is_refused_with_the_reason(x):
    for kind, words in ((FlowVAE, "normalising flow on z"), (IWAE, "several draws, as an IWAE's")):
        model = kind()
        with pytest.raises(NotJudged, match=words):
            check_vae(model, model.encode, model.decoder, x)


def test_factors_are_explained_in_words(x):
    model = TinyVAE(lambda m, v: 0.5 * (v.exp() + m**2 - v - 1).mean(1))
    model.returned = lambda recon, kl, z, logits: (recon / N_PIXELS + kl).mean()
    with pytest.raises(CheckFailure, match="784/4: averaged over pixels and latents") as failure:
        check_vae(model, model.encode, model.decoder, x, seed=3)
    assert "check_vae(..., seed=3)" in str(failure.value)


def test_what_is_not_measured_is_not_right(x):
    model = TinyVAE()
    call = partial(check_vae, model, model.encode, model.decoder)
    with pytest.raises(NotJudged, match="pass at least 16"):
        call(x[:15])
    with pytest.raises(NotJudged, match="16 different ones"):
        call(x[:1].repeat(32, 1))
    with pytest.raises(NotJudged, match="pass nll='gaussian'"):
        call(2 * x)
    with pytest.raises(NotJudged, match="pass a tensor"):
        call(x.numpy())
    with pytest.raises(ValueError, match="pass one of bernoulli"):
        call(x, nll="normal")
    with torch.no_grad(), pytest.raises(NotJudged, match="no_grad"):
        call(x)
    model.requires_grad_(False)
    with pytest.raises(NotJudged, match="weights are frozen"):
        call(x)


def test_own_random_numbers_go_on_where_they_were(x):
    model = TinyVAE()
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    check_vae(model, model.encode, model.decoder, x)
    assert torch.equal(torch.randn(3), expected)
