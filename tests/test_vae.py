"""The VAE: every term of its objective against torch.distributions, by hand, or integrated."""

import copy
import math
import typing

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Bernoulli, Normal, kl_divergence

import a3_vae_template as script
from a3_vae_template import VAE, Decoder, Encoder, ReportVAE, epoch_iter, evaluate, run_epoch
from datasets import BINARIZATIONS, MNIST, Batches, Source
from harness.average import WeightAverage
from harness.errors import UsageError
from tests.run_states import state_of, unchanged

KINDS = {"standard": VAE, "report": ReportVAE}
parse = script.Config.parse


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.bernoulli(torch.full((12, 784), 0.3))


def zeroed(model):
    """The model with every weight zero: q(z|x) = N(0, I), and every Bernoulli mean 1/2."""
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    return model


def test_shapes_of_the_course(images):
    model = VAE(hidden_dim=30, z_dim=7)
    mean, log_std = Encoder(30, 7)(images)
    assert mean.shape == log_std.shape == (12, 7)
    means = Decoder(30, 7)(torch.randn(12, 7))
    assert means.shape == (12, 784) and means.min() > 0 and means.max() < 1
    assert model(images).shape == ()
    draws, means = model.sample(5)
    assert draws.shape == means.shape == (5, 784)
    assert model.encoder(images)[0].shape == (12, 7) and model.decoder(torch.randn(3, 7)).shape == (
        3,
        784,
    )


def test_the_report_s_sizes():
    model = VAE()
    assert sum(p.numel() for p in model.parameters()) == (785 * 500 + 2 * 501 * 20) + (
        21 * 500 + 501 * 784
    )


def test_kl_divergence_against_torch_distributions():
    torch.manual_seed(0)
    mean, log_std = (
        2 * torch.randn(50, 6, dtype=torch.double),
        torch.randn(50, 6, dtype=torch.double),
    )
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum(dim=1)
    assert torch.allclose(script.kl_divergence(mean, log_std), expected, rtol=1e-12)


def test_the_report_s_kl_by_hand():
    # 1/2 ((e^1 + 2^2 - 1 - 1) + (e^0 + 0 - 0 - 1)), where the divergence has e^2 and 2 log sigma
    model = zeroed(ReportVAE(hidden_dim=4, z_dim=2))
    with torch.no_grad():
        model.encoder.mean.bias.copy_(torch.tensor([2.0, 0.0]))
        model.encoder.log_std.bias.copy_(torch.tensor([1.0, 0.0]))
    terms = model.terms(torch.zeros(1, 784))
    wrong_kl = terms["report"] - terms["recon"]
    assert wrong_kl.item() == pytest.approx((math.e + 4 - 1 - 1) / 2, rel=1e-4)


def test_likelihood_against_torch_distributions(images):
    logits = torch.randn(12, 784)
    expected = -Bernoulli(logits=logits).log_prob(images).sum(dim=1)
    assert torch.allclose(script.neg_log_likelihood(logits, images), expected, rtol=1e-5)


def test_likelihood_of_saturated_logits():
    logits, pixels = torch.tensor([[200.0, -200.0]]), torch.tensor([[0.0, 1.0]])
    assert script.neg_log_likelihood(logits, pixels).item() == 400.0


def test_elbo_by_hand(images):
    """q(z|x) = N(1, e^2) in each of 3 dimensions, and all Bernoulli means 1/4, whatever z is."""
    model = zeroed(ReportVAE(hidden_dim=4, z_dim=3))
    torch.nn.init.ones_(model.encoder.mean.bias)
    torch.nn.init.ones_(model.encoder.log_std.bias)
    torch.nn.init.constant_(model.decoder.output.bias, -math.log(3))
    ones = images.sum(dim=1)
    recon = ones * math.log(4) + (784 - ones) * math.log(4 / 3)
    kl = 3 * 0.5 * (math.e**2 + 1 - 2 - 1)
    terms = model.terms(images)
    assert torch.allclose(terms["recon"], recon, rtol=1e-5)
    assert torch.allclose(terms["kl"], torch.full((12,), kl))
    assert torch.allclose(terms["neg_elbo"], recon + kl, rtol=1e-5)
    assert torch.allclose(terms["report"], recon + 3 * 0.5 * (math.e + 1 - 1 - 1), rtol=1e-5)
    assert model(images).item() == pytest.approx((recon + kl).mean().item(), rel=1e-5)


def test_elbo_is_below_log_px_by_the_divergence_from_the_posterior():
    """log p(x) = ELBO + KL(q(z|x) || p(z|x)), both sides integrated over a one-dimensional z."""
    torch.manual_seed(3)
    model = VAE(hidden_dim=5, z_dim=1).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
        model.encoder.log_std.bias.fill_(-0.5)
    x = torch.bernoulli(torch.full((1, 784), 0.2, dtype=torch.double))
    with torch.no_grad():
        mean, log_std = (float(value) for value in model.encoder(x))

        def log_joint(z):
            logits = model.decoder.logits(torch.tensor([[z]], dtype=torch.double))
            return -script.neg_log_likelihood(logits, x).item() + norm.logpdf(z)

        peak = max(log_joint(z) for z in np.linspace(-6, 6, 601))
        log_px = (
            math.log(quad(lambda z: math.exp(log_joint(z) - peak), -12, 12, limit=400)[0]) + peak
        )
        sigma = math.exp(log_std)
        q = norm(mean, sigma)
        divergence = quad(
            lambda z: q.pdf(z) * (q.logpdf(z) - log_joint(z) + log_px),
            mean - 10 * sigma,
            mean + 10 * sigma,
            limit=400,
        )[0]
        estimates = torch.cat([-model.terms(x.expand(4000, -1))["neg_elbo"] for _ in range(10)])
    standard_error = estimates.std().item() / len(estimates) ** 0.5
    assert divergence > 0.1
    assert estimates.mean().item() == pytest.approx(log_px - divergence, abs=5 * standard_error)


def test_a_fresh_eps_for_every_image_and_dimension():
    model = zeroed(VAE(hidden_dim=4, z_dim=3))
    seen = []
    model.decoder.logits = lambda z: (seen.append(z), torch.zeros(len(z), 784))[1]
    model.terms(torch.zeros(500, 784))
    model.terms(torch.zeros(500, 784))
    eps = torch.cat(seen)
    assert eps.shape == (1000, 3) and len(eps.unique()) == 3000
    assert eps.std(dim=0).sub(1).abs().max() < 0.15


def test_gradients_reach_every_parameter(images):
    model = VAE(hidden_dim=30, z_dim=5)
    model(images).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_sample_draws_from_its_means():
    torch.manual_seed(0)
    model = VAE(hidden_dim=10, z_dim=2)
    draws, means = model.sample(4000)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws - means).mean(dim=0).abs().max() < 6 * 0.5 / 4000**0.5
    assert not torch.equal(draws, means.round())


def test_manifold_runs_left_to_right_and_bottom_to_top():
    class ShowLatents(torch.nn.Module):
        output = torch.nn.Linear(1, 1)

        def forward(self, z):
            return z

    model = VAE(z_dim=2)
    model.decoder = ShowLatents()
    z = script.manifold(model, n=20).view(20, 20, 2)
    quantiles = torch.tensor(norm.ppf((np.arange(20) + 0.5) / 20), dtype=torch.float32)
    assert torch.allclose(z[7, :, 0], quantiles)  # z1 grows along a row
    assert torch.allclose(
        z[:, 7, 1], quantiles.flip(0)
    )  # z2 falls from the top row to the bottom row


def test_averages_weigh_every_image_the_same(images):
    model = zeroed(VAE(hidden_dim=4, z_dim=3)).eval()
    torch.nn.init.constant_(model.decoder.output.bias, -1.0)
    nats = epoch_iter(model, images.split(5), optimizer=None)  # batches of 5, 5 and 2
    neg_elbo, recon, kl = nats
    assert neg_elbo == pytest.approx(model(images).item(), rel=1e-6)
    assert neg_elbo == pytest.approx(recon + kl)


def test_validation_changes_nothing(images):
    torch.manual_seed(0)
    model = VAE(hidden_dim=8, z_dim=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before, stream = state_of(model), torch.get_rng_state()
    evaluate(model, images.split(4))
    epoch_iter(model, images.split(4), optimizer)
    assert not model.training and unchanged(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())
    evaluate(model.train(), images.split(4))
    torch.set_rng_state(stream)
    assert evaluate(model, images.split(4)) == evaluate(model, images.split(4))
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("protocol", KINDS)
def test_only_the_report_trains_on_the_validation_split(images, protocol):
    torch.manual_seed(0)
    model = KINDS[protocol](hidden_dim=8, z_dim=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    after_training = []

    def validation():
        after_training.append(state_of(model))
        yield from images.split(6)

    run_epoch(model, (images.split(6), validation()), optimizer)
    assert unchanged(model, after_training[0]) == (protocol == "standard")
    steps = {state["step"].item() for state in optimizer.state.values()}
    assert steps == {2.0 if protocol == "standard" else 4.0}


@pytest.mark.parametrize("protocol, term", [("standard", "neg_elbo"), ("report", "report")])
def test_each_protocol_descends_its_own_objective(images, protocol, term):
    torch.manual_seed(0)
    model = KINDS[protocol](hidden_dim=8, z_dim=3)
    reference = copy.deepcopy(model)
    torch.manual_seed(1)
    reference.terms(images)[term].mean().backward()
    torch.manual_seed(1)
    epoch_iter(model.train(), [images], torch.optim.SGD(model.parameters(), lr=1.0))
    for before, after in zip(reference.parameters(), model.parameters()):
        assert torch.allclose(after, before - before.grad, atol=1e-5)


def test_the_average_is_what_is_validated(images):
    torch.manual_seed(0)
    model = VAE(hidden_dim=8, z_dim=3)
    average = WeightAverage(model, 0.9, every=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    _, val_nats = run_epoch(model, (images.split(2), images.split(6)), optimizer, average)
    assert average.n_steps == 6
    assert val_nats == evaluate(average.model, images.split(6)) != evaluate(model, images.split(6))


def test_a_run_s_numbers_are_those_of_the_bound_in_either_protocol(monkeypatch):
    monkeypatch.setattr(script.sample_quality, "measure", lambda *_: {})
    test = Batches(torch.ones(4, 784, dtype=torch.uint8), 4, torch.Tensor.float)
    for protocol, kind in KINDS.items():
        config = parse(["--protocol", protocol, "--importance_samples", "0"])
        results = script.test_results(config, kind(8, 2), test)
        assert results["test"].keys() == {"neg_elbo_nats", "recon_nats", "kl_nats"}


def test_samples_are_the_same_whatever_else_is_evaluated(monkeypatch):
    compared = []
    monkeypatch.setattr(
        script.sample_quality, "measure", lambda images, *_: compared.append(images)
    )
    model, test = VAE(8, 2), Batches(torch.ones(4, 784, dtype=torch.uint8), 4, torch.Tensor.float)
    for n in ("0", "3"):
        config = parse(["--importance_samples", n, "--quality_samples", "100"])
        script.test_results(config, model, test)
    assert torch.equal(compared[0], compared[2]) and torch.equal(compared[1], compared[3])


@pytest.mark.parametrize("binarize, has_images", [("larochelle", False), ("static", True)])
def test_samples_are_compared_with_mnist_where_data_dir_has_only_larochelles_bits(
    monkeypatch, tmp_path, binarize, has_images
):
    words = ["--binarize", binarize, "--data_dir", str(tmp_path), "--importance_samples", "0"]
    config = parse([*words, "--quality_samples", "100"])
    sources = []
    monkeypatch.setattr(
        script.sample_quality, "measure", lambda images, *given: sources.append(given)
    )
    test = Batches(torch.ones(4, 784, dtype=torch.uint8), 4, torch.Tensor.float)
    script.test_results(config, VAE(8, 2), test)
    source = Source("mnist", tmp_path) if has_images else MNIST
    assert sources == [(source,), (source, binarize)]


def test_the_settings_have_the_course_s_names_and_bounds():
    config = parse([])
    assert typing.get_args(typing.get_type_hints(script.Config)["binarize"]) == BINARIZATIONS
    assert (config.zdim, config.hidden_dim, config.epochs, config.name) == (
        20,
        500,
        100,
        "vae-z20-seed0",
    )
    assert parse(["--binarize", "dynamic", "--zdim", "2"]).name == "vae-dynamic-z2-seed0"
    assert parse(["--protocol", "report"]).name == "vae-report-z20-seed0"
    for words in ("--zdim 0", "--lr 0", "--lr nan", "--ema_decay 1", "--importance_samples -1"):
        with pytest.raises(UsageError, match=words.split()[0]):
            parse(words.split())


def test_the_elbo_plot_is_written(tmp_path):
    script.save_elbo_plot([150.0, 120.0], [140.0, 115.0], tmp_path / "elbo.png")
    assert {path.name for path in tmp_path.iterdir()} == {"elbo.png", "elbo.pdf"}
