"""Importance-weighted estimates of log p(x), and the numerical error of an inverse."""

import math
from collections.abc import Callable, Sequence

import torch

from harness import interrupts
from harness.devices import to_host
from harness.laplace import PROPOSALS, Decoder, Encode, LogWeights
from harness.progress import progress_bar


def of_decoder(
    decoder: Decoder, encode: Encode, images: torch.Tensor, n_samples: int, proposal: str
) -> dict[str, float]:
    """-log p(x) of binary images [n, d] by `importance_weighted` draws of z, `n_samples` each.

    Args:
        decoder: of p(x|z).
        encode: images -> (mean, log standard deviation) of q(z|x), [batch, z_dim] each.
        images: of 0 and 1.
        n_samples: draws of z per image.
        proposal: 'laplace' or 'encoder', where z is drawn from; see `harness.laplace`.
    """
    rows = rows_at_once(images.device)
    size = max(128, rows // n_samples)
    if proposal == "laplace":  # it has a Hessian of each image, with the square of z's dimensions
        with torch.no_grad():
            z_dim = encode(images[:1])[0].shape[1]
        size = min(size, max(1, 256 * rows // z_dim**2))
    batches = images.split(size)
    return importance_weighted(PROPOSALS[proposal](decoder, encode), batches, n_samples)


def of_flow(
    log_px: Callable[[torch.Tensor], torch.Tensor],
    batches: Sequence[torch.Tensor],
    n_samples: int,
    n_dimensions: int,
) -> dict[str, float]:
    """Bits per dimension by `importance_weighted` draws of the dequantisation noise.

    That is an upper bound, tighter with more draws (Ho et al., "Flow++", ICML 2019).

    Args:
        log_px: images -> log p(x + noise) in nats, [batch], with new noise in every call.
        batches: images.
        n_samples: draws of the noise per image.
        n_dimensions: of an image.
    """
    nats = importance_weighted(repeated(log_px), batches, n_samples)
    return per_dimension(nats, n_dimensions)


@torch.no_grad()
def importance_weighted(
    log_weights: LogWeights,
    batches: Sequence[torch.Tensor],
    n_samples: int,
    max_rows: int | None = None,
) -> dict[str, float]:
    """Estimate -log p(x) by importance sampling: -log of the mean weight, averaged over images.

    The mean weight is an unbiased estimate of p(x), so its logarithm bounds log p(x) from below in
    expectation, more tightly with more draws (Burda, Grosse & Salakhutdinov, "Importance weighted
    autoencoders", ICLR 2016, Equation 8 and Theorem 1).

    Args:
        log_weights: of the draws from a proposal, log p(x, z) - log q(z).
        batches: images.
        n_samples: weights per image.
        max_rows: images times draws in one call, at least one draw per image; None is
            `rows_at_once` of the batches' device.

    Returns:
        `neg_log_px_nats`; its standard error over the images; `one_draw_nats`, minus the mean
        log-weight of the same draws; `gap_nats`, by how much it is larger; `effective_sample_size`,
        the median over images of (sum w)^2 / sum w^2 (Kong 1992); `half_difference_nats`, by how
        much the estimates from two halves of the draws differ (it shows noise, not the bias that
        both halves share: a small effective sample size shows that); and `importance_samples`.
    """
    bounds, log_px, sizes, halves = [], [], [], []
    with progress_bar(len(batches), desc=f"log p(x), {n_samples:,} draws per image") as bar:
        for batch in batches:
            interrupts.check()
            draw = log_weights(batch)
            n_draws = max(1, (max_rows or rows_at_once(batch.device)) // len(batch))
            starts = range(0, n_samples, n_draws)
            draws = [draw(min(n_draws, n_samples - start)) for start in starts]
            weights = to_host(torch.cat(draws, dim=1))
            bounds.append(weights.mean(dim=1))
            log_px.append(_log_mean(weights))
            sizes.append(torch.softmax(weights, dim=1).square().sum(dim=1).reciprocal())
            half = max(1, n_samples // 2)
            halves.append(_log_mean(weights[:, :half]) - _log_mean(weights[:, -half:]))
            bar.update()
    bound, log_px = torch.cat(bounds), torch.cat(log_px)
    return {
        "neg_log_px_nats": -log_px.mean().item(),
        "standard_error_nats": (log_px.std() / math.sqrt(len(log_px))).item(),
        "one_draw_nats": -bound.mean().item(),
        "gap_nats": (log_px - bound).mean().item(),
        "effective_sample_size": torch.cat(sizes).median().item(),
        "half_difference_nats": torch.cat(halves).mean().abs().item(),
        "importance_samples": n_samples,
    }


def _log_mean(log_weights: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])


def repeated(log_px: Callable[[torch.Tensor], torch.Tensor]) -> LogWeights:
    """Log-weights from a function that draws its noise itself.

    Args:
        log_px: images -> log p(x, noise) - log q(noise) in nats, [batch], new noise in every call.
    """

    def for_images(batch):
        return lambda n: log_px(batch.repeat_interleave(n, dim=0)).view(len(batch), n)

    return for_images


def rows_at_once(device: torch.device) -> int:
    """Images times draws in one call: enough to fill a GPU; on a CPU, what its caches can use."""
    return 2**18 if device.type == "cuda" else 4096


def per_dimension(nats: dict[str, float], n_dimensions: int) -> dict[str, float]:
    """The result of `importance_weighted` in bits per dimension."""
    bits = n_dimensions * math.log(2)
    return {
        "bpd": nats["neg_log_px_nats"] / bits,
        "standard_error": nats["standard_error_nats"] / bits,
        "one_draw_bpd": nats["one_draw_nats"] / bits,
        "gap": nats["gap_nats"] / bits,
        "effective_sample_size": nats["effective_sample_size"],
        "half_difference": nats["half_difference_nats"] / bits,
        "importance_samples": nats["importance_samples"],
    }


def inverse_error(layers: dict[str, Callable], x: torch.Tensor) -> dict[str, float]:
    """Largest error of x, and of the value before each later layer, after a round trip.

    Args:
        layers: invertible layers by name, called as layer(x, ldj, reverse) -> (x, ldj).
        x: [batch, d].
    """
    ldj = torch.zeros(len(x), device=x.device)
    before, errors = {}, {}
    for name, layer in layers.items():
        before[name] = x
        x, _ = layer(x, ldj, reverse=False)
    for name, layer in reversed(layers.items()):
        x, _ = layer(x, ldj, reverse=True)
        errors[name] = (x - before[name]).abs().max().item()
    return errors
