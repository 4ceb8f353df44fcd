"""What the outputs of a VAE's encoder may mean: the parameters of q(z|x)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

# What the second output may mean: the standard deviation as a function of it.
MEANINGS = {
    "the standard deviation": lambda h: h,
    "the log standard deviation": torch.exp,
    "the log variance": lambda h: torch.exp(h / 2),
    "the standard deviation through softplus": F.softplus,
    "the standard deviation through ReLU": F.relu,
    "the absolute standard deviation": torch.abs,
    "the variance": lambda h: h.clamp(min=0).sqrt(),
    "half the log standard deviation": lambda h: torch.exp(2 * h),
    "the variance through softplus": lambda h: F.softplus(h).sqrt(),
    "the variance, used as a standard deviation": lambda h: h.square(),
    "the standard deviation through a sigmoid": torch.sigmoid,
    "the standard deviation through ELU": lambda h: F.elu(h) + 1,
    "the variance as a power of 2": lambda h: torch.exp2(h / 2),
    "the standard deviation as a power of 2": torch.exp2,
}
UNKNOWN_HEAD = "the latents' deviation is no known function of the encoder's output"


class Posterior(NamedTuple):
    """q(z|x) as the samples show it: mean and standard deviation of the encoder's outputs."""

    meaning: str
    of: Callable  # the encoder's outputs -> (mean, standard deviation)


def kl_divergence(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) in nats, [batch]. Kingma & Welling 2014, Appendix B."""
    return 0.5 * (std.square() + mean.square() - 2 * std.log() - 1).sum(dim=1)


def kl_of_draw(z: torch.Tensor, eps: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log q(z|x) - log p(z) in nats for z = mean + std * eps, [batch]: its mean is the KL."""
    return 0.5 * (z.square() - eps.square() - 2 * std.log()).sum(dim=1)


def misfit(measured: torch.Tensor, std: torch.Tensor) -> float:
    """How far two standard deviations differ: the average size of the log of their ratio."""
    floor = 1e-9
    if (std < 0).any():
        return math.inf
    ratio = (measured + floor).log() - (std + floor).log()
    return ratio.abs().mean().item()
