"""Latent spaces: grids and lines to draw them on, and measures of an encoder's use of one."""

import math

import torch
from scipy.special import ndtri  # the quantile function of N(0, 1)

from harness.devices import to_host


def quantile_grid(n: int) -> torch.Tensor:
    """An n x n grid over a 2-dimensional prior N(0, I), cells of equal probability: [n * n, 2].

    The axes are the (i + 1/2) / n quantiles: z1 from left to right, z2 from bottom to top (Kingma &
    Welling, ICLR 2014, Figure 4).
    """
    quantiles = torch.tensor(ndtri([(i + 0.5) / n for i in range(n)]), dtype=torch.float32)
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([z1.flatten(), z2.flatten()], dim=1)


def interpolate(z_first: torch.Tensor, z_last: torch.Tensor, n_steps: int = 7) -> torch.Tensor:
    """The straight line between two latents [z_dim], endpoints included: [n_steps + 2, z_dim]."""
    weights = torch.linspace(0, 1, n_steps + 2, device=z_first.device)[:, None]
    return (1 - weights) * z_first + weights * z_last


def farthest_pair(images: torch.Tensor) -> list[int]:
    """The indices of the two images [n, n_pixels] with the largest Euclidean distance."""
    return list(divmod(torch.cdist(images, images).argmax().item(), len(images)))


def measures(mean: torch.Tensor, log_std: torch.Tensor) -> dict[str, float]:
    """Active units, and the two parts of the average KL to the prior N(0, I), in nats.

    A unit is active if its mean varies over the images with a variance above 0.01 (Burda et al.,
    ICLR 2016, Section 5.2). The KL splits into

        E_x KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || p(z)),    q(z) = E_x q(z|x)

    (Hoffman & Johnson, "ELBO surgery", 2016), with x uniform over the n images and one draw of z
    per image. So I(x; z) is at most log n, and a larger KL leaves the rest to the marginal.

    Args:
        mean, log_std: of the diagonal Gaussian q(z|x) of n images, [n, z_dim] each.
    """
    mean, log_std = to_host(mean), to_host(log_std)
    z = mean + log_std.exp() * torch.randn_like(mean)
    precision = torch.exp(-2 * log_std)
    log_normalizer = 2 * log_std + math.log(2 * math.pi)
    constant = (mean.square() * precision + log_normalizer).sum(dim=1)

    def log_q_of_all(rows):
        """log q(z_i | x_j) of all pairs; the square multiplied out is two matrix products."""
        return -0.5 * (rows.square() @ precision.T - 2 * rows @ (mean * precision).T + constant)

    log_q_z = torch.cat([torch.logsumexp(log_q_of_all(rows), dim=1) for rows in z.split(1000)])
    log_q_z = log_q_z - math.log(len(mean))
    own = -0.5 * ((z - mean).square() * precision + log_normalizer).sum(dim=1)
    information = (own - log_q_z).mean().item()
    kl = 0.5 * (torch.exp(2 * log_std) + mean.square() - 2 * log_std - 1).sum(dim=1).mean().item()
    return {
        "active_units": (mean.var(dim=0) > 0.01).sum().item(),
        "mutual_information_nats": information,
        "marginal_kl_nats": kl - information,
    }
