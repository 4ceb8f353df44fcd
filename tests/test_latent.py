"""The latent grid, and measures of the latent space where their values are known."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from harness import latent

N = 50
LOG_STD = torch.full((N, 3), -3.0)


def average_kl(mean):
    return kl_divergence(Normal(mean, LOG_STD.exp()), Normal(0.0, 1.0)).sum(dim=1).mean().item()


def test_the_grid_runs_left_to_right_and_bottom_to_top_in_steps_of_equal_probability():
    z = latent.quantile_grid(20).view(20, 20, 2)
    quantiles = torch.tensor(norm.ppf((np.arange(20) + 0.5) / 20), dtype=torch.float32)
    assert torch.allclose(z[..., 0], quantiles.expand(20, 20))  # z1 grows along a row
    assert torch.allclose(z[..., 1], quantiles.flip(0)[:, None].expand(20, 20))  # z2 falls


def test_interpolation_is_the_straight_line_between_its_ends():
    ends = torch.full((100,), -0.9), torch.full((100,), 0.9)
    line = latent.interpolate(*ends)
    assert line.shape == (9, 100)
    assert torch.equal(line[0], ends[0]) and torch.equal(line[-1], ends[1])
    assert torch.allclose(line.diff(dim=0), torch.full((8, 100), 1.8 / 8), atol=1e-6)


def test_the_farthest_pair_is_found_among_all_pairs():
    torch.manual_seed(5)
    images = torch.rand(20, 784)
    distances = {
        (i, j): (images[i] - images[j]).norm().item()
        for i, j in itertools.combinations(range(20), 2)
    }
    assert tuple(sorted(latent.farthest_pair(images))) == max(distances, key=distances.get)


def test_separated_posteriors_carry_log_n_nats():
    torch.manual_seed(0)
    mean = torch.zeros(N, 3)
    mean[:, 0] = 3 * torch.arange(N)  # 60 standard deviations apart
    measures = latent.measures(mean, LOG_STD)
    assert measures["active_units"] == 1
    assert measures["mutual_information_nats"] == pytest.approx(math.log(N))
    rest = average_kl(mean) - math.log(N)
    assert measures["marginal_kl_nats"] == pytest.approx(rest, rel=1e-5)


def test_equal_posteriors_carry_nothing():
    torch.manual_seed(0)
    mean = torch.ones(N, 3)
    measures = latent.measures(mean, LOG_STD)
    assert measures["active_units"] == 0
    assert measures["mutual_information_nats"] == pytest.approx(0, abs=1e-9)
    assert measures["marginal_kl_nats"] == pytest.approx(average_kl(mean), rel=1e-5)


def test_the_mixture_of_posteriors_is_exact_where_they_overlap():
    """Against the same estimate by torch.distributions, from the same draws of z."""
    torch.manual_seed(0)
    mean, log_std = torch.randn(N, 3).double(), (0.3 * torch.randn(N, 3) - 0.5).double()
    torch.manual_seed(1)
    z = mean + log_std.exp() * torch.randn_like(mean)
    log_q = Normal(mean, log_std.exp()).log_prob(z[:, None]).sum(dim=2)  # z_i under q(z|x_j)
    expected = (log_q.diagonal() - torch.logsumexp(log_q, dim=1) + math.log(N)).mean().item()
    torch.manual_seed(1)
    measures = latent.measures(mean, log_std)
    assert 0.5 < expected < math.log(N) - 0.5
    assert measures["mutual_information_nats"] == pytest.approx(expected, rel=1e-10)
