"""The flow: densities that sum to 1, log-determinants and inverses against autodiff in float64."""

import functools
import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal

import a3_nf_template as script
from a3_nf_template import Coupling, Flow, Model, get_mask
from datasets import Batches, mnist
from harness.errors import UsageError
from harness.likelihood import importance_weighted, inverse_error, per_dimension, repeated
from harness.steps import adam
from tests.run_states import state_of, unchanged

parse = script.Config.parse

MASKS = {
    "alternating": [1, 0, 1, 0, 1, 0, 1],
    "block": [0, 0, 0, 1, 1, 1, 1],
    "one kept": [0, 0, 0, 0, 1, 0, 0],
    "one changed": [1, 1, 0, 1, 1, 1, 1],
    "all changed": [0] * 7,
    "all kept": [1] * 7,
}


def perturbed(module, scale=0.3, seed=0):
    """The module in float64, away from its initialisation as the identity."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(
                scale * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
            )
    return module


def log_determinant(function, x):
    """log |det| of autodiff's Jacobian of `function`, a map of one row to one row, at x."""
    return torch.linalg.slogdet(jacobian(lambda row: function(row[None])[0], x)).logabsdet


def zeros(n):
    return torch.zeros(n, dtype=torch.double)


@pytest.fixture
def images():
    return next(iter(mnist(batch_size=16)[1]))


def test_log_prior_against_torch_distributions():
    x = torch.randn(5, 784, dtype=torch.double)
    expected = Independent(Normal(torch.zeros_like(x), 1.0), 1).log_prob(x)
    assert torch.allclose(script.log_prior(x), expected, rtol=1e-12)


def test_sample_prior():
    torch.manual_seed(0)
    z = script.sample_prior((200, 784))
    assert z.shape == (200, 784)
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02


def test_mask_is_a_checkerboard():
    mask = get_mask()
    assert mask.shape == (1, 784) and mask.sum() == 392
    board = mask.view(28, 28)
    assert (board[1:] + board[:-1] == 1).all() and (board[:, 1:] + board[:, :-1] == 1).all()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_coupling_log_determinant_inverse_and_mask(mask):
    mask = torch.tensor([mask], dtype=torch.float32)
    coupling = perturbed(Coupling(7, mask, n_hidden=11))
    x, before = torch.randn(4, 7, dtype=torch.double), torch.randn(4, dtype=torch.double)
    z, ldj = coupling(x, before)
    expected = torch.stack(
        [log_determinant(lambda row: coupling(row, zeros(1))[0], row) for row in x]
    )
    assert torch.allclose(ldj - before, expected, atol=1e-10)
    kept = mask[0] == 1
    assert torch.equal(z[:, kept], x[:, kept])
    assert ((z != x)[:, ~kept]).all()
    x_back, ldj_back = coupling(z, ldj, reverse=True)
    assert torch.allclose(x_back, x, atol=1e-10) and torch.allclose(ldj_back, before, atol=1e-10)


def test_log_scales_are_bounded_by_tanh():
    coupling = perturbed(Coupling(6, torch.tensor([[1, 1, 1, 0, 0, 0]]), n_hidden=8), scale=50.0)
    _, ldj = coupling(torch.randn(20, 6, dtype=torch.double), zeros(20))
    assert ldj.abs().max() <= 3


def test_a_new_flow_is_the_identity():
    x = torch.randn(3, 784)
    z, ldj = Flow([784], n_flows=2)(x, torch.zeros(3))
    assert torch.equal(z, x) and torch.equal(ldj, torch.zeros(3))


def test_flow_log_determinant_and_inverse():
    flow = perturbed(Flow([784], n_flows=2, n_hidden=16), scale=0.1)
    assert len(flow.layers) == 4
    x = torch.randn(2, 784, dtype=torch.double)
    z, ldj = flow(x, zeros(2))
    chain = functools.reduce(lambda state, layer: layer(*state), flow.layers, (x, zeros(2)))
    torch.testing.assert_close((z, ldj), chain, rtol=1e-12, atol=1e-12)
    assert (z != x).all()  # the masks alternate, so that every pixel is changed
    assert ldj.abs().min() > 0.1
    assert ldj[0].item() == pytest.approx(
        log_determinant(lambda row: flow(row, zeros(1))[0], x[0]).item(), rel=1e-10
    )
    x_back, ldj_back = flow(z, ldj, reverse=True)
    assert torch.allclose(x_back, x, atol=1e-9) and torch.allclose(ldj_back, zeros(2), atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [lambda: Flow([784], n_flows=2), lambda: Coupling(784, get_mask())],
    ids=["flow", "coupling"],
)
def test_the_course_s_round_trip(make):
    """The course's check in float32, but with perturbed weights: the identity proves nothing."""
    module = perturbed(make(), scale=0.02).float()
    x = torch.rand(16, 784)
    z, ldj = module(x, torch.zeros(16))
    x_back, ldj_back = module(z, ldj, reverse=True)
    assert (z - x).abs().max() > 0.1 and ldj.abs().min() > 0.01
    assert torch.allclose(x_back, x, atol=1e-4) and torch.allclose(
        ldj_back, torch.zeros(16), atol=1e-3
    )


@pytest.mark.parametrize("n_bins", [4, 256])
def test_logit_normalize_both_ways(n_bins):
    model = Model(
        [6], n_flows=1, n_hidden=2, n_bins=n_bins, mask=torch.tensor([[1, 0, 1, 0, 1, 0]])
    ).double()
    y = n_bins * torch.rand(5, 6, dtype=torch.double)
    z, ldj = model.logit_normalize(y, zeros(5))
    w = (1 - script.ALPHA) * y / n_bins + script.ALPHA / 2
    assert torch.allclose(z, torch.logit(w), rtol=1e-10)
    expected = torch.stack(
        [log_determinant(lambda row: model.logit_normalize(row, zeros(1))[0], row) for row in y]
    )
    assert torch.allclose(ldj, expected, rtol=1e-10)
    y_back, ldj_back = model.logit_normalize(z, ldj, reverse=True)
    assert torch.allclose(y_back, y, atol=1e-8) and torch.allclose(ldj_back, zeros(5), atol=1e-8)


def test_black_and_white_are_finite():
    model = Model([784], n_flows=1, n_hidden=2)
    for value in (0.0, 256.0):
        z, ldj = model.logit_normalize(torch.full((1, 784), value), torch.zeros(1))
        assert z.isfinite().all() and ldj.isfinite().all()


def test_dequantisation_is_uniform_on_the_unit_interval(images):
    torch.manual_seed(0)
    noise = Model([784], n_flows=1, n_hidden=2).dequantize(images.double()) - images.double()
    assert noise.min() >= 0 and noise.max() < 1
    assert abs(noise.mean() - 1 / 2) < 0.02 and abs(noise.var() - 1 / 12) < 0.02
    assert len(noise.unique()) > 0.99 * noise.numel()


def test_probabilities_of_all_images_sum_to_one():
    """P(x) = E_u p(x + u), integrated over u, summed over all images of 2 pixels, 4 grey values."""
    model = perturbed(
        Model([2], n_flows=2, n_hidden=8, n_bins=4, mask=torch.tensor([[1, 0]])), scale=0.2, seed=1
    )
    n = 150
    steps = (torch.arange(n, dtype=torch.double) + 0.5) / n
    noise = torch.cartesian_prod(steps, steps)
    probabilities = []
    with torch.no_grad():
        for x in torch.cartesian_prod(torch.arange(4), torch.arange(4)).double():
            model.dequantize = lambda z: z + noise
            probabilities.append(model(x.expand(n * n, 2)).exp().mean().item())
    assert max(probabilities) / min(probabilities) > 1.5  # not the trivial model
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def bits_of(model, data, n_samples):
    return per_dimension(importance_weighted(repeated(model), data, n_samples), 2)


def test_importance_weighted_estimate_is_the_probability_of_the_integers():
    """Against the density's integral over the unit cube; the one-draw bound has more bits."""
    torch.manual_seed(0)
    model = perturbed(
        Model([2], n_flows=2, n_hidden=8, n_bins=4, mask=torch.tensor([[1, 0]])), scale=0.2, seed=1
    )
    images = torch.cartesian_prod(torch.arange(4), torch.arange(4)).double()
    n = 150
    steps = (torch.arange(n, dtype=torch.double) + 0.5) / n
    noise = torch.cartesian_prod(steps, steps)
    dequantize, exact = model.dequantize, []
    with torch.no_grad():
        model.dequantize = lambda z: z + noise
        for x in images:
            exact.append(torch.logsumexp(model(x.expand(n * n, 2)), dim=0).item() - math.log(n * n))
    model.dequantize = dequantize
    bits = -sum(exact) / len(exact) / (2 * math.log(2))
    torch.manual_seed(0)
    result = bits_of(model, images.split(9), n_samples=1000)
    assert result["bpd"] == pytest.approx(bits, abs=0.01)
    assert result["one_draw_bpd"] > result["bpd"] + 0.3 and result["gap"] == pytest.approx(
        result["one_draw_bpd"] - result["bpd"]
    )
    values = torch.tensor(exact, dtype=torch.double) / (2 * math.log(2))
    assert result["standard_error"] == pytest.approx(values.std().item() / 4, rel=0.05)
    few = bits_of(model, images.split(9), n_samples=1)
    assert few["gap"] == pytest.approx(0, abs=1e-12)


def test_bits_per_dimension_of_a_uniform_model():
    log_px_nats = torch.tensor([-784 * math.log(256)])
    assert script.bits_per_dimension(log_px_nats, 784).item() == pytest.approx(8.0)


def test_log_px_by_hand(images):
    """An untrained model is the logit transform alone: every term of the docstring, in float64."""
    model, images = Model([784], n_flows=1, n_hidden=2).double(), images.double()
    model.dequantize = lambda z: z + 0.25
    w = (1 - script.ALPHA) * (images + 0.25) / 256 + script.ALPHA / 2
    logit = torch.log(w / (1 - w))
    per_pixel = (
        -0.5 * logit**2
        - 0.5 * math.log(2 * math.pi)
        - torch.log(w * (1 - w))
        + math.log(1 - script.ALPHA)
        - math.log(256)
    )
    assert torch.allclose(model(images), per_pixel.sum(dim=1), rtol=1e-9)


def test_samples_are_whole_grey_values():
    torch.manual_seed(0)
    model = perturbed(Model([784], n_flows=1, n_hidden=8), scale=0.1).float()
    samples = model.sample(50)
    assert samples.shape == (50, 784)
    assert torch.equal(samples, samples.round()) and samples.min() >= 0 and samples.max() <= 255
    assert len(samples.unique()) > 200


def test_temperature_is_the_standard_deviation_of_the_prior():
    torch.manual_seed(0)
    model = Model([784], n_flows=1, n_hidden=2)  # untrained: grey values are the logits' alone
    assert len(model.sample(3, temperature=0.0).unique()) == 1
    for temperature in (0.5, 1.0):
        logits, _ = model.logit_normalize(model.sample(40, temperature) + 0.5, torch.zeros(40))
        assert logits.std().item() == pytest.approx(temperature, rel=0.02)


def test_samples_follow_the_density():
    """Frequencies of a tiny model's samples against its own probabilities."""
    torch.manual_seed(0)
    model = perturbed(
        Model([2], n_flows=2, n_hidden=8, n_bins=2, mask=torch.tensor([[1, 0]])), scale=0.2, seed=1
    ).float()
    samples = model.sample(20_000)
    with torch.no_grad():
        for x in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]):
            probability = model(torch.tensor([x]).expand(20_000, 2)).exp().mean().item()
            frequency = (samples == torch.tensor(x)).all(dim=1).float().mean().item()
            assert frequency == pytest.approx(probability, abs=0.02)


def test_clipping_is_of_the_gradient_in_nats_per_image(images):
    torch.manual_seed(0)
    model = Model([784], n_flows=1, n_hidden=8)
    torch.manual_seed(1)
    gradients = torch.autograd.grad(-model(images).mean(), list(model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert norm > 100
    torch.manual_seed(1)
    script.epoch_iter(model.train(), [images], adam(model, 0.0), max_norm=5.0)
    for parameter, gradient in zip(model.parameters(), gradients):
        assert torch.allclose(parameter.grad, gradient * 5.0 / norm, rtol=1e-4, atol=1e-6)


def test_averages_weigh_every_image_the_same(images):
    model = Model([784], n_flows=1, n_hidden=2).eval()
    model.dequantize = lambda z: z + 0.5
    bpd = script.epoch_iter(model, images.split(7), optimizer=None)  # batches of 7, 7 and 2
    assert bpd == pytest.approx(
        script.bits_per_dimension(model(images), 784).mean().item(), rel=1e-6
    )


def test_validation_changes_nothing(images):
    model = perturbed(Model([784], n_flows=1, n_hidden=4)).float().train()
    before, stream = state_of(model), torch.get_rng_state()
    clean, shifted = (
        script.evaluate(model, [images]),
        script.evaluate(model, script.shift(Batches(images.byte(), 128, torch.Tensor.float))),
    )
    assert clean == script.evaluate(model, [images]) and clean != shifted
    assert unchanged(model, before) and torch.equal(torch.get_rng_state(), stream)


def test_training_improves_a_small_model(images):
    torch.manual_seed(0)
    model = Model([784], n_flows=1, n_hidden=32)
    optimizer = adam(model, 1e-3)
    first, *_, last = [
        script.run_epoch(model, ([images] * 5, [images]), optimizer)[1] for _ in range(6)
    ]
    assert last < first - 0.3


def test_inverse_error_is_small_and_measured(images):
    model = perturbed(Model([784], n_flows=2, n_hidden=64), scale=0.05).float()
    layers = {"pixels": model.logit_normalize, "logit": model.flow}
    with torch.no_grad():
        errors = inverse_error(layers, model.dequantize(images))
        assert 0 < errors["pixels"] < 0.01 and 0 < errors["logit"] < 1e-4
        layer = model.flow.layers[0]
        forward = layer.forward
        layer.forward = lambda z, ldj, reverse: forward(z + 1e-2 * reverse, ldj, reverse)
        assert inverse_error(layers, model.dequantize(images))["logit"] > 1e-3


def test_the_settings_have_the_course_s_names_and_bounds():
    config = parse([])
    assert (config.n_flows, config.n_hidden, config.max_norm) == (4, 1024, 5.0)
    assert config.name == "nf-seed0"
    assert parse(["--protocol", "report", "--seed", "2"]).name == "nf-report-seed2"
    assert parse(["--protocol", "report"]).ema_decay == 0
    for words in ("--n_flows 0", "--lr 0", "--max_norm nan", "--ema_decay -1", "--epochs 0"):
        with pytest.raises(UsageError, match=words.split()[0]):
            parse(words.split())


def test_the_learning_rate_rises_and_falls_to_zero():
    def rates(n_steps, *arguments):
        optimizer = adam(torch.nn.Linear(1, 1), 0.5)
        scheduler, found = script.learning_rates(optimizer, n_steps, *arguments), []
        for _ in range(n_steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return [*found, optimizer.param_groups[0]["lr"]]

    found = rates(1000, 4, "cosine")
    assert found[:3] == pytest.approx([0.5 / 4, 0.5 * 2 / 4, 0.5 * 3 / 4], rel=1e-3)
    assert found[500] == pytest.approx(0.25) and found[-1] == pytest.approx(0, abs=1e-12)
    assert found[3:] == sorted(found[3:], reverse=True)
    # Of 1,000 steps before a cosine no more than 100 are warm-up.
    assert rates(1000, 5000, "cosine") == rates(1000, 100, "cosine")
    assert rates(3, 0, "constant") == [0.5] * 4
    # Without a cosine a run that grows has the rates of one that was as long from the start.
    assert rates(20, 30, "constant") == rates(200, 30, "constant")[:21]
    assert rates(200, 30, "constant")[28:31] == pytest.approx([0.5 * 29 / 30, 0.5, 0.5])


def test_the_first_coupling_s_hidden_layers_have_a_rate_of_their_own():
    model = Model([784], n_flows=2, n_hidden=4)
    optimizer = adam(script.parameter_groups(model, 0.5, 0.1), 0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # the first step of Adam is the rate itself
    steps = [(old - new).mean() for old, new in zip(before, model.parameters(), strict=True)]
    expected = [0.05] * 4 + [0.5] * 20
    assert torch.allclose(torch.stack(steps), torch.tensor(expected), rtol=1e-4)


def test_the_first_rate_is_that_of_all_but_the_heads():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(4, 4)
            self.inner = torch.nn.Conv1d(1, 1, 3)

    model = Model([784], n_flows=1, n_hidden=4)
    layers = list(model.flow.layers[0].nn)
    model.flow.layers[0].nn = torch.nn.Sequential(layers[0], Block(), layers[-1])
    others, first = script.parameter_groups(model, 0.5, 0.1)
    expected = [p for layer in model.flow.layers[0].nn[:2] for p in layer.parameters()]
    assert list(map(id, first["params"])) == list(map(id, expected)) and first["lr"] == 0.05
    assert len(others["params"]) + len(expected) == len(list(model.parameters()))


def test_weights_decay_apart_from_the_gradient():
    model = Model([784], n_flows=1, n_hidden=4)
    optimizer = adam(model, 0.5, weight_decay=0.2)
    weight = model.flow.layers[0].nn[0].weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(weight, before * (1 - 0.5 * 0.2))


def test_results_are_of_whole_splits_and_of_the_given_noise(monkeypatch):
    monkeypatch.setattr(script.sample_quality, "measure", lambda *_: {"n": 1})
    model = perturbed(Model([784], n_flows=1, n_hidden=4), scale=0.05).float().eval()
    images = mnist()[2].images[:8]
    test = Batches(images, 4, torch.Tensor.float)
    config = parse(["--importance_samples", "3"])
    results = script.test_results(config, model, test)
    assert results.keys() == {"test", "inverse_error", "likelihood", "quality"}
    assert results["test"]["bpd"] == script.evaluate(model, test)
    assert results["likelihood"]["importance_samples"] == 3
    assert results == script.test_results(config, model, test)


def test_the_bpd_plot_is_written(tmp_path):
    script.save_bpd_plot([2.0, 1.9], [2.1, 2.0], tmp_path / "bpd.png")
    assert {path.name for path in tmp_path.iterdir()} == {"bpd.png", "bpd.pdf"}
