"""Importance weights for a decoder of Bernoulli pixels with a standard normal prior.

Two proposals for z given an image x: the encoder's q(z|x), and a Laplace approximation of the
posterior p(z|x), which has its covariance at the mode and so needs far fewer draws.
"""

import math
import warnings
from collections.abc import Callable
from typing import Protocol

import torch

N_CANDIDATES = 1000  # draws from the prior among which Newton's steps may start
N_NEWTON_STEPS = 2  # near enough to the mode for a proposal
STEP_LENGTHS = (1.0, 0.5, 0.25, 0.0)  # of a Newton step; the best one is taken
SCALE = 1.1  # of the Laplace proposal's standard deviation: its tails must cover the posterior's


class Decoder(Protocol):
    """What is needed of a decoder of d Bernoulli pixels."""

    def logits(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [batch, z_dim] -> log odds of the pixels, [batch, d]."""


# images -> n -> n independent log-weights for each image, in nats: [batch, n]
LogWeights = Callable[[torch.Tensor], Callable[[int], torch.Tensor]]
Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def log_joint(decoder: Decoder, images: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """log p(x, z) in nats of images [batch, d] with n latents each, [batch, n, z_dim]: [batch, n].

    log p(x|z) = sum_i x_i l_i - log(1 + e^l_i) for the logits l of z.
    """
    log_odds = decoder.logits(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    # logaddexp is the fastest form of log(1 + e^l) without a gradient.
    log_normalizers = torch.logaddexp(log_odds, log_odds.new_zeros(()))
    log_px_given_z = (log_odds @ images[:, :, None]).squeeze(2) - log_normalizers.sum(dim=2)
    return log_px_given_z - 0.5 * (z.square() + math.log(2 * math.pi)).sum(dim=2)


def posterior_mode(
    decoder: Decoder, images: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearly the mode of p(z|x), and a Cholesky factor of the precision there: Newton's method.

    A few damped steps are taken, N_NEWTON_STEPS.

    With J the derivatives of the logits and m the means, the negative Hessian of log p(x, z) is
    H = J diag(m (1 - m)) J^T + I. This is exact where the logits are piecewise linear in z, as with
    ReLU, and the Gauss-Newton approximation elsewhere.

    Args:
        decoder: of p(x|z).
        images: [batch, d].
        z: where to start, [batch, z_dim].

    Returns:
        The mode [batch, z_dim] and the lower triangular L with H = L L^T, [batch, z_dim, z_dim].
    """
    lengths = torch.tensor(STEP_LENGTHS, dtype=z.dtype, device=z.device)[:, None]
    for _ in range(N_NEWTON_STEPS):
        gradient, factor = _derivatives(decoder, images, z)
        step = torch.cholesky_solve(gradient[..., None], factor).transpose(1, 2)
        candidates = z[:, None] + lengths * step
        best = log_joint(decoder, images, candidates).argmax(dim=1)
        z = candidates[torch.arange(len(z), device=z.device), best]
    return z, _derivatives(decoder, images, z)[1]


def logits_and_jacobian(decoder: Decoder, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits [batch, d] of latents [batch, z_dim], and their derivatives, [batch, z_dim, d].

    Forward-mode differentiation: a Jacobian-vector product along each axis of z.
    """
    axes = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)

    def along(axis):
        return torch.func.jvp(decoder.logits, (z,), (axis.expand_as(z),))

    with warnings.catch_warnings():  # PyTorch's own rules use what it has deprecated
        warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
        return torch.func.vmap(along, out_dims=(None, 1))(axes)


def _derivatives(decoder, images, z):
    """The gradient of log p(x, z) in z, and the Cholesky factor of its negative Hessian."""
    log_odds, jacobian = logits_and_jacobian(decoder, z)
    means = torch.sigmoid(log_odds)
    gradient = torch.einsum("bd,bzd->bz", images - means, jacobian) - z
    weighted = (means * (1 - means)).sqrt()[:, None] * jacobian
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return gradient, torch.linalg.cholesky(weighted @ weighted.transpose(1, 2) + identity)


def starting_points(decoder: Decoder, images: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Where p(x, z) is largest among the encoder's mean and draws from the prior, [batch, z_dim].

    In few dimensions p(z|x) has several modes, and the encoder's mean may lie near a lesser one.

    Args:
        decoder: of p(x|z).
        images: [batch, d].
        means: of q(z|x), [batch, z_dim].
    """
    candidates = torch.randn(N_CANDIDATES, means.shape[1], dtype=means.dtype, device=means.device)
    # The images share the candidates: log p(x, z) = x.l - sum log(1 + e^l) + log p(z).
    log_odds = decoder.logits(candidates)
    of_candidate = log_joint(decoder, torch.zeros_like(log_odds), candidates[:, None])[:, 0]
    best, which = (images @ log_odds.T + of_candidate).max(dim=1)
    is_better = best > log_joint(decoder, images, means[:, None])[:, 0]
    return torch.where(is_better[:, None], candidates[which], means)


def laplace_weights(decoder: Decoder, encode: Encode) -> LogWeights:
    """Log-weights of z ~ N(mode, SCALE^2 H^-1), see `posterior_mode`.

    Newton's steps start from the best of `starting_points`. (Kass & Raftery, "Bayes factors",
    Journal of the American Statistical Association 1995, Section 4.)

    Args:
        decoder: of p(x|z).
        encode: images -> (mean, log standard deviation) of q(z|x), [batch, z_dim] each.
    """

    def for_images(images):
        start = starting_points(decoder, images, encode(images)[0])
        mode, factor = posterior_mode(decoder, images, start)
        return _gaussian_weights(decoder, images, mode, factor / SCALE)

    return for_images


def encoder_weights(decoder: Decoder, encode: Encode) -> LogWeights:
    """Log-weights of z ~ q(z|x), as `laplace_weights`."""

    def for_images(images):
        mean, log_std = encode(images)
        return _gaussian_weights(decoder, images, mean, torch.diag_embed(torch.exp(-log_std)))

    return for_images


def _gaussian_weights(decoder, images, mean, factor):
    """n -> log p(x, z) - log q(z) for n draws of z ~ N(mean, (L L^T)^-1), [batch, n]; L: factor."""
    identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    to_offset = torch.linalg.solve_triangular(factor.transpose(1, 2), identity, upper=True)
    log_scale = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1, keepdim=True)

    def draw(n):
        eps = torch.randn(len(mean), n, mean.shape[1], dtype=mean.dtype, device=mean.device)
        z = mean[:, None] + eps @ to_offset.transpose(1, 2)
        log_q = log_scale - 0.5 * (eps.square() + math.log(2 * math.pi)).sum(dim=2)
        return log_joint(decoder, images, z) - log_q

    return draw


PROPOSALS = {"laplace": laplace_weights, "encoder": encoder_weights}
