"""What 8-bit weights cost, and how test images score, on the first 1,000 test images.

A model and its rounded copy see the same random numbers, so their difference is the rounding's.
"""

import functools

import torch
import torch.nn as nn

from a3_gan_template import generate, sample_latents
from a3_nf_template import Model, bits_per_dimension
from a3_vae_template import VAE, kl_divergence
from datasets import bmnist, mnist
from harness.devices import separate_random_numbers

N_IMAGES = 1000  # test images that the page carries
QUANTILES = (0.05, 0.5, 0.95)


@functools.cache
def grey_images() -> torch.Tensor:
    """The page's test images in 0..255: uint8 [1000, 784]."""
    return mnist()[2].images[:N_IMAGES]


@functools.cache
def binary_images() -> torch.Tensor:
    """The same images in the VAE's static binarisation: uint8 [1000, 784] of 0 and 1."""
    return bmnist()[2].images[:N_IMAGES]


@torch.no_grad()
def measure_vae(model: VAE, rounded: VAE) -> dict:
    """The cost in nats of -ELBO, scores of test images, and each unit's average KL in nats."""
    images = binary_images().float()

    def terms(vae):
        with separate_random_numbers(0):
            draws = [torch.stack(list(vae.terms(images).values())) for _ in range(10)]
        return torch.stack(draws).mean(dim=0)

    exact, approximate = terms(model), terms(rounded)
    mean, log_std = rounded.encoder(images)
    usage = kl_divergence(mean.T.reshape(-1, 1), log_std.T.reshape(-1, 1))
    scores = dict(zip(("negElbo", "recon", "kl"), approximate))
    return {
        "cost": {"value": (approximate[0] - exact[0]).mean().item(), "unit": "nats of ELBO"},
        "bands": {name: band(values) for name, values in scores.items()},
        "usage": usage.view(-1, N_IMAGES).mean(dim=1).tolist(),
    }


@torch.no_grad()
def measure_flow(model: Model, rounded: Model) -> dict:
    """The cost in bits per dimension, and scores of test images."""
    images = grey_images().float()

    def bits(flow):
        with separate_random_numbers(0):
            return bits_per_dimension(flow(images), images.shape[1])

    exact, approximate = bits(model), bits(rounded)
    return {
        "cost": {"value": (approximate - exact).mean().item(), "unit": "bits/dim"},
        "bands": {"bpd": band(approximate)},
    }


@torch.no_grad()
def measure_gan(model: nn.ModuleDict, rounded: nn.ModuleDict) -> dict:
    """The cost in grey levels of a sample, and D on test images."""
    with separate_random_numbers(0):
        z = sample_latents(N_IMAGES, model["generator"].latent_dim)
    samples = generate(rounded["generator"], z)
    error = (samples - generate(model["generator"], z)).abs().mean().item() * 255
    real = rounded["discriminator"](grey_images() / 127.5 - 1)
    return {
        "cost": {"value": error, "unit": "grey levels of 255"},
        "bands": {"real": band(real)},
    }


def band(values: torch.Tensor) -> list[float]:
    """The 5%, 50% and 95% quantiles."""
    return torch.quantile(values.flatten(), torch.tensor(QUANTILES)).tolist()
