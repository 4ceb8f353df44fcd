"""Importance-weighted bounds where log p(x) is known."""

import math

import pytest
import torch
from torch.distributions import Normal

from harness.likelihood import (
    importance_weighted,
    inverse_error,
    per_dimension,
    repeated,
    rows_at_once,
)


def gaussian_weights(x):
    """log p(x|z) for draws of z ~ N(0, 1), with p(x|z) = N(z, 1): so p(x) = N(0, 2)."""
    return lambda n: Normal(torch.randn(len(x), n), 1.0).log_prob(x)


def constant(value):
    return lambda x: lambda n: torch.full((len(x), n), value)


def test_the_estimate_is_log_px_and_the_bound_is_below_it():
    torch.manual_seed(0)
    x = torch.randn(200, 1)
    result = importance_weighted(gaussian_weights, x.split(64), n_samples=5000)
    log_px = Normal(0.0, math.sqrt(2)).log_prob(x)
    elbo = Normal(0.0, 1.0).log_prob(x) - 0.5  # E log N(x; z, 1)
    assert result["neg_log_px_nats"] == pytest.approx(-log_px.mean().item(), abs=0.005)
    assert result["one_draw_nats"] == pytest.approx(-elbo.mean().item(), abs=0.005)
    gap = result["one_draw_nats"] - result["neg_log_px_nats"]
    assert result["gap_nats"] == pytest.approx(gap)
    standard_error = log_px.std().item() / math.sqrt(200)
    assert result["standard_error_nats"] == pytest.approx(standard_error, rel=0.05)
    assert result["importance_samples"] == 5000


def test_bounds_tighten_with_the_number_of_draws():
    torch.manual_seed(0)
    x = torch.randn(2000, 1)
    bounds = [
        importance_weighted(gaussian_weights, [x], n_samples)["neg_log_px_nats"]
        for n_samples in (1, 2, 4, 12, 60)
    ]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[-1] + 0.2


def test_one_draw_is_the_elbo():
    torch.manual_seed(0)
    result = importance_weighted(gaussian_weights, [torch.randn(30, 1)], n_samples=1)
    assert result["gap_nats"] == pytest.approx(0, abs=1e-12)
    assert result["neg_log_px_nats"] == pytest.approx(result["one_draw_nats"])


def test_tiny_weights_do_not_underflow():
    result = importance_weighted(constant(-5e4), [torch.zeros(4)], 3)
    assert result["neg_log_px_nats"] == pytest.approx(5e4)


@pytest.mark.parametrize("n_samples, max_rows", [(5, 12), (30, 12), (7, 1)])
def test_chunks_bound_the_memory_and_count_every_draw(n_samples, max_rows):
    calls = []

    def log_weights(batch):
        def draw(n):
            calls.append((len(batch), n))
            return torch.full((len(batch), n), -1.0)

        return draw

    batches = torch.zeros(9).split(2)  # batches of 2, 2, 2, 2 and 1
    result = importance_weighted(log_weights, batches, n_samples, max_rows)
    assert all(n_rows * n <= max(max_rows, n_rows) for n_rows, n in calls)
    assert sum(n_rows * n for n_rows, n in calls) == 9 * n_samples
    assert result["neg_log_px_nats"] == pytest.approx(1)


def test_the_effective_sample_size_counts_equal_weights_and_no_others():
    equal = importance_weighted(constant(-3.0), [torch.zeros(4)], 50)
    assert equal["effective_sample_size"] == pytest.approx(50)
    assert equal["half_difference_nats"] == pytest.approx(0, abs=1e-12)

    def one_counts(x):
        return lambda n: torch.tensor([[0.0] + (n - 1) * [-80.0]]).expand(len(x), -1)

    single = importance_weighted(one_counts, [torch.zeros(4)], 50)
    assert single["effective_sample_size"] == pytest.approx(1)
    assert single["half_difference_nats"] == pytest.approx(80 - math.log(25), abs=1e-5)


def test_noise_is_new_in_every_draw():
    def log_px(batch):
        return batch + torch.rand(len(batch))

    images = torch.arange(4.0)
    weights = repeated(log_px)(images)(5)
    assert weights.shape == (4, 5) and torch.equal(
        weights.floor(), torch.arange(4.0)[:, None].expand(4, 5)
    )
    assert len(weights.unique()) == 20


def test_a_bit_per_dimension_is_log_2_nats_for_each():
    torch.manual_seed(0)
    nats = importance_weighted(gaussian_weights, [torch.randn(30, 1)], n_samples=7)
    bits = per_dimension(nats, 10)
    pairs = {
        "bpd": "neg_log_px_nats",
        "standard_error": "standard_error_nats",
        "one_draw_bpd": "one_draw_nats",
        "gap": "gap_nats",
        "half_difference": "half_difference_nats",
    }
    assert bits.keys() == pairs.keys() | {"effective_sample_size", "importance_samples"}
    for bit, nat in pairs.items():
        assert bits[bit] * 10 * math.log(2) == pytest.approx(nats[nat])
    assert bits["importance_samples"] == 7


def test_the_inverse_error_is_the_largest_of_each_layer():
    def layer(scale, error):
        def call(x, ldj, reverse):
            return (x / scale + error if reverse else x * scale), ldj

        return call

    layers = {"first": layer(2.0, 0.25), "second": layer(4.0, 1.0)}
    errors = inverse_error(layers, torch.tensor([[1.0, -3.0], [0.5, 2.0]]))
    # The second layer's error of 1 is halved on its way back through the first.
    assert errors == {"second": 1.0, "first": 0.75}


def test_a_gpu_gets_more_rows_at_once():
    assert rows_at_once(torch.device("cuda")) == 2**18
    assert rows_at_once(torch.device("cpu")) == 4096
    calls = []

    def log_weights(batch):
        return lambda n: calls.append(n) or torch.zeros(len(batch), n)

    importance_weighted(log_weights, [torch.zeros(4)], n_samples=2000)
    assert calls == [1024, 976]
