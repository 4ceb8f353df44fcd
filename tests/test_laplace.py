"""Both proposals against log p(x) in closed form, or integrated over a grid."""

import math

import pytest
import torch
import torch.nn as nn
from torch.distributions import Bernoulli, MultivariateNormal

from a3_vae_template import VAE
from harness import laplace, likelihood
from harness.likelihood import importance_weighted

PROPOSALS = (laplace.laplace_weights, laplace.encoder_weights)


def small_vae(z_dim, scale=2.0):
    torch.manual_seed(0)
    model = VAE(hidden_dim=16, z_dim=z_dim)
    with torch.no_grad():
        model.decoder.hidden.bias.add_(1.0)
        model.decoder.output.weight.mul_(scale)
        model.encoder.log_std.weight.mul_(0.1)
        model.encoder.mean.weight.mul_(0.1)
    images, _ = model.sample(6)
    return model.double().requires_grad_(False), images.double()


def mean_and_error(log_weights):
    """log of the mean weight of each image, and the relative standard error of that mean."""
    n = log_weights.shape[1]
    relative = torch.softmax(log_weights, dim=1)
    error = (relative.square().sum(dim=1) - 1 / n).clamp(min=0).sqrt()
    return torch.logsumexp(log_weights, dim=1) - math.log(n), error


def log_px_on_a_grid(decoder, images, n, limit=6.0):
    """log p(x) in nats of each image, the integral over two latent dimensions as a sum."""
    axis = torch.linspace(-limit, limit, n, dtype=torch.double)
    z = torch.cartesian_prod(axis, axis)
    log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=1)
    logits, log_cell = decoder.logits(z), 2 * math.log(2 * limit / (n - 1))
    joint = [Bernoulli(logits=logits).log_prob(image).sum(dim=1) + log_prior for image in images]
    return torch.stack([torch.logsumexp(values, dim=0) for values in joint]) + log_cell


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_the_estimate_is_the_integral_over_two_latent_dimensions(proposal):
    model, images = small_vae(z_dim=2)
    exact = log_px_on_a_grid(model.decoder, images, n=81)
    assert torch.allclose(exact, log_px_on_a_grid(model.decoder, images, n=61), atol=1e-4)
    torch.manual_seed(1)
    weights = proposal(model.decoder, model.encoder)(images)(5000)
    log_px, errors = mean_and_error(weights)
    assert (errors < 0.2).all() and ((log_px - exact).abs() < 5 * errors + 1e-6).all()


class OtherDecoder(nn.Module):
    """A decoder of 64 pixels, as someone who changes the script's may write it."""

    def __init__(self, z_dim, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.z_dim = z_dim

    def logits(self, z):
        return self.layers(z)


def tanh(z_dim):
    return OtherDecoder(z_dim, nn.Linear(z_dim, 16), nn.Tanh(), nn.Linear(16, 64))


def two_layers(z_dim):
    hidden = nn.Linear(z_dim, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()
    return OtherDecoder(z_dim, *hidden, nn.Linear(16, 64))


def convolutional(z_dim):
    return OtherDecoder(
        z_dim,
        nn.Linear(z_dim, 4 * 2 * 2),
        nn.Unflatten(1, (4, 2, 2)),
        nn.ELU(),
        nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
        nn.ELU(),
        nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1),
        nn.Flatten(),
    )


OTHERS = [tanh, two_layers, convolutional]


def other(make, z_dim):
    """(decoder in float64, images [6, 64], an encoder that knows nothing)."""
    torch.manual_seed(0)
    decoder = make(z_dim).double().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.mul_(2)
    images = torch.bernoulli(decoder.logits(torch.randn(6, z_dim).double()).sigmoid())
    nothing = torch.zeros(6, z_dim).double()
    return decoder, images, lambda images: (nothing[: len(images)], nothing[: len(images)])


@pytest.mark.parametrize("z_dim", [2, 5])
@pytest.mark.parametrize("make", OTHERS)
def test_the_jacobian_of_any_decoder_is_that_of_finite_differences(make, z_dim):
    decoder, _, _ = other(make, z_dim)
    z, step = torch.randn(7, z_dim).double(), 1e-6
    logits, jacobian = laplace.logits_and_jacobian(decoder, z)
    assert torch.equal(logits, decoder.logits(z)) and jacobian.shape == (7, z_dim, 64)
    for axis, derivative in zip(torch.eye(z_dim).double(), jacobian.unbind(dim=1)):
        ahead, behind = decoder.logits(z + step * axis), decoder.logits(z - step * axis)
        assert torch.allclose((ahead - behind) / (2 * step), derivative, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", OTHERS)
def test_the_estimate_of_any_decoder_is_the_integral_over_two_latent_dimensions(make):
    decoder, images, encode = other(make, z_dim=2)
    exact = log_px_on_a_grid(decoder, images, n=161)
    assert torch.allclose(exact, log_px_on_a_grid(decoder, images, n=121), atol=1e-4)
    torch.manual_seed(1)
    weights = laplace.laplace_weights(decoder, encode)(images)(5000)
    log_px, errors = mean_and_error(weights)
    assert (errors < 0.3).all() and ((log_px - exact).abs() < 5 * errors + 1e-6).all()


@pytest.mark.parametrize("make", OTHERS)
def test_the_proposal_of_any_decoder_has_the_curvature_at_its_mode(make):
    """Gauss-Newton's, which is the Hessian where the logits are piecewise linear."""
    decoder, images, _ = other(make, z_dim=3)
    mode, factor = laplace.posterior_mode(decoder, images, torch.zeros(6, 3).double())

    def log_odds(z):
        return decoder.logits(z[None])[0]

    for z, lower in zip(mode, factor):
        jacobian = torch.autograd.functional.jacobian(log_odds, z).T
        means = log_odds(z).sigmoid()
        precision = jacobian * (means * (1 - means)) @ jacobian.T + torch.eye(3)
        assert torch.allclose(lower @ lower.T, precision)


class LinearGaussian:
    """A decoder that a quadratic log-likelihood would have: its posterior is Gaussian."""

    def __init__(self, z_dim, d):
        torch.manual_seed(0)
        self.weight = 0.05 * torch.randn(z_dim, d, dtype=torch.double)

    def logits(self, z):
        return z @ self.weight


def test_the_laplace_proposal_is_exact_for_a_gaussian_posterior(monkeypatch):
    """With p(x|z) = N(x; W z, I), log p(x) = log N(x; 0, I + W W^T) at any number of draws."""
    decoder = LinearGaussian(z_dim=3, d=10)
    decoder.weight *= 20
    x = torch.randn(5, 10, dtype=torch.double)

    def log_joint(decoder, images, z):
        squares = (images[:, None] - decoder.logits(z)).square().sum(dim=2) + z.square().sum(dim=2)
        return -0.5 * (squares + 13 * math.log(2 * math.pi))

    def derivatives(decoder, images, z):
        weight = decoder.weight
        gradient = (images - decoder.logits(z)) @ weight.T - z
        precision = weight @ weight.T + torch.eye(3, dtype=torch.double)
        return gradient, torch.linalg.cholesky(precision).expand(len(z), -1, -1)

    monkeypatch.setattr(laplace, "log_joint", log_joint)
    monkeypatch.setattr(laplace, "_derivatives", derivatives)
    monkeypatch.setattr(laplace, "SCALE", 1.0)
    encode = lambda images: (torch.ones(len(images), 3).double(), None)  # noqa: E731
    weights = laplace.laplace_weights(decoder, encode)(x)(4)
    covariance = torch.eye(10).double() + decoder.weight.T @ decoder.weight
    expected = MultivariateNormal(torch.zeros(10).double(), covariance).log_prob(x)
    assert torch.allclose(weights, expected[:, None].expand(5, 4), atol=1e-9)


def test_the_mode_has_no_gradient_and_the_factor_is_of_the_hessian():
    model, images = small_vae(z_dim=3)
    mode, factor = laplace.posterior_mode(model.decoder, images, torch.zeros(6, 3).double())
    for _ in range(5):  # two steps come close; more arrive
        mode, factor = laplace.posterior_mode(model.decoder, images, mode)

    def log_joint(z, image):
        return laplace.log_joint(model.decoder, image[None], z[None, None]).squeeze()

    def exact(z, image):
        log_likelihood = Bernoulli(logits=model.decoder.logits(z)).log_prob(image).sum()
        return log_likelihood - 0.5 * (z.square() + math.log(2 * math.pi)).sum()

    for z, image, lower in zip(mode, images, factor):
        assert log_joint(z, image).item() == pytest.approx(exact(z, image).item(), abs=1e-9)
        gradient = torch.func.grad(exact)(z, image)
        assert gradient.abs().max() < 1e-6
        hessian = torch.func.hessian(exact)(z, image)
        assert torch.allclose(lower @ lower.T, -hessian, atol=1e-8)


def test_a_newton_step_never_goes_downhill():
    model, images = small_vae(z_dim=3, scale=20.0)
    start = 3 * torch.randn(6, 3).double()
    mode, _ = laplace.posterior_mode(model.decoder, images, start)
    before, after = (
        laplace.log_joint(model.decoder, images, z[:, None]).squeeze(1) for z in (start, mode)
    )
    assert (after >= before).all() and (after > before + 1).any()


def test_the_laplace_proposal_needs_fewer_draws():
    model, images = small_vae(z_dim=3)
    sizes = []
    for proposal in PROPOSALS:
        torch.manual_seed(0)
        result = importance_weighted(proposal(model.decoder, model.encoder), [images], 200)
        assert result["one_draw_nats"] >= result["neg_log_px_nats"]
        sizes.append(result["effective_sample_size"])
    assert sizes[0] > 100 and sizes[0] > 2 * sizes[1]


def test_encoder_weights_are_exact_where_the_decoder_ignores_z():
    """Then log p(x) is the constant Bernoulli's; with q(z|x) the prior every weight is p(x)."""
    model, images = small_vae(z_dim=3)
    for layer in (model.encoder.mean, model.encoder.log_std):
        layer.weight.zero_()
        layer.bias.zero_()
    model.decoder.output.weight.zero_()
    expected = Bernoulli(logits=model.decoder.output.bias).log_prob(images).sum(dim=1)
    weights = laplace.encoder_weights(model.decoder, model.encoder)(images)(5)
    assert torch.allclose(weights, expected[:, None].expand(6, 5))


class TwoSided:
    """Logits that rise with |z|, faster above 0 than below: p(z|x) has a mode on each side."""

    def slope(self, z):
        return torch.where(z > 0, 1.5, -0.5).to(z.dtype)

    def logits(self, z):
        return (self.slope(z) * z - 1) * torch.ones(20).double()


def test_the_laplace_proposal_finds_the_larger_mode_where_the_encoder_points_to_the_lesser():
    decoder, images = TwoSided(), torch.ones(1, 20).double()
    z = torch.linspace(-9, 9, 20001).double()[:, None]
    prior = torch.distributions.Normal(0.0, 1.0)
    joint = Bernoulli(logits=decoder.logits(z)).log_prob(images).sum(1) + prior.log_prob(z)[:, 0]
    exact = torch.logsumexp(joint, dim=0) + math.log(18 / 20000)
    encode = lambda images: (-2 * torch.ones(1, 1).double(), None)  # noqa: E731
    torch.manual_seed(0)
    weights = laplace.laplace_weights(decoder, encode)(images)(5000)
    log_px = torch.logsumexp(weights, dim=1) - math.log(5000)
    assert log_px.item() == pytest.approx(exact.item(), abs=0.03)


@pytest.mark.parametrize("proposal", ["laplace", "encoder"])
def test_batches_shrink_with_the_hessian(monkeypatch, proposal):
    """A batch ends soon, and Ctrl-C with it, however many latent dimensions there are."""
    sizes = {}

    def weights(decoder, encode):
        def for_images(images):
            sizes[z_dim].append(len(images))
            return lambda n: torch.zeros(len(images), n)

        return for_images

    monkeypatch.setitem(laplace.PROPOSALS, proposal, weights)
    images = torch.zeros(300, 784)
    for z_dim in (2, 50, 1000, 10_000):
        sizes[z_dim] = []
        encode = lambda x, d=z_dim: (torch.zeros(len(x), d), torch.zeros(len(x), d))  # noqa: E731
        likelihood.of_decoder(None, encode, images, 500, proposal)
        assert sum(sizes[z_dim]) == len(images)
    largest = {z_dim: max(of_batches) for z_dim, of_batches in sizes.items()}
    if proposal == "laplace":
        assert largest == {2: 128, 50: 128, 1000: 1, 10_000: 1}
    else:
        assert {*largest.values()} == {128}  # no Hessian
